"""When a run says that its deadline cannot be met any more."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.monitor import Monitor
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.catalog.billing import Billing

MACHINE = Machine("m", 1, 3600.0, max_instances=3, billing=Billing(0.0, 0.0))
PLAN = (Allocation(3, 1, 3), Allocation(1, 1, 1))


@pytest.mark.parametrize(("left_s", "is_missed"), [(80.0, False), (-50.0, True)])
def test_a_deadline_is_missed_only_if_the_known_trials_would_miss_it(
    tmp_path: Path, left_s: float, is_missed: bool
) -> None:
    """An average trial would be late; the deadline is not given up while the quick ones that lead would be on time."""
    config = ExecutionConfig(
        stages=build_custom_stages([(3, 10), (1, 10)]),
        plan=PLAN,
        machine=MACHINE,
        profile=Profile(LogNormal(10.0), startup=LogNormal(0.0), sync=LogNormal(0.0), trial_cv=1.0),
        trainable=TrainableConfig(function="sleeper:train"),
        folder=tmp_path,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        wall=lambda: 2000.0 - 100.0 - left_s,
        log=Mock(),
    )
    job = TrialJob(trial=3, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        ledger.record_trials(0, [{}] * 3)
        for trial in (1, 2):
            for iters in range(1, 11):
                ledger.record_checkpoint(trial, iters, 0.9, 1.0, 1)
        replanner = Replanner(config, ledger)
        monitor = Monitor(replanner, Mock())
        monitor.check(0, PLAN, [job], 1000.0)
        assert (ledger.read_fact("hopeless") is not None) == is_missed
    assert bool(replanner.notes) == is_missed
    # the last trial still takes 100 s at the profile's pace, and ten later iterations 10 s at that of the known ones
    assert not is_missed or 50.0 < _read_seconds(replanner.notes[0]) < 500.0


@pytest.mark.parametrize(("left_s", "is_missed"), [(150.0, False), (60.0, True)])
def test_a_deadline_is_not_given_up_while_a_slower_stage_may_grow(
    tmp_path: Path, left_s: float, is_missed: bool
) -> None:
    """Four trials that wait take 160 s one after another and 53 s on three instances, and ten later iterations 40 s."""
    plan = (Allocation(1, 1, 1), Allocation(1, 1, 1))
    config = ExecutionConfig(
        stages=build_custom_stages([(6, 10), (1, 10)]),
        plan=plan,
        machine=MACHINE,
        profile=Profile(LogNormal(1.0), startup=LogNormal(0.0), sync=LogNormal(0.0)),
        trainable=TrainableConfig(function="sleeper:train"),
        folder=tmp_path,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        wall=lambda: 2000.0 - left_s,
        log=Mock(),
    )
    jobs = [
        TrialJob(trial=trial, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
        for trial in (3, 4, 5, 6)
    ]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        ledger.record_trials(0, [{}] * 6)
        for trial, seconds in ((1, [1.0] * 10), (2, [1.0] * 5 + [4.0] * 5)):
            for iters, iteration_s in enumerate(seconds, 1):
                ledger.record_checkpoint(trial, iters, 0.9, iteration_s, 1)
        replanner = Replanner(config, ledger)
        Monitor(replanner, Mock()).check(0, plan, jobs, 1000.0)
        assert (ledger.read_fact("hopeless") is not None) == is_missed


def _read_seconds(note: str) -> float:
    """Read when the run ends that finishes late."""
    match = re.search(r"finish late: ([0-9.]+) (s|min) from now", note)
    assert match is not None, note
    return float(match[1]) * (60.0 if match[2] == "min" else 1.0)
