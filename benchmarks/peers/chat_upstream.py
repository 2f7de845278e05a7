"""A quick OpenAI-compatible upstream that answers as scripted: `python -m benchmarks.peers.chat_upstream PORT [LOG]`.

The last message of a request is its script: words ``key=value``. ``id`` names the request, ``row`` takes an answer of
LOG (JSON: by model, a list of [prompt tokens, completion tokens, log-probability]), and ``small`` or ``large`` name the
fault of that model. ``GET /calls`` lists every answer that was sent whole, since that is what a provider bills.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKENS = 30
STALL_S = 5.0
END = b"\r\n\r\n"
FAULTS = ("429", "500", "reset", "stall", "cut", "broken", "no-usage", "no-logprobs")


@dataclass(slots=True)
class Provider:
    """The script of all connections, and what was answered."""

    log: Mapping[str, list[list[float]]]
    whole: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    bodies: dict[tuple[Any, ...], bytes] = field(default_factory=dict)

    def answer(self, request: Mapping[str, Any], connection: Connection) -> None:
        """Answer a request on its connection."""
        model, text = str(request["model"]), str(request["messages"][-1]["content"])
        script = dict(word.split("=", 1) for word in text.split() if "=" in word)
        call = (script.get("id", ""), model)
        self.calls[call] += 1
        fault = script.get(model, "")
        if fault.endswith("-once"):
            fault = fault.removesuffix("-once") if self.calls[call] == 1 else ""
        if fault in ("429", "500"):
            connection.write_json(int(fault), {"error": {"message": "scripted", "code": None}})
            return
        if fault == "reset":
            connection.transport.abort()
            return
        data = self._build(request, model, script, fault)
        if fault in ("stall", "cut"):
            connection.write_part(data, STALL_S if fault == "stall" else 0.0)
            return
        connection.transport.write(data)
        if fault != "broken":
            self.whole[call] += 1

    def _build(self, request: Mapping[str, Any], model: str, script: Mapping[str, str], fault: str) -> bytes:
        usage = [20, TOKENS, -0.001]
        if "row" in script:
            usage = [*self.log[model][int(script["row"])]]
        is_stream, has_logprobs = bool(request.get("stream")), bool(request.get("logprobs")) and fault != "no-logprobs"
        wants_usage = not is_stream or bool((request.get("stream_options") or {}).get("include_usage"))
        key: tuple[Any, ...] = (
            model,
            is_stream,
            has_logprobs,
            wants_usage and fault != "no-usage",
            fault == "broken",
            *usage,
        )
        if key not in self.bodies:
            if len(self.bodies) > 10_000:
                self.bodies.clear()
            self.bodies[key] = _format(*key)
        return self.bodies[key]


@dataclass(slots=True)
class Connection(asyncio.Protocol):
    """One keep-alive connection, without pipelining."""

    provider: Provider
    transport: Any = None
    data: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the request once it is whole."""
        self.data += data
        head, end, body = self.data.partition(END)
        if not end:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self.data = b""
        if head.startswith(b"GET"):
            counts = [[*call, count] for call, count in self.provider.whole.items()]
            self.write_json(200, {"whole": counts, "calls": sum(self.provider.calls.values())})
        else:
            self.provider.answer(json.loads(body), self)

    def write_json(self, status: int, value: Any) -> None:
        """Write a whole reply."""
        body = json.dumps(value).encode()
        self.transport.write(_head(status, b"application/json", b"content-length: %d" % len(body)) + body)

    def write_part(self, data: bytes, wait_s: float) -> None:
        """Write the first half of a reply, then close the connection after a wait."""
        self.transport.write(data[: len(data) // 2])
        asyncio.get_running_loop().call_later(wait_s, self.transport.close)


def _head(status: int, kind: bytes, length: bytes) -> bytes:
    retry = b"retry-after: 0\r\n" if status == 429 else b""
    return b"HTTP/1.1 %d scripted\r\ncontent-type: %b\r\n%b%b\r\n\r\n" % (status, kind, retry, length)


def _format(
    model: str,
    is_stream: bool,
    has_logprobs: bool,
    has_usage: bool,
    is_broken: bool,
    prompt_tokens: float,
    completion_tokens: float,
    logprob: float,
) -> bytes:
    """Format a whole reply, with the tokens of a short answer."""
    head = {"id": "chatcmpl-1", "created": 1, "model": model, "system_fingerprint": "fp_1"}
    total = int(prompt_tokens + completion_tokens)
    usage = {
        "prompt_tokens": int(prompt_tokens), "completion_tokens": int(completion_tokens), "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    tokens = [f" word{k}" for k in range(TOKENS)]

    def list_logprobs(part: list[str]) -> dict[str, Any] | None:
        if not has_logprobs:
            return None
        content = [{"token": t, "logprob": logprob, "bytes": list(t.encode()), "top_logprobs": []} for t in part]
        return {"content": content, "refusal": None}

    if not is_stream:
        message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": list_logprobs(tokens), "finish_reason": "stop"}
        body = {**head, "object": "chat.completion", "choices": [choice], **({"usage": usage} if has_usage else {})}
        data = json.dumps(body).encode()
        data = data[: len(data) // 2] if is_broken else data
        return _head(200, b"application/json", b"content-length: %d" % len(data)) + data

    def make_chunk(delta: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    chunks = [make_chunk({"role": "assistant", "content": ""}, None, None)]
    chunks += [make_chunk({"content": token}, list_logprobs([token]), None) for token in tokens]
    chunks.append(make_chunk({}, None, "stop"))
    if has_usage:
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    if is_broken:
        events[len(events) // 2] = b'data: {"choices": [\n\n'
    events.append(b"data: [DONE]\n\n")
    parts = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return _head(200, b"text/event-stream", b"transfer-encoding: chunked") + parts + b"0\r\n\r\n"


async def _serve(port: int, log: Mapping[str, list[list[float]]]) -> None:
    provider = Provider(log)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(provider), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else {}))
