"""An OpenAI-compatible upstream on a real socket, which fails as scripted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_server import serve_handler

Script = Callable[[dict[str, Any], int], Mapping[str, Any]]
"""Takes a request and its number from 0; returns how to answer. Keys: text, logprob, status, error, headers, delay,
cut (chunks before the connection is cut), stall (seconds after two chunks), broken (send broken JSON), raw (send these
bytes as the stream), raw_size (bytes of a write of raw), keeps (the stream is chunked and the connection stays), usage,
model, fingerprint, finish, tool_calls, top (tokens and log-probabilities beside each token), ignores_n (one choice
whatever n is), whole (answer a stream with one JSON object); logprob and text may be lists, by choice."""


@dataclass(slots=True)
class Upstream:
    """A scripted upstream and what it received."""

    script: Script
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hang_ups: int = 0
    completed: int = 0
    connections: set[tuple[str, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def always(**answer: Any) -> Script:
    """Return a script that answers every request alike."""
    return lambda _request, _number: answer


@contextmanager
def serve_upstream(script: Script) -> Iterator[Upstream]:
    """Serve a script on a free port of loopback."""
    upstream = Upstream(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with upstream.lock:
                number = len(upstream.requests)
                upstream.requests.append(request)
                upstream.connections.add(self.client_address)
                upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                _answer(self, request, dict(upstream.script(request, number)))
            except (BrokenPipeError, ConnectionResetError):
                upstream.hang_ups += 1
                self.close_connection = True
            else:
                upstream.completed += 1

    with serve_handler(Handler) as port:
        upstream.url = f"http://127.0.0.1:{port}/v1"
        yield upstream


def _answer(handler: BaseHTTPRequestHandler, request: dict[str, Any], answer: dict[str, Any]) -> None:
    time.sleep(answer.get("delay", 0.0))
    if "status" in answer:
        _send(handler, answer["status"], answer.get("error", {"error": {"message": "scripted", "code": None}}), answer)
    elif answer.get("broken"):
        _send_raw(handler, 200, b'{"choices": [', answer)
    elif request.get("stream") and not answer.get("whole"):
        _stream(handler, request, answer)
    else:
        _send(handler, 200, _body(request, answer), answer)


def _send(handler: BaseHTTPRequestHandler, status: int, body: Any, answer: Mapping[str, Any]) -> None:
    _send_raw(handler, status, json.dumps(body).encode(), answer)


def _send_raw(handler: BaseHTTPRequestHandler, status: int, data: bytes, answer: Mapping[str, Any]) -> None:
    handler.send_response(status)
    for name, value in answer.get("headers", {}).items():
        handler.send_header(name, value)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _usage(answer: Mapping[str, Any]) -> dict[str, Any]:
    usage: dict[str, Any] = answer.get("usage", {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110})
    return usage


def _head(request: Mapping[str, Any], answer: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1,
        "model": answer.get("model", request["model"]),
        "system_fingerprint": answer.get("fingerprint", "fp_1"),
    }


def _logprobs(request: Mapping[str, Any], answer: Mapping[str, Any], token: str, choice: int = 0) -> Any:
    logprob = answer.get("logprob", -0.1)
    if not request.get("logprobs") or logprob is None:
        return None
    value = logprob[choice] if isinstance(logprob, list) else logprob
    listed = answer.get("top", []) if request.get("top_logprobs") else []
    top = [{"token": text, "logprob": number, "bytes": None} for text, number in listed]
    return {"content": [{"token": token, "logprob": value, "bytes": None, "top_logprobs": top}]}


def _count(request: Mapping[str, Any], answer: Mapping[str, Any]) -> int:
    return 1 if answer.get("ignores_n") else request.get("n") or 1


def _text(answer: Mapping[str, Any], choice: int) -> str:
    text = answer.get("text", "hello world")
    return str(text[choice % len(text)] if isinstance(text, list) else text)


def _body(request: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    calls = answer.get("tool_calls")
    choices = [
        {
            "index": k,
            "message": {
                "role": "assistant",
                **({"content": None, "tool_calls": calls} if calls else {"content": text}),
            },
            "finish_reason": answer.get("finish", "tool_calls" if calls else "stop"),
            "logprobs": _logprobs(request, answer, text, k),
        }
        for k, text in ((k, _text(answer, k)) for k in range(_count(request, answer)))
    ]
    body = {**_head(request, answer, "chat.completion"), "choices": choices}
    return body if answer.get("usage", 1) is None else {**body, "usage": _usage(answer)}


def _stream(handler: BaseHTTPRequestHandler, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    if answer.get("keeps"):
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in _chunks(request, answer)]
        for event in [*events, b"data: [DONE]\n\n", b""]:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        return
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True
    if "raw" in answer:
        size = answer.get("raw_size", 1024)
        for start in range(0, len(answer["raw"]), size):
            handler.wfile.write(answer["raw"][start : start + size])
            handler.wfile.flush()
        return
    for sent, chunk in enumerate(_chunks(request, answer)):
        if sent == answer.get("cut"):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if sent == 2:
            time.sleep(answer.get("stall", 0.0))
        if sent == 2 and answer.get("broken_chunk"):
            handler.wfile.write(b'data: {"choices": [\n\n')
        handler.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        handler.wfile.flush()
        time.sleep(answer.get("pace", 0.0))
    handler.wfile.write(b"data: [DONE]\n\n")
    handler.wfile.flush()


def _chunks(request: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    head = _head(request, answer, "chat.completion.chunk")

    count = _count(request, answer)

    def list_chunks(
        delta: Any, finish: str | None = None, token: str = "", choices: Sequence[int] = range(count)
    ) -> Iterator[dict[str, Any]]:
        for k in choices:
            logprobs = _logprobs(request, answer, token, k) if token else None
            choice = {"index": k, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
            yield {**head, "choices": [choice]}

    yield from list_chunks({"role": "assistant", "content": None})
    calls = answer.get("tool_calls")
    for k, call in enumerate(calls or []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        begin = {**call, "index": k, "function": {"name": name, "arguments": ""}}
        yield from list_chunks({"tool_calls": [begin]}, token=name)
        for at in range(0, len(arguments), 3):
            yield from list_chunks({"tool_calls": [{"index": k, "function": {"arguments": arguments[at : at + 3]}}]})
    # the words of all choices alternate, as in a real stream
    texts = [] if calls else [_text(answer, k).split(" ") for k in range(count)]
    for at in range(max(map(len, texts), default=0)):
        for k, words in enumerate(texts):
            if at < len(words):
                yield from list_chunks({"content": words[at] + " "}, token=words[at], choices=[k])
    yield from list_chunks({}, answer.get("finish", "tool_calls" if calls else "stop"))
    if (request.get("stream_options") or {}).get("include_usage") and answer.get("usage", 1) is not None:
        yield {**head, "choices": [], "usage": _usage(answer)}
