"""Sessions of ONNX Runtime and the memory that they hold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from unfold_supernet.family.onnx_session import open_session, read_resident_bytes, release_free_memory  # noqa: E402

WIDE, ROWS = 4096, 4096
MAP_BYTES = WIDE * ROWS * 4


def make_wide_model() -> bytes:
    """Make a small model with large feature maps: 16 numbers, 4,096 between two layers, and 2 outputs."""
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in
               (("a", (16, WIDE)), ("b", (WIDE, 2)), ("c", (WIDE,)))]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Mul", ["h", "c"], ["i"]),
        helper.make_node("Sin", ["i"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "wide", inputs, outputs, weights)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_session_returns_the_memory_of_its_feature_maps() -> None:
    """After a large batch, members hold their weights only; a session that keeps its maps holds these too."""
    content, x = make_wide_model(), np.ones((ROWS, 16), np.float32)
    open_session(content).run(None, {"x": x[:1]})
    before = read_resident_bytes()
    sessions = [open_session(content) for _ in range(3)]
    for session in sessions:
        session.run(None, {"x": x})
    assert read_resident_bytes() - before < MAP_BYTES / 2
    keeping = open_session(content, keeps_maps=True)
    keeping.run(None, {"x": x})
    assert read_resident_bytes() - before > MAP_BYTES / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_session_holds_its_weights_once(tmp_path: Path) -> None:
    """The content of its file is not kept beside them, and closed sessions leave room for others."""
    path, table = tmp_path / "table.onnx", numpy_helper.from_array(np.ones((4096, 4096), np.float32), "table")
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4096])
    graph = helper.make_graph([helper.make_node("Gather", ["table", "x"], ["y"])], "table", [ids], [rows], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    del table, graph, model
    content = make_wide_model()
    references, small = sys.getrefcount(content), open_session(content)
    assert sys.getrefcount(content) == references
    before = read_resident_bytes()
    session = open_session(path)
    assert read_resident_bytes() - before < 1.5 * path.stat().st_size
    del session, small
    release_free_memory()
    assert read_resident_bytes() - before < 0.5 * path.stat().st_size


def test_later_writes_to_external_data_do_not_change_a_session(tmp_path: Path) -> None:
    """A session holds its weights: overwriting their file keeps its outputs, and emptying it ends no process."""
    path, data = tmp_path / "wide.onnx", tmp_path / "wide.data"
    onnx.save_model(
        onnx.load_model_from_string(make_wide_model()), str(path), save_as_external_data=True, location=data.name
    )
    session, x = open_session(path), np.ones((1, 16), np.float32)
    expected = session.run(None, {"x": x})[0]
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.write(bytes(size))
    assert np.array_equal(session.run(None, {"x": x})[0], expected)
    data.write_bytes(b"")
    assert np.array_equal(session.run(None, {"x": x})[0], expected)
