"""The tile simulator."""

from __future__ import annotations

from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import cases
from unfold_supernet._types import IntArray
from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import SubnetLayers

CLOSE = 1 + 1e-9


def with_simpy(compute: Any, load: Any, whole: Any, tile: float, bandwidth: float, room: float, deep: bool) -> float:
    """Simulate a transfer process and a compute process; return when the last layer ends."""
    world = simpy.Environment()
    # whole bytes, as SimPy's container rounds
    space = simpy.Container(world, capacity=room, init=room)
    arrived = [simpy.Store(world) for _ in load]
    began = [world.event() for _ in range(len(load) + 1)]
    tiles = [_tiles(float(bytes_), tile) for bytes_ in load]

    def transfer() -> Any:
        for layer, sizes in enumerate(tiles):
            for index, size in enumerate(sizes):
                if not deep:
                    # the first tile may come while the layer before computes, the others when their own does
                    gate = layer - 1 if index == 0 else layer
                    if gate >= 0 and not began[gate].processed:
                        yield began[gate]
                yield space.get(size)
                yield world.timeout(size / bandwidth)
                arrived[layer].put(size)

    def engine() -> Any:
        for layer, sizes in enumerate(tiles):
            began[layer].succeed()
            share = load[layer] / whole[layer] if load[layer] else 0.0
            yield world.timeout(compute[layer] * (1 - share))
            for _ in sizes:
                size = yield arrived[layer].get()
                yield world.timeout(compute[layer] * share * size / load[layer])
                yield space.put(size)

    world.process(transfer())
    done = world.process(engine())
    world.run(done)
    return float(world.now)


def _tiles(bytes_: float, tile: float) -> list[float]:
    whole, rest = divmod(bytes_, tile)
    return [tile] * int(whole) + ([rest] if rest else [])


@settings(max_examples=40, deadline=None)
@given(cases())
def test_simulator_is_within_one_tile_of_the_closed_form(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Without deep prefetch, the simulator is within one tile per layer of the closed form."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    played = tile_simulator.simulate_latency(item, cached, machine, deep=False)
    allowed = tile_simulator.sum_tile_times(item, cached, machine)
    assert abs(played - cost_model.estimate_latency(item, cached, machine)) <= allowed * CLOSE + 1e-12


@settings(max_examples=40, deadline=None)
@given(cases())
def test_deep_prefetch_is_never_slower(case: tuple[SubnetLayers, Accelerator, IntArray]) -> None:
    """Deep prefetch never increases latency, and a larger buffer never does either."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    deep, near = (tile_simulator.simulate_latency(item, cached, machine, deep=way) for way in (True, False))
    assert deep <= near * CLOSE
    assert (
        tile_simulator.simulate_latency(item, cached, machine, deep=True, dynamic_bytes=2 * machine.dynamic_bytes)
        <= deep * CLOSE
    )
    assert deep * CLOSE >= max(item.compute_s.sum(), cost_model.count_traffic(item, cached) / machine.bandwidth)


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_simulator_equals_simpy_and_the_reference(case: tuple[SubnetLayers, Accelerator, IntArray], deep: bool) -> None:
    """Compiled code, the reference implementation and two SimPy processes give the same time."""
    found, machine, cached = case
    item = cost_model.build_work(found, machine)
    load = (cost_model.count_missing_bytes(item, cached) + item.activations).astype(float)
    whole = (item.weights + item.activations).astype(float)
    given_ = (
        item.compute_s,
        load,
        whole,
        float(machine.tile_bytes),
        machine.bandwidth,
        float(machine.dynamic_bytes),
        deep,
    )
    expected = with_simpy(*given_)
    assert tile_simulator.simulate_tiles(*given_) == pytest.approx(expected, rel=1e-9)
    assert tile_simulator.simulate_tiles_reference(*given_) == pytest.approx(expected, rel=1e-9)
