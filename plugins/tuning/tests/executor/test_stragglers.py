"""Trials that a stage does not wait for, because the run would be late."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tuning_runs import SPEC, load_spec, train_spec

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.executor.stragglers import StragglerRule
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.build import fingerprint_profile_inputs, fingerprint_run
from unfold_tuning.job.problem import EarlyStopRules, TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.planner.pace_posterior import PacePosterior, build_pace_prior
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.api import Verdict
from unfoldkit.catalog.billing import Billing

MACHINE = Machine("m", 1, 3600.0, max_instances=4, billing=Billing(0.0, 0.0))
STAGES = build_custom_stages([(4, 10), (2, 10)])
PLAN = (Allocation(4, 1, 4), Allocation(2, 1, 2))
RULES = EarlyStopRules(ends_stragglers=True)


def build_config(folder: Path, now: float, rules: EarlyStopRules = RULES, *, has_paces: bool = True) -> ExecutionConfig:
    """Build the configuration of a run of 10 s an iteration with a deadline 1000 s after its begin at 1000."""
    posterior = PacePosterior(prior=build_pace_prior(STAGES, [], 0), level=math.log(10.0))
    return ExecutionConfig(
        stages=STAGES,
        plan=PLAN,
        machine=MACHINE,
        profile=Profile(LogNormal(10.0), startup=LogNormal(20.0), sync=LogNormal(0.0), trial_cv=0.2, error_cv=0.1),
        trainable=TrainableConfig(function="sleeper:train", early_stop=rules),
        folder=folder,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        paces=posterior if has_paces else None,
        wall=lambda: now,
    )


def record(ledger: Ledger, ended: int, straggler_iters: int) -> None:
    """Record a stage of which some trials have ended, and the others have run slowly."""
    ledger.record_trials(0, [{}] * 4)
    for name in ("n0", "n1", "n2", "n3"):
        ledger.record_node_start(name, 3600.0, 1000.0)
    for trial in range(1, 5):
        for n in range(1, 11 if trial <= ended else 1 + straggler_iters):
            ledger.record_checkpoint(trial, n, 0.5, 10.0 if trial <= ended else 100.0, 1)


@pytest.mark.parametrize("has_paces", [True, False])
@pytest.mark.parametrize(
    ("now", "ended", "iters", "is_ended"),
    [
        (1850.0, 3, 7, True),  # the next stage needs most of the time that is left
        (1850.0, 3, 0, True),
        (1400.0, 3, 3, False),  # the stage may wait
        (1850.0, 1, 7, False),  # three of four are slow: it is the job
        (2100.0, 3, 7, False),  # late anyway
    ],
)
def test_a_stage_waits_as_long_as_the_later_ones_are_on_time(
    tmp_path: Path, now: float, ended: int, iters: int, is_ended: bool, has_paces: bool
) -> None:
    """Its last trials lose at the last moment at which the later stages keep the promise, if enough have ended."""
    job = TrialJob(trial=4, config={}, done=iters, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    jobs = [replace(job, trial=trial) for trial in range(ended + 1, 5)]
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        record(ledger, ended, iters)
        rule = StragglerRule(Replanner(build_config(tmp_path, now, has_paces=has_paces), ledger), 0, 1000.0)
        assert rule.select(PLAN, jobs) == (jobs if is_ended else [])
        off = StragglerRule(Replanner(build_config(tmp_path, now, EarlyStopRules()), ledger), 0, 1000.0)
        assert not off.select(PLAN, jobs)


def test_a_run_with_a_straggler_is_on_time(tmp_path: Path, sleeper_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that takes twenty minutes is left behind and named; the best of the others wins.

    The clock follows the iterations of the others, and jumps near to the deadline once they have ended.
    """
    began = time.time()

    def read_clock() -> float:
        lines = len(sleeper_log.read_text().splitlines()) if sleeper_log.exists() else 0
        # the last iteration is written down a moment before it is recorded
        has_ended = lines > 10 or (lines == 10 and time.time() - sleeper_log.stat().st_mtime > 1.0)
        return began + lines * 0.1 + (24.0 if has_ended else 0.0)

    monkeypatch.setattr("unfold_tuning.verbs.train.ExecutionConfig", partial(ExecutionConfig, wall=read_clock))
    text = SPEC.replace("sleeper:train", "sleeper:crawling").replace("space:", "early_stop: {stragglers: true}, space:")
    report = train_spec(tmp_path, text)
    assert report.verdict == Verdict.YES
    assert dict(report.lines)["stragglers"].startswith("1 trial (6) ended: ")
    ran = Counter(line.split()[0] for line in sleeper_log.read_text().splitlines())
    assert sorted(ran.values()) == [2, 2, 2, 6, 12]
    assert 0.8 < float(max(ran, key=lambda name: ran[name])) < 0.9


def test_the_rule_may_be_added_to_a_run() -> None:
    """It is no other job: the ledger and the profile of a run without it hold."""
    with_rule = load_spec(SPEC.replace("space:", "early_stop: {stragglers: true}, space:"))
    assert with_rule.trainable is not None
    assert fingerprint_profile_inputs(with_rule) == fingerprint_profile_inputs(load_spec(SPEC))
    assert fingerprint_run(with_rule, 0) == fingerprint_run(load_spec(SPEC), 0)
    both = load_spec(SPEC.replace("space:", "early_stop: {stragglers: true, patience: 3}, space:"))
    assert fingerprint_run(both, 0) != fingerprint_run(with_rule, 0)
