"""Shared by the tests of the plugin: specs and runs, and small random subnets and accelerators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from unfold_supernet._types import IntArray
from unfold_supernet.accelerator.hardware import Accelerator, get_presets
from unfold_supernet.accelerator.layers import Family, Layer, SubnetLayers, tabulate_subnet
from unfold_supernet.family.datasets import Dataset, load_dataset
from unfold_supernet.family.space_builder import InputShape, build_space
from unfold_supernet.networks.space import Space
from unfold_supernet.schema.space import SpaceSpec
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.schema.training import DataSpec, TrainingSpec
from unfold_supernet.training.problem import TrainingOptions
from unfold_supernet.verbs.build import build_data_options, build_space_options, build_training_options
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

KIB = 1024


def parse_spec(text: str) -> SupernetSpec:
    """Validate a spec in YAML."""
    return validate(SupernetSpec, parse(text, "t.yaml"))


def make_run(folder: Path, **fields: Any) -> Run:
    """Make a run in a folder."""
    return Run(directory=RunDir(folder), engine=LocalEngine(1), **fields)


def make_space(spec: SpaceSpec, channels: int, size: tuple[int, ...], extra: int, classes: int) -> Space:
    """Build the space of a spec for inputs of a shape."""
    return build_space(build_space_options(spec), InputShape(channels, size, extra, classes))


def make_options(**fields: Any) -> TrainingOptions:
    """Make training options: the spec's defaults with some fields changed."""
    return build_training_options(TrainingSpec(**fields))


def load_data(spec: DataSpec, run: Run, form: str = "conv1d") -> Dataset:
    """Load the examples of a spec."""
    return load_dataset(build_data_options(spec, run), run.seed, form=form)


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


def nets() -> st.SearchStrategy[SubnetLayers]:
    """Draw a net of one to eight layers."""
    return st.lists(layers(), min_size=1, max_size=8).map(
        lambda found: tabulate_subnet("n", [str(index) for index in range(len(found))], dict(_named(found)), 70.0)
    )


def machines() -> st.SearchStrategy[Accelerator]:
    """Draw a machine: any preset, with bandwidth, clock and buffers drawn."""
    return st.builds(
        lambda preset, bandwidth, clock, dynamic, tile, streaming, weight, value: replace(
            preset,
            bandwidth=bandwidth,
            clock_hz=clock,
            dynamic_bytes=dynamic * KIB,
            tile_bytes=tile * KIB,
            streaming_bytes=streaming,
            weight_bytes=weight,
            value_bytes=value,
        ),
        st.sampled_from(list(get_presets().values())),
        st.floats(1e8, 1e11),
        st.floats(5e7, 1e9),
        st.integers(64, 2048),
        st.integers(1, 32),
        st.integers(1 << 12, 1 << 20),
        *(st.sampled_from([1, 2, 4]),) * 2,
    )


def graphs(of: SubnetLayers) -> st.SearchStrategy[IntArray]:
    """Draw a sub-graph of a net: any part of the kernels and the depth of each layer."""
    shares = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=len(of.table), max_size=len(of.table))
    return shares.map(lambda drawn: part(of, np.array(drawn)))


def part(of: SubnetLayers, shares: np.ndarray) -> IntArray:
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
        found.append(tabulate_subnet(str(index), places, rows, 70.0 + index))
    return Family("random", tuple(places), tuple(found))


def _named(found: list[Layer]) -> dict[str, Layer]:
    return {str(index): layer for index, layer in enumerate(found)}
