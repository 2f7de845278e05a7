"""Exports that are executed: Ray Serve and KServe's graph answer queries, Triton's message type reads configs.

Ray Serve gets the exported config as ``serve deploy`` does and answers over HTTP. The InferenceGraph runs on KServe's
router, built from its Go module, with a predictor per stage. Triton's server is no package, so its configs are parsed
and checked for all fields.
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.frame import RAY_ENVIRONMENT, NeedsExtraError
from plugins.pipeline.tests.helpers import plan_report
from plugins.pipeline.tests.targets.graph_run import Answer, RouterMissingError, build_router, run_graph
from plugins.pipeline.tests.targets.triton_config import ClientMissingError, list_absent_fields, parse_model_config
from unfold_pipeline.report.export_kserve import export_kserve
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.report.export_triton import export_triton
from unfoldkit.api import Report

QUERIES = 1000
RAY_PORT = 18131
RAY_ROWS = 50
HEAD = """
version: 1
kind: pipeline
name: exported
slo: {p99: 900 ms}
arrivals: {process: poisson, rate: 10/s, duration: 20 s}
hardware: {core: {price: $0.05/h}}
stages:
"""
CHAIN = """
  detect: {latency: {core: {1: 10 ms, 4: 20 ms}}, MODEL}
  person: {after: {detect: 40%}, WHEN latency: {core: {1: 10 ms, 4: 20 ms}}, MODEL}
  face: {after: {person: 50%}, latency: {core: {1: 10 ms}}, MODEL}
"""
RAY_SPEC = HEAD + CHAIN.replace("WHEN", 'when: "output[0] < 0.4", ').replace(
    "MODEL", 'model: {code: "exported_models:pass_on", features: 2}'
)
KSERVE_SPEC = HEAD + CHAIN.replace("WHEN", 'when: label == "person", ').replace(", MODEL", "")
TRITON_SPEC = HEAD + CHAIN.replace("WHEN ", "").replace(", MODEL", "")
SHARES = {"detect": 1.0, "person": 0.4, "face": 0.2}
ANSWERS: Mapping[str, Answer] = {
    "detect": lambda rng: {"label": "person" if rng.random() < 0.4 else "car"},
    "person": lambda rng: {"next": "face" if rng.random() < 0.5 else None},
    "face": lambda _rng: {"output": 1.0},
}
COLUMNS = ["target", "stage", "planned_share", "visits", "sigmas"]
AIMS = {"targets_executed": "≥ 3", "share_error_sigma_max": "≤ 3"}


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Execute each export that can run on this machine."""
    del data
    queries = QUERIES // 5 if quick else QUERIES
    rows: list[list[Any]] = []
    notes: list[str] = [
        "kserve: the router is KServe's, without its controller: the services' addresses are entered as it would",
        "triton: read by the message type of its client and checked for all fields; its server is not run",
    ]
    seconds: dict[str, float | None] = {"ray_serve": None, "kserve": None}
    configs = 0
    with tempfile.TemporaryDirectory(prefix="unfold-exports-") as name:
        folder = Path(name)
        start_s = time.perf_counter()
        try:
            rows += _summarize("kserve", _run_kserve(folder, queries, seed), queries)
            seconds["kserve"] = time.perf_counter() - start_s
        except RouterMissingError as error:
            notes.append(f"kserve: not run, {error}")
        try:
            configs = _check_triton(plan_report(folder / "triton", TRITON_SPEC))
        except ClientMissingError as error:
            notes.append(f"triton: not read, {error}")
        start_s = time.perf_counter()
        try:
            rows += _summarize("ray-serve", _run_ray(folder, queries, seed), queries)
            seconds["ray_serve"] = time.perf_counter() - start_s
        except ImportError as error:
            notes.append(f"ray-serve: not run, {error}")
    if not rows:
        raise NeedsExtraError("no export ran")
    executed = len({row[0] for row in rows}) + (configs > 0)
    metrics = {
        "targets_executed": executed,
        "share_error_sigma_max": max(row[4] for row in rows),
        "queries": queries,
        "triton_configs_read": configs,
        "ray_serve_seconds": seconds["ray_serve"],
        "kserve_seconds": seconds["kserve"],
    }
    return {
        "metrics": metrics,
        "tables": [{"name": "visits", "columns": COLUMNS, "rows": rows}],
        "aims": AIMS,
        "notes": notes,
    }


def _summarize(target: str, visits: Mapping[str, int], queries: int) -> list[list[Any]]:
    return [
        [target, name, share, visits[name], _count_sigmas(visits[name], share, queries)]
        for name, share in SHARES.items()
    ]


def _count_sigmas(visits: int, share: float, queries: int) -> float:
    """Return by how many standard deviations a count differs from that of the plan."""
    sigma = math.sqrt(queries * share * (1 - share))
    difference = abs(visits - queries * share)
    return difference / sigma if sigma else (0.0 if difference == 0 else math.inf)


def _run_kserve(folder: Path, queries: int, seed: int) -> collections.Counter[str]:
    (folder / "router").mkdir()
    router = build_router(folder / "router")
    return run_graph(router, export_kserve(plan_report(folder / "kserve", KSERVE_SPEC)), ANSWERS, queries, seed).visits


def _check_triton(report: Report) -> int:
    """Return how many configs Triton's message type reads; each has all fields that Triton does not complete."""
    with zipfile.ZipFile(io.BytesIO(export_triton(report))) as archive:
        names = archive.namelist()
        for name in names:
            absent = list_absent_fields(parse_model_config(archive.read(name).decode()))
            if absent:
                raise RuntimeError(f"{name} lacks {', '.join(absent)}")
    return len(names)


def _run_ray(folder: Path, queries: int, seed: int) -> collections.Counter[str]:
    """Deploy the exported config on Ray Serve, as ``serve deploy`` does, and count the visits of its HTTP answers."""
    import ray
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    (folder / "exported_models.py").write_text("def pass_on(rows):\n    return rows.reshape(len(rows), -1)\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    config = yaml.safe_load(export_ray_serve(plan_report(folder / "ray", RAY_SPEC)))
    for deployment in config["applications"][0]["deployments"]:
        # a machine of two cores
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    # on a busy machine the raylet starts late
    for name, value in {**RAY_ENVIRONMENT, "RAY_raylet_start_wait_time_s": "240"}.items():
        os.environ.setdefault(name, value)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": RAY_PORT, "host": "127.0.0.1"})
        client = serve.context._get_global_client()  # noqa: SLF001
        client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
        return _send_rows(queries, seed)
    finally:
        serve.shutdown()
        ray.shutdown()


def _send_rows(queries: int, seed: int) -> collections.Counter[str]:
    """Send rows with a uniform first number, so that a condition on it holds as often as planned."""
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    visits: collections.Counter[str] = collections.Counter()
    for _ in range(queries // RAY_ROWS):
        rows = rng.random((RAY_ROWS, 2))
        tensor = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        request = urllib.request.Request(f"http://127.0.0.1:{RAY_PORT}/", json.dumps({"inputs": [tensor]}).encode())
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            outputs = json.load(response)["outputs"]
        for output in outputs:
            visits[output["name"]] += sum(json.loads(value) is not None for value in output["data"])
    return visits
