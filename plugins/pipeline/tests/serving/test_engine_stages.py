"""Engines with running stages before and after them: rows, answers, failures, and a replay like the simulation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugins.pipeline.tests.engine.scripted_engine import Script, run_engine
from plugins.pipeline.tests.serving.test_engine_router import write_trace
from tests.asgi import host
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir, Service, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

pytestmark = pytest.mark.timed

NAP_S = 0.06
CODE = f"""import time

def embed(rows):
    time.sleep({NAP_S})
    return rows.sum(axis=1)

def guard(rows):
    time.sleep({NAP_S})
    if (rows < 0).any():
        raise ValueError("negative")
    return rows.max(axis=1)
"""
SPEC = """
version: 1
kind: pipeline
name: rag
slo: {ttft_p99: 2 s, tpot_p99: 100 ms, p99: 10 s}
arrivals: {process: poisson, rate: 4/s, duration: 30 s, input: 200, output: 20}
hardware: {l4: {price: $1/h}, core: {price: $0.05/h}}
stages:
  embed: {model: {code: "around:embed", features: 2}, latency: {core: {1: 60 ms, 8: 65 ms}}}
  chat:
    after: {embed: 1}
    engine:
      model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, inner: 128, vocabulary: 1000}
      tensor_parallel: 1
      max_num_batched_tokens: 256
      max_num_seqs: 8
      async_scheduling: false
      kv_tokens: {l4: {1: 8192}}
      url: URL
      steps: {l4: {roofline: true}}
  guard: {after: {chat: 1}, model: {code: "around:guard", features: 2}, latency: {core: {1: 60 ms, 8: 65 ms}}}
"""


def open_pipeline(folder: Path, url: str, *changes: tuple[str, str], **options: Any) -> Service | Report:
    (folder / "around.py").write_text(CODE, "utf-8")
    text = SPEC.replace("URL", url)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    run = Run(RunDir(folder / "run"), LocalEngine(1), base=folder, allow_code=True, options=options)  # type: ignore[arg-type]
    return serve(validate(PipelineSpec, parse(text, "rag.yaml")), run)


def ask(url: str, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 4, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


@pytest.mark.e2e
def test_a_request_passes_every_stage(tmp_path: Path) -> None:
    """Answers of stages stand in the reply; a row that is missing or fails is named, and no engine is blamed."""
    script = Script()
    with run_engine(script) as engine:
        service = open_pipeline(tmp_path, engine)
        assert isinstance(service, Service)
        assert "every request passes embed, guard" in dict(service.lines)["stages"]
        with host(service.app) as url:
            begin_s = time.perf_counter()
            reply = ask(url, x=[1.0, 2.5])
            assert time.perf_counter() - begin_s >= 2 * NAP_S
            assert reply.json()["stages"] == {"embed": "3.5", "guard": "2.5"}
            assert reply.json()["choices"][0]["message"]["content"].split() == ["a"] * 4
            stream = ask(url, x=[1, 2], stream=True).text
            assert stream.index('"content"') < stream.index('"stages"') < stream.index("[DONE]")
            ttft_ms = httpx.get(f"{url}/status").json()["measured_mean_ms"]["ttft"]
            assert ttft_ms >= NAP_S * 1e3
            served = script.requests
            for row in ({}, {"x": [1.0]}, {"x": [1.0, True]}, {"x": [1.0, "2"]}, {"x": {"a": 1}}, {"x": None}):
                answer = ask(url, **row)
                assert (answer.status_code, "read 2 numbers" in answer.text) == (400, True)
            assert script.requests == served
            failed = ask(url, x=[-1.0, 2.0])
            assert (failed.status_code, "stage guard failed" in failed.text) == (500, True)
            broken = ask(url, x=[-1.0, 2.0], stream=True).text
            assert "stage guard failed" in broken
            assert "[DONE]" not in broken
            # the engine is still in charge
            assert httpx.get(f"{url}/health").status_code == 200
            assert ask(url, x=[1.0, 2.0]).status_code == 200


@pytest.mark.e2e
def test_a_replay_measures_what_the_plan_simulates(tmp_path: Path) -> None:
    """TTFT includes the stages before the engine, latency those after it, and both sides say so."""
    with run_engine(Script()) as engine:
        report = open_pipeline(tmp_path, engine, replay=write_trace(tmp_path, 40))
    assert isinstance(report, Report)
    values = {name: metric.value or 0.0 for name, metric in report.metrics.items()}
    assert values["failed"] == 0
    for side in ("", "_estimate"):
        assert values[f"ttft_p50{side}_ms"] >= NAP_S * 1e3
        assert values[f"latency_p50{side}_ms"] - values[f"ttft_p50{side}_ms"] >= NAP_S * 1e3
    # no upper bound on what is measured: a busy machine makes real processes wait; simulated, it is the engine's alone
    assert values["tpot_mean_estimate_ms"] < NAP_S * 1e3


def test_stages_without_models_and_of_other_rows_are_named(tmp_path: Path) -> None:
    """A stage that cannot run here, and lines that read rows of other lengths, are errors before anything starts."""
    with pytest.raises(UnfoldError, match=r"stages.embed: has no model to serve"):
        open_pipeline(tmp_path, "http://127.0.0.1:9", ('model: {code: "around:embed", features: 2}, ', ""))
    with pytest.raises(UnfoldError, match="before the engine read 3 numbers, those after it 2"):
        open_pipeline(tmp_path, "http://127.0.0.1:9", ('"around:embed", features: 2', '"around:embed", features: 3'))
