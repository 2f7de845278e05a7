"""What to plan: requests, engines that may be rented, and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.hardware.gpu import KvCache
from unfold_pipeline.engine.simulation.cluster import LatencyTargets, Routing, TokenTimes
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests
from unfold_pipeline.engine.step_times.interval import StepInterval
from unfold_pipeline.engine.step_times.process_contention import ProcessContention
from unfold_pipeline.problem.pipeline import Pipeline

QUANTILE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOption:
    """A GPU type with a degree of tensor parallelism.

    Attributes:
        hardware: Name in the spec.
        gpu: Name of the GPU.
        tensor_parallel: GPUs of an engine.
        usd_per_gpu_hour: Price of a GPU.
        gpus_per_node: GPUs of a node, which is paid as a whole; 1 where GPUs are rented one by one.
        quota: Maximum GPUs.
        kv_cache: Memory for the KV cache.
        times: Duration of a step.
        interval: Interval of the factor on the duration, and its source.
        contention: How much slower steps are while other engines of the machine compute; ``None`` if nothing is shared.
    """

    hardware: str
    gpu: str
    tensor_parallel: int
    usd_per_gpu_hour: float
    gpus_per_node: int
    quota: int | None
    kv_cache: KvCache
    times: StepTimes
    interval: StepInterval
    contention: ProcessContention | None = None

    @property
    def replicas_per_node(self) -> int:
        """Engines that a node holds; an engine stays within its node."""
        return max(1, self.gpus_per_node // self.tensor_parallel)

    def count_nodes(self, replicas: int) -> int:
        """Return the nodes that must be rented, or the GPUs where they are rented one by one."""
        if self.gpus_per_node == 1:
            return replicas * self.tensor_parallel
        return -(-replicas // self.replicas_per_node)

    def cost(self, replicas: int) -> float:
        """Return the $/h of whole nodes."""
        return self.count_nodes(replicas) * self.gpus_per_node * self.usd_per_gpu_hour

    def cost_by_gpu(self, replicas: int) -> float:
        """Return the $/h if only the GPUs in use were paid."""
        return replicas * self.tensor_parallel * self.usd_per_gpu_hour

    def max_replicas(self, limit: int) -> int:
        """Return the engines that quota and limit allow."""
        return limit if self.quota is None else min(limit, self.quota // self.tensor_parallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets at the client; ``inf`` for none.

    Attributes:
        ttft_s: p99 time to first token.
        tpot_s: p99 time per output token after the first.
        latency_s: p99 time to the last token.
    """

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    latency_s: float = math.inf

    def are_met(self, ttft_s: float, tpot_s: float, latency_s: float) -> bool:
        """Return whether p99 times keep every target."""
        return ttft_s <= self.ttft_s and tpot_s <= self.tpot_s and latency_s <= self.latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits that every engine shares.

    Attributes:
        budgets: Token budgets that may be chosen.
        max_seqs: Limits of running requests that may be chosen.
        routing: How requests are distributed.
        prefix_cache: Whether blocks are reused by content.
        async_scheduling: Whether steps are scheduled ahead.
        reserve_full_isl: Whether a request is admitted with room for its whole prompt only.
        front_s: Time before the engine, at the client.
        tail: Measured over simulated p99, above the median.
        start_s: From ordering an engine until it serves.
        max_replicas: Maximum engines.
        utilization: Fraction of the memory that an engine uses.
    """

    budgets: tuple[int, ...]
    max_seqs: tuple[int, ...]
    routing: Routing = "round_robin"
    prefix_cache: bool = True
    async_scheduling: bool = True
    reserve_full_isl: bool = True
    front_s: float = 0.0
    tail: float = 1.0
    start_s: float = 180.0
    max_replicas: int = 64
    utilization: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the stages around an engine do under a plan of theirs.

    Requests reach the engine in the order in which the stages before it complete them.

    Attributes:
        usd_per_hour: Price of the stages.
        before_s: (n,) seconds of each request in the stages before the engine, in the order of the engine's requests.
        least_after_s: Least seconds of a request in the stages after the engine.
        finish: Takes the times (n,) of the last tokens; returns when each request leaves the last stage.
    """

    usd_per_hour: float
    before_s: FloatArray
    least_after_s: float
    finish: Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregation:
    """How prefill and decode may be divided among two pools.

    Attributes:
        pairs: Indices of the options of prefill and of decode engines that may work together.
        kv_bytes: By option, bytes of a token in the KV cache on each GPU.
        bytes_per_s: Bandwidth of the link of a GPU, each way.
        latency_s: Constant part of a transfer.
        max_requests: Requests that the search may simulate.
    """

    pairs: tuple[tuple[int, int], ...]
    kv_bytes: tuple[int, ...]
    bytes_per_s: float
    latency_s: float
    max_requests: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStages:
    """The stages around an engine, each a line that every request passes.

    Attributes:
        upstream: The stages before the engine.
        downstream: The stages behind it, which get a request at its last token.
        max_replicas: Maximum replicas of a stage.
        max_requests: Requests that the search may simulate.
    """

    upstream: Pipeline
    downstream: Pipeline
    max_replicas: int
    max_requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProblem:
    """A trace, engines and targets.

    Attributes:
        name: Name of the spec.
        stage: Name of the stage.
        requests: The trace.
        options: What can be rented and holds the model.
        too_small: Hardware and tensor parallelism with too little memory for the longest request.
        settings: Limits of every engine.
        targets: p99 targets.
        confidence: How sure the plan must be; ``None`` for the point estimate.
        price_sources: Origin of each price in words.
        trace_sha256: Hash of the trace.
        model: The model in words.
        model_name: Its name for exports; empty if unknown.
        precision: Precision of the weights.
        kv_precision: Precision of the KV cache.
        is_quantized: Whether the checkpoint holds the weights in this precision; the engine then needs no option.
        window: Tokens that some layers attend to, if requests are longer; 0 if all attend to the whole context.
        window_layers: Layers that do.
        layers: Layers of the model; 0 if not known.
        max_context: Tokens of prompt and answer that the model allows; 0 if not known.
        surroundings: The stages before and after the engine under a plan; ``None`` if there are none.
    """

    name: str
    stage: str
    requests: EngineRequests
    options: tuple[EngineOption, ...]
    too_small: tuple[tuple[str, int], ...]
    settings: EngineSettings
    targets: Targets
    confidence: float | None
    price_sources: Mapping[str, str]
    trace_sha256: str
    model: str
    model_name: str = ""
    precision: str = "bf16"
    kv_precision: str = "bf16"
    is_quantized: bool = False
    window: int = 0
    window_layers: int = 0
    layers: int = 0
    max_context: int = 0
    surroundings: Surroundings | None = None
    disaggregation: Disaggregation | None = None

    def cost(self, option: int, replicas: int) -> float:
        """Return the $/h of engines of an option and of the stages around them."""
        return self.options[option].cost(replicas) + self.around_usd_per_hour

    @property
    def around_usd_per_hour(self) -> float:
        """The $/h of the stages around the engines."""
        return 0.0 if self.surroundings is None else self.surroundings.usd_per_hour

    def select_range(self, begin: int, end: int) -> EngineProblem:
        """Return the problem with the requests ``[begin, end)`` alone, from 0 s on."""
        around = self.surroundings
        if around is not None:
            around = replace(around, before_s=around.before_s[begin:end])
        return replace(self, requests=self.requests.select_range(begin, end), surroundings=around)

    @property
    def later_tokens(self) -> FloatArray:
        """Tokens after the first of each request."""
        return np.asarray(self.requests.output_tokens - 1, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Latencies at the client, in seconds, of the requests that have them."""

    ttft_s: FloatArray
    tpot_s: FloatArray
    latency_s: FloatArray


def measure_latencies(
    requests: EngineRequests, run: TokenTimes, front_s: float, around: Surroundings | None = None
) -> Latencies:
    """Return the latencies of a run at the client, with the front end and the stages around the engine."""
    several = requests.output_tokens > 1
    later = np.maximum(requests.output_tokens - 1, 1)
    before_s = 0.0 if around is None else around.before_s
    end_s = run.last_token_s if around is None else around.finish(run.last_token_s)
    return Latencies(
        ttft_s=run.first_token_s - run.arrival_s + before_s + front_s,
        tpot_s=((run.last_token_s - run.first_token_s) / later)[several],
        latency_s=end_s - run.arrival_s + before_s + front_s,
    )


def count_allowed_misses(count: int, quantile: float = QUANTILE) -> int:
    """Return how many of some requests may miss a target that a quantile of them must meet."""
    return math.floor((1 - quantile) * count + 1e-9)


def percentile(values: FloatArray, quantile: float, tail: float = 1.0) -> float:
    """Return the least value that all but the allowed misses reach, with a tail factor above the median.

    Args:
        values: (n,) latencies; NaN counts as endless.
        quantile: The fraction that must not exceed the value.
        tail: Factor on the distance from the median.
    """
    if not values.size:
        return 0.0
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    value = float(ordered[values.size - 1 - count_allowed_misses(values.size, quantile)])
    median = float(ordered[values.size - 1 - count_allowed_misses(values.size, 0.5)])
    return value if tail == 1 or value <= median or math.isinf(value) else median + tail * (value - median)


def reduce_targets(problem: EngineProblem) -> Targets:
    """Return targets from arrival at the engine on which a request must meet to meet those at the client.

    The stages around the engine take at least their least time of any request, so a miss here is a miss there.
    """
    around, targets = problem.surroundings, problem.targets
    if around is None:
        return targets
    least_s = float(around.before_s.min())
    return Targets(
        ttft_s=targets.ttft_s - least_s,
        tpot_s=targets.tpot_s,
        latency_s=targets.latency_s - least_s - around.least_after_s,
    )


def build_abort_targets(problem: EngineProblem) -> LatencyTargets:
    """Return the misses that end a simulation: a run with more of them cannot meet the targets."""
    targets, several = reduce_targets(problem), int((problem.requests.output_tokens > 1).sum())
    return LatencyTargets(
        ttft_s=targets.ttft_s - problem.settings.front_s,
        tpot_s=targets.tpot_s,
        latency_s=targets.latency_s - problem.settings.front_s,
        allowed_misses=count_allowed_misses(len(problem.requests)),
        allowed_tpot_misses=count_allowed_misses(several),
    )
