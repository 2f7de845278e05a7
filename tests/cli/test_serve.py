"""serve over a real socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.served import find_address
from tests.support import ECHO, ROOT, Process, Unfold, command, surroundings


@contextmanager
def serving(folder: Path, *words: str, token: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a service on a free port; yield the process and its address; kill it if it is still there."""
    env = surroundings({"UNFOLD_TOKEN": token} if token else {})
    process = subprocess.Popen(
        command(["serve", "a.yaml", "--port", "0", *words]),
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stderr
        yield process, find_address(process.stderr)
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def answer(url: str, token: str = "") -> tuple[int, bytes]:
    """Return status and body; the socket listens before the service is ready, so the first call waits for it."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:  # noqa: S310
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def ended(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal and return exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_a_service_answers_and_ends_cleanly(tmp_path: Path, spec: Path) -> None:
    """Serve prints its address, answers there, and ends on SIGTERM with 0 and nothing on stdout."""
    with serving(tmp_path) as (process, place):
        status, body = answer(place + "/")
        assert (status, json.loads(body)) == (200, {"message": "hi", "times": 2})
        code, out, err = ended(process, signal.SIGTERM)
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert (tmp_path / "runs" / "a" / "spec.yaml").exists()


def test_a_log_of_json_holds_nothing_else(tmp_path: Path, spec: Path) -> None:
    """With --log-json every line of stderr is JSON with a time: where the service is, each request, what is none."""
    with serving(tmp_path, "--log-json") as (process, place):
        assert answer(place + "/")[0] == 200
        with socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2])), 30) as wire:
            wire.sendall(b"no request\r\n\r\n")
            assert wire.recv(12) == b"HTTP/1.1 400"
        process.send_signal(signal.SIGTERM)
        assert process.stderr
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        process.wait(30)
    assert all(item["time"] and item["message"] for item in lines)
    assert [item["path"] for item in lines if "path" in item] == ["/"]
    assert any(item["level"] == "warning" and "Invalid HTTP request" in item["message"] for item in lines)


def test_ctrl_c_ends_a_service(tmp_path: Path, spec: Path) -> None:
    """Ctrl-C ends a service without a trace, with 130 as it ends every verb."""
    with serving(tmp_path) as (process, place):
        assert answer(place + "/")[0] == 200
        code, _, err = ended(process, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in err


def test_an_open_address_needs_a_token(tmp_path: Path, spec: Path, unfold: Unfold) -> None:
    """An address that others can reach is refused without UNFOLD_TOKEN; with it, only its bearer is answered."""
    refused = unfold("serve", "a.yaml", "--host", "0.0.0.0", "--port", "0")  # noqa: S104 - that it is refused is the test
    assert refused.code == 2
    assert "a token is needed (set UNFOLD_TOKEN, or leave --host out)" in refused.err
    with serving(tmp_path, "--host", "0.0.0.0", "--insecure", token="secret") as (process, place):  # noqa: S104, S106 - as above
        local = place.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - as above
        assert answer(local + "/")[0] == 401
        assert answer(local + "/", "wrong")[0] == 401
        assert answer(local + "/", "secret")[0] == 200
        assert answer(local + "/v2/health/live")[0] == 200
        assert ended(process, signal.SIGTERM)[0] == 0


def test_a_token_is_kept_on_loopback_too(tmp_path: Path, spec: Path) -> None:
    """Where UNFOLD_TOKEN is set it is asked for, on loopback as elsewhere."""
    with serving(tmp_path, token="secret") as (_, place):  # noqa: S106 - a test's
        assert answer(place + "/")[0] == 401
        assert answer(place + "/", "secret")[0] == 200


def test_a_token_from_a_file_is_a_token(
    tmp_path: Path, spec: Path, unfold: Unfold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a line after a token is not part of it, and alone it is none."""
    with serving(tmp_path, token="secret\n") as (_, place):  # noqa: S106 - a test's
        assert answer(place + "/")[0] == 401
        assert answer(place + "/", "secret")[0] == 200
    monkeypatch.setenv("UNFOLD_TOKEN", "\n")
    refused = unfold("serve", "a.yaml", "--host", "0.0.0.0")  # noqa: S104 - that it is refused is the test
    assert refused.code == 2
    assert "a token is needed" in refused.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--host", "203.0.113.1"], "a token is needed"),
        (["--set", "repeat=0"], "--set repeat=0: repeat: must be at least 1, got 0"),
        (["--out", "x.html"], "--out x.html: a service writes no report (with --replay TRACE it does)"),
        (["--format", "json"], "--format json: a service writes no report"),
        (
            ["--ray-address", "head:6379"],
            "--ray-address head:6379 has no effect with --engine local",
        ),
    ],
)
def test_a_bad_call_is_reported(unfold: Unfold, spec: Path, words: list[str], expected: str) -> None:
    """A bad port, address or spec, or an option that would be passed over, ends with 2 before anything listens."""
    outcome = unfold("serve", "a.yaml", *words)
    assert outcome.code == 2
    assert expected in outcome.err


def test_a_kind_of_one_process_is_refused_before_any_starts(unfold_process: Process, tmp_path: Path) -> None:
    """Where a kind serves from one process, several are refused once, by 2, and nothing is started or written."""
    (tmp_path / "a.yaml").write_text(ECHO)
    done = unfold_process("serve", "a.yaml", "--processes", "2", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.strip() == "kind echo serves from one process only (leave --processes out)"
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
def test_a_mistake_that_only_a_process_finds_is_reported_once(unfold_process: Process, tmp_path: Path) -> None:
    """The caller's mistake ends several processes as it ends one: reported once, exit code 2, no restart."""
    (tmp_path / "a.yaml").write_text((ROOT / "configs/cascade/digits.yaml").read_text())
    done = unfold_process("serve", "a.yaml", "--processes", "2", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.count("this cascade was not trained") == 1
    assert "takes its place" not in done.stderr
