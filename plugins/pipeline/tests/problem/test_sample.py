"""Recorded visits enter the sample completely, or are rejected if no query can make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem import pipeline
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.problem.traffic import read_visits
from unfoldkit.errors import UnfoldError

HEAD = "a,b,c,d\n"
OPTION = pipeline.HardwareOption("cpu", 0.1, pipeline.interpolate_latency([(1, 0.01)]))


def stages() -> tuple[pipeline.Stage, ...]:
    """Stages a and b, c after a, and d where a and c join."""
    after = ((), (), (pipeline.Edge(0, 1.0),), (pipeline.Edge(0, 1.0), pipeline.Edge(2, 1.0)))
    return tuple(pipeline.Stage(name, parents, (OPTION,)) for name, parents in zip("abcd", after, strict=True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,1,0", r"v\.csv:3:1: c: visited without a before it \(see after"),
        ("0,1,0,1", r"v\.csv:3:1: d: visited without a or c before it"),
        ("1,0,0,2", r"v\.csv:3:1: d: 2 visits where flows join"),
        ("1,0,x,0", r"v\.csv:3:1: c: 'x' is not a count"),
    ],
)
def test_impossible_visits_are_rejected(tmp_path: Path, row: str, message: str) -> None:
    """A visit without one to a parent stage is an error with line and stage."""
    (tmp_path / "v.csv").write_text(f"{HEAD}1,0,3,1\n{row}\n")
    with pytest.raises(UnfoldError, match=message) as error:
        read_visits(tmp_path / "v.csv", stages())
    assert error.value.code == 2


def test_sample_has_every_recorded_visit(tmp_path: Path) -> None:
    """The sample has as many items of each stage as the rows count."""
    (tmp_path / "v.csv").write_text(f"{HEAD}1,0,3,1\n2,1,1,0\n1,0,0,1\n0,4,0,0\n")
    table = read_visits(tmp_path / "v.csv", stages())
    sample = draw_sample(pipeline.Pipeline(stages()), np.arange(4.0), np.random.default_rng(0), table)
    assert [visits.query.size for visits in sample.visits] == table.sum(axis=0).tolist()
