"""The next command after a replay can be executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem.build import find_serve_command
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

HEAD = """
version: 1
kind: pipeline
name: one
slo: {p99: 350 ms}
arrivals: {process: poisson, rate: 20/s, duration: 10 s}
hardware: {cpu: {price: $0.05/h}}
"""
GIVEN = "stages: {a: {latency: {cpu: {1: 10 ms}}}}"
MODEL = 'stages: {a: {latency: {cpu: {1: 10 ms}}, model: {code: "m:f", features: 2}}}'


def spec_of(stages: str) -> PipelineSpec:
    return validate(PipelineSpec, parse(HEAD + stages, "mine.yaml"))


@pytest.mark.parametrize(
    ("stages", "after"),
    [(GIVEN, ""), (MODEL, "unfold serve SPEC"), ("stages: {from: runs/x}", "unfold serve SPEC --replay TRACE")],
)
def test_serve_command_requires_models(stages: str, after: str) -> None:
    """Stages without a model have no serve command, and those of a cascade need a trace."""
    assert find_serve_command(spec_of(stages)) == after


def test_replay_of_unserved_stages_has_no_next_command(tmp_path: Path) -> None:
    """After the replay of a plan that cannot be served, no next command is named."""
    np.savez(tmp_path / "t.npz", arrival_s=np.arange(100) / 20)
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, options={"replay": str(tmp_path / "t.npz")})
    assert plan(spec_of(GIVEN), run).next == ""
