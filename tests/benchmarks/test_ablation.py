"""The benchmark of ingredients: a loss is what the recipe has more, and the page shows what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.supernet_ablation import RECIPE, Line, summary
from docs.generators import ablation
from unfold_supernet.training.accuracy import SubnetQuality, evaluate_predictions


def line(*rights: int) -> Line:
    """Return a recipe with nets that are right on so many of 100 rows."""
    low, middle, high = (_quality(right) for right in rights)
    return Line((low, middle, high), 10, 1.0)


def _quality(right: int) -> SubnetQuality:
    return evaluate_predictions(np.where(np.arange(100) < right, 1, 0), np.ones(100, np.int64), 2)


def test_a_loss_is_what_the_recipe_has_more() -> None:
    """What is lost without an ingredient is paired, by place, and its mean over the places is a metric."""
    found = summary({RECIPE: line(80, 90, 95), "sampled nets": line(70, 90, 96)})
    (row,) = found["tables"]["lost"]
    assert [row[f"{at}_lost"] for at in ("min", "mid", "max")] == pytest.approx([10, 0, -1])
    assert row["mid_error"] == 0
    assert row["min_error"] == pytest.approx(3.0)
    assert found["metrics"]["sampled_nets_points"] == pytest.approx(3.0)
    assert found["peers"]["sampled nets"]["accuracy_max"] == pytest.approx(96)


def test_the_page_shows_what_is_stored(tmp_path: Path) -> None:
    """The table between the marks is made from the stored result; the rest of the page stays, or there is an error."""
    page = tmp_path / ablation.PAGE
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n{ablation.BEGIN}old\n{ablation.END}after\n", "utf-8")
    assert "Not measured yet" in ablation.page(tmp_path)
    stored = tmp_path / "benchmarks" / "results" / "supernet-ablation.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps(summary({RECIPE: line(80, 90, 95), "sampled nets": line(70, 90, 96)})), "utf-8")
    made = ablation.page(tmp_path)
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "| sampled nets | 70.00 (lost +10.00 ± 3.00) |" in made
    assert "old" not in made
    page.write_text("nothing\n", "utf-8")
    with pytest.raises(ValueError, match="no place"):
        ablation.page(tmp_path)
