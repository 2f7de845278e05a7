"""`--set a.b[0]=value`: change a spec from the command line, and record the origin of the value.

A name with a dot is quoted: `--set 'quota."team.a"=8'`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unfoldkit.errors import Diagnostic, UnfoldError, format_value, user_error
from unfoldkit.spec.yaml_reader import MAX_DEPTH, Document, PathKey, dotted, parse

_NAME = r"""(?:"[^"]+"|'[^']+'|[^.\[\]="'][^.\[\]=]*)"""
_SETTING = re.compile(rf"({_NAME}(?:\.{_NAME}|\[\d{{1,6}}\])*)=(.*)", re.DOTALL)
_PART = re.compile(rf"({_NAME})|\[(\d{{1,6}})\]")


def apply_settings(document: Document, settings: Sequence[str]) -> Document:
    """Apply every ``path=value`` of ``settings`` to a document, in turn.

    Raises:
        UnfoldError: A setting is malformed, or its path leads through a value that is not a mapping or list.
    """
    if not settings:
        return document
    data, origins = copy.deepcopy(document.data), dict(document.origins)
    mistakes: list[Diagnostic] = []
    for setting in settings:
        try:
            path, value = _parse_setting(setting)
            data = _assign(data, path, value, setting)
            origins[path] = f"--set {setting}"
        except UnfoldError as error:
            mistakes += error.diagnostics
    if mistakes:
        raise UnfoldError(*mistakes)
    return replace(document, data=data, origins=origins)


def _parse_setting(setting: str) -> tuple[PathKey, Any]:
    found = _SETTING.fullmatch(setting)
    if not found:
        raise user_error(
            "expected key=value",
            file=f"--set {setting}",
            hint='such as goal.max_loss=1%, stages[0].name=a or quota."team.a"=8',
        )
    path = tuple(int(part[2]) if part[2] else _unquote(part[1]) for part in _PART.finditer(found[1]))
    text = found[2]
    if len(path) > MAX_DEPTH:
        raise user_error(f"nested deeper than {MAX_DEPTH}", file=f"--set {setting}")
    if text.strip() == "":
        return path, None
    try:
        return path, parse(text).data
    except UnfoldError as error:
        first = error.diagnostics[0]
        raise user_error(first.message, file=f"--set {setting}", hint=first.hint or "quote the value") from error


def _unquote(name: str) -> str:
    return name[1:-1] if name[0] in "\"'" else name


def _assign(data: Any, path: PathKey, value: Any, setting: str) -> Any:
    target = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(target, dict) and target.get(str(part)) is None:
            target[str(part)] = {}
        target = _get_child(target, part, path[:depth], setting)
    _check_container(target, path[-1], path[:-1], setting)
    target[path[-1] if isinstance(target, list) else str(path[-1])] = value
    return data


def _get_child(target: Any, part: str | int, path: PathKey, setting: str) -> Any:
    _check_container(target, part, path, setting)
    return target[part if isinstance(target, list) else str(part)]


def _check_container(target: Any, part: str | int, path: PathKey, setting: str) -> None:
    name = dotted(path) or "the spec"
    if isinstance(target, list):
        if not isinstance(part, int) or part >= len(target):
            raise user_error(f"{name} is a list of {len(target)}", file=f"--set {setting}", hint=f"write {name}[0]")
    elif not isinstance(target, dict):
        raise user_error(f"{name} is {format_value(target)}, not a mapping", file=f"--set {setting}")
