"""What the engine benchmarks share: recorded vLLM runs and operator tables, as the simulator reads them."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.engine.step_times.operator_tables import read_operator_tables

LAYERS = 32
MAX_REQUESTS = 256


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A vLLM run: its requests, and when each was scheduled and had its first and last token, in seconds."""

    requests: EngineRequests
    scheduled_s: FloatArray
    first_token_s: FloatArray
    last_token_s: FloatArray


def columns_of(path: Path, keep: Mapping[str, str] | None = None) -> dict[str, FloatArray]:
    """Return the numeric columns of a gzipped table, of the rows with cells equal to ``keep``."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if all(row[key] == value for key, value in (keep or {}).items())]
    names = [name for name in rows[0] if name not in (keep or {})]
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def counts(values: FloatArray) -> CountArray:
    """Return whole numbers of at least one."""
    return np.maximum(values.astype(np.int64), 1)


def recorded_run(data: Path, gpu: str) -> RecordedRun:
    """Return the recorded run of a GPU."""
    column = columns_of(data / "engines" / "vllm_requests.csv.gz", {"gpu": gpu})
    requests = build_requests(
        column["arrival_s"],
        counts(column["input_tokens"]),
        counts(column["output_tokens"]),
        shared_tokens=column["shared_prefix_tokens"].astype(np.int64),
        shared_with=column["shared_with"].astype(np.int64),
    )
    return RecordedRun(requests, column["scheduled_s"], column["first_token_s"], column["last_token_s"])


def operator_times(data: Path, gpu: str) -> StepTimes:
    """Return the step times of Llama-3.1-8B on a GPU, from operator tables."""
    tables = {name: data / "engines" / f"operators_{name}.csv.gz" for name in ("dense", "per_sequence", "attention")}
    budget = EngineLimits(num_blocks=1).max_num_batched_tokens
    return read_operator_tables(**tables, gpu=gpu, layers=LAYERS, max_tokens=budget, max_requests=MAX_REQUESTS)
