"""The shipped Ingress before a service, carried out by Traefik, which reads the annotations of Ingress-nginx.

It needs Traefik 3.7 or later on the path and a built control plane. The service listens on loopback, which an endpoint
may not name, so a relay stands at another address of this machine.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes import build
from tests.kubernetes.apply import apply
from tests.kubernetes.cluster import ADMIN, ControlPlane, control_plane, free_ports
from tests.support import ROOT
from tests.unit.serving.client import read, rows
from tests.unit.serving.grpc.test_server import await_port, both
from tests.unit.serving.http.test_proxy import INFER, Proxy, check_page_and_grpc, find_reply, find_status
from tests.unit.serving.http.test_tls import certificate, client
from unfoldkit.kubernetes.api import Api, connect_api

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif(not shutil.which("traefik"), reason="there is no Traefik on the path"),
    pytest.mark.skipif(bool(build.missing()), reason="no control plane is built: nox -s kubernetes"),
]


def find_address() -> str:
    """Find an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # nothing is sent; the system chooses the address that it would send from
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
    if address.startswith(("127.", "0.")):
        pytest.skip("this machine has no address but loopback")
    return address


RELAY = """
import asyncio, contextlib, sys

async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()

async def join(reader, writer):
    try:
        back, forth = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, forth), copy(back, writer))

async def main():
    server = await asyncio.start_server(join, sys.argv[1], 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextlib.contextmanager
def relay(address: str, port: int) -> Iterator[int]:
    """Pass connections at a free port of an address to a port of loopback."""
    command = [sys.executable, "-c", RELAY, address, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def create_objects(api: Api, address: str, ports: dict[str, int], files: Any) -> None:
    """Create the shipped Service and Ingress, for localhost, with the endpoint that a cluster would add."""
    manifests = [
        document
        for name in ("kustomize/namespace.yaml", "kustomize/service.yaml", "ingress/http.yaml", "ingress/grpc.yaml")
        for document in yaml.safe_load_all(
            (ROOT / "deploy" / name).read_text().replace("unfold.example.org", "localhost")
        )
    ]
    encoded = {
        key: base64.b64encode(path.read_bytes()).decode()
        for key, path in (("tls.crt", files.certificate), ("tls.key", files.key))
    }
    place = {"namespace": "unfold"}
    apply(api, manifests[:2])
    api.post(
        "/api/v1/namespaces/unfold/secrets",
        {"metadata": {"name": "unfold-ingress-tls", **place}, "type": "kubernetes.io/tls", "data": encoded},
    )
    api.post(
        "/apis/networking.k8s.io/v1/ingressclasses",
        {"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}},
    )
    labels = {"kubernetes.io/service-name": "unfold-serve"}
    endpoint = {"addresses": [address], "conditions": {"ready": True}}
    api.post(
        "/apis/discovery.k8s.io/v1/namespaces/unfold/endpointslices",
        {
            "metadata": {"name": "unfold-serve-1", "labels": labels, **place},
            "addressType": "IPv4",
            "endpoints": [endpoint],
            "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports.items()],
        },
    )
    apply(api, manifests[2:])


@contextlib.contextmanager
def traefik(plane: ControlPlane, folder: Path) -> Iterator[int]:
    """Run Traefik with the rules of Ingress-nginx, and give the port of its TLS."""
    plain, port = free_ports(2)
    provider = "--providers.kubernetesingressnginx"
    words = [
        "traefik",
        provider,
        f"{provider}.endpoint={plane.server}",
        f"{provider}.token={ADMIN}",
        f"{provider}.certauthfilepath={plane.folder / 'ca.crt'}",
        f"--entrypoints.web.address=127.0.0.1:{plain}",
        f"--entrypoints.websecure.address=127.0.0.1:{port}",
        f"{provider}.httpentrypoint=web",
        f"{provider}.httpsentrypoint=websecure",
    ]
    with (folder / "traefik.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            await_port(port)
            yield port
        finally:
            process.terminate()


@contextlib.contextmanager
def before_ingress(folder: Path) -> Iterator[Proxy]:
    """Run a service under TLS, and the shipped Ingress before it."""
    address, files = find_address(), certificate(folder, "localhost")
    words = (f"cert={files.certificate}", f"key={files.key}")
    tls = client(files.certificate)
    with contextlib.ExitStack() as stack:
        server, grpc_port = stack.enter_context(both(*words, tls=tls))
        plane = stack.enter_context(control_plane())
        ports = {
            "https": stack.enter_context(relay(address, server.port)),
            "grpc": stack.enter_context(relay(address, grpc_port)),
        }
        create_objects(connect_api(kubeconfig=str(plane.kubeconfig)), address, ports, files)
        port = stack.enter_context(traefik(plane, folder))
        proxy = Proxy(server, port, tls, files.certificate.read_bytes(), "localhost")
        await_certificate(proxy)
        yield proxy


def await_certificate(proxy: Proxy) -> None:
    """Wait until the controller has read the Ingress: before, it knows no host."""
    for _ in range(150):
        with contextlib.suppress(OSError):
            proxy.connect().close()
            return
        time.sleep(0.2)
    raise TimeoutError("the Ingress is not carried out")


def test_an_ingress_passes_http_grpc_and_the_live_page(tmp_path: Path) -> None:
    """Requests are answered under TLS, streams are not held back, large bodies and floods end at the Ingress."""
    with before_ingress(tmp_path) as proxy:
        assert find_reply(proxy, proxy.request(INFER, rows([1, 2, 3])), 200)["outputs"][0]["data"] == [6.0]
        with proxy.connect() as wire:
            wire.sendall(proxy.request(INFER, b"x" * 4_300_000))
            assert read(wire).status == 413
        check_page_and_grpc(proxy)
        assert find_status(proxy, 429)
