"""A cascade's run as a pipeline: equal routes, models verified by hash, and clear errors for unusable runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.problem import build
from unfold_pipeline.problem.build import locate_model, resolve_stages
from unfold_pipeline.problem.from_cascade import ROUTES_FILE
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.report.export_ray_serve import export_ray_serve
from unfold_pipeline.runtime.models import model_loader
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict, dump
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: stages-of-a-run
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 50/s, duration: 40 s}
hardware: {core: {price: $0.05/h}}
stages: {from: cascade, max_batch: 2}
"""
ROOT = Path(__file__).parents[4]
WAYS = (([0], 60), ([0, 1], 20), ([0, 2], 10), ([0, 1, 2], 10))
AFTER: tuple[dict[str, float], ...] = ({}, {"quick": 0.3}, {"quick": 0.1, "slow": 1 / 3})
NAMES = ("quick", "slow", "last")
EXITS = "unfold_cascade.exits/1"


def spec_of(text: str = SPEC) -> PipelineSpec:
    """The spec of a text, as the command reads it."""
    return validate(PipelineSpec, parse(text, "mine.yaml"))


def model_of(seed: int) -> bytes:
    """A stored model that reads two numbers."""
    import skops.io
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(seed).random((40, 2))
    return bytes(skops.io.dumps(LogisticRegression().fit(rows, rows[:, 0] > rows[:, 1])))


def exits_of(**changes: Any) -> dict[str, Any]:
    """The exits of a cascade of three models."""
    models = [
        {
            "name": name,
            "file": f"models/{name}.skops",
            "columns": [0, 2],
            "latency_us": 1e3 * (place + 1),
            "after": after,
        }
        for place, (name, after) in enumerate(zip(NAMES, AFTER, strict=True))
    ]
    ways = [{"models": way, "cases": count} for way, count in WAYS]
    facts = {"schema": EXITS, "spec_sha256": "abc", "cases": 100, "columns": 3, "rows_per_call": 256, "probe": None}
    return {**facts, "models": models, "ways": ways, "unasked": ["never"], **changes}


def cascade(
    folder: Path, kind: str = "cascade", source: str = "sklearn", moves: dict[str, str] | None = None, **changes: Any
) -> RunDir:
    """The run of a cascade, as it stands in files."""
    directory = RunDir(folder / "cascade")
    spec = {"data": {"source": source}, **({"moves": moves} if moves else {})}
    facts = {"schema": "unfoldkit.plan/1", "kind": kind, "spec_sha256": "abc", "spec": spec}
    directory.write("plan.yaml", json.dumps(facts).encode())
    directory.write("exits.json", json.dumps(exits_of(**changes)).encode())
    for seed, name in enumerate(NAMES):
        directory.write(f"models/{name}.skops", model_of(seed))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)


def test_queries_follow_the_execution_paths_of_the_cases(tmp_path: Path, run: Run) -> None:
    """As many queries as cases take each execution path, and each edge has the share of the run."""
    cascade(tmp_path)
    spec = resolve_stages(spec_of(), run)
    problem = build.build_problem(spec, run)
    built, sample = problem.pipeline, problem.samples[0]
    seen: list[list[int]] = [[] for _ in range(sample.size)]
    for stage, visits in enumerate(sample.visits):
        for owner in visits.query.tolist():
            seen[owner].append(stage)
    counts = Counter(tuple(way) for way in seen[: sample.size // 100 * 100])
    assert counts == {tuple(way): count * (sample.size // 100) for way, count in WAYS}
    assert [stage.name for stage in built.stages] == list(NAMES)
    assert {edge.parent: edge.share for edge in built.stages[2].parents} == {0: 0.1, 1: pytest.approx(1 / 3)}


def test_temporal_cascade_is_entered_at_several_stages(tmp_path: Path, run: Run) -> None:
    """Each stage of a temporal cascade gets its share of the hours; hours without a model take no time."""
    reason = [
        item | {"after": {}, "share": share} for item, share in zip(exits_of()["models"][:2], (0.5, 0.8), strict=True)
    ]
    ways = [{"models": way, "cases": count} for way, count in (([], 20), ([0, 1], 50), ([1], 30))]
    cascade(tmp_path, source="long", unit="hours", models=reason, ways=ways)
    spec = resolve_stages(spec_of(), run)
    problem = build.build_problem(spec, run)
    built, sample = problem.pipeline, problem.samples[0]
    hundreds = sample.size // 100 * 100
    counts = [int((visits.query < hundreds).sum()) for visits in sample.visits]
    assert counts == [hundreds * 0.5, hundreds * 0.8]
    assert [stage.share for stage in built.stages] == [0.5, 0.8]
    took = Estimator(built, sample).compute_latencies(tuple(StageConfig(0, 1, 1) for _ in built.stages))
    visited = np.unique(np.concatenate([visits.query for visits in sample.visits]))
    assert (took[visited] > 0).all()
    assert (np.delete(took, visited) == 0).all()
    lines = dict(plan(spec_of(), run).lines)
    assert "100 hours" in lines["routes"]
    assert lines["idle"].startswith("20 % of the hours")


@pytest.mark.e2e
def test_unusable_cascade_is_reported_at_its_line(tmp_path: Path) -> None:
    """A cascade that cannot be planned is reported at the line that names it, with exit code 2."""
    sticky(tmp_path)
    (tmp_path / "pipe.yaml").write_text(SPEC)
    done = unfold(tmp_path, "plan", "pipe.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("pipe.yaml:8:10: stages.from: the cascade of cascade cannot be")


def test_report_names_the_origin_of_latencies(tmp_path: Path, run: Run) -> None:
    """Without a profile, a model has the latency that the cascade measured, and the report states it."""
    directory = cascade(tmp_path)
    report = plan(spec_of(), run)
    assert report.verdict is Verdict.YES
    lines = dict(report.lines)
    assert "100 cases" in lines["routes"]
    assert "256 rows per call" in lines["latency"]
    assert "never" in lines["unused"]
    assert report.provenance["inputs"]["exits_sha256"] == directory.files()["exits.json"]["sha256"]
    options = build.build_problem(spec_of(), run).pipeline.stages[1].options
    assert options[0].latency_s.tolist() == pytest.approx([0, 2e-3, 4e-3])


@pytest.mark.e2e
def test_profile_of_a_retrained_model_is_rejected(tmp_path: Path, run: Run) -> None:
    """A profile measures the models of the run and is rejected once the run holds another model."""
    directory = cascade(tmp_path, models=exits_of()["models"][:1], ways=[{"models": [0], "cases": 100}])
    assert set(profile(spec_of(), run).metrics) == {"quick_ms"}
    assert "latency" not in dict(plan(spec_of(), run).lines)
    directory.write("models/quick.skops", model_of(9))
    with pytest.raises(UnfoldError, match=r"stages.quick: .*trained again .*unfold profile SPEC"):
        plan(spec_of(), run)
    profile(spec_of(), run)
    assert plan(spec_of(), run).verdict is Verdict.YES


def test_model_reads_its_columns_of_a_query(tmp_path: Path, run: Run) -> None:
    """A model answers whole queries as the stored model answers the columns that it was fitted on."""
    cascade(tmp_path)
    model = resolve_stages(spec_of(), run).stages_by_name["slow"].model
    assert model is not None
    source = locate_model("slow", model, run)
    rows = model_loader.load_rows(source, None)
    assert rows.shape[1] == 3
    whole = model_loader.load_model(source)
    alone = model_loader.load_model(ModelSource(path=str(tmp_path / "cascade" / "models" / "slow.skops")))
    assert np.array_equal(whole(rows), alone(rows[:, [0, 2]]))


def test_model_without_file_is_planned_but_not_served(tmp_path: Path, run: Run) -> None:
    """A model without a file is planned with the latency of the run and cannot be served."""
    reason = exits_of()["models"]
    reason[1]["file"] = None
    cascade(tmp_path, models=reason)
    assert plan(spec_of(), run).verdict is Verdict.YES
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n0\n1\n")
    with pytest.raises(UnfoldError, match=r"stages.slow: has no model to serve"):
        serve(spec_of(), replace(run, options={"replay": str(trace)}))


def remove_exits(directory: RunDir) -> None:
    """Remove the exits from the run."""
    manifest = json.loads((directory.path / "manifest.json").read_text())
    del manifest["files"]["exits.json"]
    (directory.path / "manifest.json").write_text(json.dumps(manifest))


def sticky(folder: Path) -> None:
    """The run of a temporal cascade in which an hour begins where the last one ended."""
    cascade(folder, source="physionet2019", moves={"entry": "sticky"})


def same_step(folder: Path) -> None:
    """The run of a temporal cascade that selects the next stage within the same hour."""
    remove_exits(cascade(folder, source="long", moves={"entry": "reset", "advance": "same-step"}))


def recorded(folder: Path) -> None:
    """The run of a cascade of recorded predictions."""
    remove_exits(cascade(folder, source="recorded"))


def changed(folder: Path) -> None:
    """A run with a changed model."""
    (cascade(folder).path / "models" / "last.skops").write_bytes(b"other")


def changed_exits(folder: Path) -> None:
    """A run with changed exits."""
    (cascade(folder).path / "exits.json").write_bytes(b"{}")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _folder: None, "stages.from: no such file or folder: 'cascade'"),
    "empty": (lambda folder: (folder / "cascade").mkdir(), "stages.from: no plan of a cascade .*unfold train"),
    "other kind": (
        lambda folder: cascade(folder, kind="tuning"),
        "stages.from: a run of kind tuning, not of a cascade",
    ),
    "sticky": (sticky, "stages.from: the cascade of cascade cannot be .* moves.entry: sticky.*entry: reset"),
    "same step": (same_step, "stages.from: the cascade .* moves.advance: same-step.*advance: next-step"),
    "recorded": (recorded, "stages.from: the cascade of cascade cannot be .* recorded.*only cascades of"),
    "earlier": (lambda folder: remove_exits(cascade(folder)), "planned by an earlier version .*unfold train"),
    "another plan": (lambda folder: cascade(folder, spec_sha256="else"), "stages.from: the plan .* another cascade"),
    "another schema": (lambda folder: cascade(folder, schema="x/2"), "stages.from: exits of schema 'x/2'"),
    "no exits": (lambda folder: cascade(folder, ways=[]), "stages.from: exits of schema"),
    "changed model": (changed, "last.skops: the file was changed"),
    "changed exits": (changed_exits, "exits.json: the file was changed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_runs_are_rejected(tmp_path: Path, run: Run, case: str) -> None:
    """Each reason why a run cannot be a pipeline is reported with its key and exit code 2."""
    make, reason = WRONG[case]
    make(tmp_path)
    with pytest.raises(UnfoldError, match=reason) as error:
        plan(spec_of(), run)
    assert error.value.code == 2


def test_run_of_the_cascade_is_never_overwritten(tmp_path: Path, run: Run) -> None:
    """A pipeline with the run folder of the cascade is rejected before it writes there."""
    directory = cascade(tmp_path)
    before = directory.files()
    with pytest.raises(UnfoldError, match=r"would write to the run of the cascade .*--run DIR"):
        plan(spec_of(), replace(run, directory=directory))
    assert directory.files() == before
    assert not directory.has(ROUTES_FILE)


def test_cascade_is_not_served_with_random_routes(tmp_path: Path, run: Run) -> None:
    """Serving the pipeline of a cascade is rejected, and the command that serves the cascade is named."""
    cascade(tmp_path)
    with pytest.raises(UnfoldError, match=r"stages.from: .*unfold serve cascade, or --replay"):
        serve(spec_of(), run)


def test_cascade_cannot_be_exported(tmp_path: Path, run: Run) -> None:
    """A plan with stages from a run is not exported, and the message names the command that serves them."""
    cascade(tmp_path)
    report = plan(spec_of(), run)
    report = replace(report, provenance={**report.provenance, "spec": dump(spec_of())})
    with pytest.raises(UnfoldError, match=r"stages.from: .*unfold serve cascade"):
        export_ray_serve(report)


def test_contradictions_with_a_cascade_are_rejected() -> None:
    """Routes given twice and unknown keys of a cascade's run are reported with their position."""
    with pytest.raises(UnfoldError, match=r"mine.yaml:\d+:\d+: visits: the routes come from"):
        spec_of(SPEC + "visits: mine.csv\n")
    with pytest.raises(UnfoldError, match=r"mine.yaml:8:\d+: stages.max_bath: unknown key"):
        spec_of(SPEC.replace("max_batch", "max_bath"))


@pytest.mark.e2e
@pytest.mark.parametrize("spec", ["plugins/cascade/unfold_cascade/examples/tumours.yaml", "configs/cascade/wards.yaml"])
def test_trained_cascade_is_planned_and_replayed(tmp_path: Path, spec: str) -> None:
    """A trained cascade, temporal or not, is planned and replayed by three commands without losing a query."""
    cascade_spec = ROOT / spec
    where = f"from: runs/{cascade_spec.stem}"
    text = SPEC.replace("from: cascade", where).replace("50/s", "20/s") + "tuner: {policy: fixed}\n"
    (tmp_path / "pipe.yaml").write_text(text)
    (tmp_path / "trace.csv").write_text("arrival_s\n" + "".join(f"{place * 0.05:.2f}\n" for place in range(40)))
    assert unfold(tmp_path, "train", str(cascade_spec)).returncode == 0
    done = unfold(tmp_path, "plan", "pipe.yaml", "--out", "plan.yaml")
    assert done.returncode == 0, done.stderr
    done = unfold(tmp_path, "serve", "plan.yaml", "--replay", "trace.csv", "--format", "json")
    assert done.returncode in (0, 1), done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["lost"]["value"] == 0
    assert metrics["p99_ms"]["value"] > 0


def unfold(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "unfoldkit", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
