"""JSON Schema (draft-07, which editors support) of one kind or of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unfoldkit.spec.base import Model

DRAFT = "http://json-schema.org/draft-07/schema#"


def build_schema(model: type[Model], title: str) -> dict[str, Any]:
    """Build the schema of one kind's spec."""
    text = json.dumps(model.model_json_schema(by_alias=True))
    body = json.loads(text.replace('"$defs"', '"definitions"').replace("#/$defs/", "#/definitions/"))
    return {"$schema": DRAFT, "title": title, **{key: value for key, value in body.items() if key != "title"}}


def build_joint_schema(models: Mapping[str, type[Model]]) -> dict[str, Any]:
    """Build one schema for all kinds; the key ``kind`` selects the rules."""
    rules = [
        {
            "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
            "then": {"$ref": f"#/definitions/{name}"},
        }
        for name in models
    ]
    parts: dict[str, Any] = {}
    for name, model in models.items():
        text = json.dumps(build_schema(model, f"unfold {name}"))
        parts[name] = json.loads(text.replace("#/definitions/", f"#/definitions/{name}/definitions/"))
        parts[name].pop("$schema")
    envelope = {
        "type": "object",
        "required": ["version", "kind", "name"],
        "properties": {"kind": {"enum": list(models)}},
    }
    return {"$schema": DRAFT, "title": "unfold spec", **envelope, "allOf": rules, "definitions": parts}
