"""Trials that hang: told, ended and left out, and the run goes on without them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_train import SPEC, trained

from unfold_tuning.executor.watchdog import LEAST, Quiet
from unfoldkit.api import UnfoldError, Verdict


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPER_LOG", str(tmp_path / "log"))


def _hanging(seconds: float) -> str:
    return SPEC.replace('"sleeper:train"', f'"sleeper:hanging", timeout: {seconds} s').replace("30 s", "5 min")


def test_a_trial_that_hangs_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial that comes to no checkpoint is told, ended thrice at the timeout and left out; the run ends well."""
    monkeypatch.setattr("unfold_tuning.executor.watchdog.LEAST", 0.6)
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        report = trained(tmp_path, _hanging(2.5))
    assert report.verdict is Verdict.YES
    assert dict(report.lines)["left out"] == "1 trial (6) failed; the last said: no checkpoint in 2.50 s"
    assert "trial 6 has come to no checkpoint for" in caplog.text
    assert "trainable.timeout ends such trials" in caplog.text


def test_a_run_that_hung_goes_on_with_a_timeout(tmp_path: Path) -> None:
    """A timeout may be given to a run that was begun without one, or with another."""
    first = trained(tmp_path)
    again = trained(tmp_path, SPEC.replace('"sleeper:train"', '"sleeper:train", timeout: 9 s'))
    assert again.metrics["wall_s"] == first.metrics["wall_s"]


def test_a_profile_of_a_trial_that_hangs_ends_with_a_mistake(tmp_path: Path) -> None:
    """While a profile is measured, a trial without a checkpoint within the timeout is told as such."""
    text = _hanging(1.0).replace("uniform: [0, 1]", "uniform: [0.95, 1]")
    measured = "\n".join(line for line in text.splitlines() if not line.startswith("profile:"))
    with pytest.raises(UnfoldError, match=r"trainable\.timeout: a trial came to no checkpoint in 1.00 s"):
        trained(tmp_path, measured)


def test_quiet_is_told_once_until_the_next_checkpoint() -> None:
    """A trial that is quiet ten times as long as expected, and a minute, is told once; a checkpoint begins anew."""
    now = [0.0]
    quiet = Quiet(lambda: now[0])
    quiet.heard(1)
    for seconds, strange in ((LEAST - 1, False), (LEAST + 1, True), (LEAST + 2, False)):
        now[0] = seconds
        assert quiet.strange(1, 1.0) is strange
    quiet.heard(1)
    now[0] += 5 * LEAST
    assert not quiet.strange(1, LEAST)
    assert quiet.strange(1, LEAST / 4)
    assert not quiet.strange(2, 1.0)


def test_the_next_best_takes_the_place_of_a_trial_that_is_left_out(tmp_path: Path) -> None:
    """Where a trial that went on fails for good, the best that did not go on runs in its place, to the end."""
    report = trained(tmp_path, SPEC.replace("sleeper:train", "sleeper:failing").replace("30 s", "5 min"))
    assert dict(report.lines)["left out"] == "1 trial (6) failed; the last said: RuntimeError: too late"
    assert ", 12 iterations: " in dict(report.lines)["winner"]
    ceilings = sorted({float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()})
    assert report.metrics["best_metric"].value == pytest.approx(ceilings[-2] * (1 - 0.5**12))
