"""Benchmark results of three tools are read alike, fit step times, and are rejected where they cannot compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.engine.test_cluster import step_times
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.benchmark_runs import BenchmarkRun, read_benchmarks
from unfold_pipeline.engine.step_times.fit import fit_step_times
from unfoldkit.api import UnfoldError

LIMITS = EngineLimits(num_blocks=400, max_num_batched_tokens=64, max_num_seqs=16)


def measure(times: StepTimes, rate: float, *, count: int = 60, seed: int = 3) -> dict[str, Any]:
    """Return what an engine with these step times does, as ``vllm bench serve`` writes it."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    prompt, generated = rng.integers(4, 60, count), rng.integers(2, 30, count)
    run = simulate(build_requests(arrivals - arrivals[0], prompt, generated), LIMITS, times)
    ttft, last = run.first_token_s - run.arrival_s, run.last_token_s - run.arrival_s
    gaps = [
        [float(value) for value in np.full(size - 1, (end - first) / (size - 1))]
        for first, end, size in zip(ttft, last, generated, strict=True)
    ]
    return {
        "completed": count,
        "num_prompts": count,
        "request_rate": rate,
        "max_concurrency": None,
        "input_lens": prompt.tolist(),
        "output_lens": generated.tolist(),
        "ttfts": ttft.tolist(),
        "itls": gaps,
        "start_times": (arrivals + 1e4).tolist(),
        "errors": [""] * count,
    }


def write(folder: Path, data: object, name: str = "bench.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data), "utf-8")
    return path


def read_one(path: Path) -> BenchmarkRun:
    """Read the only run of a file."""
    (run,) = read_benchmarks(path)
    return run


def as_guidellm(data: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "start_time": start,
            "end_time": start + first + sum(gaps),
            "prompt_tokens": prompt,
            "output_tokens": generated,
            "time_to_first_token_ms": first * 1e3,
        }
        for start, first, gaps, prompt, generated in zip(
            data["start_times"], data["ttfts"], data["itls"], data["input_lens"], data["output_lens"], strict=True
        )
    ]
    return {"benchmarks": [{"requests": {"successful": rows, "errored": [], "incomplete": []}}]}


def as_inference_perf(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "start_time": start,
            "end_time": start + first + sum(gaps),
            "error": None,
            "info": {
                "input_tokens": prompt,
                "output_tokens": generated,
                "output_token_times": [start + first + float(value) for value in np.cumsum([0.0, *gaps])],
            },
        }
        for start, first, gaps, prompt, generated in zip(
            data["start_times"], data["ttfts"], data["itls"], data["input_lens"], data["output_lens"], strict=True
        )
    ]


def test_three_tools_describe_the_same_run(tmp_path: Path) -> None:
    """Arrivals, lengths, TTFT and TPOT do not depend on the tool that wrote them."""
    data = measure(step_times(), 40.0)
    runs = [
        read_one(write(tmp_path, body, f"{index}.json"))
        for index, body in enumerate((data, as_guidellm(data), as_inference_perf(data)))
    ]
    for run in runs[1:]:
        for name in ("arrival_s", "input_tokens", "output_tokens", "ttft_s", "tpot_s"):
            np.testing.assert_allclose(getattr(run, name), getattr(runs[0], name), atol=1e-6)
    assert all(not run.notes for run in runs)


def test_runs_at_two_loads_recover_scale_and_overhead(tmp_path: Path) -> None:
    """An engine that is 1.4 times as slow with 2 ms more a step is found from two loads."""
    real = replace(step_times(), scale=1.4, overhead=2e-3)
    runs = [read_one(write(tmp_path, measure(real, rate), f"{rate}.json")) for rate in (3.0, 60.0)]
    fitted = fit_step_times(runs, step_times(), LIMITS, front_s=0.0)
    assert fitted.error < 0.01
    assert fitted.times.scale == pytest.approx(1.4, rel=0.05)
    assert fitted.times.overhead == pytest.approx(2e-3, rel=0.15)


def test_one_load_leaves_both_explanations_in_the_interval(tmp_path: Path) -> None:
    """A factor and an overhead explain one load alike, and differ elsewhere."""
    real = replace(step_times(), overhead=2e-3)
    fitted = fit_step_times([read_one(write(tmp_path, measure(real, 5.0)))], step_times(), LIMITS, front_s=0.0)
    assert fitted.low < 1 or fitted.high > 1


def change(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**data, **changes}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("failed", "2 requests failed"),
        ("short", "3 requests failed"),
        ("no lengths", "no lengths of individual requests"),
        ("summary only", "no times of individual requests"),
        ("queued", "no times of individual requests"),
        ("clocks", "several clocks"),
        ("unequal", "different numbers of requests"),
        ("text", "not a benchmark result"),
        ("zero", "a request has no tokens"),
        ("list", "not a benchmark result"),
        ("starts", "1 start times for 20 requests"),
        ("clients", "-3 is not a valid load of a client"),
        ("rate", "-1 is not a valid load of a client"),
        ("newer", "the key 'completed' is missing"),
    ],
)
def test_what_cannot_compare_is_rejected(tmp_path: Path, kind: str, message: str) -> None:
    """Each rejection names the file and the reason, and none is a traceback."""
    data = measure(step_times(), 20.0, count=20)
    bodies: dict[str, object] = {
        "failed": change(data, errors=["timeout", "timeout", *[""] * 18]),
        "short": change(data, num_prompts=23),
        "no lengths": {key: value for key, value in data.items() if key != "output_lens"},
        "summary only": {"completed": 20, "mean_ttft_ms": 20.0},
        "queued": change(data, queued_ts=[0.0] * 20),
        "clocks": change(data, ttfts=[-1.7e9, *data["ttfts"][1:]]),
        "unequal": change(data, ttfts=data["ttfts"][1:], itls=data["itls"]),
        "text": change(data, ttfts=["a"] * 20),
        "zero": change(data, output_lens=[0, *data["output_lens"][1:]]),
        "list": [[1, 2], 3],
        "starts": change(data, start_times=[1.0]),
        "clients": change(data, max_concurrency=-3),
        "rate": change(data, request_rate=-1),
        "newer": {key: value for key, value in data.items() if key != "completed"},
    }
    with pytest.raises(UnfoldError, match=message):
        read_one(write(tmp_path, bodies[kind]))


def test_doubtful_runs_are_flagged(tmp_path: Path) -> None:
    """Stream events above tokens, drawn arrivals, and equal lengths in a closed loop are notes of the run."""
    data = measure(step_times(), 20.0, count=20)

    def read(**changes: Any) -> BenchmarkRun:
        return read_one(write(tmp_path, change(data, **changes)))

    doubled = read(itls=[[gap / 2 for gap in gaps for _ in range(2)] for gaps in data["itls"]])
    assert "stream events" in doubled.notes[0]
    np.testing.assert_allclose(doubled.tpot_s, read().tpot_s)
    assert "arrivals are drawn" in read(start_times=None).notes[0]
    assert read(max_concurrency=4).closed_loop == 0
    assert read(max_concurrency=4, request_rate="inf").closed_loop == 4
    fixed = read(input_lens=[30] * 20, output_lens=[10] * 20, max_concurrency=4, request_rate="inf")
    assert not fixed.compares_ttft
    assert "equal lengths in a closed loop" in fixed.notes[-1]
