"""Run an exported InferenceGraph: a router of its own process, and a predictor for each stage behind it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml

from tests.http_server import serve_handler

MODULE = "module unfoldkit/router\n\ngo 1.24\n\nrequire github.com/tidwall/gjson v1.18.0\n"
BUILD_S, ANSWER_S = 240, 30
Answer = Callable[[random.Random], Mapping[str, Any] | None]
"""Draws the tensors that the predictor of a stage answers to a query; ``None`` for an error with status 503."""


class RouterMissingError(RuntimeError):
    """The router cannot be built on this machine: no Go, or no module proxy."""


@dataclass(slots=True)
class GraphRun:
    """What became of the queries: visits by stage, what was answered, and its status."""

    visits: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    answers: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def build_router(folder: Path) -> Path:
    """Compile the router into ``folder``.

    Raises:
        RouterMissingError: there is no Go, or its modules cannot be loaded.
    """
    go = shutil.which("go")
    if go is None:
        raise RouterMissingError("there is no Go on the path")
    shutil.copy(Path(__file__).with_name("inference_graph.go"), folder / "main.go")
    (folder / "go.mod").write_text(MODULE)
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off", "CGO_ENABLED": "0"}
    command = [go, "build", "-p", "2", "-o", "router", "."]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    if done.returncode:
        raise RouterMissingError(f"the router does not compile: {done.stderr.strip()[-500:]}")
    return folder / "router"


def run_graph(router: Path, text: str, answers: Mapping[str, Answer], queries: int, seed: int = 0) -> GraphRun:
    """Send queries through an exported graph.

    Args:
        router: the program of :func:`build_router`.
        text: the exported resources.
        answers: by name of the InferenceService, what its predictor answers.
        queries: how many, one after the other.
        seed: seed of the answers.
    """
    documents = [document for document in yaml.safe_load_all(text) if document]
    graph = next(document for document in documents if document["kind"] == "InferenceGraph")
    services = [document for document in documents if document["kind"] == "InferenceService"]
    run, rng = GraphRun(), random.Random(seed)  # noqa: S311
    with contextlib.ExitStack() as stack:
        urls = {
            service["metadata"]["name"]: stack.enter_context(
                _serve_predictor(service, answers[service["metadata"]["name"]], run, rng)
            )
            for service in services
        }
        address = stack.enter_context(_start_router(router, {"nodes": graph["spec"]["nodes"], "services": urls}))
        body = json.dumps({"instances": [[0.0, 1.0]]}).encode()
        for _ in range(queries):
            status, answer = _send_query(address, body)
            run.statuses[status] += 1
            run.answers.append(answer)
    return run


def _send_query(address: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=ANSWER_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@contextlib.contextmanager
def _start_router(router: Path, graph: Mapping[str, Any]) -> Iterator[str]:
    process = subprocess.Popen([router], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(graph))
        process.stdin.close()
        yield f"http://{process.stdout.readline().strip()}/"
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def _serve_predictor(service: Mapping[str, Any], answer: Answer, run: GraphRun, rng: random.Random) -> Iterator[str]:
    """Serve a stage as its InferenceService says: v2 tensors, or v1 predictions with an object of tensors."""
    name = service["metadata"]["name"]
    model = service["spec"]["predictor"].get("model", {})
    is_v2, is_plain = model.get("protocolVersion") == "v2", bool(model)

    class Predictor(BaseHTTPRequestHandler):
        """Answers each request as one query."""

        def do_POST(self) -> None:
            """Count the visit and answer."""
            self.rfile.read(int(self.headers["Content-Length"]))
            with run.lock:
                run.visits[name] += 1
                tensors = answer(rng)
            answered = {"error": "busy"} if tensors is None else _format_answer(tensors, is_v2=is_v2, is_plain=is_plain)
            body = json.dumps(answered).encode()
            self.send_response(503 if tensors is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serve_handler(Predictor) as port:
        yield f"http://127.0.0.1:{port}/"


def _format_answer(tensors: Mapping[str, Any], *, is_v2: bool, is_plain: bool) -> dict[str, Any]:
    if is_v2:
        outputs = [
            {"name": name, "data": value if isinstance(value, list) else [value]} for name, value in tensors.items()
        ]
        return {"outputs": outputs}
    return {"predictions": [next(iter(tensors.values())) if is_plain else dict(tensors)]}
