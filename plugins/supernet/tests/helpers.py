"""Shared by the tests of the plugin: specs and runs, and small random subnets and accelerators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator import cost_model, latency_table, subgraph_cache
from unfold_supernet.accelerator.hardware import Accelerator, get_presets
from unfold_supernet.accelerator.latency_table import LatencyTable
from unfold_supernet.accelerator.layers import Family, Layer, SubnetLayers, tabulate_subnet
from unfold_supernet.family.datasets import Dataset, load_dataset
from unfold_supernet.family.space_builder import InputShape, build_space
from unfold_supernet.networks.space import Space
from unfold_supernet.scheduling.policies import (
    Policy,
    SubnetProfile,
    make_cheapest,
    make_fitted,
    make_fixed,
    make_slackfit,
    make_steady,
)
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
    """Draw a subnet of one to eight layers."""
    return st.lists(layers(), min_size=1, max_size=8).map(
        lambda found: tabulate_subnet("n", [str(index) for index in range(len(found))], dict(_named(found)), 70.0)
    )


def machines() -> st.SearchStrategy[Accelerator]:
    """Draw an accelerator: any preset, with random bandwidth, clock, buffers and precision."""
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
    """Draw a subgraph of a subnet: a fraction of the kernels and the depth of each layer."""
    shares = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=len(of.table), max_size=len(of.table))
    return shares.map(lambda drawn: part(of, np.array(drawn)))


def part(of: SubnetLayers, shares: np.ndarray) -> IntArray:
    """Cut a subgraph with these fractions [layers, 2] of kernels and depth."""
    graph = of.graph.copy()
    graph[:, :2] = np.floor(graph[:, :2] * shares)
    graph[graph.prod(axis=1) == 0] = 0
    return graph


def random_family(seed: int, count: int = 4) -> Family:
    """Build a family of random subnets with common prefixes, each with its own accuracy."""
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


def make_list_space(**lists: object) -> Space:
    """Build a space of three widths, depths and two kernels, with some lists replaced."""
    given_ = {"expand": (0.25, 0.5, 1.0), "depth": (1, 2, 3), "kernel": (3, 5), "coupling": "independent"}
    stages = ({"width": 8}, {"width": 12})
    return make_space(SpaceSpec.model_validate({"stages": stages, **given_, **lists}), 3, (9, 7), 2, 4)


REPLAY_PROFILES = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.002), (32, 0.006))),
    SubnetProfile("middle", 85.0, ((1, 0.002), (8, 0.008), (32, 0.024))),
    SubnetProfile("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)


def draw_arrivals(rate: float, count: int, seed: int) -> FloatArray:
    """Draw Poisson arrivals."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def write_trace(folder: Path, text: str) -> Path:
    """Write a trace."""
    path = folder / "trace.csv"
    path.write_text(text, "utf-8")
    return path


PROFILES = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.003), (32, 0.008))),
    SubnetProfile("middle", 85.0, ((1, 0.002), (8, 0.008), (32, 0.024))),
    SubnetProfile("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)


SLO = 0.03


def make_policies() -> dict[str, Policy]:
    """Build every policy over the three subnets."""
    return {
        "slackfit": make_slackfit(PROFILES), "fitted": make_fitted(PROFILES), "steady": make_steady(PROFILES, SLO),
        "cheapest": make_cheapest(PROFILES), "large": make_fixed(PROFILES, 2),
    }  # fmt: skip


@st.composite
def cases(draw: Any) -> tuple[SubnetLayers, Accelerator, IntArray]:
    """Draw a subnet, an accelerator and a cached subgraph."""
    found = draw(nets())
    return found, draw(machines()), draw(graphs(found))


MACHINE = replace(get_presets()["zcu104"], bandwidth=1e9)


def build_tables(
    family: Family, machine: Accelerator
) -> tuple[LatencyTable, list[subgraph_cache.CachedSubgraph], list[cost_model.SubnetWork]]:
    """Build the latency table of a family with its candidates and works."""
    works = [cost_model.build_work(net, machine) for net in family.subnets]
    found = subgraph_cache.list_candidates(family, works, machine)
    return latency_table.build_latency_table(works, found, machine), found, works


LABELS = np.repeat([3, 5], 20)


def load_arrays(folder: Path, form: str, given: dict[str, Any] | None = None, **arrays: Any) -> Dataset:
    """Store arrays in a file and load them for a form."""
    np.savez(folder / "d.npz", **{"y": LABELS, **arrays})
    run = make_run(folder, base=folder)
    return load_data(DataSpec.model_validate({"source": "file", "path": "d.npz", **(given or {})}), run, form)


PLAN_SPEC = """
version: 1
kind: supernet
name: t
family: ofa-mobilenetv3
accelerator: {persistent_buffer: 1 MiB, bandwidth: 2 GB/s, sizes: [512 KiB, 2 MiB], bandwidths: [1 GB/s]}
queries: {count: 500}
"""

HANDOFF_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 8}, {width: 16}], expand: [0.5, 1], depth: [1, 2], resolution: [0.5, 1]}
training: {epochs: 12, batch: 64, alone: false}
serving: {slo: 20 ms, escalate: 60%}
accelerator: {persistent_buffer: 16 KiB, sizes: [16 KiB], bandwidths: [4 GB/s]}
"""


def make_form_space(form: str, extra: int = 2) -> Space:
    """Build a space of every combination of three widths, two depths and two kernels."""
    lists = {"expand": (0.25, 0.5, 1.0), "depth": (1, 2), "kernel": (3, 5), "coupling": "independent"}
    lists |= {} if form == "mlp" else {"resolution": (1.0, 0.5)}
    lists |= {"kernel": (1,), "attention": {"width": 12, "heads": 3}} if form == "transformer" else {}
    given = SpaceSpec.model_validate({"form": form, "stages": ({"width": 8}, {"width": 12}), **lists})
    sizes: dict[str, tuple[int, ...]] = {"conv1d": (20,), "conv2d": (9, 7), "mlp": (1,), "transformer": (9, 7)}
    return make_space(given, 3, sizes[form], extra, 4)
