"""Instances that are released before the barrier of a stage."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tuning_jobs as jobs
from tuning_runs import read_nodes

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import build_local_provider
from unfold_tuning.cluster.ray import RayCluster, RunningTrial
from unfold_tuning.executor.early_release import EarlyRelease, count_needed
from unfold_tuning.executor.executor import Executor
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.measured_paces import measure_stage
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.job.search_space import Categorical
from unfold_tuning.planner.pace_posterior import PacePosterior, build_pace_prior
from unfold_tuning.trial.ledger import Ledger, open_ledger
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.catalog.billing import Billing

MACHINE = Machine("m", 1, 3600.0, max_instances=4, billing=Billing(0.0, 0.0))
STAGES = build_custom_stages([(4, 10), (2, 10)])
PLAN = (Allocation(4, 1, 4), Allocation(2, 1, 2))


def _build_config(folder: Path, machine: Machine = MACHINE) -> ExecutionConfig:
    profile = Profile(LogNormal(10.0), startup=LogNormal(20.0), sync=LogNormal(0.0))
    prior = build_pace_prior(STAGES, [], 0)
    return ExecutionConfig(
        stages=STAGES,
        plan=PLAN,
        machine=machine,
        profile=profile,
        trainable=TrainableConfig(function="sleeper:train"),
        folder=folder,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        paces=PacePosterior(prior=prior, level=math.log(10.0)),
        wall=lambda: 1070.0,
    )


def _hold(ledger: Ledger, count: int) -> None:
    for index in range(count):
        ledger.record_node_start(f"n{index}", 3600.0, 1000.0)


def _release(ledger: Ledger, kept: int) -> int:
    """Release all but ``kept`` of the instances, as a cluster with its other ones idle."""
    running = [f"n{index}" for index in range(4)][: ledger.count_running()]
    for name in running[kept:]:
        ledger.record_node_end(name, 1070.0)
    return max(0, len(running) - kept)


@pytest.mark.usefixtures("sleeper_log")
def test_a_straggler_does_not_hold_idle_instances(tmp_path: Path) -> None:
    """While a trial takes 2 s longer, the instances of the others are no longer billed."""
    trainable = TrainableConfig(function="sleeper:straggling", space={"ceiling": Categorical((0.5, 0.95))})
    config = ExecutionConfig(
        stages=build_custom_stages([(4, 2), (1, 2)]),
        plan=(Allocation(4, 1, 4), Allocation(1, 1, 1)),
        machine=MACHINE,
        profile=Profile(LogNormal(0.05)),
        trainable=trainable,
        folder=tmp_path / "trials",
        seed=0,
        checkpoint_iters=2,
    )
    with open_ledger(tmp_path / "run/ledger.sqlite", MACHINE, "a") as ledger:
        cluster = LocalCluster(WorkerSetup(trainable), 1, build_local_provider(ledger, 3600.0))
        Executor(config, ledger, cluster).run()
        slow = {trial.id for trial in ledger.list_trials() if trial.config["ceiling"] > 0.9}
        parts = [part for part in ledger.list_parts() if part.stage == 0]
        barrier = ledger.list_finished_stages()[0].ended
    until = {name: ended or math.inf for name, _, _, _, ended in read_nodes(tmp_path)}
    assert 0 < len(slow) < 4
    released = [part for part in parts if until[part.node] < barrier - 1.0]
    assert len(released) == len(parts) - len(slow)
    assert {part.trial for part in released}.isdisjoint(slow)


def test_the_next_stage_keeps_what_the_plan_gives_to_it(tmp_path: Path) -> None:
    """Before any trial has shown its pace, only what the next stage does not need is released, once."""
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        _hold(ledger, 4)
        cluster = Mock(release_idle=Mock(side_effect=lambda kept: _release(ledger, kept)))
        release = EarlyRelease(Replanner(_build_config(tmp_path), ledger), cluster, 0, 1000.0)
        assert release.check(PLAN, [job]) == PLAN
        assert ledger.count_running() == 2
        calls = cluster.release_idle.call_count
        release.check(PLAN, [job])
        assert cluster.release_idle.call_count == calls


def test_idle_instances_cost_nothing_if_functions_are_billed(tmp_path: Path) -> None:
    """Where only the time of trials is billed, everything is held."""
    machine = replace(MACHINE, billing=Billing(0.0, 0.0, "function"))
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        cluster = Mock()
        release = EarlyRelease(Replanner(_build_config(tmp_path, machine), ledger), cluster, 0, 1000.0)
        assert release.check(PLAN, [job]) == PLAN
    assert not cluster.release_idle.called


@pytest.mark.parametrize(("pace_s", "kept"), [(5.0, 1), (80.0, 2)])
def test_quick_trials_release_what_the_next_stage_was_to_have(tmp_path: Path, pace_s: float, kept: int) -> None:
    """If the trials are much quicker than planned, one instance is enough for the next stage; not if they are slow."""
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        _hold(ledger, 4)
        ledger.record_trials(0, [{}] * 4)
        for trial in range(1, 5):
            for iters in range(1, 11 if trial > 1 else 9):
                ledger.record_checkpoint(trial, iters, 0.5, pace_s, 1)
        job = TrialJob(trial=1, config={}, done=8, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
        cluster = Mock(release_idle=Mock(side_effect=lambda kept: _release(ledger, kept)))
        replanner = Replanner(_build_config(tmp_path), ledger)
        plan = EarlyRelease(replanner, cluster, 0, 1000.0).check(PLAN, [job])
        assert plan[1].instances == ledger.count_running() == kept
        assert bool(replanner.notes) == (kept == 1)


def test_running_trials_count_in_the_pace_of_a_stage(tmp_path: Path) -> None:
    """A slow trial that has not ended yet is measured by its checkpoints, which only a running stage asks for."""
    config = _build_config(tmp_path)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        ledger.record_trials(0, [{}] * 4)
        for trial, (iters, seconds) in enumerate([(10, 1.0), (10, 1.0), (2, 8.0)]):
            for done in range(1, iters + 1):
                ledger.record_checkpoint(trial + 1, done, 0.5, seconds, 1)
        ended, running = (measure_stage(config, ledger, STAGES[0], is_running=value)[0].last for value in (False, True))
    assert np.exp(ended) == pytest.approx([1.0, 1.0])
    assert np.exp(running) == pytest.approx([1.0, 1.0, 8.0])


@pytest.mark.parametrize("is_measured", [True, False])
def test_trials_that_still_run_may_continue(tmp_path: Path, is_measured: bool) -> None:
    """Two quick trials have ended, but the two slow ones may win: the next stage is planned for any two of the four."""
    config = _build_config(tmp_path)
    profile = replace(config.profile, trial_cv=0.6, error_cv=0.1)
    config = replace(config, profile=profile, paces=config.paces if is_measured else None)
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        _hold(ledger, 4)
        ledger.record_trials(0, [{}] * 4)
        for trial, (iters, seconds) in enumerate([(10, 5.0), (10, 5.0), (4, 30.0), (4, 30.0)], start=1):
            for done in range(1, iters + 1):
                ledger.record_checkpoint(trial, done, 0.5, seconds, 1)
        model = Replanner(config, ledger)._build_model_before_barrier(0, PLAN)
    assert model is not None
    assert np.quantile(model.sample_stage_seconds(0, PLAN[1]), 0.75) > 200.0


def test_a_next_stage_with_more_trials_than_are_measured_keeps_their_pace(tmp_path: Path) -> None:
    """Five trials continue, of which only four are left: their mean pace counts, not that of the profile."""
    stages = build_custom_stages([(5, 10), (5, 10)])
    config = replace(_build_config(tmp_path), stages=stages)
    config = replace(config, paces=PacePosterior(prior=build_pace_prior(stages, [], 0), level=math.log(10.0)))
    with open_ledger(tmp_path / "l.sqlite", MACHINE, "a") as ledger:
        _hold(ledger, 4)
        ledger.record_trials(0, [{}] * 5)
        ledger.record_failure(5, "it crashed")
        for trial in range(1, 5):
            for done in range(1, 11 if trial > 1 else 9):
                ledger.record_checkpoint(trial, done, 0.5, 80.0, 1)
        model = Replanner(config, ledger)._build_model_before_barrier(0, (Allocation(4, 1, 4), Allocation(4, 1, 4)))
    assert model is not None
    assert np.median(model.sample_stage_seconds(0, Allocation(5, 1, 5))) > 500.0


def test_instances_needed_by_jobs(tmp_path: Path) -> None:
    """Small trials share instances, and trials that span instances fill all of theirs."""
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    assert count_needed([], 4) == 0
    assert count_needed([job] * 5, 4) == 2
    assert count_needed([replace(job, workers=2)] * 3, 4) == 2
    assert count_needed([replace(job, workers=8)] * 3, 4) == 6
    assert count_needed([replace(job, workers=3), replace(job, workers=8)], jobs.P3.accelerators) >= 2


@pytest.mark.parametrize(("kept", "released"), [(0, ["a", "c"]), (2, ["a"]), (3, []), (9, [])])
def test_only_idle_nodes_of_a_ray_cluster_are_released(tmp_path: Path, kept: int, released: list[str]) -> None:
    """Of three nodes, the one with a trial stays, and no more are released than asked for."""
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=1, seed=0, folder=tmp_path)
    provider, ray_nodes = Mock(), Mock()
    cluster = RayCluster(
        WorkerSetup(TrainableConfig(function="sleeper:train")),
        2,
        provider,
        ray_nodes,
        devices=dict.fromkeys("abc", "CPU"),
        running={1: RunningTrial(job, [], None, ("b",))},
    )
    assert cluster.release_idle(kept) == len(released)
    assert [call.args[0] for call in provider.release.call_args_list] == released
    assert list(cluster.devices) == [name for name in "abc" if name not in released]
