"""Validate plain data against a kind's model and tell every mistake at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, format_value
from unfoldkit.spec.base import Checked, Model
from unfoldkit.spec.error_messages import sentence
from unfoldkit.spec.positions import diagnostic, known_keys, known_tags, real_path
from unfoldkit.spec.yaml_reader import Document, PathKey

M = TypeVar("M", bound=Model)
ROUNDS = 4
_HOLDERS = (BaseModel, Mapping, tuple, list, frozenset)
MISSING = "this key is missing"
UNKNOWN = "unknown key"
MERGE = "YAML 1.2 has no merge keys: write the keys out"
QUOTE = "'"
ODD = ("extra_forbidden", "model_type")
"""Mistakes of an entry as a whole."""


def validate(model: type[M], document: Document) -> M:
    """Return the frozen spec.

    Raises:
        UnfoldError: with one diagnostic a mistake, in the order of the file.
    """
    if not isinstance(document.data, Mapping):
        message = f"a spec is a mapping of keys, not {format_value(document.data)}"
        raise UnfoldError(diagnostic(document, (), message, hint="unfold init KIND writes one to start from"))
    spec, mistakes = _attempts(model, document)
    if mistakes or spec is None:
        raise UnfoldError(*in_order(mistakes))
    return spec


def in_order(mistakes: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return the diagnostics without repeats, by line and column."""
    return sorted(dict.fromkeys(mistakes), key=lambda item: (item.line == 0, item.line, item.column, item.key))


def _attempts(model: type[M], document: Document) -> tuple[M | None, list[Diagnostic]]:
    """Validate, cut away what is wrong, and validate again: so that a typo hides no other mistake."""
    data = document.data
    mistakes: list[Diagnostic] = []
    cut: list[PathKey] = []
    for _ in range(ROUNDS):
        spec, errors = _once(model, data)
        if spec is not None:
            return spec, mistakes + _problems(spec, document, cut)
        found = [(path, item) for path, item in _told(model, document, data, errors) if not _below(path, cut)]
        mistakes += [item for _, item in found]
        if not found or any(error["type"] == "missing" for error in errors):
            return None, mistakes
        cut += [path for path, _ in found]
        data = _without(data, cut)
    return None, mistakes


def _once(model: type[M], data: Any) -> tuple[M | None, list[dict[str, Any]]]:
    try:
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, [dict(item) for item in error.errors(include_url=False)]
    except RecursionError:
        return None, [{"type": "depth", "loc": (), "msg": "nested too deep", "input": None}]


def _told(
    model: type[Model], document: Document, data: Any, errors: list[dict[str, Any]]
) -> list[tuple[PathKey, Diagnostic]]:
    told = [_one(model, document, data, error) for error in _best_branches(data, errors)]
    meant = {(path[:-1], item.hint) for path, item in told if item.message == UNKNOWN}
    return [(path, item) for path, item in told if item.message != MISSING or _meaning(path) not in meant]


def _meaning(path: PathKey) -> tuple[PathKey, str]:
    return path[:-1], did_you_mean(str(path[-1]), [str(path[-1])])


def _one(model: type[Model], document: Document, data: Any, error: dict[str, Any]) -> tuple[PathKey, Diagnostic]:
    missing = error["type"] == "missing"
    path = real_path(data, error["loc"], missing=missing)
    if missing:
        return path, diagnostic(document, path, MISSING, hint=_needs(model, path))
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(path[-1]), known_keys(model, path[:-1], data)) if path[-1] != "<<" else MERGE
        return path, diagnostic(document, path, UNKNOWN, hint=hint, at_key=True)
    message, hint = sentence(error, about=_needs(model, path))
    if error["type"] == "union_tag_not_found":
        hint = f"one of: {', '.join(known_tags(model, path, error['ctx']['discriminator'].strip(QUOTE)))}"
    return path, diagnostic(document, path, message, hint=hint, at_key=error["loc"][-1:] == ("[key]",))


def _needs(model: type[Model], path: PathKey) -> str:
    fields = model.model_fields if len(path) == 1 else {}
    field = fields.get(str(path[-1]))
    return str(field.description) if field is not None and field.description else ""


def _long_enough(error: Mapping[str, Any]) -> bool:
    entries = error.get("input")
    return error["type"] == "too_short" and isinstance(entries, (list, tuple, dict)) and len(entries) >= _least(error)


def _least(error: Mapping[str, Any]) -> int:
    return int((error.get("ctx") or {}).get("min_length", 0))


def _best_branches(data: Any, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep, of the complaints of each branch of a union, those of the branch that came nearest."""
    # a validator counts only the entries that are right
    errors = [error for error in errors if not _long_enough(error)]
    groups: dict[PathKey, dict[tuple[str | int, ...], list[dict[str, Any]]]] = {}
    plain: list[dict[str, Any]] = []
    for error in errors:
        branch = _branch(data, error)
        if branch is None:
            plain.append(error)
        else:
            groups.setdefault(branch[0], {}).setdefault(branch[1], []).append(error)
    best = [min(branches.values(), key=lambda group: _distance(data, path, group)) for path, branches in groups.items()]
    return plain + [error for group in best for error in group]


def _branch(data: Any, error: dict[str, Any]) -> tuple[PathKey, tuple[str | int, ...]] | None:
    location: tuple[str | int, ...] = error["loc"]
    last = len(location) - (error["type"] == "missing")
    for end in range(last):
        prefix = real_path(data, location[: end + 1])
        if len(prefix) <= end and location[end] != "[key]":
            return prefix, location[: end + 1]
    return None


def _distance(data: Any, path: PathKey, group: list[dict[str, Any]]) -> tuple[int, int, int, int]:
    depth = [len(real_path(data, error["loc"])) - len(path) for error in group]
    types = [error["type"] for error in group]
    at_root = sum(deep <= 0 and kind != "missing" for deep, kind in zip(depth, types, strict=True))
    # a tag such as `process: burst` says which branch was meant, and so do the keys that it knows, and what they hold
    tags = sum(deep == 1 and kind == "literal_error" for deep, kind in zip(depth, types, strict=True))
    unknown = sum(deep == 1 and kind in ODD for deep, kind in zip(depth, types, strict=True))
    return at_root, tags, unknown, len(group)


def _problems(spec: Model, document: Document, cut: Sequence[PathKey]) -> list[Diagnostic]:
    # what was cut may hold the very entries that other parts refer to
    if not isinstance(spec, Checked) or any(isinstance(_at(spec, path), _HOLDERS) for path in cut):
        return []
    return [
        diagnostic(document, tuple(problem.path), problem.message, hint=problem.hint, at_key=problem.at_key)
        for problem in spec.problems()
        if not _below(tuple(problem.path), cut) and not any(_below(path, [tuple(problem.path)]) for path in cut)
    ]


def _at(spec: Any, path: PathKey) -> Any:
    for part in path:
        if isinstance(spec, BaseModel):
            spec = getattr(spec, _field(spec, str(part)), None)
        else:
            spec = spec.get(part) if isinstance(spec, Mapping) else None
    return spec


def _field(spec: BaseModel, key: str) -> str:
    return next((name for name, field in type(spec).model_fields.items() if field.alias == key), key)


def _below(path: PathKey, roots: Sequence[PathKey]) -> bool:
    return any(path[: len(root)] == root for root in roots)


def _without(data: Any, paths: Sequence[PathKey]) -> Any:
    result = copy.deepcopy(data)
    for path in sorted(paths, key=lambda item: [str(part) for part in item], reverse=True):
        _delete(result, path)
    return result


def _delete(data: Any, path: PathKey) -> None:
    for part in path[:-1]:
        if not isinstance(data, (dict, list)) or (isinstance(data, dict) and part not in data):
            return
        data = data[part]  # type: ignore[index]
    if path and isinstance(data, dict):
        data.pop(str(path[-1]), None)
