"""From a model's complaint to the line that caused it."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from unfoldkit.errors import Diagnostic
from unfoldkit.spec.yaml_reader import Document, PathKey, dotted


def diagnostic(document: Document, path: PathKey, message: str, *, hint: str = "", at_key: bool = False) -> Diagnostic:
    """Return the diagnostic for ``path``: at its value, or at its key; for ``--set`` with the flag as its place."""
    key = dotted(path)
    for length in range(len(path), 0, -1):
        if path[:length] in document.origins:
            return Diagnostic(message, document.origins[path[:length]], key=key, hint=hint)
    for origin, flag in document.origins.items():
        # `--set a.b=1` is where the key `a` comes from
        if path and origin[: len(path)] == path and path not in document.values:
            return Diagnostic(message, flag, key=key, hint=hint)
    line, column = _mark(document, path, at_key=at_key)
    return Diagnostic(message, document.file, line, column, key, hint)


def located(document: Document, found: Diagnostic) -> Diagnostic:
    """Return a verb's diagnostic with the line of the key that it names, or of the nearest that is written there.

    What ``--set`` gave is written in the flag.
    """
    if found.file or not found.key or found.key.startswith("-"):
        return found
    written = {dotted(path): path for path in (*document.values, *document.keys, *document.origins)}
    near = [name for name in written if name and f"{found.key}.".startswith((f"{name}.", f"{name}["))]
    path = written[max(near, key=len)] if near else ()
    placed = diagnostic(document, path, found.message, hint=found.hint, at_key=True)
    return replace(placed, key=found.key)


def real_path(data: Any, location: tuple[str | int, ...], *, missing: bool = False) -> PathKey:
    """Return the keys and indices of ``location`` that exist in ``data``, without a validator's own tags.

    With ``missing`` the last part names a key that is not there, and is kept.
    """
    path: list[str | int] = []
    for index, part in enumerate(location):
        if _has(data, part):
            data = data[int(part)] if isinstance(data, list) else data[str(part)]
            path.append(int(part) if isinstance(part, int) else str(part))
        elif missing and index == len(location) - 1:
            path.append(part)
    return tuple(path)


def known_keys(model: Any, path: PathKey, data: Any = None) -> set[str]:
    """Return the keys that a mapping at ``path`` may have, by the annotations of ``model``.

    Of several forms, ``data`` says by its tag (``process: burst``) which one it is.
    """
    candidates = [model]
    for part in path:
        candidates = [inner for candidate in candidates for inner in _step(candidate, part)]
    forms = [form for candidate in candidates for form in _options(candidate)]
    for part in path:
        data = data[part] if _has(data, part) else None
    meant = [form for form in forms if _tagged(form, data)]
    return {name for form in meant or forms for name in _names(form)}


def known_tags(model: Any, path: PathKey, name: str) -> list[str]:
    """Return what the key ``name`` may be in the forms that a mapping at ``path`` may have."""
    forms = [model]
    for part in path:
        forms = [inner for form in forms for inner in _step(form, part)]
    fields = [getattr(one, "model_fields", {}).get(name) for form in forms for one in _options(form)]
    return sorted(str(value) for field in fields if field for value in typing.get_args(field.annotation))


def _tagged(form: Any, data: Any) -> bool:
    if not isinstance(data, Mapping) or not (isinstance(form, type) and issubclass(form, BaseModel)):
        return True
    literals = {
        field.alias or name: typing.get_args(field.annotation)
        for name, field in form.model_fields.items()
        if typing.get_origin(field.annotation) is typing.Literal
    }
    return all(data[name] in values for name, values in literals.items() if isinstance(data.get(name), str))


def _mark(document: Document, path: PathKey, *, at_key: bool) -> tuple[int, int]:
    if at_key and path in document.keys:
        return document.keys[path]
    for length in range(len(path), -1, -1):
        if path[:length] in document.values:
            return document.values[path[:length]]
    return 1, 1


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, Mapping):
        return str(part) in data
    return isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)


def _names(annotation: Any) -> set[str]:
    return {
        name
        for option in _options(annotation)
        if isinstance(option, type) and issubclass(option, BaseModel)
        for field_name, field in option.model_fields.items()
        for name in [field.alias or field_name]
    }


def _step(annotation: Any, part: str | int) -> list[Any]:
    found: list[Any] = []
    for option in _options(annotation):
        arguments = typing.get_args(option)
        if isinstance(option, type) and issubclass(option, BaseModel):
            found += [f.annotation for name, f in option.model_fields.items() if part in (name, f.alias)]
        elif arguments:
            found.append(arguments[-2] if arguments[-1] is Ellipsis else arguments[-1])
    return found


def _options(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without ``Annotated`` around them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return _options(annotation.__value__)
    if origin in (typing.Union, types.UnionType):
        return [option for argument in typing.get_args(annotation) for option in _options(argument)]
    return [annotation]
