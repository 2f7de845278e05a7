"""Metrics of several processes as one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from unfoldkit.serving.observability.multiprocess import PeerProcesses, take_snapshot


def counted(rows: float, waiting: float) -> CollectorRegistry:
    """Return what a process counts: rows, which only grow, and how many wait."""
    registry = CollectorRegistry()
    Counter("rows", "Rows.", registry=registry).inc(rows)
    Gauge("waiting", "Waiting.", registry=registry).set(waiting)
    return registry


@pytest.mark.parametrize(("error", "waiting"), [(None, 7.0), (ProcessLookupError, 3.0), (PermissionError, 3.0)])
def test_of_a_process_that_is_gone_only_what_grows_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None, waiting: float
) -> None:
    """Rows of a dead process stay in the sum, what waits there does not; its number may be somebody else's by now."""
    other = os.getpid() + 1
    (tmp_path / f"{other}.json").write_text(json.dumps(take_snapshot(counted(5, 4))), encoding="utf-8")

    def kill(process: int, number: int) -> None:
        assert (process, number) == (other, 0)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    text = PeerProcesses(tmp_path).text(counted(2, 3)).decode()
    assert "rows_total 7.0" in text
    assert f"waiting {waiting}" in text
