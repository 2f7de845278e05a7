"""Rigorous lower bounds on the engines that a trace needs, and proofs that no number of them is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem, count_allowed_misses, reduce_targets
from unfold_pipeline.engine.simulation.engine import StepTimes

WINDOW_STARTS = 48
WINDOW_HALVINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastStepTimes:
    """The least that steps may take, in seconds.

    Attributes:
        step_s: any step with a token.
        token_s: any token of a step, at the best number of tokens for the budget.
    """

    step_s: float
    token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBound:
    """Least engines of an option, or why no number of them meets the targets.

    Attributes:
        replicas: least engines.
        obstacle: the target that a single request misses, ``ttft`` or ``tpot``; empty for none.
        value_s: the least value of that target.
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


def bound_replicas(problem: EngineProblem, option: EngineOption, budget: int) -> ReplicaBound:
    """Return the least engines with one token budget.

    A request that meets its targets has its prompt tokens within its TTFT and its later tokens within the TPOT after
    it, in steps that take at least ``token_s`` a token. Prompts that may lie in the cache count as one token.
    """
    targets, requests = reduce_targets(problem), problem.requests
    least = find_least_step_times(option.times, budget)
    allowed = count_allowed_misses(len(requests))
    prompt = np.ones(len(requests)) if requests.is_shared and problem.settings.prefix_cache else requests.input_tokens
    several = int((requests.output_tokens > 1).sum())
    if several > count_allowed_misses(several) and least.step_s > targets.tpot_s:
        return ReplicaBound(replicas=1, obstacle="tpot", value_s=least.step_s)
    first_s = np.maximum(np.ceil(prompt / budget) * least.step_s, prompt * least.token_s)
    ordered = np.sort(first_s)
    shortest_s = float(ordered[ordered.size - 1 - allowed]) + problem.settings.front_s
    if shortest_s > targets.ttft_s:
        return ReplicaBound(replicas=1, obstacle="ttft", value_s=shortest_s)
    # each target may be missed by other requests
    spare = allowed * sum(map(math.isfinite, (targets.ttft_s, targets.tpot_s, targets.latency_s)))
    replicas = _bound_by_windows(problem, prompt, least, spare)
    return ReplicaBound(replicas=max(1, replicas, _bound_by_memory(problem, option, least, spare)))


def _bound_by_windows(
    problem: EngineProblem, prompt: FloatArray | CountArray, least: LeastStepTimes, spare: int
) -> int:
    """Return the engines with fluid work that fits before its deadlines, over windows of many lengths.

    The ``spare`` requests with the most work are left out of each window, as they may miss a target.
    """
    targets, requests = reduce_targets(problem), problem.requests
    deadline_s, work = _deadlines(problem, prompt)
    seconds = work * least.token_s
    if not math.isfinite(targets.ttft_s) and not math.isfinite(targets.latency_s):
        return 1
    arrivals = requests.arrival_s
    begin, end = float(arrivals[0]), float(arrivals[-1])
    replicas = 1
    for halving in range(WINDOW_HALVINGS):
        length = (end - begin) / 2**halving
        for start in np.linspace(begin, end - length, 1 if halving == 0 else WINDOW_STARTS):
            low, high = np.searchsorted(arrivals, [start, start + length], side="left")
            high = high if start + length < end else arrivals.size
            if high - low <= spare:
                continue
            part = seconds[low:high]
            kept = np.partition(part, part.size - 1 - spare)[: part.size - spare]
            span = float((arrivals[low:high] + deadline_s[low:high]).max() - arrivals[low])
            if span > 0 and math.isfinite(span):
                replicas = max(replicas, math.ceil(float(kept.sum()) / span - 1e-9))
    return replicas


def _deadlines(problem: EngineProblem, prompt: FloatArray | CountArray) -> tuple[FloatArray, FloatArray]:
    """Return the time within which each request needs some tokens to be computed, and those tokens."""
    targets, later = reduce_targets(problem), problem.later_tokens
    first_s = np.full(later.size, targets.ttft_s)
    last_s = np.minimum(targets.latency_s, first_s + np.where(later > 0, later * targets.tpot_s, 0.0))
    has_last = np.isfinite(last_s)
    deadline_s = np.where(has_last, last_s, np.minimum(first_s, targets.latency_s))
    return deadline_s, np.where(has_last, prompt + later, prompt)


def _bound_by_memory(problem: EngineProblem, option: EngineOption, least: LeastStepTimes, spare: int) -> int:
    """Return the engines with KV caches that hold all but ``spare`` requests for their least time, by Little's law."""
    requests, targets = problem.requests, reduce_targets(problem)
    if requests.is_shared or not math.isfinite(targets.ttft_s + targets.tpot_s):
        return 1
    later = problem.later_tokens
    occupied = (requests.input_tokens // requests.block_tokens) * later * least.step_s
    kept = np.sort(occupied)[: max(0, occupied.size - spare)]
    deadline_s, _ = _deadlines(problem, requests.input_tokens)
    span = float((requests.arrival_s + deadline_s).max() - requests.arrival_s[0])
    return max(1, math.ceil(float(kept.sum()) / (span * option.kv_cache.num_blocks) - 1e-9))
