"""The streams of the command line: the report on stdout; progress, logs and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unfoldkit.descriptors import explain_missing_packages
from unfoldkit.errors import Diagnostic, ExitCode, UnfoldError, escape_unprintable, internal_error, shorten

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


@dataclass(frozen=True, slots=True)
class ProgressBars:
    """Progress bars on a terminal's stderr."""

    progress: Any
    tasks: dict[str, Any]

    def __call__(self, step: str, done: int, total: int) -> None:
        """Update the bar of ``step``; the text after its first `` · `` may change and is not part of its name."""
        name = step.partition(" · ")[0]
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(step, total=total)
        self.progress.update(self.tasks[name], completed=done, total=total, description=step)


@contextmanager
def show_progress(environment: Mapping[str, str] = os.environ) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress reporter: bars on a terminal, nothing in a pipe or in CI."""
    if not sys.stderr.isatty() or environment.get("CI"):
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBars(progress, {})


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
        print_message("interrupted; the same command resumes where it was")
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
