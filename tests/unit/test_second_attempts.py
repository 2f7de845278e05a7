"""Tests of which failed tests run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, surroundings

FILE = """
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest


def fail_once(name):
    path = Path(name)
    first = not path.exists()
    path.touch()
    assert not first


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        yield process


def test_alone():
    fail_once("alone")


def test_process():
    subprocess.run([sys.executable, "-c", ""], check=True)
    fail_once("process")


def test_worker():
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
    fail_once("worker")


def test_first_user(server):
    fail_once("first")


def test_second_user(server):
    fail_once("second")


@pytest.mark.timed
def test_time():
    fail_once("time")
"""


def test_only_tests_that_start_processes_or_measure_time_run_again(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.second_attempts import SecondAttempts\n\n\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'timed: measures time')\n"
        "    config.pluginmanager.register(SecondAttempts())\n",
        encoding="utf-8",
    )
    (tmp_path / "test_attempts.py").write_text(FILE, encoding="utf-8")
    notes = tmp_path / "reruns.txt"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--reruns", "1", "test_attempts.py"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = surroundings({"UNFOLD_RERUNS": str(notes), "PYTHONPATH": path})
    done = subprocess.run(  # noqa: PLW1510
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "1 failed, 5 passed, 5 rerun" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_attempts.py::test_alone" in done.stdout
    names = [line.partition("::")[2] for line in notes.read_text("utf-8").splitlines()]
    assert names == ["test_process", "test_worker", "test_first_user", "test_second_user", "test_time"]
