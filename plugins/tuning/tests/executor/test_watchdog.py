"""Trials that hang: reported, killed and dropped, while the run continues without them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tuning_runs import SPEC, profile_spec, train_spec

from unfold_tuning.executor.monitor import MIN_SILENCE_S, Watchdog
from unfoldkit.api import Verdict

pytestmark = pytest.mark.usefixtures("sleeper_log")


def _hanging_spec(seconds: float) -> str:
    return SPEC.replace('"sleeper:train"', f'"sleeper:hanging", timeout: {seconds} s').replace("30 s", "5 min")


@pytest.mark.e2e
def test_a_hanging_trial_is_reported_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial without a checkpoint is reported, killed thrice at the timeout and dropped; the run succeeds."""
    monkeypatch.setattr("unfold_tuning.executor.monitor.MIN_SILENCE_S", 0.6)
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        report = train_spec(tmp_path, _hanging_spec(2.5))
    assert report.verdict is Verdict.YES
    assert dict(report.lines)["failed trials"] == "1 trial (6) failed; the last error: no checkpoint in 2.50 s"
    assert "trial 6 has reached no checkpoint for" in caplog.text
    assert "trainable.timeout ends such trials" in caplog.text


def test_a_timeout_may_be_added_to_a_run(tmp_path: Path) -> None:
    """A run continues with a timeout that it was begun without."""
    first = train_spec(tmp_path)
    second = train_spec(tmp_path, SPEC.replace('"sleeper:train"', '"sleeper:train", timeout: 9 s'))
    assert second.metrics["wall_s"] == first.metrics["wall_s"]


@pytest.mark.e2e
def test_a_hanging_trial_is_replaced_in_a_profile(tmp_path: Path) -> None:
    """During a profile, a trial without a checkpoint within the timeout is killed, and another replaces it."""
    report = profile_spec(tmp_path, _hanging_spec(2.5).split("profile:")[0].replace("[0, 1]", "[0.8, 1]"))
    assert "no checkpoint in 2.50 s" in dict(report.lines)["failed configurations"]
    assert report.metrics["steps"].value == 8 * 12


def test_silence_is_suspicious_once_per_checkpoint() -> None:
    """A trial silent for ten times its expected time and a minute is suspicious once; a checkpoint resets it."""
    now = [0.0]
    watchdog = Watchdog(lambda: now[0])
    watchdog.record_progress(1)
    for seconds, expected in ((MIN_SILENCE_S - 1, False), (MIN_SILENCE_S + 1, True), (MIN_SILENCE_S + 2, False)):
        now[0] = seconds
        assert watchdog.is_newly_suspicious(1, 1.0) is expected
    watchdog.record_progress(1)
    now[0] += 5 * MIN_SILENCE_S
    assert not watchdog.is_newly_suspicious(1, MIN_SILENCE_S)
    assert watchdog.is_newly_suspicious(1, MIN_SILENCE_S / 4)
    assert not watchdog.is_newly_suspicious(2, 1.0)
