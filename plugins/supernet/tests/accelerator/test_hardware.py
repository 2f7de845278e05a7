"""Cycles of the dataflows."""

from __future__ import annotations

from unfold_supernet.accelerator.cost_model import count_cycles
from unfold_supernet.accelerator.hardware import get_presets
from unfold_supernet.accelerator.layers import Layer, tabulate_subnet


def layer_cycles(preset: str, kernels: int, depth: int, size: int, out: int) -> int:
    """Count the cycles of one dense layer."""
    layer = Layer(kernels, depth, (size, size), (out, out), 1)
    return int(count_cycles(tabulate_subnet("one", ["a"], {"a": layer}, 0.0), get_presets()[preset])[0])


def test_dot_product_array_takes_one_cycle_for_a_window() -> None:
    """The dot-product array computes 3 x 3 in one pass, 5 x 5 in three, 7 x 7 in six; 1 x 1 folds nine channels."""
    one = layer_cycles("zcu104", 72, 10, 3, 8)
    fill = one - 64
    assert 0 < fill < 20
    assert layer_cycles("zcu104", 72, 10, 5, 8) == 3 * 64 + fill
    assert layer_cycles("zcu104", 72, 10, 7, 8) == 6 * 64 + fill
    assert layer_cycles("zcu104", 72, 90, 1, 8) == 64 + fill
    assert layer_cycles("zcu104", 144, 20, 3, 8) == 2 * (2 * 64 + fill)
