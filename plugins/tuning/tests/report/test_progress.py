"""The report of a run that goes on: published at stage borders and in between, and a beginning of the final one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_runs import SPEC, load_spec

from unfold_tuning.verbs.train import train
from unfoldkit.api import Report, Run, RunDir, StepArea, Timeline, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import validate_report

pytestmark = pytest.mark.usefixtures("sleeper_log")


def run_publishing(folder: Path, text: str) -> tuple[list[Report], Report]:
    """Train, and return the published reports and the final one."""
    published: list[Report] = []
    run = Run(directory=RunDir(folder / "run"), engine=LocalEngine(2), allow_code=True, publish=published.append)
    return published, train(load_spec(text), run)


def find_cluster(report: Report) -> StepArea:
    """Return the figure of the instances over time."""
    return next(figure for figure in report.figures if isinstance(figure, StepArea))


def test_each_stage_is_published_as_it_begins(tmp_path: Path) -> None:
    """Published reports are valid, name the stages in order, and hold no more than the final report."""
    published, final = run_publishing(tmp_path, SPEC)
    for report in published:
        assert list(validate_report(report, "tuning", "train")) == []
    stages = [report.headline.partition(" ·")[0] for report in published]
    assert list(dict.fromkeys(stages)) == ["stage 1 of 3", "stage 2 of 3", "stage 3 of 3"]
    rows = [len(report.tables[0].rows) for report in published]
    assert rows == sorted(rows)
    assert rows[-1] < len(final.tables[0].rows)
    spent = [report.metrics["cost_usd"].value for report in [*published, final]]
    assert spent == sorted(spent, key=lambda value: value or 0.0)


def test_the_best_metric_of_a_stage_is_that_of_its_end(tmp_path: Path) -> None:
    """Every trial becomes better stage by stage, and what a stage ended with does not change later."""
    published, final = run_publishing(tmp_path, SPEC)
    best = [float(str(row[-1])) for row in final.tables[0].rows]
    assert best == sorted(set(best))
    assert [row[-1] for row in published[-1].tables[0].rows] == [row[-1] for row in final.tables[0].rows[:-1]]


def test_the_cluster_over_time_counts_billed_instances(tmp_path: Path) -> None:
    """The instances held are those of the ledger's bill: their area is the money spent; the plan stands beside them."""
    published, final = run_publishing(tmp_path, SPEC)
    held, planned = find_cluster(final).panels[0].series
    assert (held.name, planned.name) == ("held", "planned")
    assert max(held.y) <= 3
    hours = sum(y * (b - a) for a, b, y in zip(held.x, held.x[1:], held.y, strict=False)) / 3600.0
    cost_usd = final.metrics["cost_usd"].value
    assert cost_usd is not None
    # $3.6 an hour; nodes are released after the last moment of the figure
    assert hours * 3.6 <= cost_usd + 1e-9
    assert hours * 3.6 == pytest.approx(cost_usd, rel=0.25)
    assert any(isinstance(figure, Timeline) and figure.bars for figure in published[-1].figures)
    assert [marker.name for marker in find_cluster(final).markers] == ["deadline", "plan: 90 % of runs end here"]


def test_without_a_deadline_nothing_is_late(tmp_path: Path) -> None:
    """A run within a budget alone has no deadline in its figure, and its verdict follows the money."""
    text = SPEC.replace("deadline: 30 s", "budget: $1")
    published, _ = run_publishing(tmp_path, text)
    assert [marker.name for marker in find_cluster(published[0]).markers] == ["plan: 90 % of runs end here"]
    assert {report.verdict for report in published} == {Verdict.YES}
    assert all(math.isfinite(report.metrics["cost_usd"].value or 0.0) for report in published)


def test_a_resumed_run_shows_all_that_was_held(tmp_path: Path) -> None:
    """A run that was stopped at a border goes on with the instances that it held before in its figure."""
    first: list[Report] = []

    def stop(report: Report) -> None:
        first.append(report)
        if report.headline.startswith("stage 2"):
            raise KeyboardInterrupt

    run = Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(2), allow_code=True, publish=stop)
    with pytest.raises(KeyboardInterrupt):
        train(load_spec(SPEC), run)
    second: list[Report] = []
    train(load_spec(SPEC), replace(run, publish=second.append))
    assert second[0].headline.startswith("stage 2")
    assert len(second[0].tables[0].rows) == 1
    assert max(find_cluster(second[0]).panels[0].series[0].y) >= max(find_cluster(first[-1]).panels[0].series[0].y)
