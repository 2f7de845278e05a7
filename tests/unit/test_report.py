"""The report as data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from unfoldkit.figure_data import Figure, Series
from unfoldkit.report import (
    Column,
    Metric,
    Report,
    Table,
    Verdict,
    from_data,
    label_metrics,
    time_axis,
    to_data,
    to_plain,
    validate_report,
    without_measurements,
)

REPORT = Report(
    "k",
    "plan",
    "n",
    Verdict.NO,
    "no plan",
    metrics={"cost": Metric(1.5, "$", "≤ 1", ok=False), "took": Metric(0.1, "s", timed=True)},
    tables=(Table("t", (Column("a"), Column("s", "s", timed=True)), ((1, 0.5), ("x", None)), accent=1),),
    figures=(
        Figure("f", "F", "x", "y", (Series("s", (1.0,), (2.0,)),), names=("one",)),
        Figure("g", "G", "x", "y", (), timed=True),
    ),
    provenance={"seed": 1, "timed": {"seconds": 2.0}},
)


def test_times_can_be_left_out() -> None:
    """Without times, no metric, column, figure or fact that a clock measured is left, and all else is."""
    left = without_measurements(REPORT)
    assert list(left.metrics) == ["cost"]
    assert left.tables[0].rows == ((1,), ("x",))
    assert [column.name for column in left.tables[0].columns] == ["a"]
    assert [figure.name for figure in left.figures] == ["f"]
    assert left.provenance == {"seed": 1}
    assert without_measurements(left) == left


def test_another_schema_is_refused() -> None:
    """Data of another schema, or with parts missing, is not a report."""
    with pytest.raises(ValueError, match="report/2"):
        from_data(to_data(REPORT) | {"schema": "unfoldkit.report/2"})
    with pytest.raises(KeyError):
        from_data({"schema": "unfoldkit.report/1"})


def test_plain_data_has_no_infinity_and_no_array_scalars() -> None:
    """Non-finite numbers become nothing, NumPy scalars Python's, tuples lists, keys text."""
    given = {1: (math.nan, math.inf, np.float64(1.5), np.int32(2)), "b": {"c": True}}
    assert to_plain(given) == {"1": [None, None, 1.5, 2], "b": {"c": True}}
    assert type(to_plain(np.int32(2))) is int
    assert to_plain([np.float32(math.nan), np.array([1.0, math.inf]), np.array(2), np.bool_(1)]) == [
        None,
        [1.0, None],
        2,
        True,
    ]


def test_flaws_of_a_report_are_listed() -> None:
    """Rows of another length than the columns and series of unequal length are flaws; a sound report has none."""
    assert not list(validate_report(REPORT, "k", "plan"))
    numpy = replace(REPORT, metrics={"a": Metric(1.0, ok=np.bool_(1))})  # type: ignore[arg-type]
    assert not list(validate_report(numpy, "k", "plan"))
    table, figure = REPORT.tables[0], REPORT.figures[0]
    ragged = replace(table, rows=((1, 2), (1,)))
    uneven = replace(figure, series=(Series("s", (1.0, 2.0), (1.0,)),))
    mistakes = list(validate_report(replace(REPORT, tables=(ragged,), figures=(uneven,)), "k", "plan"))
    assert mistakes == ["table t: a row of 1 cells for 2 columns", "figure f: s has 2 x, 1 y"]


@pytest.mark.parametrize(
    ("longest", "expected"), [(0.0, "s"), (200.0, "s"), (600.0, "min"), (9e4, "h"), (1.2e7, "days")]
)
def test_an_axis_of_times_has_the_unit_that_fits(longest: float, expected: str) -> None:
    """The unit is the largest of which the longest time holds more than four."""
    assert time_axis(longest)[0] == expected


def test_a_question_and_labels_survive_and_are_left_out_where_there_are_none() -> None:
    """Reports without them keep the form that they had."""
    labelled = replace(REPORT, question="Is it cheap?", metrics=label_metrics(REPORT.metrics, {"cost": "price a day"}))
    assert from_data(to_data(labelled)) == labelled
    assert to_data(labelled)["metrics"]["cost"]["label"] == "price a day"
    assert "question" not in to_data(REPORT)
    assert "label" not in to_data(labelled)["metrics"]["took"]
