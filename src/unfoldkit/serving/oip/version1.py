"""The first version of the protocol, as TensorFlow Serving and KServe have it: instances in, predictions out.

Source: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API", row format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from unfoldkit.serving.batching.batcher import Result
from unfoldkit.serving.model import Field
from unfoldkit.serving.oip.codec import InferenceRequest
from unfoldkit.serving.oip.content_encoding import read_encoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.oip.inference import Endpoint, problem_reply, read_body
from unfoldkit.serving.responses import Reply, error_reply, send_reply, too_many_requests
from unfoldkit.serving.service import Receive, Scope, Send


class PredictRequest(msgspec.Struct):
    """A request: one instance per row, a value of the only input or an object of all inputs by name."""

    instances: list[Any]
    parameters: dict[str, Any] | None = None


async def answer_predict(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one POST to ``/v1/models/NAME:predict``."""
    try:
        encoding = read_encoding(scope["headers"])
        body = await read_body(scope, receive, endpoint.batcher.limits.body_bytes)
        if retry_s := endpoint.gate.ask():
            await send_reply(too_many_requests(retry_s), send)
            return
        request = read_instances(endpoint, encoding.decompress(body, endpoint.batcher.limits.body_bytes))
    except (InvalidRequest, TooLarge) as problem:
        reply = problem_reply(problem)
        endpoint.metrics.requests.count(reply.status, 0.0)
        await send_reply(reply, send)
        return
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    endpoint.submit(request, lambda result: None if future.done() else future.set_result(result))
    await send_reply(_write_reply(endpoint, await future), send)


def read_instances(endpoint: Endpoint, body: bytes) -> InferenceRequest:
    """Read the body of a predict request.

    Raises:
        InvalidRequest: It is not such a request, or does not fit the inputs of the model.
        TooLarge: It holds more values than the rows that are accepted.
    """
    endpoint.reader.check_size(body, endpoint.batcher.limits.queue_rows)
    try:
        request = msgspec.json.decode(body, type=PredictRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(str(error)) from error
    inputs = [_read_tensor(item, request.instances, endpoint.model.inputs) for item in endpoint.model.inputs]
    return endpoint.reader.read_data({"inputs": inputs, "parameters": request.parameters})


def _read_tensor(item: Field, instances: Sequence[Any], inputs: Sequence[Field]) -> dict[str, Any]:
    values: list[Any] = []
    for number, instance in enumerate(instances):
        value = instance
        if isinstance(instance, dict):
            unknown = sorted(set(instance) - {field.name for field in inputs})
            if item.name not in instance or unknown:
                problem = f"has no input {unknown[0]!r} to fill" if unknown else f"lacks the input {item.name!r}"
                raise InvalidRequest(f"instance {number} {problem}")
            value = instance[item.name]
        elif len(inputs) > 1:
            names = ", ".join(repr(field.name) for field in inputs)
            raise InvalidRequest(f"instance {number} must be an object of the inputs {names}")
        _flatten(value, item.shape, values, f"instance {number}: input {item.name!r}")
    return {"name": item.name, "shape": [len(instances), *item.shape], "datatype": item.datatype, "data": values}


def _flatten(value: Any, shape: Sequence[int], values: list[Any], name: str) -> None:
    """Append the values of a nested list of this shape."""
    if not shape:
        values.append(value)
    elif not isinstance(value, list) or len(value) != shape[0]:
        raise InvalidRequest(f"{name} must be a list of {shape[0]} at this depth")
    else:
        for part in value:
            _flatten(part, shape[1:], values, name)


def _write_reply(endpoint: Endpoint, result: Result) -> Reply:
    if not isinstance(result, tuple):
        endpoint.log_problem(result)
        return problem_reply(result)
    encoded, start, end = result
    names = list(endpoint.writer.fields)
    if len(names) == 1:
        parts = list(encoded[names[0]][start:end])
    else:
        keys = [msgspec.json.encode(name) for name in names]
        parts = [
            b"{%b}" % b",".join(key + b":" + encoded[name][row] for key, name in zip(keys, names, strict=True))
            for row in range(start, end)
        ]
    return Reply(200, b'{"predictions":[%b]}' % b",".join(parts)) if parts else error_reply(500, "no rows")
