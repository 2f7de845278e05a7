"""`unfold check --data` opens every file that a spec names and reports all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.check_inputs import check_inputs
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: opens
slo: {p99: 500 ms}
arrivals: [{trace: TRACE}, {process: poisson, rate: 1/s}, {trace: b.log}]
visits: VISITS
prices: PRICES
hardware: {core: {price: $0.05/h}, own: {}}
stages:
  first: {model: {file: MODEL}, perf_analyzer: {core: {1: PERF}}}
  then: {after: {first: 50%}, latency: {own: {1: 2 ms}}}
"""
FILES = {
    "TRACE": ("a.csv", "arrival_s\n0\n5\n", "arrival_s\n0\nsoon\n", "soon"),
    "VISITS": ("v.csv", "first,then\n1,1\n", "first,then\n0,1\n", "visited without first"),
    "PRICES": ("p.csv", "instance,price\nown,1\n", "instance,price\nown,cheap\n", "not a price"),
    "PERF": (
        "b1.csv",
        "Server Compute Input,Server Compute Infer,Server Compute Output\n1,2,3\n",
        "Server Compute Input\n1\n",
        "no column Server Compute Infer",
    ),
    "MODEL": ("m.ubj", "", "", ""),
}


def list_diagnostics(folder: Path, **other: str) -> list[str]:
    """Return what is wrong with the files of the spec, some of them others."""
    text = SPEC
    for key, (name, good, _, _) in FILES.items():
        (folder / name).write_text(other.get(key, good))
        text = text.replace(key, name)
    (folder / "b.log").write_text("".join(f"2024-01-01T00:00:{second:02}.5Z GET /\n" for second in range(9)))
    for name in other.get("gone", "").split():
        (folder / name).unlink()
    spec = validate(PipelineSpec, parse(text, "mine.yaml"))
    return [str(item) for item in check_inputs(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder))]


def test_valid_inputs_have_no_diagnostics(tmp_path: Path) -> None:
    """A spec with readable files has no diagnostics, and nothing is written."""
    assert list_diagnostics(tmp_path) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", [key for key in FILES if key != "MODEL"])
def test_unreadable_input_is_the_only_diagnostic(tmp_path: Path, key: str) -> None:
    """A malformed file is the only diagnostic, with the message of planning."""
    (found,) = list_diagnostics(tmp_path, **{key: FILES[key][2]})
    assert FILES[key][3] in found


def test_every_missing_file_is_reported(tmp_path: Path) -> None:
    """Every missing file is reported with the key that names it."""
    found = list_diagnostics(tmp_path, gone="a.csv b.log v.csv p.csv b1.csv m.ubj")
    keys = [line.split(": no such file")[0] for line in found]
    assert keys == [
        *("arrivals[0].trace", "arrivals[2].trace", "visits", "prices"),
        *("stages.first.perf_analyzer.core.1", "stages.first.model.file"),
    ]
