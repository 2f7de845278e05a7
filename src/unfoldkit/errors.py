"""Diagnostics, exit codes and the one exception of the toolkit. Every failure is one line that a user can act on.

A missing package that belongs to an extra is such a failure.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

MAX_CHOICES = 12
"""A hint lists up to so many valid names when none of them is close to the misspelt one."""
EXCERPT = 8
"""Letters that an error shows of what may be a secret."""
MAX_NAME = 40
"""Letters of the longest name that a list shows in full."""
_NAME = re.compile(r"[^\W\d][\w .,/|()\[\]%#-]{0,39}")
"""What is taken for the name of a column."""
_QUOTABLE = re.compile(r"[\d\s:/.,+TZ-]{0,40}|.{0,16}")
DISTRIBUTION_NAMES = {
    "PIL": "pillow", "botocore": "boto3", "google": "protobuf", "grpc": "grpcio", "sklearn": "scikit-learn",
    "sky": "skypilot",
}  # fmt: skip
"""Distributions by module, where their names differ."""


class ExitCode(IntEnum):
    """Exit status of every verb."""

    YES = 0
    """The verb ran and the answer is yes."""
    NO = 1
    """The verb ran and the answer is no: infeasible, target missed, plan drifted."""
    USAGE = 2
    """The caller is at fault: spec, flag, file, missing extra."""
    INTERNAL = 3
    """The machine lacks disk space, memory or files, or unfold or a plugin is at fault."""
    HUNG_UP = 129
    """The terminal was closed (SIGHUP); a service that ends by it exits with 0."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CLOSED_PIPE = 141
    """The reader of stdout closed it."""
    TERMINATED = 143
    """SIGTERM; a service that ends by it exits with 0."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake with its position, printed as ``file:line:column: key: message (hint)``.

    ``line`` and ``column`` count from 1; 0 means unknown, or that the position is not in a file.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        body = f"{self.message} ({self.hint})" if self.hint else self.message
        return escape_unprintable(": ".join(part for part in (self.place, shorten(self.key, 120), body) if part))

    @property
    def place(self) -> str:
        """``file:line:column``, as far as it is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.line and self.column) if part)


class UnfoldError(Exception):
    """A failure that the command line prints as diagnostics, never as a traceback."""

    def __init__(self, *diagnostics: Diagnostic, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__("\n".join(str(diagnostic) for diagnostic in diagnostics))
        self.diagnostics = diagnostics
        self.code = code


def user_error(message: str, *, hint: str = "", file: str = "", key: str = "") -> UnfoldError:
    """Make an error that the caller can fix (exit code 2), with one diagnostic."""
    return UnfoldError(Diagnostic(message, file=file, key=key, hint=hint))


def internal_error(message: str, *, hint: str = "", file: str = "") -> UnfoldError:
    """Make an error that the caller did not cause (exit code 3), with one diagnostic."""
    return UnfoldError(Diagnostic(message, file=file, hint=hint), code=ExitCode.INTERNAL)


def run_checks(checks: Iterable[Callable[[], object]]) -> Iterator[Diagnostic]:
    """Run every check, whatever the others find, and yield the diagnostics of those that raise :class:`UnfoldError`."""
    for check in checks:
        try:
            check()
        except UnfoldError as error:
            yield from error.diagnostics


def with_default_file(diagnostic: Diagnostic, file: str) -> Diagnostic:
    """Return the diagnostic with ``file`` as its position, unless it names a file already."""
    return diagnostic if diagnostic.file else replace(diagnostic, file=file)


def require_packages(user: str, *modules: str, file: str = "", key: str = "") -> None:
    """Check that packages can be imported, before the work that needs them begins.

    Args:
        user: What needs them, such as ``a Parquet file``.
        modules: Their top-level modules.
        file: The file that the error names.
        key: The key of the spec that the error names.

    Raises:
        UnfoldError: One is not installed (exit code 2); the hint is the command that installs it.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise _missing_package(name, find_extra(name), user=user, file=file, key=key)


def explain_missing_package(
    error: ModuleNotFoundError, extra: str | None = None, *, owner: str = "unfoldkit"
) -> UnfoldError:
    """Return the error for a package that is not installed, with the command that installs it.

    Args:
        error: What the import raised.
        extra: The extra that brings the package; by default the smallest extra of unfoldkit that has it.
        owner: The distribution with the extra.
    """
    name = str(error.name).partition(".")[0]
    return _missing_package(name, extra or find_extra(name), owner, user="this")


@contextmanager
def explain_missing_packages(extra: str | None) -> Iterator[None]:
    """Turn the failed import of a package that an extra brings into an error that names the extra.

    Args:
        extra: The extra of the kind that runs, which is named if it brings the package.

    Raises:
        UnfoldError: The package is not installed (exit code 2).
    """
    try:
        yield
    except ModuleNotFoundError as error:
        found = find_extra(str(error.name).partition(".")[0], extra)
        if not found:
            raise
        raise explain_missing_package(error, found) from error


def find_extra(module: str, preferred: str | None = None) -> str:
    """Return the extra of unfoldkit that brings the distribution of a module; empty if none does.

    Args:
        module: The top-level module.
        preferred: The extra to return if several do; without it the one with the fewest packages.
    """
    wanted, packages = _normalize(DISTRIBUTION_NAMES.get(module, module)), list_extras()
    matches = [extra for extra, names in packages.items() if wanted in names]
    if preferred in matches:
        return str(preferred)
    return min(matches, key=lambda extra: (len(packages[extra]), extra), default="")


def list_extras() -> dict[str, set[str]]:
    """Return the packages that each extra of unfoldkit names; ``unfoldkit`` for one that includes other extras."""
    # only needed for a message
    import importlib.metadata

    packages: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("unfoldkit") or ():
        requirement, _, marker = line.partition(";")
        extra, name = re.search(r"extra == ['\"]([\w-]+)", marker), re.match(r"[\w.-]+", requirement)
        if extra and name:
            packages.setdefault(extra[1], set()).add(_normalize(name[0]))
    return packages


def _normalize(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _missing_package(
    name: str, extra: str, owner: str = "unfoldkit", *, user: str, file: str = "", key: str = ""
) -> UnfoldError:
    hint = install_command(extra, owner) if extra else "pip install it"
    message = f"{user} needs the package {DISTRIBUTION_NAMES.get(name, name)!r}, which is not installed"
    return user_error(message, file=file, key=key, hint=hint)


def install_command(extra: str, owner: str = "unfoldkit") -> str:
    """Return the command that installs an extra: from the path that its distribution came from, if that is still there.

    Args:
        extra: The extra.
        owner: The distribution with the extra.
    """
    # only needed for a message
    import importlib.metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    source = owner
    with suppress(importlib.metadata.PackageNotFoundError, ValueError):
        # PEP 610
        text = importlib.metadata.distribution(owner).read_text("direct_url.json")
        url = urlsplit(json.loads(text)["url"] if text else "")
        path = url2pathname(url.path)
        if url.scheme == "file" and Path(path).exists():
            source = path
    return f"pip install '{source}[{extra}]'"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt word: ``did you mean "x"?``, a short list of all names, or nothing."""
    names = sorted(set(known))
    close = find_similar(word, names)
    if close:
        return f'did you mean "{close}"?'
    shown = (name if len(name) <= MAX_NAME else f"{name[:EXCERPT]}..." for name in names)
    return f"one of: {', '.join(shown)}" if 0 < len(names) <= MAX_CHOICES else ""


def find_similar(word: str, names: Sequence[str]) -> str:
    """Return the name that a misspelt word resembles most, or nothing."""
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.6)), "")


def format_value(value: Any) -> str:
    """Format a value of a spec as JSON in at most 60 printable characters."""
    return shorten(escape_unprintable(json.dumps(value, ensure_ascii=False, default=str)))


def shorten(text: str, max_length: int = 60) -> str:
    """Cut ``text`` to ``max_length`` characters; an ellipsis of three dots marks the cut."""
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def list_columns(names: Sequence[str]) -> str:
    """List the first columns of a file for an error.

    A file without the needed columns may be another one than was meant, such as one of secrets: what does not look like
    a name is cut to its beginning.
    """
    shown = (name if _NAME.fullmatch(name) else f"{name[:EXCERPT]}..." for name in names[:MAX_CHOICES])
    return ", ".join(shown) or "nothing"


def quote_cell(text: str) -> str:
    """Quote a cell of a file which may be another one than was meant; only a short or numeric one in full."""
    return repr(text if _QUOTABLE.fullmatch(text) else f"{text[:EXCERPT]}...")


def escape_unprintable(text: str) -> str:
    """Escape control and other unprintable characters, so that ``text`` is safe to print in one line."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
