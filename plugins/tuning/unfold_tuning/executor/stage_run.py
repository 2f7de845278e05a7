"""Runs the trials of one stage: starts them, records their checkpoints, and retries or drops those that fail."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from unfold_tuning.cluster.interface import Cluster, ClusterEvent
from unfold_tuning.executor.budget import BudgetGuard
from unfold_tuning.executor.early_release import EarlyRelease, count_needed
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.messages import describe_stragglers
from unfold_tuning.executor.monitor import Monitor
from unfold_tuning.executor.on_demand_fallback import SpotFallback
from unfold_tuning.executor.ranking import has_plateaued, has_reached_target, list_open_jobs, rank_trials
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.executor.stragglers import StragglerRule
from unfold_tuning.job.allocation import Plan
from unfold_tuning.trial.ledger import Ledger
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, get_state_path, restart_without_state
from unfoldkit.api import user_error

POLL_S = 0.1
REPLAN_PERIOD_S = 60.0
MAX_FAILURES = 3
MAX_PREEMPTIONS = 12
"""A trial that loses this many spot instances without a checkpoint between probably ends them itself."""


class TargetReached(Exception):  # noqa: N818 - not an error: the search has what it was to find
    """A trial has reached the metric that ends the search."""


@dataclass(slots=True)
class StageRun:
    """One stage of a run.

    Attributes:
        index: The stage.
        plan: The plan, which a lost node may change.
        began: Wall time at which the run began.
        cluster: Where trials run.
        replanner: Plans again after a loss.
        budget: Guards the cap on the bill.
        monitor: Watches the trials.
        lost_nodes: Nodes that the run has lost.
        waiting: Jobs that wait for a slot.
        running: Jobs by trial.
        failures: Failures of each trial since its last checkpoint.
        replanned_at: Wall time at which the run last looked for a slow-down.
        fallback: Allows on-demand nodes when a thrifty run has no more slack.
        early_release: Releases instances for which no trial is left.
        straggler_rule: Selects the trials that the stage cannot wait for.
    """

    index: int
    plan: Plan
    began: float
    cluster: Cluster
    replanner: Replanner
    budget: BudgetGuard
    monitor: Monitor
    lost_nodes: set[str]
    waiting: list[TrialJob] = field(default_factory=list)
    running: dict[int, TrialJob] = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)
    replanned_at: float = 0.0
    fallback: SpotFallback = field(init=False)
    early_release: EarlyRelease = field(init=False)
    straggler_rule: StragglerRule = field(init=False)

    def __post_init__(self) -> None:
        """Begin to watch the slack, and the instances."""
        self.fallback = SpotFallback(self.replanner, self.cluster, self.index, self.began)
        self.early_release = EarlyRelease(self.replanner, self.cluster, self.index, self.began)
        self.straggler_rule = StragglerRule(self.replanner, self.index, self.began)

    @property
    def config(self) -> ExecutionConfig:
        """What the run needs: job, plan, cluster, ledger and limits."""
        return self.replanner.config

    @property
    def ledger(self) -> Ledger:
        """Its ledger."""
        return self.replanner.ledger

    def run(self) -> Plan:
        """Run the stage up to its barrier and return the plan, as losses may have changed it.

        Raises:
            BudgetExceeded: The run would exceed its budget.
            TargetReached: A trial has reached the metric that ends the search.
            UnfoldError: Every trial failed, or a checkpoint could not be written.
        """
        stage, allocation = self.config.stages[self.index], self.plan[self.index]
        self.ledger.record_stage_start(self.index, self.config.wall())
        self.waiting = list_open_jobs(self.config, self.ledger, stage, allocation.workers)
        self.monitor.publish_state(self.index, self.plan, self.began)
        total = len(self.waiting)
        # renting may take minutes, in which the line would be that of the planning
        self.config.progress(self.monitor.describe(self.index), 0, total)
        if self.waiting:
            self._resize(self._count_wanted())
        while self.waiting or self.running or self._admit_replacements(allocation.workers):
            self._watch()
            self._grow_if_possible()
            self._start_waiting()
            if self.running and not self.waiting:
                self.plan = self.early_release.check(self.plan, list(self.running.values()))
            self._end_stragglers()
            for event in self.cluster.poll_events(POLL_S):
                if event.message is None:
                    self._replace_node(event.node)
                self._handle(event)
            self._replan_if_slower()
            self.monitor.check(self.index, self.plan, [*self.waiting, *self.running.values()], self.began)
            done = total - len(self.waiting) - len(self.running)
            self.config.progress(self.monitor.describe(self.index), done, total)
        survivors = [
            trial.id
            for group in stage.groups
            for trial in rank_trials(self.config, self.ledger, group.bracket, group.done + group.iters)
        ]
        self.ledger.record_stage_end(self.index, self.config.wall(), survivors)
        return self.plan

    def _replan_if_slower(self) -> None:
        """Look now and then whether all trials have become slower: those that wait may need more instances."""
        now = self.config.wall()
        if self.waiting and now - self.replanned_at >= REPLAN_PERIOD_S:
            self.replanned_at = now
            jobs = [*self.waiting, *self.running.values()]
            plan = self.replanner.replan_after_slowdown(self.index, self.plan, jobs, self.began)
            if plan != self.plan:
                self.plan, self.fallback.quantiles = plan, None

    def _end_stragglers(self) -> None:
        """End the trials that the stage cannot wait for."""
        jobs = self.straggler_rule.select(self.plan, [*self.waiting, *self.running.values()])
        if not jobs:
            return
        for job in jobs:
            self.ledger.record_straggler(job.trial)
            if job.trial in self.running:
                self.cluster.stop(job.trial)
                self._stop(job.trial)
        self.waiting = []
        self.config.log.warning("%s", describe_stragglers([job.trial for job in jobs]))

    def _grow_if_possible(self) -> None:
        """Request again what was refused, as soon as an offer may be tried, if trials wait for it."""
        instances = self._count_wanted()
        if self.waiting and self.cluster.can_grow(instances):
            self._resize(instances)

    def _count_wanted(self) -> int:
        """Count the planned instances; once some trials have ended, those that the rest or the next stage needs."""
        jobs = [*self.waiting, *self.running.values()]
        if len(jobs) == self.config.stages[self.index].trials:
            return self.plan[self.index].instances
        following = self.plan[self.index + 1].instances if self.index + 1 < len(self.plan) else 0
        needed = max(following, count_needed(jobs, self.config.machine.accelerators))
        return min(self.plan[self.index].instances, needed)

    def _resize(self, instances: int) -> None:
        self.budget.require(instances)
        self.cluster.resize(instances, self._watch)

    def _watch(self) -> None:
        """Guard the budget, and the time for which a thrifty run may wait for spot instances."""
        self.budget.watch()
        self.fallback.check(self.plan, [*self.waiting, *self.running.values()])

    def _admit_replacements(self, workers: int) -> bool:
        """Admit the next best trials in place of dropped ones; return whether there are any."""
        self.waiting = list_open_jobs(self.config, self.ledger, self.config.stages[self.index], workers)
        return bool(self.waiting)

    def _start_waiting(self) -> None:
        while self.waiting:
            node = self.cluster.find_node(self.waiting[0].workers)
            if node is None and not self.running:
                # fewer nodes were granted than the trial was to span
                self.waiting[0] = replace(self.waiting[0], workers=self._select_workers_of_node())
                node = self.cluster.find_node(self.waiting[0].workers)
            if node is None:
                return
            job = restart_without_state(self.waiting.pop(0), self.config.log)
            self.running[job.trial] = job
            self.ledger.record_part_start(self.index, job.trial, node, self.config.wall(), job.workers)
            self.monitor.watchdog.record_progress(job.trial)
            self.cluster.start(node, job)

    def _is_on_spot(self) -> bool:
        machine = self.config.machine
        return machine.spot is not None or machine.interruptions_per_hour > 0

    def _select_workers_of_node(self) -> int:
        """Select the largest measured number of workers that fits into one node."""
        accelerators = self.config.machine.accelerators
        counts = self.config.profile.list_worker_counts(accelerators)
        return max((count for count in counts if count <= accelerators), default=1)

    def _replace_node(self, node: str) -> None:
        """Continue without a lost node: plan the remaining job again at once, and hold what the plan says."""
        if node not in self.lost_nodes:
            self.lost_nodes.add(node)
            self.config.log.warning("%s is lost; its trials continue from their checkpoints", node)
            jobs = [*self.waiting, *self.running.values()]
            self.plan = self.replanner.replan_after_loss(self.index, self.plan, jobs, self.began)
        self._resize(self._count_wanted())

    def _handle(self, event: ClusterEvent) -> None:
        message, job = event.message, self.running.get(event.trial)
        if message is not None and message.kind == "unsaved":
            raise user_error(message.error, hint="free some space; the same command continues the run")
        if job is None:
            return
        if message is not None and message.kind == "step":
            self._record_step(job, message)
        elif not event.is_own_process:
            self.waiting.insert(0, self._stop(job.trial))
        else:
            self._retry_or_drop(job, event)

    def _record_step(self, job: TrialJob, message: WorkerMessage) -> None:
        self.ledger.record_checkpoint(
            job.trial, message.iters, message.metric, message.seconds, job.workers, message.sha256
        )
        self.running[job.trial] = replace(job, done=message.iters)
        # over days a spot trial loses many instances; only one without any progress is dropped
        self.failures[job.trial] = 0
        self.monitor.watchdog.record_progress(job.trial)
        if job.done:
            # the ledger refers to the new state by now
            get_state_path(job.folder, job.done).unlink(missing_ok=True)
        if has_reached_target(self.config, self.ledger):
            raise TargetReached
        is_exhausted = has_plateaued(self.config, self.ledger, job.trial)
        if is_exhausted:
            self.ledger.record_early_stop(job.trial, message.iters)
        if message.iters >= job.target or is_exhausted:
            self._stop(job.trial)

    def _stop(self, trial: int) -> TrialJob:
        self.ledger.record_part_end(trial, self.config.wall())
        self.cluster.free(trial)
        self.monitor.watchdog.forget(trial)
        return self.running.pop(trial)

    def _retry_or_drop(self, job: TrialJob, event: ClusterEvent) -> None:
        message = event.message
        kill_reason = self.monitor.watchdog.forget(job.trial)
        is_preemption = message is None and not kill_reason and self._is_on_spot()
        reason = kill_reason or (message.error if message else event.reason)
        job = self._stop(job.trial)
        self.failures[job.trial] += 1
        if self.failures[job.trial] < (MAX_PREEMPTIONS if is_preemption else MAX_FAILURES):
            self.config.log.warning("trial %d continues from iteration %d: %s", job.trial, job.done, reason)
            self.waiting.insert(0, job)
            return
        self.ledger.record_failure(job.trial, reason)
        count = self.failures[job.trial]
        self.config.log.warning("trial %d failed %d times and is dropped: %s", job.trial, count, reason)
        if all(self.ledger.is_failed(trial.id) for trial in self.ledger.list_trials()):
            hint = "fix the function, then run the same command again"
            raise user_error(f"every trial failed; the last error: {reason}", key="trainable", hint=hint)
