"""What a plugin hands to the host: descriptors that name code by string, so that listing imports nothing."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from unfoldkit.errors import internal_error, user_error

API_VERSION = 1
ENTRY_POINT_GROUP = "unfoldkit"
TELL = "tell the plugin's authors"
VERBS = ("profile", "train", "plan", "serve")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of spec and the verbs that it answers to.

    ``spec`` and the verbs are ``"package.module:attribute"``; a verb that is ``None`` is absent.
    ``examples`` is ``"package:folder"`` with YAML specs, smallest first; ``extra`` is the optional dependency group, of
    the plugin's distribution or else of unfoldkit, that the kind needs. ``many`` says that ``serve`` may run in several
    processes at once, ``replay`` that ``plan`` (and ``serve``) play a trace, ``carries`` that ``train`` carries out a
    plan. ``opens`` names a ``(spec, Run) -> Iterable[Diagnostic]``: what is wrong with the files that a spec names, for
    ``unfold check --data``.
    """

    name: str
    summary: str
    spec: str
    profile: str | None = None
    train: str | None = None
    plan: str | None = None
    serve: str | None = None
    examples: str | None = None
    extra: str | None = None
    api: int = API_VERSION
    many: bool = False
    replay: bool = False
    carries: bool = False
    opens: str | None = None

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that this kind has, in the order in which a user meets them."""
        return tuple(verb for verb in VERBS if getattr(self, verb))


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a ``doctor`` check found: fine or not, in one sentence, and what to do about it."""

    ok: bool
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A health check for ``unfold doctor``; ``action`` names a ``() -> CheckResult``."""

    name: str
    summary: str
    action: str


@dataclass(frozen=True, slots=True)
class Renderer:
    """An output format; ``render`` names a ``(Report) -> str | bytes``."""

    name: str
    summary: str
    render: str
    suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFinished:
    """What an observer is told after a verb: its report (as plain data) and exit code."""

    kind: str
    verb: str
    name: str
    exit_code: int
    report: dict[str, Any] = field(default_factory=dict)


def resolve(reference: str, *, extra: str | None = None) -> Any:
    """Return the object that ``"package.module:attribute"`` names.

    Raises:
        UnfoldError: the module needs a package that is not installed (exit code 2, names the extra), or the reference
            leads nowhere (exit code 3).
    """
    try:
        return pkgutil.resolve_name(reference)
    except ModuleNotFoundError as error:
        if f"{reference.partition(':')[0]}.".startswith(f"{error.name}.") and "." in str(error.name):
            raise internal_error(f"{reference}: there is no module {error.name}", hint=TELL) from error
        hint = f"pip install '{_brought_by(reference, extra)}[{extra}]'" if extra else "pip install it"
        raise user_error(f"{reference} needs the package {error.name!r}, which is not installed", hint=hint) from error
    except AttributeError as error:
        module, _, name = reference.partition(":")
        if error.obj is not sys.modules.get(module):
            raise
        raise internal_error(f"{reference}: {module} has no {name}", hint=TELL) from error


def shipped_by(reference: str) -> importlib.metadata.Distribution | None:
    """Return the distribution whose plugin a reference leads into, by its entry points; ``None`` for other code."""
    top = re.split(r"[.:]", reference)[0]
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return next((point.dist for point in points if point.module.partition(".")[0] == top), None)


def _brought_by(reference: str, extra: str) -> str:
    found = shipped_by(reference)
    return found.name if found and extra in (found.metadata.get_all("Provides-Extra") or ()) else "unfoldkit"
