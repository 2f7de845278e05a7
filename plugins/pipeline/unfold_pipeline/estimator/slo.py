"""Does a plan meet the target on every sample? The one question that all planners ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan, depths, service_time


@dataclass(frozen=True, slots=True)
class Judge:
    """A pipeline, one estimator a sample, and the limit in seconds that the percentile must keep on each of them."""

    pipeline: Pipeline
    estimators: tuple[Estimator, ...]
    limit: float

    def meets(self, plan: Plan) -> bool:
        """Whether the percentile keeps the limit on every sample, and the quotas are kept."""
        if not self.pipeline.within_quotas(plan):
            return False
        below = depths(self.pipeline, self.quickest(plan)).below
        return all(estimator.meets(plan, self.limit, below) for estimator in self.estimators)

    def tail(self, plan: Plan) -> float:
        """Return the largest percentile over the samples, in seconds."""
        return max(estimator.tail(plan) for estimator in self.estimators)

    def worst(self, plan: Plan) -> int:
        """Return the index of the sample with the largest percentile, the first of equals."""
        tails = [estimator.tail(plan) for estimator in self.estimators]
        return tails.index(max(tails))

    def quickest(self, plan: Sequence[Choice]) -> list[float]:
        """Return the least seconds that a batch takes at each stage of a plan."""
        stages = self.pipeline.stages
        return [stage.options[choice.option].quickest for stage, choice in zip(stages, plan, strict=True)]

    def single(self, plan: Sequence[Choice]) -> float:
        """Return the seconds of the longest path for one query alone."""
        stages = self.pipeline.stages
        seconds = [float(s.options[c.option].latency[1]) for s, c in zip(stages, plan, strict=True)]
        return service_time(self.pipeline, seconds)

    def load(self, index: int) -> float:
        """Return the largest mean rate of items at a stage over the samples, a second."""
        return max(item.sample.rate * item.sample.share(index) for item in self.estimators)

    @property
    def items(self) -> int:
        """The number of items that were simulated so far."""
        return sum(estimator.memory.items for estimator in self.estimators)
