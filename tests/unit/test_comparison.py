"""Two reports side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_figure_data import EVERY
from unfoldkit.cli.comparison import Side, compare_reports
from unfoldkit.errors import ExitCode, UnfoldError
from unfoldkit.figure_data import Figure, Series
from unfoldkit.render import builtin_renderers
from unfoldkit.report import Column, Metric, Report, Table, Verdict, validate_report

PLOT = Figure("p", "F", "x", "y", (Series("s", (1.0, 2.0), (2.0, 4.0)),))
OLD = Report(
    kind="k",
    verb="plan",
    name="n",
    verdict=Verdict.YES,
    headline="fine",
    metrics={"cost": Metric(2.0, "$"), "same": Metric(1.0), "took": Metric(0.1, "s", timed=True)},
    tables=(Table("t", (Column("stage"), Column("n"), Column("s", timed=True)), (("a", 1, 0.1), ("b", 2, 0.2))),),
    figures=(PLOT, *EVERY),
    decision={"a": {"n": 1}},
    provenance={"spec": {"goal": 1}},
)
NEW = replace(
    OLD,
    metrics={"cost": Metric(3.0, "$"), "same": Metric(1.0), "took": Metric(0.2, "s", timed=True)},
    tables=(Table("t", (Column("stage"), Column("n"), Column("s", timed=True)), (("a", 4, 0.3), ("c", 2, 0.2))),),
    figures=(replace(PLOT, series=(Series("s", (1.0, 2.0), (2.0, 5.0)),)), *EVERY[1:]),
    decision={"a": {"n": 4}},
    provenance={"spec": {"goal": 2}},
)


def compare(old: Report, new: Report) -> Report:
    return compare_reports(Side("old", old), Side("new", new))


def test_differences_come_first_and_are_counted() -> None:
    """Metrics, the plan, the spec and cells that differ are listed with both values; what is equal is not."""
    report = compare(OLD, NEW)
    assert report.verdict is Verdict.NO
    assert report.headline == "they differ in 1 metric, 1 place of the plan, 1 key of the spec, 3 cells of tables"
    tables = {table.name: table for table in report.tables}
    assert [row[0] for row in tables["metrics"].rows] == ["cost", "took"]
    assert tables["metrics"].rows[0] == ("cost", 2.0, 3.0, 1.0, 50.0, "$")
    assert tables["plan"].rows == (("a.n", 1, 4),)
    assert tables["spec"].rows == (("goal", 1, 2),)
    assert tables["cells of tables"].rows == (
        ("t", "a", "n", 1, 4),
        ("t", "b", "the row", "there", "absent"),
        ("t", "c", "the row", "absent", "there"),
    )
    assert not list(validate_report(report, "k", "report"))


def test_equal_reports_do_not_differ_whatever_a_clock_measured() -> None:
    """Times differ in every run: they are shown, and do not count."""
    report = compare(OLD, replace(OLD, metrics={**OLD.metrics, "took": Metric(9.0, "s", timed=True)}))
    assert report.verdict is Verdict.YES
    assert report.headline == "they do not differ"
    assert [row[0] for row in report.tables[0].rows] == ["took"]


def test_figures_are_laid_over_each_other_or_stand_together() -> None:
    """Plots become one with the series of both; of other types only those that differ are shown, for each side."""
    moved = replace(EVERY[1], title="moved")
    report = compare(OLD, replace(NEW, figures=(*NEW.figures[:1], moved, *NEW.figures[2:])))
    plot = report.figures[0]
    assert isinstance(plot, Figure)
    assert [series.name for series in plot.series] == ["old: s", "new: s"]
    assert {figure.title for figure in report.figures[1:]} == {"old · G", "old · T", "new · moved"}
    assert len({figure.name for figure in report.figures}) == len(report.figures)


def test_plots_of_different_units_are_apart() -> None:
    """Dollars and FLOPs do not share an axis."""
    report = compare(OLD, replace(OLD, figures=(replace(PLOT, x="cost, $"), *EVERY)))
    assert [figure.title for figure in report.figures] == ["old · F", "new · F"]


@pytest.mark.parametrize(("old", "new"), [(None, 1.0), (1.0, None), (0.0, 1.0), (float("nan"), 1.0)])
def test_values_that_have_no_change_in_percent_are_compared(old: float | None, new: float | None) -> None:
    """A value that is missing, or 0, differs and has no percentage; every format shows it."""
    sides = (replace(OLD, metrics={"m": Metric(value)}) for value in (old, new))
    report = compare(*sides)
    assert "1 metric" in report.headline
    for name in ("text", "md", "json"):
        renderer = next(item for item in builtin_renderers() if item.name == name)
        assert renderer


def test_different_kinds_are_refused() -> None:
    """Runs of two kinds have nothing in common to compare: exit code 2, with a hint."""
    with pytest.raises(UnfoldError, match="old is of kind k, new of kind other") as caught:
        compare(OLD, replace(OLD, kind="other"))
    assert caught.value.code is ExitCode.USAGE
    assert "one kind" in str(caught.value.diagnostics[0])


def test_what_one_side_lacks_is_named_and_does_not_count() -> None:
    """A plan file has no metrics and tables: the plan and the spec are compared, and a note names what is not."""
    plan_file = replace(OLD, metrics={}, tables=(), figures=(), headline="")
    report = compare(plan_file, OLD)
    assert report.verdict is Verdict.YES
    assert report.notes == ("not compared, as old has none: metrics, tables",)
    older = replace(plan_file, provenance={})
    assert compare(older, OLD).notes == ("not compared, as old has none: metrics, spec, tables",)
    assert "1 place of the plan" in compare(replace(older, decision={"a": {"n": 1}, "b": 2}), OLD).headline


def test_another_verdict_is_a_difference() -> None:
    """A run that misses its goal differs from one that meets it, though neither has a figure."""
    yes, no = (replace(OLD, metrics={}, tables=(), decision=None, verdict=verdict) for verdict in Verdict)
    assert compare(yes, yes).verdict is Verdict.YES
    assert compare(yes, no).headline == "they differ in the verdict"
    other = replace(yes, verb="train")
    assert compare(yes, other).notes == ("old is of unfold plan, new of unfold train",)


def test_rows_of_one_name_and_tables_of_one_side_are_compared() -> None:
    """Rows that share their first cell are paired in order, a table of one side counts, and long lists are cut."""
    table = Table("t", (Column("stage"), Column("n")), (("a", 1), ("a", 2)))
    other = Table("u", (Column("stage"),), (("a",),))
    old, new = (
        replace(OLD, metrics={}, tables=tables)
        for tables in ((table,), (replace(table, rows=(("a", 1), ("a", 3))), other))
    )
    assert compare(old, new).tables[-1].rows == (("t", "a (2)", "n", 2, 3), ("u", "", "the table", "absent", "there"))
    long = [replace(table, rows=tuple((str(row), shift) for row in range(150))) for shift in (0, 1)]
    report = compare(*(replace(OLD, tables=(each,)) for each in long))
    assert "150 cells of tables" in report.headline
    assert report.notes == ("the first 100 of 150 differing cells of tables are listed",)
