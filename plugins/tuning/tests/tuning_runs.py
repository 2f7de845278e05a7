"""Specs that tests run in this process."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.verbs.profile import profile
from unfold_tuning.verbs.train import train
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: tuning
name: t
search: {algorithm: successive-halving, trials: 6, min_iters: 2, max_iters: 12, eta: 3}
trainable: {function: "sleeper:train", space: {ceiling: {uniform: [0, 1]}}}
deadline: 30 s
cloud: {provider: local, instances: [{type: p, accelerators: 1, price: $3.6/h}], limit: 3, billing: {increment: 0.01 s, minimum: 0 s}}
profile: {iteration: {mean: 50 ms}, provision: {mean: 0 s}, startup: {mean: 2 s}, sync: {mean: 0 s}}
samples: 200
"""  # noqa: E501


def load_spec(text: str) -> TuningSpec:
    """Load a spec from text."""
    return validate(TuningSpec, parse(text, "t.yaml"))


def train_spec(folder: Path, text: str = SPEC) -> Report:
    """Run ``train`` in this process."""
    run = Run(directory=RunDir(folder / "run"), engine=LocalEngine(2), allow_code=True)
    return train(load_spec(text), run)


def profile_spec(folder: Path, text: str) -> Report:
    """Run ``profile`` in this process."""
    return profile(load_spec(text), Run(directory=RunDir(folder), engine=LocalEngine(2), allow_code=True))


def read_nodes(folder: Path, ledger: str = "ledger") -> list[tuple[str, float, float, float, float | None]]:
    """Read the instances of a run: name, price, since, last seen, until."""
    with closing(sqlite3.connect(folder / f"run/{ledger}.sqlite")) as base:
        return base.execute("SELECT * FROM nodes ORDER BY since").fetchall()


def read_fact(folder: Path, key: str) -> str | None:
    """Read a fact of a run as JSON text."""
    with closing(sqlite3.connect(folder / "run/ledger.sqlite")) as base:
        row = base.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None
