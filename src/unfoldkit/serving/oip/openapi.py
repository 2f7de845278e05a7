"""The OpenAPI document of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unfoldkit.serving.model import Field, ModelDescription
from unfoldkit.serving.oip.binary import BINARY_TYPE
from unfoldkit.serving.oip.codec import MAX_DEADLINE_MS, MAX_ENTITY_LENGTH, MAX_ID_LENGTH, NUMBER_TYPES, format_shape

JSON = "application/json"
TYPES = {"BOOL": "boolean", "BYTES": "string", "INT32": "integer", "INT64": "integer"}
ERRORS = {
    "400": "the body is not JSON, or does not fit the inputs of the model",
    "401": "this service requires a token, and the request has none or another",
    "403": "this service has no token, and a page of another site may have sent the request",
    "409": "the row is late: a later row of this entity was answered",
    "413": "the body is too large, or has too many rows",
    "429": "too many rows are waiting; Retry-After holds the time to retry",
    "500": "the model failed",
    "503": "the model does not respond, the server is about to stop, or it holds as much as it may",
}
ERROR = {"$ref": "#/components/schemas/Error"}
# optional values may be null
NULLABLE_TEXT = ["string", "null"]
FLAG = {"type": ["boolean", "null"]}
BYTES = {"schema": {"type": "string", "format": "binary", "description": "JSON, followed by tensors as bytes"}}
INDEX, INDEX_BYTES = "/v2/repository/index", 4096
LIVE, READY = "/v2/health/live", "/v2/health/ready"
# a server that stops answers with an error object
HEALTH = {"type": "object"}
SECONDS = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}


def build_document(
    models: Sequence[ModelDescription], version: str, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Build the OpenAPI 3.1 description of a server.

    Args:
        models: Its models.
        version: The version of the server.
        more: Further paths of GET requests, with a description of each.
    """
    paths: dict[str, Any] = {
        "/v2": {"get": _get("name, version and extensions of the server")},
        LIVE: {"get": _health("whether the server runs", "live")},
        READY: {"get": _health("whether the server accepts requests", "ready")},
        "/metrics": {"get": _get("metrics for Prometheus", "text/plain")},
        INDEX: {"post": _index()},
        "/v1/models": {"get": _get("the models of the server")},
        "/v2/models/stats": {"get": _get("statistics of all models")},
        "/openapi.json": {"get": _get("this document")},
        **{path: {"get": _get(text)} for path, text in (more or {}).items()},
    }
    for model in models:
        path = f"/v2/models/{model.name}"
        paths |= _model_paths(model, path) | _model_paths(model, f"{path}/versions/{model.version}")
        paths |= _version1_paths(model)
    for path, item in paths.items():
        _complete_operations(path, item)
    return {"openapi": "3.1.0", "info": _info(version), "paths": paths, "components": _components()}


def _info(version: str) -> dict[str, Any]:
    return {"title": "unfoldkit", "version": version, "description": "Open Inference Protocol v2 over REST."}


def _components() -> dict[str, Any]:
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    return {"schemas": {"Error": _object({"error": {"type": "string"}})}, "securitySchemes": schemes}


def _complete_operations(path: str, item: dict[str, Any]) -> None:
    """Add ids to the operations of a path, and the token to those that may need one."""
    for method, operation in item.items():
        operation["operationId"] = "_".join([method, *re.findall(r"\w+", path)])
        # the empty requirement: a service on loopback may have no token
        operation["security"] = [] if path in (LIVE, READY) else [{}, {"token": []}]
        if operation["security"]:
            for code in ("401", "403"):
                operation["responses"].setdefault(code, _error(code))


def _model_paths(model: ModelDescription, path: str) -> dict[str, Any]:
    response = _json_response("the predictions", _response_schema(model))
    response["content"][BINARY_TYPE.decode()] = BYTES
    infer = {
        "summary": f"predict with {model.name}",
        "requestBody": {"required": True, "content": {JSON: {"schema": _request_schema(model)}}},
        "responses": {"200": response, **{code: _error(code) for code in ERRORS}},
    }
    return {
        path: {"get": _get(f"inputs, outputs and facts of {model.name}")},
        f"{path}/config": {"get": _get(f"configuration of {model.name}")},
        f"{path}/stats": {"get": _get(f"statistics of {model.name}")},
        f"{path}/ready": {"get": _health(f"whether {model.name} accepts requests", "ready")},
        f"{path}/infer": {"post": infer},
    }


def _version1_paths(model: ModelDescription) -> dict[str, Any]:
    predictions = _object({"predictions": {"type": "array"}})
    parameters = {"type": ["object", "null"]}
    request = _object({"instances": {"type": "array", "minItems": 1}}, parameters=parameters)
    predict = {
        "summary": f"predict with {model.name}, in version 1 of the protocol",
        "requestBody": {"required": True, "content": {JSON: {"schema": request}}},
        "responses": {
            "200": _json_response("one prediction per instance", predictions),
            **{code: _error(code) for code in ERRORS},
        },
    }
    path = f"/v1/models/{model.name}"
    return {path: {"get": _get(f"whether {model.name} responds")}, f"{path}:predict": {"post": predict}}


def _index() -> dict[str, Any]:
    text = {"type": "string"}
    entry = _object({"name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text})
    request = {"type": "object", "properties": {"ready": FLAG}}
    return {
        "summary": "the models of the server",
        "requestBody": {"required": False, "content": {JSON: {"schema": request}}},
        "responses": {
            "200": _json_response("the models", {"type": "array", "items": entry}),
            "400": _json_response("the body is not such a request", ERROR),
            "413": _error("413"),
        },
    }


def _error(code: str) -> dict[str, Any]:
    response = _json_response(ERRORS[code], ERROR)
    return response | ({"headers": SECONDS} if code in ("429", "503") else {})


def _request_schema(model: ModelDescription) -> dict[str, Any]:
    parameters = {
        "type": ["object", "null"],
        "properties": {
            "entity": {"type": NULLABLE_TEXT, "maxLength": MAX_ENTITY_LENGTH},
            "time": {"type": ["integer", "null"]},
            "deadline_ms": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_MS},
            "binary_data_output": FLAG,
            "least_accuracy": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        },
    }
    raw = {"type": ["object", "null"], "properties": {"binary_data": FLAG}}
    output = _object({"name": {"enum": [item.name for item in model.outputs]}}, parameters=raw)
    outputs = {"type": ["array", "null"], "items": output}
    inputs = _list([_tensor(item, _accepted_datatypes(item)) for item in model.inputs])
    return _object(
        {"inputs": inputs},
        id={"type": NULLABLE_TEXT, "maxLength": MAX_ID_LENGTH},
        parameters=parameters,
        outputs=outputs,
    )


def _response_schema(model: ModelDescription) -> dict[str, Any]:
    text = {"type": "string"}
    outputs = {"type": "array", "items": {"anyOf": [_tensor(item, (item.datatype,)) for item in model.outputs]}}
    ignored = {"type": "array", "items": text}
    parameters = {"type": "object", "properties": {"entity": text, "ignored": ignored}}
    return _object({"model_name": text, "model_version": text, "outputs": outputs}, id=text, parameters=parameters)


def _accepted_datatypes(item: Field) -> Sequence[str]:
    """Return the datatypes in which an input may be sent."""
    return sorted(NUMBER_TYPES) if item.datatype in NUMBER_TYPES else (item.datatype,)


def _tensor(item: Field, datatypes: Sequence[str]) -> dict[str, Any]:
    kinds = [TYPES.get(item.datatype, "number"), *(["null"] if item.missing else [])]
    cell: dict[str, Any] = {"type": kinds if len(kinds) > 1 else kinds[0]}
    row = {"type": "array", "items": cell}
    size = {"type": "integer", "minimum": 1}
    count = 1 + len(item.shape)
    data = {"type": "array", "items": {"anyOf": [cell, row]} if item.shape else cell}
    if item.shape:
        data["description"] = f"{list(item.shape)} values per row, flat or one list per row"
    # the description gives the lengths of a row: not all client generators know prefixItems
    shape = {"type": "array", "items": size, "minItems": count, "maxItems": count, "description": format_shape(item)}
    return _object({"name": {"const": item.name}, "datatype": {"enum": list(datatypes)}, "shape": shape, "data": data})


def _list(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": kinds}, "minItems": len(kinds), "maxItems": len(kinds)}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _get(text: str, content: str = JSON) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": {"description": text, "content": {content: {}}}}}


def _health(text: str, key: str) -> dict[str, Any]:
    """Return an operation with the same result in its status: 200, or 503 if it is false."""
    schema = _object({key: {"type": "boolean"}})
    return {
        "summary": text,
        "responses": {"200": _json_response(text, schema), "503": _json_response(f"false: {text}", HEALTH)},
    }


def _json_response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": schema}}}
