"""The SLO check that all planners share: does a plan meet the p99 target on every sample?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.problem.pipeline import (
    Pipeline,
    Plan,
    StageConfig,
    compute_longest_path,
    compute_unavoidable_time,
    remove_replica,
)
from unfold_pipeline.problem.sample import Sample


@dataclass(frozen=True, slots=True)
class SloChecker:
    """A pipeline, an estimator per sample, and the seconds that the percentile may take on each of them.

    The last ``scenarios`` of the estimators are those of fresh samples, on which a plan must meet the SLO too. With one
    ``spare``, it must also meet the SLO when any stage has lost a replica (N+1).
    """

    pipeline: Pipeline
    estimators: tuple[Estimator, ...]
    slo_s: float
    scenarios: int = 0
    spares: int = 0

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples that a plan must serve."""
        return tuple(estimator.sample for estimator in self.estimators)

    @property
    def observed_samples(self) -> tuple[Sample, ...]:
        """The samples of the spec's own traffic."""
        return self.samples[: len(self.estimators) - self.scenarios]

    @property
    def simulated_items(self) -> int:
        """Number of items simulated so far."""
        return sum(estimator.cache.simulated_items for estimator in self.estimators)

    @property
    def max_mean_rate(self) -> float:
        """The largest mean query rate of the samples, per second."""
        return max(sample.rate for sample in self.samples)

    def meets_slo(self, plan: Plan) -> bool:
        """Return whether a plan is within the quotas and its percentile meets the SLO on every sample, spares lost."""
        if not self.pipeline.is_within_quotas(plan) or not self._is_in_time(plan):
            return False
        return all(loss is not None and self._is_in_time(loss) for loss in self.list_losses(plan))

    def list_losses(self, plan: Plan) -> Iterator[Plan | None]:
        """Yield the plan after each loss that it must survive; ``None`` if a stage loses its only replica."""
        for index, config in enumerate(plan) if self.spares else ():
            yield remove_replica(plan, index) if config.replicas > 1 else None

    def _is_in_time(self, plan: Plan) -> bool:
        stage_s = [option.min_latency_s for option in self.pipeline.chosen_options(plan)]
        downstream_s = compute_unavoidable_time(self.pipeline, stage_s).downstream_s
        return all(estimator.meets_slo(plan, self.slo_s, downstream_s) for estimator in self.estimators)

    def tail_latency(self, plan: Plan) -> float:
        """Return the largest percentile over the samples, in seconds."""
        return max(estimator.tail_latency(plan) for estimator in self.estimators)

    def find_worst_sample(self, plan: Plan) -> int:
        """Return the index of the sample with the largest percentile, the first of equals."""
        tails_s = [estimator.tail_latency(plan) for estimator in self.estimators]
        return tails_s.index(max(tails_s))

    def single_query_latency(self, plan: Sequence[StageConfig]) -> float:
        """Return the seconds of the longest path for a single query in an idle pipeline."""
        options = self.pipeline.chosen_options(plan)
        return compute_longest_path(self.pipeline, [float(option.latency_s[1]) for option in options])

    def stage_rate(self, index: int) -> float:
        """Return the largest mean rate of items at a stage over the samples, per second."""
        return max(sample.rate * sample.share(index) for sample in self.samples)

    def remove_quotas(self) -> SloChecker:
        """Return the checker of the same samples and SLO without quotas."""
        return replace(self, pipeline=replace(self.pipeline, quotas=()))


def build_slo_checker(pipeline: Pipeline, samples: Sequence[Sample], slo_s: float, spares: int = 0) -> SloChecker:
    """Return the checker of plans for some samples, a target in seconds, and the replicas that may be lost."""
    return SloChecker(pipeline, tuple(Estimator(pipeline, sample) for sample in samples), slo_s, spares=spares)
