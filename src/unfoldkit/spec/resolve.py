"""Read a spec, a plan or a run folder, find its kind, and validate it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unfoldkit.descriptors import Kind, resolve
from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, format_value, user_error
from unfoldkit.io.yaml12 import PLAN_SCHEMA
from unfoldkit.run_directory import RunDir, fingerprint
from unfoldkit.safe_io.files import parse_object
from unfoldkit.spec.base import Model, Spec
from unfoldkit.spec.override import override
from unfoldkit.spec.positions import diagnostic, located
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import Document, decoded, parse, read_document

RUN_SPEC = "spec.yaml"
RUN_PLAN = "plan.yaml"
ORIGIN = "origin.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A validated spec with its kind; ``plan`` is the saved decision if it was a plan; ``run`` its run."""

    kind: Kind
    spec: Spec
    base: Path
    plan: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None
    document: Document | None = None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Give the errors of a verb that name a key the file and line where it is written."""
        try:
            yield
        except UnfoldError as error:
            if self.document is None:
                raise
            placed = [located(self.document, item) for item in error.diagnostics]
            raise UnfoldError(*placed, code=error.code) from error


def load(
    path: str,
    kinds: Mapping[str, Kind],
    *,
    settings: Sequence[str] = (),
    stdin: str = "",
    find_kind: Callable[[str], Kind] | None = None,
) -> Loaded:
    """Return the validated spec at ``path``: a file, ``-``, a plan, or the folder of a run.

    Raises:
        UnfoldError: every mistake with file, line, column, key and hint (exit code 2).
    """
    folder = Path(path) if path != "-" and os.path.isdir(path) else None  # noqa: PTH112 - Path.is_dir raises
    document = _of_run(folder) if folder else read_document(path, stdin)
    plan: Mapping[str, Any] = {}
    if isinstance(document.data, dict) and document.data.get("schema") == PLAN_SCHEMA:
        plan, document = document.data, _inner(document)
    base, run = _run_of(document, Path(document.file).parent) if path != "-" else (Path(), None)
    document = override(document, settings)
    kind = _kind(document, kinds, find_kind)
    model = resolve(kind.spec, extra=kind.extra)
    return Loaded(kind, validate(model, document), base, plan, folder or run, document)


def kept_kind(folder: Path) -> str | None:
    """Return the kind of the run that ``folder`` holds; ``None`` if it holds none, or one that cannot be read."""
    with suppress(UnfoldError):
        data = _of_run(folder).data
        return str(data["kind"]) if isinstance(data, dict) and "kind" in data else None
    return None


def dump(spec: Model) -> dict[str, Any]:
    """Return the spec as plain data that validates to an equal spec."""
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def spec_hash(spec: Model) -> str:
    """Return the fingerprint of the resolved spec: equal for equal meaning, whatever the layout of the file."""
    return fingerprint(dump(spec))


def _of_run(folder: Path) -> Document:
    directory, file = RunDir(folder), str(folder / RUN_SPEC)
    if not directory.has(RUN_SPEC):
        raise user_error(
            "a folder that holds no run", file=str(folder), hint="give a spec, or a folder such as runs/NAME"
        )
    return parse(decoded(directory.read(RUN_SPEC), file), file)


def _inner(document: Document) -> Document:
    if not isinstance(document.data.get("spec"), dict):
        raise UnfoldError(diagnostic(document, ("spec",), "a plan holds the spec that it was made from"))
    keys = {path[1:]: mark for path, mark in document.keys.items() if path[:1] == ("spec",)}
    values = {path[1:]: mark for path, mark in document.values.items() if path[:1] == ("spec",)}
    return replace(document, data=document.data["spec"], keys=keys, values=values)


def _run_of(document: Document, folder: Path) -> tuple[Path, Path | None]:
    """Return where relative paths start, as a run remembers it of what it copied, and the run that a file is of."""
    directory = RunDir(folder)
    if Path(document.file).name not in (RUN_SPEC, RUN_PLAN) or not directory.has(ORIGIN):
        return folder, None
    with directory.decoding(ORIGIN, "the origin of a run") as data:
        base = parse_object(data)["base"]
        if not isinstance(base, str) or "\0" in base:
            raise TypeError("base is no path")
        return folder / base, folder


def _kind(document: Document, kinds: Mapping[str, Kind], find_kind: Callable[[str], Kind] | None) -> Kind:
    if not isinstance(document.data, dict):
        message = f"a spec is a mapping of keys, not {format_value(document.data)}"
        raise UnfoldError(diagnostic(document, (), message, hint=_mapped(document.data)))
    name = document.data.get("kind")
    if name is None:
        raise UnfoldError(_kindless(document, kinds))
    if not isinstance(name, str) or (name not in kinds and find_kind is None):
        hint = did_you_mean(str(name), kinds)
        raise UnfoldError(diagnostic(document, ("kind",), f"no such kind: {format_value(name)}", hint=hint))
    return kinds[name] if find_kind is None else _found(document, name, find_kind)


def _mapped(data: Any) -> str:
    """Return what makes a mapping of text that was meant as one."""
    if isinstance(data, str) and re.match(r"\w+ *=", data):
        return "a spec is YAML or JSON, not TOML"
    if isinstance(data, str) and re.match(r"\w+:\S", data):
        return 'write a space after each ":"'
    return "unfold init KIND writes one to start from"


def _other_schema(document: Document) -> bool:
    return str(document.data.get("schema", "")).startswith(PLAN_SCHEMA.partition("/")[0])


def _kindless(document: Document, kinds: Mapping[str, Kind]) -> Diagnostic:
    hint = f"one of: {', '.join(sorted(kinds))}"
    if _other_schema(document):
        message = f"this version cannot read a plan of schema {format_value(document.data['schema'])}"
        return diagnostic(document, ("schema",), message, hint=f"it reads {PLAN_SCHEMA}")
    if "kind" in document.data:
        return diagnostic(document, ("kind",), "expected the name of a kind, got nothing", hint=hint, at_key=True)
    for key in difflib.get_close_matches("kind", document.data, n=1, cutoff=0.7):
        return diagnostic(document, (key,), "unknown key", hint='did you mean "kind"?', at_key=True)
    return diagnostic(document, ("kind",), "this key is missing", hint=hint)


def _found(document: Document, name: str, find_kind: Callable[[str], Kind]) -> Kind:
    try:
        return find_kind(name)
    except UnfoldError as error:
        told = [diagnostic(document, ("kind",), item.message, hint=item.hint) for item in error.diagnostics]
        raise UnfoldError(*told, code=error.code) from error
