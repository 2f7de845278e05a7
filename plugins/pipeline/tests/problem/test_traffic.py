"""Options of a trace apply in planning and in a replay."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem import build
from unfold_pipeline.problem.build import build_live_sample
from unfold_pipeline.problem.traffic import load_arrivals
from unfold_pipeline.schema.arrivals import Arrivals
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: traffic
slo: {p99: 500 ms}
arrivals: ARRIVALS
hardware: {core: {price: $0.05/h}}
stages: {only: {latency: {core: {1: 2 ms}}}}
"""
TABLE = "ts,calls,model,n\n0,2,a,7\n1,3,b,7\n2,4,a,7\n"
LOG = "".join(f"2024-01-01T00:00:{second:02}.5Z {way} /\n" for second, way in enumerate(("GET", "POST", "POST")))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run beside a table and a log."""
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "u.csv").write_text("arrival_s\n0\n5\n")
    (tmp_path / "a.log").write_text(LOG)
    (tmp_path / "b.log").write_text("".join(["cut off\n", *[LOG] * 100]))
    return Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)


def spec_of(arrivals: str) -> PipelineSpec:
    """A spec with a trace."""
    return validate(PipelineSpec, parse(SPEC.replace("ARRIVALS", arrivals), "mine.yaml"))


@pytest.mark.parametrize(
    ("arrivals", "planned", "replayed"),
    [
        ("{trace: t.csv}", 21, {"t": 21, "u": 2}),
        ("{trace: t.csv, counts: calls}", 9, {"t": 9, "u": 2}),
        ("{trace: t.csv, counts: ''}", 3, {"t": 3, "u": 2}),
        ("{trace: t.csv, counts: '', match: a}", 2, {"t": 2}),
        ("{trace: a.log, match: POST}", 2, {"a": 2, "u": 2}),
    ],
)
def test_plan_and_replay_read_a_trace_alike(
    run: Run, tmp_path: Path, arrivals: str, planned: int, replayed: dict[str, int]
) -> None:
    """Counts and text to match apply to plan and replay; in a replay only where they exist."""
    spec = spec_of(arrivals)
    problem = build.build_problem(spec, run)
    assert problem.samples[0].size == planned
    for name, size in replayed.items():
        path = next(tmp_path.glob(f"{name}.*"))
        assert build_live_sample(spec, problem, path, run).size == size


def test_skipped_lines_are_warned_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Lines without a time and guessed counts are warnings of the run."""
    heard = replace(run, log=logging.getLogger("traffic"))
    for name in ("b.log", "t.csv"):
        load_arrivals(Arrivals(trace=name), heard, np.random.default_rng(0))
    warnings_seen = [(record.levelname, record.getMessage().rsplit("/", 1)[1][:20]) for record in caplog.records]
    assert warnings_seen == [("WARNING", "b.log: skipped 1 of "), ("WARNING", "t.csv: column n is r")]


@pytest.mark.parametrize("key", ["counts: n", "match: x"])
@pytest.mark.parametrize("other", ["trace: t.npz", "shape: big-spike", "process: poisson, rate: 1/s"])
def test_meaningless_trace_options_are_rejected(key: str, other: str) -> None:
    """Traffic that is neither a table nor a log has no counts and no text to match."""
    with pytest.raises(
        UnfoldError, match=rf"mine\.yaml:6:\d+: arrivals\.{key.split(':', maxsplit=1)[0]}: .*leave it out"
    ):
        spec_of(f"{{{other}, {key}}}")
