"""Measured on this machine: answers and latency of every subnet, and what a switch costs beside loading a model."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from unfold_supernet.arrays import Floats, Ints
from unfold_supernet.family.checkpoint import Extracted, blank, extract, state_bytes
from unfold_supernet.family.datasets import Data
from unfold_supernet.networks.supernet import Ready, Supernet, bind
from unfold_supernet.training.accuracy import percentiles

Net = Callable[[Tensor, Tensor], Tensor]
"""From inputs and extra numbers to logits."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CHUNK = 1024
ENOUGH = 0.5
"""Seconds of rounds of one batch size: of a slow net a few rounds tell as much."""


@dataclass(frozen=True, slots=True)
class Switching:
    """Seconds of a switch by routing (median, 99th percentile), of binding views anew, and of three ways to load.

    ``load_state`` copies a state that is in memory into a model that exists, ``reload`` builds the model and reads the
    file's bytes; ``bytes`` are those of the family, ``separate`` those of its members as files of their own.
    """

    p50: float
    p99: float
    views: float
    load_state: float
    reload: float
    bytes: int
    separate: int


def answers(bound: Net, data: Data, rows: Ints) -> Ints:
    """Return the classes that a subnet gives for some rows."""
    return confident(bound, data, rows)[0]


def confident(bound: Net, data: Data, rows: Ints) -> tuple[Ints, NDArray[np.float32]]:
    """Return the classes that a subnet gives for some rows, and the share that it gives each."""
    said, shares = [], []
    with torch.inference_mode():
        for x, extra in _chunks(data, rows):
            most = torch.softmax(bound(x, extra), 1).max(1)
            said.append(most.indices.numpy())
            shares.append(most.values.numpy())
    return np.concatenate(said).astype(np.int64), np.concatenate(shares)


def latencies(bound: Net, data: Data, batches: Sequence[int] = BATCHES, rounds: int = 30) -> dict[int, float]:
    """Return the median seconds of a forward pass by batch size, of fewer rounds where these take long."""
    result = {}
    with torch.inference_mode():
        for batch in batches:
            rows = np.resize(data.test, batch)
            x, extra = torch.from_numpy(data.x[rows]), torch.from_numpy(data.extra[rows])
            call = partial(bound, x, extra)
            timed(call, 3, ENOUGH / 10, least=1)
            result[batch] = float(np.median(timed(call, rounds, ENOUGH)))
    return result


def switching(net: Supernet, rounds: int = 2000) -> Switching:
    """Return what a switch costs; all ways alternate between the subnets."""
    names = list(net.bound)
    route = _routes(net, names, rounds)
    largest = net.bound[names[-1]]
    modules = {name: extract(net.space, one) for name, one in net.bound.items()}
    files = {name: state_bytes(module) for name, module in modules.items()}
    target = modules[names[-1]]
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    few = max(20, rounds // 50)
    views = timed(lambda: bind(net.space, dict(net.weights), net.space.subnets[-1], largest.statistics), few)
    in_place = timed(lambda: target.load_state_dict(state), few)
    again = timed(lambda: _reload(net, largest, files[names[-1]]), few)
    norms = sum(t.numel() * t.element_size() for b in net.bound.values() for pair in b.statistics for t in pair)
    shared = sum(tensor.numel() * tensor.element_size() for tensor in net.weights.values())
    separate = sum(_size(module) for module in modules.values())
    bound, loaded, built = (float(np.median(each)) for each in (views, in_place, again))
    p50, p99 = percentiles(route)
    return Switching(p50, p99, bound, loaded, built, shared + norms, separate)


def _routes(net: Supernet, names: Sequence[str], rounds: int) -> Floats:
    """Return the seconds from a name to the net that answers; nothing is built, copied or set."""
    clock, bound, found = time.perf_counter, net.bound, np.empty(rounds)
    for at in range(rounds):
        name = names[at % len(names)]
        began = clock()
        _ = bound[name]
        found[at] = clock() - began
    return found


def _reload(net: Supernet, bound: Ready, file: bytes) -> Extracted:
    module = blank(net.space, bound)
    module.load_state_dict(load(io.BytesIO(file).read()))
    return module


def _size(module: Extracted) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values() if tensor.ndim)


def timed(call: Callable[[], object], rounds: int, enough: float = math.inf, least: int = 5) -> Floats:
    """Return the seconds of each round; after ``enough`` of them in all no more than the ``least`` rounds are made."""
    found: list[float] = []
    while len(found) < rounds and (len(found) < least or sum(found) < enough):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return np.array(found)


def _chunks(data: Data, rows: Ints) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        yield torch.from_numpy(data.x[part]), torch.from_numpy(data.extra[part])
