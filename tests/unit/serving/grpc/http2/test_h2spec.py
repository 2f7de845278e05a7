"""The conformance suite h2spec against the server, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.serving.grpc.test_server import both
from tests.unit.serving.http.test_tls import certificate, client

INSTALL = "go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
WORDS = ("generic", "http2", "hpack", "--strict", "--timeout", "5", "--host", "127.0.0.1")


@pytest.mark.skipif(shutil.which("h2spec") is None, reason=f"there is no h2spec; {INSTALL}")
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_the_server_passes_h2spec(tmp_path: Path, *, is_encrypted: bool) -> None:
    """All tests of RFC 7540 and RFC 7541 pass, the strict ones too, in plain text and under TLS."""
    words: tuple[str, ...] = ()
    tls = None
    if is_encrypted:
        files = certificate(tmp_path, "a")
        words, tls = (f"cert={files.certificate}", f"key={files.key}"), client(files.certificate)
    with both(*words, tls=tls) as (server, port):
        command = ["h2spec", *WORDS, "--port", str(port), *(("--tls", "--insecure") if is_encrypted else ())]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stdout[-3000:]
        assert " 0 failed" in result.stdout
        assert "Traceback" not in server.output()
