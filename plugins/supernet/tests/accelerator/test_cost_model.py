"""The closed form of latency and traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import cases, part
from unfold_supernet._types import IntArray
from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.hardware import Accelerator, get_presets
from unfold_supernet.accelerator.layers import Layer, SubnetLayers, count_hits, tabulate_subnet
from unfold_supernet.accelerator.reference_families import build_reference_family

CLOSE = 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(cases())
def test_hits_and_misses_sum_to_the_weights(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """In every layer hits and misses are non-negative and sum to the weights, each as often as they are loaded."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    hit, miss = count_hits(found.graph, cached) * machine.weight_bytes, cost_model.count_missing_bytes(item, cached)
    assert (hit * item.loads + miss == item.weights * item.loads).all()
    assert (hit >= 0).all()
    assert (miss >= 0).all()


@pytest.mark.e2e
@settings(max_examples=40, deadline=None)
@given(cases(), st.floats(1, 10))
def test_more_resources_are_never_slower(case: tuple[SubnetLayers, Accelerator, IntArray], factor: float) -> None:
    """Latency does not increase with more bandwidth, a faster clock, or a larger cached subgraph."""
    found, machine, cached = case
    base = cost_model.estimate_latency(cost_model.build_work(found, machine), cached, machine)
    wide, quick = (
        replace(machine, bandwidth=machine.bandwidth * factor),
        replace(machine, clock_hz=machine.clock_hz * factor),
    )
    assert cost_model.estimate_latency(cost_model.build_work(found, wide), cached, wide) <= base * CLOSE
    assert cost_model.estimate_latency(cost_model.build_work(found, quick), cached, quick) <= base * CLOSE
    for share in (0.3, 0.7, 1.0):
        larger = np.maximum(cached, part(found, np.full((len(cached), 2), share)))
        assert cost_model.estimate_latency(cost_model.build_work(found, machine), larger, machine) <= base * CLOSE


@settings(max_examples=40, deadline=None)
@given(cases())
def test_latency_has_compute_and_bandwidth_as_lower_bounds(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Latency is at least the computation and the transfer time; a fully cached subnet loads no weights."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    time = cost_model.estimate_latency(item, cached, machine)
    assert time * CLOSE >= item.compute_s.sum()
    assert time * CLOSE >= cost_model.count_traffic(item, cached) / machine.bandwidth
    assert cost_model.count_traffic(item, found.graph) == item.activations.sum()


def test_empty_cache_equals_no_buffer() -> None:
    """An empty cache costs as much as an accelerator without a persistent buffer."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine = get_presets()["zcu104"]
    item = cost_model.build_work(found, machine)
    nothing = np.zeros_like(found.graph)
    assert cost_model.estimate_latency(item, nothing, machine) == cost_model.estimate_latency(
        item, nothing, replace(machine, persistent_bytes=0)
    )


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([2, 4]))
def test_wider_numbers_scale_traffic_only(case: tuple[SubnetLayers, Accelerator, IntArray], times: int) -> None:
    """Doubling the bytes of numbers doubles traffic; with doubled buffers and bandwidth, latency stays."""
    found, drawn, cached = case
    # partial sums have 32 bits at any precision: without tiles, none crosses
    machine = replace(drawn, weight_bytes=1, value_bytes=1, streaming_bytes=1 << 40)
    sizes = {
        name: getattr(machine, name) * times for name in ("bandwidth", "dynamic_bytes", "streaming_bytes", "tile_bytes")
    }
    wide = replace(machine, weight_bytes=times, value_bytes=times, **sizes)
    one, other = cost_model.build_work(found, machine), cost_model.build_work(found, wide)
    assert cost_model.count_traffic(other, cached) == times * cost_model.count_traffic(one, cached)
    assert cost_model.estimate_latency(other, cached, wide) == pytest.approx(
        cost_model.estimate_latency(one, cached, machine)
    )
    deep = [
        tile_simulator.simulate_latency(item, cached, on, deep=True) for item, on in ((one, machine), (other, wide))
    ]
    assert deep[0] == pytest.approx(deep[1])
    moved = cost_model.estimate_traffic_energy(other, cached, wide)
    assert moved == pytest.approx(times * cost_model.estimate_traffic_energy(one, cached, machine))


def test_weights_and_maps_have_separate_precision() -> None:
    """Wider weights add weight traffic, wider maps add input and result traffic; operations stay."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine, nothing = get_presets()["zcu104"], np.zeros((1, 4), np.int64)
    maps, weights = 2 * 64 * 196, 64 * 64 * 9
    for weight, value in ((1, 1), (4, 1), (1, 2), (2, 4)):
        item = cost_model.build_work(found, replace(machine, weight_bytes=weight, value_bytes=value))
        assert cost_model.count_traffic(item, nothing) == weights * weight + maps * value
        assert item.compute_s.sum() == cost_model.build_work(found, machine).compute_s.sum()


def test_batch_loads_its_weights_once() -> None:
    """A batch of eight takes eight times the computation and loads the weights once."""
    layer = Layer(64, 64, (3, 3), (14, 14), 64 * 196)
    found = tabulate_subnet("one", ["a"], {"a": layer}, 0.0)
    machine = get_presets()["zcu104"]
    one, eight = cost_model.build_work(found, machine), cost_model.build_work(found, machine, 8)
    assert eight.compute_s.sum() == pytest.approx(8 * one.compute_s.sum())
    assert eight.weights.sum() == one.weights.sum()


@pytest.mark.parametrize("name", ["ofa-mobilenetv3", "ofa-resnet50"])
def test_batch_traffic_is_bounded(name: str) -> None:
    """A batch moves at most as much as single inputs, and at least one load of weights, inputs and results."""
    small, large = get_presets()["zcu104"], replace(get_presets()["zcu104"], streaming_bytes=1 << 40)
    one = build_reference_family(name).subnets[-1]
    nothing, single = one.graph * 0, cost_model.count_traffic(cost_model.build_work(one, small), one.graph * 0)
    ends = cost_model.build_work(one, large).activations.sum()
    for batch in (2, 8, 64):
        moved, least = (
            cost_model.count_traffic(cost_model.build_work(one, chip, batch), nothing) for chip in (small, large)
        )
        assert least == one.weights.sum() + batch * ends
        assert least <= moved < batch * single
    assert moved > 4 * least
