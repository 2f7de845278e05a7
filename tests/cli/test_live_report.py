"""The report of a verb that still runs: on the terminal, in a file, in a page that reloads itself."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
import webbrowser
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from tests.support import Unfold
from unfoldkit.cli.live_report import LIVE_REPORT, publishing_reports, read_live_report
from unfoldkit.cli.progress import ProgressBars
from unfoldkit.figure_data import Bar, Panel, Series, StepArea, Timeline
from unfoldkit.render import html
from unfoldkit.render.text import render
from unfoldkit.report import Report, Verdict, from_data, to_data
from unfoldkit.run_context import ignore_progress
from unfoldkit.run_directory import RunDir

STEPS = StepArea(
    name="cluster",
    title="Instances held",
    unit="s",
    panels=(Panel("instances", (Series("held", (0.0, 5.0, 9.0), (4.0, 2.0, 2.0), "steps"),)),),
)
LANES = Timeline(name="gantt", title="Trials", unit="s", lanes=("n1",), bars=(Bar(lane="n1", start=0.0, end=4.0),))
REPORT = Report("echo", "train", "a", Verdict.YES, "stage 2 of 4", figures=(STEPS, LANES))


def test_a_published_report_is_stored_until_the_verb_ends(tmp_path: Path) -> None:
    """The last report is read as one that runs; when the verb has ended, it is gone."""
    with publishing_reports(RunDir(tmp_path), ignore_progress) as publish:
        assert read_live_report(tmp_path) is None
        publish(REPORT)
        live = read_live_report(tmp_path)
        assert live is not None
        assert (live.status, live.headline, live.figures) == ("running", REPORT.headline, REPORT.figures)
    assert read_live_report(tmp_path) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_stopped_verb_leaves_its_last_report(tmp_path: Path, error: type[BaseException]) -> None:
    """What was done before the stop stays readable, and says that nothing runs; the next verb begins without it."""

    def run_verb() -> None:
        with publishing_reports(RunDir(tmp_path), ignore_progress) as publish:
            publish(REPORT)
            raise error

    with pytest.raises(error):
        run_verb()
    live = read_live_report(tmp_path)
    assert live is not None
    assert live.status == "stopped"
    with publishing_reports(RunDir(tmp_path), ignore_progress):
        assert read_live_report(tmp_path) is None


def test_a_killed_verb_does_not_run(tmp_path: Path) -> None:
    """An old report of a process that no longer locks the run is that of a stopped verb; a slow verb still runs."""
    run = RunDir(tmp_path)
    (tmp_path / LIVE_REPORT).write_text(json.dumps(to_data(REPORT) | {"status": "running"}))
    os.utime(tmp_path / LIVE_REPORT, (time.time() - 60,) * 2)
    with run.locked():
        live = read_live_report(tmp_path)
        assert live is not None
        assert live.status == "running"
    live = read_live_report(tmp_path)
    assert live is not None
    assert live.status == "stopped"


def test_a_full_disk_does_not_end_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot be stored is not worth a run that costs money."""

    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("unfoldkit.run_directory._replace", refuse)
    with publishing_reports(RunDir(tmp_path), ignore_progress) as publish:
        publish(REPORT)
    assert list(tmp_path.iterdir()) == []


def test_the_status_survives_the_data() -> None:
    """A report that runs has the key ``status``; a finished one is written as before."""
    assert "status" not in to_data(REPORT)
    for status in ("running", "stopped"):
        report = from_data(to_data(REPORT) | {"status": status})
        assert report.status == status
        assert report.answer == status
        assert render(report).rstrip().endswith(f"{status} · stage 2 of 4")


def test_only_a_page_of_a_running_verb_reloads() -> None:
    """The page shows its next state by itself while the verb runs, and has no script otherwise."""
    running = from_data(to_data(REPORT) | {"status": "running"})
    assert "location.reload()" in html.render(running)
    assert "<b>running</b>" in html.render(running)
    assert "<script" not in html.render(REPORT)
    assert "<script" not in html.render(from_data(to_data(REPORT) | {"status": "stopped"}))


def test_the_terminal_shows_the_figures_below_the_bars() -> None:
    """The figures of the last report are lines as wide as the terminal."""
    bars = ProgressBars(Progress(console=Console(file=io.StringIO())), width=60)
    bars.show(REPORT)
    assert "  Instances held" in bars.picture
    assert "  Trials" in bars.picture
    first = list(bars.picture)
    bars.show(REPORT)
    assert bars.picture == first
    assert max(map(len, first)) <= 60


def test_the_opened_page_follows_the_verb_to_its_end(
    unfold: Unfold, spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``--open`` on a running verb rewrites the page, and ends with the final report."""
    unfold("plan", spec)
    run = tmp_path / "runs/a"
    live, page = run / LIVE_REPORT, run / "report.html"
    live.write_text(json.dumps(to_data(REPORT) | {"status": "running"}))
    assert "running · stage 2 of 4" in unfold("report", "runs/a").out
    monkeypatch.setattr("unfoldkit.cli.commands.show.FOLLOW_EVERY_S", 0.02)
    monkeypatch.setattr(webbrowser, "open", lambda _address: True)
    monkeypatch.setenv("DISPLAY", ":0")

    def finish() -> None:
        while not page.exists():
            time.sleep(0.02)
        pages.append(page.read_text())
        live.unlink()

    pages: list[str] = []
    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    assert unfold("report", "runs/a", "--open").code == 0
    thread.join()
    assert "location.reload()" in pages[0]
    assert "location.reload()" not in page.read_text()


def test_a_damaged_file_is_named(unfold: Unfold, spec: Path, tmp_path: Path) -> None:
    """A live report that is no report is an error with its name, not a traceback."""
    unfold("plan", spec)
    (tmp_path / "runs/a" / LIVE_REPORT).write_text('{"schema": "unfoldkit.report/1"')
    found = unfold("report", "runs/a")
    assert found.code == 2
    assert LIVE_REPORT in found.err
