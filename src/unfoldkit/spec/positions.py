"""Find the line of a spec that caused an error of a model."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from unfoldkit.errors import Diagnostic
from unfoldkit.spec.yaml_reader import Document, PathKey, dotted


def diagnostic_at(
    document: Document, path: PathKey, message: str, *, hint: str = "", at_key: bool = False
) -> Diagnostic:
    """Make a diagnostic at the value of ``path``, or at its key; values of ``--set`` have the flag as position."""
    key = dotted(path)
    for length in range(len(path), 0, -1):
        if path[:length] in document.origins:
            return Diagnostic(message, document.origins[path[:length]], key=key, hint=hint)
    for origin, flag in document.origins.items():
        # `--set a.b=1` is where the key `a` comes from
        if path and origin[: len(path)] == path and path not in document.values:
            return Diagnostic(message, flag, key=key, hint=hint)
    line, column = _find_mark(document, path, at_key=at_key)
    return Diagnostic(message, document.file, line, column, key, hint)


def locate(document: Document, diagnostic: Diagnostic) -> Diagnostic:
    """Add to a verb's diagnostic the line of the key that it names, or of the nearest key that is written.

    Keys that ``--set`` wrote have the flag as position.
    """
    if diagnostic.file or not diagnostic.key or diagnostic.key.startswith("-"):
        return diagnostic
    written = {dotted(path): path for path in (*document.values, *document.keys, *document.origins)}
    enclosing = [name for name in written if name and f"{diagnostic.key}.".startswith((f"{name}.", f"{name}["))]
    path = written[max(enclosing, key=len)] if enclosing else ()
    located = diagnostic_at(document, path, diagnostic.message, hint=diagnostic.hint, at_key=True)
    return replace(located, key=diagnostic.key)


def real_path(data: Any, location: tuple[str | int, ...], *, missing: bool = False) -> PathKey:
    """Return the keys and indices of ``location`` that exist in ``data``, without tags of the validator.

    With ``missing``, the last part names a missing key and is retained.
    """
    path: list[str | int] = []
    for index, part in enumerate(location):
        if _has_child(data, part):
            data = data[int(part)] if isinstance(data, list) else data[str(part)]
            path.append(int(part) if isinstance(part, int) else str(part))
        elif missing and index == len(location) - 1:
            path.append(part)
    return tuple(path)


def known_keys(model: Any, path: PathKey, data: Any = None) -> set[str]:
    """Return the keys that a mapping at ``path`` may have, by the annotations of ``model``.

    Of several alternatives, a tag in ``data`` (``process: burst``) selects one.
    """
    return {name for names in list_forms(model, path, data) for name in names}


def list_forms(model: Any, path: PathKey, data: Any = None) -> list[set[str]]:
    """List the keys of each alternative of a mapping at ``path``, as in :func:`known_keys`."""
    candidates = [model]
    for part in path:
        candidates = [inner for candidate in candidates for inner in _children(candidate, part)]
    forms = [form for candidate in candidates for form in _options(candidate)]
    for part in path:
        data = data[part] if _has_child(data, part) else None
    selected = [form for form in forms if _matches_tags(form, data)]
    return [names for form in selected or forms if (names := _field_names(form))]


def known_tags(model: Any, path: PathKey, name: str) -> list[str]:
    """Return the values of the key ``name`` in the alternatives of a mapping at ``path``."""
    forms = [model]
    for part in path:
        forms = [inner for form in forms for inner in _children(form, part)]
    fields = [getattr(option, "model_fields", {}).get(name) for form in forms for option in _options(form)]
    return sorted(str(value) for field in fields if field for value in typing.get_args(field.annotation))


def _matches_tags(form: Any, data: Any) -> bool:
    if not isinstance(data, Mapping) or not (isinstance(form, type) and issubclass(form, BaseModel)):
        return True
    literals = {
        field.alias or name: typing.get_args(field.annotation)
        for name, field in form.model_fields.items()
        if typing.get_origin(field.annotation) is typing.Literal
    }
    return all(data[name] in values for name, values in literals.items() if isinstance(data.get(name), str))


def _find_mark(document: Document, path: PathKey, *, at_key: bool) -> tuple[int, int]:
    if at_key and path in document.keys:
        return document.keys[path]
    for length in range(len(path), -1, -1):
        if path[:length] in document.values:
            return document.values[path[:length]]
    return 1, 1


def _has_child(data: Any, part: str | int) -> bool:
    if isinstance(data, Mapping):
        return str(part) in data
    return isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)


def _field_names(annotation: Any) -> set[str]:
    return {
        name
        for option in _options(annotation)
        if isinstance(option, type) and issubclass(option, BaseModel)
        for field_name, field in option.model_fields.items()
        for name in [field.alias or field_name]
    }


def _children(annotation: Any, part: str | int) -> list[Any]:
    children: list[Any] = []
    for option in _options(annotation):
        arguments = typing.get_args(option)
        if isinstance(option, type) and issubclass(option, BaseModel):
            children += [f.annotation for name, f in option.model_fields.items() if part in (name, f.alias)]
        elif arguments:
            children.append(arguments[-2] if arguments[-1] is Ellipsis else arguments[-1])
    return children


def _options(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return _options(annotation.__value__)
    if origin in (typing.Union, types.UnionType):
        return [option for argument in typing.get_args(annotation) for option in _options(argument)]
    return [annotation]
