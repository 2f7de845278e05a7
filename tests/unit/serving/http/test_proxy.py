"""The shipped configurations of nginx, Envoy and systemd, judged by the programs themselves."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import ROOT
from tests.unit.serving.client import Server, read, request, rows
from tests.unit.serving.grpc.test_server import await_port, both, call, raw_request
from tests.unit.serving.http.test_tls import certificate, client
from unfoldkit.serving.grpc.messages import build_messages

INFER = "/v2/models/total/infer"
MAIN = """daemon off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{}}
http {{ access_log off; include {folder}/unfold.conf; {temporary} }}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy before a service."""

    server: Server
    port: int
    tls: ssl.SSLContext
    authority: bytes
    host: str = "test"

    def request(self, path: str, body: Any = None, *, headers: str = "") -> bytes:
        """Return a request for the host that the proxy serves."""
        return request(path, body, headers=headers).replace(b"host: test", b"host: " + self.host.encode(), 1)

    def connect(self) -> ssl.SSLSocket:
        """Open a connection under TLS."""
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.tls.wrap_socket(wire, server_hostname="localhost")


@contextmanager
def proxied(folder: Path) -> Iterator[Proxy]:
    """Run the shipped configuration with other ports and a new certificate."""
    files = certificate(folder, "localhost")
    with socket.socket() as free, both() as (server, grpc_port):
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        text = (ROOT / "deploy/nginx/unfold.conf").read_text()
        changes = {
            "127.0.0.1:8080": f"127.0.0.1:{server.port}",
            "127.0.0.1:9001": f"127.0.0.1:{grpc_port}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/unfold/tls.crt": str(files.certificate),
            "/etc/ssl/unfold/tls.key": str(files.key),
        }
        (folder / "unfold.conf").write_text(replace_all(text, changes))
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = " ".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user, temporary=temporary))
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
            try:
                await_port(port)
                yield Proxy(server, port, client(files.certificate), files.certificate.read_bytes())
            finally:
                nginx.terminate()


@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="there is no nginx or openssl")
def test_nginx_passes_http_grpc_and_the_live_page(tmp_path: Path) -> None:
    """Requests are answered under TLS, streams are not held back, large bodies and floods end at the proxy."""
    with proxied(tmp_path) as proxy:
        with proxy.connect() as wire:
            for _ in range(3):
                wire.sendall(request(INFER, rows([1, 2, 3])))
                reply = read(wire)
                assert reply.json["outputs"][0]["data"] == [6.0]
                assert len(reply.headers["x-request-id"]) == 32
        with proxy.connect() as wire:
            wire.sendall(request(INFER, headers="content-length: 5000000\r\n", method="POST"))
            assert read(wire).status == 413
        check_page_and_grpc(proxy)
        assert find_status(proxy, 429)
        assert proxy.server.end() == 0
        with proxy.connect() as wire:
            wire.sendall(request(INFER, rows([1, 2, 3])))
            assert read(wire).status in (429, 502)


@contextmanager
def before_envoy(folder: Path) -> Iterator[Proxy]:
    """Run the shipped configuration of Envoy with other ports and a new certificate."""
    files = certificate(folder, "localhost")
    with socket.socket() as free, socket.socket() as second, both() as (server, grpc_port):
        free.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        port, admin = (item.getsockname()[1] for item in (free, second))
        free.close()
        second.close()
        text = (ROOT / "deploy/envoy/unfold.yaml").read_text()
        changes = {
            "address: 127.0.0.1, port_value: 8080": f"address: 127.0.0.1, port_value: {server.port}",
            "address: 127.0.0.1, port_value: 9001": f"address: 127.0.0.1, port_value: {grpc_port}",
            "address: 127.0.0.1, port_value: 9901": f"address: 127.0.0.1, port_value: {admin}",
            "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {port}",
            # a slow machine never reaches the shipped rate
            "max_tokens: 400, tokens_per_fill: 200": "max_tokens: 100, tokens_per_fill: 1",
            "/etc/ssl/unfold/tls.crt": str(files.certificate),
            "/etc/ssl/unfold/tls.key": str(files.key),
        }
        (folder / "unfold.yaml").write_text(replace_all(text, changes))
        words = ["envoy", "-c", str(folder / "unfold.yaml"), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as envoy:
            try:
                await_port(port)
                yield Proxy(server, port, client(files.certificate), files.certificate.read_bytes())
            finally:
                envoy.terminate()


@pytest.mark.skipif(not (shutil.which("envoy") and shutil.which("openssl")), reason="there is no envoy or openssl")
def test_envoy_passes_http_grpc_and_the_live_page(tmp_path: Path) -> None:
    """Requests are answered under TLS, streams are not held back, ambiguous ones and floods end at the proxy."""
    with before_envoy(tmp_path) as proxy:
        assert find_reply(proxy, request(INFER, rows([1, 2, 3])), 200)["outputs"][0]["data"] == [6.0]
        with proxy.connect() as wire:
            wire.sendall(request(INFER, rows([1, 2, 3]), headers="x-request-id: mine\r\n"))
            assert read(wire).headers["x-request-id"] == "mine"
        for bad in ("a_b: 1\r\n", "content-length: 3\r\n"):
            with proxy.connect() as wire:
                wire.sendall(request(INFER, rows([1, 2, 3]), headers=bad))
                assert read(wire).status == 400
        with proxy.connect() as wire:
            wire.sendall(request(INFER, b"x" * 4_300_000))
            assert read(wire).status == 413
        check_page_and_grpc(proxy)
        assert proxy.server.end() == 0
        find_reply(proxy, request(INFER, rows([1, 2, 3])), 503)
        assert find_status(proxy, 429)


def replace_all(text: str, changes: Mapping[str, str]) -> str:
    """Replace shipped settings, each of which must occur, by those of a test."""
    for shipped, tested in changes.items():
        assert shipped in text
        text = text.replace(shipped, tested)
    return text


def check_page_and_grpc(proxy: Proxy) -> None:
    """Check that events of the live page are not held back, and that a call of gRPC is answered."""
    with proxy.connect() as wire:
        wire.sendall(proxy.request("/events"))
        stream, deadline = b"", time.monotonic() + 5
        while b"data:" not in stream:
            assert time.monotonic() < deadline
            stream += wire.recv(65536)
    credentials = grpc.ssl_channel_credentials(proxy.authority)
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        messages = build_messages()
        reply = call(channel, messages, "ModelInfer", raw_request(messages, [[1.0, 2.0, 3.0]]))
        assert reply.outputs[0].shape == [1]


def find_reply(proxy: Proxy, message: bytes, status: int) -> Any:
    """Send a request until its reply has a status: a proxy notices a new state of its service a little later."""
    for _ in range(60):
        with proxy.connect() as wire:
            wire.sendall(message)
            reply = read(wire)
            if reply.status == status:
                return reply.json if status == 200 else reply.body
        time.sleep(0.2)
    raise AssertionError(f"{reply.status} instead of {status}")


def find_status(proxy: Proxy, status: int) -> bool:
    """Send requests as fast as they are answered, until one has a status."""
    for _ in range(10):
        with proxy.connect() as wire:
            for _ in range(900):
                wire.sendall(proxy.request("/v2/health/live"))
                if read(wire).status == status:
                    return True
    return False


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """The unit has no unknown setting, and its sandbox leaves little exposed."""
    text = (ROOT / "deploy/systemd/unfold.service").read_text()
    unit = tmp_path / "unfold.service"
    unit.write_text(text.replace("/opt/unfold/bin/unfold", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
