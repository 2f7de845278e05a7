"""Profiles from the record of an earlier run, against the same figures computed from what the record was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unfold_tuning.job.trial_logs import read, resolved
from unfold_tuning.schema.models import Recorded, TuningSpec
from unfold_tuning.verbs.plan import plan
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

TIMES = {"a": [4.0, 2.0, 3.0], "b": [8.0, 10.0], "c": [6.0]}
"""Seconds of the iterations of three trials, as a search leaves them that stops some early."""
MEAN = float(np.mean([3.0, 9.0, 6.0]))
SPREAD = float(np.std([3.0, 9.0, 6.0], ddof=1)) / MEAN
STD = float(np.mean([1.0, np.std([8.0, 10.0], ddof=1)]))
SPEC = """
version: 1
kind: tuning
name: t
search: {algorithm: random, trials: 8, iters: 3}
deadline: 10 min
cloud: {instances: [{type: mine, price: $12/h, accelerators: 2}], limit: 4}
profile: {recorded: {path: PATH}, speedup: {1: 1, 2: 1.5}}
samples: 100
"""


def _ray(folder: Path) -> Path:
    """Write a folder as Ray Tune does: a folder a trial, each with its results."""
    for trial, seconds in TIMES.items():
        (folder / f"train_{trial}").mkdir(parents=True)
        rows = [f"{at + 1},{s},{sum(seconds[: at + 1])},{trial}" for at, s in enumerate(seconds)]
        head = "training_iteration,time_this_iter_s,time_total_s,trial_id"
        (folder / f"train_{trial}/progress.csv").write_text("\n".join([head, *rows]))
    return folder


def _ray_resumed(folder: Path) -> Path:
    """Write a folder of Ray Tune of which one trial failed, and went back to its first checkpoint."""
    _ray(folder)
    file = folder / "train_b/progress.csv"
    head, first, second = file.read_text().splitlines()
    file.write_text(f"{head}\n{first}\n2,70,78.0,b\n3,1,79.0,b\n{second}")
    return folder


def _ray_lines(folder: Path) -> Path:
    """Write a folder of Ray Tune that has its results as JSON only."""
    for trial, seconds in TIMES.items():
        (folder / f"train_{trial}").mkdir(parents=True)
        rows = [
            {"training_iteration": at + 1, "time_this_iter_s": s, "config": {"x": 1}} for at, s in enumerate(seconds)
        ]
        (folder / f"train_{trial}/result.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _array(folder: Path) -> Path:
    """Write a table as pandas writes JSON: one array, in which a trial that has just begun has no times."""
    folder.mkdir()
    rows = [{"trial": t, "epoch": at + 1, "seconds": s} for t in TIMES for at, s in enumerate(TIMES[t])]
    (folder / "trials.json").write_text(json.dumps([{"trial": "d", "epoch": 0, "seconds": None}, *rows]))
    return folder / "trials.json"


def _history(folder: Path) -> Path:
    """Write the history of runs as Weights & Biases exports it: sparse, with the time since a run began."""
    folder.mkdir()
    rows = [f"{trial},0,0.0,0.1\n{trial},,3.5,0.1" for trial in TIMES]
    rows += [f"{t},{at + 1},{sum(s[: at + 1])}," for t, s in TIMES.items() for at in range(len(s))]
    (folder / "history.csv").write_text("\n".join(["run,epoch,_runtime,loss", *rows]))
    return folder / "history.csv"


@pytest.mark.parametrize("write", [_ray, _ray_resumed, _ray_lines, _array, _history])
def test_a_record_is_read_as_its_tool_writes_it(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Mean, deviation within and between trials are those of the times, each trial counting once."""
    found = read(write(tmp_path / "runs"), Recorded(path="runs"))
    assert (found.mean, found.std, found.spread) == pytest.approx((MEAN, STD, SPREAD))
    assert (found.trials, found.steps) == (3, 6)


def test_a_lone_trial_of_ray_may_have_gone_back(tmp_path: Path) -> None:
    """A folder of one trial is read as one of many: what the trial ran twice counts as it ran last."""
    assert read(_ray_resumed(tmp_path / "runs") / "train_b", Recorded(path="runs")).mean == pytest.approx(9.0)


def test_a_study_has_a_row_a_trial(tmp_path: Path) -> None:
    """Of a study of Optuna, durations over the iterations of a trial are times, of the rows that are asked for."""
    text = "number,value,duration,state\n0,0.5,0 days 00:01:00.5,COMPLETE\n1,0.4,0 days 00:02:00,COMPLETE\n2,,,FAIL\n"
    (tmp_path / "study.csv").write_text(text)
    given = Recorded(path="study.csv", iters=10, where={"state": "COMPLETE"})
    assert read(tmp_path / "study.csv", given).mean == pytest.approx((6.05 + 12.0) / 2)


def test_a_plan_with_a_record_is_that_with_its_figures(tmp_path: Path) -> None:
    """A record's times, brought to one accelerator, plan as the same figures written out do, and are told."""
    recorded = SPEC.replace("PATH", f"{_ray(tmp_path / 'runs')}, accelerators: 2")
    written = f"iteration: {{mean: {MEAN * 1500} ms, std: {STD * 1500} ms}}, trial_spread: {SPREAD:.4f}, speedup"
    line = next(line for line in recorded.splitlines() if line.startswith("profile"))
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1))
    reports = [
        plan(validate(TuningSpec, parse(text, "t.yaml")), run)
        for text in (recorded, recorded.replace(line, f"profile: {{{written}: {{1: 1, 2: 1.5}}}}"))
    ]
    assert reports[0].decision == reports[1].decision
    assert "6 steps of 3 trials: an iteration takes 6.00 s" in dict(reports[0].lines)["record"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trial,epoch,elapsed\na,1,2\na,1,3\n", r"t.csv:3:1: epoch: trial a comes twice to iteration 1"),
        ("trial,epoch,loss\na,1,2\n", r"profile\.recorded\.elapsed: no column of times .*there are trial, epoch, loss"),
        ("trial,epoch,elapsed\na,1,soon\n", r"t.csv:2:1: elapsed: 'soon' is not a number"),
        ("trial,epoch,elapsed\n", "no iteration of any trial"),
        ("trial,epoch,elapsed\na,1,0\n", "take no time"),
    ],
)
def test_a_record_that_cannot_be_meant_is_told_where(tmp_path: Path, text: str, told: str) -> None:
    """What is missing or double in a record is told with its place and the key that helps."""
    (tmp_path / "t.csv").write_text(text)
    spec = validate(TuningSpec, parse(SPEC.replace("PATH", str(tmp_path / "t.csv")), "t.yaml"))
    with pytest.raises(UnfoldError, match=told):
        resolved(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
