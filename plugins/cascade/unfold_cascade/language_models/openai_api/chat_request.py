"""A chat request of a client: checked for what the gateway reads, and passed on unchanged otherwise."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from unfold_cascade.language_models.planning.prompt_features import list_scripts

MAX_CHOICES = 128
MAX_TOKENS = 10_000_000
LONGER = 3
"""A prompt this many times longer than any logged one is not covered by the promise."""


COUNTED_FIELDS = ("messages", "tools", "functions", "response_format")
"""What an endpoint reads as its input."""
IMAGE_PARTS = frozenset({"image_url"})
MEDIA_PARTS = IMAGE_PARTS | {"input_audio", "file"}
MEDIA_TOKENS = 1600
"""Tokens of an image, audio or file: the most that Anthropic's reference states for one image ("Vision")."""


@dataclass(slots=True)
class RequestError(Exception):
    """A request is answered with an error in OpenAI's form."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    allow: str = ""

    def body(self) -> bytes:
        """Encode the error in OpenAI's form: message, type, parameter and code under ``error``."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        RequestError: It is none.
    """
    try:
        request = json.loads(body, parse_constant=_reject_constant, parse_float=_parse_float)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not valid JSON") from None
    if not isinstance(request, dict):
        raise RequestError(400, "the body must be a JSON object")
    return request


def parse_chat_request(body: bytes) -> dict[str, Any]:
    """Parse the body of a chat request.

    Raises:
        RequestError: It is not JSON, or a field that the gateway reads has a wrong type.
    """
    request = parse_object(body)
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise RequestError(400, "model must be the name of a model", param="model")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise RequestError(400, "messages must be a list of messages, each with a role", param="messages")
    for name, highest in (("n", MAX_CHOICES), ("max_tokens", MAX_TOKENS), ("max_completion_tokens", MAX_TOKENS)):
        value = request.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest):
            raise RequestError(400, f"{name} must be an integer from 1 to {highest}", param=name)
    for name in ("stream", "logprobs"):
        if request.get(name) is not None and not isinstance(request[name], bool):
            raise RequestError(400, f"{name} must be true or false", param=name)
    options = request.get("stream_options")
    if options is not None and not (isinstance(options, dict) and request.get("stream")):
        raise RequestError(400, "stream_options must be an object, and needs stream: true", param="stream_options")
    return request


def _reject_constant(name: str) -> NoReturn:
    """Reject NaN and infinities, which are no JSON and which an upstream would reject.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    """Parse a number; one beyond every float would reach the upstream as Infinity.

    Raises:
        ValueError: It is too large.
    """
    number = float(text)
    return number if math.isfinite(number) else _reject_constant(text)


def prompt_length(request: Mapping[str, Any]) -> int:
    """Count the characters of all texts of a request."""
    return sum(len(text) for text in _list_texts(request))


def has_media(request: Mapping[str, Any]) -> bool:
    """Whether a request holds or wants something else than text, such as an image or audio."""
    wanted = request.get("modalities")
    if isinstance(wanted, list) and any(kind != "text" for kind in wanted):
        return True
    parts = (
        part
        for message in request["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )
    return any(not isinstance(part, dict) or part.get("type") not in ("text", "refusal") for part in parts)


def measure_size(request: Mapping[str, Any], apart: frozenset[str]) -> tuple[int, int]:
    """Measure the input of a request: its bytes without the parts of some kinds, and the number of these.

    Args:
        request: The chat request.
        apart: Kinds of parts to be measured apart, as their tokens do not follow their bytes.
    """
    parts = [
        _size(part)
        for message in request["messages"]
        for part in (message["content"] if isinstance(message.get("content"), list) else ())
        if isinstance(part, dict) and part.get("type") in apart
    ]
    return sum(_size(request[name]) for name in COUNTED_FIELDS if name in request) - sum(parts), len(parts)


def _size(data: Any) -> int:
    return len(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))


def is_covered(request: Mapping[str, Any], longest_prompt: int | None, scripts: frozenset[str]) -> bool:
    """Whether a log of text prompts covers a request.

    Args:
        request: A checked request.
        longest_prompt: Characters of the longest prompt of the log, ``None`` if unknown.
        scripts: That the prompts of the log are written in; empty if unknown.
    """
    if has_media(request):
        return False
    if longest_prompt is not None and prompt_length(request) > LONGER * longest_prompt:
        return False
    return not scripts or list_scripts("\n".join(_list_texts(request))) <= scripts


def last_tool_call_id(request: Mapping[str, Any]) -> str | None:
    """Return the id of the tool call that has its result at the end of a request; ``None`` if it ends otherwise."""
    message = request["messages"][-1]
    return str(message.get("tool_call_id", "")) if message["role"] == "tool" else None


def conversation_hash(messages: list[Any], answer: str | None = None) -> bytes:
    """Hash the messages of a conversation, with the answer appended if there is one; texts alone count."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(json.dumps([message.get("role"), message.get("content")], sort_keys=True).encode())
    if answer is not None:
        digest.update(json.dumps(["assistant", answer]).encode())
    return digest.digest()


def last_answered(messages: list[Any]) -> list[Any]:
    """Return the messages up to the last one of the assistant; empty for a first turn."""
    positions = [k for k, message in enumerate(messages) if message.get("role") == "assistant"]
    return messages[: positions[-1] + 1] if positions else []


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _list_texts(request: Mapping[str, Any]) -> Iterator[str]:
    for message in request["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (str(part.get("text", "")) for part in content if isinstance(part, dict))
