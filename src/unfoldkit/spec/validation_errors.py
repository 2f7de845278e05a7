"""Turn an error of the validator into one sentence and a hint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unfoldkit.errors import did_you_mean, format_value
from unfoldkit.io.yaml12 import scalar
from unfoldkit.spec.base import NAME, NAME_RULE

_EXPECTED_TYPES = {
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
_LENGTHS = {
    "too_short": ("at least", "min_length", "entr"),
    "too_long": ("at most", "max_length", "entr"),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
}
MAX_EXACT_INTEGER = 2**53
_PLURALS = {"entr": ("y", "ies"), "character": ("", "s")}


def explain_error(error: Mapping[str, Any], *, about: str = "") -> tuple[str, str]:
    """Return the message and hint for one error of pydantic; ``about`` describes the key."""
    kind, context = str(error["type"]), error.get("ctx") or {}
    value = error.get("input")
    if tuple(error.get("loc", ()))[-1:] == ("[key]",) and isinstance(scalar(str(value)), (int, float)):
        # the keys of a mapping are texts, whatever they were in the file
        value = scalar(str(value))
    got = "nothing" if value is None else format_value(value)
    if kind in _EXPECTED_TYPES:
        return f"expected {_EXPECTED_TYPES[kind]}, got {got}", _suggest_rewrite(_EXPECTED_TYPES[kind], value)
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"must be {words} {_drop_fraction(context.get(name))}, got {got}", ""
    if kind in _LENGTHS:
        return _explain_length(*_LENGTHS[kind], context, value), ""
    if kind == "string_pattern_mismatch":
        message = f"{got} has characters that are not allowed here" if value else "must not be empty"
        pattern = context.get("pattern")
        return message, about or (NAME_RULE if pattern == NAME else f"pattern {pattern}")
    return _explain_rare_error(kind, error, context, got)


def _drop_fraction(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _explain_length(words: str, name: str, noun: str, context: Mapping[str, Any], value: Any) -> str:
    bound, size = int(context.get(name, 0)), len(value) if hasattr(value, "__len__") else 0
    if size == 0:
        return "must not be empty"
    return f"must have {words} {bound} {noun}{_PLURALS[noun][bound != 1]}, has {size}"


def _suggest_rewrite(expected: str, value: Any) -> str:
    """Suggest how to write a value of the expected type; empty if that is not obvious."""
    if expected == "text":
        return "put it in quotes" if isinstance(value, (bool, int, float)) else ""
    if (
        expected == "a whole number"
        and isinstance(value, float)
        and abs(value) < MAX_EXACT_INTEGER
        and value.is_integer()
    ):
        return f"write {int(value)}"
    if not isinstance(value, str) or "number" not in expected:
        return ""
    if isinstance(scalar(value), (int, float)):
        return "leave the quotes out"
    digits = re.sub(r"(?<=\d)[_,](?=\d)", "", value)
    return f"write {digits}" if digits != value and isinstance(scalar(digits), (int, float)) else ""


def _explain_rare_error(kind: str, error: Mapping[str, Any], context: Mapping[str, Any], got: str) -> tuple[str, str]:
    if kind in ("literal_error", "enum"):
        return f"{got} is not allowed here", _suggest_choice(error.get("input"), str(context.get("expected", "")))
    if kind == "union_tag_invalid":
        name, value = str(context.get("discriminator", "")).strip("'"), error.get("input")
        tag = value.get(name) if isinstance(value, Mapping) else context.get("tag")
        return f"{format_value(tag)} is not allowed as {name}", _suggest_choice(
            tag, str(context.get("expected_tags", ""))
        )
    if kind == "union_tag_not_found":
        name = str(context.get("discriminator", "")).strip("'")
        return f'the key "{name}" is missing, which selects the form of this mapping', ""
    if kind == "int_parsing_size":
        return f"{got} is too large", ""
    if kind == "finite_number":
        return f"must be a finite number, got {got}", ""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:], str(context.get("hint", ""))


def _suggest_choice(value: Any, expected: str) -> str:
    names = [part.strip().strip("'\"") for part in expected.replace(" or ", ", ").split(",") if part.strip()]
    if str(value) in names:
        return "leave the quotes out"
    if len(names) == 1:
        return f"write {names[0]}"
    close = did_you_mean(str(value), names)
    return close or (f"one of: {', '.join(names)}" if names else "")
