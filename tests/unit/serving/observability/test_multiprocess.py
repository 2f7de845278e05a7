"""Metrics of several processes as one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from unfoldkit.serving.observability.dashboard import request_dashboard
from unfoldkit.serving.observability.metrics import create_metrics, model_metrics
from unfoldkit.serving.observability.multiprocess import MetricsSource, PeerProcesses, take_snapshot


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
    text = MetricsSource(counted(2, 3), PeerProcesses(tmp_path)).text().decode()
    assert "rows_total 7.0" in text
    assert f"waiting {waiting}" in text


def test_the_live_page_adds_up_processes(tmp_path: Path) -> None:
    """Requests, response times and waiting rows of a living peer are part of the page, with its own names."""
    registries = []
    for code, seconds, waiting in ((200, 0.003, 2.0), (503, 0.3, 5.0)):
        metrics = create_metrics()
        model = model_metrics(metrics, "m")
        model.requests.count(code, seconds)
        model.queue.set(waiting)
        registries.append(metrics.registry)
    # the parent of this process lives
    (tmp_path / f"{os.getppid()}.json").write_text(json.dumps(take_snapshot(registries[1])), encoding="utf-8")
    board = request_dashboard("a", "toy", MetricsSource(registries[0], PeerProcesses(tmp_path)).read)()
    assert [tile.value for tile in board.tiles] == ["2", "1", "0"]
    assert board.lines[0].values == {"200": 1.0, "429": 0.0, "503": 1.0}
    assert board.lines[1].values == {"m": 7.0}
    times = board.spreads[0]
    assert [bound for bound, count in zip(times.bounds, times.counts, strict=False) if count] == [0.005, 0.5]
