"""The last trials of a stage, once waiting for them would make the run late.

A few profiled trials seldom show a rare kind of trial that is many times slower. One of these can make a run late, but
has little to win: of a stage, most trials lose anyway. With ``early_stop.stragglers`` the stage waits for its last
trials as long as the later stages are still on time without them, and then goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.ranking import rank_trials
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Plan
from unfold_tuning.trial.ledger import Ledger
from unfold_tuning.trial.worker import TrialJob

MAX_STRAGGLERS = 0.5
"""Where a larger fraction of the trials is left, the job is slow and not some of its trials."""
CHECK_PERIOD_S = 10.0


@dataclass(slots=True)
class StragglerRule:
    """Selects the trials of a running stage that lose because it cannot wait for them.

    Attributes:
        replanner: The run.
        index: The stage.
        began: Wall time at which the run began.
        checked_at: Wall time of the last check.
    """

    replanner: Replanner
    index: int
    began: float
    checked_at: float = 0.0

    def select(self, plan: Plan, jobs: Sequence[TrialJob]) -> list[TrialJob]:
        """Select the stragglers: all that are left, from the last moment at which the later stages can be on time.

        None lose once even an even chance to be on time is gone, or as long as all of them are expected in time.

        Args:
            plan: The plan.
            jobs: Jobs of the stage that have not ended.
        """
        config, now = self.replanner.config, self.replanner.config.wall()
        if not config.trainable.early_stop.ends_stragglers or now - self.checked_at < CHECK_PERIOD_S:
            return []
        self.checked_at = now
        if not can_go_on_without(config, self.replanner.ledger, self.index, jobs):
            return []
        sure_s, likely_s = self.replanner.estimate_later_seconds(self.index, plan)
        left_s, rest_s = self.began + (config.deadline_s or 0.0) - now, self.replanner.estimate_rest_s(self.index, jobs)
        is_awaited = left_s > sure_s + CHECK_PERIOD_S or (rest_s is not None and rest_s + sure_s <= left_s)
        return [] if is_awaited or left_s < likely_s else list(jobs)


def can_go_on_without(config: ExecutionConfig, ledger: Ledger, index: int, jobs: Sequence[TrialJob]) -> bool:
    """Return whether a stage with a deadline can end without its last trials: they are few, and enough have ended.

    Args:
        config: The run.
        ledger: Its ledger.
        index: The stage.
        jobs: Jobs of the stage that have not ended.
    """
    if config.deadline_s is None or not config.is_replanning or not jobs:
        return False
    stage, following = config.stages[index], config.stages[index + 1 :][:1]
    needed = {group.bracket: group.trials for later in following for group in later.groups if group.done}
    return len(jobs) <= MAX_STRAGGLERS * stage.trials and all(
        len(rank_trials(config, ledger, group.bracket, group.done + group.iters)) >= needed.get(group.bracket, 1)
        for group in stage.groups
    )
