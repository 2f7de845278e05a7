"""Rigorous lower bounds on the engines that a trace needs, and proofs that no number of them is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem, count_allowed_misses, reduce_targets
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes

WINDOW_STARTS = 48
WINDOW_HALVINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastStepTimes:
    """The least that steps may take, in seconds.

    Attributes:
        step_s: Any step with a token.
        token_s: Any token of a step, at the best number of tokens for the budget.
    """

    step_s: float
    token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBound:
    """Least engines of an option, or why no number of them meets the targets.

    Attributes:
        replicas: Least engines.
        obstacle: The target that a single request misses, ``ttft``, ``tpot`` or ``latency``; empty for none.
        value_s: The least value of that target.
    """

    replicas: int
    obstacle: str = ""
    value_s: float = 0.0


def find_least_step_times(times: StepTimes, budget: int) -> LeastStepTimes:
    """Return bounds below every step with at most ``budget`` tokens; attention counts as nothing."""
    tokens = np.arange(1, min(budget, times.dense.size - 1) + 1)
    dense, sequence = times.dense[tokens], float(times.sequence[1:].min()) if times.sequence.size > 1 else 0.0
    step_s = times.scale * (float(dense.min()) + sequence) + times.overhead
    seconds = times.scale * (dense + sequence) + times.overhead
    return LeastStepTimes(step_s=step_s, token_s=float((seconds / tokens).min()))


def bound_replicas(
    problem: EngineProblem, option: EngineOption, budget: int, peak_tokens_per_s: float, *, is_received: bool = False
) -> ReplicaBound:
    """Return the least engines with one token budget.

    A request that meets its targets has its prompt tokens within its TTFT and its later tokens within the TPOT after
    it, in steps that take at least ``token_s`` a token.

    Args:
        problem: Requests and targets.
        option: The engines.
        budget: Tokens of a step.
        peak_tokens_per_s: What :func:`measure_peak_work` returns, which is the same for all options.
        is_received: Whether prompts arrive computed but for their last token.
    """
    targets, requests = reduce_targets(problem), problem.requests
    least = find_least_step_times(option.times, budget)
    allowed = count_allowed_misses(len(requests))
    prompt = _count_prompt_tokens(problem, is_received=is_received)
    several = int((requests.output_tokens > 1).sum())
    if several > count_allowed_misses(several) and least.step_s > targets.tpot_s:
        return ReplicaBound(replicas=1, obstacle="tpot", value_s=least.step_s)
    first_s = np.maximum(np.ceil(prompt / budget) * least.step_s, prompt * least.token_s)
    # each later token takes a step
    last_s = first_s + problem.later_tokens * least.step_s
    for obstacle, seconds, target_s in (("ttft", first_s, targets.ttft_s), ("latency", last_s, targets.latency_s)):
        shortest_s = float(np.partition(seconds, seconds.size - 1 - allowed)[seconds.size - 1 - allowed])
        shortest_s += problem.settings.front_s
        if shortest_s > target_s:
            return ReplicaBound(replicas=1, obstacle=obstacle, value_s=shortest_s)
    replicas = math.ceil(peak_tokens_per_s * least.token_s - 1e-9)
    return ReplicaBound(replicas=max(1, replicas, _bound_by_memory(problem, option, least)))


def _count_prompt_tokens(problem: EngineProblem, *, is_received: bool) -> FloatArray:
    """Return the prompt tokens (n,) that must be computed; prompts that may lie in the cache count as one token."""
    requests = problem.requests
    is_cached = is_received or (requests.is_shared and problem.settings.prefix_cache)
    return np.asarray(np.ones(len(requests)) if is_cached else requests.input_tokens, dtype=np.float64)


def _count_spare(problem: EngineProblem) -> int:
    """Return how many requests may miss any target: each target may be missed by others."""
    targets = reduce_targets(problem)
    limits = (targets.ttft_s, targets.tpot_s, targets.latency_s)
    return count_allowed_misses(len(problem.requests)) * sum(map(math.isfinite, limits))


def measure_peak_work(problem: EngineProblem, *, is_received: bool = False) -> float:
    """Return the most tokens per second that must be computed before their deadlines, over windows of many lengths.

    The requests with the most work that may miss a target are left out of each window. Fluid engines that compute
    less than this miss too many targets.
    """
    targets, requests = reduce_targets(problem), problem.requests
    deadline_s, work = _deadlines(problem, _count_prompt_tokens(problem, is_received=is_received))
    if not math.isfinite(targets.ttft_s) and not math.isfinite(targets.latency_s):
        return 0.0
    spare, arrivals = _count_spare(problem), requests.arrival_s
    begin, end = float(arrivals[0]), float(arrivals[-1])
    peak = 0.0
    for halving in range(WINDOW_HALVINGS):
        length = (end - begin) / 2**halving
        for start in np.linspace(begin, end - length, 1 if halving == 0 else WINDOW_STARTS):
            low, high = np.searchsorted(arrivals, [start, start + length], side="left")
            high = high if start + length < end else arrivals.size
            if high - low <= spare:
                continue
            part = work[low:high]
            kept = np.partition(part, part.size - 1 - spare)[: part.size - spare]
            span = float((arrivals[low:high] + deadline_s[low:high]).max() - arrivals[low])
            if span > 0 and math.isfinite(span):
                peak = max(peak, float(kept.sum()) / span)
    return peak


def _deadlines(problem: EngineProblem, prompt: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the time within which each request needs some tokens to be computed, and those tokens."""
    targets, later = reduce_targets(problem), problem.later_tokens
    first_s = np.full(later.size, targets.ttft_s)
    # without a target, 0 later tokens of infinite time are no number
    rest_s = np.multiply(later, targets.tpot_s, out=np.zeros_like(later), where=later > 0)
    last_s = np.minimum(targets.latency_s, first_s + rest_s)
    has_last = np.isfinite(last_s)
    deadline_s = np.where(has_last, last_s, np.minimum(first_s, targets.latency_s))
    return deadline_s, np.where(has_last, prompt + later, prompt)


def _bound_by_memory(problem: EngineProblem, option: EngineOption, least: LeastStepTimes) -> int:
    """Return the engines with KV caches that hold all requests but the spare ones for their least time (Little)."""
    requests, targets = problem.requests, reduce_targets(problem)
    if requests.is_shared or not math.isfinite(targets.ttft_s + targets.tpot_s):
        return 1
    later = problem.later_tokens
    layout, blocks = option.kv_cache.layout, requests.input_tokens // requests.block_tokens
    held = layout.full_groups * blocks
    if layout.window_groups:
        held = held + layout.window_groups * np.minimum(blocks, layout.window // requests.block_tokens)
    occupied = held * later * least.step_s
    spare = min(_count_spare(problem), occupied.size)
    kept = np.sort(occupied)[: occupied.size - spare]
    deadline_s, _ = _deadlines(problem, np.asarray(requests.input_tokens, dtype=np.float64))
    span = float((requests.arrival_s + deadline_s).max() - requests.arrival_s[0])
    return max(1, math.ceil(float(kept.sum()) / (span * option.kv_cache.num_blocks) - 1e-9))
