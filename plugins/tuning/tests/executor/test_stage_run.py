"""Trials of a stage: retried, dropped and replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tuning_runs import SPEC, load_spec, read_nodes, train_spec

from unfold_tuning.cluster.local import LocalCluster
from unfold_tuning.verbs.train import train
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_a_failing_trial_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A configuration that fails three times is dropped, each time with its reason in the log; the others continue."""
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:broken"))
    lines = [line for line in caplog.messages if line.startswith("trial ")]
    assert [line.split()[2] for line in lines] == ["continues", "continues", "failed"] * (len(lines) // 3)
    assert {line.split(": ", 1)[1] for line in lines} == {"RuntimeError: too low"}
    assert report.verdict is Verdict.YES
    assert (report.metrics["best_metric"].value or 0) > 0.5


def test_the_next_best_trial_replaces_a_dropped_one(tmp_path: Path) -> None:
    """If a survivor fails for good, the best trial that did not survive runs in its place, to the end."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:failing").replace("30 s", "5 min"))
    assert dict(report.lines)["failed trials"] == "1 trial (6) failed; the last error: RuntimeError: too late"
    assert ", 12 iterations: " in dict(report.lines)["winner"]
    ceilings = sorted({float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()})
    assert report.metrics["best_metric"].value == pytest.approx(ceilings[-2] * (1 - 0.5**12))


@pytest.mark.e2e
def test_only_the_trial_that_ends_its_process_is_dropped(tmp_path: Path) -> None:
    """A trial that takes its node down three times is dropped; the trials on the same node are not."""
    text = SPEC.replace("sleeper:train", "sleeper:deadly").replace("accelerators: 1", "accelerators: 2")
    report = train_spec(tmp_path, text.replace("limit: 3", "limit: 1"))
    failed = dict(report.lines)["failed trials"]
    assert failed.startswith("1 trial (")
    assert failed.endswith("its process was ended by SIGKILL (out of memory?)")
    assert report.metrics["lost_nodes"].value == 3


def test_a_full_disk_stops_the_run_without_dropping_trials(tmp_path: Path) -> None:
    """If checkpoints cannot be written the run ends with an error, and the same command continues all trials."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/trials").write_text("in place of the folder of checkpoints")
    with pytest.raises(UnfoldError, match="free some space"):
        train_spec(tmp_path)
    (tmp_path / "run/trials").unlink()
    report = train_spec(tmp_path)
    assert report.verdict is Verdict.YES
    assert "failed trials" not in dict(report.lines)


def test_a_run_in_which_all_trials_failed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every trial was dropped, their function was wrong: the same command runs all of them again."""
    monkeypatch.setenv("SLEEPER_WRONG", "1")
    text = SPEC.replace("sleeper:train", "sleeper:mended")
    with pytest.raises(UnfoldError, match=r"every trial failed.*run the same command again"):
        train_spec(tmp_path, text)
    monkeypatch.delenv("SLEEPER_WRONG")
    report = train_spec(tmp_path, text)
    assert report.verdict is Verdict.YES
    assert "failed trials" not in dict(report.lines)


def test_the_stage_is_shown_while_its_instances_are_rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renting may take minutes, in which the line would be that of the planning."""
    shown, rented = list[str](), list[str]()
    resize = LocalCluster.resize

    def observe(cluster: LocalCluster, instances: int, watch: Callable[[], None]) -> None:
        rented.append(shown[-1])
        resize(cluster, instances, watch)

    monkeypatch.setattr(LocalCluster, "resize", observe)
    run = Run(RunDir(tmp_path / "run"), LocalEngine(2), allow_code=True, progress=lambda text, *_: shown.append(text))
    train(load_spec(SPEC), run)
    assert rented[0].startswith("stage 1 of 3")


def test_a_trial_keeps_only_its_last_checkpoint(tmp_path: Path) -> None:
    """After a run there is one checkpoint per trial, that of its last iterations."""
    train_spec(tmp_path)
    paths = sorted(path.relative_to(tmp_path / "run/trials") for path in (tmp_path / "run/trials").rglob("*.state"))
    assert len({path.parent for path in paths}) == len(paths) == 6
    assert {path.stem for path in paths} == {"2", "6", "12"}


def test_a_trial_without_its_checkpoint_restarts(tmp_path: Path) -> None:
    """A removed checkpoint costs its iterations, not the trial: the best configuration still wins."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:forgetful"))
    ceilings = [float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert "failed trials" not in dict(report.lines)
    assert report.metrics["best_metric"].value == pytest.approx(max(ceilings) * (1 - 0.5**12))


def test_a_metric_that_is_not_finite_ranks_last(tmp_path: Path) -> None:
    """Trials with nan or inf as their metric are reported and never win, and the job runs to its end."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:diverging"))
    assert report.verdict is Verdict.YES
    assert 0.5 < (report.metrics["best_metric"].value or 0) < 1
    assert "returned nan or inf" in dict(report.lines)["diverged"]
    figure = next(item for item in report.figures if item.name == "learning")
    assert all(np.isfinite(value) for series in figure.series for value in series.y)


def test_nothing_wins_without_a_finite_metric(tmp_path: Path) -> None:
    """If every metric is nan, the run ends and reports that no trial completed."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:diverging").replace("[0, 1]", "[0, 0.4]"))
    assert report.verdict is Verdict.NO
    assert "no trial" in report.headline


def test_workers_that_cannot_start_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that ends its worker at import ends the run after three attempts, and every lifetime is closed."""
    (tmp_path / "ending.py").write_text("import os\n\nos._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnfoldError, match="3 times before it was ready"):
        train_spec(tmp_path, SPEC.replace("sleeper:train", "ending:train"))
    assert read_nodes(tmp_path)
    assert all(node[4] is not None for node in read_nodes(tmp_path))
