"""What the shipped cascade on scikit-learn's digits saves against the best single model, over several splits."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from unfoldkit.engines.local import LocalEngine
from unfoldkit.plugin_descriptors import resolve
from unfoldkit.report import Report
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

SPEC = Path(__file__).parents[1] / "configs" / "cascade" / "digits.yaml"
SEEDS = 5
NAMES = ("saving", "loss_points", "certified_loss_points", "baseline_accuracy", "cascade_accuracy", "latency_saving")


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Train the shipped spec from nothing on several splits (one with ``quick``) and average over them."""
    del data
    seeds = [seed + offset for offset in range(1 if quick else SEEDS)]
    reports = [_trained(each) for each in seeds]
    rows = [
        [each, *(report.metrics[name].value for name in NAMES)] for each, report in zip(seeds, reports, strict=True)
    ]
    metrics = {name: statistics.fmean(_value(report, name) for report in reports) for name in NAMES}
    metrics |= {"saving_min": min(_value(report, "saving") for report in reports)}
    metrics |= {"loss_points_max": max(_value(report, "loss_points") for report in reports)}
    return {
        "metrics": metrics,
        "peers": {"monoliths": _tried(reports[0])},
        "tables": [{"name": "splits", "columns": ["seed", *NAMES], "rows": rows}],
        "notes": [
            f"means over {len(seeds)} splits of 1,797 images; costs are counted operations, latency_saving is measured",
            "the reference is the candidate with the best cross-validated accuracy on the training half of each split",
            "a split whose cascade could not be certified counts with saving 1 and loss 0",
        ],
    }


def _trained(seed: int) -> Report:
    sys.stderr.write(f"cascade-digits: split {seed}\n")
    spec = validate(resolve("unfold_cascade.schema.cascade:CascadeSpec"), read_document(str(SPEC)))
    with tempfile.TemporaryDirectory() as folder:
        here = Run(directory=RunDir(Path(folder)), engine=LocalEngine(), seed=seed, base=SPEC.parent)
        report: Report = resolve("unfold_cascade.verbs:train")(spec, here)
    return report


def _value(report: Report, name: str) -> float:
    return float(report.metrics[name].value or 0.0)


def _tried(report: Report) -> dict[str, Any]:
    table = next(table for table in report.tables if table.name == "single models")
    return {str(row[0]): {"accuracy_test_percent": row[2], "cost_flops": row[3]} for row in table.rows}
