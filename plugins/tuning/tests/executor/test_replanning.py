"""Replanning: lost nodes, budgets and deadlines that cannot be met."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tuning_jobs as jobs
from tuning_runs import SPEC, read_fact, read_nodes, train_spec

from unfold_tuning.cluster.interface import ClusterEvent
from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.executor.replanning import Replanner
from unfold_tuning.job.allocation import Allocation
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import LogNormal, Machine, Profile
from unfold_tuning.job.schedule import build_custom_stages
from unfold_tuning.trial.ledger import open_ledger
from unfold_tuning.trial.worker import TrialJob
from unfoldkit.api import Verdict

pytestmark = pytest.mark.usefixtures("sleeper_log")
SEARCH = "{algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}"


def test_a_killed_worker_costs_only_its_last_step(tmp_path: Path) -> None:
    """If a worker is killed, its trial continues from its checkpoint on a node that replaces the lost one."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:suicidal"))
    assert report.verdict is Verdict.YES
    assert report.metrics["lost_nodes"].value == 1
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    assert sum(count - 1 for count in iterations.values()) == 0


def test_trials_across_instances_are_not_said_to_keep_fewer(tmp_path: Path) -> None:
    """A trial that spans two instances cannot continue on the one of a new plan: nothing is noted."""
    machine, stages = Machine("m", 1, 3.6, max_instances=4), build_custom_stages([(2, 10)])
    config = ExecutionConfig(
        stages=stages,
        plan=(Allocation(4, 2, 2),),
        machine=machine,
        profile=Profile(LogNormal(1.0), speedup=((1, 1.0),), across=((2, 1.1),)),
        trainable=TrainableConfig(function="sleeper:train"),
        folder=tmp_path,
        seed=0,
        checkpoint_iters=1,
        deadline_s=1000.0,
        wall=lambda: 1000.0,
    )
    job = TrialJob(trial=1, config={}, done=0, target=10, checkpoint_iters=1, workers=2, seed=0, folder=tmp_path)
    with open_ledger(tmp_path / "l.sqlite", machine, "a") as ledger:
        ledger.record_fact("deal-0", [4, 2, 2])
        replanner = Replanner(config, ledger)
        assert replanner.replan_after_loss(0, config.plan, [job, replace(job, trial=2)], 1000.0) == config.plan
    assert not replanner.notes


def test_losses_with_progress_between_are_not_added_up(tmp_path: Path) -> None:
    """A trial that loses its node at each of three checkpoints, but makes progress each time, runs to its end."""
    search = "{algorithm: custom, stages: [{trials: 1, iters: 4}]}"
    text = SPEC.replace("sleeper:train", "sleeper:mortal").replace("deadline: 30 s", "deadline: 90 s")
    report = train_spec(tmp_path, text.replace(SEARCH, search))
    assert report.metrics["lost_nodes"].value == 3
    assert report.metrics["iterations"].value == 4
    assert report.verdict is Verdict.YES


def _pace_by_iterations(monkeypatch: pytest.MonkeyPatch, log: Path, iteration_s: float) -> None:
    """Let the clock of a run follow its iterations: a start takes as planned, and the load of the machine counts not.

    Four iterations take the time of one, as on four instances.
    """
    began, poll_events = time.time(), LocalCluster.poll_events

    def read_clock() -> float:
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        return began + (2.0 if lines else 0.0) + lines * iteration_s / 4

    def poll_paced(cluster: LocalCluster, timeout_s: float) -> Iterator[ClusterEvent]:
        for event in poll_events(cluster, timeout_s):
            message = event.message
            yield event if message is None else replace(event, message=replace(message, seconds=iteration_s))

    monkeypatch.setattr(LocalCluster, "poll_events", poll_paced)
    monkeypatch.setattr("unfold_tuning.verbs.train.ExecutionConfig", partial(ExecutionConfig, wall=read_clock))


@pytest.mark.e2e
def test_the_job_is_replanned_as_soon_as_a_node_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than the profile and a node short, the stage would be late: it continues with more instances."""
    _pace_by_iterations(monkeypatch, tmp_path / "log", 0.05)
    search = "{algorithm: custom, stages: [{trials: 4, iters: 50}, {trials: 1, iters: 4}]}"
    text = SPEC.replace("sleeper:train", "sleeper:suicidal").replace("limit: 3", "limit: 4")
    text = text.replace("iteration: {mean: 50 ms}", "iteration: {mean: 35 ms}")
    text = text.replace("deadline: 30 s", "deadline: 11 s").replace(SEARCH, search)
    report = train_spec(tmp_path, text)
    assert report.metrics["lost_nodes"].value == 1
    lost, *later = read_nodes(tmp_path)
    assert lost[4] is not None
    assert len(later) > 1, "only the planned instance replaced the lost one"
    assert any("in stage 1, a node was lost" in line for name, line in report.lines if name == "re-planned")
    iterations = Counter((tmp_path / "log").read_text().splitlines())
    assert set(iterations.values()) == {1}
    assert json.loads(read_fact(tmp_path, "deal-0 after 1") or "")[0] == len(later)


def test_the_budget_is_never_exceeded_and_can_be_raised(tmp_path: Path) -> None:
    """A run stops before its budget is exceeded; with a higher budget it continues from there."""
    text = SPEC.replace("iteration: {mean: 50 ms}", "iteration: {mean: 1 ms}, error: 0%")
    text = text.replace("mean: 2 s", "mean: 1 ms")
    report = train_spec(tmp_path, text + "budget: $0.002\n")
    assert report.verdict is Verdict.NO
    assert 0 < (report.metrics["cost_usd"].value or 0) <= 0.002
    assert all(node[4] is not None for node in read_nodes(tmp_path))
    raised = train_spec(tmp_path, text + "budget: $1\n")
    assert raised.verdict is Verdict.YES
    assert set(Counter((tmp_path / "log").read_text().splitlines()).values()) <= {1, 2}


LATE = (
    SPEC.replace("min_iters: 2, max_iters: 12", "min_iters: 20, max_iters: 60")
    .replace("deadline: 30 s", "deadline: 3 s")
    .replace("iteration: {mean: 50 ms}", "iteration: {mean: 1 ms}, error: 0%")
    .replace("mean: 2 s", "mean: 1 ms")
)


def test_a_missed_deadline_is_reported_with_three_options(tmp_path: Path) -> None:
    """If the truth is far slower than the profile, the run reports how to finish late, grow or trim."""
    report = train_spec(tmp_path, LATE)
    assert report.verdict is Verdict.NO
    notes = " ".join(text for name, text in report.lines if name == "re-planned")
    assert "cannot be" in notes
    for option in ("finish late: ", "grow: ", "trim: "):
        assert option in notes
    noticed_at = read_fact(tmp_path, "hopeless")
    assert noticed_at is None or float(noticed_at) < _last_stage_end(tmp_path)


def _last_stage_end(folder: Path) -> float:
    with open_ledger(folder / "run/ledger.sqlite", jobs.P3, json.loads(read_fact(folder, "made_from") or "")) as ledger:
        return ledger.list_finished_stages()[-1].ended


def test_a_later_deadline_and_a_larger_limit_continue_the_run(tmp_path: Path) -> None:
    """The same run with another deadline and limit repeats nothing, and is then on time."""
    train_spec(tmp_path, LATE)
    lines = (tmp_path / "log").read_text()
    report = train_spec(tmp_path, LATE.replace("deadline: 3 s", "deadline: 10 min").replace("limit: 3", "limit: 4"))
    assert report.verdict is Verdict.YES
    assert (tmp_path / "log").read_text() == lines


def test_one_slow_trial_does_not_make_the_profile_slow(tmp_path: Path) -> None:
    """A trial counts once in the posterior of the profile's error, however many checkpoints it has written."""
    profile = replace(jobs.noisy_profile("J1", error=0.1), trial_cv=1.0)
    config = ExecutionConfig(
        stages=build_custom_stages([(16, 1), (1, 50), (16, 1)]),
        plan=(),
        machine=jobs.P3,
        profile=profile,
        trainable=TrainableConfig(function="a:b"),
        folder=tmp_path,
        seed=0,
        checkpoint_iters=1,
    )
    with open_ledger(tmp_path / "ledger.sqlite", jobs.P3, "a") as ledger:
        ledger.record_trials(0, [{}] * 16)
        for trial, slowdown in enumerate([0.0] * 15 + [1.6]):
            for iters in range(1, 52 if slowdown else 2):
                ledger.record_checkpoint(trial + 1, iters, 0.5, 40.0 * math.exp(slowdown - 0.36), 1)
        posterior = Replanner(config, ledger).posterior
    assert abs(posterior.mu) < 0.05
    assert posterior.sigma > 0.08
