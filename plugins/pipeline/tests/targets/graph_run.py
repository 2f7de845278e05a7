"""Run an exported InferenceGraph: KServe's router in a process, and a predictor for each stage behind it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml

from tests.http_server import serve_handler

MODULE, PROGRAM = "github.com/kserve/kserve@v0.15.2", "cmd/router"
TYPES, CONSTANTS = "pkg/apis/serving/v1alpha1/inference_graph.go", "pkg/constants/constants.go"
CHANGES = {
    f"{PROGRAM}/main.go": ('":" + strconv.Itoa(constants.RouterPort)', 'os.Getenv("ROUTER_ADDRESS")'),
    # the registration for clients of Kubernetes, which the router is not
    TYPES: ("SchemeBuilder.Register(&InferenceGraph{}, &InferenceGraphList{})", ""),
}
"""Text of KServe's files that is replaced, by file."""
LOAD_S, BUILD_S, START_S, ANSWER_S = 300, 900, 60, 30
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
    """Compile KServe's router from its Go module into ``folder``.

    The address is that of ROUTER_ADDRESS instead of a fixed port on every interface. Of the packages beside the router
    only the types of graphs and its own constants are compiled: the rest brings the clients of three clouds.

    Raises:
        RouterMissingError: there is no Go, or its modules cannot be loaded.
    """
    source = Path(json.loads(_run_go(folder, LOAD_S, "mod", "download", "-json", MODULE))["Dir"])
    programs = [f"{PROGRAM}/{name}" for name in ("main.go", "router_error.go")]
    files = {name: (source / name).read_text("utf-8") for name in ("go.mod", "go.sum", TYPES, CONSTANTS, *programs)}
    for name, (before, after) in CHANGES.items():
        assert files[name].count(before) == 1, f"{MODULE} has no single {before}"
        files[name] = files[name].replace(before, after)
    lines = re.findall(r"^\tRouter\w+ += .*$", files[CONSTANTS], re.MULTILINE)
    files[CONSTANTS] = "\n".join(["package constants", "const (", *lines, ")"])
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _run_go(folder, BUILD_S, "build", "-p", "2", "-gcflags=all=-l", "-ldflags=-w", "-o", "router", f"./{PROGRAM}")
    return folder / "router"


def _run_go(folder: Path, seconds: float, *words: str) -> str:
    go = shutil.which("go")
    if go is None:
        raise RouterMissingError("there is no Go on the path")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off", "CGO_ENABLED": "0"}
    done = subprocess.run(
        [go, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise RouterMissingError(f"KServe's router cannot be built: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


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
        address = stack.enter_context(_start_router(router, _resolve_services(graph["spec"], urls)))
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


def _resolve_services(spec: Mapping[str, Any], urls: Mapping[str, str]) -> dict[str, Any]:
    """Return a graph with the address of each InferenceService, as KServe's controller hands it to the router."""
    nodes = {
        name: {
            **node,
            "steps": [
                {**step, "serviceUrl": urls[step["serviceName"]]} if "serviceName" in step else step
                for step in node["steps"]
            ],
        }
        for name, node in spec["nodes"].items()
    }
    return {**spec, "nodes": nodes}


@contextlib.contextmanager
def _start_router(router: Path, graph: Mapping[str, Any]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        address = f"127.0.0.1:{chosen.getsockname()[1]}"
    log = router.with_suffix(".log")
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [router, "--graph-json", json.dumps(graph)],
            env={**os.environ, "ROUTER_ADDRESS": address},
            stdout=errors,
            stderr=errors,
        )
        try:
            end_s = time.monotonic() + START_S
            while not _is_ready(f"http://{address}/readyz"):
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"the router does not start: {log.read_text('utf-8')[-500:]}")
                time.sleep(0.05)
            yield f"http://{address}/"
        finally:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == HTTPStatus.OK)
    except OSError:
        return False


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
