"""How long a running job still takes, and the options if it cannot meet its deadline any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from unfold_tuning.executor.messages import describe_growth, describe_late_finish, describe_trim
from unfold_tuning.job.allocation import Allocation, Plan, count_slots, estimate_stage_seconds, list_faster_allocations
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Group, Stage
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.planner.replan import estimate_iteration_s
from unfold_tuning.simulator.execution_model import (
    ExecutionModel,
    build_execution_model,
    compute_slowest_factor,
)
from unfold_tuning.trial.worker import TrialJob

GROWTH_FACTORS = (2, 4, 8, 16)
TRIM_FRACTIONS = (0.75, 0.5, 0.25, 0.1)
MAX_INSTANCES = 1024


@dataclass(frozen=True, slots=True)
class TimeEstimator:
    """Expected times of the remaining work under a corrected profile."""

    profile: Profile
    machine: Machine

    def estimate_stage_seconds(self, jobs: Iterable[TrialJob], allocation: Allocation) -> float:
        """Estimate the seconds until the jobs of a stage end: the longest of them, or all of them over the slots."""
        iteration_s = estimate_iteration_s(self.profile, allocation.workers, self.machine)
        seconds = [(job.target - job.done) * iteration_s for job in jobs]
        return max(max(seconds, default=0.0), sum(seconds) / allocation.slots)

    def estimate_soonest_seconds(self, jobs: Iterable[TrialJob], allocation: Allocation) -> float:
        """Estimate the seconds until the jobs of a stage end if it grows to as many instances as are allowed."""
        slots = count_slots(self.machine.max_instances, allocation.workers, self.machine.accelerators)
        return self.estimate_stage_seconds(jobs, replace(allocation, slots=max(allocation.slots, slots)))

    def estimate_checkpoint_seconds(self, job: TrialJob) -> float:
        """Estimate the seconds from a trial's start or checkpoint to its next checkpoint."""
        iters = min(job.checkpoint_iters, job.target - job.done)
        return self.profile.start.mean + iters * estimate_iteration_s(self.profile, job.workers, self.machine)

    def estimate_planned_seconds(self, stages: Sequence[Stage], plan: Plan) -> float:
        """Estimate the seconds of stages under a plan, without growing the cluster."""
        return sum(self._estimate_stage(stage, allocation) for stage, allocation in zip(stages, plan, strict=True))

    def estimate_fastest_seconds(self, stages: Sequence[Stage]) -> float:
        """Estimate the seconds of stages with as many instances as are allowed."""
        rows = [(stage, list_faster_allocations(stage, self.profile, self.machine)) for stage in stages]
        return sum(self._estimate_stage(stage, row[-1]) for stage, row in rows)

    def _estimate_stage(self, stage: Stage, allocation: Allocation) -> float:
        workers, slots = allocation.workers, allocation.slots
        seconds = estimate_stage_seconds(stage, workers, slots, self.profile, self.machine)
        return self.profile.sync.mean + seconds * compute_slowest_factor(self.profile.worker_cv, workers)


@dataclass(frozen=True, slots=True)
class StageRest:
    """What a running stage still takes, and the bill of its instances meanwhile."""

    seconds: float = 0.0
    cost_usd: float = 0.0


NOTHING_LEFT = StageRest()


def list_late_options(
    remaining: ExecutionModel, time_left_s: float, confidence: float, rest: StageRest = NOTHING_LEFT
) -> Iterator[str]:
    """Describe the options if the remaining job has no guarantee any more: finish late, grow, or trim.

    Args:
        remaining: The remaining stages, with the instances that run.
        time_left_s: Time to the deadline.
        confidence: Probability of the guarantee.
        rest: What the stage before them still takes.
    """
    candidate, later_s = evaluate_machine(remaining, confidence), time_left_s - rest.seconds
    index = candidate.earliest_index
    late_usd = rest.cost_usd + candidate.plans[index].mean_cost_usd
    yield describe_late_finish(rest.seconds + float(candidate.guaranteed_s[index]), late_usd)
    yield _describe_growth_option(remaining, later_s, confidence, rest.cost_usd)
    yield _describe_trim_option(remaining, later_s, confidence, rest.cost_usd)


def _describe_growth_option(remaining: ExecutionModel, time_left_s: float, confidence: float, rest_usd: float) -> str:
    for factor in GROWTH_FACTORS:
        limit = min(MAX_INSTANCES, remaining.machine.max_instances * factor)
        larger = remaining.with_machine(replace(remaining.machine, max_instances=limit))
        plan = evaluate_machine(larger, confidence).select_cheapest(time_left_s)
        if plan is not None:
            return describe_growth(max(allocation.instances for allocation in plan.plan), rest_usd + plan.mean_cost_usd)
    return describe_growth(None, 0.0)


def _describe_trim_option(remaining: ExecutionModel, time_left_s: float, confidence: float, rest_usd: float) -> str:
    for fraction in TRIM_FRACTIONS:
        stages = tuple(
            replace(stage, groups=tuple(_trim_group(group, fraction) for group in stage.groups))
            for stage in remaining.stages
        )
        trimmed = build_execution_model(stages, remaining.profile, remaining.machine, remaining.samples, 0)
        trimmed = replace(trimmed, running_instances=remaining.running_instances)
        plan = evaluate_machine(trimmed, confidence).select_cheapest(time_left_s)
        if plan is not None:
            return describe_trim(
                fraction, max(group.iters for group in stages[-1].groups), rest_usd + plan.mean_cost_usd
            )
    return describe_trim(None, 0, 0.0)


def _trim_group(group: Group, fraction: float) -> Group:
    return replace(group, iters=max(1, int(group.iters * fraction)))
