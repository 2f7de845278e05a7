"""What a spec says of its trace holds where it is planned with, and where another one is replayed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem import build
from unfold_pipeline.replay.simulated import live_sample
from unfold_pipeline.schema.models import PipelineSpec
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
def test_a_trace_is_read_alike_by_plan_and_replay(
    run: Run, tmp_path: Path, arrivals: str, planned: int, replayed: dict[str, int]
) -> None:
    """Counts and text to match hold for plan and replay; for a replay only where there is such a thing."""
    spec = spec_of(arrivals)
    built = build.pipeline(spec, run)
    assert build.samples(spec, built, run)[0].size == planned
    for name, size in replayed.items():
        path = next(tmp_path.glob(f"{name}.*"))
        assert live_sample(spec, built, path, run).size == size


def test_what_was_left_out_is_a_warning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Lines without a time and counts that were guessed are told as warnings of the run."""
    heard = replace(run, log=logging.getLogger("traffic"))
    for name in ("b.log", "t.csv"):
        build.arrivals(build.Arrivals(trace=name), heard, np.random.default_rng(0))
    told = [(record.levelname, record.getMessage().rsplit("/", 1)[1][:20]) for record in caplog.records]
    assert told == [("WARNING", "b.log: skipped 1 of "), ("WARNING", "t.csv: column n is r")]


@pytest.mark.parametrize("key", ["counts: n", "match: x"])
@pytest.mark.parametrize("other", ["trace: t.npz", "shape: big-spike", "process: poisson, rate: 1/s"])
def test_what_has_no_meaning_is_told(key: str, other: str) -> None:
    """Traffic that is no table or log has no counts and no text to match."""
    with pytest.raises(
        UnfoldError, match=rf"mine\.yaml:6:\d+: arrivals\.{key.split(':', maxsplit=1)[0]}: .*leave it out"
    ):
        spec_of(f"{{{other}, {key}}}")
