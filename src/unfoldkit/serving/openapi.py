"""The OpenAPI document of a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unfoldkit.serving.model import Described, Field
from unfoldkit.serving.protocol import LONGEST_MS

JSON = "application/json"
TYPES = {"BOOL": "boolean", "BYTES": "string", "INT32": "integer", "INT64": "integer"}
ERRORS = {
    "400": "the body is no JSON, or does not fit the inputs of the model",
    "409": "the hour of this entity is over: a later one was answered",
    "413": "the body is too large, or has too many rows",
    "429": "too many rows are waiting; Retry-After says when to come back",
    "500": "the model failed",
    "503": "the model does not come back, or the server is about to stop",
}


def document(models: Sequence[Described], version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of a server with these models."""
    gets = {
        "/v2": "what this server is",
        "/v2/health/live": "whether it runs",
        "/v2/health/ready": "whether it takes requests",
    }
    paths: dict[str, Any] = {path: {"get": _get(text)} for path, text in gets.items()}
    paths["/metrics"] = {"get": _get("metrics for Prometheus", "text/plain")}
    paths["/openapi.json"] = {"get": _get("this document")}
    for model in models:
        paths |= _model_paths(model)
    about = {"title": "unfoldkit", "version": version, "description": "Open Inference Protocol v2 over REST."}
    components = {"schemas": {"Error": _object({"error": {"type": "string"}})}}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": components}


def _model_paths(model: Described) -> dict[str, Any]:
    place = f"/v2/models/{model.name}"
    errors = {code: _answer(text, {"$ref": "#/components/schemas/Error"}) for code, text in ERRORS.items()}
    infer = {
        "summary": f"ask {model.name}",
        "requestBody": {"required": True, "content": {JSON: {"schema": _request(model)}}},
        "responses": {"200": _answer("the answer", _response(model)), **errors},
    }
    return {
        place: {"get": _get(f"inputs, outputs and facts of {model.name}")},
        f"{place}/ready": {"get": _get(f"whether {model.name} takes requests")},
        f"{place}/infer": {"post": infer},
    }


def _request(model: Described) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {
            "entity": {"type": "string", "maxLength": 256},
            "time": {"type": "integer"},
            "deadline_ms": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_MS},
        },
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }
    named = {"type": "array", "items": _object({"name": {"enum": [item.name for item in model.outputs]}})}
    inputs = _list([_tensor(item) for item in model.inputs])
    return _object({"inputs": inputs}, id={"type": "string"}, parameters=parameters, outputs=named)


def _response(model: Described) -> dict[str, Any]:
    text = {"type": "string"}
    outputs = {"type": "array", "items": {"anyOf": [_tensor(item) for item in model.outputs]}}
    return _object({"model_name": text, "model_version": text, "outputs": outputs}, id=text)


def _tensor(item: Field) -> dict[str, Any]:
    kinds = [TYPES.get(item.datatype, "number"), *(["null"] if item.missing else [])]
    cell: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0]}
    row = {"type": "array", "items": cell}
    size = {"type": "integer", "minimum": 1}
    fixed = [{"const": length} for length in item.shape]
    data = {"type": "array", "items": {"anyOf": [cell, row]} if item.shape else cell}
    if item.shape:
        data["description"] = f"{list(item.shape)} values a row, flat or one list a row"
    shape = {"type": "array", "prefixItems": [size, *fixed], "minItems": 1 + len(fixed), "maxItems": 1 + len(fixed)}
    return _object({"name": {"const": item.name}, "datatype": {"type": "string"}, "shape": shape, "data": data})


def _list(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": kinds}, "minItems": len(kinds), "maxItems": len(kinds)}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _get(text: str, content: str = JSON) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": {"description": text, "content": {content: {}}}}}


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": schema}}}
