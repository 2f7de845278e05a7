"""Progress of a verb on stderr: its stages with rate and time left, how long it has run, and the memory of its work.

A terminal shows bars. Elsewhere, as in CI or in a file, plain lines appear: after two seconds, then every ten.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfoldkit.cli.console import print_message
from unfoldkit.format import format_bytes, format_duration
from unfoldkit.report import Report
from unfoldkit.run_context import Progress, ignore_progress

FIRST_LINE_S = 2.0
"""A verb that ends earlier prints no progress."""
LINE_EVERY_S = 10.0
WAKE_EVERY_S = 0.5
SHOWN_MEMORY_BYTES = 2**30
"""Memory is shown from here on: less is no reason to look at it."""
COMPILATION_STEP = "compile, the first time only"


@dataclass(slots=True)
class StepPace:
    """How far a step has come since it was first reported, which gives its rate and the time that it still needs."""

    start_s: float
    first: int
    is_printed: bool = False

    def rate(self, done: int, now_s: float) -> float | None:
        """Return parts per second, once some are done."""
        elapsed_s = now_s - self.start_s
        return (done - self.first) / elapsed_s if done > self.first and elapsed_s > 0 else None


def describe_rate(rate: float | None) -> str:
    """Return a rate in the unit in which it is at least 1: per second, minute or hour; empty if it is unknown."""
    if not rate:
        return ""
    scale, unit = (1, "s") if rate >= 1 else (60, "min") if rate * 60 >= 1 else (3600, "h")
    return f"{rate * scale:,.3g}/{unit}" if rate * scale < 1000 else f"{rate * scale:,.0f}/{unit}"


def name_step(step: str) -> str:
    """Return the name of a step: the text after its first `` · `` may change, such as the money that was spent."""
    return step.partition(" · ")[0]


@dataclass(frozen=True, slots=True)
class ProgressBars:
    """Progress bars on a terminal's stderr, with the figures of the last published report below them."""

    progress: Any
    width: int = 80
    picture: list[str] = field(default_factory=list)
    tasks: dict[str, Any] = field(default_factory=dict)
    paces: dict[str, StepPace] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __call__(self, step: str, done: int, total: int) -> None:
        """Update the bar of ``step``."""
        name, now_s = name_step(step), self.clock()
        if name not in self.tasks:
            self.paces[name] = StepPace(now_s, done)
            self.tasks[name] = self.progress.add_task(step, total=total or None, rate="")
        rate = describe_rate(self.paces[name].rate(done, now_s))
        self.progress.update(self.tasks[name], completed=done, total=total or None, description=step, rate=rate)

    def show(self, report: Report) -> None:
        """Show the figures of a report that text can show."""
        from unfoldkit.render.figures.compact import write_compact
        from unfoldkit.render.formatting import strip_controls

        figures = (write_compact(figure, self.width) for figure in strip_controls(report).figures)
        self.picture[:] = [line for lines in figures if lines for line in ("", *lines)]


@dataclass(slots=True)
class ProgressLines:
    """Progress as plain lines.

    Attributes:
        title: The verb and what it works on.
        write: Writes a line.
        clock: A clock in s.
        read_memory: Reads the bytes that the process and its workers occupy.
    """

    title: str
    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    read_memory: Callable[[], int] = lambda: 0
    paces: dict[str, StepPace] = field(default_factory=dict)
    start_s: float = field(init=False)
    printed_s: float | None = None
    state: str = ""
    end_s: float = 0.0

    def __post_init__(self) -> None:
        """Start the clock."""
        self.start_s = self.clock()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Write a line on ``step`` if it is time for one."""
        name, now_s = name_step(step), self.clock()
        pace = self.paces.setdefault(name, StepPace(now_s, done))
        self.state = f"{step} {done:,}/{total:,}" if total else f"{step} {done:,}"
        rate = pace.rate(done, now_s)
        self.end_s = now_s + (total - done) / rate if rate and done < total else now_s
        is_end = pace.is_printed and 0 < total <= done
        wait_s = LINE_EVERY_S if pace.is_printed else FIRST_LINE_S
        if is_end or now_s - self._last_s() >= wait_s:
            pace.is_printed = not 0 < total <= done
            self._write(now_s, self.state, describe_rate(rate), self._describe_left(now_s))

    def beat(self) -> None:
        """Write a line if a verb that reports nothing is silent for too long."""
        now_s = self.clock()
        if now_s - self._last_s() >= (FIRST_LINE_S if self.printed_s is None else LINE_EVERY_S):
            elapsed = f"{format_duration(now_s - self.start_s)} so far"
            self._write(now_s, self.state or self.title, elapsed, self._describe_left(now_s))

    def _describe_left(self, now_s: float) -> str:
        """Describe the time until the step ends, as its last report predicts it; empty once that has passed."""
        return f"{format_duration(self.end_s - now_s)} left" if self.end_s > now_s else ""

    def _last_s(self) -> float:
        return self.start_s if self.printed_s is None else self.printed_s

    def _write(self, now_s: float, *parts: str) -> None:
        self.printed_s = now_s
        self.write(" · ".join(part for part in (*parts, describe_memory(self.read_memory())) if part))


def describe_memory(size_bytes: int) -> str:
    """Return the memory of a verb; empty if it is little."""
    return format_bytes(size_bytes) if size_bytes >= SHOWN_MEMORY_BYTES else ""


def read_memory_bytes() -> int:
    """Return the memory that this process and its child processes occupy; 0 on a system without /proc."""
    own = os.getpid()
    try:
        children = Path(f"/proc/{own}/task/{own}/children").read_text(encoding="ascii").split()
        return sum(_read_resident_bytes(process) for process in (str(own), *children))
    except (OSError, ValueError):
        return 0


def _read_resident_bytes(process: str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@contextmanager
def show_progress(title: str, environment: Mapping[str, str] = os.environ) -> Iterator[Progress]:
    """Yield a progress reporter: bars on a terminal, plain lines elsewhere, nothing with ``UNFOLD_PROGRESS=0``.

    Args:
        title: The verb and what it works on.
        environment: The variables of the process. With ``CI``, lines appear on a terminal, too.
    """
    if environment.get("UNFOLD_PROGRESS") == "0":
        yield ignore_progress
    elif environment.get("CI") or not sys.stderr.isatty():
        lines = ProgressLines(title, print_message, read_memory=read_memory_bytes)
        with _calling(lines.beat):
            yield lines
    else:
        with _showing_bars(title) as bars:
            yield bars


@contextmanager
def _showing_bars(title: str) -> Iterator[ProgressBars]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (
        TextColumn("  {task.description}"), BarColumn(28), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    console, start_s = Console(stderr=True), time.monotonic()
    progress = Progress(*columns, console=console)
    bars = ProgressBars(progress, console.width)

    def render() -> Group:
        elapsed_s = time.monotonic() - start_s
        parts = (title, format_duration(elapsed_s), describe_memory(read_memory_bytes()))
        head = Text("  " + " · ".join(part for part in parts if part))
        return Group(head, progress.get_renderable(), Text("\n".join(bars.picture), no_wrap=True, overflow="crop"))

    with Live(get_renderable=render, console=console, transient=True, refresh_per_second=4):
        yield bars


@contextmanager
def _calling(beat: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread from time to time until the block ends."""
    ended = threading.Event()

    def call() -> None:
        while not ended.wait(WAKE_EVERY_S):
            beat()

    thread = threading.Thread(target=call, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


# Numba compiles silently for up to half a minute
@contextmanager
def report_compilation(progress: Progress) -> Iterator[None]:
    """Report to ``progress`` each loop that is compiled meanwhile; nothing for code that is cached."""
    events = sys.modules.get("numba.core.event")
    if events is None:
        # the verb does not use Numba, and importing it here would take a while itself
        yield
        return
    with events.install_listener("numba:compile", _build_listener(events.Listener, progress)):
        yield


def _build_listener(base: Any, progress: Progress) -> Any:
    # a loop compiles those that it calls: the first to start is the last to end
    counts = {"started": 0, "ended": 0}

    def count(event: str) -> None:
        counts[event] += 1
        progress(COMPILATION_STEP, counts["ended"], counts["started"])

    methods = {"on_start": lambda _self, _event: count("started"), "on_end": lambda _self, _event: count("ended")}
    return type("CompileListener", (base,), methods)()
