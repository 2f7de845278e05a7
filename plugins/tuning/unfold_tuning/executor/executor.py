"""Runs a plan stage by stage: grow or shrink, train, rank, and continue after whatever happens.

The ledger is the only memory: what it does not hold did not happen. A run killed at any moment therefore continues from
the last checkpoint of each trial, with its spend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.budget import BudgetExceeded, BudgetGuard
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig, RunOutcome, RunState, ignore_state
from unfold_tuning.executor.monitor import Monitor
from unfold_tuning.executor.ranking import has_reached_target, select_winner
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.executor.stage_run import StageRun, TargetReached
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.trial.ledger import Ledger
from unfold_tuning.trial.worker import name_trial_folder, set_aside_changed_state


@dataclass(slots=True)
class Executor:
    """One attempt at a run, in one process; ``publish`` receives its state every few seconds and at stage borders."""

    config: ExecutionConfig
    ledger: Ledger
    cluster: Cluster
    publish: Callable[[RunState], None] = ignore_state
    lost_nodes: set[str] = field(default_factory=set)

    def run(self) -> RunOutcome:
        """Run every stage that the ledger does not hold yet.

        Raises:
            UnfoldError: Nodes could not be started, every trial failed, or a file could not be written.
        """
        plan, stop_reason, began = self.config.plan, "", 0.0
        replanner = Replanner(self.config, self.ledger)
        budget = BudgetGuard(self.config, self.ledger)
        monitor = Monitor(replanner, self.cluster, self.publish)
        finished = {stage.stage for stage in self.ledger.list_finished_stages()}
        try:
            is_open = not has_reached_target(self.config, self.ledger)
            if is_open and len(finished) < len(self.config.stages):
                self._set_aside_changed_states()
                self.cluster.open()
            began = self.ledger.record_fact("began", self.config.wall())
            for index in range(len(self.config.stages) if is_open else 0):
                if index in finished:
                    plan = _set_allocation(plan, index, replanner.store.load_allocation(index))
                else:
                    plan = self._run_stage(index, plan, began, replanner, budget, monitor)
        except BudgetExceeded as error:
            stop_reason = str(error)
        except TargetReached:
            self.ledger.close_open_parts()
        finally:
            ended = self._find_end()
            self.cluster.close()
        return RunOutcome(
            winner=select_winner(self.config, self.ledger),
            began=began,
            ended=ended,
            spent_usd=self.ledger.compute_spent_usd(),
            stop_reason=stop_reason,
            plan=plan,
            notes=tuple(replanner.notes),
            lost_nodes=len(self.lost_nodes),
        )

    def _run_stage(
        self, index: int, plan: Plan, began: float, replanner: Replanner, budget: BudgetGuard, monitor: Monitor
    ) -> Plan:
        plan = replanner.load_plan(index, plan, began)
        # a stage that has begun ends with the allocation that it began with
        plan = _set_allocation(plan, index, replanner.store.begin_stage(index, plan[index]))
        stage_run = StageRun(index, plan, began, self.cluster, replanner, budget, monitor, self.lost_nodes)
        return replanner.replan_after_stage(index, stage_run.run(), began)

    def _set_aside_changed_states(self) -> None:
        """Set aside what was changed since an earlier attempt: its trials begin again, as without a checkpoint."""
        for state in self.ledger.list_states():
            folder = self.config.folder / name_trial_folder(state.trial)
            set_aside_changed_state(folder, state.iters, state.sha256, self.config.log)

    def _find_end(self) -> float:
        """Find when the last stage ended, or a trial reached the target; now, if neither has happened."""
        if has_reached_target(self.config, self.ledger):
            return float(self.ledger.record_fact("target-reached", self.config.wall()))
        finished = self.ledger.list_finished_stages()
        return finished[-1].ended if len(finished) == len(self.config.stages) else self.config.wall()


def _set_allocation(plan: Plan, index: int, allocation: Allocation) -> Plan:
    return (*plan[:index], allocation, *plan[index + 1 :])
