"""Engines behind a router, simulated at once or in slices with their state carried over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.simulation import scheduler_kernel as kernel
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests

Routing = Literal["round_robin", "least_tokens"]
UNLIMITED = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTargets:
    """Targets that end a simulation early when missed; ``inf`` for none.

    Attributes:
        ttft_s: Time to first token.
        tpot_s: Time per output token after the first.
        latency_s: Time to the last token.
        allowed_misses: Misses of one target that still meet it; requests with one token have no TPOT to miss.
        allowed_tpot_misses: Misses of the TPOT target, if other than ``allowed_misses``.
    """

    ttft_s: float = np.inf
    tpot_s: float = np.inf
    latency_s: float = np.inf
    allowed_misses: int = UNLIMITED
    allowed_tpot_misses: int | None = None

    @property
    def allowed(self) -> CountArray:
        """Misses allowed of each target, in the order of the kernel."""
        tpot = self.allowed_misses if self.allowed_tpot_misses is None else self.allowed_tpot_misses
        return np.array([self.allowed_misses, tpot, self.allowed_misses], dtype=np.int64)


class TokenTimes(Protocol):
    """When requests arrive and get their first and last tokens, in one pool or in two."""

    @property
    def arrival_s(self) -> FloatArray:
        """Arrival times (n,)."""

    @property
    def first_token_s(self) -> FloatArray:
        """Times (n,) of the first tokens."""

    @property
    def last_token_s(self) -> FloatArray:
        """Times (n,) of the last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """What happened to each request, and what the engines did.

    Attributes:
        arrival_s: (n,) arrival times; those of a closed loop follow from the run.
        first_token_s: (n,) time of the first token; NaN where the simulation ended before.
        last_token_s: (n,) time of the last token; NaN where the simulation ended before.
        preemptions: Preempted requests, counted each time.
        hit_tokens: Prompt tokens found in the prefix cache.
        steps: Iterations.
        prefill_steps: Iterations with a prefill chunk.
        peak_running: Largest number of running requests on one engine.
        peak_blocks: Largest number of blocks in use on one engine.
        finished: Requests that were completed.
        aborted: Whether more requests missed a target than allowed.
    """

    arrival_s: FloatArray
    first_token_s: FloatArray
    last_token_s: FloatArray
    preemptions: int
    hit_tokens: int
    steps: int
    prefill_steps: int
    peak_running: int
    peak_blocks: int
    finished: int
    aborted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What the engines hold at a moment, by engine: shapes (engines,).

    Attributes:
        running: Running requests.
        waiting: Requests that arrived and do not run.
        blocks: Blocks of the KV cache in use.
        unfinished: Requests that were routed and not completed.
    """

    running: CountArray
    waiting: CountArray
    blocks: CountArray
    unfinished: CountArray


class EngineCluster:
    """Engines of one kind behind a router. Requests are routed in order; engines run up to a moment."""

    def __init__(
        self,
        requests: EngineRequests,
        limits: EngineLimits,
        times: StepTimes,
        *,
        engines: int = 1,
        routing: Routing = "round_robin",
        targets: LatencyTargets | None = None,
        closed_loop: int = 0,
        ends_at_preemption: bool = False,
    ) -> None:
        groups = limits.full_groups + limits.window_groups
        goal, count, depth = targets or LatencyTargets(), len(requests), 2 if limits.async_scheduling else 1
        self.requests, self.limits = requests, limits
        self.routing = kernel.LEAST_TOKENS if routing == "least_tokens" and engines > 1 else kernel.ROUND_ROBIN
        self.arrival_s = requests.arrival_s.copy() if closed_loop else requests.arrival_s
        self.active = np.ones(engines, dtype=np.int64)
        self.cursor = np.zeros(1, dtype=np.int64)
        self.routed = 0
        self.is_aborted = False
        self.first, self.last = np.full(count, np.nan), np.full(count, np.nan)
        self.counters = np.zeros((engines, kernel.COUNTERS), dtype=np.int64)
        state = _request_state(requests, limits)
        # without a prefix cache, blocks are counted and need no table
        places, contents = (int(state[kernel.FIRST_BLOCK, -1]), requests.contents) if limits.prefix_cache else (0, 0)
        self._arrays: tuple[Any, ...] = (
            self.arrival_s,
            state,
            np.full(places, kernel.NONE, dtype=np.int64),
            _empty_pools(limits.num_blocks, self.counters),
            requests.list_contents() if limits.prefix_cache else np.zeros(0, dtype=np.int64),
            np.full((engines if requests.is_shared else 1, contents * groups), kernel.NONE, dtype=np.int64),
            np.zeros((engines, kernel.QUEUES, max(count, limits.max_num_seqs) + 1), dtype=np.int64),
            np.zeros((engines, kernel.STEP_ROWS, depth, limits.max_num_seqs + 1), dtype=np.int64),
            np.zeros((engines, depth), dtype=np.int64),
            np.zeros((engines, depth)),
            np.zeros((engines, kernel.CLOCKS)),
            _limit_numbers(
                limits,
                requests.block_tokens,
                depth,
                times.window,
                is_closed=closed_loop > 0,
                ends_at_preemption=ends_at_preemption,
            ),
            np.array([goal.ttft_s, goal.tpot_s, goal.latency_s]),
            goal.allowed,
            np.zeros(kernel.MISSES, dtype=np.int64),
            times.dense,
            times.sequence,
            times.axes,
            times.axis_lengths,
            times.attention,
            np.array([times.scale, times.overhead, times.window_share]),
            np.zeros(kernel.POINTS),
            self.counters,
            self.first,
            self.last,
        )
        if closed_loop:
            self.arrival_s[: min(closed_loop, count)] = 0.0
            self.route(min(closed_loop, count))
            self.routed = count

    def route(self, end: int) -> None:
        """Route the requests up to index ``end``, which is left out, to the active engines."""
        if self.routed < end and not self.is_aborted:
            self.is_aborted = bool(
                kernel.route_requests(self.routed, end, self.routing, self.active, self.cursor, *self._arrays)
            )
            self.routed = end

    def advance(self, until_s: float) -> None:
        """Run every engine up to a moment."""
        if not self.is_aborted:
            self.is_aborted = bool(kernel.advance_engines(until_s, *self._arrays))

    def load(self) -> EngineLoad:
        """Return what the engines hold now."""
        counters = self.counters
        queued = counters[:, kernel.ARRIVED] - counters[:, kernel.ADMITTED]
        return EngineLoad(
            running=counters[:, kernel.RUNNING].copy(),
            waiting=queued + counters[:, kernel.RESUMED],
            blocks=self.limits.num_blocks - counters[:, kernel.FREE],
            unfinished=counters[:, kernel.ASSIGNED] - counters[:, kernel.FINISHED],
        )

    def result(self) -> EngineRun:
        """Return the run so far."""
        total = self.counters.sum(axis=0)
        return EngineRun(
            arrival_s=self.arrival_s,
            first_token_s=self.first,
            last_token_s=self.last,
            preemptions=int(total[kernel.PREEMPTIONS]),
            hit_tokens=int(total[kernel.HIT_TOKENS]),
            steps=int(total[kernel.STEPS]),
            prefill_steps=int(total[kernel.PREFILL_STEPS]),
            peak_running=int(self.counters[:, kernel.PEAK_RUNNING].max()),
            peak_blocks=int(self.counters[:, kernel.PEAK_BLOCKS].max()),
            finished=int(total[kernel.FINISHED]),
            aborted=self.is_aborted,
        )


def simulate(
    requests: EngineRequests,
    limits: EngineLimits,
    times: StepTimes,
    targets: LatencyTargets | None = None,
    *,
    engines: int = 1,
    routing: Routing = "round_robin",
    closed_loop: int = 0,
) -> EngineRun:
    """Simulate engines on their requests.

    A step is scheduled when the step before the last one ends, as vLLM does while the last one runs. A simulation ends
    early once more requests miss one target than its percentile allows, which is exact.

    Args:
        requests: Arrivals, tokens and block contents.
        limits: Arguments of every engine.
        times: Duration of a step.
        targets: Latency targets for an early end.
        engines: Engines behind the router.
        routing: How requests are distributed.
        closed_loop: Clients which send their next request when the last one is answered; arrivals are then not used.
    """
    kinds: dict[str, Any] = {
        "engines": engines,
        "routing": routing,
        "targets": targets,
        "closed_loop": closed_loop,
    }
    if limits.prefix_cache and not requests.is_shared:
        # only a preempted request can find its own blocks: without one, the prefix cache changes nothing but costs time
        plain = EngineCluster(requests, replace(limits, prefix_cache=False), times, **kinds, ends_at_preemption=True)
        _run_to_end(plain)
        if not plain.counters[:, kernel.PREEMPTIONS].any():
            return plain.result()
    cluster = EngineCluster(requests, limits, times, **kinds)
    _run_to_end(cluster)
    return cluster.result()


def _run_to_end(cluster: EngineCluster) -> None:
    cluster.route(len(cluster.requests))
    cluster.advance(np.inf)


def _request_state(requests: EngineRequests, limits: EngineLimits) -> CountArray:
    """Return the state of requests before they arrive; a last column holds where all blocks end."""
    state = np.zeros((kernel.REQUEST_ROWS, len(requests) + 1), dtype=np.int64)
    state[kernel.INPUT, :-1], state[kernel.OUTPUT, :-1] = requests.input_tokens, requests.output_tokens
    blocks = -(-(state[kernel.INPUT] + state[kernel.OUTPUT]) // requests.block_tokens)
    places = limits.full_groups * blocks
    if limits.window_groups:
        places += limits.window_groups * np.minimum(blocks, limits.count_window_blocks(requests.block_tokens))
    state[kernel.FIRST_BLOCK, 1:] = np.cumsum(places)[:-1]
    state[kernel.FIRST_CONTENT] = requests.first_content
    return state


def _empty_pools(blocks: int, counters: CountArray) -> CountArray:
    """Return a pool of free blocks for each engine."""
    pools = np.zeros((counters.shape[0], kernel.POOL_ROWS, blocks), dtype=np.int64)
    pools[:, kernel.BEFORE], pools[:, kernel.AFTER] = np.arange(-1, blocks - 1), np.arange(1, blocks + 1)
    pools[:, kernel.CONTENT] = kernel.NONE
    pools[:, kernel.AFTER, -1] = kernel.NONE
    counters[:, kernel.FREE], counters[:, kernel.FREE_TAIL] = blocks, blocks - 1
    return pools


def _limit_numbers(
    limits: EngineLimits, block_tokens: int, depth: int, span: int, *, is_closed: bool, ends_at_preemption: bool
) -> CountArray:
    numbers = np.zeros(kernel.LIMITS, dtype=np.int64)
    numbers[kernel.BUDGET], numbers[kernel.MAX_RUNNING] = limits.max_num_batched_tokens, limits.max_num_seqs
    numbers[kernel.BLOCK_TOKENS], numbers[kernel.DEPTH], numbers[kernel.CLOSED] = block_tokens, depth, is_closed
    numbers[kernel.CACHES], numbers[kernel.RESERVES] = limits.prefix_cache, limits.reserve_full_isl
    numbers[kernel.ENDS_AT_PREEMPTION], numbers[kernel.RECEIVES] = ends_at_preemption, limits.receives_kv
    numbers[kernel.GROUPS], numbers[kernel.FULL_GROUPS] = limits.full_groups + limits.window_groups, limits.full_groups
    numbers[kernel.WINDOW] = limits.window if limits.window_groups else 0
    numbers[kernel.MOST_BLOCKS], numbers[kernel.SPAN] = limits.count_window_blocks(block_tokens), span
    return numbers
