"""What the shipped cascade on hourly intensive care records saves against the baseline model, on unseen patients."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.records import records
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.readers import read_psv
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.report.plan import build_plan_report
from unfold_cascade.temporal.search.planner import Solution, evaluate_solution, search_cascades
from unfoldkit.engines.local import LocalEngine
from unfoldkit.report import Report
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

SPEC = Path(__file__).parents[1] / "configs" / "cascade" / "sepsis.yaml"
QUICK_PATIENTS = 1500
INTERVALS = ("loss", "utility", "auprc", "auroc", "macro_f1", "price_saving", "flops_saving")


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train, search, certify and judge the shipped spec on set A, and once more with two cohorts in each other's place.

    Args:
        quick: The first 1,500 patients only.
        seed: Seed of the split of patients.
        data: Folder that holds ``physionet2019``.

    Returns:
        ``metrics``, ``peers``, ``tables`` and ``notes``.
    """
    began = time.perf_counter()
    seconds = _load_seconds(records(data), quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        here = Run(directory=RunDir(Path(folder)), engine=LocalEngine(), seed=seed, base=SPEC.parent)
        problem = build_temporal_problem(_spec(records(data), quick=quick), here)
        search = search_cascades(fit_study(problem, here))
        study = search.study
        swapped = replace(search, study=replace(study, calibrate=study.test, test=study.calibrate))
        first, second = (evaluate_solution(split) for split in (search, swapped))
        reports = [build_plan_report(solution, "train", here.directory) for solution in (first, second)]
    metrics = {name: metric.value for name, metric in reports[0].metrics.items()}
    metrics |= {"load_seconds": seconds, "total_seconds": time.perf_counter() - began, **_resources()}
    return {
        "metrics": metrics,
        "peers": _peers(reports[0]),
        "tables": [_splits(reports), _intervals((first, second)), *_tables(reports[0])],
        "notes": _notes(first, quick=quick),
    }


def _load_seconds(archive: Path, *, quick: bool) -> float:
    """Return how long the archive takes to read, all 20,336 patients of it."""
    sys.stderr.write("cascade-sepsis: reading\n")
    began = time.perf_counter()
    read_psv(archive, max_patients=QUICK_PATIENTS if quick else None)
    return time.perf_counter() - began


def _spec(archive: Path, *, quick: bool) -> CascadeSpec:
    spec: CascadeSpec = validate(CascadeSpec, read_document(str(SPEC)))
    given = {"path": str(archive.absolute()), "patients": QUICK_PATIENTS if quick else None}
    return spec.model_copy(update={"data": spec.data.model_copy(update=given)})


def _resources() -> dict[str, float]:
    """Return the peak memory of this process and its largest worker, and the processor time of all."""
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = own.ru_maxrss + 2 * workers.ru_maxrss
    return {
        "peak_gib": peak / 2**20,
        "processor_seconds": own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime,
    }


def _peers(report: Report) -> dict[str, Any]:
    table = next(table for table in report.tables if table.name == "policies")
    names = [f"{column.name} {column.unit}".strip() for column in table.columns]
    return {str(row[0]): dict(zip(names[1:], row[1:], strict=True)) for row in table.rows[:-1]}


def _splits(reports: list[Report]) -> dict[str, Any]:
    names = list(reports[0].metrics)
    pairs = [(name, [report.metrics[name].value for report in reports]) for name in names]
    rows = [[name, *values, _mean(values)] for name, values in pairs]
    return {"name": "splits", "columns": ["metric", "as split", "roles swapped", "mean"], "rows": rows}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _intervals(found: tuple[Solution, Solution]) -> dict[str, Any]:
    rows = [[name, *getattr(found[0].intervals, name), *getattr(found[1].intervals, name)] for name in INTERVALS]
    rows.append(["lead_hours_gain", *found[0].lead_gain_h, *found[1].lead_gain_h])
    columns = ["difference or saving", "low", "high", "low, swapped", "high, swapped"]
    return {"name": "intervals", "columns": columns, "rows": rows}


def _tables(report: Report) -> list[dict[str, Any]]:
    return [_table(report, name) for name in ("policies", "warnings", "route")]


def _table(report: Report, name: str) -> dict[str, Any]:
    table = next(table for table in report.tables if table.name == name)
    columns = [f"{column.name} {column.unit}".strip() for column in table.columns]
    return {"name": name, "columns": columns, "rows": [list(row) for row in table.rows]}


def _notes(found: Solution, *, quick: bool) -> list[str]:
    sizes = [cohort.entities for cohort in (found.study.train, found.study.calibrate, found.study.test)]
    notes = [
        f"patients: {sizes[0]:,} to fit and tune (out of fold), {sizes[1]:,} to certify, {sizes[2]:,} judged",
        "price_saving, flops_saving, latency_saving: against the monolith that remembers the stage",
        "informed_*: against the monolith that is told the points of the rule as well, as the cascade's models are",
        "naive_*: another cascade of the same front, chosen against the monolith without memory",
        "alarms of all policies are set to one rate on the tuning patients; lead time to exactly that rate on the test",
        "loss: share of hours with a wrong stage; loss_points_interval: half the width of its 95 % interval by patient",
        "peak_gib adds the largest worker twice, as two run side by side",
    ]
    return [*notes, f"quick: the first {QUICK_PATIENTS:,} patients only"] if quick else notes
