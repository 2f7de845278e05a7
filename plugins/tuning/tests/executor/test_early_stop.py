"""Metrics to be minimized, and rules that end trials or the search early."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tuning_runs import SPEC, train_spec

from unfoldkit.api import Report, Verdict

LOSS = SPEC.replace("sleeper:train", "sleeper:losing").replace("space:", "metric: loss, mode: min, space:")


def read_winner(folder: Path) -> dict[str, object]:
    """Read the winner of a run."""
    winner: dict[str, object] = json.loads((folder / "run/winner.json").read_text())
    return winner


def count_iterations(log: Path) -> list[int]:
    """Count the iterations of each trial, fewest first."""
    return sorted(Counter(line.split()[0] for line in log.read_text().splitlines()).values())


def get_line(report: Report, name: str) -> str:
    """Return a line of a report by its name."""
    return dict(report.lines).get(name, "")


def test_the_smallest_loss_wins(tmp_path: Path, sleeper_log: Path) -> None:
    """With mode min, the trials with the smallest metric continue, and reports show the metric as it is."""
    report = train_spec(tmp_path, LOSS)
    ran = Counter(line.split()[0] for line in sleeper_log.read_text().splitlines())
    winner = read_winner(tmp_path)
    furthest = max(ran, key=lambda name: ran[name])
    assert furthest == max(ran, key=float)
    assert ran[furthest] == 12
    assert winner["mode"] == "min"
    assert 0 < float(str(winner["value"])) == report.metrics["best_loss"].value
    assert get_line(report, "mode") == "the smallest loss wins"


def test_patience_only_shortens(tmp_path: Path, sleeper_log: Path) -> None:
    """Trials that no longer become better end and keep their rank; as many as planned are ranked, none runs longer."""
    text = SPEC.replace("space:", "early_stop: {patience: 2, min_delta: 0.05}, space:")
    report = train_spec(tmp_path, text)
    assert report.verdict == Verdict.YES
    ran = count_iterations(sleeper_log)
    assert len(ran) == 6
    assert max(ran) < 12
    assert "without a better metric" in get_line(report, "early stop")
    winner = read_winner(tmp_path)
    best = max(line.split()[0] for line in sleeper_log.read_text().splitlines())
    assert f"{winner['params']['ceiling']:.9f}" == best  # type: ignore[index]
    assert (tmp_path / "run" / str(winner["state"])).exists()


def test_a_trial_that_has_ended_early_runs_no_further(tmp_path: Path, sleeper_log: Path) -> None:
    """Its process stops at its next checkpoint, and the next trial begins there, long before the end of the stage."""
    text = SPEC.replace("space:", "early_stop: {patience: 2, min_delta: 0.05}, space:").replace("limit: 3", "limit: 1")
    search = "{algorithm: custom, stages: [{trials: 3, iters: 400}]}"
    text = text.replace("{algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}", search)
    report = train_spec(tmp_path, text.replace("deadline: 30 s", "deadline: 5 min"))
    assert report.verdict == Verdict.YES
    ran = count_iterations(sleeper_log)
    assert len(ran) == 3
    assert max(ran) < 20


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_target_ends_the_search(tmp_path: Path, sleeper_log: Path, mode: str) -> None:
    """The first trial with a good enough metric ends the search, and the same command reports it again."""
    text = (LOSS if mode == "min" else SPEC).replace(
        "space:", f"early_stop: {{target: {0.99 if mode == 'min' else 0.01}}}, space:"
    )
    report = train_spec(tmp_path, text)
    assert report.verdict == Verdict.YES
    lines = sleeper_log.read_text()
    assert len(lines.splitlines()) < 12
    assert "ends the search" in get_line(report, "target")
    again = train_spec(tmp_path, text)
    assert sleeper_log.read_text() == lines
    assert again.metrics["wall_s"].value == report.metrics["wall_s"].value


def test_a_loss_of_zero_reaches_a_target(tmp_path: Path, sleeper_log: Path) -> None:
    """A metric of exactly zero is a metric like any other, and no report shows it as negative."""
    text = LOSS.replace("sleeper:losing", "sleeper:solving").replace("space:", "early_stop: {target: 0.01}, space:")
    report = train_spec(tmp_path, text)
    assert len(sleeper_log.read_text().splitlines()) < 12
    assert "reaches loss 0.0" in report.headline
