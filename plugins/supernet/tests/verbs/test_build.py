"""Resolving a spec."""

from __future__ import annotations

from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.layers import Layer, tabulate_subnet
from unfold_supernet.schema.accelerator import AcceleratorSpec
from unfold_supernet.verbs.build import build_machine


def test_small_dynamic_buffer_holds_two_tiles() -> None:
    """Even a small dynamic buffer holds two tiles, as the closed form assumes."""
    whole = tabulate_subnet("n", ["l"], {"l": Layer(720, 512, (3, 3), (14, 14), 512 * 14 * 14)}, 70.0)
    for room in ("16 KiB", "20 KiB", "1 MiB"):
        machine = build_machine(AcceleratorSpec.model_validate({"dynamic_buffer": room, "bandwidth": "3.3 GB/s"}))
        item = cost_model.build_work(whole, machine)
        empty = whole.graph * 0
        apart = abs(
            tile_simulator.simulate_latency(item, empty, machine, deep=False)
            - cost_model.estimate_latency(item, empty, machine)
        )
        assert apart <= tile_simulator.sum_tile_times(item, empty, machine) * (1 + 1e-9)
