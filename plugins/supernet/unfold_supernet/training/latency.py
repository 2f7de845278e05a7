"""Measurements on this machine: predictions and latency of every subnet, and the cost of a model switch."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from unfold_supernet._types import Float32Array, FloatArray, IntArray
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks.standalone import StandaloneModel, build_empty_model, extract_model, serialize_state
from unfold_supernet.networks.supernet import BoundSubnet, Supernet, bind_subnet
from unfold_supernet.scheduling.escalation import SubnetPredictions
from unfold_supernet.scheduling.speed import BATCHES, ENOUGH_S, time_rounds
from unfold_supernet.training.accuracy import compute_percentiles
from unfold_supernet.training.confidence_calibration import compute_confidence
from unfold_supernet.training.problem import SwitchCosts

Model = Callable[[Tensor, Tensor], Tensor]
"""From inputs and extra numbers to logits."""
CHUNK = 1024
CHUNK_BYTES = 16 << 20
"""Largest inputs of a chunk of predictions: feature maps need a multiple of them."""
VIEW_BATCH = 32
MIN_ROUNDS = 3
LONG_S = 1.0
"""Latency of a batch after which no larger batch is measured: rows wait longer than they gain."""


def predict_classes(model: Model, data: Dataset, rows: IntArray) -> IntArray:
    """Predict the classes of some rows."""
    classes: IntArray = compute_all_logits(model, data, rows).argmax(1)
    return classes


def compute_all_logits(model: Model, data: Dataset, rows: IntArray) -> Float32Array:
    """Compute the logits (n, classes) of some rows."""
    with torch.inference_mode():
        return np.concatenate([model(x, extra).numpy() for x, extra in _iterate_chunks(data, rows)])


def tabulate_predictions(logits: Mapping[str, Float32Array], labels: IntArray) -> SubnetPredictions:
    """Tabulate the predictions and confidences of every member from its logits (n, classes)."""
    return SubnetPredictions(
        tuple(logits),
        np.stack([values.argmax(1) for values in logits.values()]).astype(np.int64),
        np.stack([compute_confidence(values, 1.0) for values in logits.values()]).astype(np.float32),
        labels,
    )


def measure_latencies(
    model: Model, data: Dataset, batches: Sequence[int] = BATCHES, rounds: int = 30
) -> dict[int, float]:
    """Measure the median seconds of a forward pass by batch size; slow models get fewer rounds and fewer sizes."""
    result: dict[int, float] = {}
    with torch.inference_mode():
        for batch in batches:
            if batch > VIEW_BATCH and max(result.values(), default=0.0) > LONG_S:
                break
            rows = np.resize(data.test, batch)
            x, extra = torch.from_numpy(data.x[rows]), torch.from_numpy(data.extra[rows])
            call = partial(model, x, extra)
            time_rounds(call, 3, ENOUGH_S / 10, min_rounds=1)
            result[batch] = float(np.median(time_rounds(call, rounds, ENOUGH_S, min_rounds=MIN_ROUNDS)))
    return result


def measure_switch_costs(supernet: Supernet, rounds: int = 2000) -> SwitchCosts:
    """Measure what a model switch costs under load, and the mechanisms that views of shared weights replace."""
    names = list(supernet.bound)
    largest = supernet.bound[names[-1]]
    models = {name: extract_model(supernet.space, bound) for name, bound in supernet.bound.items()}
    files = {name: serialize_state(model) for name, model in models.items()}
    target = models[names[-1]]
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    slow_rounds = max(20, rounds // 50)
    largest_subnet, weights = supernet.space.subnets[-1], dict(supernet.weights)
    bind_times = time_rounds(
        lambda: bind_subnet(supernet.space, weights, largest_subnet, largest.statistics), slow_rounds
    )
    load_times = time_rounds(lambda: target.load_state_dict(state), slow_rounds)
    reload_times = time_rounds(lambda: _reload(supernet, largest, files[names[-1]]), slow_rounds)
    norm_tensors = [tensor for bound in supernet.bound.values() for pair in bound.statistics for tensor in pair]
    p50, p99 = compute_percentiles(_time_switches(supernet, names, rounds))
    return SwitchCosts(
        switch_p50_s=p50,
        switch_p99_s=p99,
        view_ratios={name: _compare_with_copy(supernet, name, models[name], slow_rounds) for name in names},
        bind_s=float(np.median(bind_times)),
        load_state_s=float(np.median(load_times)),
        reload_s=float(np.median(reload_times)),
        shared_bytes=_count_bytes([*norm_tensors, *supernet.weights.values()]),
        separate_bytes=sum(_count_model_bytes(model) for model in models.values()),
    )


def _time_switches(supernet: Supernet, names: Sequence[str], rounds: int) -> FloatArray:
    """Time the first answer after each change of subnet, less the next answer of the same subnet."""
    clock, bound = time.perf_counter, supernet.bound
    x, extra = _make_inputs(supernet, 1)
    order = np.random.default_rng(rounds).integers(len(names), size=rounds)
    penalties = np.empty(rounds)
    with torch.inference_mode():
        for index, choice in enumerate(order):
            model = bound[names[choice]]
            start = clock()
            model(x, extra)
            middle = clock()
            model(x, extra)
            penalties[index] = (middle - start) - (clock() - middle)
    return penalties[np.flatnonzero(np.diff(order)) + 1] if len(names) > 1 else penalties


def _compare_with_copy(supernet: Supernet, name: str, copy: StandaloneModel, rounds: int) -> float:
    """Compare the time of a batch on views with that of a model with contiguous tensors; rounds alternate."""
    x, extra = _make_inputs(supernet, VIEW_BATCH)
    views, copies = [], []
    with torch.inference_mode():
        for _ in range(rounds):
            views += time_rounds(lambda: supernet.bound[name](x, extra), 1).tolist()
            copies += time_rounds(lambda: copy(x, extra), 1).tolist()
    return float(np.median(views) / np.median(copies))


def _make_inputs(supernet: Supernet, rows: int) -> tuple[Tensor, Tensor]:
    space = supernet.space
    return torch.zeros((rows, space.channels, *space.size)), torch.zeros((rows, space.extra))


def _reload(supernet: Supernet, bound: BoundSubnet, file: bytes) -> StandaloneModel:
    model = build_empty_model(supernet.space, bound)
    model.load_state_dict(load(io.BytesIO(file).read()))
    return model


def _count_model_bytes(model: StandaloneModel) -> int:
    return _count_bytes([tensor for tensor in model.state_dict().values() if tensor.ndim])


def _count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _iterate_chunks(data: Dataset, rows: IntArray) -> Iterator[tuple[Tensor, Tensor]]:
    row_bytes = max(1, data.x[:1].nbytes)
    size = max(1, min(CHUNK, CHUNK_BYTES // row_bytes))
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield torch.from_numpy(data.x[chunk]), torch.from_numpy(data.extra[chunk])
