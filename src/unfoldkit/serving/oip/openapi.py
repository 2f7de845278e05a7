"""The OpenAPI document of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unfoldkit.serving.model import Described, Field
from unfoldkit.serving.oip.binary import BINARY
from unfoldkit.serving.oip.codec import LONGEST_MS, NUMBERS, shape_text

JSON = "application/json"
TYPES = {"BOOL": "boolean", "BYTES": "string", "INT32": "integer", "INT64": "integer"}
ERRORS = {
    "400": "the body is no JSON, or does not fit the inputs of the model",
    "401": "this service has a token, and the request does not bear it",
    "403": "this service has no token, and a page of another site may have sent the request",
    "409": "the hour of this entity is over: a later one was answered",
    "413": "the body is too large, or has too many rows",
    "429": "too many rows are waiting; Retry-After says when to come back",
    "500": "the model failed",
    "503": "the model does not come back, or the server is about to stop",
}
ERROR = {"$ref": "#/components/schemas/Error"}
# what may be left out may be null
TEXT = ["string", "null"]
FLAG = {"type": ["boolean", "null"]}
BYTES = {"schema": {"type": "string", "format": "binary", "description": "JSON, and tensors as bytes behind it"}}
INDEX, INDEX_BYTES = "/v2/repository/index", 4096
LIVE, READY = "/v2/health/live", "/v2/health/ready"
# while it stops a server answers with an error
HEALTH = {"type": "object"}
SECONDS = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}


def document(models: Sequence[Described], version: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of a server with these models.

    ``more`` are further paths to get, each with what it tells.
    """
    paths: dict[str, Any] = {
        "/v2": {"get": _get("what this server is")},
        LIVE: {"get": _health("whether it runs", "live")},
        READY: {"get": _health("whether it takes requests", "ready")},
        "/metrics": {"get": _get("metrics for Prometheus", "text/plain")},
        INDEX: {"post": _index()},
        "/openapi.json": {"get": _get("this document")},
        **{path: {"get": _get(text)} for path, text in (more or {}).items()},
    }
    for model in models:
        place = f"/v2/models/{model.name}"
        paths |= _model_paths(model, place) | _model_paths(model, f"{place}/versions/{model.version}")
    for path, item in paths.items():
        _finish(path, item)
    return {"openapi": "3.1.0", "info": _info(version), "paths": paths, "components": _components()}


def _info(version: str) -> dict[str, Any]:
    return {"title": "unfoldkit", "version": version, "description": "Open Inference Protocol v2 over REST."}


def _components() -> dict[str, Any]:
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    return {"schemas": {"Error": _object({"error": {"type": "string"}})}, "securitySchemes": schemes}


def _finish(path: str, item: dict[str, Any]) -> None:
    """Name the operations of a path, and say which may need the token of the service."""
    for method, operation in item.items():
        operation["operationId"] = "_".join([method, *re.findall(r"\w+", path)])
        # the empty one: a service on loopback need not have a token
        operation["security"] = [] if path in (LIVE, READY) else [{}, {"token": []}]
        if operation["security"]:
            for code in ("401", "403"):
                operation["responses"].setdefault(code, _error(code))


def _model_paths(model: Described, place: str) -> dict[str, Any]:
    answer = _answer("the answer", _response(model))
    answer["content"][BINARY.decode()] = BYTES
    infer = {
        "summary": f"ask {model.name}",
        "requestBody": {"required": True, "content": {JSON: {"schema": _request(model)}}},
        "responses": {"200": answer, **{code: _error(code) for code in ERRORS}},
    }
    return {
        place: {"get": _get(f"inputs, outputs and facts of {model.name}")},
        f"{place}/ready": {"get": _health(f"whether {model.name} takes requests", "ready")},
        f"{place}/infer": {"post": infer},
    }


def _index() -> dict[str, Any]:
    text = {"type": "string"}
    one = _object({"name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text})
    wish = {"type": "object", "properties": {"ready": FLAG}}
    return {
        "summary": "the models that are there",
        "requestBody": {"required": False, "content": {JSON: {"schema": wish}}},
        "responses": {
            "200": _answer("the models", {"type": "array", "items": one}),
            "400": _answer("the body is no such wish", ERROR),
            "413": _error("413"),
        },
    }


def _error(code: str) -> dict[str, Any]:
    found = _answer(ERRORS[code], ERROR)
    return found | ({"headers": SECONDS} if code == "429" else {})


def _request(model: Described) -> dict[str, Any]:
    parameters = {
        "type": ["object", "null"],
        "properties": {
            "entity": {"type": TEXT, "maxLength": 256},
            "time": {"type": ["integer", "null"]},
            "deadline_ms": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": LONGEST_MS},
            "binary_data_output": FLAG,
            "least_accuracy": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        },
    }
    raw = {"type": ["object", "null"], "properties": {"binary_data": FLAG}}
    one = _object({"name": {"enum": [item.name for item in model.outputs]}}, parameters=raw)
    named = {"type": ["array", "null"], "items": one}
    inputs = _list([_tensor(item, _taken(item)) for item in model.inputs])
    return _object({"inputs": inputs}, id={"type": TEXT}, parameters=parameters, outputs=named)


def _response(model: Described) -> dict[str, Any]:
    text = {"type": "string"}
    outputs = {"type": "array", "items": {"anyOf": [_tensor(item, (item.datatype,)) for item in model.outputs]}}
    ignored = {"type": "array", "items": {"enum": ["least_accuracy"]}}
    parameters = {"type": "object", "properties": {"entity": text, "ignored": ignored}}
    return _object({"model_name": text, "model_version": text, "outputs": outputs}, id=text, parameters=parameters)


def _taken(item: Field) -> Sequence[str]:
    """Return the datatypes under which an input may come."""
    return sorted(NUMBERS) if item.datatype in NUMBERS else (item.datatype,)


def _tensor(item: Field, datatypes: Sequence[str]) -> dict[str, Any]:
    kinds = [TYPES.get(item.datatype, "number"), *(["null"] if item.missing else [])]
    cell: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0]}
    row = {"type": "array", "items": cell}
    size = {"type": "integer", "minimum": 1}
    count = 1 + len(item.shape)
    data = {"type": "array", "items": {"anyOf": [cell, row]} if item.shape else cell}
    if item.shape:
        data["description"] = f"{list(item.shape)} values a row, flat or one list a row"
    # that a row has these lengths is told in words: not all tools that make clients know prefixItems
    shape = {"type": "array", "items": size, "minItems": count, "maxItems": count, "description": shape_text(item)}
    return _object({"name": {"const": item.name}, "datatype": {"enum": list(datatypes)}, "shape": shape, "data": data})


def _list(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": kinds}, "minItems": len(kinds), "maxItems": len(kinds)}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _get(text: str, content: str = JSON) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": {"description": text, "content": {content: {}}}}}


def _health(text: str, key: str) -> dict[str, Any]:
    """Return an operation that says the same by its status: 200, or 503 if it is not so."""
    schema = _object({key: {"type": "boolean"}})
    return {"summary": text, "responses": {"200": _answer(text, schema), "503": _answer(f"not so: {text}", HEALTH)}}


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": schema}}}
