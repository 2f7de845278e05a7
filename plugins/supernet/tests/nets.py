"""Small random nets and machines that the laws are tried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from unfold_supernet.accelerator.hardware import Machine, presets
from unfold_supernet.accelerator.layers import Family, Layer, Net, net
from unfold_supernet.arrays import Ints

KIB = 1024


def layers() -> st.SearchStrategy[Layer]:
    """Draw a dense or depthwise layer."""
    dense = st.builds(
        lambda kernels, depth, size, out: Layer(kernels, depth, (size, size), (out, out), depth * out * out),
        st.integers(1, 300),
        st.integers(1, 300),
        st.sampled_from([1, 3, 5, 7]),
        st.integers(1, 28),
    )
    apart = st.builds(
        lambda channels, size, out: Layer(channels, 1, (size, size), (out, out), channels * out * out, channels),
        st.integers(1, 300),
        st.sampled_from([3, 5]),
        st.integers(1, 28),
    )
    return dense | apart


def nets() -> st.SearchStrategy[Net]:
    """Draw a net of one to eight layers."""
    return st.lists(layers(), min_size=1, max_size=8).map(
        lambda found: net("n", [str(index) for index in range(len(found))], dict(_named(found)), 70.0)
    )


def machines() -> st.SearchStrategy[Machine]:
    """Draw a machine: any preset, with bandwidth, clock and buffers drawn."""
    return st.builds(
        lambda preset, bandwidth, clock, dynamic, tile, streaming, weight, value: replace(
            preset,
            bandwidth=bandwidth,
            clock=clock,
            dynamic=dynamic * KIB,
            tile=tile * KIB,
            streaming=streaming,
            weight=weight,
            value=value,
        ),
        st.sampled_from(list(presets().values())),
        st.floats(1e8, 1e11),
        st.floats(5e7, 1e9),
        st.integers(64, 2048),
        st.integers(1, 32),
        st.integers(1 << 12, 1 << 20),
        *(st.sampled_from([1, 2, 4]),) * 2,
    )


def graphs(of: Net) -> st.SearchStrategy[Ints]:
    """Draw a sub-graph of a net: any part of the kernels and the depth of each layer."""
    shares = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=len(of.table), max_size=len(of.table))
    return shares.map(lambda drawn: part(of, np.array(drawn)))


def part(of: Net, shares: np.ndarray) -> Ints:
    """Return the sub-graph with these shares [layers, 2] of kernels and depth."""
    graph = of.graph.copy()
    graph[:, :2] = np.floor(graph[:, :2] * shares)
    graph[graph.prod(axis=1) == 0] = 0
    return graph


def random_family(seed: int, count: int = 4) -> Family:
    """Return nets of the same layers that share prefixes, each with its own accuracy."""
    rng = np.random.default_rng(seed)
    places = [f"l{index}" for index in range(6)]
    found = []
    for index in range(count):
        rows = {
            place: Layer(int(rng.integers(8, 200)), int(rng.integers(8, 200)), (3, 3), (7, 7), 4096)
            for place in places
            if rng.random() < 0.8 or place == "l0"
        }
        found.append(net(str(index), places, rows, 70.0 + index))
    return Family("random", tuple(places), tuple(found))


def _named(found: list[Layer]) -> dict[str, Layer]:
    return {str(index): layer for index, layer in enumerate(found)}
