"""Load a spec, a plan or the folder of a run: find its kind, and validate it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, format_value, user_error
from unfoldkit.io.yaml12 import PLAN_SCHEMA
from unfoldkit.plugin_descriptors import Kind, resolve
from unfoldkit.run_directory import RunDir, fingerprint
from unfoldkit.safe_io.files import parse_object
from unfoldkit.spec.base import Model, Spec
from unfoldkit.spec.override import apply_settings
from unfoldkit.spec.positions import diagnostic_at, locate
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import Document, Mark, PathKey, decode_text, parse, read_document

RUN_SPEC = "spec.yaml"
RUN_PLAN = "plan.yaml"
ORIGIN = "origin.json"


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A validated spec.

    Args:
        kind: Its kind.
        spec: The spec.
        base: The folder that its relative paths start from.
        plan: The plan that held the spec; empty if it was not in a plan.
        run: The folder of the run that held the spec.
        document: The file, for the positions of errors.
        command_words: What a command names it by, with its settings; it replaces ``SPEC`` in hints.
    """

    kind: Kind
    spec: Spec
    base: Path
    plan: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None
    document: Document | None = None
    command_words: str = "SPEC"

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Add file and line to errors of a verb that name a key, and the spec to the commands in their hints."""
        try:
            yield
        except UnfoldError as error:
            located = [item if self.document is None else locate(self.document, item) for item in error.diagnostics]
            named = (replace(item, hint=name_spec(item.hint, self.command_words)) for item in located)
            raise UnfoldError(*named, code=error.code) from error


def name_spec(command: str, words: str) -> str:
    """Replace ``SPEC`` in a command by the words for the spec of this call."""
    return re.sub(r"\bSPEC\b", lambda _: words, command)


def load_spec(
    path: str,
    kinds: Mapping[str, Kind],
    *,
    settings: Sequence[str] = (),
    stdin: str = "",
    find_kind: Callable[[str], Kind] | None = None,
    list_settings: Callable[[Kind], Sequence[str]] | None = None,
) -> LoadedSpec:
    """Load and validate the spec at ``path``.

    Args:
        path: A spec, a plan, the folder of a run, or ``-`` for stdin.
        kinds: The kinds by name.
        settings: ``KEY=VALUE`` changes of the spec.
        stdin: The text of stdin.
        find_kind: Finds a kind, with an error that explains why one is missing.
        list_settings: Lists further changes, which depend on the kind.

    Raises:
        UnfoldError: Every mistake with file, line, column, key and hint (exit code 2).
    """
    folder = Path(path) if path != "-" and os.path.isdir(path) else None  # noqa: PTH112 - Path.is_dir raises
    document = _read_run(folder) if folder else read_document(path, stdin)
    refuse_other_schema(document)
    plan: Mapping[str, Any] = {}
    if isinstance(document.data, dict) and document.data.get("schema") == PLAN_SCHEMA:
        plan, document = document.data, _extract_spec(document)
    base, run = _find_run(document, Path(document.file).parent) if path != "-" else (Path(), None)
    document = apply_settings(document, settings)
    kind = _find_kind(document, kinds, find_kind)
    if list_settings is not None:
        document = apply_settings(document, list_settings(kind))
    model = resolve(kind.spec, extra=kind.extra)
    return LoadedSpec(kind, validate(model, document), base, plan, folder or run, document)


def refuse_other_schema(document: Document) -> None:
    """Refuse a plan that another version wrote: its keys may mean something else.

    Raises:
        UnfoldError: The document is such a plan.
    """
    schema = document.data.get("schema", PLAN_SCHEMA) if isinstance(document.data, dict) else PLAN_SCHEMA
    if schema != PLAN_SCHEMA and str(schema).startswith(PLAN_SCHEMA.partition("/")[0]):
        message = f"this version cannot read a plan of schema {format_value(schema)}"
        raise UnfoldError(diagnostic_at(document, ("schema",), message, hint=f"it reads {PLAN_SCHEMA}"))


def stored_kind(folder: Path) -> str | None:
    """Return the kind of the run in ``folder``; ``None`` if there is none, or it cannot be read."""
    with suppress(UnfoldError):
        data = _read_run(folder).data
        return str(data["kind"]) if isinstance(data, dict) and "kind" in data else None
    return None


def dump(spec: Model) -> dict[str, Any]:
    """Convert a spec to plain data that validates to an equal spec."""
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def spec_hash(spec: Model) -> str:
    """Return the fingerprint of a resolved spec, which does not depend on the layout of its file."""
    return fingerprint(dump(spec))


def _read_run(folder: Path) -> Document:
    directory, file = RunDir(folder), str(folder / RUN_SPEC)
    if not directory.has(RUN_SPEC):
        raise user_error("the folder holds no run", file=str(folder), hint="give a spec, or a folder such as runs/NAME")
    return parse(decode_text(directory.read(RUN_SPEC), file), file)


def _extract_spec(document: Document) -> Document:
    if not isinstance(document.data.get("spec"), dict):
        raise UnfoldError(diagnostic_at(document, ("spec",), "a plan must hold the spec that it was made from"))
    keys, values = map(_extract_marks, (document.keys, document.values))
    return replace(document, data=document.data["spec"], keys=keys, values=values)


def _extract_marks(marks: Mapping[PathKey, Mark]) -> dict[PathKey, Mark]:
    """Return the positions in the spec of a plan, and those of its decision, which may have been edited."""
    decision = {path: mark for path, mark in marks.items() if path[:1] == ("decision",)}
    return decision | {path[1:]: mark for path, mark in marks.items() if path[:1] == ("spec",)}


def _find_run(document: Document, folder: Path) -> tuple[Path, Path | None]:
    """Return the folder that relative paths start from, which a run stores, and the run of a file."""
    directory = RunDir(folder)
    if Path(document.file).name not in (RUN_SPEC, RUN_PLAN) or not directory.has(ORIGIN):
        return folder, None
    with directory.decoding(ORIGIN, "the origin of a run") as data:
        base = parse_object(data)["base"]
        if not isinstance(base, str) or "\0" in base:
            raise TypeError("base is not a path")
        return folder / base, folder


def _find_kind(document: Document, kinds: Mapping[str, Kind], find_kind: Callable[[str], Kind] | None) -> Kind:
    if not isinstance(document.data, dict):
        message = f"a spec is a mapping of keys, not {format_value(document.data)}"
        raise UnfoldError(diagnostic_at(document, (), message, hint=_suggest_mapping(document.data)))
    name = document.data.get("kind")
    if name is None:
        raise UnfoldError(_missing_kind(document, kinds))
    if not isinstance(name, str) or (name not in kinds and find_kind is None):
        hint = did_you_mean(str(name), kinds)
        raise UnfoldError(diagnostic_at(document, ("kind",), f"no such kind: {format_value(name)}", hint=hint))
    return kinds[name] if find_kind is None else _call_find_kind(document, name, find_kind)


def _suggest_mapping(data: Any) -> str:
    """Return the hint for a document that is not a mapping."""
    if isinstance(data, str) and re.match(r"\w+ *=", data):
        return "a spec is YAML or JSON, not TOML"
    if isinstance(data, str) and re.match(r"\w+:\S", data):
        return 'write a space after each ":"'
    return "unfold init KIND writes one to start from"


def _missing_kind(document: Document, kinds: Mapping[str, Kind]) -> Diagnostic:
    hint = f"one of: {', '.join(sorted(kinds))}"
    if "kind" in document.data:
        return diagnostic_at(document, ("kind",), "expected the name of a kind, got nothing", hint=hint, at_key=True)
    for key in difflib.get_close_matches("kind", document.data, n=1, cutoff=0.7):
        return diagnostic_at(document, (key,), "unknown key", hint='did you mean "kind"?', at_key=True)
    return diagnostic_at(document, ("kind",), "this key is missing", hint=hint)


def _call_find_kind(document: Document, name: str, find_kind: Callable[[str], Kind]) -> Kind:
    try:
        return find_kind(name)
    except UnfoldError as error:
        located = [diagnostic_at(document, ("kind",), item.message, hint=item.hint) for item in error.diagnostics]
        raise UnfoldError(*located, code=error.code) from error
