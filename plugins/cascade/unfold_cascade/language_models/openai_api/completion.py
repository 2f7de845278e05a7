"""A chat completion, whole or collected from a stream, and what the gate reads in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_INTEGER = 1 << 63
ROUNDING = 0.01
"""How far rounding and low precision may push a log-probability or probability over its bound."""
VERY_UNLIKELY = -9999.0
"""OpenAI's log-probability of a token that is not among the likely ones; JSON has no infinite numbers."""
TRUSTED_FINISHES = frozenset({"stop", "tool_calls", "function_call"})
KNOWN_FINISHES = frozenset({"length", "content_filter"})
JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(slots=True)
class Choice:
    """One choice: its text, tool calls, log-probabilities of its tokens and finish reason.

    ``alternatives`` are the most likely first tokens and their log-probabilities, where they were requested;
    ``thought_size`` counts the characters of reasoning, which are billed as output and belong to no answer.
    """

    text: str = ""
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[str, float]] = field(default_factory=list)
    finish_reason: str | None = None
    thought_size: int = 0


@dataclass(slots=True)
class Completion:
    """What an upstream answered so far.

    Attributes:
        choices: By index.
        usage: The usage object, ``None`` while unknown.
        model: The name that the upstream reports.
        fingerprint: Its system fingerprint.
        chunks: Data of the stream, in order; empty for an answer which was not streamed.
        body: The answer which was not streamed.
    """

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None
    model: str = ""
    fingerprint: str = ""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    body: dict[str, Any] | None = None

    @property
    def first_choice(self) -> Choice:
        """The choice with the lowest index; an empty one while there is none."""
        return self.choices[min(self.choices)] if self.choices else Choice()

    def add_chunk(self, chunk: dict[str, Any]) -> None:
        """Add the data of one event of a stream.

        Raises:
            ValueError: It is no chunk of a completion.
        """
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices") or [], list):
            raise ValueError("not a chunk of a chat completion")  # noqa: TRY004 - the data is at fault
        self._read_head(chunk)
        for choice in chunk.get("choices") or []:
            self._add_choice(choice, "delta")

    def read_body(self, body: dict[str, Any]) -> None:
        """Read an answer which was not streamed.

        Raises:
            ValueError: It is no completion.
        """
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list) or not body["choices"]:
            raise ValueError("not a chat completion")
        self.body = body
        self._read_head(body)
        for choice in body["choices"]:
            self._add_choice(choice, "message")

    @property
    def texts(self) -> tuple[str, ...]:
        """Text and tool calls of every choice, for comparison; ids of calls are drawn again each time and left out."""
        return tuple(
            choice.text + "".join(_format_call(call) for _, call in sorted(choice.tool_calls.items()))
            for _, choice in sorted(self.choices.items())
        )

    @property
    def tool_call_ids(self) -> list[str]:
        """The ids of all tool calls."""
        calls = (call for choice in self.choices.values() for call in choice.tool_calls.values())
        return [call["id"] for call in calls if call.get("id")]

    def _read_head(self, data: Mapping[str, Any]) -> None:
        if isinstance(data.get("usage"), dict):
            self.usage = data["usage"]
        # some chunks have empty texts there
        model, fingerprint = data.get("model"), data.get("system_fingerprint")
        self.model = (model if isinstance(model, str) else "") or self.model
        self.fingerprint = (fingerprint if isinstance(fingerprint, str) else "") or self.fingerprint

    def _add_choice(self, data: Any, key: str) -> None:
        if not isinstance(data, dict) or not isinstance(data.get("index", 0), int):
            raise ValueError("not a choice of a chat completion")  # noqa: TRY004 - the data is at fault
        index = data.get("index", 0)
        choice = self.choices.get(index)
        if choice is None:
            choice = self.choices[index] = Choice()
        message = data.get(key) or {}
        if not isinstance(message, dict):
            raise ValueError("not a message of a chat completion")  # noqa: TRY004 - the data is at fault
        choice.text += _join_texts(message.get("content")) + _join_texts(message.get("refusal"))
        choice.thought_size += _measure_thoughts(message)
        for position, call in enumerate(message.get("tool_calls") or []):
            _add_tool_call(choice, call, position)
        logprobs = data.get("logprobs")
        tokens = (logprobs.get("content") or []) if isinstance(logprobs, dict) else []
        if not choice.logprobs and tokens:
            choice.alternatives = _read_alternatives(tokens[0])
        choice.logprobs += [float(t["logprob"]) for t in tokens if isinstance(t, dict) and is_number(t.get("logprob"))]
        if isinstance(data.get("finish_reason"), str):
            choice.finish_reason = data["finish_reason"] or choice.finish_reason


def format_json(data: Any) -> bytes:
    """Write data for a client, with the numbers that some upstreams send and JSON has not replaced."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_replace_non_finite(data), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def _replace_non_finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _replace_non_finite(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_replace_non_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return VERY_UNLIKELY if data == -math.inf else None
    return data


def select_choice(completion: Completion, index: int) -> Completion:
    """Reduce an answer to one of its choices, which becomes the first one; usage and identity stay."""
    body = completion.body
    return Completion(
        choices={0: completion.choices[index]},
        usage=completion.usage,
        model=completion.model,
        fingerprint=completion.fingerprint,
        chunks=[
            {**chunk, "choices": kept}
            for chunk in completion.chunks
            if (kept := _keep_choice(chunk, index)) or not chunk.get("choices")
        ],
        body=None if body is None else {**body, "choices": _keep_choice(body, index)},
    )


def split_body(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write an answer that was not streamed as the chunks of a stream: its choices, and its usage.

    Raises:
        ValueError: It is no completion.
    """
    Completion().read_body(dict(body))
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    yield {**head, "choices": [_write_delta(choice) for choice in body["choices"]]}
    if body.get("usage"):
        yield {**head, "choices": [], "usage": body["usage"]}


def _write_delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(choice.get("message") or {})
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": k, **call} for k, call in enumerate(message["tool_calls"])]
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": message}


def _keep_choice(data: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    return [{**choice, "index": 0} for choice in data.get("choices") or [] if choice.get("index", 0) == index]


def _join_texts(content: Any) -> str:
    """Join the texts of a message; some endpoints of reasoning models write a list of thoughts and texts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _measure_thoughts(message: Mapping[str, Any]) -> int:
    """Count the characters of reasoning: under the name of DeepSeek and vLLM, or under that of OpenRouter and Groq."""
    texts = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return max(len(text) if isinstance(text, str) else 0 for text in texts)


def _read_alternatives(token: Any) -> list[tuple[str, float]]:
    listed = token.get("top_logprobs") if isinstance(token, dict) else None
    return [
        (each["token"], float(each["logprob"]))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict) and isinstance(each.get("token"), str) and is_number(each.get("logprob"))
    ]


def _format_call(call: Mapping[str, str]) -> str:
    """Write a tool call without its id, and its arguments in one form."""
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = call["arguments"]
    return json.dumps([call["name"], arguments], sort_keys=True)


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN, truth values and integers beyond every float excluded."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return not math.isnan(value) if isinstance(value, float) else abs(value) < MAX_INTEGER


def _add_tool_call(choice: Choice, call: Any, position: int) -> None:
    if not isinstance(call, dict):
        raise ValueError("not a tool call")  # noqa: TRY004 - the data is at fault
    number = call.get("index", position)
    known = choice.tool_calls.setdefault(number if isinstance(number, int) else position, {"name": "", "arguments": ""})
    if isinstance(call.get("id"), str) and call["id"]:
        known["id"] = call["id"]
    function = call.get("function") if isinstance(call.get("function"), dict) else {}
    for name in ("name", "arguments"):
        if isinstance(function, dict) and isinstance(function.get(name), str):
            known[name] += function[name]


def read_confidence(completion: Completion, of: str) -> float | None:
    """Read the confidence of the least confident choice; ``None`` if any choice lacks proper log-probabilities.

    Args:
        completion: The answer.
        of: ``mean``, ``sum``, ``min`` or ``first`` of the tokens' log-probabilities.
    """
    values = [_combine(choice.logprobs, of) for choice in completion.choices.values()]
    return None if not values or any(value is None for value in values) else min(v for v in values if v is not None)


def _combine(logprobs: Sequence[float], of: str) -> float | None:
    if not logprobs or max(logprobs) > ROUNDING:
        # a positive number is no log-probability
        return None
    if of == "first":
        return logprobs[0]
    total = min(logprobs) if of == "min" else math.fsum(logprobs) if all(map(math.isfinite, logprobs)) else -math.inf
    return total / len(logprobs) if of == "mean" else total


def find_distrust(completion: Completion, request: Mapping[str, Any], *, trusts_filtered: bool) -> str:
    """Return why an answer must not be trusted whatever its confidence; empty if it may be."""
    if not completion.choices or len(completion.choices) < int(request.get("n") or 1):
        return "empty"
    tools = _tool_schemas(request)
    for choice in completion.choices.values():
        if choice.finish_reason == "content_filter" and trusts_filtered:
            continue
        if choice.finish_reason not in TRUSTED_FINISHES:
            return choice.finish_reason if choice.finish_reason in KNOWN_FINISHES else "unfinished"
        if not choice.text.strip() and not choice.tool_calls:
            return "empty"
        if not all(_is_valid_call(call, tools) for call in choice.tool_calls.values()):
            return "tool"
        if not choice.tool_calls and not _fits_format(choice.text, request.get("response_format")):
            return "format"
    return ""


def _fits_format(text: str, wanted: Any) -> bool:
    """Whether a text is the JSON that ``response_format`` requests; some endpoints take the field and ignore it."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in ("json_object", "json_schema"):
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if kind == "json_object":
        return isinstance(value, dict)
    named = wanted.get("json_schema")
    return matches_schema(value, named.get("schema") if isinstance(named, dict) else None)


def _tool_schemas(request: Mapping[str, Any]) -> dict[str, Any]:
    tools = request.get("tools")
    functions = (
        [tool.get("function") for tool in tools or [] if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    return {f["name"]: f.get("parameters") for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}


def _is_valid_call(call: Mapping[str, str], schemas: Mapping[str, Any]) -> bool:
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except (ValueError, RecursionError):
        return False
    return call["name"] in schemas and isinstance(arguments, dict) and matches_schema(arguments, schemas[call["name"]])


def matches_schema(value: Any, schema: Any, depth: int = 0) -> bool:
    """Whether a value fits the types, required keys, properties, items and enumerations of a JSON schema."""
    if not isinstance(schema, dict) or depth > 20:
        return True
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if names and not any(_has_type(value, name) for name in names):
        return False
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        return _matches_object(value, schema, depth)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return all(matches_schema(item, schema["items"], depth + 1) for item in value)
    return True


def _matches_object(value: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> bool:
    required = schema.get("required")
    properties = schema.get("properties") if isinstance(schema.get("properties"), dict) else {}
    assert isinstance(properties, dict)  # noqa: S101 - for the type checker
    if isinstance(required, list) and not all(name in value for name in required if isinstance(name, str)):
        return False
    if schema.get("additionalProperties") is False and not set(value) <= set(properties):
        return False
    return all(matches_schema(value[name], properties[name], depth + 1) for name in value if name in properties)


def _has_type(value: Any, name: Any) -> bool:
    if not isinstance(name, str):
        return True
    if name in ("number", "integer") and isinstance(value, bool):
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return name not in JSON_TYPES or isinstance(value, JSON_TYPES[name])
