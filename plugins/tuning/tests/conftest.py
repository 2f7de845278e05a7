"""Fixtures of the tuning tests; tests import ``tuning_jobs``, ``tuning_runs`` and ``sleeper`` by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# on sys.path, so that spawned workers find the trainables too
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def sleeper_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set and return the file in which the trainables of ``sleeper`` record their iterations."""
    log = tmp_path / "log"
    monkeypatch.setenv("SLEEPER_LOG", str(log))
    return log


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start worker processes or servers."""
    for item in items:
        if {"sleeper_log", "endpoint"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.e2e)
