"""An OpenAI-compatible engine over a real socket with steps that sleep as scripted: batching and chunked prefill."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HIDE_USAGE, HIDE_STREAM, ONE_BURST, STALL, REFUSE, BREAK_OFF, ZERO_USAGE, BOOLEAN_USAGE, BAD_JSON = (
    "no usage", "no stream", "one burst", "stall", "refuse", "break off", "zero usage", "boolean usage", "bad json",
)  # fmt: skip


@dataclass(slots=True)
class KvLink:
    """The KV caches that prefill engines keep for decode engines, which may read each once.

    Attributes:
        caches: prompt and id of the request, by block.
        faults: what was against the protocol of vLLM's connectors.
        reads: caches that were read.
        local: prompts that a decode engine computed.
    """

    caches: dict[int, tuple[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    reads: int = 0
    local: int = 0
    blocks: int = 0

    def keep(self, prompt: str, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Keep the cache of a prompt and return where it is."""
        asked = body.get("kv_transfer_params") or {}
        limits = {body.get("max_tokens"), body.get("max_completion_tokens", 1)}
        checks = {
            "asks for no cache": asked.get("do_remote_decode") is True and asked.get("do_remote_prefill") is False,
            "streams": body.get("stream") is False and "stream_options" not in body,
            "generates more than a token": limits == {1} and "min_tokens" not in body,
            "has no id": bool(request_id),
            "states where a cache is": all(value is None for name, value in asked.items() if name.startswith("remote")),
        }
        self.faults += [f"prefill {name}" for name, is_kept in checks.items() if not is_kept]
        self.blocks += 1
        self.caches[self.blocks] = prompt, request_id
        return {
            "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "p", "remote_host": "10.0.0.1",
            "remote_block_ids": [self.blocks], "remote_port": 5600, "tp_size": 1,
        }  # fmt: skip

    def read(self, prompt: str, request_id: str, body: dict[str, Any]) -> bool:
        """Read the cache of a prompt; false if the request names none."""
        transfer = body.get("kv_transfer_params")
        if transfer is None:
            self.local += 1
            return False
        cache = self.caches.pop((transfer.get("remote_block_ids") or [0])[0], None)
        if transfer.get("do_remote_prefill") is not True or cache != (prompt, request_id):
            self.faults.append(f"decode reads {transfer} for {request_id}, kept is {cache}")
        self.reads += 1
        return True


@dataclass(slots=True)
class Script:
    """How the engine behaves: a step takes overhead + per_token T + per_request m seconds."""

    overhead_s: float = 0.001
    per_token_s: float = 0.00005
    per_request_s: float = 0.0002
    front_s: float = 0.0
    slots: int = 8
    budget: int = 256
    fault: str = ""
    chat_only: bool = False
    models: tuple[str, ...] = ("tiny",)
    metrics: str = ""
    key: str = ""
    requests: int = 0
    fail_after: int = 1 << 30
    cached_share: float = 0.0
    prompts: list[str] = field(default_factory=list)
    role: str = ""
    link: KvLink = field(default_factory=KvLink)
    keeps_caches: bool = True


@dataclass(slots=True)
class _Request:
    prompt: int
    output: int
    computed: int = 0
    sent: int = 0
    tokens: queue.Queue[int] = field(default_factory=queue.Queue)


class _Engine(threading.Thread):
    """The loop of steps."""

    def __init__(self, script: Script) -> None:
        super().__init__(daemon=True)
        self.script, self.lock = script, threading.Lock()
        self.waiting: list[_Request] = []
        self.running: list[_Request] = []
        self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            with self.lock:
                while self.waiting and len(self.running) < self.script.slots:
                    self.running.append(self.waiting.pop(0))
            if not self.running:
                time.sleep(0.0005)
                continue
            self._step()

    def _step(self) -> None:
        script, budget, scheduled = self.script, self.script.budget, []
        for request in self.running:
            count = min(max(request.prompt - request.computed, 1), budget)
            if count:
                scheduled.append((request, count))
                budget -= count
        total = sum(count for _, count in scheduled)
        time.sleep(script.overhead_s + script.per_token_s * total + script.per_request_s * len(scheduled))
        for request, count in scheduled:
            request.computed += count
            if request.computed >= request.prompt:
                request.sent += 1
                request.tokens.put(request.sent)
        self.running = [request for request in self.running if request.sent < request.output]


def read_prompt(body: dict[str, Any]) -> str:
    """Return the text of a request of either path."""
    return str(body.get("prompt") or " ".join(message["content"] for message in body["messages"]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: _Engine

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        script = self.engine.script
        if self.path == "/v1/models":
            self._reply(200, {"data": [{"id": name, "max_model_len": 4096} for name in script.models]})
        elif self.path == "/metrics" and script.metrics:
            self._send(200, script.metrics.encode(), "text/plain")
        else:
            self._reply(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        script = self.engine.script
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script.requests += 1
        if script.key and self.headers.get("authorization") != f"Bearer {script.key}":
            self._reply(401, {"error": {"message": "bad key"}})
        elif script.fault == REFUSE or script.requests > script.fail_after:
            self._reply(503, {"error": {"message": "overloaded"}})
        elif self.path == "/v1/completions" and script.chat_only:
            self._reply(404, {"detail": "Not Found"})
        elif script.fault == HIDE_STREAM or not body.get("stream"):
            self._answer_at_once(body)
        else:
            self._stream(body)

    def _answer_at_once(self, body: dict[str, Any]) -> None:
        request = self._submit(body)
        for _ in range(request.output):
            request.tokens.get(timeout=30)
        text = {"text": "a " * request.output, "message": {"role": "assistant", "content": "a " * request.output}}
        usage = {"prompt_tokens": request.prompt, "completion_tokens": request.output}
        answer = {"model": body.get("model"), "choices": [{"index": 0, **text}], "usage": usage}
        script = self.engine.script
        if script.role == "prefill":
            transfer = script.link.keep(read_prompt(body), self.headers.get("x-request-id", ""), body)
            answer["kv_transfer_params"] = transfer if script.keeps_caches else None
        self._reply(200, answer)

    def _submit(self, body: dict[str, Any]) -> _Request:
        time.sleep(self.engine.script.front_s)
        text = read_prompt(body)
        self.engine.script.prompts.append(text)
        output = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        request = _Request(len(text.split()), output)
        script = self.engine.script
        if script.role == "decode" and script.link.read(text, self.headers.get("x-request-id", ""), body):
            request.computed = request.prompt - 1
        with self.engine.lock:
            self.engine.waiting.append(request)
        return request

    def _stream(self, body: dict[str, Any]) -> None:
        script, request = self.engine.script, self._submit(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        held = []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(request.output):
                request.tokens.get(timeout=30)
                choice: dict[str, Any] = {"index": 0, "finish_reason": None}
                choice |= {"delta": {"content": " a"}} if "messages" in body else {"text": " a"}
                event = f"data: {json.dumps({'model': body.get('model'), 'choices': [choice]})}\n\n".encode()
                if script.fault == ONE_BURST:
                    held.append(event)
                    continue
                if script.fault == BAD_JSON and number == 1:
                    event = b"data: {oops\n\n"
                self._chunk(event)
                if script.fault == STALL and number == 1:
                    time.sleep(2.0)
                if script.fault == BREAK_OFF and number == 1:
                    self.close_connection = True
                    return
            for event in [b"".join(held)] if held else []:
                self._chunk(event)
            usage: dict[str, Any] = {"prompt_tokens": request.prompt, "completion_tokens": request.output}
            usage = dict.fromkeys(usage, 0) if script.fault == ZERO_USAGE else usage
            usage = dict.fromkeys(usage, True) if script.fault == BOOLEAN_USAGE else usage
            cached = round(script.cached_share * request.prompt)
            usage |= {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
            wants_usage = (body.get("stream_options") or {}).get("include_usage")
            if script.fault != HIDE_USAGE and wants_usage:
                self._chunk(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _reply(self, status: int, data: Any) -> None:
        self._send(status, json.dumps(data).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextlib.contextmanager
def run_engine(script: Script) -> Iterator[str]:
    """Run an engine on a free port of the loopback and yield its address."""
    engine = _Engine(script)
    handler = type("Handler", (_Handler,), {"engine": engine})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    engine.start()
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        engine.stopped = True
        server.shutdown()
        server.server_close()
        thread.join(5)
        engine.join(5)
