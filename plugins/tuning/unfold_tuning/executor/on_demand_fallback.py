"""When a thrifty run must stop waiting for spot instances and rent on demand, so that it ends on time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_tuning.cluster.interface import Cluster
from unfold_tuning.executor.messages import describe_fallback
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Plan
from unfold_tuning.simulator.plan_cost import compute_quantile, simulate_plan
from unfold_tuning.simulator.spot_or_on_demand import NET_CHANGES, NET_CONFIDENCE, estimate_change_s
from unfold_tuning.trial.worker import TrialJob

CHECK_PERIOD_S = 5.0


@dataclass(slots=True)
class SpotFallback:
    """Watches the slack of one stage of a thrifty run.

    Attributes:
        replanner: The run.
        cluster: Where on-demand nodes are allowed.
        index: The stage.
        began: Wall time at which the run began.
        quantiles: Time for this stage and all later ones, and for the later ones alone, once they are needed.
        checked_at: Wall time of the last check.
    """

    replanner: Replanner
    cluster: Cluster
    index: int
    began: float
    quantiles: tuple[float, float] | None = field(default=None)
    checked_at: float = 0.0

    def check(self, plan: Plan, jobs: Sequence[TrialJob]) -> None:
        """Allow on-demand nodes as soon as the slack is no more than two changes of place.

        Args:
            plan: The plan.
            jobs: Jobs of the stage that have not ended; all of them before it begins.
        """
        config = self.replanner.config
        now = config.wall()
        is_thrifty = config.machine.spot is not None and config.deadline_s is not None
        if not is_thrifty or self.replanner.is_on_demand_allowed or now - self.checked_at < CHECK_PERIOD_S:
            return
        self.checked_at = now
        change_s = estimate_change_s(config.profile)
        slack_s = self.began + (config.deadline_s or 0.0) - now - self._estimate_rest_s(plan, jobs)
        if slack_s <= NET_CHANGES * change_s + CHECK_PERIOD_S:
            self.replanner.is_on_demand_allowed = True
            self.cluster.allow_on_demand()
            config.log.warning("%s", describe_fallback(slack_s))
            self.replanner.notes.append(describe_fallback(slack_s))

    def _estimate_rest_s(self, plan: Plan, jobs: Sequence[TrialJob]) -> float:
        """Estimate the time of the rest of the plan with the net's confidence; linear within the stage."""
        if self.quantiles is None:
            self.quantiles = self._simulate_quantiles(plan)
        stage_s, later_s = self.quantiles
        total = self.replanner.config.stages[self.index].trial_iterations
        left = sum(job.target - job.done for job in jobs) / max(total, 1)
        return later_s + (stage_s - later_s) * min(1.0, left)

    def _simulate_quantiles(self, plan: Plan) -> tuple[float, float]:
        model = self.replanner.build_model_from(self.index, plan[self.index].instances)
        simulated = simulate_plan(model, plan[self.index :])
        later = simulated.seconds - simulated.stage_ends[0]
        return compute_quantile(simulated.seconds, NET_CONFIDENCE), compute_quantile(later, NET_CONFIDENCE)
