"""OpenAI's Responses API over chat completions: a request becomes a chat request, and its answer a response.

Nothing is stored, so a request must hold its whole conversation. Source: OpenAI's API reference, "Responses" and
"Streaming events"; tools other than functions run at OpenAI and are refused.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.openai_api.chat_request import RequestError, parse_object
from unfold_cascade.language_models.openai_api.completion import Completion, format_json

SAME = ("model", "stream", "temperature", "top_p", "user", "parallel_tool_calls", "service_tier", "seed")
"""Fields that have the same name and meaning in a chat request."""
STORED = ("previous_response_id", "conversation", "prompt", "background")
LOGPROBS = "message.output_text.logprobs"
"""What ``include`` names to get log-probabilities."""
TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def translate_request(body: bytes) -> tuple[bytes, ResponseWriter]:
    """Translate the body of a request to that of a chat request, and return what writes its response.

    Raises:
        RequestError: It is no such request, or needs what the gateway does not have.
    """
    request = parse_object(body)
    for name in STORED:
        if request.get(name):
            message = f"{name} is not supported: the gateway stores nothing; send the whole conversation as input"
            raise RequestError(400, message, param=name, code="unsupported_parameter")
    chat = {name: request[name] for name in SAME if request.get(name) is not None}
    chat["messages"] = list(_list_messages(request))
    chat |= _translate_tools(request) | _translate_output(request)
    if request.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return json.dumps(chat).encode(), ResponseWriter(request, is_stream=bool(request.get("stream")))


def _list_messages(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(request.get("instructions"), str):
        yield {"role": "system", "content": request["instructions"]}
    items = request.get("input")
    if isinstance(items, str):
        yield {"role": "user", "content": items}
        return
    if not isinstance(items, list) or not items:
        raise RequestError(400, "input must be a text or a list of items", param="input")
    calls: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        if isinstance(item, dict) and item.get("type") == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
            continue
        # calls in a row are those of one message
        yield from _list_calls(calls)
        calls = []
        yield from _translate_item(item, number)
    yield from _list_calls(calls)


def _list_calls(calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if calls:
        yield {"role": "assistant", "content": None, "tool_calls": calls}


def _translate_item(item: Any, number: int) -> Iterator[dict[str, Any]]:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        yield {"role": item.get("role"), "content": _translate_content(item.get("content"), number)}
    elif kind == "function_call_output":
        content = _translate_content(item.get("output"), number)
        yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    elif kind != "reasoning":
        raise RequestError(400, f"input[{number}] has the type {kind!r}, which is not supported", param="input")


def _translate_content(content: Any, number: int) -> Any:
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, dict) else {} for part in content]
    if all(part.get("type") in TEXT_PARTS for part in parts) and len(parts) == 1:
        return parts[0].get("text")
    return [_translate_part(part, number) for part in parts]


def _translate_part(part: Mapping[str, Any], number: int) -> dict[str, Any]:
    kind = part.get("type")
    if kind in TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    raise RequestError(400, f"input[{number}] has content of the type {kind!r}, which is not supported", param="input")


def _translate_tools(request: Mapping[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    tools = request.get("tools") or []
    if not isinstance(tools, list) or any(not isinstance(t, dict) or t.get("type") != "function" for t in tools):
        raise RequestError(400, "tools must be functions; others run at OpenAI only", param="tools")
    if tools:
        names = ("name", "description", "parameters", "strict")
        chat["tools"] = [{"type": "function", "function": {n: t[n] for n in names if n in t}} for t in tools]
    choice = request.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    if choice is not None and tools:
        chat["tool_choice"] = choice
    return chat


def _translate_output(request: Mapping[str, Any]) -> dict[str, Any]:
    """Translate limits and forms of the output."""
    chat: dict[str, Any] = {}
    if request.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = request["max_output_tokens"]
    included = request.get("include")
    if request.get("top_logprobs") or (isinstance(included, list) and LOGPROBS in included):
        chat |= {"logprobs": True, "top_logprobs": request.get("top_logprobs") or 0}
    reasoning, text = (_read_object(request, name) for name in ("reasoning", "text"))
    if reasoning.get("effort"):
        chat["reasoning_effort"] = reasoning["effort"]
    if text.get("verbosity"):
        chat["verbosity"] = text["verbosity"]
    shape = _read_object(text, "format")
    if shape.get("type") == "json_schema":
        schema = {name: shape[name] for name in ("name", "description", "schema", "strict") if name in shape}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif shape.get("type") == "json_object":
        chat["response_format"] = {"type": "json_object"}
    return chat


def _read_object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(400, f"{name} must be an object", param=name)
    return value or {}


@dataclass(slots=True)
class ResponseWriter:
    """Writes the answer to a chat request, whole or as events, as that of a response.

    Attributes:
        request: Of the client; a response repeats its settings.
        is_stream: Whether the answer comes as events.
        id: Of the response.
        completion: What the endpoint answered so far.
        items: Of the output, by choice of tool call, or ``None`` for the text; in order of their beginning.
        logprobs: Of the tokens of the text so far, in the form of both APIs.
        number: Of the next event.
        buffer: Of an answer that is not streamed.
    """

    request: Mapping[str, Any]
    is_stream: bool
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    completion: Completion = field(default_factory=Completion)
    items: dict[int | None, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    number: int = 0
    buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes, *, is_last: bool) -> bytes:
        """Translate a part of the answer: some whole events, or some of the bytes of a body."""
        if self.is_stream:
            return b"".join(self._translate_event(event) for event in data.split(b"\n\n") if event)
        self.buffer += data
        if not is_last:
            return b""
        body = json.loads(self.buffer)
        self.completion.read_body(body)
        self.logprobs += _list_logprobs(body)
        choice = self.completion.first_choice
        for key in (*([None] if choice.text or not choice.tool_calls else []), *choice.tool_calls):
            self._finish_item(key)
        return format_json(self._describe(str(body.get("model"))))

    def _translate_event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: "):
            # a comment
            return event + b"\n\n"
        if event == b"data: [DONE]":
            return b"".join(self._end())
        chunk = json.loads(event[6:])
        if "error" in chunk:
            return b"".join((*self._begin(), *self._fail(chunk["error"])))
        return b"".join((*self._begin(), *self._add_chunk(chunk)))

    def _begin(self) -> Iterator[bytes]:
        if self.number == 0:
            response = self._describe(str(self.request.get("model")), status="in_progress")
            yield self._event("response.created", response=response)
            yield self._event("response.in_progress", response=response)

    def _add_chunk(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        before = self.completion.first_choice.text
        lengths = {key: len(call["arguments"]) for key, call in self.completion.first_choice.tool_calls.items()}
        self.completion.add_chunk(chunk)
        logprobs = _list_logprobs(chunk)
        self.logprobs += logprobs
        choice = self.completion.first_choice
        if len(choice.text) > len(before):
            yield from self._open_item(None)
            place = {**self._place(None), "content_index": 0}
            delta = choice.text[len(before) :]
            yield self._event("response.output_text.delta", **place, delta=delta, logprobs=logprobs)
        for key, call in choice.tool_calls.items():
            yield from self._open_item(key)
            if delta := call["arguments"][lengths.get(key, 0) :]:
                yield self._event("response.function_call_arguments.delta", **self._place(key), delta=delta)

    def _end(self) -> Iterator[bytes]:
        yield from self._begin()
        if not self.items:
            yield from self._open_item(None)
        for key in list(self.items):
            item, place = self._finish_item(key), self._place(key)
            if key is None:
                (part,) = item["content"]
                place_in_item = {**place, "content_index": 0}
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._event("response.output_text.done", **place_in_item, **done)
                yield self._event("response.content_part.done", **place_in_item, part=part)
            else:
                arguments = {"name": item["name"], "arguments": item["arguments"]}
                yield self._event("response.function_call_arguments.done", **place, **arguments)
            yield self._event("response.output_item.done", output_index=place["output_index"], item=item)
        response = self._describe(str(self.request.get("model")))
        yield self._event(f"response.{response['status']}", response=response)

    def _fail(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        yield self._event("error", **{name: error.get(name) for name in ("code", "message", "param")})
        failed = self._describe(str(self.request.get("model")), status="failed")
        failed["error"] = {"code": "server_error", "message": error.get("message")}
        yield self._event("response.failed", response=failed)

    def _open_item(self, key: int | None) -> Iterator[bytes]:
        if key in self.items:
            return
        item = self._finish_item(key) | {"status": "in_progress"}
        item["content" if key is None else "arguments"] = [] if key is None else ""
        yield self._event("response.output_item.added", output_index=len(self.items) - 1, item=item)
        if key is None:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place(None), content_index=0, part=part)

    def _finish_item(self, key: int | None) -> dict[str, Any]:
        """Write an item of the output as far as it has come."""
        choice, known = self.completion.first_choice, self.items.get(key)
        if key is None:
            part = {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": self.logprobs}
            item = {"type": "message", "id": f"msg_{secrets.token_hex(16)}", "role": "assistant", "content": [part]}
        else:
            call = choice.tool_calls[key]
            item = {"type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "call_id": call.get("id", "")}
            item |= {"name": call["name"], "arguments": call["arguments"]}
        item = {**item, "id": item["id"] if known is None else known["id"], "status": "completed"}
        self.items[key] = item
        return item

    def _place(self, key: int | None) -> dict[str, Any]:
        return {"item_id": self.items[key]["id"], "output_index": list(self.items).index(key)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = format_json({"type": kind, "sequence_number": self.number, **fields})
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _describe(self, model: str, status: str = "") -> dict[str, Any]:
        """Write the response as far as it has come."""
        request, finish = self.request, self.completion.first_choice.finish_reason
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish or "")
        text = _read_object(request, "text")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status or ("incomplete" if reason else "completed"),
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": request.get("instructions"),
            "max_output_tokens": request.get("max_output_tokens"),
            "model": model,
            "output": list(self.items.values()) if not status else [],
            "parallel_tool_calls": request.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": _read_object(request, "reasoning").get("effort"), "summary": None},
            "store": False,
            "temperature": request.get("temperature"),
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": request.get("tool_choice") or "auto",
            "tools": request.get("tools") or [],
            "top_p": request.get("top_p"),
            "truncation": "disabled",
            "usage": self._describe_usage() if not status else None,
            "user": request.get("user"),
            "metadata": request.get("metadata") or {},
        }

    def _describe_usage(self) -> dict[str, Any] | None:
        usage = self.completion.usage
        if usage is None:
            return None
        named = (usage.get(name) for name in ("prompt_tokens_details", "completion_tokens_details"))
        details = [value if isinstance(value, dict) else {} for value in named]
        return {
            "input_tokens": usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": details[0].get("cached_tokens") or 0},
            "output_tokens": usage.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": details[1].get("reasoning_tokens") or 0},
            "total_tokens": usage.get("total_tokens", 0),
        }


def _list_logprobs(answer: Mapping[str, Any]) -> list[Any]:
    """Return the log-probabilities of the first choice of a chat completion, or of a chunk."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    logprobs = first.get("logprobs") if isinstance(first, dict) and not first.get("index") else None
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []
