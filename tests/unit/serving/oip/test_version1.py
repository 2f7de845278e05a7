"""The first version of the protocol, and the extensions of Triton over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.serving.client import Server, rows, serving

PREDICT = "/v1/models/total:predict"


@pytest.fixture(scope="module")
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


def test_instances_give_predictions(total: Server) -> None:
    """One instance per row, plain or as an object, gives one prediction with every output."""
    expected = {"predictions": [{"total": 6.0, "twice": [6.0, 6.0]}, {"total": 15.0, "twice": [15.0, 15.0]}]}
    assert total.ask(PREDICT, {"instances": [[1, 2, 3], [4, 5, 6]]}).json == expected
    assert total.ask(PREDICT, {"instances": [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]}).json == expected
    assert total.ask("/v1/models").json == {"models": ["total"]}
    assert total.ask("/v1/models/total").json == {"name": "total", "ready": True}


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({}, 400, "instances"),
        ({"instances": []}, 400, "at least one row"),
        ({"instances": [[1, 2]]}, 400, "instance 0: input 'x' must be a list of 3"),
        ({"instances": [[1, 2, 3], 4]}, 400, "instance 1: input 'x' must be a list of 3"),
        ({"instances": [{"y": 1}]}, 400, "no input 'y'"),
        ({"instances": [{}]}, 400, "lacks the input 'x'"),
        ({"instances": [[1, 2, "3"]]}, 400, "got `str`"),
        ({"instances": [[666, 0, 0]]}, 500, "the model failed"),
        ({"instances": [[409, 0, 0]]}, 409, "no"),
        ({"instances": [[0, 0, 0]] * 1025}, 413, "at most 1024"),
        (b"[" * 1000, 400, ""),
    ],
)
def test_a_wrong_instance_is_reported(total: Server, body: Any, status: int, expected: str) -> None:
    """Each mistake of a client has its status, and names the instance."""
    reply = total.ask(PREDICT, body)
    assert (reply.status, expected in reply.json["error"]) == (status, True), reply.json


def test_statistics_and_configuration(total: Server) -> None:
    """Statistics count requests, rows and batches; the configuration names tensors as Triton does."""
    before = total.ask("/v2/models/total/stats").json["model_stats"][0]
    for _ in range(3):
        total.ask("/v2/models/total/infer", rows([1, 2, 3], [4, 5, 6]))
    after = total.ask("/v2/models/stats").json["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 3
    success = [item["inference_stats"]["success"] for item in (before, after)]
    assert success[1]["count"] - success[0]["count"] == 3
    assert success[1]["ns"] > success[0]["ns"]
    config = total.ask("/v2/models/total/config").json
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP64", "dims": [3]}]
    assert total.ask("/v2/models/total/versions/1/config").json == config
