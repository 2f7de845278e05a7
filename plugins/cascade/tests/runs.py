"""Specs and runs for the tests of this kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unfold_cascade.spec import CascadeSpec
from unfoldkit.context import Run
from unfoldkit.engines.local import LocalEngine
from unfoldkit.runs import RunDir
from unfoldkit.spec.loader import read_document
from unfoldkit.spec.override import override
from unfoldkit.spec.validate import validate

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
