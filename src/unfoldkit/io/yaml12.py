"""YAML 1.2 core: the meaning of plain scalars, and how to write data that keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

PLAN_SCHEMA = "unfoldkit.plan/1"
_BREAKS = re.compile("[\x85\u2028\u2029]")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300})$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$"
)


def scalar(text: str) -> Any:
    """Return the value of a plain scalar: a number, a boolean, null or the text itself."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def to_yaml(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML, with keys in their order.

    Args:
        data: Mappings with text for keys, lists, texts, numbers, booleans and null.

    Raises:
        TypeError: A value is none of these.
    """
    plain = json.loads(json.dumps(data))
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 core would read as a number or boolean, or kubectl as one.

    PyYAML follows YAML 1.1 but for y and n.
    """

    def represent_text(self, text: str) -> yaml.ScalarNode:
        quote = None if isinstance(scalar(text), str) and text not in ("y", "Y", "n", "N") else "'"
        if _BREAKS.search(text):
            # single quotes would fold these line breaks
            quote = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=quote)


_Dumper.add_representer(str, _Dumper.represent_text)
