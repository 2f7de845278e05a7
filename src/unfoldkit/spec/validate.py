"""Validate plain data against the model of a kind, and report every mistake at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, find_similar, format_value
from unfoldkit.spec.base import Checked, Model
from unfoldkit.spec.positions import diagnostic_at, known_keys, known_tags, list_forms, real_path
from unfoldkit.spec.validation_errors import explain_error
from unfoldkit.spec.yaml_reader import Document, PathKey

M = TypeVar("M", bound=Model)
ROUNDS = 4
_CONTAINERS = (BaseModel, Mapping, tuple, list, frozenset)
MISSING = "this key is missing"
UNKNOWN = "unknown key"
NO_FORM = "one of these keys is missing"
TWO_FORMS = "only one of these keys may be written"
MERGE = "YAML 1.2 has no merge keys: write the keys out"
QUOTE = "'"
ENTRY_ERRORS = ("extra_forbidden", "model_type")
"""Errors of a complete entry."""


def validate(model: type[M], document: Document) -> M:
    """Validate a document and return the frozen spec.

    Raises:
        UnfoldError: One diagnostic per mistake, in the order of the file.
    """
    if not isinstance(document.data, Mapping):
        message = f"a spec is a mapping of keys, not {format_value(document.data)}"
        raise UnfoldError(diagnostic_at(document, (), message, hint="unfold init KIND writes one to start from"))
    spec, mistakes = _validate_rounds(model, document)
    if mistakes or spec is None:
        raise UnfoldError(*sort_diagnostics(mistakes))
    return spec


def sort_diagnostics(mistakes: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Sort diagnostics by line and column, without duplicates."""
    return sorted(dict.fromkeys(mistakes), key=lambda item: (item.line == 0, item.line, item.column, item.key))


def _validate_rounds(model: type[M], document: Document) -> tuple[M | None, list[Diagnostic]]:
    """Validate, remove what is wrong, and validate again, so that one mistake does not hide others."""
    data = document.data
    mistakes: list[Diagnostic] = []
    removed: list[PathKey] = []
    for _ in range(ROUNDS):
        spec, errors = _validate_once(model, data)
        if spec is not None:
            return spec, mistakes + _find_problems(spec, document, removed)
        located = _explain_errors(model, document, data, errors)
        new = [(path, item) for path, item in located if not _is_below(path, removed)]
        mistakes += [item for _, item in new]
        if not new or any(error["type"] == "missing" for error in errors):
            return None, mistakes
        removed += [path for path, _ in new]
        data = _remove(data, removed)
    return None, mistakes


def _validate_once(model: type[M], data: Any) -> tuple[M | None, list[dict[str, Any]]]:
    try:
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, [dict(item) for item in error.errors(include_url=False)]
    except RecursionError:
        return None, [{"type": "depth", "loc": (), "msg": "nested too deep", "input": None}]


def _explain_errors(
    model: type[Model], document: Document, data: Any, errors: list[dict[str, Any]]
) -> list[tuple[PathKey, Diagnostic]]:
    explained = [_explain(model, document, data, error) for error in _select_branches(data, errors)]
    # a misspelt key is both unknown and missing: report it once
    suggested = {(path[:-1], item.hint) for path, item in explained if item.message == UNKNOWN}
    return [(path, item) for path, item in explained if item.message != MISSING or _suggestion(path) not in suggested]


def _suggestion(path: PathKey) -> tuple[PathKey, str]:
    return path[:-1], did_you_mean(str(path[-1]), [str(path[-1])])


def _explain(model: type[Model], document: Document, data: Any, error: dict[str, Any]) -> tuple[PathKey, Diagnostic]:
    missing = error["type"] == "missing"
    path = real_path(data, error["loc"], missing=missing)
    if missing:
        return path, diagnostic_at(document, path, MISSING, hint=_describe_key(model, path))
    if error["type"] == NO_FORM:
        return path, diagnostic_at(document, path, NO_FORM, hint=", ".join(error["keys"]))
    if error["type"] == "extra_forbidden":
        if rivals := _list_rivals(model, path, data):
            return path, diagnostic_at(document, path, TWO_FORMS, hint=", ".join(rivals), at_key=True)
        hint = _suggest_key(model, path, data) if path[-1] != "<<" else MERGE
        return path, diagnostic_at(document, path, UNKNOWN, hint=hint, at_key=True)
    message, hint = explain_error(error, about=_describe_key(model, path))
    if error["type"] == "union_tag_not_found":
        hint = f"one of: {', '.join(known_tags(model, path, error['ctx']['discriminator'].strip(QUOTE)))}"
    return path, diagnostic_at(document, path, message, hint=hint, at_key=error["loc"][-1:] == ("[key]",))


def _suggest_key(model: type[Model], path: PathKey, data: Any) -> str:
    """Return where an unknown key belongs: a step below or at the top of the spec; or the key that it resembles."""
    word, around = str(path[-1]), path[:-1]
    keys = known_keys(model, around, data)
    below = sorted(key for key in keys if word in known_keys(model, (*around, key), data))
    if below:
        return f"write it below {' or '.join(format_value(key) for key in below)}"
    if around and word in known_keys(model, (), data):
        return "write it at the top of the spec"
    return did_you_mean(word, keys)


def _list_rivals(model: type[Model], path: PathKey, data: Any) -> list[str]:
    """List a key that only other forms of a mapping have, and the written keys that it excludes; nothing otherwise."""
    word, around = str(path[-1]), path[:-1]
    forms = [form for form in list_forms(model, around, data) if word in form]
    written = _get(data, around)
    if not forms or not isinstance(written, Mapping):
        return []
    known = known_keys(model, around, data)
    others = [key for key in written if key != word and key in known]
    excluded = [key for key in others if not any(key in form for form in forms)]
    return sorted([word, *(excluded or others)]) if others else []


def _describe_key(model: type[Model], path: PathKey) -> str:
    fields = model.model_fields if len(path) == 1 else {}
    field = fields.get(str(path[-1]))
    return str(field.description) if field is not None and field.description else ""


def _is_long_enough(error: Mapping[str, Any]) -> bool:
    entries = error.get("input")
    return (
        error["type"] == "too_short" and isinstance(entries, (list, tuple, dict)) and len(entries) >= _min_length(error)
    )


def _min_length(error: Mapping[str, Any]) -> int:
    return int((error.get("ctx") or {}).get("min_length", 0))


def _select_branches(data: Any, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the errors of each union, retain those of the branch that fits best."""
    # the validator counts only valid entries
    errors = [error for error in errors if not _is_long_enough(error) and not _is_of_parent(data, error)]
    groups: dict[PathKey, dict[tuple[str | int, ...], list[dict[str, Any]]]] = {}
    plain: list[dict[str, Any]] = []
    for error in errors:
        branch = _branch(data, error)
        if branch is None:
            plain.append(error)
        else:
            groups.setdefault(branch[0], {}).setdefault(branch[1], []).append(error)
    return plain + [error for path, branches in groups.items() for error in _select_best(data, path, branches.values())]


def _is_of_parent(data: Any, error: Mapping[str, Any]) -> bool:
    """Return whether the location of an error ends with the name of a branch, such as `int`, that is also a key."""
    location = error["loc"]
    if error["type"] in ("missing", "extra_forbidden") or location[-1:] == ("[key]",):
        return False
    path = real_path(data, location)
    parent = _get(data, path[:-1]) if path and path[-1] == location[-1] else None
    return isinstance(parent, Mapping) and _to_lists(error.get("input")) == parent


def _to_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, into which a validator may have turned them."""
    if isinstance(value, Mapping):
        return {key: _to_lists(item) for key, item in value.items()}
    return [_to_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _select_best(data: Any, path: PathKey, branches: Collection[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Select the errors of the branch that fits best; of equal ones that lack a different key each, name all keys."""
    distances = [_distance(data, path, group) for group in branches]
    tied = [group for group, distance in zip(branches, distances, strict=True) if distance == min(distances)]
    lacking = [_list_missing(data, path, group) for group in tied]
    shared = set.intersection(*lacking)
    own = sorted(key for keys in lacking for key in keys - shared)
    if len(tied) == 1 or any(len(keys - shared) != 1 for keys in lacking):
        return tied[0]
    known = [error for error in tied[0] if error["type"] != "missing" or error["loc"][-1] not in own]
    if any(error["type"] == "extra_forbidden" for error in known):
        # its hint lists the keys
        return known
    return [*known, {"type": NO_FORM, "loc": path, "msg": NO_FORM, "keys": own}]


def _list_missing(data: Any, path: PathKey, group: list[dict[str, Any]]) -> set[str]:
    """List the keys that the mapping at a path lacks."""
    return {
        str(error["loc"][-1])
        for error in group
        if error["type"] == "missing" and real_path(data, error["loc"], missing=True)[:-1] == path
    }


def _branch(data: Any, error: dict[str, Any]) -> tuple[PathKey, tuple[str | int, ...]] | None:
    location: tuple[str | int, ...] = error["loc"]
    last = len(location) - (error["type"] == "missing")
    for end in range(last):
        prefix = real_path(data, location[: end + 1])
        if len(prefix) <= end and location[end] != "[key]":
            return prefix, location[: end + 1]
    return None


def _distance(data: Any, path: PathKey, group: list[dict[str, Any]]) -> tuple[int, int, int, int, int]:
    depth = [len(real_path(data, error["loc"])) - len(path) for error in group]
    types = [error["type"] for error in group]
    at_root = sum(deep <= 0 and kind != "missing" for deep, kind in zip(depth, types, strict=True))
    # a tag such as `process: burst`, and the known keys with their types, show which branch was intended
    tags = sum(deep == 1 and kind == "literal_error" for deep, kind in zip(depth, types, strict=True))
    unknown = sum(deep == 1 and kind in ENTRY_ERRORS for deep, kind in zip(depth, types, strict=True))
    return at_root, tags, unknown, len(group), not _has_misspelt_key(group)


def _has_misspelt_key(group: list[dict[str, Any]]) -> bool:
    """Return whether an unknown key resembles one that is missing beside it."""
    missing = [error["loc"] for error in group if error["type"] == "missing"]
    unknown = [error["loc"] for error in group if error["type"] == "extra_forbidden"]
    return any(
        key[:-1] == other[:-1] and bool(find_similar(str(other[-1]), [str(key[-1])]))
        for key in missing
        for other in unknown
    )


def _find_problems(spec: Model, document: Document, removed: Sequence[PathKey]) -> list[Diagnostic]:
    # the removed parts may hold entries that other parts refer to
    if not isinstance(spec, Checked) or any(isinstance(_get(spec, path), _CONTAINERS) for path in removed):
        return []
    return [
        diagnostic_at(document, tuple(problem.path), problem.message, hint=problem.hint, at_key=problem.at_key)
        for problem in spec.problems()
        if not _is_below(tuple(problem.path), removed)
        and not any(_is_below(path, [tuple(problem.path)]) for path in removed)
    ]


def _get(spec: Any, path: PathKey) -> Any:
    for part in path:
        if isinstance(spec, BaseModel):
            spec = getattr(spec, _field_name(spec, str(part)), None)
        else:
            spec = spec.get(part) if isinstance(spec, Mapping) else None
    return spec


def _field_name(spec: BaseModel, key: str) -> str:
    return next((name for name, field in type(spec).model_fields.items() if field.alias == key), key)


def _is_below(path: PathKey, roots: Sequence[PathKey]) -> bool:
    return any(path[: len(root)] == root for root in roots)


def _remove(data: Any, paths: Sequence[PathKey]) -> Any:
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
