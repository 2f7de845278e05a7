"""Parts of serve-load and serve-artifact: generator of gRPC, forms of bodies, graph of recorded services."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bodies import form, probabilities
from benchmarks.grpc_load import EMPTY, METHOD
from benchmarks.recorded_graph import Recorded, answer_by_graph, replay
from benchmarks.servers import cores, grpc_generator, started, write_messages

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("taskset") is None, reason="needs a C compiler and taskset"
)


@needs_compiler
def test_calls_are_counted_and_their_answers_kept(tmp_path: Path) -> None:
    """Each answer is there once per message; a call that the server does not know fails."""
    (tmp_path / "empty").write_bytes(b"same")
    messages = write_messages(tmp_path / "calls", [b"one", b"two", b"x" * 5000])
    core, driver_core = cores()
    with grpc_generator(driver_core) as driver, started(EMPTY, core, {}, tmp_path / "log") as (port, _):
        found, answers = driver.drive(port, METHOD, messages, (2, 3), 0.1, 0.4)
        assert found["ok"] > 0
        assert (found["failed"], found["broken"], found["unlike"]) == (0, 0, 0)
        assert answers == [(0, b"same"), (1, b"same"), (2, b"same")]
        found, answers = driver.drive(port, "/nonesuch/Call", messages, (1, 1), 0.1, 0.2)
        assert (found["ok"], found["failed"], answers) == (0, found["calls"], [])


def test_numbers_are_found_in_each_form_of_an_answer() -> None:
    """JSON of all servers and raw bytes give the same numbers."""
    raw = np.array([0.25, 0.75], "<f4").tobytes()
    head = b'{"outputs":[{"name":"p","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    assert probabilities(head + raw, {"Inference-Header-Content-Length": str(len(head))}) == [0.25, 0.75]
    for text in (b"[0.25,0.75]", b'{"p":[0.25,0.75]}', b'{"outputs":[{"data":[0.25,0.75]}]}'):
        assert probabilities(text, {}) == [0.25, 0.75]
    binary = form("binary", 2)
    assert (
        binary.encode([1.0, 2.0])[int(binary.headers["Inference-Header-Content-Length"]) :]
        == np.array([1.0, 2.0], "<f4").tobytes()
    )


def test_a_graph_of_recorded_services_answers_as_their_plan() -> None:
    """Gates read what was recorded; a confidence that equals its cut is enough."""
    recorded = Recorded(
        labels=("a", "b", "c"),
        names=("cheap", "dear"),
        answers=np.array([[0, 1], [2, 1], [1, 2], [2, 0]]),
        confidences=np.array([[0.9, 0.5], [0.8, 0.1], [0.79, 0.0], [0.0, 1.0]]),
        prices=np.array([1.0, 10.0]),
        cuts=(0.8,),
    )
    assert replay(recorded) == [("a", 1.0), ("c", 1.0), ("c", 11.0), ("a", 11.0)]
    assert answer_by_graph(recorded) == replay(recorded)
