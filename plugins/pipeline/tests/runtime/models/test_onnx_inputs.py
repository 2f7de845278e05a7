"""ONNX models get inputs of their type and shape, or are rejected by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, load, save

from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models import model_loader, onnx_inputs
from unfoldkit.api import UnfoldError
from unfoldkit.serving.oip.errors import InvalidRequest

Given = tuple[str, int, list[Any]]
ROWS = np.arange(24, dtype=np.float32).reshape(3, 8)


def written(path: Path, *inputs: Given) -> ModelSource:
    """A model that answers its first input, beside others that it reads too."""
    named = [helper.make_tensor_value_info(*item) for item in inputs]
    out = helper.make_tensor_value_info("y", inputs[0][1], None)
    nodes = [
        helper.make_node("Identity", [name], ["y" if at == 0 else f"y{at}"]) for at, (name, *_) in enumerate(inputs)
    ]
    made = helper.make_model(helper.make_graph(nodes, "g", named, [out]), opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    save(made, str(path))
    return ModelSource(path=str(path))


@pytest.mark.parametrize(
    ("kind", "shape", "width", "answer"),
    [
        (TensorProto.FLOAT, ["b", 8], 8, ROWS),
        (TensorProto.INT64, ["b", 8], 8, ROWS.astype(np.int64)),
        (TensorProto.DOUBLE, ["b", "n"], None, ROWS.astype(np.float64)),
        (TensorProto.FLOAT, ["b", 2, 2, 2], 8, ROWS.reshape(3, 2, 2, 2)),
        (TensorProto.FLOAT, ["b", 2, "n"], None, ROWS.reshape(3, 2, 4)),
        (TensorProto.FLOAT, [1, 8], 8, ROWS),
    ],
)
def test_rows_are_cast_and_shaped(tmp_path: Path, kind: int, shape: list[Any], width: int | None, answer: Any) -> None:
    """A row gets the type and shape of the input; a model with batch 1 runs row by row."""
    source = written(tmp_path / "m.onnx", ("x", kind, shape))
    found = model_loader.load_model(source)(ROWS)
    assert model_loader.read_width("m", source) == width
    assert found.dtype == answer.dtype
    assert np.array_equal(found, answer)


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        (TensorProto.INT64, 1.5, "1.5"),
        (TensorProto.INT64, math.nan, "nan"),
        (TensorProto.INT32, 2.0**40, "1099511627776.0"),
        (TensorProto.UINT8, 300.0, "300.0"),
        (TensorProto.BOOL, 2.0, "2.0"),
    ],
)
def test_what_no_integer_holds_is_refused(tmp_path: Path, kind: int, value: float, shown: str) -> None:
    """A fraction was cut, and a large number wrapped around: the model answered for another id."""
    source = written(tmp_path / "m.onnx", ("ids", kind, ["b", 2]))
    with pytest.raises(InvalidRequest, match=f"the input ids takes .*, and {shown} is none"):
        model_loader.load_model(source)(np.array([[0.0, value]], np.float32))
    assert np.array_equal(model_loader.fit_rows("m", source, np.float32([[0.9, 1.2]])), [[0.0, 1.0]])


def test_all_inputs_get_the_row(tmp_path: Path) -> None:
    """Several inputs, as the ids and the mask of an embedding model, get the same row."""
    inputs = (("ids", TensorProto.INT64, ["b", 8]), ("mask", TensorProto.FLOAT, ["b", "n"]))
    source = written(tmp_path / "m.onnx", *inputs)
    assert model_loader.read_width("m", source) == 8
    assert np.array_equal(model_loader.load_model(source)(ROWS), ROWS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("x", TensorProto.BFLOAT16, ["b", 8])], r"the input x of tensor\(bfloat16\) \[b, 8\] holds neither"),
        ([("x", TensorProto.FLOAT, [4, 8])], r"the input x of tensor\(float\) \[4, 8\] takes batches of exactly 4"),
        ([("x", TensorProto.FLOAT, ["b", 3, "h", "w"])], r"\[b, 3, h, w\] has more than one open size"),
        ([("x", TensorProto.FLOAT, [])], "has no batch"),
    ],
)
def test_unsupported_inputs_are_rejected(tmp_path: Path, inputs: list[Given], message: str) -> None:
    """An unsupported input is reported with the key, the model, its name, type and shape."""
    with pytest.raises(UnfoldError, match=message) as caught:
        model_loader.read_width("s", written(tmp_path / "m.onnx", *inputs))
    assert caught.value.diagnostics[0].key == "stages.s.model"
    assert caught.value.diagnostics[0].hint


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("x", TensorProto.STRING, ["b", 8])], r"m\.onnx: the input x of tensor\(string\) \[b, 8\] takes text"),
        (
            [
                ("x", TensorProto.FLOAT, ["b", 8]),
                ("w", TensorProto.FLOAT, ["b", 4]),
                ("z", TensorProto.FLOAT, ["b", "n"]),
            ],
            r"x \[b, 8\] and w \[b, 4\] and z \[b, n\] need",
        ),
    ],
)
def test_inputs_that_no_row_fills_are_rejected(tmp_path: Path, inputs: list[Given], message: str) -> None:
    """A model that only tensors by name can fill does not read the rows of requests."""
    source = written(tmp_path / "m.onnx", *inputs)
    assert model_loader.read_width("s", source) is None
    with pytest.raises(UnfoldError, match=message) as caught:
        model_loader.fit_rows("s", source, ROWS)
    assert caught.value.diagnostics[0].key == "stages.s.model"
    assert caught.value.diagnostics[0].hint


def test_inputs_of_other_lengths_split_the_row(tmp_path: Path) -> None:
    """Inputs of different lengths get their part of the row, in order."""
    source = written(tmp_path / "m.onnx", ("x", TensorProto.FLOAT, ["b", 5]), ("z", TensorProto.INT64, ["b", 3]))
    assert model_loader.read_width("m", source) == 8
    assert np.array_equal(model_loader.load_model(source)(ROWS), ROWS[:, :5])
    model_loader.fit_rows("m", source, ROWS)
    with pytest.raises(UnfoldError, match="cannot be filled with rows of 7 numbers"):
        model_loader.fit_rows("m", source, ROWS[:, :7])


def test_rows_of_another_length_are_rejected(tmp_path: Path) -> None:
    """Rows that do not fill the shape are rejected before a replica starts."""
    source = written(tmp_path / "m.onnx", ("x", TensorProto.FLOAT, ["b", 3, "n"]))
    model_loader.fit_rows("s", source, model_loader.load_rows(replace(source, features=9), None))
    with pytest.raises(UnfoldError, match=r"\[b, 3, n\] cannot be filled with rows of 8 numbers"):
        model_loader.fit_rows("s", source, ROWS)


def test_tensors_outside_the_folder_are_refused(tmp_path: Path) -> None:
    """A model must not turn a file of this machine into its weights."""
    source = written(tmp_path / "m.onnx", ("x", TensorProto.FLOAT, ["n", 8]))
    stored = load(source.path)
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    stored.graph.initializer.append(tensor)
    Path(source.path).write_bytes(stored.SerializeToString())
    with pytest.raises(UnfoldError, match="outside its folder"):
        model_loader.load_model(source)


@pytest.mark.parametrize(
    ("available", "used", "message"),
    [
        ([onnx_inputs.CPU_PROVIDER], [], "uses none .*onnxruntime-gpu"),
        ([onnx_inputs.GPU_PROVIDER, onnx_inputs.CPU_PROVIDER], [onnx_inputs.CPU_PROVIDER], "CUDA does not start"),
        ([onnx_inputs.GPU_PROVIDER], [onnx_inputs.GPU_PROVIDER, onnx_inputs.CPU_PROVIDER], ""),
    ],
)
def test_gpu_is_used_or_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: list[str], used: list[str], message: str
) -> None:
    """A replica that reserves a GPU never serves from a core without a word."""
    source = replace(written(tmp_path / "m.onnx", ("x", TensorProto.FLOAT, ["b", 8])), on_gpu=True)
    requested = list[list[str]]()

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # a session is untyped
        """A session on a machine with these providers."""

        def __init__(self, path: str, options: Any, *, providers: list[str]) -> None:
            requested.append(providers)
            super().__init__(path, options, providers=[onnx_inputs.CPU_PROVIDER])

        def get_providers(self) -> list[str]:
            """Return what it runs on."""
            return used

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    if message:
        with pytest.raises(UnfoldError, match=message):
            model_loader.load_model(source)
    else:
        assert model_loader.load_model(source)(ROWS).tolist() == ROWS.tolist()
        assert requested == [[onnx_inputs.GPU_PROVIDER, onnx_inputs.CPU_PROVIDER]]
