"""The streams of the command line: the report on stdout; progress, logs and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unfoldkit.descriptors import explain_missing_packages
from unfoldkit.errors import Diagnostic, ExitCode, UnfoldError, escape_unprintable, internal_error, shorten
from unfoldkit.format import format_duration

_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def use_colour(stream: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour output to ``stream``: on a terminal unless NO_COLOR is set, and always with FORCE_COLOR."""
    if environment.get("NO_COLOR"):
        return False
    return environment.get("FORCE_COLOR", "") not in ("", "0") or stream.isatty()


def print_message(text: str) -> None:
    """Write text and a line break to stderr, even if its reader has closed it."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write_report(content: str | bytes) -> None:
    """Write the report to stdout.

    Raises:
        UnfoldError: stdout cannot be written to, for example because the disk is full (exit code 3).
    """
    try:
        _write(content)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"cannot write the report: {error.strerror}"
        raise internal_error(message, hint="--out FILE writes it to a file") from error


def open_log(*, verbose: bool) -> logging.Logger:
    """Open the log of a verb on stderr: warnings only, unless ``verbose``."""
    # not logging.getLogger: two calls in one process must not share handlers
    log = logging.Logger("unfoldkit", logging.INFO if verbose else logging.WARNING)  # noqa: LOG001
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    return log


FIRST_LINE_S = 2.0
"""A verb that ends earlier prints no progress."""
LINE_EVERY_S = 10.0


@dataclass(slots=True)
class StepPace:
    """How far a step has come since it was first reported, which gives its rate and the time that it still needs."""

    start_s: float
    first: int
    printed_s: float | None = None

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


@dataclass(frozen=True, slots=True)
class ProgressBars:
    """Progress bars on a terminal's stderr."""

    progress: Any
    tasks: dict[str, Any]
    paces: dict[str, StepPace]
    clock: Callable[[], float] = time.monotonic

    def __call__(self, step: str, done: int, total: int) -> None:
        """Update the bar of ``step``; the text after its first `` · `` may change and is not part of its name."""
        name, now_s = step.partition(" · ")[0], self.clock()
        if name not in self.tasks:
            self.paces[name] = StepPace(now_s, done)
            self.tasks[name] = self.progress.add_task(step, total=total, rate="")
        rate = describe_rate(self.paces[name].rate(done, now_s))
        self.progress.update(self.tasks[name], completed=done, total=total, description=step, rate=rate)


@dataclass(frozen=True, slots=True)
class ProgressLines:
    """Progress as plain lines, for the log of a CI server: after two seconds, then every ten, and at the end."""

    write: Callable[[str], None]
    paces: dict[str, StepPace]
    clock: Callable[[], float] = time.monotonic

    def __call__(self, step: str, done: int, total: int) -> None:
        """Write a line on ``step`` if it is time for one."""
        name, now_s = step.partition(" · ")[0], self.clock()
        pace = self.paces.setdefault(name, StepPace(now_s, done))
        if pace.printed_s is None:
            is_due = now_s - pace.start_s >= FIRST_LINE_S
        else:
            is_due = done >= total or now_s - pace.printed_s >= LINE_EVERY_S
        if is_due:
            pace.printed_s = now_s
            rate = pace.rate(done, now_s)
            rest = f"{format_duration((total - done) / rate)} left" if rate and done < total else ""
            parts = [f"{step} {done:,}/{total:,}", describe_rate(rate), rest]
            self.write(" · ".join(part for part in parts if part))


@contextmanager
def show_progress(environment: Mapping[str, str] = os.environ) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress reporter: bars on a terminal, plain lines in CI, nothing in another pipe."""
    if environment.get("CI"):
        yield ProgressLines(print_message, {})
        return
    if not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"), BarColumn(28), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBars(progress, {}, {})


def run_guarded(action: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run ``action``, and turn whatever it raises into a message and an exit code."""
    try:
        with explain_missing_packages(None):
            code = action()
        sys.stdout.flush()
    except UnfoldError as error:
        print_message("\n".join(str(item) for item in error.diagnostics))
        return int(error.code)
    except KeyboardInterrupt:
        words = escape_unprintable(shlex.join(["unfold", *sys.argv[1:]]))
        print_message(f"interrupted; the same command resumes where it was: {words}")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        discard_stdout()
        return int(ExitCode.CLOSED_PIPE)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - reported to the user, with exit code 3
        if message := _explain_path_error(error):
            print_message(message)
            return int(ExitCode.USAGE)
        print_message(_format_traceback() if environment.get("UNFOLD_TRACEBACK") else _summarize(error))
        return int(ExitCode.INTERNAL)
    return int(code)


def discard_stdout() -> None:
    """Point stdout to the null device, since the interpreter would fail again when it flushes a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(content: str | bytes) -> None:
    if isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            # a terminal that cannot show a letter shows its escape instead of losing the report
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(content)
    sys.stdout.flush()


def _explain_path_error(error: BaseException) -> str:
    """Return the message for a path that the system does not let us access; empty for any other error."""
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename:
        return str(Diagnostic(f"cannot be used: {error.strerror}", shorten(str(error.filename), 200)))
    return ""


def _format_traceback() -> str:
    import traceback

    return traceback.format_exc().rstrip()


def _summarize(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    position = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace else "?"
    text = escape_unprintable(f"{type(error).__name__}: {error}".splitlines()[0])
    return f"unfold: unexpected {text} (in {position}; UNFOLD_TRACEBACK=1 shows the traceback)"


COMPILATION_STEP = "compile, the first time only"


# Numba compiles silently for up to half a minute
@contextmanager
def report_compilation(progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Report to ``progress`` each loop that is compiled meanwhile; nothing for code that is cached."""
    events = sys.modules.get("numba.core.event")
    if events is None:
        # the verb does not use Numba, and importing it here would take a while itself
        yield
        return
    with events.install_listener("numba:compile", _build_listener(events.Listener, progress)):
        yield


def _build_listener(base: Any, progress: Callable[[str, int, int], None]) -> Any:
    # a loop compiles those that it calls: the first to start is the last to end
    counts = {"started": 0, "ended": 0}

    def count(event: str) -> None:
        counts[event] += 1
        progress(COMPILATION_STEP, counts["ended"], counts["started"])

    methods = {"on_start": lambda _self, _event: count("started"), "on_end": lambda _self, _event: count("ended")}
    return type("CompileListener", (base,), methods)()
