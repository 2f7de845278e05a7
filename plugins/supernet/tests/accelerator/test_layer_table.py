"""A user's layer table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_supernet.accelerator import cost_model
from unfold_supernet.accelerator.cost_model import count_cycles
from unfold_supernet.accelerator.hardware import get_presets
from unfold_supernet.accelerator.layer_table import read_layer_table
from unfold_supernet.accelerator.layers import INPUT, count_weights
from unfoldkit.api import UnfoldError

HEAD = "net,accuracy,layer,kernels,channels,window,out,stride,groups\n"
NETS = """\
small,70.1,stem,16,3,3,56,2,1
small,70.1,head,100,16,,1,,
large,76.5,stem,24,3,7,56,2,1
large,76.5,apart,24,24,5x3,56x55,1,24
large,76.5,grouped,48,24,3,28,2,4
large,76.5,tokens,144,48,1,49x1,2,
large,76.5,head,100,48,,1,,
"""


def write_layer_table(folder: Path, text: str) -> Path:
    """Write a layer table with these rows."""
    path = folder / "nets.csv"
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def test_layer_table_is_read_as_written(tmp_path: Path) -> None:
    """Weights, operations, maps and cycles of each layer match a count by hand."""
    family = read_layer_table(write_layer_table(tmp_path, NETS), "mine")
    assert family.layers == ("stem", "apart", "grouped", "tokens", "head")
    small, large = family.subnets
    assert (small.name, large.name, small.accuracy) == ("small", "large", 70.1)
    weights = [24 * 3 * 49, 24 * 15, 48 * 6 * 9, 144 * 48, 100 * 48]
    places = [56 * 56, 56 * 55, 28 * 28, 49, 1]
    np.testing.assert_array_equal(large.weights, weights)
    np.testing.assert_array_equal(large.macs, np.multiply(weights, places))
    # the stride is along both edges, but not along that of a signal
    np.testing.assert_array_equal(large.table[:, INPUT], [3 * 112**2, 24 * 56 * 55, 24 * 56**2, 48 * 98, 48])
    np.testing.assert_array_equal(small.weights, [16 * 27, 0, 0, 0, 1600])
    fill = 10
    by_hand = [6 * 56 * 56 + fill, 2 * 56 * 55 + fill, 4 * (28 * 28 + fill), 2 * (49 + fill), 2 * (1 + fill)]
    np.testing.assert_array_equal(count_cycles(large, get_presets()["zcu104"]), by_hand)
    assert int(count_weights(family.core).sum()) == int(small.weights.sum())
    nothing = np.zeros_like(large.graph)
    whole = sum(weights) + 3 * 112**2 + 100
    assert cost_model.count_traffic(cost_model.build_work(large, get_presets()["alveo-u50"]), nothing) == whole


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ("a,70,x,8,3,3,8,1,1\na,71,y,8,8,3,8,1,1\n", 3, "subnet a has an accuracy of 70 % above"),
        ("a,70,x,8,3,3,8,1,1\na,70,x,8,8,3,8,1,1\n", 3, "subnet a has layer x twice"),
        ("a,70,x,8,6,3,8,1,4\n", 2, "4 groups do not divide 8 kernels and 6 channels"),
        ("a,70,x,2.5,6,3,8,1,1\n", 2, "'2.5' is not a positive integer"),
        ("a,70,x,8,6,3,0x4,1,1\n", 2, "'0' is not a positive integer"),
        ("a,700,x,8,6,3,4,1,1\n", 2, "an accuracy cannot be 700 %"),
        (
            "a,70,x,8,3,,8,,\na,70,y,8,8,,8,,\nb,72,y,8,3,,8,,\nb,72,x,8,8,,8,,\n",
            5,
            "in another subnet x comes before y",
        ),
        ("a,70,x,10000000,10000000,3,10000000,1,1\n", 2, "layer x has more than 1e+14 operations or values"),
        ("", 0, "the table contains no layer"),
    ],
)
def test_invalid_layer_tables_are_refused(tmp_path: Path, rows: str, line: int, message: str) -> None:
    """Invalid layers and families are refused with their line."""
    with pytest.raises(UnfoldError) as caught:
        read_layer_table(write_layer_table(tmp_path, rows), "mine")
    found = caught.value.diagnostics[0]
    assert message in found.message
    assert found.line == line
