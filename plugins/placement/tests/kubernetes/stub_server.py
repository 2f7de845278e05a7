"""A small API server in this process: lists, watches and writes, with faults that a test injects."""

from __future__ import annotations

import contextlib
import copy
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.http_server import serve_handler
from unfoldkit.kubernetes.api import Api

Body = dict[str, Any]
COLLECTIONS = (
    "nodes", "pods", "configmaps", "leases", "jobs", "jobsets", "rayjobs", "rayclusters", "replicasets",
    "clusterqueues", "workloads",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer in place of the server's own: a status and a body, or raw bytes of a stream after which it is cut.

    ``is_late`` says that the request takes effect before.
    """

    status: int = 500
    body: bytes = b'{"kind": "Status", "reason": "Broken", "message": "the server is broken"}'
    headers: tuple[tuple[str, str], ...] = ()
    is_late: bool = False


@dataclass(slots=True)
class StubServer:
    """Objects by collection, namespace and name, their changes, and the requests that came.

    Attributes:
        objects: Objects by collection, namespace and name.
        version: The last resource version.
        requests: Method and path of every request.
        watches: Queues of the open watches, by collection.
        fault: Returns the fault of a request (method, path, whether it is a watch), or None. The path of a trial ends
            with ``?dryRun``.
        lock: Guards the objects.
    """

    objects: dict[tuple[str, str, str], Body] = field(default_factory=dict)
    version: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    watches: list[tuple[str, queue.Queue[Body | bytes | None]]] = field(default_factory=list)
    fault: Callable[[str, str, bool], Fault | None] = lambda *_: None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, collection: str, body: Body) -> Body:
        """Store an object and report it to the watches."""
        with self.lock:
            self.version += 1
            stored = copy.deepcopy(body)
            meta = stored.setdefault("metadata", {})
            meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            meta["resourceVersion"] = str(self.version)
            key = collection, meta.get("namespace", ""), meta["name"]
            kind = "MODIFIED" if key in self.objects else "ADDED"
            self.objects[key] = stored
            self.send(collection, {"type": kind, "object": copy.deepcopy(stored)})
            return stored

    def remove(self, collection: str, namespace: str, name: str) -> Body | None:
        """Delete an object and report it to the watches."""
        with self.lock:
            body = self.objects.pop((collection, namespace, name), None)
            if body is not None:
                self.version += 1
                body["metadata"]["resourceVersion"] = str(self.version)
                self.send(collection, {"type": "DELETED", "object": copy.deepcopy(body)})
            return body

    def send(self, collection: str, event: Body | bytes | None) -> None:
        """Send an event, raw bytes, or the end (None) to the watches of a collection."""
        with self.lock:
            for name, events in self.watches:
                if name == collection:
                    events.put(event)

    def list(self, collection: str, namespace: str = "") -> list[Body]:
        """Return the objects of a collection."""
        with self.lock:
            return [
                copy.deepcopy(body)
                for (kind, space, _), body in self.objects.items()
                if kind == collection and (not namespace or space == namespace)
            ]

    def count(self, method: str, part: str = "") -> int:
        """Count the requests of a method with a part of a path."""
        return sum(made == method and part in path for made, path in list(self.requests))


def node(name: str, gpu: str = "4", **labels: str) -> Body:
    """Return a ready node."""
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": gpu},
            "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": gpu},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@contextmanager
def stub_server() -> Iterator[tuple[StubServer, Api]]:
    """Run a server until the end of the block; yield it with a connection to it."""
    from kubernetes import client

    server = StubServer()
    handler = type("Handler", (StubHandler,), {"stub": server})
    with serve_handler(handler) as port:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{port}"
        api = Api(client.ApiClient(configuration), "unfold")
        try:
            yield server, api
        finally:
            api.close()
            for name in COLLECTIONS:
                server.send(name, None)


class StubHandler(BaseHTTPRequestHandler):
    """Answers requests to a server."""

    protocol_version = "HTTP/1.1"
    stub: ClassVar[StubServer]

    def answer(self, status: int, body: Any, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Send a whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self) -> None:
        """Answer a request, or send the fault that a test injects."""
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.stub.lock:
            self.stub.requests.append((self.command, self.path))
        suffix = "?dryRun" if "dryRun" in query else ""
        fault = self.stub.fault(self.command, url.path + suffix, "watch" in query)
        if fault is not None and fault.is_late:
            words = url.path.strip("/").split("/")
            with self.stub.lock:
                self._write((words[-2], words[-3], words[-1]), [], json.loads(data), is_trial=False)
        if fault is not None:
            self.answer(fault.status, fault.body, fault.headers)
            return
        words = url.path.strip("/").split("/")
        namespace = words[words.index("namespaces") + 1] if "namespaces" in words else ""
        collection = next((word for word in reversed(words) if word in COLLECTIONS), "")
        after = words[words.index(collection) + 1 :] if collection else []
        if not collection:
            self.answer(404, {"reason": "NotFound", "message": f"no {url.path}"})
        elif "watch" in query:
            self._watch(collection, int(query["resourceVersion"]))
        elif not after and self.command == "GET":
            items = self.stub.list(collection, namespace)
            self.answer(200, {"items": items, "metadata": {"resourceVersion": str(self.stub.version)}})
        else:
            with self.stub.lock:
                body = json.loads(data) if data else {}
                name = after[0] if after else body["metadata"]["name"]
                self.answer(*self._write((collection, namespace, name), after[1:], body, is_trial="dryRun" in query))

    def _write(self, key: tuple[str, str, str], after: list[str], body: Any, *, is_trial: bool) -> tuple[int, Any]:
        current = self.stub.objects.get(key)
        if self.command == "POST":
            return self._create(key, after, body)
        if current is None:
            return 404, {"reason": "NotFound", "message": f"{key[2]} not found"}
        if self.command in {"GET", "DELETE"}:
            return 200, current if self.command == "GET" else self.stub.remove(*key)
        changed = copy.deepcopy(current) if self.command == "PATCH" else body
        if isinstance(body, list) and not _apply_patch(changed, body):
            return 422, {"reason": "Invalid", "message": "a test of the patch failed"}
        if isinstance(body, dict):
            _merge(changed, {**body, "metadata": {**body.get("metadata", {}), "namespace": key[1] or None}})
        return 200, changed if is_trial else self.stub.put(key[0], changed)

    def _create(self, key: tuple[str, str, str], after: list[str], body: Any) -> tuple[int, Any]:
        if after == ["eviction"]:
            return 201, self.stub.remove(*key) or {}
        if key in self.stub.objects:
            return 409, {"reason": "AlreadyExists", "message": f"{key[2]} exists"}
        body["metadata"]["namespace"] = key[1]
        return 201, self.stub.put(key[0], body)

    def _watch(self, collection: str, version: int) -> None:
        events: queue.Queue[Body | bytes | None] = queue.Queue()
        entry = collection, events
        with self.stub.lock:
            for body in self.stub.list(collection):
                if int(body["metadata"]["resourceVersion"]) > version:
                    events.put({"type": "MODIFIED", "object": body})
            self.stub.watches.append(entry)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            while (event := events.get()) is not None:
                line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        with self.stub.lock:
            self.stub.watches.remove(entry)
        self.close_connection = True


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(StubHandler, f"do_{_method}", StubHandler.handle_request)


def _merge(target: Body, patch: Body) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _apply_patch(body: Body, operations: list[Body]) -> bool:
    """Apply a JSON patch in place; return whether its tests hold."""
    for operation in operations:
        words = [word.replace("~1", "/").replace("~0", "~") for word in operation["path"].strip("/").split("/")]
        parent: Any = body
        for word in words[:-1]:
            parent = parent[int(word)] if isinstance(parent, list) else parent.get(word)
            if parent is None:
                return False
        if not _apply_operation(parent, words[-1], operation):
            return False
    return True


def _apply_operation(parent: Any, word: str, operation: Body) -> bool:
    if isinstance(parent, list) and word == "-":
        parent.append(operation["value"])
        return True
    key: Any = int(word) if isinstance(parent, list) else word
    if operation["op"] == "test":
        existing = parent[key] if isinstance(parent, list) else parent.get(key)
        return bool(existing == operation["value"])
    if operation["op"] == "remove":
        del parent[key]
    elif isinstance(parent, list) and operation["op"] == "add":
        parent.insert(key, operation["value"])
    else:
        parent[key] = operation["value"]
    return True
