"""Measurements by engine: the latency of a subnet on views and in ONNX Runtime, and the memory of its session."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from unfold_supernet._types import Float32Array
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.onnx_session import name_inputs, open_measured_session
from unfold_supernet.scheduling.engines import EngineCosts
from unfold_supernet.scheduling.speed import ENOUGH_S, time_rounds
from unfold_supernet.training.latency import Model

TRIAL_ROWS = 32
CHECK_BATCHES = (1, 32)
"""Batch sizes of the short measurement with which a service chooses its engines."""
ROUNDS, MIN_ROUNDS = 30, 3


def measure_engine_costs(content: bytes, data: Dataset, views: Mapping[int, float]) -> EngineCosts:
    """Measure a subnet in ONNX Runtime at the batch sizes at which its views were measured.

    Args:
        content: Its ONNX model.
        data: Rows to compute.
        views: Latency on views by batch size, in seconds.
    """
    rows = np.resize(data.test, max(views))
    session, size_bytes = open_measured_session(content, data.x[rows[:TRIAL_ROWS]], data.extra[rows[:TRIAL_ROWS]])
    wall, ran = time.perf_counter(), time.thread_time()
    onnx = {
        batch: _time_session(session, data.x[rows[:batch]], data.extra[rows[:batch]], ROUNDS, ENOUGH_S / 2)
        for batch in views
    }
    wall, ran = time.perf_counter() - wall, time.thread_time() - ran
    return EngineCosts(views=views, onnx=onnx, copy_bytes=size_bytes, waiting=max(0.0, 1 - ran / wall))


def compare_engines(views: Model, content: bytes, size: tuple[int, ...], extra: int) -> EngineCosts:
    """Measure a subnet in both engines at two batch sizes; rounds alternate, so that load meets both.

    Args:
        views: The subnet on views of the shared weights.
        content: Its ONNX model.
        size: Shape of an input without rows.
        extra: Extra numbers of an input.
    """
    x, numbers = np.zeros((max(CHECK_BATCHES), *size), np.float32), np.zeros((max(CHECK_BATCHES), extra), np.float32)
    session, size_bytes = open_measured_session(content, x, numbers)
    seconds: dict[str, dict[int, float]] = {"views": {}, "onnx": {}}
    wall, ran = time.perf_counter(), time.thread_time()
    for batch in CHECK_BATCHES:
        inputs, tensors = name_inputs(session, x[:batch], numbers[:batch]), (x[:batch], numbers[:batch])
        rounds: dict[str, list[float]] = {"views": [], "onnx": []}
        with torch.inference_mode():
            arguments = [torch.from_numpy(array) for array in tensors]
            views(*arguments)
            for _ in range(ROUNDS):
                rounds["views"] += time_rounds(partial(views, *arguments), 1).tolist()
                rounds["onnx"] += time_rounds(partial(session.run, None, inputs), 1).tolist()
                if len(rounds["onnx"]) >= MIN_ROUNDS and sum(map(sum, rounds.values())) > ENOUGH_S / 2:
                    break
        for engine, times in rounds.items():
            seconds[engine][batch] = float(np.median(times))
    wall, ran = time.perf_counter() - wall, time.thread_time() - ran
    return EngineCosts(copy_bytes=size_bytes, waiting=max(0.0, 1 - ran / wall), **seconds)


def _time_session(session: Any, x: Float32Array, extra: Float32Array, rounds: int, enough_s: float) -> float:
    inputs = name_inputs(session, x, extra)
    time_rounds(lambda: session.run(None, inputs), 3, enough_s / 10, min_rounds=1)
    return float(np.median(time_rounds(lambda: session.run(None, inputs), rounds, enough_s, min_rounds=MIN_ROUNDS)))
