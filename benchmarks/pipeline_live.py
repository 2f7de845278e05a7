"""A served pipeline next to its replay: steps, ramps and bursts over HTTP, on local processes and on Ray.

A model sleeps for its planned time, so that a machine of two cores can run the replicas that the scaling rule orders.
The service is started, measures its activation time, and gets the trace over real sockets. The replay simulates the
same trace with the activation time that the service has stored. Attainment counts refused queries as missed.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frame import RAY_ENVIRONMENT, NeedsExtraError
from plugins.pipeline.tests.live_load import Response, count, read_status, send_trace
from unfold_pipeline.estimator.simulator import SimulatedTrace
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem.build import build_live_sample, build_problem
from unfold_pipeline.problem.problem import compute_wait_bound
from unfold_pipeline.replay.simulated import simulate_rules
from unfold_pipeline.report.plan_file import parse_saved_plan
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SLO_S = 0.6
START_S = 240.0
BUSY_LOAD = 2.0
"""Load average before the run, above which other processes take the cores."""
SPEC = """
version: 1
kind: pipeline
name: live
slo: {p99: 600 ms}
arrivals: {process: poisson, rate: 4/s, duration: 2 min}
hardware: {core: {price: $0.05/h, quota: 14}}
stages:
  first: {latency: {core: {1: 200 ms}}, model: {code: "live_models:rest", features: 2}}
  second:
    after: {first: 50%}
    inputs: {x: request}
    latency: {core: {1: 100 ms}}
    model: {code: "live_models:blink", features: 2}
"""
MODELS = """import time


def rest(rows):
    time.sleep(0.2 * len(rows))
    return rows.sum(axis=1)


def blink(rows):
    time.sleep(0.1 * len(rows))
    return rows.sum(axis=1)
"""
SHAPES = {
    "fourfold step": [(8.0, 4.0), (22.0, 16.0), (8.0, 4.0)],
    "twofold step": [(8.0, 4.0), (22.0, 8.0)],
    "ramp": [(5.0, 4.0), (5.0, 6.0), (5.0, 8.0), (5.0, 10.0), (5.0, 12.0), (5.0, 14.0)],
    "bursts": [(7.0, 4.0), (1.0, 30.0), (7.0, 4.0), (1.0, 30.0), (7.0, 4.0), (1.0, 30.0), (6.0, 4.0)],
    "step and back": [(6.0, 4.0), (8.0, 16.0), (10.0, 4.0), (8.0, 16.0)],
}
"""Seconds and queries per second of the parts of each trace."""
COLUMNS = ["engine", "trace", "queries", "live", "replay", "error_points", "late_beyond_bound", "lost", "refused"]
AIMS = {"attainment_error_points_max": "≤ 10", "late_beyond_bound": "0", "lost": "0"}


@dataclass(frozen=True, slots=True)
class LiveCase:
    """A trace through the service: what the client observed, and what the replay predicts."""

    responses: Sequence[Response]
    predicted: SimulatedTrace


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure each trace on each engine that starts here."""
    del data
    load = os.getloadavg()[0]
    shapes = dict(list(SHAPES.items())[:1]) if quick else SHAPES
    rows: list[list[Any]] = []
    notes = ["late_beyond_bound: answered later than four times the target, at the client; lost: no response"]
    for engine in ("local",) if quick else ("local", "ray"):
        try:
            for name in shapes:
                rows.append(_summarize(engine, name, _measure_case(engine, name, seed)))
                sys.stderr.write(f"{rows[-1]}\n")
        except NeedsExtraError as error:
            notes.append(f"{engine}: not measured, {error}")
    if not rows:
        raise NeedsExtraError("the service did not start")
    if load > BUSY_LOAD:
        notes.append(f"busy machine: a load average of {load:.1f} before the run, so that replicas start late")
    errors = [row[5] for row in rows]
    metrics = {
        "attainment_error_points_max": max(errors),
        "attainment_error_points_mean": statistics.mean(errors),
        **{
            f"attainment_error_points_max_{engine}": max(row[5] for row in rows if row[0] == engine)
            for engine in dict.fromkeys(row[0] for row in rows)
        },
        "late_beyond_bound": sum(row[6] for row in rows),
        "lost": sum(row[7] for row in rows),
        "cases": len(rows),
        "ray_cases": sum(row[0] == "ray" for row in rows),
    }
    return {
        "metrics": metrics,
        "tables": [{"name": "cases", "columns": COLUMNS, "rows": rows}],
        "aims": AIMS,
        "notes": notes,
    }


def draw_trace(name: str, seed: int) -> list[float]:
    """Return Poisson arrivals of a shape, in seconds since the first."""
    rng, start_s, times = np.random.default_rng([seed, sorted(SHAPES).index(name)]), 0.0, list[float]()
    for seconds, rate in SHAPES[name]:
        times += (start_s + np.sort(rng.random(rng.poisson(rate * seconds))) * seconds).tolist()
        start_s += seconds
    return [moment - times[0] for moment in times]


def _measure_case(engine: str, name: str, seed: int) -> LiveCase:
    times_s = draw_trace(name, seed)
    with tempfile.TemporaryDirectory(prefix="unfold-live-") as place:
        folder = Path(place)
        (folder / "live_models.py").write_text(MODELS, "utf-8")
        (folder / "live.yaml").write_text(SPEC, "utf-8")
        np.savez(folder / "t.npz", arrival_s=np.array(times_s))
        command = [sys.executable, "-m", "unfoldkit"]
        subprocess.run([*command, "plan", "live.yaml", "-o", "plan.yaml"], cwd=folder, check=True, capture_output=True)
        serve = [*command, "serve", "plan.yaml", "--allow-code", "--engine", engine, "--port", "0"]
        with _serving(serve, folder) as address:
            responses = asyncio.run(send_trace(address, "live", times_s, [1.0, 2.0]))
        return LiveCase(responses, _predict(folder))


@contextmanager
def _serving(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Serve until the block ends; give the address once the replicas are ready."""
    environment = {**os.environ, **RAY_ENVIRONMENT}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        # lines on the progress of the start come first; the watchdog ends the wait for a service that hangs
        words = (word for line in process.stderr or () for word in line.split())
        address = next((word for word in words if word.startswith("http://")), "")
        try:
            read_status(address)
        except (OSError, ValueError) as error:
            raise NeedsExtraError("the service did not start on this machine") from error
        yield address
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _predict(folder: Path) -> SimulatedTrace:
    """Simulate the trace under the rule in charge, with the activation time that the service has stored."""
    spec = validate(PipelineSpec, parse(SPEC, "live.yaml"))
    saved = parse((folder / "plan.yaml").read_text("utf-8"), "plan.yaml").data
    run_folder = RunDir(folder / "runs" / "live")
    run = Run(run_folder, LocalEngine(1), base=folder, allow_code=True, options={"plan": saved})
    problem = build_problem(spec, run)
    plan = parse_saved_plan(saved, problem.pipeline)
    if plan is None:
        raise RuntimeError("the plan of the file is missing")
    checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s)
    live = build_live_sample(spec, problem, folder / "t.npz", run)
    rules = simulate_rules(checker, plan, live, problem.tuner)
    return next(rule.trace for rule in rules if rule.name == problem.tuner_policy)


def _summarize(engine: str, name: str, case: LiveCase) -> list[Any]:
    size = len(case.responses)
    live = count(case.responses, lambda item: item.status == 200 and item.seconds <= SLO_S) / size
    replay = 1 - case.predicted.miss_rate(SLO_S)
    bound_s = compute_wait_bound(SLO_S)
    late = count(case.responses, lambda item: item.status == 200 and item.seconds > bound_s)
    lost = count(case.responses, lambda item: item.status not in (200, 429, 503))
    refused = count(case.responses, lambda item: item.status in (429, 503))
    return [engine, name, size, live, replay, 100 * abs(live - replay), late, lost, refused]
