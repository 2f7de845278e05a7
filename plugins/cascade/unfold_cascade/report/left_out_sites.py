"""What a report says about sites that were left out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unfold_cascade.planner.left_out_sites import SiteResult
from unfold_cascade.report import sentences
from unfoldkit.api import Cell, Column, Metric, Report, Table


def add_left_out_sites(report: Report, results: Sequence[SiteResult], max_loss: float | None) -> Report:
    """Add the table of the sites, their spread, and how many kept the loss that the goal allows."""
    if not results:
        return report
    losses = [100 * result.loss for result in results]
    over_time = results[0].utility is not None
    metrics = {
        "site_loss_points_min": Metric(min(losses), "points"),
        "site_loss_points_max": Metric(max(losses), "points"),
    }
    kept = None if max_loss is None else sum(result.loss <= max_loss for result in results)
    utilities = [result.utility for result in results if result.utility is not None]
    text = sentences.left_out_sites(len(results), min(losses), max(losses), kept)
    if utilities:
        metrics |= {"site_utility_min": Metric(min(utilities)), "site_utility_max": Metric(max(utilities))}
        text += sentences.utility_of_sites(min(utilities), max(utilities))
    columns = [Column("left out"), Column("patients" if over_time else "cases"), Column("certified elsewhere")]
    columns += [Column("loss", "points", 2), Column("saving", "x", 2)]
    columns += [Column("utility", "", 3), Column("baseline", "", 3), Column("alerts", "/100 h", 1)] if over_time else []
    rows = tuple(_row(result, over_time=over_time) for result in results)
    return replace(
        report,
        metrics={**report.metrics, **metrics},
        tables=(*report.tables, Table("sites left out in turn", tuple(columns), rows)),
        lines=(*report.lines, ("new sites", text)),
    )


def _row(result: SiteResult, *, over_time: bool) -> tuple[Cell, ...]:
    certified = "yes" if result.is_certified else "no: the baseline"
    row: tuple[Cell, ...] = (result.site, result.units, certified, 100 * result.loss, result.saving)
    return (*row, result.utility, result.baseline_utility, result.alerts_per_100h) if over_time else row
