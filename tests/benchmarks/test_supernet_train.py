"""What nets are worth between patients, over seeds that train otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.supernet_train import _between


def _rows(recipe: str, seed: int, *worth: float) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "recipe": recipe, "net": f"net-{at}", "accuracy": one, "macro_f1": one / 2}
        for at, one in enumerate(worth)
    ]


def test_gain_is_reported_with_its_spread_over_seeds() -> None:
    """The gain is the mean over seeds of what the nets gain in the mean, its error that of these means."""
    rows = (
        _rows("recipe", 0, 90, 96) + _rows("plain", 0, 89, 93) + _rows("recipe", 1, 92, 94) + _rows("plain", 1, 94, 96)
    )
    found = _between(rows)
    assert (found["inter_patient_accuracy_min"], found["inter_patient_accuracy_max"]) == (91, 95)
    assert found["inter_patient_accuracy_gain"] == 0
    assert found["inter_patient_accuracy_gain_error"] == pytest.approx(2.0)
    assert found["inter_patient_macro_f1_gain_error"] == pytest.approx(1.0)


def test_one_seed_has_no_spread() -> None:
    """A single seed gives no error estimate."""
    found = _between(_rows("recipe", 0, 90.0) + _rows("plain", 0, 89.0))
    assert (found["inter_patient_accuracy_gain"], found["inter_patient_accuracy_gain_error"]) == (1.0, None)
