"""Profiles from the record of an earlier run, against figures computed from the times in the record."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning_runs import load_spec

from unfold_tuning.job import record_rows
from unfold_tuning.job.build import resolve_record
from unfold_tuning.job.trial_logs import TrialLogSource, TrialLogSummary, read_trial_log, summarize_trial_log
from unfold_tuning.verbs.plan import plan
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.io.tables import csv_rows

TIMES = {"a": [4.0, 2.0, 3.0], "b": [8.0, 10.0], "c": [6.0]}
"""Seconds of the iterations of three trials, as a search with early stopping leaves them."""
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


def summarize(path: Path, source: TrialLogSource) -> TrialLogSummary:
    """Read and summarize a record."""
    return summarize_trial_log(read_trial_log(path, source), path)


def test_a_pause_within_a_record_is_named(tmp_path: Path) -> None:
    """A night between two rows of a trial counts as pace, so the report names it; a slow first iteration is none."""
    path = tmp_path / "t.csv"
    rows = [
        f"{trial},{end},{100 + 30 * end + night * (end > 3)}"
        for trial, night in (("a", 0), ("b", 28800))
        for end in range(1, 6)
    ]
    path.write_text("\n".join(["trial,iteration,elapsed", *rows]))
    assert "; iteration 4 of trial b took 8.0 h, 961 times the median: a pause" in summarize(
        path, TrialLogSource(path="t.csv")
    ).describe(10)
    path.write_text("\n".join(["trial,iteration,elapsed", *rows[:5], "c,1,9000", "c,2,9030"]))
    assert "pause" not in summarize(path, TrialLogSource(path="t.csv")).describe(10)


def _write_ray(folder: Path) -> Path:
    """Write a folder as Ray Tune does: one folder per trial with its results."""
    for trial, seconds in TIMES.items():
        (folder / f"train_{trial}").mkdir(parents=True)
        rows = [f"{at + 1},{s},{sum(seconds[: at + 1])},{trial}" for at, s in enumerate(seconds)]
        head = "training_iteration,time_this_iter_s,time_total_s,trial_id"
        (folder / f"train_{trial}/progress.csv").write_text("\n".join([head, *rows]))
    return folder


def _write_resumed_ray(folder: Path) -> Path:
    """Write a Ray Tune folder in which one trial failed and returned to its first checkpoint."""
    _write_ray(folder)
    file = folder / "train_b/progress.csv"
    head, first, second = file.read_text().splitlines()
    file.write_text(f"{head}\n{first}\n2,70,78.0,b\n3,1,79.0,b\n{second}")
    return folder


def _write_ray_json(folder: Path) -> Path:
    """Write a Ray Tune folder with its results as JSON only."""
    for trial, seconds in TIMES.items():
        (folder / f"train_{trial}").mkdir(parents=True)
        rows = [
            {"training_iteration": at + 1, "time_this_iter_s": s, "config": {"x": 1}} for at, s in enumerate(seconds)
        ]
        (folder / f"train_{trial}/result.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _write_array(folder: Path) -> Path:
    """Write a table as pandas writes JSON: one array, in which a new trial has no times."""
    folder.mkdir()
    rows = [{"trial": t, "epoch": at + 1, "seconds": s} for t in TIMES for at, s in enumerate(TIMES[t])]
    (folder / "trials.json").write_text(json.dumps([{"trial": "d", "epoch": 0, "seconds": None}, *rows]))
    return folder / "trials.json"


def _write_history(folder: Path) -> Path:
    """Write a history as Weights & Biases exports it: sparse, with the time since a run began."""
    folder.mkdir()
    rows = [f"{trial},0,0.0,0.1\n{trial},,3.5,0.1" for trial in TIMES]
    rows += [f"{t},{at + 1},{sum(s[: at + 1])}," for t, s in TIMES.items() for at in range(len(s))]
    (folder / "history.csv").write_text("\n".join(["run,epoch,_runtime,loss", *rows]))
    return folder / "history.csv"


@pytest.mark.parametrize("write", [_write_ray, _write_resumed_ray, _write_ray_json, _write_array, _write_history])
def test_records_of_other_tools_are_read(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Mean and deviations within and between trials are those of the times; each trial counts once."""
    summary = summarize(write(tmp_path / "runs"), TrialLogSource(path="runs"))
    assert (summary.mean_s, summary.std_s, summary.trial_cv) == pytest.approx((MEAN, STD, SPREAD))
    assert (summary.trials, summary.steps) == (3, 6)


def test_repeated_iterations_of_a_resumed_trial_count_once(tmp_path: Path) -> None:
    """If a Ray Tune trial returned to a checkpoint, the last run of each iteration counts."""
    summary = summarize(_write_resumed_ray(tmp_path / "runs") / "train_b", TrialLogSource(path="runs"))
    assert summary.mean_s == pytest.approx(9.0)


STEPS = {"a": [20.0, 21.0, 19.0, 20.0], "b": [30.0, 31.0, 29.0, 30.0]}
"""Seconds of the iterations of two trials."""


def _write_rows(head: str, row: Callable[[str, int, float, float], str]) -> str:
    """Write a table: ``row`` takes trial, iteration, its seconds, and the seconds since the trial began."""
    lines = [row(t, n + 1, s[n], sum(s[: n + 1])) for t, s in STEPS.items() for n in range(len(s))]
    return "\n".join([head, *lines])


def _list_rows() -> list[tuple[str, int, float]]:
    return [(t, n + 1, sum(s[: n + 1])) for t, s in STEPS.items() for n in range(len(s))]


def _format_date(seconds: float) -> str:
    return (dt.datetime(2026, 3, 1, 10, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("text", "has_first"),
    [
        (_write_rows("Trial ID,Epoch,Elapsed (s)", lambda t, n, _, at: f"{t},{n},{at}"), True),
        (_write_rows("hp_id,epochs,train_time", lambda t, n, _, at: f"{t},{n},{at}"), True),
        (_write_rows("trial,epoch,Duration (min)", lambda t, n, _, at: f"{t},{n},{at / 60!r}"), True),
        # numbered from zero
        (_write_rows("run,epoch,runtime", lambda t, n, _, at: f"{t},{n - 1},{at}"), True),
        (_write_rows("run,epoch,seconds", lambda t, n, s, _: f"{t},{n - 1},{s}"), True),
        # TensorBoard, MLflow and dates: of a clock
        (_write_rows("run,Wall time,Step,Value", lambda t, n, _, at: f"{t},{1.7e9 + at},{n},0.1"), False),
        (_write_rows("run_uuid,timestamp,step", lambda t, n, _, at: f"{t},{1.7e12 + 1000 * at:.0f},{n}"), False),
        (_write_rows("trial,epoch,timestamp", lambda t, n, _, at: f"{t},{n},{_format_date(at)}"), False),
        (_write_rows("trial,epoch,timestamp", lambda t, n, _, at: f"{t},{n},{1.7e15 + 1e6 * at:.0f}"), False),
    ],
)  # fmt: skip
def test_names_and_clocks_of_other_tools_are_read(tmp_path: Path, text: str, has_first: bool) -> None:
    """Names may have units and spaces; a clock does not show how long the first iteration took."""
    (tmp_path / "t.csv").write_text(text)
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps
    skipped = 0 if has_first else 1
    for trial, seconds in STEPS.items():
        expected = [(float(n + 1), s) for n, s in enumerate(seconds)][skipped:]
        assert [end for end, _ in steps[trial]] == [end for end, _ in expected]
        assert [s for _, s in steps[trial]] == pytest.approx([s for _, s in expected], abs=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        # Lightning and Transformers: training and validation in rows of their own
        "trial,epoch,step,train_loss,val_loss,elapsed\n"
        + "".join(f"{t},{n},{n}99,.5,,{at - 1}\n{t},{n},{n}99,,.4,{at}\n" for t, n, at in _list_rows()),
        # Weights & Biases: several batches of an epoch
        "run,epoch,_step,loss,_runtime\n"
        + "".join(f"{t},{n},{10 * n + b},.5,{at - 9 + b}\n" for t, n, at in _list_rows() for b in (0, 4, 9)),
        # MLflow: a row per metric
        "run_id,key,value,timestamp,step\n"
        + "".join(f"{t},{key},.5,{1.7e12 + 1000 * at:.0f},{n}\n" for t, n, at in _list_rows() for key in ("a", "b")),
    ],
)
def test_the_last_row_of_an_iteration_counts(tmp_path: Path, text: str) -> None:
    """A logger writes several rows while an iteration runs: other metrics, or other batches."""
    (tmp_path / "t.csv").write_text(text)
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps
    assert {t: [s for _, s in items][-3:] for t, items in steps.items()} == {
        t: pytest.approx(seconds[1:]) for t, seconds in STEPS.items()
    }


def test_a_record_that_may_count_batches_is_noted(tmp_path: Path) -> None:
    """Its iterations seem quick, and a deadline easy to meet: the report says how far its trials ran."""
    (tmp_path / "t.csv").write_text("trial,step,elapsed\n" + "".join(f"a,{500 * n},{20 * n}\n" for n in range(1, 5)))
    spec = load_spec(SPEC.replace("PATH", str(tmp_path / "t.csv")))
    record = resolve_record(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))[1]
    assert record.endswith(
        "ran up to 2,000 iterations, those of the search run 3: an iteration may be something else here"
    )
    longer = load_spec(SPEC.replace("PATH", str(tmp_path / "t.csv")).replace("iters: 3}", "iters: 200}"))
    assert "something else" not in resolve_record(longer, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))[1]


def test_rows_that_do_not_differ_are_those_of_several_trials(tmp_path: Path) -> None:
    """Two seeds report the same epochs with the same columns filled: the column that names them is missing."""
    rows = [f"a,{seed},{n},{20 * n + seed}" for n in (1, 2, 3) for seed in (1, 2)]
    (tmp_path / "t.csv").write_text("\n".join(["trial,seed,epoch,elapsed", *rows]))
    with pytest.raises(UnfoldError, match="trial a reports iteration 1 twice"):
        read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv"))


def test_elapsed_times_may_begin_again(tmp_path: Path) -> None:
    """A resumed run counts from zero; a surrogate may fall a little, and its step then takes no time."""
    for times, expected in (([5, 10, 15, 5, 10], [5] * 5), ([5.0, 10.0, 9.9, 15.0], [5, 5, 0, 5])):
        rows = [f"a,{n},{at}" for n, at in enumerate(times, 1)]
        (tmp_path / "t.csv").write_text("\n".join(["trial,epoch,elapsed", *rows]))
        steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps["a"]
        assert [seconds for _, seconds in steps] == pytest.approx(expected)


@pytest.mark.parametrize(("axis", "metric"), [("Step", "_runtime"), ("Relative Time (Process)", "epoch")])
def test_exports_of_charts_have_a_column_for_each_run(tmp_path: Path, axis: str, metric: str) -> None:
    """A chart of Weights & Biases exports each line with its range; its x-axis may be the steps or the times."""
    lines = {trial: f"{trial} - seed 1 - {metric}" for trial in STEPS}
    head = [axis, *(name for line in lines.values() for name in (line, f"{line}__MIN", f"{line}__MAX"))]
    rows = []
    for trial, seconds in STEPS.items():
        for n in range(len(seconds)):
            step, elapsed = n + 1, sum(seconds[: n + 1])
            at, value = (step, elapsed) if axis == "Step" else (elapsed, step)
            rows.append([at, *(value if name == trial else "" for name in STEPS for _ in range(3))])
    (tmp_path / "t.csv").write_text("\n".join(",".join(map(str, row)) for row in [head, *rows]))
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps
    assert {trial: [s for _, s in items] for trial, items in steps.items()} == {
        f"{trial} - seed 1": pytest.approx(seconds) for trial, seconds in STEPS.items()
    }


def test_a_trial_that_went_back_to_a_checkpoint_repeats_iterations(tmp_path: Path) -> None:
    """The repetition counts, without the work that was lost; several trials under one name stay an error."""
    times = [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50), (4, 90), (5, 100), (6, 110)]
    (tmp_path / "t.csv").write_text("\n".join(["trial,epoch,elapsed", *(f"a,{n},{at}" for n, at in times)]))
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps["a"]
    assert steps == [(1, 10), (2, 10), (3, 10), (4, 40), (5, 10), (6, 10)]
    (tmp_path / "t.csv").write_text("\n".join(["trial,epoch,elapsed", *(f"a,{n},{at}" for n, at in times[:5] * 2)]))
    with pytest.raises(UnfoldError, match="reports iteration 1 twice"):
        read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv"))


def test_a_folder_has_a_folder_for_each_trial(tmp_path: Path) -> None:
    """Lightning writes ``version_0/metrics.csv``, in which rows of training and validation alternate."""
    for trial, seconds in STEPS.items():
        ends = np.cumsum(seconds)
        rows = [
            row for n, at in enumerate(ends) for row in (f"{n},{9 * n},0.3,,{at - 1}", f"{n},{9 * n + 8},,0.2,{at}")
        ]
        (tmp_path / trial).mkdir()
        (tmp_path / trial / "metrics.csv").write_text("\n".join(["epoch,step,train_loss,val_loss,elapsed", *rows]))
    steps = read_trial_log(tmp_path, TrialLogSource(path="lightning_logs")).steps
    assert sorted([s for _, s in items] for items in steps.values()) == sorted(STEPS.values())


def test_json_is_recognized_by_its_content(tmp_path: Path) -> None:
    """A name such as ``trials.log`` says nothing; a journal of Optuna has no time of an iteration."""
    path = tmp_path / "trials.log"
    path.write_text("\n".join(json.dumps({"trial": t, "epoch": n, "elapsed": at}) for t, n, at in _list_rows()))
    steps = read_trial_log(path, TrialLogSource(path="trials.log")).steps
    assert {trial: [s for _, s in items] for trial, items in steps.items()} == STEPS
    path.write_text('{"op_code": 0, "worker_id": "a", "study_name": "s", "directions": [1]}\n')
    with pytest.raises(UnfoldError, match=r"journal of Optuna .*trials_dataframe"):
        read_trial_log(path, TrialLogSource(path="trials.log"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(5, 20), (10, 22), (15, 20), (20, 18)], [20, 22, 20, 18]),
        ([(1, 20), (3, 19), (9, 21), (27, 20)], [20, 19, 21, 20]),
        ([(11, 20), (12, 19), (13, 21), (14, 20)], [20, 19, 21, 20]),
        ([(1, 20), (3, 44), (9, 114), (13, 84)], [20, 22, 19, 21]),
        ([(9, 180)], [20]),
    ],
)
def test_times_belong_to_one_iteration_unless_they_grow_with_the_rows(
    tmp_path: Path, rows: list[tuple[int, int]], expected: list[float]
) -> None:
    """A logger may write every fifth iteration, with the time of that one, or rungs with the time of all in between."""
    (tmp_path / "t.csv").write_text(
        "\n".join(["trial,epoch,seconds", *(f"{t},{n},{s}" for t in "ab" for n, s in rows)])
    )
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps["a"]
    assert [seconds for _, seconds in steps] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("trial,epoch,elapsed_min", ["0.5", "1", "1.5", "2"]),
        ("trial,epoch,elapsed_min,elapsed_max", ["30,99", "60,99", "90,99", "120,99"]),
        ("trial,epoch,timestamp", ["09:59:30", "10:00:00", "10:00:30", "10:01:00"]),
    ],
)
def test_minutes_and_times_of_a_day_are_no_seconds(tmp_path: Path, head: str, cells: list[str]) -> None:
    """Beside a maximum, ``min`` is a minimum; a time of the day does not count from the begin of a trial."""
    rows = [f"a,{n},{cell}" for n, cell in enumerate(cells, 1)]
    # rows may have any order
    (tmp_path / "t.csv").write_text("\n".join([head, *reversed(rows)]))
    name = head.split(",")[2]
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv", elapsed=(name,))).steps["a"]
    assert {seconds for _, seconds in steps} == {30.0}


@pytest.mark.parametrize(
    "cells",
    [["2026-05-01 10:00:30", "2026-05-01 10:01", "NA", "2026-05-01 10:02"], [1700000030, 1700000060, "", 1700000120]],
)
def test_a_clock_is_recognized_in_a_column_of_any_name(tmp_path: Path, cells: list[str | int]) -> None:
    """In ``time``, a date is no time of one iteration, however few rows a trial has; named as one, it is refused."""
    rows = "".join(f"{trial},{n},{cell}\n" for trial in "ab" for n, cell in enumerate(cells, 1))
    (tmp_path / "t.csv").write_text(f"trial,epoch,time\n{rows}")
    log = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv"))
    assert log.steps["a"] == [(2, 30.0), (4, 30.0)]
    with pytest.raises(UnfoldError, match=r"time: the time of a clock is not that of an iteration .*elapsed: time"):
        read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv", seconds=("time",)))


def test_a_few_rows_of_several_trials_show_times_since_the_begin(tmp_path: Path) -> None:
    """Three rows of one trial rise by chance, three of each of four hardly: they were read as a far slower pace."""
    rows = "".join(f"{trial},{n},{20 * n + trial}\n" for trial in range(4) for n in (1, 2, 3))
    (tmp_path / "t.csv").write_text(f"trial,epoch,time\n{rows}")
    with pytest.raises(UnfoldError, match="the column rises from row to row of each trial"):
        read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv"))


def test_epochs_count_where_batches_are_numbered_as_well(tmp_path: Path) -> None:
    """A table with both has iterations that are batches, and an iteration of a search is rarely one."""
    rows = "".join(f"a,{n},{5 * n},{20 * n}\n" for n in (1, 2, 3))
    (tmp_path / "t.csv").write_text(f"trial,epoch,iteration,elapsed\n{rows}")
    assert read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps["a"] == [(n, 20) for n in (1, 2, 3)]


def test_a_unit_of_the_spec_overrules_the_names_of_columns(tmp_path: Path) -> None:
    """CatBoost writes milliseconds in a column without a unit; durations from begin to end are not used then."""
    (tmp_path / "time_left.tsv").write_text("iter\tPassed\tRemaining\n0\t400\t9\n1\t900\t9\n2\t1400\t9\n")
    source = TrialLogSource(path="time_left.tsv", elapsed=("Passed",), unit="ms")
    assert dict(read_trial_log(tmp_path / "time_left.tsv", source).steps[""]) == pytest.approx({1: 0.4, 2: 0.5, 3: 0.5})
    (tmp_path / "t.csv").write_text("id,duration,start_time,end_time\na,2,1e9,2e9\nb,4,1e9,2e9\n")
    assert summarize(tmp_path / "t.csv", TrialLogSource(path="t.csv", unit="min")).mean_s == 180.0


def test_elapsed_times_that_fall_are_rejected_even_if_named(tmp_path: Path) -> None:
    """Iterations would take no time; a spec that names the wrong role is no better than a wrong guess."""
    (tmp_path / "t.csv").write_text("trial,epoch,t\na,1,20\na,2,21\na,3,19\na,4,20\n")
    with pytest.raises(UnfoldError, match=r"t: the column does not rise .*write profile\.recorded\.seconds: t if"):
        read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv", elapsed=("t",)))


@pytest.mark.parametrize("begin", [0, 200])
def test_a_record_may_begin_where_a_trial_was_resumed(tmp_path: Path, begin: int) -> None:
    """Its elapsed time counts from there, or from the begin of the trial: the first step shows which."""
    rows = [f"a,{n},{20 * (n - 10) + begin}" for n in range(11, 20)]
    (tmp_path / "t.csv").write_text("\n".join(["trial,epoch,elapsed", *rows]))
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv")).steps["a"]
    assert [seconds for _, seconds in steps] == pytest.approx([20] * 9)


def test_a_folder_of_tables_has_a_trial_in_each(tmp_path: Path) -> None:
    """TensorBoard saves one table for each run."""
    for trial, seconds in STEPS.items():
        rows = [f"{1.7e9 + sum(seconds[: n + 1])},{n + 1},0.1" for n in range(len(seconds))]
        (tmp_path / f"{trial}.csv").write_text("\n".join(["Wall time,Step,Value", *rows]))
    assert len(read_trial_log(tmp_path, TrialLogSource(path="runs")).steps) == 2


def test_curves_nested_in_json_are_read(tmp_path: Path) -> None:
    """LCBench has lists under a data set, a configuration and ``log``; its times count from the begin of a trial."""
    curves = {
        t: {"config": {"layers": 2}, "log": {"epoch": [1, 2, 3, 4], "time": list(np.cumsum(s)), "loss": [4, 3, 2, 1]}}
        for t, s in STEPS.items()
    }
    (tmp_path / "t.json").write_text(json.dumps({"adult": curves}))
    steps = read_trial_log(tmp_path / "t.json", TrialLogSource(path="t.json", elapsed=("time",))).steps
    assert {trial: [s for _, s in items] for trial, items in steps.items()} == {
        f"adult/{trial}/log": pytest.approx(seconds) for trial, seconds in STEPS.items()
    }
    with pytest.raises(UnfoldError, match=r"time: the column rises .*profile\.recorded\.elapsed: time"):
        read_trial_log(tmp_path / "t.json", TrialLogSource(path="t.json"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: {"trials": rows},
        lambda rows: {"schema": {"fields": ["trial"]}, "pandas_version": "1.4.0", "data": rows},
        lambda rows: {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]},
    ],
)
def test_rows_within_an_object_are_read(tmp_path: Path, wrap: Callable[[list[dict[str, object]]], object]) -> None:
    """REST answers wrap a list of rows; pandas writes a table by column unless it is asked not to."""
    rows: list[dict[str, object]] = [{"trial": t, "epoch": n, "elapsed": at} for t, n, at in _list_rows()]
    (tmp_path / "t.json").write_text(json.dumps(wrap(rows), indent=1))
    steps = read_trial_log(tmp_path / "t.json", TrialLogSource(path="t.json")).steps
    assert {trial: [s for _, s in items] for trial, items in steps.items()} == STEPS


@pytest.mark.parametrize(
    "text",
    [
        (
            "run_id,status,start_time,end_time\na,FINISHED,2026-01-01 10:00:00.5+00:00,2026-01-01 10:00:30.5+00:00\n"
            "b,RUNNING,2026-01-01 10:00,\nc,FINISHED,2026-01-01 23:59:00,2026-01-02 00:00:30\n"
        ),
        # without a name of the trials, and with the same configuration twice
        "config_id,starttime,endtime\n1,1.7e9,1700000030\n1,1.7e9,1700000090\n",
        "tid,book_time,refresh_time\n0,1.7e12,1.70000003e12\n1,1.7e12,1.70000009e12\n",
    ],
)
def test_trials_with_begin_and_end_are_read(tmp_path: Path, text: str) -> None:
    """Each row is a trial of its own if the times are its begin and its end."""
    (tmp_path / "t.csv").write_text(text)
    steps = read_trial_log(tmp_path / "t.csv", TrialLogSource(path="t.csv", iters=10)).steps
    assert sorted(seconds for items in steps.values() for _, seconds in items) == pytest.approx([3.0, 9.0])


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-Infinity"])
@pytest.mark.parametrize(("column", "times"), [("elapsed", [2, 4, 6, 8]), ("seconds", [2, 2, 2, 2])])
def test_times_that_are_not_finite_are_skipped_and_counted(
    tmp_path: Path, cell: str, column: str, times: list[float]
) -> None:
    """A row without a finite time changes no other step, whether the column counts from the begin or not."""
    rows = [f"a,{n},{cell if n == 3 else seconds}" for n, seconds in enumerate(times, 1)]
    (tmp_path / "t.csv").write_text("\n".join([f"trial,epoch,{column}", *rows, f"a,{cell},9"]))
    summary = summarize(tmp_path / "t.csv", TrialLogSource(path="t.csv"))
    assert (summary.mean_s, summary.std_s, summary.steps) == (2.0, 0.0, 3)
    assert summary.describe(10).endswith("2 rows without a finite time skipped, the first in t.csv, line 4")


def test_an_optuna_study_has_one_row_per_trial(tmp_path: Path) -> None:
    """Durations divided by the iterations of a trial are its times; ``where`` selects the rows."""
    text = "number,value,duration,state\n0,0.5,0 days 00:01:00.5,COMPLETE\n1,0.4,0 days 00:02:00,COMPLETE\n2,,,FAIL\n"
    (tmp_path / "study.csv").write_text(text)
    source = TrialLogSource(path="study.csv", iters=10, where={"state": "COMPLETE"})
    assert summarize(tmp_path / "study.csv", source).mean_s == pytest.approx((6.05 + 12.0) / 2)


def test_durations_without_a_unit_are_those_from_begin_to_end(tmp_path: Path) -> None:
    """As JSON, pandas writes durations of Optuna in milliseconds, as it does the begin and the end of trials."""
    rows = [
        {"number": n, "datetime_start": 1796118457119, "datetime_complete": 1796118457119 + ms, "duration": ms}
        for n, ms in enumerate((60_500, 120_000))
    ]
    (tmp_path / "study.json").write_text(json.dumps(rows))
    source = TrialLogSource(path="study.json", iters=10)
    assert summarize(tmp_path / "study.json", source).mean_s == pytest.approx((6.05 + 12.0) / 2)


def test_a_record_of_whole_trials_plans_like_its_written_figures(tmp_path: Path) -> None:
    """A row per trial, scaled to one accelerator, gives the plan of the same figures in the spec, and is reported."""
    (tmp_path / "study.csv").write_text("number,duration\n0,30\n1,90\n2,60\n")
    recorded = SPEC.replace("PATH", f"{tmp_path / 'study.csv'}, accelerators: 2, iters: 10")
    written = f"iteration: {{mean: {6000 * 1.5} ms}}, trial_spread: {SPREAD:.4f}, speedup"
    line = next(line for line in recorded.splitlines() if line.startswith("profile"))
    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1))
    reports = [
        plan(load_spec(text), run)
        for text in (recorded, recorded.replace(line, f"profile: {{{written}: {{1: 1, 2: 1.5}}}}"))
    ]
    assert reports[0].decision == reports[1].decision
    assert "3 steps of 3 trials: an iteration takes 6.00 s" in dict(reports[0].lines)["record"]


def test_a_record_with_a_row_per_iteration_shows_changes_of_pace(tmp_path: Path) -> None:
    """The report states that the paces come from the recorded trials."""
    spec = load_spec(SPEC.replace("PATH", f"{_write_ray(tmp_path / 'runs')}, accelerators: 2"))
    report = plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert dict(report.lines)["paces"].startswith("changes from iteration to iteration of 3 recorded trials")


def test_a_record_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large records take a while: mean times and paces come from the same reading."""
    calls: list[Path] = []

    def count_rows(path: Path, *arguments: Any, **options: Any) -> Any:
        calls.append(path)
        return csv_rows(path, *arguments, **options)

    monkeypatch.setattr(record_rows, "csv_rows", count_rows)
    _write_ray(tmp_path / "runs")
    spec = load_spec(SPEC.replace("PATH", f"{tmp_path / 'runs'}, accelerators: 2"))
    plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert len(calls) == len(set(calls)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial,epoch,elapsed\na,1,2\na,1,3\n", r"t.csv:3:1: epoch: trial a reports iteration 1 twice"),
        ("trial,epoch,loss\na,1,2\n", r"profile\.recorded\.elapsed: no column of times .*there are trial, epoch, loss"),
        ("trial,epoch,elapsed\na,1,soon\n", r"t.csv:2:1: elapsed: 'soon' is not a number"),
        ("trial,epoch,elapsed\na,1,01/05/2026 10:00\n", "'01/05/2026 10:00' is not a time .write 2026"),
        ("run,epoch,datetime\na,1,2026-11-01 01:50\na,2,2026-11-01 01:05\n", "3:1: datetime: the time goes back by 45"),
        ("run,epoch,elapsed\na,1,23:50:00\na,2,00:05:00\n", "elapsed: the time goes back by 23.8 h"),
        (
            "job,epoch,timestamp\na,1,1.7e9\na,2,1.7000002e9\nb,3,1.7e9\n",
            "the time goes back .*; profile.recorded.trial names",
        ),
        (
            "trial,epoch,train_time\na,1,20\na,2,21\na,3,19\na,4,20\n",
            "train_time: the column does not rise .*seconds: train_time if",
        ),
        ("trial,epoch,runtime\na,1,20\na,2,20\na,3,20\na,4,20\n", "runtime: the column does not rise"),
        (
            "number,duration,state\n0,90,COMPLETE\n1,9,PRUNED\n",
            r"3:1: state: a trial that is PRUNED .*profile\.recorded\.where: {state: COMPLETE}",
        ),
        ("Name,State,Runtime\na,crashed,9\nb,finished,90\n", "2:1: State: a trial that is crashed"),
        ("trial,epoch,elapsed\n", "no iteration of any trial"),
        ("trial,epoch,elapsed\na,1,0\n", "take no time"),
    ],
)
def test_invalid_records_are_errors_with_location_and_key(tmp_path: Path, text: str, message: str) -> None:
    """Missing or repeated data in a record is an error with its location and the key that helps."""
    (tmp_path / "t.csv").write_text(text)
    spec = load_spec(SPEC.replace("PATH", str(tmp_path / "t.csv")))
    with pytest.raises(UnfoldError, match=message):
        resolve_record(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))


@pytest.mark.parametrize(
    ("text", "iters", "first"),
    [
        # clocks of Europe skip an hour, those of the United States repeat one
        ("run,epoch,datetime\na,1,2026-03-29 01:30\na,2,2026-03-29 04:30\n", 1, 3),
        ("run_id,start_time,end_time\na,2026-10-31 20:00,2026-10-31 23:00\nb,2026-10-31,2026-11-01 09:00\n", 2, 3),
        ("run,epoch,datetime\na,1,2026-03-29 01:30+01:00\na,2,2026-03-29 04:30+02:00\n", 1, None),
        ("run,epoch,datetime\na,1,2026-03-29 04:30\na,2,2026-03-29 07:30\n", 1, None),
        ("run,epoch,datetime\na,1,2026-03-29 01:30\na,2,2026-03-29 01:50\n", 1, None),
        ("run,epoch,datetime\na,1,2026-05-03 01:30\na,2,2026-05-03 04:30\n", 1, None),
    ],
)
def test_dates_through_a_change_of_clocks_are_noted(tmp_path: Path, text: str, iters: int, first: int | None) -> None:
    """Dates without an offset may hide or add an hour where clocks change, so the report names the first of them."""
    path = tmp_path / "t.csv"
    path.write_text(text)
    line = summarize(path, TrialLogSource(path="t.csv", iters=iters)).describe(10)
    assert ("1 time may be an hour off" in line) == (first is not None)
    if first is not None:
        assert f"the first in t.csv, line {first}" in line


def test_a_trial_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    """A trial of half an hour through the hour that a clock repeats would take no time."""
    path = tmp_path / "t.csv"
    path.write_text("run_id,start_time,end_time\na,2026-11-01 01:45,2026-11-01 01:15\n")
    with pytest.raises(UnfoldError, match=r"end_time: the time goes back by 30\.0 min .*offset"):
        summarize(path, TrialLogSource(path="t.csv", iters=2))
