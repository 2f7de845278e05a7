"""Jobs in processes of this machine."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from unfoldkit.engines.local import LocalEngine, available_cores
from unfoldkit.errors import ExitCode, UnfoldError


def square(number: int) -> int:
    return number * number


def where(_: int) -> tuple[int, str]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS", "")


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_or_sleep(number: int) -> int:
    if number == 0:
        raise ValueError("job 0")
    time.sleep(60)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    """In one process or several, results are in the order of the jobs and each is reported once, in this process."""
    results: dict[int, Any] = {}
    assert LocalEngine(workers).map(square, [3, 1, 2], on_result=results.__setitem__) == [9, 1, 4]
    assert results == {0: 9, 1: 1, 2: 4}
    assert LocalEngine(workers).map(square, []) == []


def test_workers_are_other_processes_of_one_thread() -> None:
    """Several workers are other processes, limited to one thread each."""
    found = LocalEngine(2).map(where, [0, 1])
    assert os.getpid() not in [process for process, _ in found]
    assert {threads for _, threads in found} == {"1"}


def test_a_dead_worker_is_an_internal_error() -> None:
    """A killed worker is reported in words, with exit code 3."""
    with pytest.raises(UnfoldError, match="a worker process died") as caught:
        LocalEngine(2).map(die, [0, 1, 2])
    assert caught.value.code is ExitCode.INTERNAL


def test_a_failed_job_does_not_wait_for_the_others() -> None:
    """What a job raises is raised as it is, and the jobs that still run are ended."""
    began = time.perf_counter()
    with pytest.raises(ValueError, match="job 0"):
        LocalEngine(2).map(fail_or_sleep, [0, 1])
    assert time.perf_counter() - began < 30


def test_this_process_has_cores() -> None:
    """At least one core may be used."""
    assert available_cores() >= 1
