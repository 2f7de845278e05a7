"""Anthropic's Messages API over chat completions: a request becomes a chat request, and its answer a message.

Thinking is not passed on, as an upstream could not check its signature. Source: Anthropic's API reference, "Messages",
"Streaming messages" and "Errors"; tools that run at Anthropic are refused.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.openai_api.chat_request import RequestError, parse_object
from unfold_cascade.language_models.openai_api.completion import Completion, format_json

SAME = ("model", "stream", "temperature", "top_p", "top_k")
"""Fields that have the same name and meaning in a chat request."""
AT_ANTHROPIC = ("container", "mcp_servers", "context_management")
THOUGHTS = frozenset({"thinking", "redacted_thinking"})
STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
SHARED_ERRORS = frozenset({"invalid_request_error", "rate_limit_error"})
"""Types of errors that both APIs have."""
TOOL_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


def translate_request(body: bytes) -> tuple[bytes, MessageWriter]:
    """Translate the body of a request to that of a chat request, and return what writes its message.

    Raises:
        RequestError: It is no such request, or needs what the gateway does not have.
    """
    request = parse_object(body)
    if request.get("max_tokens") is None:
        raise RequestError(400, "max_tokens: field required", param="max_tokens")
    chat = translate_prompt(request)
    return json.dumps(chat).encode(), MessageWriter(is_stream=bool(request.get("stream")), model=request.get("model"))


def translate_prompt(request: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a request, with or without a limit of its output, to a chat request.

    Raises:
        RequestError: It is no such request, or needs what the gateway does not have.
    """
    for name in AT_ANTHROPIC:
        if request.get(name):
            raise RequestError(400, f"{name} is not supported: it runs at Anthropic only", param=name)
    chat = {name: request[name] for name in SAME if request.get(name) is not None}
    if request.get("max_tokens") is not None:
        chat["max_completion_tokens"] = request["max_tokens"]
    if request.get("stop_sequences"):
        chat["stop"] = request["stop_sequences"]
    metadata = request.get("metadata")
    if isinstance(metadata, dict) and metadata.get("user_id"):
        chat["user"] = metadata["user_id"]
    chat["messages"] = list(_list_messages(request))
    chat |= _translate_tools(request) | _translate_output(request)
    if request.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def encode_error(error: RequestError) -> bytes:
    """Encode an error in Anthropic's form."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return format_json({"type": "error", "error": {"type": kind, "message": error.message}})


def _list_messages(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if request.get("system"):
        yield {"role": "system", "content": _join_texts(request["system"], "system")}
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages must be a list of messages", param="messages")
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise RequestError(400, f"{place} must have the role user or assistant", param="messages")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise RequestError(400, f"{place}.content must be a text or a list of blocks", param="messages")
        yield from _translate_blocks(str(message["role"]), blocks, place)


def _translate_blocks(role: str, blocks: list[dict[str, Any]], place: str) -> Iterator[dict[str, Any]]:
    """Translate the blocks of one message: results of tools are messages of their own, and come first."""
    parts, calls = [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            content = block.get("content")
            pictures = [each for each in content if _is_picture(each)] if isinstance(content, list) else []
            texts = [each for each in content if not _is_picture(each)] if isinstance(content, list) else content
            text = _join_texts(texts or "", place)
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
            # a chat message of a tool holds texts only
            parts += [_translate_picture(picture, place) for picture in pictures]
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "text":
            parts.append({"type": "text", "text": block.get("text")})
        elif _is_picture(block):
            parts.append(_translate_picture(block, place))
        elif kind == "document":
            parts.append(_translate_document(block, place))
        elif kind not in THOUGHTS:
            raise RequestError(
                400, f"{place} has content of the type {kind!r}, which is not supported", param="messages"
            )
    if parts or calls:
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        content = parts[0]["text"] if is_text else parts or None
        yield {"role": role, "content": content} | ({"tool_calls": calls} if calls else {})


def _is_picture(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "image"


def _translate_picture(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    url = source.get("url")
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    if not isinstance(url, str):
        raise RequestError(400, f"{place} has an image without base64 data or a URL", param="messages")
    return {"type": "image_url", "image_url": {"url": url}}


def _translate_document(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Translate a document: a text is one, and a PDF a file; a chat request has no documents by URL, nor citations."""
    source, citations = block.get("source"), block.get("citations")
    source = source if isinstance(source, dict) else {}
    if isinstance(citations, dict) and citations.get("enabled"):
        raise RequestError(400, f"{place} asks for citations, which are not supported", param="messages")
    title, data = block.get("title"), source.get("data")
    if source.get("type") == "text" and isinstance(data, str):
        notes = [note for note in (title, block.get("context")) if isinstance(note, str)]
        return {"type": "text", "text": "\n\n".join((*notes, data))}
    if source.get("type") != "base64" or not isinstance(data, str):
        message = f"{place} has a document that is neither a text nor base64 data"
        raise RequestError(400, message, param="messages")
    name = title if isinstance(title, str) and title else "document.pdf"
    file = {"filename": name, "file_data": f"data:{source.get('media_type')};base64,{data}"}
    return {"type": "file", "file": file}


def _join_texts(content: Any, place: str) -> str:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    is_text = isinstance(blocks, list) and all(isinstance(b, dict) and isinstance(b.get("text"), str) for b in blocks)
    if not is_text:
        raise RequestError(400, f"{place} must be a text or a list of texts", param=place.partition("[")[0])
    return "\n\n".join(block["text"] for block in blocks)


def _translate_tools(request: Mapping[str, Any]) -> dict[str, Any]:
    tools = request.get("tools") or []
    if not isinstance(tools, list) or any(
        not isinstance(t, dict) or t.get("type", "custom") != "custom" for t in tools
    ):
        raise RequestError(400, "tools must have an input_schema; others run at Anthropic only", param="tools")
    if not tools:
        return {}
    names = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    functions = [{names[name]: tool[name] for name in names if name in tool} for tool in tools]
    chat: dict[str, Any] = {"tools": [{"type": "function", "function": function} for function in functions]}
    choice = request.get("tool_choice")
    if choice is None:
        return chat
    kind = str(choice.get("type")) if isinstance(choice, dict) else ""
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif kind in TOOL_CHOICES:
        chat["tool_choice"] = TOOL_CHOICES[kind]
    else:
        raise RequestError(400, "tool_choice.type must be auto, any, tool or none", param="tool_choice")
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _translate_output(request: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the form of the output."""
    config = request.get("output_config")
    shape = config.get("format") if isinstance(config, dict) else None
    if not isinstance(shape, dict) or shape.get("type") != "json_schema":
        return {}
    schema = {"name": "output", "schema": shape.get("schema"), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


@dataclass(slots=True)
class MessageWriter:
    """Writes the answer to a chat request, whole or as events, as a message.

    Blocks of a message follow each other, while calls of a chat completion may alternate: the first one is streamed,
    and further ones are written at the end.

    Attributes:
        is_stream: Whether the answer comes as events.
        model: The model that was requested.
        id: Of the message.
        completion: What the endpoint answered so far.
        block: Number of the block that is open, or that comes next.
        is_open: Whether a block is open.
        call: The tool call that is streamed.
        sent: Characters of the text and of the arguments that were sent.
        has_begun: Whether the message was begun.
        buffer: Of an answer that is not streamed.
    """

    is_stream: bool
    model: Any
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    completion: Completion = field(default_factory=Completion)
    block: int = 0
    is_open: bool = False
    call: int | None = None
    sent: tuple[int, int] = (0, 0)
    has_begun: bool = False
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
        return format_json(self._describe(body.get("model")))

    def _translate_event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: "):
            # a comment
            return event + b"\n\n"
        if event == b"data: [DONE]":
            return b"".join((*self._begin(), *self._end()))
        chunk = json.loads(event[6:])
        if "error" in chunk:
            kind = chunk["error"].get("type")
            kind = kind if kind in SHARED_ERRORS else "api_error"
            return _event("error", error={"type": kind, "message": chunk["error"].get("message")})
        self.completion.add_chunk(chunk)
        return b"".join((*self._begin(), *self._grow()))

    def _begin(self) -> Iterator[bytes]:
        if not self.has_begun:
            self.has_begun = True
            message = self._describe(self.model) | {"content": [], "stop_reason": None}
            yield _event("message_start", message=message)

    def _grow(self) -> Iterator[bytes]:
        """Write what the text and the first tool call have grown by."""
        choice, (text, arguments) = self.completion.first_choice, self.sent
        if self.call is None and len(choice.text) > text:
            if not self.is_open:
                yield self._open({"type": "text", "text": ""})
            yield self._extend({"type": "text_delta", "text": choice.text[text:]})
            self.sent = (len(choice.text), arguments)
        first = next(iter(choice.tool_calls), None)
        if self.call is None and first is not None and choice.tool_calls[first]["name"]:
            yield from self._close()
            self.call = first
            yield self._open(_describe_call(choice.tool_calls[self.call]) | {"input": {}})
        if self.call is not None and (delta := choice.tool_calls[self.call]["arguments"][self.sent[1] :]):
            yield self._extend({"type": "input_json_delta", "partial_json": delta})
            self.sent = (self.sent[0], self.sent[1] + len(delta))

    def _end(self) -> Iterator[bytes]:
        yield from self._close()
        choice = self.completion.first_choice
        for key, call in choice.tool_calls.items():
            if key != self.call:
                yield self._open(_describe_call(call) | {"input": {}})
                yield self._extend({"type": "input_json_delta", "partial_json": call["arguments"]})
                yield from self._close()
        if len(choice.text) > self.sent[0]:
            yield self._open({"type": "text", "text": ""})
            yield self._extend({"type": "text_delta", "text": choice.text[self.sent[0] :]})
            yield from self._close()
        message = self._describe(self.model)
        delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
        yield _event("message_delta", delta=delta, usage=message["usage"])
        yield _event("message_stop")

    def _open(self, block: Mapping[str, Any]) -> bytes:
        self.is_open = True
        return _event("content_block_start", index=self.block, content_block=block)

    def _extend(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self.block, delta=delta)

    def _close(self) -> Iterator[bytes]:
        if self.is_open:
            yield _event("content_block_stop", index=self.block)
            self.is_open, self.block = False, self.block + 1

    def _describe(self, model: Any) -> dict[str, Any]:
        """Write the message as far as it has come."""
        choice = self.completion.first_choice
        content: list[dict[str, Any]] = [{"type": "text", "text": choice.text}] if choice.text else []
        content += [_describe_call(call) for call in choice.tool_calls.values()]
        reason = "tool_use" if choice.tool_calls else STOP_REASONS.get(choice.finish_reason or "", "end_turn")
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": str(model),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self._describe_usage(),
        }

    def _describe_usage(self) -> dict[str, int]:
        usage = self.completion.usage or {}
        details = usage.get("prompt_tokens_details")
        cached = (details.get("cached_tokens") or 0) if isinstance(details, dict) else 0
        return {
            "input_tokens": max((usage.get("prompt_tokens") or 0) - cached, 0),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.get("completion_tokens") or 0,
        }


def _describe_call(call: Mapping[str, str]) -> dict[str, Any]:
    """Write a tool call; arguments that were cut off are no JSON, and left out."""
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:
        arguments = {}
    arguments = arguments if isinstance(arguments, dict) else {}
    name = call.get("id") or f"toolu_{secrets.token_hex(12)}"
    return {"type": "tool_use", "id": name, "name": call["name"], "input": arguments}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), format_json({"type": kind, **fields}))
