"""TLS, mutual TLS, and the reload of a certificate."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.serving.client import Server, read, request, rows, serving
from unfoldkit.errors import UnfoldError
from unfoldkit.serving.http.tls import TlsFiles

INFER = "/v2/models/total/infer"
SLOW = "/v2/models/total/versions/1/infer"

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl to make certificates")


def certificate(folder: Path, name: str, signer: str = "") -> TlsFiles:
    """Make a certificate of localhost with its key, signed by itself or by another one."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    if signer:
        command += ["-CA", str(folder / f"{signer}.pem"), "-CAkey", str(folder / f"{signer}.key")]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return TlsFiles(cert, key)


def client(ca: Path, own: TlsFiles | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


@pytest.mark.parametrize("fast_path", ["1", "0"])
@pytest.mark.parametrize("path", [INFER, SLOW])
def test_requests_are_answered_under_tls(tmp_path: Path, path: str, fast_path: str) -> None:
    """Under TLS a service answers alike with and without the fast path, in one packet and byte by byte."""
    files = certificate(tmp_path, "a")
    words = (f"cert={files.certificate}", f"key={files.key}", f"fast_path={fast_path}")
    with serving("total", *words, tls=client(files.certificate)) as server:
        whole = request(path, rows([1, 2, 3]))
        with server.connect() as wire:
            for _ in range(3):
                wire.sendall(whole)
                assert read(wire).json["outputs"][0]["data"] == [6.0]
            for byte in whole:
                wire.sendall(bytes([byte]))
            assert read(wire).status == 200
        assert server.ask(path, b" " * 200_000).status == 413
        assert server.end() == 0


def test_a_plain_client_of_a_tls_service_harms_no_other(tmp_path: Path) -> None:
    """A client without TLS is cut off; others are served."""
    files = certificate(tmp_path, "a")
    words = (f"cert={files.certificate}", f"key={files.key}", "queue=4", "delay=0.05")
    with serving("total", *words, tls=client(files.certificate)) as server:
        plain = Server(server.process, server.port, server.log)
        with pytest.raises(OSError, match=r"closed|reset"):
            plain.ask("/v2/health/live")
        # overload is rejected without a look at the encrypted bytes
        wires = [server.connect() for _ in range(12)]
        for wire in wires * 2:
            wire.sendall(request(INFER, rows([1, 2, 3])))
        statuses = {read(wire).status for wire in wires * 2}
        assert statuses <= {200, 429}
        for wire in wires:
            wire.close()


def test_sighup_reloads_the_certificate(tmp_path: Path) -> None:
    """After SIGHUP new connections get the new certificate, old ones go on; a broken file changes nothing."""
    first, second = certificate(tmp_path, "a"), certificate(tmp_path, "b")
    with serving("total", f"cert={first.certificate}", f"key={first.key}", tls=client(first.certificate)) as server:
        with server.connect() as old:
            shutil.copy(second.certificate, first.certificate)
            os.kill(server.process.pid, signal.SIGHUP)
            wait_for(server, "was not reloaded")
            assert server.ask(INFER, rows([1, 2, 3])).status == 200
            shutil.copy(second.key, first.key)
            os.kill(server.process.pid, signal.SIGHUP)
            wait_for(server, "was reloaded")
            old.sendall(request(INFER, rows([1, 2, 3])))
            assert read(old).status == 200
        renewed = Server(server.process, server.port, server.log, client(second.certificate))
        assert renewed.ask(INFER, rows([1, 2, 3])).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            server.connect()


def wait_for(server: Server, text: str) -> None:
    for _ in range(100):
        if text in server.output():
            return
        time.sleep(0.05)
    raise AssertionError(server.output())


def test_mutual_tls_answers_known_clients_only(tmp_path: Path) -> None:
    """With an authority for clients, a client without its certificate gets no answer."""
    own, ca = certificate(tmp_path, "a"), certificate(tmp_path, "ca")
    known, unknown = certificate(tmp_path, "known", "ca"), certificate(tmp_path, "unknown")
    words = (f"cert={own.certificate}", f"key={own.key}", f"ca={ca.certificate}")
    with serving("total", *words, tls=client(own.certificate, known)) as server:
        assert server.ask(INFER, rows([1, 2, 3])).status == 200
        for context in (client(own.certificate), client(own.certificate, unknown)):
            stranger = Server(server.process, server.port, server.log, context)
            with pytest.raises(OSError, match=r"(?i)certificate|alert|closed|reset"):
                stranger.ask("/v2/health/live")


def test_files_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    """A missing file, no PEM, a foreign key and a passphrase are the caller's fault, named by file."""
    a, b = certificate(tmp_path, "a"), certificate(tmp_path, "b")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(a.key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for cert, key, reason in (
        (tmp_path / "none.pem", a.key, "No such file"),
        (text, a.key, "cannot be used for TLS"),
        (a.certificate, b.key, "key values mismatch"),
        (a.certificate, locked, "passphrase"),
    ):
        with pytest.raises(UnfoldError, match=reason):
            TlsFiles(cert, key).build_context()
