"""``unfold check --data`` reads data, layers and queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plugins.supernet.tests.helpers import parse_spec
from unfold_supernet.verbs.check_inputs import check_inputs
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine

LAYERS = """
version: 1
kind: supernet
name: mine
layers: nets.csv
accelerator: {preset: zcu104}
queries: {path: queries.csv}
"""


def list_diagnostics(folder: Path, text: str) -> list[str]:
    """List what is wrong with the files of a spec."""
    spec = parse_spec(text)
    return [str(item) for item in check_inputs(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder))]


BEATS = """
version: 1
kind: supernet
name: ecg
data: {source: mitbih, path: beats.npz, split: inter-patient}
space: {form: conv1d, stages: [{width: 16}, {width: 32}], depth: [1, 2], expand: [0.5, 1.0], coupling: compound}
"""


def test_valid_files_yield_no_diagnostic(tmp_path: Path) -> None:
    """Valid files give no diagnostic, and nothing is written."""
    (tmp_path / "queries.csv").write_text("accuracy,latency_ms\n76,30\n", encoding="utf-8")
    text = LAYERS.replace("layers: nets.csv", "family: ofa-resnet50")
    assert list_diagnostics(tmp_path, text) == []
    assert not (tmp_path / "run").exists()


def test_errors_of_all_files_are_reported_together(tmp_path: Path) -> None:
    """A missing layer table and an accuracy above 100 % are both reported; a plan would stop at the first."""
    (tmp_path / "queries.csv").write_text("accuracy,latency_ms\n176,30\n", encoding="utf-8")
    layers, queries = list_diagnostics(tmp_path, LAYERS)
    assert "layers: no such file or folder: 'nets.csv'" in layers
    assert "queries.csv:2" in queries


def test_missing_array_is_reported(tmp_path: Path) -> None:
    """An archive without a required array is reported before training."""
    np.savez(tmp_path / "beats.npz", X=np.zeros((4, 8)))
    (lacking,) = list_diagnostics(tmp_path, BEATS)
    assert "beats.npz" in lacking
