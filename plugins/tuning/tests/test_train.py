"""The executor on real local processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.cluster.provider import own
from unfold_tuning.cluster.ray_clusters import cluster_of
from unfold_tuning.executor.executor import Executor, Task
from unfold_tuning.job.allocation import Deal
from unfold_tuning.job.profile import Machine, Profile, Spread
from unfold_tuning.job.schedule import custom
from unfold_tuning.schema.models import Trainable, TuningSpec, Uniform
from unfold_tuning.trial.ledger import opened
from unfold_tuning.trial.trainable import Work
from unfold_tuning.verbs.profile import profile
from unfold_tuning.verbs.train import train
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.catalog.billing import Billing
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}
trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}
deadline: 30 s
cloud: {provider: local, instances: [{type: p, accelerators: 1, price: $3.6/h}], limit: 3, billing: {increment: 0.01 s, minimum: 0 s}}
profile: {iteration: {mean: 50 ms}, provision: {mean: 0 s}, startup: {mean: 2 s}, sync: {mean: 0 s}}
samples: 200
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))


def trained(folder: Path, text: str = SPEC) -> Report:
    """Run ``train`` in this process."""
    spec = validate(TuningSpec, parse(text, "t.yaml"))
    return train(spec, Run(directory=RunDir(folder / "run"), engine=LocalEngine(2), allow_code=True))


def nodes(folder: Path) -> list[tuple[str, float, float, float, float | None]]:
    """Return the ledger's instances."""
    with sqlite3.connect(folder / "run/ledger.sqlite") as base:
        found = base.execute("SELECT * FROM nodes ORDER BY since").fetchall()
    base.close()
    return found


def test_every_iteration_runs_once_and_the_best_wins(tmp_path: Path) -> None:
    """Each trial runs the iterations of its stages exactly once, and the winner is the configuration that must win."""
    report = trained(tmp_path)
    assert report.verdict is Verdict.YES
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert set(ran.values()) == {1}
    assert sum(ran.values()) == 6 * 2 + 2 * 4 + 1 * 6
    ceilings = {float(line.split()[0]) for line in ran}
    assert report.metrics["best_metric"].value == pytest.approx(max(ceilings) * (1 - 0.5**12))


def test_the_cluster_is_what_the_plan_says(tmp_path: Path) -> None:
    """A plan of 3, 1, 2 instances holds so many in each stage: released at barriers, grown anew, each life billed."""
    stages = custom([(3, 2), (1, 2), (2, 2)])
    plan = tuple(Deal(count, 1, count) for count in (3, 1, 2))
    machine = Machine("p", 1, 3600.0, limit=3, billing=Billing(0.0, 0.0))
    trainable = Trainable(function="sleeper:train", space={"ceiling": Uniform(uniform=(0.0, 1.0))})
    task = Task(stages, plan, machine, Profile(Spread(0.05)), trainable, tmp_path / "trials", 0, 1)
    with opened(tmp_path / "run/ledger.sqlite", machine, "a") as ledger:
        runs = LocalCluster(Work(trainable), 1, own(ledger, 3600.0))
        outcome = Executor(task, ledger, runs).run()
        ends = [ended for _, _, ended, _ in ledger.stages()]
        held = [sum(life.since < end <= (life.until or end) for life in ledger.lives()) for end in ends]
        paid = sum((life.until or 0) - life.since for life in ledger.lives())
    assert held == [3, 1, 2]
    assert outcome.spent == pytest.approx(paid)


def test_a_second_run_does_nothing_again(tmp_path: Path) -> None:
    """Training again in a finished run starts no process and gives the same result."""
    first = trained(tmp_path)
    lines, lives = (tmp_path / "log").read_text(), nodes(tmp_path)
    again = trained(tmp_path)
    assert (tmp_path / "log").read_text() == lines
    assert nodes(tmp_path) == lives
    for name in ("best_metric", "wall_s", "cost_usd"):
        assert again.metrics[name] == first.metrics[name]


def test_a_killed_worker_costs_only_its_last_step(tmp_path: Path) -> None:
    """When a worker is killed its trial goes on from its checkpoint, on a node that takes the lost one's place."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:suicidal"))
    assert report.verdict is Verdict.YES
    assert report.metrics["lost_nodes"].value == 1
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert sum(count - 1 for count in ran.values()) == 0


def test_losses_between_checkpoints_are_not_counted_together(tmp_path: Path) -> None:
    """A trial that loses its node at each of three checkpoints, but comes further each time, runs to its end."""
    search = "{algorithm: custom, stages: [{trials: 1, iters: 4}]}"
    text = SPEC.replace("sleeper:train", "sleeper:mortal").replace("deadline: 30 s", "deadline: 90 s")
    report = trained(
        tmp_path,
        text.replace("{algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}", search),
    )
    assert report.metrics["lost_nodes"].value == 3
    assert report.metrics["iterations"].value == 4
    assert report.verdict is Verdict.YES


def test_the_rest_is_planned_again_as_soon_as_a_node_is_lost(tmp_path: Path) -> None:
    """Slower than the profile and a node short, the stage is not on time as planned: it goes on with more instances."""
    search = "{algorithm: custom, stages: [{trials: 4, iters: 50}, {trials: 1, iters: 4}]}"
    text = SPEC.replace("sleeper:train", "sleeper:suicidal").replace("limit: 3", "limit: 4")
    text = text.replace("iteration: {mean: 50 ms}", "iteration: {mean: 35 ms}").replace(
        "deadline: 30 s", "deadline: 11 s"
    )
    text = text.replace("{algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}", search)
    report = trained(tmp_path, text)
    assert report.metrics["lost_nodes"].value == 1
    lost, *after = nodes(tmp_path)
    assert lost[4] is not None
    assert len(after) > 1, "one instance, as planned, took the place of the lost one"
    assert any("in stage 1, a node was lost" in line for name, line in report.lines if name == "planned again")
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert set(ran.values()) == {1}
    with sqlite3.connect(tmp_path / "run/ledger.sqlite") as base:
        row = base.execute("SELECT value FROM facts WHERE key = 'deal-0 after 1'").fetchone()
    base.close()
    assert json.loads(row[0])[0] == len(after)


def test_a_plan_of_another_profile_is_refused(tmp_path: Path) -> None:
    """A plan with numbers of accelerators that the spec's profile lacks is refused before anything runs."""
    rows = [
        {"trials": trials, "instances": 1, "accelerators_per_trial": 8, "at_a_time": 1, "iterations": 1}
        for trials in (6, 2, 1)
    ]
    spec = validate(TuningSpec, parse(SPEC, "t.yaml"))
    plan = {"decision": {"stages": rows, "instance": "p", "market": "on-demand"}}
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(2), allow_code=True, options={"plan": plan})
    with pytest.raises(UnfoldError, match="8 accelerators, of which the profile has no speed-up"):
        train(spec, run)
    assert not (tmp_path / "log").exists()


def test_a_curve_has_a_name_only_if_it_is_one(tmp_path: Path) -> None:
    """Trials that stopped at their first checkpoint are points together, each of the others is a line."""
    figure = next(item for item in trained(tmp_path).figures if item.name == "learning")
    styles = Counter((series.style, len(series.x)) for series in figure.series)
    checkpoints = [(style, count) for style, count in styles.elements() if style == "line"]
    assert all(count > 1 for _, count in checkpoints)
    assert sum(count for _, count in styles.elements()) == 6 * 2 + 2 * 4 + 1 * 6
    assert figure.y == "metric"


def test_bars_show_who_ran_where(tmp_path: Path) -> None:
    """The picture of a run has a bar for each accelerator of each trial's part, and no two in a lane overlap."""
    figure = next(item for item in trained(tmp_path).figures if item.name == "gantt")
    bars = sorted(
        (series.y[at], series.x[at], series.x[at + 1]) for series in figure.series for at in range(0, len(series.x), 2)
    )
    assert len(bars) == 6 + 2 + 1
    for (lane, _, ended), (other, began, _) in itertools.pairwise(bars):
        assert lane != other or began >= ended - 1e-6


def test_the_winner_is_left_for_others(tmp_path: Path) -> None:
    """A run leaves the best trial as a file: its parameters, its metric, and a checkpoint that is there."""
    report = trained(tmp_path)
    told = json.loads((tmp_path / "run/winner.json").read_text())
    assert told["value"] == report.metrics["best_metric"].value
    assert (told["iterations"], told["finished"], told["schema"]) == (12, True, "unfoldkit.winner/1")
    assert (told["metric"], set(told["params"])) == ("metric", {"ceiling"})
    assert json.loads((tmp_path / "run" / told["state"]).read_bytes()) == {"done": 12}


def test_what_was_run_is_a_spec_of_placement(tmp_path: Path) -> None:
    """The file that a run leaves for the kind placement is accepted by it, with a job for each trial's part."""
    trained(tmp_path)
    command = [sys.executable, "-m", "unfoldkit", "check", "run/placement.yaml"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr + told.stdout
    assert len(json.loads((tmp_path / "run/placement.yaml").read_text())["workload"]["tasks"]) == 6 + 2 + 1


@pytest.mark.parametrize(
    ("word", "nodes"),
    [("", 1), ("placement: {gang: trial, pack: node}\n", 1), ("placement: {spread: {by: node}}\n", 2)],
)
def test_trials_are_placed_as_the_policy_says(tmp_path: Path, word: str, nodes: int) -> None:
    """Two trials on two nodes of two accelerators share one node when packed, and have one each when spread."""
    spec = validate(TuningSpec, parse(SPEC + word, "t.yaml"))
    machine = Machine("p", 2, 1.0)
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1), allow_code=True)
    assert spec.trainable is not None
    with opened(tmp_path / "l.sqlite", machine, "a") as ledger:
        cluster = cluster_of(spec, run, Work(spec.trainable), machine, own(ledger, 1.0))
        stages, plan = custom([(2, 2)]), (Deal(2, 1, 4),)
        task = Task(stages, plan, machine, Profile(Spread(0.05)), spec.trainable, tmp_path / "trials", 0, 1)
        Executor(task, ledger, cluster).run()
        assert len({node for _, _, node, _, _ in ledger.parts()}) == nodes


def test_a_failing_trial_is_left_out(tmp_path: Path) -> None:
    """A configuration whose function raises three times is left out and told; the others go on."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:broken"))
    assert report.verdict is Verdict.YES
    assert (report.metrics["best_metric"].value or 0) > 0.5


def test_a_metric_that_is_no_number_ranks_last(tmp_path: Path) -> None:
    """Trials whose metric is nan or inf are told and never win, and the job runs to its end."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:diverging"))
    assert report.verdict is Verdict.YES
    assert 0.5 < (report.metrics["best_metric"].value or 0) < 1
    assert "returned nan or inf" in dict(report.lines)["no number"]
    told = json.loads((tmp_path / "run/winner.json").read_text())
    assert told["value"] == report.metrics["best_metric"].value
    shown = next(item for item in report.figures if item.name == "learning")
    assert all(np.isfinite(value) for series in shown.series for value in series.y)


def test_without_any_number_nothing_wins(tmp_path: Path) -> None:
    """Where every metric is nan the run ends, and says that no trial came to its end."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:diverging").replace("[0, 1]", "[0, 0.4]"))
    assert report.verdict is Verdict.NO
    assert "no trial" in report.headline


def test_a_function_names_its_metric(tmp_path: Path) -> None:
    """What a function returns goes by the name that the spec gives, and an estimator has its two only."""
    text = SPEC.replace("space:", "metric: my-score, space:")
    spec = validate(TuningSpec, parse(text, "t.yaml"))
    assert spec.trainable is not None
    assert (spec.trainable.measured, Trainable(estimator="sgd").measured) == ("my-score", "accuracy")
    assert trained(tmp_path, text).metrics["best_my_score"].value is not None
    with pytest.raises(UnfoldError, match=r"no metric 'my-score'"):
        validate(TuningSpec, parse(text.replace('function: "sleeper:train"', "estimator: sgd, data: wine"), "t.yaml"))


def test_the_cap_is_never_passed_and_can_be_raised(tmp_path: Path) -> None:
    """A run stops before its budget is passed; a run with a higher budget goes on from there."""
    slow = SPEC.replace("iteration: {mean: 50 ms}", "iteration: {mean: 1 ms}, error: 0%").replace(
        "mean: 2 s", "mean: 1 ms"
    )
    report = trained(tmp_path, slow + "budget: $0.002\n")
    assert report.verdict is Verdict.NO
    assert 0 < (report.metrics["cost_usd"].value or 0) <= 0.002
    assert all(life[4] is not None for life in nodes(tmp_path))
    more = trained(tmp_path, slow + "budget: $1\n")
    assert more.verdict is Verdict.YES
    assert set(Counter((tmp_path / "log").read_text().splitlines()).values()) <= {1, 2}


LATE = (
    SPEC.replace("min_iters: 2, max_iters: 12", "min_iters: 20, max_iters: 60")
    .replace("deadline: 30 s", "deadline: 3 s")
    .replace("iteration: {mean: 50 ms}", "iteration: {mean: 1 ms}, error: 0%")
    .replace("mean: 2 s", "mean: 1 ms")
)


def test_a_hopeless_deadline_is_told_with_three_ways_out(tmp_path: Path) -> None:
    """When the truth is far slower than the profile the run says so, and how to finish late, grow, trim."""
    report = trained(tmp_path, LATE)
    assert report.verdict is Verdict.NO
    told = " ".join(text for name, text in report.lines if name == "planned again")
    assert "cannot be" in told
    for way in ("finish late: ", "grow: ", "trim: "):
        assert way in told
    with sqlite3.connect(tmp_path / "run/ledger.sqlite") as base:
        said = base.execute("SELECT value FROM facts WHERE key = 'hopeless'").fetchall()
        ended = base.execute("SELECT MAX(ended) FROM stages").fetchone()[0]
    base.close()
    assert all(float(value) < ended for (value,) in said)


def test_a_later_deadline_and_a_larger_limit_go_on_from_there(tmp_path: Path) -> None:
    """The same run with another deadline and limit repeats nothing, and is then on time."""
    trained(tmp_path, LATE)
    lines = (tmp_path / "log").read_text()
    again = trained(tmp_path, LATE.replace("deadline: 3 s", "deadline: 10 min").replace("limit: 3", "limit: 4"))
    assert again.verdict is Verdict.YES
    assert (tmp_path / "log").read_text() == lines


def test_functions_are_paid_while_they_run_and_data_by_the_instance(tmp_path: Path) -> None:
    """By function the bill is accelerator-seconds of trials; data is paid for each instance, the head for the job."""
    machine = Machine("p", 2, 7200.0, billing=Billing(0.0, 0.0, "function"), ingress=3.0, head=3600.0)
    with opened(tmp_path / "l.sqlite", machine, "a") as ledger:
        ledger.fact("began", 100.0)
        ledger.node_runs("n", 7200.0, 110.0)
        ledger.part_begins(0, 1, "n", 120.0, 2)
        ledger.part_ends(1, 125.0)
        ledger.node_ends("n", 200.0)
        assert ledger.spent() == pytest.approx(5 * 2 * 1.0 + 3.0 + 100.0)


def test_a_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    """A ledger that was begun for something else is refused: its spend is not this run's."""
    with opened(tmp_path / "l.sqlite", Machine("p", 1, 1.0), "a"):
        pass
    with pytest.raises(UnfoldError, match="another spec"), opened(tmp_path / "l.sqlite", Machine("p", 1, 1.0), "b"):
        pass


def test_workers_that_cannot_start_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that ends its worker at import ends the run with words after three attempts, and every life is closed."""
    (tmp_path / "ending.py").write_text("import os\n\nos._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnfoldError, match="3 times before it was ready"):
        trained(tmp_path, SPEC.replace("sleeper:train", "ending:train"))
    assert nodes(tmp_path)
    assert [life[4] is not None for life in nodes(tmp_path)] == [True] * len(nodes(tmp_path))


def measured(folder: Path, text: str) -> Report:
    """Run ``profile`` in this process."""
    spec = validate(TuningSpec, parse(text, "t.yaml"))
    return profile(spec, Run(directory=RunDir(folder), engine=LocalEngine(2), allow_code=True))


def test_a_measured_profile_is_near_the_truth(tmp_path: Path) -> None:
    """Profile finds the 50 ms that an iteration sleeps, and keeps a profile that plan can read."""
    report = measured(tmp_path, SPEC)
    assert 0.05 <= (report.metrics["iteration_s"].value or 0) < 0.2
    assert 0 < (report.metrics["checkpoint_s"].value or 0) < 0.1
    assert json.loads((tmp_path / "profile.json").read_text())["speedup"] == {"1": 1.0}


def test_a_profile_goes_on_without_what_fails(tmp_path: Path) -> None:
    """Draws whose function raises are told and others take their places, so that eight trials are measured."""
    report = measured(tmp_path, SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0.3, 1]"))
    assert report.verdict is Verdict.YES
    assert "too low" in dict(report.lines)["left out"]
    assert (tmp_path / "profile.json").exists()
    assert report.metrics["steps"].value == 8 * 3


def test_a_profile_of_nothing_is_an_error(tmp_path: Path) -> None:
    """Where every configuration raises, the profile ends with what the last one said."""
    text = SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0, 0.4]")
    with pytest.raises(UnfoldError, match=r"failed for all of 16 configurations; the last said: .*too low"):
        measured(tmp_path, text)


def test_a_driver_that_is_killed_goes_on(tmp_path: Path) -> None:
    """After kill -9 at random moments the winner is the same, every life is closed, and little is run twice."""
    spec = tmp_path / "t.yaml"
    spec.write_text(SPEC.replace("30 s", "10 min"))
    command = [sys.executable, "-m", "unfoldkit", "train", str(spec), "--run", str(tmp_path / "run"), "--allow-code"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    kills, rng = 0, np.random.default_rng(0)
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            kills += _killed_in_the_middle(process, tmp_path / "log", rng)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert kills >= 1
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert sum(count - 1 for count in ran.values()) <= kills * 3
    assert all(life[4] is not None for life in nodes(tmp_path))
    fresh = trained(tmp_path / "fresh", SPEC.replace("30 s", "10 min"))
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["metrics"]["best_metric"]["value"] == fresh.metrics["best_metric"].value


def _killed_in_the_middle(process: subprocess.Popen[bytes], log: Path, rng: np.random.Generator) -> bool:
    before = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (log.stat().st_size if log.exists() else 0) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.4))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True
