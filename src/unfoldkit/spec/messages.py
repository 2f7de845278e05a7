"""A validator's complaint as one sentence for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unfoldkit.errors import did_you_mean, show
from unfoldkit.yaml12 import scalar

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_LENGTHS = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}


def sentence(error: Mapping[str, Any]) -> tuple[str, str]:
    """Return message and hint for one error of pydantic."""
    kind, context = str(error["type"]), error.get("ctx") or {}
    value = error.get("input")
    got = "nothing" if value is None else show(value)
    if kind in _WANTED:
        return f"expected {_WANTED[kind]}, got {got}", _rewritten(_WANTED[kind], value)
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"must be {words} {context.get(name)}, got {got}", ""
    if kind in _LENGTHS:
        words, name = _LENGTHS[kind]
        return f"must have {words} {context.get(name)} entries, has {context.get('actual_length')}", ""
    return _other(kind, error, context, got)


def _rewritten(wanted: str, value: Any) -> str:
    """Return how the value would be written for what is wanted, where that is plain."""
    if wanted == "text":
        return "put it in quotes" if isinstance(value, (bool, int, float)) else ""
    if not isinstance(value, str) or "number" not in wanted:
        return ""
    if isinstance(scalar(value), (int, float)):
        return "leave the quotes out"
    digits = re.sub(r"(?<=\d)[_,](?=\d)", "", value)
    return f"write {digits}" if digits != value and isinstance(scalar(digits), (int, float)) else ""


def _other(kind: str, error: Mapping[str, Any], context: Mapping[str, Any], got: str) -> tuple[str, str]:
    if kind in ("literal_error", "enum"):
        return f"{got} is not allowed here", _choices(error.get("input"), str(context.get("expected", "")))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"{context.get('discriminator', 'its tag')} does not say which form this is", _choices(
            context.get("tag"), str(context.get("expected_tags", ""))
        )
    if kind == "string_pattern_mismatch":
        return f"{got} has characters that are not allowed here", f"pattern {context.get('pattern')}"
    if kind == "finite_number":
        return f"must be a finite number, got {got}", ""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:], str(context.get("hint", ""))


def _choices(value: Any, expected: str) -> str:
    names = [part.strip().strip("'\"") for part in expected.replace(" or ", ", ").split(",") if part.strip()]
    close = did_you_mean(str(value), names)
    return close or (f"one of: {', '.join(names)}" if names else "")
