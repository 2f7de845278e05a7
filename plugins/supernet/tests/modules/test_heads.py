"""The constant that members of a user's module must beat."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")

from unfold_supernet.family.datasets import Dataset
from unfold_supernet.modules.heads import evaluate_constant, evaluate_outputs


def test_no_constant_value_beats_the_constant() -> None:
    """Where the values of other rows have another mean, always predicting that mean is no skill."""
    rng = np.random.default_rng(0)
    y = np.r_[rng.normal(size=(50, 2)), rng.normal(3, 1, (200, 2))].astype(np.float32)
    rows = np.arange(250)
    data = Dataset(
        x=y, extra=y[:, :0], y=y, names=("a", "b"), train=rows[:50], test=rows[50:], digest="", about="", task="values"
    )
    shifted = np.full((200, 2), 2.9, np.float32)
    quality = evaluate_outputs(shifted, data, data.test)
    gap = quality.compare(evaluate_constant(data, quality))
    assert quality.score > 80
    assert gap.points <= 0


def test_the_constant_is_not_rounded() -> None:
    """The mean of large values has the score 0: single precision would round it by as much as they differ."""
    y = (1e7 + np.random.default_rng(0).normal(size=(500, 1)) * 12).astype(np.float32)
    rows = np.arange(500)
    data = Dataset(x=y, extra=y[:, :0], y=y, names=("a",), train=rows, test=rows, digest="", about="", task="values")
    quality = evaluate_outputs(y, data, data.test)
    assert evaluate_constant(data, quality).score == pytest.approx(0, abs=1e-6)
