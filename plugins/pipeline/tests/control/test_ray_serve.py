"""The tuner in charge of a Ray Serve application that this project did not write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.served import serving, unfold

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.usefixtures("ray_with_token")]
PATIENCE_S = 240
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore",
    "RAY_worker_niceness": "0",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
}
SPEC = """
version: 1
kind: pipeline
name: shop
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 4/s, duration: 1 min}
hardware: {core: {price: $0.05/h}}
stages:
  detect: {latency: {core: {1: 50 ms}}}
  face: {after: {detect: 100%}, latency: {core: {1: 50 ms}}}
tuner: {policy: table, activation: 2 s, hold: 10 s, most: 6}
control:
  every: 1 s
  add: 1
  ray: {address: "ADDRESS", application: shop}
  stages: {detect: {workload: Detect}, face: {workload: Face, max: 3}}
"""


@pytest.fixture
def ray_with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients of a cluster send its token, which Ray requires by default."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


@contextmanager
def shop(*words: str) -> Iterator[dict[str, str]]:
    """Run the application in a process of its own; yield where it listens."""
    script = Path(__file__).with_name("shop_app.py")
    with subprocess.Popen(
        [sys.executable, str(script), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **QUIET},
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


@contextmanager
def load(url: str, rate: float) -> Iterator[list[int]]:
    """Send requests at a rate until the end of the block; yield the statuses."""
    statuses: list[int] = []
    stopping = threading.Event()

    def send() -> None:
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                statuses.append(reply.status)
        except urllib.error.URLError:
            statuses.append(0)

    def send_all() -> None:
        with ThreadPoolExecutor(32) as pool:
            while not stopping.wait(1 / rate):
                pool.submit(send)

    thread = threading.Thread(target=send_all, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        stopping.set()
        thread.join(60)


def read_status(address: str) -> Any:
    """Return what the controller reports."""
    with urllib.request.urlopen(f"{address}/status", timeout=10) as reply:
        return json.load(reply)


def wait_until(is_done: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.5)


def write_plan(folder: Path, address: str) -> None:
    """Write spec and plan."""
    (folder / "shop.yaml").write_text(SPEC.replace("ADDRESS", address), "utf-8")
    result = unfold(folder, "plan", "shop.yaml", "-o", "plan.yaml")
    assert result.returncode == 0, result.stderr


def test_application_follows_its_demand(tmp_path: Path) -> None:
    """Replicas follow Ray's own counters; a second controller waits for the lease of the first, also after SIGTERM."""
    pytest.importorskip("ray", reason="Ray is not installed")
    command = ("plan.yaml", "--target", "ray")
    with shop("scaled") as place, load(place["url"], 16.0) as statuses:
        write_plan(tmp_path, place["address"])
        preview = unfold(tmp_path, "serve", *command, "--dry-run", "--format", "json")
        assert preview.returncode == 0, preview.stderr
        table = {row[0]: row[1:] for row in json.loads(preview.stdout)["tables"][0]["rows"]}
        assert table["detect"][:2] == ["Detect", 1]
        with serving(tmp_path, *command, "--run", "runs/one", patience=PATIENCE_S) as (first, one):
            wait_until(lambda: read_status(one)["stages"], 60)
            # two, and on a busy machine a third one before the next look
            wait_until(lambda: read_status(one)["stages"][1]["current"] in (2, 3), 90)
            status = read_status(one)
            assert status["role"] == "leader"
            assert status["stages"][0]["current"] > 1
            # the mean of 30 s, of which the first ones are without any
            wait_until(lambda: 8 < read_status(one)["demand"]["queries_per_second"] < 24, 60)
            with serving(tmp_path, *command, "--run", "runs/two", patience=PATIENCE_S) as (_, two):
                time.sleep(2)
                assert read_status(two)["role"] == "standby"
                first.send_signal(signal.SIGTERM)
                assert first.wait(60) == 0
                wait_until(lambda: read_status(two)["role"] == "leader", 30)
    assert statuses.count(200) > 0.98 * len(statuses)


def test_application_without_external_scaler_is_refused(tmp_path: Path) -> None:
    """What Ray would refuse is an error before the controller starts, and says what to change."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with shop() as place:
        write_plan(tmp_path, place["address"])
        result = unfold(tmp_path, "serve", "plan.yaml", "--target", "ray")
        assert result.returncode == 2
        assert "admits no external scaler" in result.stderr
        for setting, message in (
            ("control.stages.face.workload=Nose", "has no deployment Nose"),
            ("control.ray.application=shopp", "has no application shopp"),
        ):
            result = unfold(tmp_path, "serve", "plan.yaml", "--target", "ray", "--dry-run", "--set", setting)
            assert result.returncode == 2
            assert message in result.stderr
