"""Specs and runs for the tests of this kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfold_cascade._types import FloatArray
from unfold_cascade.build import build_dataset_options, build_problem
from unfold_cascade.data.dataset import Dataset, load_dataset, load_features, load_stored_dataset
from unfold_cascade.planner.certificate import Rule, count_leading_passes, p_value
from unfold_cascade.planner.planner import FRONT_FILE, Solution, solve
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.temporal import Alerts
from unfold_cascade.serving.loader import LoadedPlan, load_plan, load_stored_plan
from unfoldkit.api import dump
from unfoldkit.engines.local import LocalEngine
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.override import apply_settings
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


def recorded_spec(name: str, max_loss: str, *, data: str = "", gates: str = "{}") -> str:
    """Write a spec of two recorded models, small for 1 $ and large for 9 $, in the columns a, qa, b, qb and y."""
    return f"""
version: 1
kind: cascade
name: {name}
data: {{source: recorded, path: log.csv{data}}}
stages:
  - name: answer
    target: {{column: y}}
    models:
      - {{name: small, price: 1, recorded: {{prediction: a, confidence: qa}}}}
      - {{name: large, price: 9, recorded: {{prediction: b, confidence: qb}}}}
cost: {{by: price}}
gates: {gates}
goal: {{max_loss: {max_loss}}}
"""


def spec_of(path: Path, *settings: str) -> CascadeSpec:
    """Return a shipped spec, changed."""
    return validate(CascadeSpec, apply_settings(read_document(str(path)), settings))


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
    # too few patients to distinguish the alarms
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


def solve_spec(spec: CascadeSpec, run: Run) -> Solution:
    """Resolve a spec and search its cascade."""
    return solve(build_problem(spec, run), run)


def load_cases(spec: CascadeSpec, run: Run) -> Dataset:
    """Load the data set of a spec."""
    return load_dataset(build_dataset_options(spec, run), run)


def load_matrix(spec: CascadeSpec, run: Run, dataset: Dataset) -> FloatArray:
    """Load the feature matrix of a spec."""
    return load_features(build_dataset_options(spec, run), dataset)


def load_served(spec: CascadeSpec, run: Run) -> LoadedPlan:
    """Load the plan that a run stores."""
    plan = load_plan(dump(spec), run, FRONT_FILE)
    problem = build_problem(spec, replace(run, seed=int(plan["seed"])), load_stored_dataset(run.directory))
    return load_stored_plan(problem, plan, run.directory)


def certify_in_sequence(
    differences: FloatArray, epsilon: float, delta: float, rules: Rule | Sequence[Rule]
) -> int | None:
    """Return the last of (m, n) points before the first failure of fixed-sequence testing; None if the first fails."""
    by_point = [rules] * len(differences) if isinstance(rules, Rule) else rules
    tests = (p_value(d, epsilon, rule) for d, rule in zip(differences, by_point, strict=True))
    passed = count_leading_passes(tests, delta)
    return passed - 1 if passed else None
