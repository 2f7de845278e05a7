"""ONNX models that name files outside their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unfoldkit.errors import UnfoldError
from unfoldkit.safe_io.onnx_files import list_external_files, require_data_within

onnx = pytest.importorskip("onnx")


def external(location: str) -> Any:
    """Return a tensor of four bytes in a file."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(graph_tensors: tuple[Any, ...] = (), attribute: Any = None) -> Any:
    """Return a model with initializers, and a constant with an attribute."""
    node = onnx.NodeProto(op_type="Constant", output=["c"], attribute=[] if attribute is None else [attribute])
    graph = onnx.GraphProto(name="g", node=[node], initializer=graph_tensors)
    return onnx.ModelProto(ir_version=9, graph=graph, opset_import=[onnx.OperatorSetIdProto(version=17)])


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret", "link", "", ".", "in/../../secret"])
def test_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    """Absolute paths, ways out of the folder and links out of it are refused, as is the folder itself."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UnfoldError, match="outside its folder"):
        require_data_within(model((external(location),)).SerializeToString(), "m.onnx", folder)


def test_data_inside_the_folder_are_accepted(tmp_path: Path) -> None:
    """A file beside the model may hold its tensors; a complete model needs no folder."""
    require_data_within(model((external("w.bin"),)).SerializeToString(), "m.onnx", tmp_path)
    require_data_within(model().SerializeToString(), "m.onnx", None)
    with pytest.raises(UnfoldError, match="outside its folder"):
        require_data_within(model((external("w.bin"),)).SerializeToString(), "m.onnx", None)


def test_tensors_of_attributes_and_nested_graphs_are_found() -> None:
    """Every place that may hold a tensor is searched."""
    inner = onnx.GraphProto(name="i", initializer=[external("deep")])
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"))
    attributes = [
        onnx.AttributeProto(name="t", type=onnx.AttributeProto.TENSOR, t=external("t")),
        onnx.AttributeProto(name="ts", type=onnx.AttributeProto.TENSORS, tensors=[external("ts")]),
        onnx.AttributeProto(name="g", type=onnx.AttributeProto.GRAPH, g=inner),
        onnx.AttributeProto(name="gs", type=onnx.AttributeProto.GRAPHS, graphs=[inner]),
        onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse),
    ]
    found = [list_external_files(model(attribute=attribute)) for attribute in attributes]
    assert found == [["t"], ["ts"], ["deep"], ["deep"], ["indices", "values"]]


def test_what_cannot_be_read_is_refused() -> None:
    """ONNX Runtime must not be the first to read what only looks like a model."""
    with pytest.raises(UnfoldError, match="not an ONNX model"):
        require_data_within(b"\xff location", "m.onnx", None)
