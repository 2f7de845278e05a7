"""The moment at which a thrifty run rents on demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import tuning_jobs as jobs

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.on_demand_fallback import SpotFallback
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Profile, SpotTerms
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.worker import TrialJob

THRIFTY = replace(jobs.P3, market="thrifty", spot=SpotTerms(1.0, 0.2))
STAGES = build_custom_stages([(2, 10), (1, 10)])
PLAN = (Allocation(1, 1, 2), Allocation(1, 1, 1))
CHANGE_S = 60.0


def test_on_demand_nodes_are_allowed_once_when_slack_runs_out(tmp_path: Path) -> None:
    """A run of 200 s waits for spot as long as it still ends in time after two changes of place, and no longer."""
    now = 1000.0
    config = ExecutionConfig(
        stages=STAGES,
        plan=PLAN,
        machine=THRIFTY,
        profile=Profile(LogNormal(10.0), startup=LogNormal(CHANGE_S), sync=LogNormal(0.0)),
        trainable=TrainableConfig(function="sleeper:train"),
        folder=tmp_path,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        wall=lambda: now,
    )
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    waiting = [job, replace(job, trial=2)]
    cluster = Mock()
    with open_ledger(tmp_path / "l.sqlite", THRIFTY, "a") as ledger:
        replanner = Replanner(config, ledger)
        fallback = SpotFallback(replanner, cluster, 0, began=1000.0)
        last_s = 1000.0 - 200.0 - 2 * CHANGE_S
        for elapsed_s in (0.0, last_s / 2, last_s - 20.0):
            now = 1000.0 + elapsed_s
            fallback.check(PLAN, waiting)
        assert not cluster.allow_on_demand.called
        now = 1000.0 + last_s
        fallback.check(PLAN, waiting)
        assert cluster.allow_on_demand.call_count == 1
        # nor is it noted again in a later stage
        now += 100.0
        SpotFallback(replanner, cluster, 1, began=1000.0).check(PLAN, waiting[:1])
    assert cluster.allow_on_demand.call_count == 1
    assert len(replanner.notes) == 1
