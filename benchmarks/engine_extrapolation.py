"""How wrong steps beyond the operator tables are: part of a table is cut off and predicted from the rest.

Llama-3.1-70B in fp8 with 1 to 8 GPUs. ``factor`` says how far a size lies beyond what was left of its table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine_silicon import MODELS
from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.hardware.gpu import list_gpus
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes
from unfold_pipeline.engine.step_times.aiconfigurator import (
    AttentionTable,
    OperatorDatabase,
    TableCache,
    build_step_times,
    find_tables,
    read_database,
)

SYSTEMS, BACKENDS, DEGREES = ("h100_sxm", "h200_sxm"), ("vllm", "trtllm"), (1, 2, 4, 8)
FACTORS = (2, 4, 8)
MODEL, KV_TYPE = MODELS["70B"], "bfloat16"
MAX_PROMPT, MAX_CONTEXT, MAX_REQUESTS = 16_384, 32_768, 2048
Points = tuple[FloatArray, FloatArray, FloatArray]
Keep = Callable[[FloatArray, FloatArray], NDArray[np.bool_]]
Errors = dict[tuple[str, int], list[float]]


def measure_extrapolation(data: Path) -> list[dict[str, Any]]:
    """Return bias, median and 90th percentile of the error, in per cent, by what lies beyond the table and how far."""
    errors: Errors = defaultdict(list)
    tables: TableCache = {}
    for system in SYSTEMS:
        for backend in BACKENDS:
            files = find_tables(data / "engines", system, backend)
            database = read_database(files, tables, system=system, backend=backend, head=MODEL.head)
            for parallel in DEGREES:
                _cut_generation(database, system, parallel, errors)
                _cut_context(database, system, parallel, errors)
                _cut_gemm(database, system, parallel, errors)
    return [
        {
            "size": size,
            "factor": factor,
            "points": len(values),
            "bias_percent": 100 * float(np.median(values)),
            "error_percent_median": 100 * float(np.median(np.abs(values))),
            "error_percent_p90": 100 * float(np.quantile(np.abs(values), 0.9)),
        }
        for (size, factor), values in sorted(errors.items())
    ]


def _build(database: OperatorDatabase, system: str, parallel: int, max_tokens: int) -> StepTimes:
    return build_step_times(
        database,
        MODEL,
        list_gpus()[system],
        tensor_parallel=parallel,
        precision="fp8",
        kv_precision="bf16",
        max_tokens=max_tokens,
        max_requests=MAX_REQUESTS,
        max_context=MAX_CONTEXT,
    )


def _cut(table: Mapping[str, AttentionTable], keep: Keep) -> dict[str, AttentionTable]:
    points = {}
    for heads, (batch, length, seconds) in table[KV_TYPE].points.items():
        kept = keep(batch, length)
        points[heads] = (batch[kept], length[kept], seconds[kept])
    return {**table, KV_TYPE: replace(table[KV_TYPE], points=points)}


def _find_points(table: Mapping[str, AttentionTable], parallel: int) -> Points:
    return table[KV_TYPE].points[MODEL.heads // parallel, MODEL.kv_heads // parallel]


def _cut_generation(database: OperatorDatabase, system: str, parallel: int, errors: Errors) -> None:
    batch, length, seconds = _find_points(database.generation, parallel)
    most = {"tokens": (batch * length).max(), "requests": batch.max(), "context": length[batch == 1].max()}
    for size, factors in (("tokens", FACTORS), ("requests", (2,)), ("context", FACTORS)):
        values = {"tokens": batch * length, "requests": batch, "context": length}[size]
        for factor in factors:
            limit = most[size] / factor

            def keep(
                batch: FloatArray, length: FloatArray, size: str = size, limit: float = limit
            ) -> NDArray[np.bool_]:
                chosen = {"tokens": batch * length, "requests": batch, "context": length}[size]
                return np.asarray(chosen <= limit)

            times = _build(replace(database, generation=_cut(database.generation, keep)), system, parallel, 16)
            axes = [axis[:n] for axis, n in zip(times.axes, times.axis_lengths, strict=True)]
            wanted = (values > limit) & (length <= MAX_CONTEXT) & ((size != "context") | (batch == 1))
            for b, n, real in zip(batch[wanted], length[wanted], seconds[wanted], strict=True):
                row, column = np.flatnonzero(axes[2] == b), np.flatnonzero(axes[3] == n)
                if row.size and column.size:
                    predicted = times.attention[0, 0, row[0], column[0]] / MODEL.layers
                    beyond = round({"tokens": b * n, "requests": b, "context": n}[size] / limit)
                    errors[f"generation attention, {size}", beyond].append(float(predicted / real - 1))


def _cut_context(database: OperatorDatabase, system: str, parallel: int, errors: Errors) -> None:
    _, length, seconds = _find_points(database.context, parallel)
    for factor in FACTORS:
        limit = MAX_PROMPT / factor

        def keep(_: FloatArray, length: FloatArray, limit: float = limit) -> NDArray[np.bool_]:
            return np.asarray(length <= limit)

        times = _build(replace(database, context=_cut(database.context, keep)), system, parallel, MAX_PROMPT)
        chunk = int(np.flatnonzero(times.axes[0] == MAX_PROMPT)[0])
        predicted = times.attention[chunk, 0, 0, 0] / MODEL.layers
        real = float(np.median(seconds[length == MAX_PROMPT]))
        errors["context attention, context", factor].append(float(predicted / real - 1))


def _cut_gemm(database: OperatorDatabase, system: str, parallel: int, errors: Errors) -> None:
    most = int(min(sizes[-1] for table in database.gemm.values() for sizes, _ in table.values()))
    cut = {
        kind: {pair: _cut_m(sizes, seconds, most / 2) for pair, (sizes, seconds) in table.items()}
        for kind, table in database.gemm.items()
    }
    real = _build(database, system, parallel, most).dense[most]
    predicted = _build(replace(database, gemm=cut), system, parallel, most).dense[most]
    errors["GEMM, m", 2].append(float(predicted / real - 1))


def _cut_m(sizes: FloatArray, seconds: FloatArray, limit: float) -> tuple[FloatArray, FloatArray]:
    return sizes[sizes <= limit], seconds[sizes <= limit]
