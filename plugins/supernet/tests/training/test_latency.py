"""Timing and the cost of a model switch."""

from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import make_form_space  # noqa: E402
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    make_random_supernet,
)
from unfold_supernet.scheduling.speed import time_rounds  # noqa: E402
from unfold_supernet.training.latency import measure_switch_costs  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timed]


def test_slow_calls_get_few_rounds() -> None:
    """Slow calls stop after enough seconds but not before the minimum of rounds; fast calls get all rounds."""
    assert len(time_rounds(lambda: time.sleep(0.01), 30, enough_s=0.02)) == 5
    assert len(time_rounds(lambda: time.sleep(0.01), 30, enough_s=0.001, min_rounds=1)) == 1
    assert len(time_rounds(lambda: None, 30, enough_s=5.0)) == 30


@pytest.mark.parametrize("form", ["conv2d", "transformer"])
def test_switch_costs_far_less_than_loading_a_model(form: str) -> None:
    """The first answer after a switch costs less than loading a state; views are smaller than separate models."""
    supernet = make_random_supernet(make_form_space(form))
    cost = measure_switch_costs(supernet, 400)
    assert cost.switch_p50_s < cost.reload_s
    assert cost.shared_bytes < cost.separate_bytes
    assert set(cost.view_ratios) == set(supernet.bound)
    assert min(cost.view_ratios.values()) > 0
