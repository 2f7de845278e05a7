"""Keeps what a file says from steering a terminal, or from showing text in another order than it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from unfoldkit.report import Report

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 without tab and line feed, C1), line and paragraph separators, and bidirectional controls."""


def strip_controls(report: Report) -> Report:
    """Return the report without control characters in any of its texts."""
    cleaned: Report = _clean(report)
    return cleaned


def escape_controls(text: str) -> str:
    r"""Return JSON whose control characters are written as ``\uXXXX``."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _clean(value: Any) -> Any:
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return CONTROLS.sub("", value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{item.name: _clean(getattr(value, item.name)) for item in fields(value)})
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, tuple):
        # points of figures are many, and numbers
        return value if value and isinstance(value[0], float) and _is_plain(value) else tuple(map(_clean, value))
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _is_plain(values: tuple[Any, ...]) -> bool:
    return all(type(value) is float for value in values)
