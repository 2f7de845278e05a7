"""Connections of a controller stay open, and are opened again when a server closes them."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.http_server import serve_handler
from unfold_pipeline.control.http import open_client
from unfoldkit.api import UnfoldError


@pytest.mark.parametrize(("answered", "connections"), [(100, 1), (2, 3)])
def test_connections_are_used_again(answered: int, connections: int) -> None:
    """Six requests share a connection; one that the server cuts in the middle of a request is opened again."""
    opened: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            opened.append(0)

        def do_GET(self) -> None:
            opened[-1] += 1
            if opened[-1] > answered:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    with serve_handler(Handler) as port:
        client = open_client()
        assert [client.send("GET", f"http://127.0.0.1:{port}").body for _ in range(6)] == [b"ok"] * 6
    assert len(opened) == connections


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_unreadable_authorities_are_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """The variable that names the file is in the hint."""
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(UnfoldError, match="certificates of authorities") as caught:
        open_client()
    assert "SSL_CERT_FILE" in str(caught.value)
