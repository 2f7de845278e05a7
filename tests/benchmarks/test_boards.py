"""Networks of published board measurements: their size, and the calibration of a board."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.board_networks import list_board_rates
from benchmarks.board_rates import calibrate_board, measure_demand, predict_board_rates

PUBLISHED_GOP = {
    "cf_resnet50": 7.7, "cf_resnet18": 3.65, "cf_inceptionv1": 3.16, "cf_inceptionv3": 11.4, "cf_mobilenetv2": 0.59,
    "cf_squeeze": 0.76, "tf_inceptionv1": 3.0, "tf_inceptionv3": 11.45, "tf_mobilenetv1_0.25_128": 0.02715,
    "tf_mobilenetv1_0.5_160": 0.15007, "tf_mobilenetv1_1.0_224": 1.14, "tf_mobilenetv2_1.0": 0.59,
    "tf_mobilenetv2_1.4": 1.16, "tf_resnetv1_50": 6.97, "tf_resnetv1_101": 14.4, "tf_resnetv1_152": 21.83,
    "tf_vgg16": 30.96, "tf_vgg19": 39.28, "tf_mlperf_resnet50": 8.19,
}  # fmt: skip
"""Operations in the names of the published table."""


def test_networks_have_the_published_operations() -> None:
    """The layers of every network add up to the operations that its published name states."""
    for rate in list_board_rates():
        if re.match("torchvision", rate.name):
            continue
        assert measure_demand(rate).gop == pytest.approx(PUBLISHED_GOP[rate.name], rel=0.03), rate.name


def test_calibration_recovers_a_board() -> None:
    """Rates of a board with a known host time and bandwidth give these two back, without error."""
    demands = [measure_demand(rate) for rate in list_board_rates()]
    host_s, byte_s = 3e-8, 2e-10
    exact = [
        replace(
            demand,
            rate=replace(demand.rate, zcu104=1 / (demand.compute_s + demand.pixels * host_s + demand.bytes * byte_s)),
        )
        for demand in demands
    ]
    assert calibrate_board(exact) == pytest.approx((host_s, byte_s))


def test_a_network_is_predicted_without_its_own_rate() -> None:
    """Errors are not all zero, and no network of the same architecture is used: the figures are held out."""
    rows = {row["network"]: row for row in predict_board_rates()}
    resnets = {row["host_ms"] for name, row in rows.items() if "resnet" in name}
    assert len(resnets) == 1
    assert rows["tf_vgg16"]["gb_per_s"] != rows["cf_resnet50"]["gb_per_s"]
