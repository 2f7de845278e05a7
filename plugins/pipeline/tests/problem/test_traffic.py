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
from unfold_pipeline.verbs.check_inputs import check_inputs
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


def test_stamped_rows_may_be_in_the_order_of_ends(run: Run, tmp_path: Path) -> None:
    """A table of stamps is sorted, unless recorded visits belong to its rows."""
    rows = [f"2026-01-01T00:00:0{second}.5Z" for second in (1, 0, 3, 2)]
    (tmp_path / "ends.csv").write_text("\n".join(["timestamp", *rows]), "utf-8")
    spec = spec_of("{trace: ends.csv}")
    assert build.build_problem(spec, run).samples[0].arrivals.tolist() == [0.0, 1.0, 2.0, 3.0]
    (tmp_path / "visits.csv").write_text("\n".join([",".join(spec.stages_by_name), *4 * ["1"]]), "utf-8")
    recorded = spec.model_copy(update={"visits": "visits.csv"})
    with pytest.raises(UnfoldError, match=r"2026-01-01 00:00:00.500\) is before the one above"):
        build.build_problem(recorded, run)
    assert [each.message for each in check_inputs(recorded, run)][:1] == [
        "arrival 2 (2026-01-01 00:00:00.500) is before the one above it"
    ]


@pytest.mark.parametrize("key", ["counts: n", "match: x"])
@pytest.mark.parametrize("other", ["trace: t.npz", "shape: big-spike", "process: poisson, rate: 1/s"])
def test_meaningless_trace_options_are_rejected(key: str, other: str) -> None:
    """Traffic that is neither a table nor a log has no counts and no text to match."""
    with pytest.raises(
        UnfoldError, match=rf"mine\.yaml:6:\d+: arrivals\.{key.split(':', maxsplit=1)[0]}: .*leave it out"
    ):
        spec_of(f"{{{other}, {key}}}")
