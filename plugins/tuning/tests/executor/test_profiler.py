"""Measured profiles."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tuning_runs import SPEC, profile_spec

from unfoldkit.api import UnfoldError, Verdict

pytestmark = pytest.mark.usefixtures("sleeper_log")


def test_a_measured_profile_is_near_the_truth(tmp_path: Path) -> None:
    """The profiler measures the 50 ms that an iteration sleeps, and stores a profile that plan can read."""
    report = profile_spec(tmp_path, SPEC)
    assert 0.05 <= (report.metrics["iteration_s"].value or 0) < 0.2
    assert 0 < (report.metrics["checkpoint_s"].value or 0) < 0.1
    assert json.loads((tmp_path / "profile.json").read_text())["speedup"] == {"1": 1.0}


def test_a_profile_costs_what_it_rents(tmp_path: Path) -> None:
    """Node and head count while the profile runs; this machine does not have the price of an instance of AWS."""
    text = SPEC.replace("limit: 3", "head: $3.6/h, limit: 3")
    began = time.monotonic()
    report = profile_spec(tmp_path / "local", text)
    assert 0 < (report.metrics["spent_usd"].value or 0) < 2 * 3.6 / 3600 * (time.monotonic() - began) + 1e-6
    report = profile_spec(tmp_path / "aws", text.replace("provider: local", "provider: aws"))
    assert report.metrics["spent_usd"].value == 0


def test_spare_configurations_replace_failed_ones(tmp_path: Path) -> None:
    """Configurations that fail are reported and others replace them, so that eight trials are measured."""
    text = SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0.3, 1]")
    report = profile_spec(tmp_path, text)
    assert report.verdict is Verdict.YES
    assert "too low" in dict(report.lines)["failed configurations"]
    assert (tmp_path / "profile.json").exists()
    assert report.metrics["steps"].value == 8 * 12


def test_a_profile_without_any_trial_is_an_error(tmp_path: Path) -> None:
    """If every configuration fails, the profile ends with the last error."""
    text = SPEC.replace("sleeper:train", "sleeper:broken").replace("[0, 1]", "[0, 0.4]")
    with pytest.raises(UnfoldError, match=r"failed for all of 16 configurations; the last error: .*too low"):
        profile_spec(tmp_path, text)


def test_the_speed_up_across_nodes_is_measured_on_several(tmp_path: Path) -> None:
    """With ``span: 2`` the profile also measures trials of two nodes, apart from the speed-up within one."""
    text = SPEC.replace('"sleeper:train"', '"sleeper:train", span: 2').split("profile:")[0]
    report = profile_spec(tmp_path, text)
    stored = json.loads((tmp_path / "profile.json").read_text())
    assert stored["speedup"] == {"1": 1.0}
    # every rank sleeps half as long
    assert 1.2 < stored["across"]["2"] < 2.5
    assert [row[0] for row in report.tables[0].rows] == [1, 2]
