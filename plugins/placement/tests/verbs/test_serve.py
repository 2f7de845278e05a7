"""The verb ``serve``: a controller behind a page, ended by SIGTERM; here on nodes of the spec, in this process."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.served import serving

SPEC = """version: 1
kind: placement
name: queue
cluster: {nodes: [{count: 2, gpu: 2}]}
workload: {tasks: [{job: a, count: 4, gpu: 1, run: 1 h}, {job: b, count: 2, gpu: 1, run: 1 h}]}
policy: {gang: {by: job}}
"""
WAIT = 60.0


def asked(place: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the status as soon as something holds."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{place}/status", timeout=WAIT) as answer:
            found: dict[str, Any] = json.load(answer)
        if holds(found):
            return found
    raise AssertionError("it never came")


@pytest.mark.e2e
def test_the_status_explains_waiting_tasks(tmp_path: Path) -> None:
    """What runs where, which task waits for which name, and since when; SIGTERM ends it cleanly."""
    (tmp_path / "spec.yaml").write_text(SPEC, "utf-8")
    with serving(tmp_path, "spec.yaml") as (process, place):
        found = asked(place, lambda body: len(body["runs"]) == 4 and body["waiting"] == 2)
        assert found["leads"]
        assert found["nodes"] == ["node-0", "node-1"]
        assert {item["task"] for item in found["waits"]} == {"b-0", "b-1"}
        assert found["waits"][0]["lacks"].startswith("1 gpu")
        assert {item["name"] for item in found["names"]} == {"gang-a-"}
        with urllib.request.urlopen(f"{place}/events", timeout=WAIT) as events:
            assert b"waiting tasks" in events.readline() + events.readline()
        process.terminate()
        assert process.wait(WAIT) == 0
