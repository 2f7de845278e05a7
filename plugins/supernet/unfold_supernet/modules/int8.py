"""Members in int8, where validation rows and this machine's latencies allow it.

A member is quantized statically (ONNX Runtime, QDQ format, weights by channel) with one half of the validation rows.
The other half bounds what it loses. Test rows have no part in the choice, and a slower member is never chosen.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import BoolArray, Float32Array, IntArray
from unfold_supernet.family.onnx_session import open_session
from unfold_supernet.scheduling.speed import time_rounds
from unfold_supernet.training.accuracy import CONFIDENCE, compare_paired

BATCHES = (1, 32)
"""Batch sizes at which int8 must be faster."""
MIN_SPEEDUP = 1.05
"""Below this ratio, a difference of medians is noise."""
CALIBRATION_ROWS, CALIBRATION_BATCH = 256, 32
ROUNDS, ENOUGH_S = 30, 0.5
CHUNK = 64
BoundLoss = Callable[[Float32Array, Float32Array, IntArray], tuple[float, float]]
"""From outputs of float32 and of int8 for some rows to the score that int8 loses, and its upper bound, in points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionChoice:
    """Whether a member is served in int8, and what was measured.

    Attributes:
        is_int8: Whether it is.
        speedup: Latency in float32 over that in int8, of the batch size where it is smallest; ``None`` if the member
            cannot be quantized.
        loss_points: Score lost on the rows that judge, in points.
        loss_bound: Upper 95 % bound of the loss, in points.
        rows: Validation rows that judge.
    """

    is_int8: bool
    speedup: float | None = None
    loss_points: float = 0.0
    loss_bound: float = 100.0
    rows: int = 0


def choose_precision(
    content: bytes,
    arrays: Mapping[str, Float32Array],
    rows: IntArray,
    bound_loss: BoundLoss,
    max_loss: float,
    seed: int,
) -> tuple[bytes, PrecisionChoice]:
    """Choose float32 or int8 for an ONNX model, by its score and its latency.

    Args:
        content: The model in float32.
        arrays: Its inputs (n, *size) by name, which may be mapped from a file: they are read in chunks.
        rows: The validation rows.
        bound_loss: Compares the outputs in float32 and int8 with the targets of some rows.
        max_loss: Largest accuracy, macro AUROC or R² that int8 may lose, in points.
        seed: Which rows calibrate and which judge.

    Returns:
        The model to serve, and why.
    """
    order = np.random.default_rng([seed, 0x18]).permutation(rows)
    calibration, judges = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
    if not len(calibration) or not len(judges):
        return content, PrecisionChoice(is_int8=False)
    quantized = quantize(content, _take(arrays, calibration[:CALIBRATION_ROWS]))
    if quantized is None:
        return content, PrecisionChoice(is_int8=False)
    sessions = [open_session(content), open_session(quantized)]
    exact, rounded = (_compute_outputs(session, arrays, judges) for session in sessions)
    loss_points, loss_bound = bound_loss(exact, rounded, judges)
    speedup = measure_speedup(sessions[0], sessions[1], _take(arrays, judges[: max(BATCHES)]))
    is_int8 = loss_bound <= max_loss and speedup >= MIN_SPEEDUP
    choice = PrecisionChoice(
        is_int8=is_int8,
        speedup=speedup,
        loss_points=loss_points,
        loss_bound=loss_bound,
        rows=len(judges),
    )
    return (quantized if is_int8 else content), choice


def bound_class_loss(exact: BoolArray, rounded: BoolArray, groups: IntArray | None = None) -> float:
    """Bound the accuracy that rounding loses, in points at 95 %.

    The loss is at most the fraction of rows that only the exact model classifies correctly; its bound is that of
    Clopper and Pearson, or that of Student's t over groups where it is higher. Rows that only the rounded model gets
    right are not credited.

    Args:
        exact: Whether the exact model classifies each row correctly (n).
        rounded: The same of the rounded model (n).
        groups: Group of each row (n); rows are independent without it.
    """
    from scipy.stats import binomtest

    worse = exact & ~rounded
    level = 1 - 2 * (1 - CONFIDENCE)
    bound = float(binomtest(int(worse.sum()), len(exact)).proportion_ci(level, "exact").high) * 100
    return bound if groups is None else max(bound, compare_paired(worse, np.zeros_like(worse), groups).bound_above)


def measure_speedup(exact: Any, rounded: Any, arrays: Mapping[str, Float32Array]) -> float:
    """Measure the smallest ratio of median latencies over batch sizes; rounds of both sessions alternate."""
    ratios = []
    for batch in BATCHES:
        inputs = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in arrays.items()}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for is_int8, session in ((False, exact), (True, rounded)):
                seconds[is_int8] += time_rounds(partial(session.run, None, inputs), 1).tolist()
            if len(seconds[True]) > 2 and sum(map(sum, seconds.values())) > ENOUGH_S:
                break
        ratios.append(float(np.median(seconds[False]) / np.median(seconds[True])))
    return min(ratios)


def quantize(content: bytes, arrays: Mapping[str, Float32Array]) -> bytes | None:
    """Quantize a model to int8; ``None`` if ONNX Runtime cannot.

    Args:
        content: The model.
        arrays: Its inputs (n, *size) by name, from which the ranges of the activations are taken.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands out the inputs batch by batch."""

        def __init__(self) -> None:
            rows = np.arange(len(next(iter(arrays.values()))))
            self.batches: Iterator[Any] = iter([_take(arrays, part) for part in _split(rows, CALIBRATION_BATCH)])

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch; ``None`` after the last."""
            return next(self.batches, None)

    # it advises on the root logger to optimize the model first, which its sessions do when they load it
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        try:
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)), str(source))
            quantization.quantize_static(
                str(source),
                str(target),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # products of 8 and 8 bits are added in 16 on processors without VNNI, and overflow
                reduce_range=True,
            )
            return target.read_bytes()
        # operators that it does not know end in errors of many kinds: such a member stays in float32
        except Exception:  # noqa: BLE001
            return None
        finally:
            root.setLevel(level)


def _compute_outputs(session: Any, arrays: Mapping[str, Float32Array], rows: IntArray) -> Float32Array:
    return np.concatenate([session.run(None, _take(arrays, part))[0] for part in _split(rows, CHUNK)])


def _take(arrays: Mapping[str, Float32Array], rows: IntArray) -> dict[str, Float32Array]:
    return {name: array[rows] for name, array in arrays.items()}


def _split(values: Any, size: int) -> Sequence[Any]:
    return [values[start : start + size] for start in range(0, len(values), size)]
