"""What a scaling rule of LLM engines sees and returns, and the autoscalers that operators run today: HPA and KEDA.

A rule maps what it observes at a moment to the number of engines that it wants. It sees the past only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.engine.simulation.cluster import EngineLoad

TICK_S = 5.0
HPA_PERIOD_S = 15.0
HPA_TOLERANCE = 0.1
HPA_STABILIZATION_S = 300.0
HPA_MORE_ENGINES, HPA_GROWTH = 4, 2
"""Engines that the HorizontalPodAutoscaler may add in a period: the larger of a number and a factor."""
KEDA_WAITING = 5
MAX_GROWTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a rule sees at a moment.

    Attributes:
        now_s: The moment.
        arrived: Requests that arrived so far.
        load: What the engines hold.
        replicas: Engines that were ordered, those that still start included.
    """

    now_s: float
    arrived: int
    load: EngineLoad
    replicas: int


ScalingRule = Callable[[Observation], int]


def limit_replicas(problem: EngineProblem, config: EngineConfig) -> int:
    """Return the engines that a scaling rule may have at a time."""
    option = problem.options[config.option]
    return min(option.max_replicas(problem.settings.max_replicas), MAX_GROWTH * config.replicas)


def keep_replicas(replicas: int) -> ScalingRule:
    """Return the rule that keeps a number of engines."""
    return lambda _observation: replicas


def build_hpa_rule(target_requests: float) -> ScalingRule:
    """Return Kubernetes' HorizontalPodAutoscaler on the requests inside an engine, waiting or running.

    Source: the algorithm and the default behaviour of its documentation: ``ceil(current * value / target)`` every 15 s,
    a tolerance of 10 %, at most four engines more or twice as many a period, and the largest wish of the last five
    minutes before it scales down. The engines that it finds at its start are its first wish.
    """
    return _stabilize(lambda seen: float((seen.load.running + seen.load.waiting).sum()) / target_requests)


def build_keda_rule() -> ScalingRule:
    """Return KEDA on ``vllm:num_requests_waiting``: one more engine for every five waiting requests."""
    return _stabilize(lambda seen: float(seen.load.waiting.sum()) / KEDA_WAITING)


def _stabilize(compute_ratio: Callable[[Observation], float]) -> ScalingRule:
    """Return a rule of the HorizontalPodAutoscaler; the ratio is the metric over its target per engine."""
    wishes: list[tuple[float, int]] = []
    last = [-math.inf, 1.0]

    def decide(seen: Observation) -> int:
        if seen.now_s - last[0] >= HPA_PERIOD_S:
            last[0] = seen.now_s
            ratio, current = compute_ratio(seen), max(seen.replicas, 1)
            if not wishes:
                wishes.append((seen.now_s, current))
            within = abs(ratio / current - 1) <= HPA_TOLERANCE
            wishes.append((seen.now_s, current if within else max(1, math.ceil(ratio - 1e-9))))
            while wishes[0][0] < seen.now_s - HPA_STABILIZATION_S:
                wishes.pop(0)
            wanted = wishes[-1][1] if wishes[-1][1] >= current else max(wish for _, wish in wishes)
            last[1] = float(min(wanted, max(HPA_GROWTH * current, current + HPA_MORE_ENGINES)))
        return int(last[1])

    return decide
