"""The three voices: the report on stdout; progress, logs and mistakes on stderr."""

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

from unfoldkit.errors import Diagnostic, ExitCode, UnfoldError, escape_unprintable, internal_error, shorten

_REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def wants_colour(stream: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour what goes to ``stream``: a terminal, unless NO_COLOR; always with FORCE_COLOR."""
    if environment.get("NO_COLOR"):
        return False
    return environment.get("FORCE_COLOR", "") not in ("", "0") or stream.isatty()


def say(text: str) -> None:
    """Write one line to stderr; nobody may be there to read it."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write_report(content: str | bytes) -> None:
    """Write the report to stdout.

    Raises:
        UnfoldError: stdout takes no more, such as where the disk behind it is full (exit code 3).
    """
    try:
        _write(content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise internal_error(
            f"cannot write the report: {error.strerror}", hint="--out FILE writes it elsewhere"
        ) from error


def _write(content: str | bytes) -> None:
    if isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            # a terminal that cannot show a letter shows its escape; the report is not lost for it
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(content)
    sys.stdout.flush()


def logger(*, verbose: bool) -> logging.Logger:
    """Return the log of a verb: stderr, warnings only unless ``verbose``."""
    # not logging.getLogger: a log of this call alone, so that two calls in one process do not share handlers
    log = logging.Logger("unfoldkit", logging.INFO if verbose else logging.WARNING)  # noqa: LOG001
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    return log


@dataclass(frozen=True, slots=True)
class Bars:
    """Progress bars on a terminal's stderr."""

    progress: Any
    tasks: dict[str, Any]

    def __call__(self, step: str, done: int, total: int) -> None:
        """Move the bar of ``step``; what follows its first `` · `` changes with time and is no part of its name."""
        name = step.partition(" · ")[0]
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(step, total=total)
        self.progress.update(self.tasks[name], completed=done, total=total, description=step)


@contextmanager
def progress_bars(environment: Mapping[str, str] = os.environ) -> Iterator[Callable[[str, int, int], None]]:
    """Give a progress reporter: bars on a terminal, silence in a pipe or in CI."""
    if not sys.stderr.isatty() or environment.get("CI"):
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("  {task.description}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress, {})


def guarded(action: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run ``action`` and turn whatever it raises into a message and an exit code."""
    try:
        code = action()
        sys.stdout.flush()
    except UnfoldError as error:
        say("\n".join(str(item) for item in error.diagnostics))
        return int(error.code)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it was")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        close_quietly()
        return int(ExitCode.CLOSED_PIPE)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - told to the user, with exit code 3
        if refused := _refused_path(error):
            say(refused)
            return int(ExitCode.USAGE)
        say(_whole_trace() if environment.get("UNFOLD_TRACEBACK") else _unexpected(error))
        return int(ExitCode.INTERNAL)
    return int(code)


def _refused_path(error: BaseException) -> str:
    """Return what to say of a path that the system does not let us look at; nothing of any other error."""
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return str(Diagnostic(f"cannot be used: {error.strerror}", shorten(str(error.filename), 200)))
    return ""


def _whole_trace() -> str:
    import traceback

    return traceback.format_exc().rstrip()


def close_quietly() -> None:
    """Point stdout nowhere: the interpreter would complain again when it closes what nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace else "?"
    text = escape_unprintable(f"{type(error).__name__}: {error}".splitlines()[0])
    return f"unfold: unexpected {text} (in {place}; UNFOLD_TRACEBACK=1 shows the whole trace)"
