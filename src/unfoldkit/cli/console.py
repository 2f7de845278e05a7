"""The streams of the command line: the report on stdout; progress, logs and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGINT
from typing import Any, TextIO

from unfoldkit.cli.interruption import describe_stop, find_stop, guarding_verb, stop_code
from unfoldkit.errors import (
    ExitCode,
    UnfoldError,
    escape_unprintable,
    explain_missing_packages,
    internal_error,
    shorten,
    user_error,
)
from unfoldkit.safe_io.files import first_line

_PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip
_SHORTAGES = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
)  # fmt: skip
_STDOUT, _STDERR = 1, 2
"""File descriptors."""


def use_colour(stream: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour output to ``stream``: on a terminal unless NO_COLOR is set, and always with FORCE_COLOR."""
    if environment.get("NO_COLOR"):
        return False
    return environment.get("FORCE_COLOR", "") not in ("", "0") or stream.isatty()


def print_message(text: str) -> None:
    """Write text and a line break to stderr; that its reader has closed it or its disk is full changes no exit code."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def print_written(path: Path) -> None:
    """Name a file that was written; characters of its path that control a terminal are escaped."""
    print_message(f"wrote {escape_unprintable(str(path))}")


@contextlib.contextmanager
def keeping_stdout() -> Iterator[None]:
    """Send to stderr what libraries and child processes write to stdout: it carries the report only."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        # nothing to keep if one of them is closed
        with contextlib.suppress(OSError):
            kept = os.dup(_STDOUT)
            stack.callback(os.close, kept)
            os.dup2(_STDERR, _STDOUT)
            stack.callback(os.dup2, kept, _STDOUT)
        yield


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


def run_guarded(action: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run ``action``, and turn whatever it raises into a message and an exit code."""
    try:
        with guarding_verb(), explain_missing_packages(None):
            code = action()
            sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - reported to the user with an exit code, or raised again
        # a stop may surface as another exception: of an import that it ended, or of a worker that died with it
        number = find_stop() or (SIGINT if isinstance(error, KeyboardInterrupt) else None)
        if number is None:
            return _report_failure(error, environment)
        with contextlib.suppress(OSError):
            # the terminal may be gone, which is why it stops
            print_message(describe_stop(number, error))
        return stop_code(number)
    return int(code)


def _report_failure(error: BaseException, environment: Mapping[str, str]) -> int:
    """Print what an exception means to the user, and return its exit code."""
    if isinstance(error, BaseExceptionGroup):
        # of a task group, which has cancelled the other tasks
        return _report_failure(error.exceptions[0], environment)
    if isinstance(error, UnfoldError):
        print_message("\n".join(str(item) for item in error.diagnostics))
        return int(error.code)
    if isinstance(error, BrokenPipeError):
        discard(sys.stdout)
        return int(ExitCode.CLOSED_PIPE)
    if not isinstance(error, (Exception, SystemExit)):
        raise error
    if refusal := _explain_refusal(error):
        return _report_failure(refusal, environment)
    print_message(_format_traceback() if environment.get("UNFOLD_TRACEBACK") else _summarize(error))
    return int(ExitCode.INTERNAL)


def discard(stream: TextIO) -> None:
    """Point a stream to the null device, since the interpreter would fail again when it flushes what it holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(content: str | bytes) -> None:
    if isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            # a terminal that cannot show a letter shows its escape instead of losing the report
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout.write(content)
    sys.stdout.flush()


def _explain_refusal(error: BaseException) -> UnfoldError | None:
    """Return the error for what the system lacks or refuses: a path, or room; ``None`` for any other error."""
    if isinstance(error, MemoryError):
        message = f"out of memory: {first_line(error)}" if str(error) else "out of memory"
        return internal_error(message, hint="free some, or take fewer --jobs")
    if not isinstance(error, OSError):
        return None
    file = shorten(str(error.filename or ""), 200)
    if error.errno in _PATH_ERRORS and file:
        return user_error(f"cannot be used: {error.strerror}", file=file)
    if error.errno == errno.ENOENT and not file:
        hint = "start it in a folder that exists; TMPDIR names one for temporary files"
        return user_error(f"a folder is missing: {error.strerror}", hint=hint)
    if error.errno in _SHORTAGES:
        return internal_error(f"the system refused it: {error.strerror}", file=file, hint="free some, and try again")
    return None


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
