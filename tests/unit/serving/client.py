"""Starts the server of the tests, and speaks to it over plain sockets."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    port: int
    log: IO[str]
    tls: ssl.SSLContext | None = None

    def connect(self) -> socket.socket:
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return wire if self.tls is None else self.tls.wrap_socket(wire, server_hostname="localhost")

    def ask(self, path: str, body: Any = None, *, headers: str = "", method: str = "") -> Reply:
        with self.connect() as wire:
            wire.sendall(request(path, body, headers=headers, method=method))
            return read(wire)

    def output(self) -> str:
        """Return what the server wrote to stderr so far."""
        self.log.seek(0)
        return self.log.read()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def serving(*words: str, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with TemporaryFile("w+") as log:
        command = [sys.executable, str(SERVER), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        yield from _started(process, log, tls)


def _started(process: subprocess.Popen[str], log: IO[str], tls: ssl.SSLContext | None) -> Iterator[Server]:
    assert process.stdout is not None
    try:
        server = Server(process, int(process.stdout.readline().split()[0]), log, tls)
        wait_until_ready(server)
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until_ready(server: Server) -> None:
    for _ in range(400):
        try:
            if server.ask("/v2/health/ready").status in (200, 401):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not get ready")


def request(path: str, body: Any = None, *, headers: str = "", method: str = "") -> bytes:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    verb = method or ("GET" if body is None else "POST")
    length = "" if body is None else f"content-length: {len(data)}\r\n"
    return f"{verb} {path} HTTP/1.1\r\nhost: test\r\n{length}{headers}\r\n".encode() + data


def read(wire: socket.socket) -> Reply:
    """Read one answer; fails if it is cut off."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(wire, data)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _more(wire, body)
    return Reply(int(first.split()[1]), headers, body)


def _more(wire: socket.socket, so_far: bytes) -> bytes:
    data = wire.recv(65536)
    if not data:
        raise ConnectionError(f"closed after {len(so_far)} bytes")
    return data


def rows(*values: Any, **more: Any) -> dict[str, Any]:
    """Return a request of three numbers a row for the model ``total``."""
    return {"inputs": [{"name": "x", "shape": [len(values), 3], "datatype": "FP64", "data": list(values)}], **more}
