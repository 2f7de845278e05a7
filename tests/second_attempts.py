"""Decide which failed tests get a second attempt: those that start processes, and those that measure time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn")


class SecondAttempts:
    """Watch the processes that tests and fixtures start, and forbid a second attempt to every other test.

    A busy machine may start a process too late. A test that measures time in its own process is marked ``timed``.
    """

    def __init__(self) -> None:
        self.started = 0
        self.fixtures: set[str] = set()
        self.items: dict[str, int] = {}

    def pytest_sessionstart(self) -> None:
        """Count the processes that start from here on."""
        sys.addaudithook(lambda event, _: self.count() if event in STARTS else None)
        # multiprocessing starts its processes without an audit event
        BaseProcess.start = counted(BaseProcess.start, self.count)  # type: ignore[method-assign]

    def count(self) -> None:
        """Count one process."""
        self.started += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        """Note a fixture that starts processes: its later users need it as much as the first."""
        before = self.started
        try:
            return (yield)
        finally:
            if self.started > before:
                self.fixtures.add(fixturedef.argname)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note how many processes had started before an attempt."""
        self.items[nodeid] = self.started

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Forbid the second attempt where nothing but the code of the test ran."""
        report = yield
        if report.failed and not self.may_run_again(item):
            item.add_marker(pytest.mark.flaky(condition=False))
        return report

    def may_run_again(self, item: pytest.Item) -> bool:
        """Whether an attempt started processes, used a fixture that did, or measured time."""
        # an earlier test may have started the processes of Ray
        marked = item.get_closest_marker("timed") or item.get_closest_marker("ray")
        if marked or self.started > self.items[item.nodeid]:
            return True
        return not self.fixtures.isdisjoint(getattr(item, "fixturenames", ()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the tests that were run again to the file that ``UNFOLD_RERUNS`` names; the noxfile lists them."""
        reruns = dict.fromkeys(report.nodeid for report in terminalreporter.stats.get("rerun", []))
        target = os.environ.get("UNFOLD_RERUNS")
        if reruns and target:
            Path(target).write_text("".join(f"{name}\n" for name in reruns), encoding="utf-8")


def counted(start: Callable[[BaseProcess], None], count: Callable[[], None]) -> Callable[[BaseProcess], None]:
    """Return the method that starts a process, with a count before it."""

    def run(process: BaseProcess) -> None:
        count()
        start(process)

    return run
