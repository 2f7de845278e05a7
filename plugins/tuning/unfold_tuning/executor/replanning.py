"""Keeps a run within its deadline: corrects the profile, and plans the remaining job again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_tuning.executor.deadline import list_late_options
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.measured_paces import (
    list_current_checkpoints,
    measure_entrants,
    measure_slowdown,
    measure_stage,
)
from unfold_tuning.executor.messages import (
    describe_lost_guarantee,
    describe_replan,
    describe_slowdown,
)
from unfold_tuning.executor.ranking import list_entrants
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.job.schedule import Group
from unfold_tuning.planner.pace_posterior import PacePosterior
from unfold_tuning.planner.planner import evaluate_machine
from unfold_tuning.planner.replan import (
    NEAR_BEST,
    Posterior,
    build_prior,
    build_remaining_stage,
    estimate_iteration_s,
    estimate_ratio_std,
    estimate_slowdowns,
    replan_remaining,
    rescale_allocation,
)
from unfold_tuning.planner.slowdown import Slowdown
from unfold_tuning.simulator.execution_model import ExecutionModel, TrialSlowdowns, build_execution_model
from unfold_tuning.simulator.plan_cost import simulate_plan
from unfold_tuning.simulator.spot_or_on_demand import NET_CHANGES, estimate_change_s
from unfold_tuning.simulator.stage_paces import PaceDraws, draw_paces
from unfold_tuning.trial.ledger import Ledger, Trial
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.api import internal_error

REPLAN_SAMPLES = 1000
MIN_MEASURED = 0.8
"""Before a barrier, the later stages are planned again only if this fraction of the stage's trials shows a pace."""
EVEN_CHANCE = 0.5
MIN_REPORTS = 8
"""After a slow-down, the job is planned again at most after this many checkpoints."""


@dataclass(frozen=True, slots=True)
class PlanStore:
    """Plans from each stage on, and the allocation of each stage that has begun, as facts of the ledger.

    A resumed run continues with the allocations that it began with.
    """

    config: ExecutionConfig
    ledger: Ledger

    def load_plan(self, index: int) -> Plan | None:
        """Load the plan from a stage on, made for the same deadline and limit."""
        stored = self.ledger.read_fact(self._build_plan_key(index))
        return tuple(Allocation(*row) for row in stored) if stored else None

    def store_plan(self, index: int, plan: Plan) -> None:
        """Record in the ledger which allocations hold from a stage on, so that a restarted run follows them."""
        self.ledger.record_fact(self._build_plan_key(index), [_encode(allocation) for allocation in plan])

    def begin_stage(self, index: int, planned: Allocation) -> Allocation:
        """Store the allocation that a stage begins with, and return the one that it has, if it began before."""
        self.ledger.record_fact(f"deal-{index}", _encode(planned))
        return self.load_allocation(index)

    def load_allocation(self, index: int) -> Allocation:
        """Load the allocation of a stage that has begun, as it is since the last loss of a node."""
        rescalings = self._count_rescalings(index)
        key = f"deal-{index} after {rescalings}" if rescalings else f"deal-{index}"
        return Allocation(*self.ledger.read_fact(key))

    def rescale_stage(self, index: int, allocation: Allocation) -> None:
        """Store the allocation that a running stage continues with."""
        self.ledger.record_fact(f"deal-{index} after {self._count_rescalings(index) + 1}", _encode(allocation))

    def _count_rescalings(self, index: int) -> int:
        """Count how often a stage continued with another number of instances."""
        keys = ((count, f"deal-{index} after {count + 1}") for count in itertools.count())
        return next(count for count, key in keys if self.ledger.read_fact(key) is None)

    def _build_plan_key(self, index: int) -> str:
        return f"plan-{index} by {self.config.deadline_s} on {self.config.machine.max_instances}"


@dataclass(frozen=True, slots=True)
class TrialTiming:
    """A trial's measured over expected time up to its last checkpoint, and its iterations by then."""

    ratio: float
    iters: int


@dataclass(slots=True)
class Replanner:
    """Plans the remaining job again.

    Attributes:
        config: The run.
        ledger: Its ledger.
        notes: What was planned again and why, for the report.
        is_on_demand_allowed: Whether a thrifty run has no slack left to wait for spot instances.
        replanned_reports: Checkpoints that were known when the run was last planned again for a slow-down.
        measured: The slow-down of all trials, and the number of checkpoints that it was measured from.
    """

    config: ExecutionConfig
    ledger: Ledger
    notes: list[str] = field(default_factory=list)
    is_on_demand_allowed: bool = False
    replanned_reports: int = 0
    measured: tuple[int, Slowdown | None] = (0, None)

    @property
    def store(self) -> PlanStore:
        """The plans in the ledger."""
        return PlanStore(self.config, self.ledger)

    # corrected profile

    @property
    def posterior(self) -> Posterior:
        """The posterior of the profile's error from what every trial has taken so far."""
        profile, timings = self.config.profile, self._measure_trials().values()
        mean_iters = sum(timing.iters for timing in timings) / max(1, len(timings))
        noise = estimate_ratio_std(profile, mean_iters)
        # the error that the profile states does not contain a slow-down
        slowdown = self._measure_slowdown()
        factor = slowdown.factor if slowdown else 1.0
        posterior = build_prior(profile).update([timing.ratio / factor for timing in timings], noise)
        return replace(posterior, mu=posterior.mu + math.log(factor))

    def _measure_slowdown(self) -> Slowdown | None:
        """Measure the slow-down of all trials, once for each number of checkpoints."""
        reports = self.ledger.count_reported()
        if reports != self.measured[0]:
            self.measured = reports, measure_slowdown(self.config, self.ledger)
        return self.measured[1]

    def _measure_trials(self) -> dict[int, TrialTiming]:
        """Measure each trial that has reached a checkpoint against the profile."""
        totals: dict[int, tuple[float, float, int]] = {}
        for step in list_current_checkpoints(self.ledger, self._measure_slowdown()):
            measured_s, expected_s, done = totals.get(step.trial, (0.0, 0.0, 0))
            iteration_s = estimate_iteration_s(self.config.profile, step.workers, self.config.machine)
            expected_s += (step.iters - done) * iteration_s
            totals[step.trial] = (measured_s + step.seconds, expected_s, step.iters)
        return {
            trial: TrialTiming(measured_s / expected_s, done)
            for trial, (measured_s, expected_s, done) in totals.items()
            if measured_s > 0
        }

    def _estimate_entrant_slowdowns(self, index: int) -> TrialSlowdowns | None:
        """Estimate the slowdowns of the trials that enter a stage, once all of them have reached it."""
        groups = self.config.stages[index].groups if index < len(self.config.stages) else ()
        if len(groups) != 1 or groups[0].done == 0:
            return None
        return self._estimate_slowdowns(list_entrants(self.config, self.ledger, groups[0]), groups[0])

    def _estimate_candidate_slowdowns(self, index: int) -> TrialSlowdowns | None:
        """Estimate the slowdowns of all trials of a running stage, any of which may continue."""
        groups, following = self.config.stages[index].groups, self.config.stages[index + 1].groups
        if len(groups) != 1 or len(following) != 1 or following[0].done == 0:
            return None
        return self._estimate_slowdowns(list_entrants(self.config, self.ledger, groups[0]), following[0])

    def _estimate_slowdowns(self, trials: Sequence[Trial], group: Group) -> TrialSlowdowns | None:
        """Estimate the slowdowns of the trials from which a group is taken; ``None`` if too few are known."""
        timings = self._measure_trials()
        ratios = [timings[trial.id].ratio for trial in trials if trial.id in timings]
        if len(ratios) < max(len(trials), group.trials):
            return None
        return estimate_slowdowns(ratios, group.done, self.config.profile, self.posterior)

    def estimate_time_factor(self, index: int) -> float:
        """Estimate how much longer than profiled the iterations of a stage take."""
        if self.config.paces is None:
            return math.exp(self.posterior.mu)
        paces = self._observe_running_stage(index).predict(index, self._base, has_known_trials=False)
        groups = len(self.config.stages[index].groups)
        return math.exp(float(np.mean(paces.mean[:groups])))

    @property
    def _base(self) -> float:
        return math.log(self.config.profile.iteration.mean)

    def _observe_paces(self, index: int) -> PacePosterior:
        """Return the posterior over paces from the stages before ``index``."""
        if self.config.paces is None:
            raise internal_error("a job without measured trials has no posterior over paces")
        posterior, stages = self.config.paces, self.config.stages
        slowdown = self._measure_slowdown()
        for stage in range(index):
            measured = measure_stage(self.config, self.ledger, stages[stage], slowdown)
            posterior = posterior.observe_stage(stage, measured)
        return posterior

    def _observe_running_stage(self, index: int) -> PacePosterior:
        """Return the posterior over paces from a running stage, as far as it has come, and those before it."""
        stage, slowdown = self.config.stages[index], self._measure_slowdown()
        measured = measure_stage(self.config, self.ledger, stage, slowdown, is_running=True)
        return self._observe_paces(index).observe_stage(index, measured)

    def _build_paced_model(self, index: int, running_instances: int) -> ExecutionModel:
        """Build the model of the stages from ``index`` on, from the measured paces of the earlier ones."""
        config = self.config
        model = build_execution_model(config.stages, config.profile, config.machine, REPLAN_SAMPLES, config.seed)
        remaining = model.select_remaining(index, running_instances)
        known = measure_entrants(config, self.ledger, config.stages[index], self._measure_slowdown())
        slowdowns = TrialSlowdowns(tuple(math.exp(pace - self._base) for pace in known)) if known else None
        posterior = self._observe_paces(index)
        paces = posterior.predict(index, self._base, has_known_trials=slowdowns is not None)
        return remaining.with_slowdowns(slowdowns).with_paces(paces, config.seed)

    def build_remaining_model(self, index: int, plan: Plan) -> ExecutionModel:
        """Build the model of the job after a stage, under the corrected profile, with the instances that run."""
        # fewer may have been granted than planned
        running_instances = min(plan[index].instances, self.ledger.count_running() or plan[index].instances)
        return self.build_model_from(index + 1, running_instances)

    def build_model_from(self, index: int, running_instances: int) -> ExecutionModel:
        """Build the model of the stages from ``index`` on, under the corrected profile."""
        config = self.config
        if config.paces is not None and index < len(config.stages):
            return self._build_paced_model(index, running_instances)
        remaining = self._build_corrected_model(index, running_instances)
        return remaining.with_slowdowns(self._estimate_entrant_slowdowns(index))

    def _build_corrected_model(self, index: int, running_instances: int) -> ExecutionModel:
        config = self.config
        profile = self.posterior.apply_to(config.profile)
        model = build_execution_model(config.stages, profile, config.machine, REPLAN_SAMPLES, config.seed)
        return model.select_remaining(index, running_instances)

    # plans

    def load_plan(self, index: int, plan: Plan, began: float) -> Plan:
        """Load the plan from a stage on; it is made again for another deadline or limit than it was made for."""
        stored = self.store.load_plan(index)
        if stored is not None:
            return stored
        return self.replan_after_stage(index - 1, plan, began) if index else plan

    def replan_after_stage(self, index: int, plan: Plan, began: float) -> Plan:
        """Plan the remaining stages again at a barrier, and store the result."""
        if not self.config.stages[index + 1 :] or not self._is_replanning():
            return plan
        remaining = self.build_remaining_model(index, plan)
        time_left_s = self._compute_time_left_s(began)
        changed = self._replan(remaining, plan[index + 1 :], time_left_s)
        if changed != plan[index + 1 :]:
            self._note_replan(f"after stage {index + 1}", changed)
        plan = (*plan[: index + 1], *changed)
        self.store.store_plan(index + 1, plan)
        return plan

    def replan_after_loss(self, index: int, plan: Plan, jobs: Sequence[TrialJob], began: float) -> Plan:
        """Plan the remaining job again as soon as a node is lost in a stage; running trials keep their workers."""
        if not jobs or not self._is_replanning():
            return plan
        remaining = self._build_model_in_stage(index, jobs)
        changed = self._replan(remaining, plan[index:], self._compute_time_left_s(began))
        return self._rescale_stage(index, plan, changed, f"in stage {index + 1}, a node was lost")

    def _build_model_in_stage(self, index: int, jobs: Sequence[TrialJob]) -> ExecutionModel:
        """Build the model of the rest of a running stage and of the later ones, with the instances that run."""
        config = self.config
        stages = (build_remaining_stage(jobs), *config.stages[index + 1 :])
        profile = self.posterior.apply_to(config.profile) if config.paces is None else config.profile
        model = build_execution_model(stages, profile, config.machine, REPLAN_SAMPLES, config.seed)
        remaining = replace(model, running_instances=self.ledger.count_running())
        if config.paces is None:
            return remaining
        return replace(remaining, paces=self._draw_paces_in_stage(index, jobs))

    def _rescale_stage(self, index: int, plan: Plan, changed: Plan, occasion: str) -> Plan:
        """Continue a running stage with a changed plan of its rest and of the later stages."""
        # trials that run across instances may keep more of them than planned
        allocation = rescale_allocation(plan[index], changed[0], self.config.machine.accelerators)
        if changed == plan[index:] or (allocation, *changed[1:]) == plan[index:]:
            return plan
        self.store.rescale_stage(index, allocation)
        self._note_replan(occasion, (allocation, *changed[1:]))
        return (*plan[:index], allocation, *changed[1:])

    def replan_after_slowdown(self, index: int, plan: Plan, jobs: Sequence[TrialJob], began: float) -> Plan:
        """Plan the remaining job again if all trials have become slower and the plan is no longer sure.

        Args:
            index: The stage.
            plan: The plan.
            jobs: Jobs of the stage that have not ended; running trials keep their workers.
            began: Wall time at which the run began.
        """
        reports = self.ledger.count_reported()
        if not jobs or not self._is_replanning() or reports < self.replanned_reports + MIN_REPORTS:
            return plan
        slowdown = self._measure_slowdown()
        if slowdown is None:
            return plan
        self.replanned_reports = reports
        remaining, time_left_s = self._build_model_in_stage(index, jobs), self._compute_time_left_s(began)
        current = simulate_plan(remaining, plan[index:])
        if current.estimate_on_time_probability(time_left_s) >= self.config.confidence - NEAR_BEST:
            return plan
        result = replan_remaining(remaining, plan[index:], time_left_s, self.config.confidence)
        return self._rescale_stage(index, plan, result.plan, describe_slowdown(index + 1, slowdown.factor))

    def replan_before_barrier(self, index: int, plan: Plan, jobs: Sequence[TrialJob], began: float) -> Plan:
        """Plan the later stages again while the last trials of a stage run, and use the result if it needs less.

        Args:
            index: The stage.
            plan: The plan.
            jobs: Jobs that run; none waits.
            began: Wall time at which the run began.

        Returns:
            The plan, as it was unless the next stage can do with fewer instances.
        """
        later = plan[index + 1 :]
        if not later or not self._is_replanning():
            return plan
        rest_s, remaining = self.estimate_rest_s(index, jobs), self._build_model_before_barrier(index, plan)
        if rest_s is None or remaining is None:
            return plan
        result = replan_remaining(remaining, later, self._compute_time_left_s(began) - rest_s, self.config.confidence)
        if result.is_late or result.plan[0].instances >= later[0].instances:
            return plan
        self._note_replan(f"before the end of stage {index + 1}", result.plan)
        return (*plan[: index + 1], *result.plan)

    def estimate_rest_s(self, index: int, jobs: Sequence[TrialJob]) -> float | None:
        """Estimate when the running trials of a stage end, each at its own pace; ``None`` before it has shown one."""
        begins = {group.done + group.iters: group.done for group in self.config.stages[index].groups}
        timings, config = self._measure_trials(), self.config
        if any(job.done <= begins.get(job.target, 0) or job.trial not in timings for job in jobs):
            return None
        rests_s = (
            timings[job.trial].ratio
            * (job.target - job.done)
            * estimate_iteration_s(config.profile, job.workers, config.machine)
            for job in jobs
        )
        return self._estimate_reserve_s() + max(rests_s, default=0.0)

    def estimate_later_seconds(self, index: int, plan: Plan) -> tuple[float, float]:
        """Estimate the shortest time that the stages after a running one are promised to take, and its median.

        Of the running stage, only the trials that have run all of it count.
        """
        if not self.config.stages[index + 1 :]:
            return 0.0, 0.0
        remaining = self._build_model_before_barrier(index, plan, counts_running=False)
        if remaining is None:
            return math.inf, math.inf
        candidate = evaluate_machine(remaining, self.config.confidence)
        reserve_s = self._estimate_reserve_s()
        likely_s = min(item.compute_guaranteed_seconds(EVEN_CHANCE) for item in candidate.plans)
        return reserve_s + float(candidate.guaranteed_s.min()), reserve_s + likely_s

    def _estimate_reserve_s(self) -> float:
        """Estimate the slack for a change of place, which is no time to plan with."""
        config = self.config
        return NET_CHANGES * estimate_change_s(config.profile) if config.machine.spot is not None else 0.0

    def _build_model_before_barrier(
        self, index: int, plan: Plan, *, counts_running: bool = True
    ) -> ExecutionModel | None:
        """Build the model of the later stages from the trials of a running one; ``None`` if too few are measured.

        Which trials continue is not known yet: any of them, or of those that have ended.
        """
        config = self.config
        running_instances = min(plan[index].instances, self.ledger.count_running() or plan[index].instances)
        if config.paces is None:
            remaining = self._build_corrected_model(index + 1, running_instances)
            # those that run may be the slow ones, which do not continue
            return remaining.with_slowdowns(self._estimate_candidate_slowdowns(index) if counts_running else None)
        stage, following = config.stages[index], config.stages[index + 1]
        measured = measure_stage(config, self.ledger, stage, self._measure_slowdown(), is_running=counts_running)
        if counts_running and any(
            len(paces.last) < MIN_MEASURED * group.trials for paces, group in zip(measured, stage.groups, strict=True)
        ):
            return None
        is_known = len(measured) == len(following.groups) == 1 and following.trials <= len(measured[0].last)
        slowdowns = (
            TrialSlowdowns(tuple(math.exp(pace - self._base) for pace in measured[0].last)) if is_known else None
        )
        posterior = self._observe_paces(index).observe_stage(index, measured)
        paces = posterior.predict(index + 1, self._base, has_known_trials=is_known)
        model = build_execution_model(config.stages, config.profile, config.machine, REPLAN_SAMPLES, config.seed)
        remaining = model.select_remaining(index + 1, running_instances)
        return remaining.with_slowdowns(slowdowns).with_paces(paces, config.seed)

    def _draw_paces_in_stage(self, index: int, jobs: Sequence[TrialJob]) -> tuple[PaceDraws, ...]:
        """Draw the paces of the rest of a running stage, with trials as groups of their own, and of later stages."""
        config = self.config
        paces = self._observe_running_stage(index).predict(index, self._base, has_known_trials=False)
        draws = draw_paces(config.stages[index:], paces, REPLAN_SAMPLES, config.seed)
        targets = [group.done + group.iters for group in config.stages[index].groups]
        columns = [targets.index(job.target) if job.target in targets else 0 for job in jobs]
        return (PaceDraws(draws[0].shift[:, columns], draws[0].spread[:, columns]), *draws[1:])

    def _replan(self, remaining: ExecutionModel, plan: Plan, time_left_s: float) -> Plan:
        """Plan the remaining job again, and note a lost guarantee."""
        time_left_s -= self._estimate_reserve_s()
        result = replan_remaining(remaining, plan, time_left_s, self.config.confidence)
        if result.is_late:
            options = list(list_late_options(remaining, time_left_s, self.config.confidence))
            self.note_late(describe_lost_guarantee(time_left_s, result.on_time_after), options)
        return result.plan if result.is_changed else plan

    def _note_replan(self, occasion: str, plan: Plan) -> None:
        note = describe_replan(occasion, plan)
        self.notes.append(note)
        self.config.log.warning("re-planned %s", note)

    def note_late(self, message: str, options: Sequence[str]) -> None:
        """Note and log that the run is late, with the options."""
        self.config.log.warning("%s. %s", message, "; ".join(options))
        self.notes.append(f"{message}: {'; '.join(options)}")

    def may_grow_stage(self) -> bool:
        """Return whether trials that wait may get more instances in the middle of a stage: after a slow-down."""
        return self._is_replanning() and self._measure_slowdown() is not None

    def _is_replanning(self) -> bool:
        return self.config.is_replanning and self.config.deadline_s is not None

    def _compute_time_left_s(self, began: float) -> float:
        return began + (self.config.deadline_s or 0.0) - self.config.wall()


def _encode(allocation: Allocation) -> list[int]:
    return [allocation.instances, allocation.workers, allocation.slots]
