"""What a plugin offers to the host: descriptors that refer to code by string, so that listing them imports nothing."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from unfoldkit.errors import explain_missing_package, internal_error

API_VERSION = 1
ENTRY_POINT_GROUP = "unfoldkit"
REPORT_TO_AUTHORS = "report this to the plugin's authors"
VERBS = ("profile", "train", "plan", "validate", "serve")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of spec and the verbs that it supports.

    Args:
        name: The value of the key ``kind``.
        summary: One line for lists of kinds.
        spec: ``"package.module:attribute"`` of the pydantic model.
        profile: The same for the function of this verb; ``None`` if the kind does not have it.
        train: As ``profile``.
        plan: As ``profile``.
        validate: As ``profile``: compares what the plan of a run promised with new data, ``Run.options['data']``.
        serve: As ``profile``.
        examples: ``"package:folder"`` with YAML specs, the smallest first.
        extra: The optional dependency group that the kind needs, of the plugin's distribution or of unfoldkit.
        api: The version of the plugin contract.
        many: ``serve`` may run in several processes at once.
        replay: ``plan`` and ``serve`` replay a trace.
        carries: ``train`` executes a plan.
        recalibrates: ``plan`` refits a stored plan on new data.
        selects_node: ``profile`` measures on the node that ``--on`` names.
        runs_on: The key of the spec that says where ``train`` runs, which ``train --target`` sets.
        targets: Systems with an existing deployment that ``serve --target`` takes charge of. With ``--dry-run`` it
            returns a report of what it would change.
        export: A ``(spec, Run) -> bytes`` that makes one ONNX graph of a run, for ``unfold export``.
        opens: A ``(spec, Run) -> Iterable[Diagnostic]`` that checks the files of a spec, for ``check --data``.
        verifies: A ``(spec, Run) -> Report`` that searches for violations, for ``check --verify``. The key
            ``counterexample`` of its decision holds a spec.
        compares: A ``(spec, decision) -> Iterable[Diagnostic]`` that finds where the decision of a plan, which may have
            been edited, does not fit its spec, for ``check`` and ``serve``.
    """

    name: str
    summary: str
    spec: str
    profile: str | None = None
    train: str | None = None
    plan: str | None = None
    validate: str | None = None
    serve: str | None = None
    examples: str | None = None
    extra: str | None = None
    api: int = API_VERSION
    many: bool = False
    replay: bool = False
    carries: bool = False
    recalibrates: bool = False
    selects_node: bool = False
    runs_on: str | None = None
    targets: tuple[str, ...] = ()
    opens: str | None = None
    verifies: str | None = None
    export: str | None = None
    compares: str | None = None

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs of this kind, in the order of use."""
        return tuple(verb for verb in VERBS if getattr(self, verb))


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a ``doctor`` check: whether it passed, one sentence, and the remedy."""

    ok: bool
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A health check for ``unfold doctor``; ``action`` names a ``() -> CheckResult``.

    With a ``target`` it runs for ``doctor --target`` only, and names a ``() -> Mapping[str, CheckResult]``: what was
    found out about that system, by name.
    """

    name: str
    summary: str
    action: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Renderer:
    """An output format; ``render`` names a ``(Report) -> str | bytes``.

    With a ``kind`` it is for reports of that kind, and another kind may offer a format of the same name.
    """

    name: str
    summary: str
    render: str
    suffixes: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The event that observers receive after a verb: its report as plain data, and its exit code."""

    kind: str
    verb: str
    name: str
    exit_code: int
    report: dict[str, Any] = field(default_factory=dict)


def resolve(reference: str, *, extra: str | None = None) -> Any:
    """Import the object that ``"package.module:attribute"`` names.

    Args:
        reference: The reference.
        extra: The optional dependency group to name if a package is missing.

    Raises:
        UnfoldError: The module needs a package that is not installed (exit code 2), or the reference is wrong (3).
    """
    try:
        return pkgutil.resolve_name(reference)
    except ModuleNotFoundError as error:
        if f"{reference.partition(':')[0]}.".startswith(f"{error.name}.") and "." in str(error.name):
            message = f"{reference}: there is no module {error.name}"
            raise internal_error(message, hint=REPORT_TO_AUTHORS) from error
        owner = _distribution_with(reference, extra) if extra else "unfoldkit"
        raise explain_missing_package(error, extra, owner=owner) from error
    except AttributeError as error:
        module, _, name = reference.partition(":")
        if error.obj is not sys.modules.get(module):
            raise
        raise internal_error(f"{reference}: {module} has no {name}", hint=REPORT_TO_AUTHORS) from error


def find_distribution(reference: str) -> importlib.metadata.Distribution | None:
    """Return the distribution of the plugin that a reference belongs to; ``None`` for other code."""
    package = re.split(r"[.:]", reference)[0]
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return next((point.dist for point in points if point.module.partition(".")[0] == package), None)


def _distribution_with(reference: str, extra: str) -> str:
    distribution = find_distribution(reference)
    extras = distribution.metadata.get_all("Provides-Extra") or () if distribution else ()
    return distribution.name if distribution and extra in extras else "unfoldkit"
