"""The report of a verb that still runs: figures under the progress bars, and a file that ``unfold report`` reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from unfoldkit.errors import UnfoldError
from unfoldkit.report import Report, from_data, to_data, validate_report
from unfoldkit.run_context import Progress, ignore_report
from unfoldkit.run_directory import RunDir, encode_text, write_atomically
from unfoldkit.safe_io.files import decoding, parse_object, read_bytes

SILENT_S = 20.0
"""A report this old may be that of a process that was killed."""
LIVE_REPORT = "running.json"
"""Not listed in the manifest of the run: no result depends on it."""


@dataclass(slots=True)
class LiveReport:
    """Stores and shows the last report of a verb that still runs.

    Attributes:
        path: The file.
        show: Shows the report on the terminal.
        last: The report that was published last.
    """

    path: Path
    show: Callable[[Report], None]
    last: Report | None = None

    def __call__(self, report: Report) -> None:
        """Replace the stored report; a full disk does not end the verb."""
        self.last = replace(report, status="running")
        self._write(self.last)
        self.show(self.last)

    def mark_stopped(self) -> None:
        """Store that the verb was stopped after its last report."""
        if self.last is not None:
            self._write(replace(self.last, status="stopped"))

    def _write(self, report: Report) -> None:
        with suppress(UnfoldError):
            write_atomically(self.path, encode_text(json.dumps(to_data(report), ensure_ascii=False)))


@contextmanager
def publishing_reports(run: RunDir, progress: Progress) -> Iterator[LiveReport]:
    """Yield where a verb publishes its reports; the file is gone when the verb has its final one.

    Args:
        run: The run, which this process has locked.
        progress: Shows figures too if it has a method ``show``.
    """
    live = LiveReport(run.path / LIVE_REPORT, getattr(progress, "show", ignore_report))
    live.path.unlink(missing_ok=True)
    try:
        yield live
    except BaseException:
        live.mark_stopped()
        raise
    live.path.unlink(missing_ok=True)


def read_live_report(folder: Path) -> Report | None:
    """Read the report of a verb that runs in a folder or was stopped there; ``None`` without one.

    Raises:
        UnfoldError: The file is damaged.
    """
    path = folder / LIVE_REPORT
    try:
        age_s = time.time() - path.stat().st_mtime
        content = read_bytes(path)
    except (OSError, UnfoldError):
        # none, or the verb has ended meanwhile
        return None
    with decoding(str(path), "a report"):
        report = from_data(parse_object(content))
        for problem in validate_report(report, report.kind, report.verb):
            raise ValueError(problem)
    is_killed = report.status == "running" and age_s > SILENT_S and not RunDir(folder).is_locked()
    return replace(report, status="stopped") if is_killed else report
