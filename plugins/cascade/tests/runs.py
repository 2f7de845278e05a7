"""Specs and runs for the tests of this kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.schema.temporal import Alerts
from unfoldkit.engines.local import LocalEngine
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.override import override
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

HERE = Path(__file__).parent
TUMOURS = HERE.parent / "unfold_cascade" / "examples" / "tumours.yaml"
CONFIGS = HERE.parents[2] / "configs" / "cascade"
OWN = """
version: 1
kind: cascade
name: own
data: {source: table, path: own.csv}
features: {all: {columns: [a, b]}}
stages: [{name: only, target: {column: y}, models: [{name: m, estimator: logistic-regression}]}]
baseline: {candidates: [{estimator: logistic-regression}]}
goal: {max_loss: 1%}
"""


def spec_of(path: Path, *settings: str) -> CascadeSpec:
    """Return a shipped spec, changed."""
    return validate(CascadeSpec, override(read_document(str(path)), settings))


def run_in(folder: Path, **changes: Any) -> Run:
    """Return surroundings that write to ``folder`` and look for files beside the shipped specs."""
    return Run(directory=RunDir(folder), **{"engine": LocalEngine(1), "base": CONFIGS, **changes})


def small(spec: CascadeSpec, records: Path) -> CascadeSpec:
    """Return the shipped spec of real patients on other records, with fewer and smaller models."""
    stages = [
        stage.model_copy(update={"models": tuple(_quick(model) for model in (stage.models[0], stage.models[-1]))})
        for stage in spec.stages
    ]
    data = spec.data.model_copy(update={"path": str(records)})
    assert spec.baseline is not None
    # so few patients cannot tell one alarm from another
    alerts = Alerts(per_100h=10, utility_margin=0.3, auprc_margin=0.05)
    gates = spec.gates.model_copy(update={"folds": 2})
    update = {
        "data": data,
        "stages": tuple(stages),
        "baseline": _quick(spec.baseline),
        "alerts": alerts,
        "gates": gates,
    }
    return spec.model_copy(update=update)


def _quick(model: Any) -> Any:
    rounds = min(int(model.params["n_estimators"]), 20)
    return model.model_copy(update={"params": {**model.params, "n_estimators": rounds}})
