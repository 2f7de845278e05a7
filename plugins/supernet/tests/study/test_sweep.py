"""What a cached subgraph saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import MACHINE, random_family
from unfold_supernet.accelerator import (
    reference_families,
    scheduler,
)
from unfold_supernet.accelerator.hardware import EnergyModel, get_presets
from unfold_supernet.accelerator.layers import count_weights
from unfold_supernet.accelerator.queries import draw_queries
from unfold_supernet.report.accelerator import draw_roofline
from unfold_supernet.study import published, sweep


@pytest.mark.parametrize("name", sorted(reference_families.get_reference_spaces()))
def test_traffic_saved_is_the_cached_fraction(name: str) -> None:
    """A buffer smaller than the core saves exactly its bytes, at any bandwidth."""
    family = reference_families.build_reference_family(name)
    for bandwidth in (1e9, 19.2e9):
        found = sweep.build_setup(family, replace(MACHINE, persistent_bytes=2**20, bandwidth=bandwidth), ("stall",))
        held = int(count_weights(found.cached.graph).sum())
        assert held > 0.999 * 2**20
        for index, item in enumerate(found.works):
            whole = int(item.weights.sum() + item.activations.sum())
            assert 1 - found.layered.bytes[index, found.static_column] / whole == pytest.approx(held / whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1000, 400_000), st.sampled_from(sorted(scheduler.POLICIES)))
def test_static_subgraph_fits_the_stream(seed: int, room: int, policy: str) -> None:
    """The static subgraph saves nearly the most traffic for the subnets that the stream uses, within 0.5 %."""
    asked = draw_queries(200, "bursty", seed)
    plain = sweep.build_setup(random_family(seed), replace(MACHINE, persistent_bytes=room), ("stall",))
    found = sweep.fit_to_stream(plain, asked, policy)
    wanted = asked.scale_targets(found.layered, policy).enforced
    # the nets that answer while nothing is kept, one query after the other
    none = [
        scheduler.run_queries(wanted[at : at + 1], found.layered, 1e9, policy=policy).accuracy
        for at in range(wanted.size)
    ]
    nets = np.searchsorted(found.layered.accuracy, none)
    kept = found.layered.hit * [[item.subnet.weights.sum()] for item in found.works]
    saved = kept[nets].sum(axis=0)
    assert saved[found.static_column] >= 0.995 * saved.max() - 1e-6
    assert saved[found.static_column] >= 0.995 * saved[plain.static_column] - 1e-6


def test_a_machine_without_energy_saves_none() -> None:
    """A chip with every energy at zero has a saving of zero, not an undefined one."""
    free = replace(MACHINE, energy=EnergyModel(0.0, 0.0, 0.0, 0.0))
    asked = draw_queries(50, "random", 0)
    (point,) = sweep.sweep_buffers(random_family(0), free, [1000], [1e9], asked, "strict-accuracy")
    assert point.energy == 0.0


def test_larger_buffers_save_no_less() -> None:
    """Saved traffic grows with the buffer, and the buffer needed for a claim shrinks with the bandwidth."""
    family = reference_families.build_reference_family("ofa-mobilenetv3")
    asked = draw_queries(500, "random", 0)
    buffers = [2**18 * size for size in (1, 4, 8, 16)]
    points = list(sweep.sweep_buffers(family, MACHINE, buffers, [4e9, 1e9], asked, "strict-accuracy"))
    for bandwidth in (4e9, 1e9):
        saved = [point.traffic_best for point in points if point.bandwidth == bandwidth]
        assert saved == sorted(saved)
    lines = [line for line in published.check_claims(points, buffers[1]) if line.claim.quantity == "latency"]
    for claim in published.get_claims():
        if claim.quantity == "latency":
            wide, narrow = (line.needed_bytes for line in lines if line.claim == claim)
            assert narrow is not None
            assert wide is None or narrow <= wide


@pytest.mark.parametrize("name", sorted(reference_families.get_reference_spaces()))
@pytest.mark.parametrize("preset", sorted(get_presets()))
def test_no_layer_is_above_the_roofline(name: str, preset: str) -> None:
    """Whatever the engine, a layer computes no faster than the array and its transfers allow."""
    found = sweep.build_setup(reference_families.build_reference_family(name), get_presets()[preset], ("stall",))
    bound, *groups = draw_roofline(found).series
    assert bound.y[1] == bound.y[2] == max(bound.y)
    for series in groups:
        allowed = np.minimum(np.array(series.x) * found.machine.bandwidth / 1e9, max(bound.y))
        assert (np.array(series.y) <= allowed * (1 + 1e-9)).all()
