"""What can go wrong, said in one line each: diagnostics, exit codes and the one exception."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit status of every verb."""

    YES = 0
    """It ran and the answer is yes."""
    NO = 1
    """It ran and the answer is no: infeasible, target missed, plan drifted."""
    USAGE = 2
    """The caller's fault: spec, flag, file, missing extra."""
    INTERNAL = 3
    """Our fault or a plugin's."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CLOSED_PIPE = 141
    """The reader of stdout went away."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake, with its place: printed as ``file:line:column: key: message (hint)``.

    ``line`` and ``column`` count from 1; 0 means that it is not known, or that the place is not in a file.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        body = f"{self.message} ({self.hint})" if self.hint else self.message
        return printable(": ".join(part for part in (self.place, cut(self.key, 120), body) if part))

    @property
    def place(self) -> str:
        """``file:line:column``, as far as it is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.line and self.column) if part)


class UnfoldError(Exception):
    """A failure that is told to the user in words, never as a traceback."""

    def __init__(self, *diagnostics: Diagnostic, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__("\n".join(str(diagnostic) for diagnostic in diagnostics))
        self.diagnostics = diagnostics
        self.code = code


def printable(text: str) -> str:
    """Return ``text`` in one line that is safe to print: what cannot be seen is written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def show(value: Any) -> str:
    """Return a value of a spec as short text of at most 60 characters, text in double quotes."""
    return cut(printable(json.dumps(value, ensure_ascii=False, default=str)))


def cut(text: str, most: int = 60) -> str:
    """Return ``text``, or its beginning and dots where it is longer than ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def fail(message: str, *, hint: str = "", file: str = "", key: str = "") -> UnfoldError:
    """Make the caller's-fault error (exit code 2) with one diagnostic."""
    return UnfoldError(Diagnostic(message, file=file, key=key, hint=hint))


def broken(message: str, *, hint: str = "", file: str = "") -> UnfoldError:
    """Make the error for a failure that is not the caller's (exit code 3)."""
    return UnfoldError(Diagnostic(message, file=file, hint=hint), code=ExitCode.INTERNAL)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean "x"?`` for the closest known word, or the list of a few, or nothing."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 12 else ""


def in_file(diagnostic: Diagnostic, file: str) -> Diagnostic:
    """Return the same diagnostic, told of ``file`` when it names none."""
    return diagnostic if diagnostic.file else replace(diagnostic, file=file)
