"""Servers under load: each in an environment of its own, on one core; the generator on another, over loopback."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.frame import NeedsExtraError

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".nox" / "peers"
START_S = 300.0
JSON_TYPE = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure: how it is started (``{port}`` and the like filled in), where it answers, what it needs.

    ``reads_joblib`` says that its environment needs the libraries of this one, which wrote the model. ``ready_port``
    names the port of the path ``ready``: a server of gRPC answers it on another one. An empty path is not asked for.
    """

    name: str
    words: tuple[str, ...]
    path: str
    body: str = "features"
    ready: str = "/ready"
    packages: tuple[str, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)
    reads_joblib: bool = True
    ready_port: str = "port"


def report_failure(name: str, error: Exception) -> dict[str, Any]:
    """Print why a server was not measured, and return nulls in place of its figures, with the reason."""
    sys.stderr.write(f"{name}: {error}\n")
    return {"requests_per_s": None, "p50_ms": None, "p99_ms": None, "note": str(error)[-200:]}


def cores() -> tuple[int, int]:
    """Return the core of the servers and that of the generator; the same one where there is but one."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


def python_of(peer: Peer) -> str:
    """Return the interpreter of a peer's environment, made if it is not there yet.

    Raises:
        CalledProcessError: a package cannot be installed.
    """
    if not peer.packages:
        return sys.executable
    # joblib files go from one environment to another only if these are the same
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("scikit-learn", "numpy", "joblib")]
    same.append(f"xgboost-cpu=={importlib.metadata.version('xgboost')}")
    wanted = sorted([*peer.packages, *(same if peer.reads_joblib else ())])
    folder = ENVIRONMENTS / "-".join(part.partition("=")[0].partition("<")[0] for part in peer.packages)
    mark, python = folder / "installed.json", folder / "bin" / "python"
    if not mark.is_file() or json.loads(mark.read_text()) != wanted:
        sys.stderr.write(f"installing {', '.join(peer.packages)}\n")
        _install(folder, python, wanted)
        mark.write_text(json.dumps(wanted))
    return str(python)


def _install(folder: Path, python: Path, wanted: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "-p", str(python), *wanted], check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)


@contextmanager
def started(peer: Peer, core: int, environment: Mapping[str, str], log: Path) -> Iterator[tuple[int, int]]:
    """Start a server on one core, wait until it answers; give its port and process; end it with all its children.

    Raises:
        RuntimeError: it ended or did not answer in time; the message ends with its output.
    """
    port = free_port()
    filled = {"port": port, "python": python_of(peer), "folder": log.parent, "other": free_port(), "third": free_port()}
    words = [word.format(**filled) for word in peer.words]
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAY_DISABLE_DOCKER_CPU_WARNING": "1"}
    more = {**os.environ, **one, **environment, **{key: text.format(**filled) for key, text in peer.more.items()}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *words],
            cwd=ROOT, env=more, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        if peer.ready:
            wait_for(f"http://127.0.0.1:{filled[peer.ready_port]}{peer.ready}", process, log)
        _wait_for_port(port, process, log)
        yield port, process.pid
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        sys.stderr.write("a server does not end; it is killed\n")
    # children of the server that are left, in the session that we made for it
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    late = time.monotonic() + START_S
    while time.monotonic() < late and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own address
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-600:]}")


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    late = time.monotonic() + START_S
    while time.monotonic() < late and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}: {log.read_text(errors='replace')[-600:]}")


def free_port() -> int:
    """Return a port with no listener."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(port: int, path: str, body: bytes) -> Any:
    """Return what one request is answered, as data."""
    return json.loads(ask_raw(port, path, body, JSON_TYPE)[0])


def ask_raw(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of what one request is answered."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, dict(headers))
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        return answer.read(), answer.headers


def memory_mib(process: int) -> float:
    """Return the resident memory of a process, what it shares counted in shares."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def processor_s(process: int) -> float:
    """Return the seconds that the threads of a process have run."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@dataclass(frozen=True, slots=True)
class Generator:
    """The load generator, compiled; ``core`` is where it runs."""

    program: Path
    core: int

    def drive(
        self, port: int, requests: Path, connections: int, phases: Sequence[tuple[float, float]], seed: int = 0
    ) -> dict[str, Any]:
        """Return what was seen in phases of (requests a second, 0 as fast as answered; seconds)."""
        stages = [f"{rate:.6g}:{seconds:.6g}" for rate, seconds in phases]
        words = [str(self.program), str(port), str(requests), str(connections), str(seed), *stages]
        limit = sum(seconds for _, seconds in phases) + 60
        done = subprocess.run(
            ["taskset", "-c", str(self.core), *words], stdout=subprocess.PIPE, check=True, timeout=limit
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@contextmanager
def generator(core: int) -> Iterator[Generator]:
    """Compile the generator for as long as it is needed.

    Raises:
        NeedsExtraError: there is no C compiler, or no ``taskset``.
    """
    with _compiled("open_loop") as program:
        yield Generator(program, core)


@dataclass(frozen=True, slots=True)
class GrpcGenerator:
    """The load generator of gRPC, compiled; ``core`` is where it runs."""

    program: Path
    core: int

    def drive(
        self, port: int, method: str, messages: Path, shape: tuple[int, int], warm: float, seconds: float
    ) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
        """Return what was seen in ``seconds`` after ``warm``, and each answer that differed, with its message.

        Args:
            port: The port of the server.
            method: The path of the call.
            messages: A file of ``write_messages``.
            shape: Connections, and calls at a time on each.
            warm: Seconds before anything counts.
            seconds: Seconds that count.
        """
        answers = messages.with_suffix(".answers")
        words = [str(self.program), str(port), method, str(messages), *map(str, shape), str(warm), str(seconds)]
        done = subprocess.run(
            ["taskset", "-c", str(self.core), *words, str(answers)],
            stdout=subprocess.PIPE, check=True, timeout=warm + seconds + 60,
        )  # fmt: skip
        return json.loads(done.stdout), list(_read_answers(answers.read_bytes()))


def _read_answers(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        end = data.index(b"\n", start)
        number, size = map(int, data[start:end].split())
        start = end + 1 + size
        yield number, data[end + 1 : start]


@contextmanager
def grpc_generator(core: int) -> Iterator[GrpcGenerator]:
    """Compile the generator of gRPC for as long as it is needed.

    Raises:
        NeedsExtraError: see ``generator``.
    """
    with _compiled("grpc_loop") as program:
        yield GrpcGenerator(program, core)


@contextmanager
def _compiled(name: str) -> Iterator[Path]:
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("taskset") is None:
        raise NeedsExtraError("the load generator needs a C compiler (cc) and taskset")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / name
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run([compiler, "-O2", "-o", str(program), str(source), "-lm"], check=True)
        yield program


def write_messages(file: Path, messages: Sequence[bytes]) -> Path:
    """Write messages as the generators read them: each after a line with its length."""
    file.write_bytes(b"".join(b"%d\n%b" % (len(message), message) for message in messages))
    return file


def write_requests(file: Path, path: str, bodies: Sequence[bytes], headers: Mapping[str, str] = JSON_TYPE) -> Path:
    """Write whole HTTP requests as the generator reads them."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with file.open("wb") as out:
        for body in bodies:
            head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}"
            text = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
            out.write(b"%d\n%b" % (len(text), text))
    return file
