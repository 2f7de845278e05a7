"""Files that a run leaves for other kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_runs import SPEC, train_spec

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_the_winner_is_exported(tmp_path: Path) -> None:
    """A run leaves the best trial as a file: its parameters, its metric, and a checkpoint that exists."""
    report = train_spec(tmp_path)
    winner = json.loads((tmp_path / "run/winner.json").read_text())
    assert winner["value"] == report.metrics["best_metric"].value
    assert (winner["iterations"], winner["finished"], winner["schema"]) == (12, True, "unfoldkit.winner/1")
    assert (winner["metric"], set(winner["params"])) == ("metric", {"ceiling"})
    assert json.loads((tmp_path / "run" / winner["state"]).read_bytes()) == {"done": 12}


def test_the_winner_has_a_finite_metric(tmp_path: Path) -> None:
    """Trials with nan or inf as their metric are never exported as the winner."""
    report = train_spec(tmp_path, SPEC.replace("sleeper:train", "sleeper:diverging"))
    winner = json.loads((tmp_path / "run/winner.json").read_text())
    assert winner["value"] == report.metrics["best_metric"].value


def test_the_run_is_a_valid_placement_spec(tmp_path: Path) -> None:
    """The file that a run leaves for the kind placement is valid, with one job per trial's part."""
    train_spec(tmp_path)
    command = [sys.executable, "-m", "unfoldkit", "check", "run/placement.yaml"]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr + completed.stdout
    assert len(json.loads((tmp_path / "run/placement.yaml").read_text())["workload"]["tasks"]) == 6 + 2 + 1
