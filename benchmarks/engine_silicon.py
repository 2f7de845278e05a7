"""Closed-loop rows of real engines on H100 and H200, replayed with operator tables: what engine-fidelity compares.

A row holds the mean TTFT and TPOT of a client that keeps some requests in flight. The load generator's protocol is not
documented, and two properties were inferred: one request more in flight than the engine has slots (``closed-loop-a``
only), and lengths that vary from 80 to 100 % of the nominal ones. Checkpoints of TensorRT-LLM in fp8 keep an fp8 KV
cache.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.hardware.gpu import estimate_kv_cache, list_gpus
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.engine.step_times.aiconfigurator import (
    OperatorDatabase,
    TableCache,
    build_step_times,
    find_tables,
    read_database,
)
from unfold_pipeline.engine.step_times.interval import CalibrationGroup, compute_interval
from unfold_pipeline.engine.step_times.roofline import build_roofline

BUDGET, MAX_REQUESTS, MAX_CONTEXT = 8192, 1024, 20_000
ROUNDS, FEWEST_REQUESTS, SHORTEST = 6, 24, 0.8
QUICK_TOKENS = 20_000
MODELS = {
    "8B": ModelShape(layers=32, hidden=4096, heads=32, kv_heads=8, head=128, inner=14336, vocabulary=128256),
    "70B": ModelShape(layers=80, hidden=8192, heads=64, kv_heads=8, head=128, inner=28672, vocabulary=128256),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiliconRow:
    """A measured row and its prediction; times in milliseconds."""

    id: str
    group: str
    ttft: float
    tpot: float
    predicted_ttft: float
    predicted_tpot: float


def predict_rows(data: Path, *, quick: bool, seed: int, roofline: bool = False) -> list[SiliconRow]:
    """Replay every given row; a quick run leaves long ones out."""
    with gzip.open(data / "engines" / "silicon_given.csv.gz", "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if quick:
        rows = [row for row in rows if int(row["concurrency"]) * int(row["osl"]) <= QUICK_TOKENS][::4]
    return list(_predict(rows, data / "engines", seed, roofline=roofline))


def _predict(rows: Sequence[Mapping[str, str]], folder: Path, seed: int, *, roofline: bool) -> Iterator[SiliconRow]:
    tables: TableCache = {}
    databases: dict[tuple[str, str], OperatorDatabase] = {}
    times: dict[tuple[Any, ...], StepTimes] = {}
    for row in rows:
        system, backend, size = row["system"], row["backend"], "70B" if "70B" in row["model_path"] else "8B"
        precision = "fp8" if row["precision"] == "fp8" else "bf16"
        kv_precision = "fp8" if backend == "trtllm" and precision == "fp8" else "bf16"
        parallel, model, gpu = int(float(row["tp_size"])), MODELS[size], list_gpus()[system]
        if (system, backend) not in databases:
            files = find_tables(folder, system, backend)
            databases[system, backend] = read_database(files, tables, system=system, backend=backend, head=128)
        key = (system, backend, size, precision, parallel)
        database = databases[system, backend]
        sizes: dict[str, Any] = {"max_tokens": BUDGET, "max_requests": MAX_REQUESTS, "max_context": MAX_CONTEXT}
        kinds: dict[str, Any] = {"tensor_parallel": parallel, "precision": precision, "kv_precision": kv_precision}
        if key not in times and roofline:
            times[key] = build_roofline(model, gpu, **kinds, **sizes, all_reduce=database.all_reduce)
        elif key not in times:
            times[key] = build_step_times(database, model, gpu, **kinds, **sizes)
        cache = estimate_kv_cache(model, gpu, **kinds, utilization=0.9)
        ttft, tpot = _replay(row, times[key], cache.num_blocks, seed)
        yield SiliconRow(
            id=row["id"],
            group=f"{system} {backend} {precision}",
            ttft=float(row["silicon_ttft_ms"]),
            tpot=float(row["silicon_tpot_ms"]),
            predicted_ttft=ttft,
            predicted_tpot=tpot,
        )


def _replay(row: Mapping[str, str], times: StepTimes, blocks: int, seed: int) -> tuple[float, float]:
    clients, rng = int(row["concurrency"]), np.random.default_rng(seed)
    count = max(ROUNDS * clients, FEWEST_REQUESTS)
    prompt, generated = (
        rng.integers(max(1, int(SHORTEST * int(row[key]))), int(row[key]) + 1, count) for key in ("isl", "osl")
    )
    run = simulate(
        build_requests(np.zeros(count), prompt, generated),
        EngineLimits(num_blocks=blocks, max_num_batched_tokens=BUDGET, max_num_seqs=clients),
        times,
        closed_loop=clients + 1 if row["source"] == "closed-loop-a" else clients,
    )
    ttft_s = run.first_token_s - run.arrival_s
    tpot_s = (run.last_token_s - run.first_token_s) / np.maximum(generated - 1, 1)
    return 1e3 * float(ttft_s.mean()), 1e3 * float(tpot_s.mean())


def group_ratios(rows: Sequence[SiliconRow]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return predicted over measured TTFT and TPOT of the rows of each group."""
    groups = sorted({row.group for row in rows})
    return {
        group: (
            np.array([row.predicted_ttft / row.ttft for row in rows if row.group == group]),
            np.array([row.predicted_tpot / row.tpot for row in rows if row.group == group]),
        )
        for group in groups
    }


def calibrate_groups(rows: Sequence[SiliconRow]) -> list[CalibrationGroup]:
    """Return bias and spread of TPOT of each group."""
    return [
        CalibrationGroup(
            name=name,
            rows=tpot.size,
            bias=float(np.median(tpot)),
            within=float(np.quantile(np.abs(np.log(tpot / np.median(tpot))), 0.9)),
        )
        for name, (_, tpot) in group_ratios(rows).items()
    ]


def cover_left_out_groups(rows: Sequence[SiliconRow], groups: Sequence[CalibrationGroup]) -> dict[str, float]:
    """Return which fraction of the rows of each group lies in the 90 % interval of the other groups."""
    covered = {}
    for name, (_, tpot) in group_ratios(rows).items():
        low, high = compute_interval([group for group in groups if group.name != name])
        covered[name] = float(((1 / tpot >= low) & (1 / tpot <= high)).mean())
    return covered
