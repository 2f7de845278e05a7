"""Resolve the engine of a spec into an :class:`EngineProblem`: files, prices, GPUs, memory and step times."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.hardware.gpu import BLOCK_TOKENS, Gpu, KvCache, estimate_kv_cache, find_gpu, list_gpus
from unfold_pipeline.engine.hardware.model_config import read_model_config
from unfold_pipeline.engine.hardware.model_shape import KvLayout, ModelShape
from unfold_pipeline.engine.planner.problem import (
    Disaggregation,
    EngineOption,
    EngineProblem,
    EngineSettings,
    EngineStages,
    Targets,
)
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.engine.simulation.cluster import Routing
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests
from unfold_pipeline.engine.step_times.aiconfigurator import (
    OperatorDatabase,
    TableCache,
    build_step_times,
    find_table_ends,
    find_tables,
    read_database,
)
from unfold_pipeline.engine.step_times.all_reduce import read_all_reduce
from unfold_pipeline.engine.step_times.benchmark_runs import BenchmarkRun, read_benchmarks
from unfold_pipeline.engine.step_times.endpoint_fit import FittedEndpoint, fit_endpoint
from unfold_pipeline.engine.step_times.endpoint_profile import (
    EndpointProfile,
    build_benchmark_runs,
    load_endpoint_profile,
)
from unfold_pipeline.engine.step_times.fit import fit_step_times
from unfold_pipeline.engine.step_times.interval import (
    CONFIDENCE,
    StepInterval,
    build_endpoint_interval,
    build_interval,
)
from unfold_pipeline.engine.step_times.operator_tables import find_profile_ends, read_profile
from unfold_pipeline.engine.step_times.process_contention import measure_contention
from unfold_pipeline.engine.step_times.roofline import build_roofline
from unfold_pipeline.engine.trace.request_objects import holds_objects
from unfold_pipeline.engine.trace.token_trace import (
    INPUT_COLUMNS,
    OUTPUT_COLUMNS,
    TokenTrace,
    constant_tokens,
    draw_tokens,
    find_usual_column,
    list_fields,
    read_lengths,
    read_objects,
    read_tokens,
)
from unfold_pipeline.problem.build import build_pipeline, resolve_stages
from unfold_pipeline.problem.latency_profile import load_activation
from unfold_pipeline.problem.pricing import ReplicaPrice, price_hardware
from unfold_pipeline.problem.traffic import load_arrivals
from unfold_pipeline.schema.arrivals import Arrivals
from unfold_pipeline.schema.engine import SOURCE_KEYS, EngineModel, EngineSpec, StepSource, list_degrees
from unfold_pipeline.schema.hardware import GpuSheet, Hardware
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import sort_stages
from unfoldkit.api import Run, csv_rows, did_you_mean, user_error
from unfoldkit.arrivals.readers.timestamps import TimeNotation

SLOTS_HEADROOM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """The range over which step times are needed, and the confidence of their interval."""

    max_tokens: int
    max_requests: int
    max_context: int
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEndpoint:
    """The profile of a running engine, with the step times that fit it."""

    profile: EndpointProfile
    fit: FittedEndpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How the processes of a local engine are started, and whether their number may change.

    Attributes:
        key: Of the engine in the spec, for errors.
        weights: The GGUF file; ``None`` for that of the installed package.
        threads: Threads that compute.
        context: Tokens in the KV cache, which the requests share.
        routing: How requests are distributed to the processes.
        is_scaled: Whether a rule scales them.
    """

    key: str
    weights: Path | None
    threads: int
    context: int
    routing: Routing
    is_scaled: bool


def build_engine_problem(spec: PipelineSpec, run: Run) -> EngineProblem:
    """Read every file that an engine names and return the planning problem.

    Raises:
        UnfoldError: A file is missing or damaged, the trace has no tokens, the tables have a hole, a tensor
            parallelism has no measured all-reduce, or the model fits no GPU.
    """
    stage, engine = find_engine(spec)
    key = f"stages.{stage}.engine"
    trace = load_token_trace(spec, run)
    prices = price_hardware(spec.hardware, spec.region, spec.prices, run)
    is_profiled = all(source.endpoint and _find_table(source) is None for source in engine.steps.values())
    model = read_model(engine.model, f"{key}.model", run, is_profiled=is_profiled)
    _warn_of_long_requests(trace, model.max_context, run)
    engine = _resolve_precision(engine, model, key)
    needed = find_step_range(spec, engine, trace)
    measured = _fit_endpoint(stage, engine, needed, key, run)
    settings = _build_settings(
        engine, engine.front if measured is None else measured.fit.front_s, _find_start(stage, engine, run)
    )
    requests = trace.build_requests(BLOCK_TOKENS)
    options, too_small = _build_options(spec, engine, model, prices, needed, measured, key, run)
    return EngineProblem(
        name=spec.name,
        stage=stage,
        requests=requests,
        options=options,
        too_small=too_small,
        settings=settings,
        targets=Targets(
            ttft_s=spec.slo.ttft_p99 or math.inf,
            tpot_s=spec.slo.tpot_p99 or math.inf,
            latency_s=spec.slo.p99 or math.inf,
        ),
        confidence=spec.slo.confidence,
        price_sources={name: price.source for name, price in prices.items() if name in engine.steps},
        trace_sha256=hash_trace(trace),
        model=engine.model.config or f"{model.layers} layers, {model.hidden} wide",
        model_name=engine.model.name or "",
        precision=engine.precision,
        kv_precision=engine.kv_precision,
        is_quantized=bool(model.stored_precision),
        window=model.window if model.window < needed.max_context else 0,
        window_layers=model.window_layers,
        layers=model.layers,
        max_context=model.max_context or (0 if measured is None else measured.profile.max_context),
        disaggregation=_build_disaggregation(
            engine, model, options, needed.max_context, spec.search.limit, f"{key}.disaggregated"
        ),
    )


def _warn_of_long_requests(trace: TokenTrace, max_context: int, run: Run) -> None:
    """Warn of requests that a plan counts and that engines refuse."""
    lengths = trace.input_tokens + trace.output_tokens
    count = int((lengths > max_context).sum()) if max_context else 0
    if count:
        exceed = "exceed" if count > 1 else "exceeds"
        run.log.warning(
            "%s of %s requests %s the context of %s tokens in the model's config, by up to %s; "
            "vLLM refuses or cuts them, the plan counts them in full",
            *(f"{count:,}", f"{len(trace):,}", exceed, f"{max_context:,}", f"{lengths.max() - max_context:,}"),
        )


def _build_disaggregation(
    engine: EngineSpec,
    model: ModelShape,
    options: Sequence[EngineOption],
    longest: int,
    max_requests: float,
    key: str,
) -> Disaggregation | None:
    """Return the pairs of options for two pools: each GPU of a prefill engine serves whole GPUs of a decode engine.

    Raises:
        UnfoldError: The sizes of the model do not give its KV cache.
    """
    pools = engine.disaggregated
    if pools is None:
        return None
    if model.is_unusual:
        message = "the sizes of this model do not give the bytes of its KV cache"
        raise user_error(message, key=key, hint="a dense model with grouped-query attention, or leave it out")
    degrees = [
        pools.prefill_tensor_parallel or engine.tensor_parallel,
        pools.decode_tensor_parallel or engine.tensor_parallel,
    ]
    prefill_degrees, decode_degrees = map(list_degrees, degrees)
    pairs = tuple(
        (prefill, decode)
        for prefill, first in enumerate(options)
        for decode, second in enumerate(options)
        if first.tensor_parallel in prefill_degrees
        and second.tensor_parallel in decode_degrees
        and second.tensor_parallel % first.tensor_parallel == 0
        and all(option.kv_cache.keep_whole_context().tokens >= longest for option in (first, second))
    )
    return Disaggregation(
        pairs=pairs,
        kv_bytes=tuple(model.kv_bytes_per_token(option.tensor_parallel, engine.kv_precision) for option in options),
        bytes_per_s=pools.bandwidth,
        latency_s=pools.latency,
        max_requests=max_requests,
    )


def build_engine_stages(spec: PipelineSpec, run: Run) -> EngineStages | None:
    """Return the stages around the engine; ``None`` if it stands alone.

    Raises:
        UnfoldError: A stage has no latency or no price.
    """
    if len(spec.stages_by_name) == 1:
        return None
    resolved = resolve_stages(spec, run)
    names = sort_stages(resolved.stages_by_name)
    position = names.index(str(spec.engine_stage))
    prices = price_hardware(spec.hardware, spec.region, spec.prices, run)
    pipelines = []
    for members in (names[:position], names[position + 1 :]):
        stages = {name: resolved.stages_by_name[name] for name in members}
        if members:
            stages[members[0]] = stages[members[0]].model_copy(update={"after": {}, "inputs": None})
        pipelines.append(build_pipeline(resolved.model_copy(update={"stages": stages}), prices, run))
    upstream, downstream = pipelines
    return EngineStages(
        upstream=upstream, downstream=downstream, max_replicas=spec.tuner.most, max_requests=spec.search.limit
    )


def build_replay_requests(
    spec: PipelineSpec, problem: EngineProblem, config: EngineConfig, trace: Path, run: Run
) -> EngineRequests:
    """Return the requests of a trace to replay.

    Raises:
        UnfoldError: The trace has no tokens, or a request does not fit the KV cache of an engine.
    """
    requests = load_token_trace(spec, run, replay=trace).build_requests(BLOCK_TOKENS)
    longest = int((requests.input_tokens + requests.output_tokens).max())
    least = problem.options[config.option].kv_cache.find_longest_request(config.budget)
    if longest > least:
        message = f"a request of {longest:,} tokens does not fit the KV cache of {least:,} of the plan"
        raise user_error(message, file=str(trace), hint="plan on this trace")
    return requests


def find_engine(spec: PipelineSpec) -> tuple[str, EngineSpec]:
    """Return the stage that is an engine.

    Raises:
        UnfoldError: No stage is.
    """
    for name, stage in spec.stages_by_name.items():
        if stage.engine is not None:
            return name, stage.engine
    raise user_error("no stage is an engine", key="stages", hint="stages.NAME.engine")


def build_local_settings(spec: PipelineSpec, run: Run) -> LocalSettings:
    """Return the settings of the processes of a spec with ``engine.local``."""
    stage, engine = find_engine(spec)
    local, key = engine.local, f"stages.{stage}.engine"
    assert local is not None  # noqa: S101 - callers have checked
    return LocalSettings(
        key=key,
        weights=None if local.weights is None else run.path(local.weights, key=f"{key}.local.weights"),
        threads=local.threads,
        context=local.context,
        routing=engine.routing,
        is_scaled=spec.tuner.policy != "fixed",
    )


def load_token_trace(spec: PipelineSpec, run: Run, *, replay: Path | None = None) -> TokenTrace:
    """Return the requests of a spec, or of the trace that a replay names, with their tokens.

    Raises:
        UnfoldError: The trace cannot be read or has no tokens.
    """
    traffic = spec.arrivals
    if not isinstance(traffic, Arrivals):
        raise user_error("an engine is planned on one trace", key="arrivals", hint="leave the others out")
    if replay is not None:
        keep = {name: getattr(traffic, name) for name in ("input", "output", "match", "unit", "time_format")}
        likely = Arrivals(column=traffic.column, trace=traffic.trace)
        live = Arrivals(trace=str(replay.absolute()), **keep)
        if traffic.lengths is not None and not _has_tokens(replay):
            times = load_arrivals(live, run, np.random.default_rng([run.seed, 4]), "--replay", likely)
            return _draw_lengths(traffic, times, "arrivals", run)
        trace = _read_live(live, likely, run)
        _warn_of_grid(trace, replay, run)
        return trace
    return _read_traffic(traffic, "arrivals", run)


def _read_live(live: Arrivals, likely: Arrivals, run: Run) -> TokenTrace:
    path = Path(str(live.trace))
    if holds_objects(path):
        names = list_fields(path)
        is_alike = likely.trace is not None and holds_objects(Path(likely.trace))
        return read_objects(
            path,
            prompt=_choose_column(live.input, names, INPUT_COLUMNS),
            generated=_choose_column(live.output, names, OUTPUT_COLUMNS),
            column=likely.column if likely.column in names else None,
            match=live.match or "",
            notation=TimeNotation(live.time_format, live.unit if is_alike else None, likely_unit=live.unit),
            warn=run.log.warning,
        )
    orders: list[CountArray] = []
    times = load_arrivals(
        live.model_copy(update={"counts": ""}),
        run,
        np.random.default_rng([run.seed, 4]),
        "--replay",
        likely,
        None,
        on_unsorted=orders.append,
    )
    names = _list_columns(path)
    return read_tokens(
        path,
        times,
        prompt=_choose_column(live.input, names, INPUT_COLUMNS),
        generated=_choose_column(live.output, names, OUTPUT_COLUMNS),
        match=live.match or "",
        order=orders[0] if orders else None,
        warn=run.log.warning,
    )


def _warn_of_grid(trace: TokenTrace, path: Path, run: Run) -> None:
    if grid := trace.describe_grid():
        run.log.warning("%s: %s", path, grid)


def _has_tokens(path: Path) -> bool:
    """Return whether a trace names columns of prompt and generated tokens."""
    if not path.is_file():
        return False
    names = list_fields(path) if holds_objects(path) else _list_columns(path)
    return all(find_usual_column(names, usual) is not None for usual in (INPUT_COLUMNS, OUTPUT_COLUMNS))


def _list_columns(path: Path) -> list[str]:
    """Return the columns of a CSV."""
    return [name for row in itertools.islice(csv_rows(path), 1) for name in row.cells]


def _choose_column(stated: str | int | None, names: Sequence[str], usual: Sequence[str]) -> str | int | None:
    """Return the column of tokens of a trace that may be another file than that of the spec; ``None`` for a usual name.

    Usual names count where it lacks that of the spec, and before a number that the spec gives for all requests.
    """
    is_usual = find_usual_column(names, usual) is not None
    return stated if stated in names or (isinstance(stated, int) and not is_usual) else None


def _read_traffic(traffic: Arrivals, key: str, run: Run) -> TokenTrace:
    rng = np.random.default_rng([run.seed, 1, 0])
    if traffic.lengths is not None:
        return _draw_lengths(traffic, load_arrivals(traffic, run, rng, key=key), key, run)
    if traffic.trace is None:
        if not isinstance(traffic.input, int) or not isinstance(traffic.output, int):
            message = "requests of an engine have no tokens"
            raise user_error(message, key=key, hint="arrivals: {input: 1000, output: 200}, lengths: FILE, or a trace")
        return constant_tokens(load_arrivals(traffic, run, rng, key=key), traffic.input, traffic.output)
    path = run.path(traffic.trace, key=f"{key}.trace")
    if traffic.counts or traffic.rates:
        message = "a trace of counts has no tokens of individual requests"
        raise user_error(message, key=f"{key}.counts", hint="arrivals.lengths: a file with the tokens of requests")
    if holds_objects(path):
        trace = read_objects(
            path,
            prompt=traffic.input,
            generated=traffic.output,
            column=traffic.column,
            match=traffic.match or "",
            notation=TimeNotation(traffic.time_format, traffic.unit),
            warn=run.log.warning,
        )
    else:
        # compress, scale and share apply to requests with their tokens, not to times alone
        plain = traffic.model_copy(update={"compress": 1.0, "scale": 1.0, "share": 1.0, "counts": ""})
        orders: list[CountArray] = []
        times = load_arrivals(plain, run, rng, key, on_newest_first=None, allows_batch=True, on_unsorted=orders.append)
        trace = read_tokens(
            path,
            times,
            prompt=traffic.input,
            generated=traffic.output,
            match=traffic.match or "",
            order=orders[0] if orders else None,
            warn=run.log.warning,
        )
    _warn_of_grid(trace, path, run)
    trace = trace.compress(traffic.compress)
    trace = trace.scale_rate(traffic.scale, rng) if traffic.scale != 1 else trace
    if traffic.share < 1:
        trace = trace.cut(0.0, float(trace.arrival_s[-1]) * traffic.share)
    if len(trace) < 2:
        raise user_error("the trace has too few requests for a plan", key=key, hint="a longer trace or share")
    return trace


def _draw_lengths(traffic: Arrivals, arrival_s: FloatArray, key: str, run: Run) -> TokenTrace:
    """Return arrivals with tokens drawn from the file of lengths, which have a random stream of their own."""
    path = run.path(traffic.lengths or "", key=f"{key}.lengths")
    lengths = read_lengths(path, prompt=traffic.input, generated=traffic.output, warn=run.log.warning)
    return draw_tokens(arrival_s, lengths, np.random.default_rng([run.seed, 5]))


def hash_trace(trace: TokenTrace) -> str:
    """Return a hash of arrivals and tokens."""
    digest = hashlib.sha256()
    for column in (trace.arrival_s, trace.input_tokens, trace.output_tokens, trace.shared_tokens):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def read_model(model: EngineModel, key: str, run: Run, *, is_profiled: bool = False) -> ModelShape:
    """Return the shape of a model, from its config.json or its sizes; a profiled engine may have any architecture."""
    if model.config is not None:
        return read_model_config(run.path(model.config, key=f"{key}.config"), is_profiled=is_profiled)
    sizes: dict[str, Any] = {
        name: getattr(model, name) or 0 for name in ("layers", "hidden", "heads", "kv_heads", "inner")
    }
    head = model.head or sizes["hidden"] // sizes["heads"]
    return ModelShape(**sizes, head=head, vocabulary=model.vocabulary or 0, is_tied=model.tied)


def _resolve_precision(engine: EngineSpec, model: ModelShape, key: str) -> EngineSpec:
    """Return the engine with the precision of its checkpoint, unless the spec states one.

    Raises:
        UnfoldError: The spec states another one than the config of the model.
    """
    stored = model.stored_precision
    if not stored or stored == engine.precision:
        return engine
    if "precision" in engine.model_fields_set:
        message = f"the weights are stored in {stored}, and the spec states {engine.precision}"
        raise user_error(message, key=f"{key}.precision", hint=f"precision: {stored}, or leave it out")
    return engine.model_copy(update={"precision": stored})


def resolve_gpu(name: str, hardware: Hardware, *, is_measured: bool = False) -> Gpu:
    """Return the GPU of a hardware; one that was measured needs no data sheet.

    Raises:
        UnfoldError: Its name is not known.
    """
    if isinstance(hardware.gpu, GpuSheet):
        sheet = hardware.gpu
        bf16 = sheet.bf16_tflops * 1e12
        return Gpu(
            name=name,
            memory_bytes=float(sheet.memory),
            bytes_per_s=sheet.bandwidth,
            bf16_flops=bf16,
            fp8_flops=bf16 if sheet.fp8_tflops is None else sheet.fp8_tflops * 1e12,
            fp4_flops=0.0 if sheet.fp4_tflops is None else sheet.fp4_tflops * 1e12,
        )
    wanted = hardware.gpu or name
    gpu = find_gpu(wanted)
    if gpu is None and is_measured:
        return Gpu(name=wanted, memory_bytes=0.0, bytes_per_s=0.0, bf16_flops=0.0, fp8_flops=0.0)
    if gpu is None:
        hint = did_you_mean(wanted, list_gpus()) or "gpu: {memory: 80 GB, bandwidth: 2 TB/s, bf16_tflops: 300}"
        raise user_error(f"the GPU {wanted} is not known", key=f"hardware.{name}.gpu", hint=hint)
    return gpu


def _find_start(stage: str, engine: EngineSpec, run: Run) -> float:
    """Return the time that an engine takes to start: that of the spec, or else as ``unfold serve`` measured it."""
    if "start" in engine.model_fields_set or engine.local is None:
        return engine.start
    return load_activation(run).get(stage) or engine.start


def _build_settings(engine: EngineSpec, front_s: float, start_s: float) -> EngineSettings:
    return EngineSettings(
        budgets=list_degrees(engine.max_num_batched_tokens),
        max_seqs=list_degrees(engine.max_num_seqs),
        routing=engine.routing,
        prefix_cache=engine.prefix_cache,
        async_scheduling=engine.schedules_ahead,
        reserve_full_isl=engine.reserve_full_isl,
        front_s=front_s,
        tail=engine.tail,
        start_s=start_s,
        max_replicas=engine.max_replicas,
        utilization=engine.gpu_memory_utilization,
    )


def _build_options(
    spec: PipelineSpec,
    engine: EngineSpec,
    model: ModelShape,
    prices: Mapping[str, ReplicaPrice],
    needed: StepRange,
    measured: MeasuredEndpoint | None,
    key: str,
    run: Run,
) -> tuple[tuple[EngineOption, ...], tuple[tuple[str, int], ...]]:
    longest = needed.max_context
    tables: TableCache = {}
    options: list[EngineOption] = []
    too_small: list[tuple[str, int]] = []
    for name, source in engine.steps.items():
        hardware, endpoint = spec.hardware[name], measured if source.endpoint else None
        is_measured = endpoint is not None and _find_table(source) is None
        gpu = resolve_gpu(name, hardware, is_measured=is_measured)
        reader = _build_reader(source, gpu, model, engine, f"{key}.steps.{name}", needed, tables, endpoint, run)
        for parallel in _list_degrees(engine, model, hardware):
            kv_cache = _size_kv_cache(engine, name, parallel, model, gpu, endpoint)
            is_unknown = not kv_cache.num_blocks or model.is_unusual
            if is_measured and is_unknown and not kv_cache.is_measured:
                hint = f"kv_tokens: {{{name}: {{{parallel}: 8192}}}}"
                raise user_error("the size of the KV cache is not known", key=f"{key}.kv_tokens", hint=hint)
            if kv_cache.find_longest_request(needed.max_tokens) < longest:
                too_small.append((name, parallel))
                continue
            times, interval = reader(parallel)
            if not is_measured:
                times = replace(times, window=model.window, window_share=model.window_layers / model.layers)
            results, files = _read_results(source, endpoint, f"{key}.steps.{name}", run)
            if results:
                front_s = engine.front if endpoint is None else endpoint.fit.front_s
                fit_key = f"{key}.steps.{name}"
                times, interval = _fit_results(results, files, engine, times, interval, kv_cache, front_s, fit_key, run)
            options.append(
                EngineOption(
                    hardware=name,
                    gpu=gpu.name,
                    tensor_parallel=parallel,
                    usd_per_gpu_hour=prices[name].usd_per_hour,
                    gpus_per_node=1 if hardware.price is not None else hardware.per_instance,
                    quota=hardware.quota,
                    contention=None if endpoint is None else measure_contention(endpoint.profile),
                    kv_cache=kv_cache,
                    times=_calibrate(times, source),
                    interval=interval,
                )
            )
    if not options and not too_small:
        degrees = ", ".join(str(degree) for degree in list_degrees(engine.tensor_parallel))
        message = (
            f"no tensor parallelism of {degrees} divides {model.heads} heads, {model.kv_heads} KV heads and "
            f"{model.inner} values within a node"
        )
        raise user_error(message, key=f"{key}.tensor_parallel", hint="1, 2, 4 or 8; per_instance: GPUs of a node")
    if not options:
        tried = ", ".join(f"{name} tp{parallel}" for name, parallel in too_small) or "no GPU"
        message = f"the model fits no GPU with a request of {longest:,} tokens: tried {tried}"
        raise user_error(
            message, key=f"{key}.tensor_parallel", hint="a larger tensor_parallel, fewer bits, or another GPU"
        )
    return tuple(options), tuple(too_small)


def _list_degrees(engine: EngineSpec, model: ModelShape, hardware: Hardware) -> Iterator[int]:
    """Yield the degrees of tensor parallelism that divide the heads and stay within a node.

    As in vLLM, KV heads are divided among the GPUs, or each is on an equal number of GPUs.
    """
    for parallel in list_degrees(engine.tensor_parallel):
        fits = hardware.price is not None or parallel <= hardware.per_instance
        divides_kv_heads = model.kv_heads % parallel == 0 or parallel % model.kv_heads == 0
        if fits and divides_kv_heads and model.heads % parallel == 0 and model.inner % parallel == 0:
            yield parallel


def _size_kv_cache(
    engine: EngineSpec, name: str, parallel: int, model: ModelShape, gpu: Gpu, endpoint: MeasuredEndpoint | None
) -> KvCache:
    measured = engine.kv_tokens.get(name, {}).get(parallel) if engine.local is None else engine.local.context
    if measured is None and endpoint is not None and endpoint.profile.kv_tokens:
        measured = endpoint.profile.kv_tokens
    if measured is not None:
        layout = model.kv_layout if engine.local is None else KvLayout(layers=model.layers, group_layers=model.layers)
        return KvCache(num_blocks=measured // BLOCK_TOKENS * layout.groups, is_measured=True, layout=layout)
    return estimate_kv_cache(
        model,
        gpu,
        tensor_parallel=parallel,
        precision=engine.precision,
        kv_precision=engine.kv_precision,
        utilization=engine.gpu_memory_utilization,
    )


def find_step_range(spec: PipelineSpec, engine: EngineSpec, trace: TokenTrace) -> StepRange:
    """Return the range over which a plan needs step times."""
    return StepRange(
        max_tokens=max(list_degrees(engine.max_num_batched_tokens)),
        max_requests=max(list_degrees(engine.max_num_seqs)) + SLOTS_HEADROOM,
        max_context=int((trace.input_tokens + trace.output_tokens).max()),
        confidence=spec.slo.confidence or CONFIDENCE,
    )


def build_measured_limits(engine: EngineSpec, kv_cache: KvCache) -> EngineLimits:
    """Return the arguments of the engine that was measured: the largest of each limit."""
    return EngineLimits(
        num_blocks=kv_cache.num_blocks,
        full_groups=kv_cache.layout.full_groups,
        window_groups=kv_cache.layout.window_groups,
        window=kv_cache.layout.window,
        max_num_batched_tokens=max(list_degrees(engine.max_num_batched_tokens)),
        max_num_seqs=max(list_degrees(engine.max_num_seqs)),
        prefix_cache=engine.prefix_cache,
        reserve_full_isl=engine.reserve_full_isl,
        async_scheduling=engine.schedules_ahead,
    )


def fit_profile(profile: EndpointProfile, engine: EngineSpec, *, max_requests: int, max_context: int) -> FittedEndpoint:
    """Fit the step times of a running engine to its profile; the front end of the spec, if any, counts."""
    longest = sum(item.input_tokens + item.output_tokens for phase in profile.phases for item in phase.requests)
    blocks = longest // BLOCK_TOKENS + len(profile.phases) + profile.requests
    limits = build_measured_limits(engine, KvCache(num_blocks=blocks, is_measured=False))
    front_s = engine.front if "front" in engine.model_fields_set else None
    return fit_endpoint(profile, limits, max_requests=max_requests, max_context=max_context, front_s=front_s)


def _fit_endpoint(stage: str, engine: EngineSpec, needed: StepRange, key: str, run: Run) -> MeasuredEndpoint | None:
    name = next((name for name, source in engine.steps.items() if source.endpoint), None)
    if name is None:
        return None
    profile = load_endpoint_profile(stage, run)
    if profile is None:
        message = "this engine was not profiled yet"
        raise user_error(message, key=f"{key}.steps.{name}.endpoint", hint="unfold profile SPEC first")
    fit = fit_profile(profile, engine, max_requests=needed.max_requests, max_context=needed.max_context)
    return MeasuredEndpoint(profile=profile, fit=fit)


def _read_results(
    source: StepSource, endpoint: MeasuredEndpoint | None, key: str, run: Run
) -> tuple[list[BenchmarkRun], tuple[str, ...]]:
    """Return the measured runs that fit the step times of a table."""
    if endpoint is not None:
        return ([] if _find_table(source) is None else build_benchmark_runs(endpoint.profile)), ()
    paths = [run.path(file, key=f"{key}.runs[{index}]") for index, file in enumerate(source.runs)]
    return [result for path in paths for result in read_benchmarks(path)], source.runs


def _find_table(source: StepSource) -> str | None:
    """Return the key of the source that measurements fit; ``None`` if they are the only one."""
    return next((word for word in SOURCE_KEYS if getattr(source, word)), None)


def _fit_results(
    results: Sequence[BenchmarkRun],
    files: tuple[str, ...],
    engine: EngineSpec,
    times: StepTimes,
    interval: StepInterval,
    kv_cache: KvCache,
    front_s: float,
    key: str,
    run: Run,
) -> tuple[StepTimes, StepInterval]:
    """Return step times fitted to benchmark results, with the interval of a measured engine."""
    longest = max(int((result.input_tokens + result.output_tokens).max()) for result in results)
    most = kv_cache.find_longest_request(max(list_degrees(engine.max_num_batched_tokens)))
    if longest > most:
        message = f"a request of {longest:,} tokens does not fit the KV cache, which holds at most {most:,}"
        raise user_error(message, key=f"{key}.runs", hint="kv_tokens: the measured size of the KV cache")
    fitted = fit_step_times(results, times, build_measured_limits(engine, kv_cache), front_s=front_s)
    for note in fitted.notes:
        run.log.warning("%s.runs: %s", key, note)
    measured = build_interval("runs", interval.confidence, files)
    return fitted.times, replace(
        interval,
        source=measured.source,
        groups=measured.groups,
        low=measured.low * fitted.low,
        high=measured.high * fitted.high,
        files=measured.files,
    )


def _calibrate(times: StepTimes, source: StepSource) -> StepTimes:
    if source.overhead is None and source.scale is None:
        return times
    return replace(
        times,
        overhead=times.overhead if source.overhead is None else source.overhead,
        scale=times.scale if source.scale is None else source.scale,
    )


Reader = Callable[[int], tuple[StepTimes, StepInterval]]


def _build_reader(
    source: StepSource,
    gpu: Gpu,
    model: ModelShape,
    engine: EngineSpec,
    key: str,
    needed: StepRange,
    tables: TableCache,
    endpoint: MeasuredEndpoint | None,
    run: Run,
) -> Reader:
    """Return a function from tensor parallelism to step times; files are read once, at the first call."""
    if endpoint is not None and _find_table(source) is None:
        fit = endpoint.fit
        return lambda _: (fit.times, build_endpoint_interval(fit.within, needed.confidence))
    all_reduce = (
        read_all_reduce(run.path(source.all_reduce, key=f"{key}.all_reduce"), {}) if source.all_reduce else None
    )
    kinds: dict[str, Any] = {
        "precision": engine.precision,
        "kv_precision": engine.kv_precision,
        "max_tokens": needed.max_tokens,
        "max_requests": needed.max_requests,
        "max_context": needed.max_context,
    }
    if source.roofline or (source.runs and not source.tables and not source.profile):
        return lambda parallel: (
            build_roofline(model, gpu, tensor_parallel=parallel, **kinds, all_reduce=all_reduce, key=key),
            build_interval("roofline", needed.confidence),
        )
    if source.profile is not None:
        profile = run.path(source.profile, key=f"{key}.profile")

        def read_folder(parallel: int) -> tuple[StepTimes, StepInterval]:
            times = read_profile(
                profile,
                layers=model.layers,
                hidden=model.hidden,
                tensor_parallel=parallel,
                max_tokens=needed.max_tokens,
                max_requests=needed.max_requests,
                all_reduce=all_reduce,
            )
            ends = find_profile_ends(
                times, max_requests=needed.max_requests - SLOTS_HEADROOM, max_context=needed.max_context
            )
            return times, replace(build_interval("profile", needed.confidence, (source.profile or "",)), ends=ends)

        return read_folder
    folder = run.path(source.tables or "", key=f"{key}.tables")
    system = source.system or gpu.name
    databases: list[OperatorDatabase] = []

    def read_tables(parallel: int) -> tuple[StepTimes, StepInterval]:
        if not databases:
            files = find_tables(folder, system, source.backend)
            read = read_database(files, tables, system=system, backend=source.backend, head=model.head)
            databases.append(replace(read, all_reduce=all_reduce or read.all_reduce))
        times = build_step_times(databases[0], model, gpu, tensor_parallel=parallel, **kinds)
        ends, decode_tokens = find_table_ends(
            databases[0],
            model,
            tensor_parallel=parallel,
            kv_precision=engine.kv_precision,
            max_requests=needed.max_requests - SLOTS_HEADROOM,
            max_context=needed.max_context,
        )
        names = tuple(path.name for path in databases[0].files.values())
        interval = build_interval("tables", needed.confidence, names)
        return times, replace(interval, ends=ends, decode_tokens=decode_tokens)

    return read_tables
