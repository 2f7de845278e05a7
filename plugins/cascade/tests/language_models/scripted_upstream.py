"""An OpenAI-compatible upstream on a real socket, which fails as scripted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any], int], Mapping[str, Any]]
"""Takes a request and its number from 0; returns how to answer. Keys: text, logprob, status, error, headers, delay,
cut (chunks before the connection is cut), stall (seconds after two chunks), broken (send broken JSON), raw (send these
bytes as the stream), usage, model, fingerprint, finish, tool_calls."""


@dataclass(slots=True)
class Upstream:
    """A scripted upstream and what it received."""

    script: Script
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hang_ups: int = 0
    completed: int = 0
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

        def log_message(self, *_args: Any) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with upstream.lock:
                number = len(upstream.requests)
                upstream.requests.append(request)
                upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                _answer(self, request, dict(upstream.script(request, number)))
            except (BrokenPipeError, ConnectionResetError):
                upstream.hang_ups += 1
                self.close_connection = True
            else:
                upstream.completed += 1

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    upstream.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, request: dict[str, Any], answer: dict[str, Any]) -> None:
    time.sleep(answer.get("delay", 0.0))
    if "status" in answer:
        _send(handler, answer["status"], answer.get("error", {"error": {"message": "scripted", "code": None}}), answer)
    elif answer.get("broken"):
        _send_raw(handler, 200, b'{"choices": [', answer)
    elif request.get("stream"):
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


def _logprobs(request: Mapping[str, Any], answer: Mapping[str, Any], token: str) -> dict[str, Any] | None:
    if not request.get("logprobs") or answer.get("logprob", -0.1) is None:
        return None
    return {"content": [{"token": token, "logprob": answer.get("logprob", -0.1), "bytes": None, "top_logprobs": []}]}


def _body(request: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    text, calls = answer.get("text", "hello world"), answer.get("tool_calls")
    message = {"role": "assistant", "content": None if calls else text, **({"tool_calls": calls} if calls else {})}
    choices = [
        {
            "index": k,
            "message": message,
            "finish_reason": answer.get("finish", "tool_calls" if calls else "stop"),
            "logprobs": _logprobs(request, answer, text),
        }
        for k in range(request.get("n") or 1)
    ]
    body = {**_head(request, answer, "chat.completion"), "choices": choices}
    return body if answer.get("usage", 1) is None else {**body, "usage": _usage(answer)}


def _stream(handler: BaseHTTPRequestHandler, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True
    if "raw" in answer:
        for start in range(0, len(answer["raw"]), 1024):
            handler.wfile.write(answer["raw"][start : start + 1024])
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

    def chunk(delta: Any, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**head, "choices": [choice]}

    yield chunk({"role": "assistant", "content": None})
    calls = answer.get("tool_calls")
    for k, call in enumerate(calls or []):
        yield chunk({"tool_calls": [{**call, "index": k}]})
    for word in () if calls else answer.get("text", "hello world").split(" "):
        yield chunk({"content": word + " "}, logprobs=_logprobs(request, answer, word))
    yield chunk({}, answer.get("finish", "tool_calls" if calls else "stop"))
    if (request.get("stream_options") or {}).get("include_usage") and answer.get("usage", 1) is not None:
        yield {**head, "choices": [], "usage": _usage(answer)}
