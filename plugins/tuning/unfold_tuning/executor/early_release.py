"""Releases instances before the barrier of a stage, as soon as no trial is left for them.

The promise of a plan assumes no more instances after a barrier than the plan gives to the next stage. Those of the
stage that ends are not needed while its last trials run, and what these trials show may let the next one do with fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.messages import describe_early_release
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Plan
from unfold_tuning.trial.worker import TrialJob

REPLAN_PERIOD_S = 10.0


@dataclass(slots=True)
class EarlyRelease:
    """The instances of a stage while its last trials run.

    Attributes:
        replanner: The run.
        cluster: Its instances.
        index: The stage.
        began: Wall time at which the run began.
        running: Trials that ran at the last check.
        replanned_at: Wall time at which the later stages were planned again.
    """

    replanner: Replanner
    cluster: Cluster
    index: int
    began: float
    running: int = 0
    replanned_at: float = 0.0

    def check(self, plan: Plan, jobs: Sequence[TrialJob]) -> Plan:
        """Release what neither the running trials nor the next stage need, and return the plan.

        Args:
            plan: The plan.
            jobs: Jobs that run; none waits.
        """
        config = self.replanner.config
        if config.machine.billing.per == "function" or len(jobs) == self.running:
            return plan
        self._release(plan)
        held = self.replanner.ledger.count_running()
        if held <= count_needed(jobs, config.machine.accelerators):
            self.running = len(jobs)
            return plan
        now = config.wall()
        if now - self.replanned_at >= REPLAN_PERIOD_S:
            self.replanned_at, self.running = now, len(jobs)
            plan = self.replanner.replan_before_barrier(self.index, plan, jobs, self.began)
            self._release(plan)
        return plan

    def _release(self, plan: Plan) -> None:
        config = self.replanner.config
        kept = plan[self.index + 1].instances if self.index + 1 < len(plan) else 0
        if released := self.cluster.release_idle(kept):
            held = self.replanner.ledger.count_running()
            config.log.info("%s", describe_early_release(released, self.index + 1, held))


def count_needed(jobs: Sequence[TrialJob], accelerators: int) -> int:
    """Count the instances on which all jobs run at once."""
    hosts = sum(-(-job.workers // accelerators) for job in jobs if job.workers > accelerators)
    small = [job.workers for job in jobs if job.workers <= accelerators]
    return hosts + (-(-len(small) // (accelerators // max(small))) if small else 0)
