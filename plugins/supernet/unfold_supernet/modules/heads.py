"""What a member's outputs mean: logits of classes or labels, or real values; their targets and their quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from unfold_supernet._types import Float32Array, IntArray
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.label_targets import standardize_values
from unfold_supernet.modules.int8 import bound_class_loss
from unfold_supernet.training.accuracy import (
    Quality,
    SubnetQuality,
    evaluate_commonest_class,
    evaluate_predictions,
)
from unfold_supernet.training.head_quality import (
    CHANCE_AUROC,
    HeadQuality,
    build_constant,
    evaluate_labels,
    evaluate_values,
)


class _Scaled(nn.Module):  # type: ignore[misc,unused-ignore]
    """A member with outputs that are multiplied and shifted: logits by a temperature, values back to their unit."""

    def __init__(self, module: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Compute calibrated logits or values (n, outputs)."""
        outputs = self.module(x) if extra is None else self.module(x, extra)
        result: Tensor = outputs * self.scale + self.shift
        return result


def finish_outputs(module: nn.Module, data: Dataset, temperature: float) -> nn.Module:
    """Shift the logits of a trained member and divide them by its temperature, or return its values to their unit."""
    if data.task == "values":
        mean, deviation = standardize_values(data.y, data.train)
        return _Scaled(module, torch.from_numpy(deviation), torch.from_numpy(mean)).eval()
    shift = torch.from_numpy(data.logit_shift) if data.task == "classes" else torch.tensor(0.0)
    return _Scaled(module, torch.tensor(1 / temperature), shift / temperature).eval()


def make_training_targets(data: Dataset) -> Any:
    """Make the targets of all rows as the loss needs them; real values are standardized by the training rows."""
    if data.task != "values":
        return data.y
    mean, deviation = standardize_values(data.y, data.train)
    return (data.y - mean) / deviation


def evaluate_outputs(outputs: Float32Array, data: Dataset, rows: IntArray) -> Quality:
    """Evaluate finished outputs (n, outputs) of some rows by the score of the task."""
    y, groups = data.y[rows], None if data.groups is None else data.groups[rows]
    if data.task == "labels":
        return evaluate_labels(expit(outputs.astype(np.float64)), y, groups)
    if data.task == "values":
        return evaluate_values(outputs.astype(np.float64), y, data.y[data.train].astype(np.float64).mean(0), groups)
    return evaluate_predictions(outputs.argmax(1), y, len(data.names), groups)


def evaluate_constant(data: Dataset, quality: Quality) -> Quality:
    """Evaluate the best constant on the test rows of ``quality``, which a member must beat."""
    if isinstance(quality, HeadQuality) and data.task == "labels":
        return build_constant(CHANCE_AUROC, quality)
    if isinstance(quality, HeadQuality):
        y = data.y[data.test]
        return evaluate_outputs(np.broadcast_to(y.mean(axis=0, dtype=np.float64), y.shape), data, data.test)
    return evaluate_commonest_class(data.y[data.test], len(data.names), data.test_groups)


def bound_loss(data: Dataset, exact: Float32Array, rounded: Float32Array, rows: IntArray) -> tuple[float, float]:
    """Bound what outputs in int8 lose against those in float32, in points of the score.

    Returns:
        The loss on these rows, and its upper 95 % bound.
    """
    before, after = (evaluate_outputs(outputs, data, rows) for outputs in (exact, rounded))
    if isinstance(before, SubnetQuality) and isinstance(after, SubnetQuality):
        return before.accuracy - after.accuracy, bound_class_loss(before.correct, after.correct, before.groups)
    loss = before.compare(after)
    return loss.points, loss.bound_above
