"""The laws of a kind. Each takes the kind and an empty folder, and raises ``AssertionError`` if the kind breaks it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from unfoldkit.engines.local import LocalEngine
from unfoldkit.errors import UnfoldError
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.plugin_descriptors import VERBS, Kind, resolve
from unfoldkit.report import Report, from_data, to_data, validate_report, without_measurements
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.base import Spec
from unfoldkit.spec.resolve import dump
from unfoldkit.spec.schema import build_schema
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import Document, PathKey, parse

Law = Callable[[Kind, Path], None]
HEAVY = ("numpy", "scipy", "sklearn", "xgboost", "torch", "ray", "pydantic", "matplotlib", "boto3", "numba")
TIMEOUT_S = 60


def laws() -> tuple[Law, ...]:
    """Return every law, the fast ones first."""
    return (
        references_resolve,
        listing_imports_nothing_heavy,
        examples_are_valid,
        specs_survive_being_written,
        schema_is_for_editors,
        wrong_values_are_reported_with_their_line,
        unknown_keys_are_reported_by_name,
        reports_survive_json,
        equal_seeds_give_equal_reports,
    )


def find_violation(law: Law, kind: Kind, folder: Path) -> str | None:
    """Check a kind against a law in an empty folder; return how the kind breaks it, or ``None`` if it does not."""
    try:
        law(kind, folder)
    except AssertionError as error:
        return str(error) or law.__name__
    return None


def references_resolve(kind: Kind, _folder: Path) -> None:
    """Every reference of the kind leads to an object, and the kind has at least one verb."""
    _hold(bool(kind.verbs), f"{kind.name} has no verb")
    for reference in (kind.spec, kind.opens, kind.verifies, kind.compares, *(getattr(kind, verb) for verb in VERBS)):
        _hold(reference is None or resolve(reference) is not None, reference)


def listing_imports_nothing_heavy(kind: Kind, _folder: Path) -> None:
    """Importing the module of the hooks loads none of the heavy libraries."""
    module = kind.spec.split(":")[0].split(".")[0] + ".hooks"
    code = f"import sys, {module}; list({module}.unfold_kinds()); print([n for n in {HEAVY!r} if n in sys.modules])"
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)  # noqa: S603
    _hold(result.stdout.strip() == "[]", f"{module} imports {result.stdout.strip()}")


def examples_are_valid(kind: Kind, _folder: Path) -> None:
    """Every example of the kind validates, and there is at least one."""
    documents = list(example_documents(kind))
    _hold(bool(documents), f"{kind.name} ships no example")
    for document in documents:
        validate(resolve(kind.spec), document)


def specs_survive_being_written(kind: Kind, _folder: Path) -> None:
    """A spec that is written to YAML and read back is equal."""
    for document in example_documents(kind):
        spec = validate(resolve(kind.spec), document)
        again = validate(resolve(kind.spec), parse(to_yaml(dump(spec))))
        _hold(again == spec, f"{document.file}: {dump(again)} is not {dump(spec)}")


def schema_is_for_editors(kind: Kind, _folder: Path) -> None:
    """The schema is JSON, names its draft, and its keys are those of the spec."""
    model: type[Spec] = resolve(kind.spec)
    data = json.loads(json.dumps(build_schema(model, kind.name)))
    _hold(data["$schema"].startswith("http://json-schema.org/draft-07"), data["$schema"])
    keys = {field.alias or name for name, field in model.model_fields.items()}
    _hold(keys == set(data["properties"]), f"the schema has {sorted(data['properties'])}, the spec {sorted(keys)}")


def wrong_values_are_reported_with_their_line(kind: Kind, _folder: Path) -> None:
    """A wrong value instead of any value of an example is rejected with its line, or accepted."""
    for document in example_documents(kind):
        for path in [path for path in document.values if path]:
            for wrong in ({"wrong": ["shape"]}, -7, "\x07?", None):
                _try_validate(kind, _replace_value(document, path, wrong))


def unknown_keys_are_reported_by_name(kind: Kind, _folder: Path) -> None:
    """An unknown key at the top of a spec is rejected by name."""
    for document in example_documents(kind):
        errors = _try_validate(kind, _replace_value(document, ("nonesuch",), 1))
        _hold(any("nonesuch" in line for line in errors), f"{document.file}: an unknown key gives {errors}")


def reports_survive_json(kind: Kind, folder: Path) -> None:
    """A report is valid, and equal after it is written as JSON and read back."""
    report = first_report(kind, folder / "run")
    problems = list(validate_report(report, kind.name, getattr(report, "verb", "")))
    _hold(not problems, f"{kind.name}: {'; '.join(problems)}")
    data = json.loads(json.dumps(to_data(report), allow_nan=False))
    _hold(to_data(from_data(data)) == data, f"{kind.name}: the report changes when it is written and read back")


def equal_seeds_give_equal_reports(kind: Kind, folder: Path) -> None:
    """The same spec and seed give the same report in two new runs, apart from measured values."""
    first, second = (first_report(kind, folder / name) for name in ("one", "two"))
    texts = [
        json.dumps(to_data(without_measurements(report))).replace(str(folder / name), "RUN")
        for report, name in ((first, "one"), (second, "two"))
    ]
    _hold(texts[0] == texts[1], "two runs differ")


def first_report(kind: Kind, folder: Path) -> Report:
    """Run the kind's plan (without one, train or profile) on its first example, and return the report."""
    document = next(example_documents(kind))
    spec = validate(resolve(kind.spec), document)
    verb = next(verb for verb in ("plan", "train", "profile") if getattr(kind, verb))
    base = (
        Path(str(files(kind.examples.partition(":")[0]).joinpath(kind.examples.partition(":")[2])))
        if kind.examples
        else Path()
    )
    run = Run(directory=RunDir(folder), engine=LocalEngine(1), base=base)
    report: Report = resolve(getattr(kind, verb))(spec, run)
    return report


def example_documents(kind: Kind) -> Iterator[Document]:
    """Yield the kind's examples, parsed, sorted by name."""
    package, _, folder = (kind.examples or "").partition(":")
    if package:
        for entry in sorted(files(package).joinpath(folder).iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".yaml"):
                yield parse(entry.read_text(encoding="utf-8"), entry.name)


def _replace_value(document: Document, path: PathKey, value: Any) -> Document:
    data = copy.deepcopy(document.data)
    target = data
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return Document(data, document.file, document.keys, document.values)


def _try_validate(kind: Kind, document: Document) -> list[str]:
    """Return the mistakes of a document, each of which must have a position; empty if it is valid."""
    try:
        validate(resolve(kind.spec), document)
    except UnfoldError as error:
        for item in error.diagnostics:
            _hold(item.line >= 1 and bool(item.message), f"no position in: {item}")
        return [str(item) for item in error.diagnostics]
    return []


def _hold(condition: bool, message: object) -> None:
    # not assert, which python -O removes: every kind would pass
    if not condition:
        raise AssertionError(message)
