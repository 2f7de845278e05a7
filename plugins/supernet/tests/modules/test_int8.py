"""Members in int8: the bound of what they lose, and the choice by accuracy and latency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unfold_supernet.modules import int8
from unfold_supernet.modules.int8 import BoundLoss, bound_class_loss, choose_precision

onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, checker, helper, numpy_helper  # noqa: E402

ROWS, CLASSES = 800, 4


def make_model(scale: float = 1.0) -> bytes:
    """Build a convolution, pooling and a linear layer; the first channel is ``scale`` times as large as the others."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(16, 3, 3, 3)).astype(np.float32)
    head = rng.normal(size=(CLASSES, 16)).astype(np.float32)
    kernels[0] *= scale
    head[:, 0] = 0.0
    constants = [numpy_helper.from_array(kernels, "k"), numpy_helper.from_array(head, "w")]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])]
    model = helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    checker.check_model(model)
    return bytes(model.SerializeToString())


def make_rows(model: bytes) -> tuple[Any, Any]:
    """Draw inputs, and label them by the model itself: it is right on every row."""
    x = np.random.default_rng(1).normal(size=(ROWS, 3, 12, 12)).astype(np.float32)
    x += np.random.default_rng(2).normal(size=(ROWS, 3, 1, 1)).astype(np.float32)
    session = onnxruntime.InferenceSession(model)
    return x, session.run(None, {"x": x})[0].argmax(1)


def compare_with(y: Any) -> BoundLoss:
    """Compare the classes that two models predict with these ones."""

    def bound(exact: Any, rounded: Any, rows: Any) -> tuple[float, float]:
        before, after = (outputs.argmax(1) == y[rows] for outputs in (exact, rounded))
        return float(before.mean() - after.mean()) * 100, bound_class_loss(before, after)

    return bound


def test_bound_covers_the_loss_and_falls_with_rows() -> None:
    """Without any lost row the bound is the rule of three; it never lies below the loss that was seen."""
    for rows in (30, 300, 3000):
        right = np.ones(rows, bool)
        assert bound_class_loss(right, right) == pytest.approx((1 - 0.05 ** (1 / rows)) * 100, rel=1e-6)
    exact, rounded = np.ones(100, bool), np.arange(100) >= 7
    assert bound_class_loss(exact, rounded) > 7
    assert bound_class_loss(rounded, exact) < 3.0, "rows that only int8 gets right are no loss"


def test_the_bound_counts_patients() -> None:
    """Ten rows that one of five patients loses have a higher bound than ten that all of them lose alike."""
    exact, groups = np.ones(1000, bool), np.arange(1000) // 200
    together, apart = np.arange(1000) >= 10, np.arange(1000) % 100 != 0
    bounds = [bound_class_loss(exact, rounded, groups) for rounded in (together, apart)]
    assert bounds[0] > 2.5
    assert bounds[1] == bound_class_loss(exact, apart)
    assert bounds[0] > bounds[1]


@pytest.mark.slow
def test_bound_holds_at_its_confidence() -> None:
    """Over 2,000 samples of 400 rows with a true loss of two points, the bound lies below it in at most 5 %."""
    rng = np.random.default_rng(5)
    broken = [bound_class_loss(np.ones(400, bool), rng.random(400) >= 0.02) < 2.0 for _ in range(2000)]
    assert np.mean(broken) <= 0.06


def test_faster_and_accurate_members_become_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 is served where it is faster and its bound allows it; its outputs differ, its classes rarely."""
    model = make_model()
    x, y = make_rows(model)
    monkeypatch.setattr(int8, "measure_speedup", lambda *_args: 1.5)
    content, choice = choose_precision(model, {"x": x}, np.arange(ROWS), compare_with(y), 5.0, 0)
    assert choice.is_int8, choice
    assert content != model
    assert choice.loss_points <= choice.loss_bound <= 5.0
    predicted = onnxruntime.InferenceSession(content).run(None, {"x": x})[0].argmax(1)
    assert (predicted != y).mean() < 0.05


@pytest.mark.parametrize(("speedup", "max_loss", "scale"), [(0.9, 5.0, 1.0), (1.5, 0.1, 1.0), (1.04, 5.0, 1.0)])
def test_slow_or_uncertain_members_stay_in_float32(
    monkeypatch: pytest.MonkeyPatch, speedup: float, max_loss: float, scale: float
) -> None:
    """A slower member, and a bound that the rows cannot prove, keep the float32 model byte for byte."""
    model = make_model(scale)
    x, y = make_rows(model)
    monkeypatch.setattr(int8, "measure_speedup", lambda *_args: speedup)
    content, choice = choose_precision(model, {"x": x}, np.arange(ROWS), compare_with(y), max_loss, 0)
    assert content == model
    assert not choice.is_int8


def test_what_cannot_be_quantized_stays_in_float32() -> None:
    """A model that ONNX Runtime cannot quantize, and too few rows, are no errors."""
    model = make_model()
    x, y = make_rows(model)
    assert int8.quantize(b"no model", {"x": x}) is None
    assert choose_precision(model, {"x": x}, np.arange(1), compare_with(y), 5.0, 0)[0] == model


def test_speedup_compares_the_same_inputs() -> None:
    """A model against itself is neither clearly faster nor slower."""
    session = onnxruntime.InferenceSession(make_model())
    x, _ = make_rows(make_model())
    assert 0.2 < int8.measure_speedup(session, session, {"x": x}) < 5
