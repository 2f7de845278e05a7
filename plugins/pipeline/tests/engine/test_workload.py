"""Requests of an engine are checked when they are built."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.engine.simulation.workload import build_requests
from unfoldkit.api import UnfoldError


def test_a_shared_prefix_shares_its_full_blocks() -> None:
    """Equal leading tokens give equal contents in whole blocks, and generated tokens never do."""
    requests = build_requests(
        np.array([0.0, 1.0]),
        np.array([10, 12]),
        np.array([9, 9]),
        block_tokens=4,
        shared_tokens=np.array([0, 11]),
        shared_with=np.array([-1, 0]),
    )
    first, second = (
        requests.list_contents()[requests.first_content[index] : requests.first_content[index + 1]] for index in (0, 1)
    )
    assert first[:2].tolist() == second[:2].tolist()
    assert set(first[2:]).isdisjoint(second[2:])


@pytest.mark.parametrize(
    ("arrivals", "inputs", "message"),
    [
        ([1.0, 0.0], [1, 1], "not in order"),
        ([0.0, 1.0], [1, 0], "at least one"),
        ([0.0], [1, 1], "one value per request"),
    ],
)
def test_impossible_requests_are_rejected(arrivals: list[float], inputs: list[int], message: str) -> None:
    """Times out of order, requests without tokens and missing values are errors."""
    with pytest.raises(UnfoldError, match=message):
        build_requests(np.array(arrivals), np.array(inputs), np.array([1, 1]))
