"""Profiles are measured through a serving process, kept, and planned with; nothing runs code without leave."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem import build, latency_profile
from unfold_pipeline.problem.model_source import (
    ModelSource,
    load_digits,
    locate_model,
    read_imported_modules,
    read_module,
)
from unfold_pipeline.runtime import model_loader
from unfold_pipeline.runtime.profiler import ROUNDS, list_batch_sizes
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import ModelSpec
from unfold_pipeline.verbs.plan import plan
from unfold_pipeline.verbs.profile import profile
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: measured
slo: {p99: 400 ms}
arrivals: {process: poisson, rate: 20/s, duration: 10 s}
hardware: {core: {price: $0.05/h}}
stages:
  nap: {model: {code: "naps:nap", features: 3}, max_batch: 3}
"""
CODE = "import time\n\ndef nap(rows):\n    time.sleep(0.01 + 0.01 * len(rows))\n    return rows.sum(axis=1)\n"


def surroundings(folder: Path, *, allow: bool = True) -> tuple[PipelineSpec, Run]:
    """A spec of a model that sleeps, and a run that may or may not run its code."""
    (folder / "naps.py").write_text(CODE)
    spec = validate(PipelineSpec, parse(SPEC, "naps.yaml"))
    return spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder, allow_code=allow)


def test_code_needs_leave(tmp_path: Path) -> None:
    """A spec that names code is refused without --allow-code."""
    spec, run = surroundings(tmp_path, allow=False)
    with pytest.raises(UnfoldError, match="--allow-code"):
        profile(spec, run)


def test_plan_needs_a_profile(tmp_path: Path) -> None:
    """A stage with a model and no latency says that it must be profiled first."""
    spec, run = surroundings(tmp_path)
    with pytest.raises(UnfoldError, match="unfold profile SPEC first"):
        plan(spec, run)


def test_profile_measures_what_the_model_takes_and_is_kept(tmp_path: Path) -> None:
    """A model that sleeps 10 ms and 10 ms a row is measured as that; it is not measured twice; the plan uses it."""
    spec, run = surroundings(tmp_path)
    report = profile(spec, run)
    points = latency_profile.load_profile("nap", run)
    assert points is not None
    assert [point.batch for point in points] == [1, 2, 3]
    for point in points:
        assert 0.01 + 0.01 * point.batch <= point.p50 < 0.04 + 0.01 * point.batch
        assert np.mean(point.spread) == pytest.approx(1.0, abs=0.05)
    assert "measured 1 of 1 stages" in report.headline
    assert "measured 0 of 1 stages" in profile(spec, run).headline
    planned = plan(spec, run)
    assert planned.decision is not None
    assert planned.decision["stages"]["nap"]["hardware"] == "core"


def test_saved_models_answer_as_before(tmp_path: Path) -> None:
    """XGBoost and scikit-learn models that are fitted, stored and loaded again answer digits well above chance."""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    rows, labels = load_digits()
    for name in ("logistic-regression", "xgboost"):
        model = ModelSpec(estimator=name)  # type: ignore[arg-type]
        source = locate_model("stage", model, run)
        answers = model_loader.load_model(source)(rows[:300])
        assert model_loader.read_width("s", source) == 64
        assert (answers.argmax(axis=1) == labels[:300]).mean() > 0.9


def test_bad_models_are_told(tmp_path: Path) -> None:
    """A missing file, an unknown kind and a damaged model are told."""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    with pytest.raises(UnfoldError, match="no such file"):
        locate_model("s", ModelSpec(file="none.onnx"), run)
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(UnfoldError, match="cannot load a model that ends in"):
        locate_model("s", ModelSpec(file="a.pkl"), run)
    (tmp_path / "a.skops").write_bytes(b"x")
    with pytest.raises(UnfoldError, match="cannot load the model"):
        model_loader.load_model(locate_model("s", ModelSpec(file="a.skops"), run))


def test_batches_are_powers_of_two_and_the_largest() -> None:
    """Batch sizes to measure are powers of two and the largest itself."""
    assert list_batch_sizes(1) == (1,)
    assert list_batch_sizes(8) == (1, 2, 4, 8)
    assert list_batch_sizes(12) == (1, 2, 4, 8, 12)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process keep to a core")
def test_profile_under_another_pin_is_measured_again(tmp_path: Path) -> None:
    """What was measured of a replica that moves between cores is not taken for one that keeps to a core."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    pinned = validate(PipelineSpec, parse(f"{SPEC}placement: {{pin: core}}\n", "naps.yaml"))
    assert "measured 1 of 1 stages" in profile(pinned, run).headline
    assert "measured 0 of 1 stages" in profile(pinned, run).headline


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process keep to a core")
def test_sizes_are_measured_in_turn_on_cores_in_turn(tmp_path: Path) -> None:
    """A change of pace while a pinned stage is measured meets all batch sizes, and all of two cores."""
    pinned = parse(f"{SPEC}placement: {{pin: core}}\n", "naps.yaml")
    _, run = surroundings(tmp_path)
    told = tmp_path / "calls.txt"
    note = f"    open({str(told)!r}, 'a').write(f'{{len(rows)}} {{min(os.sched_getaffinity(0))}}\\n')\n"
    (tmp_path / "naps.py").write_text("import os\n" + CODE.replace("(rows):\n", f"(rows):\n{note}"))
    profile(validate(PipelineSpec, pinned), run)
    calls = [tuple(map(int, line.split())) for line in told.read_text().splitlines()]
    sizes = [size for size, _ in itertools.groupby(calls, lambda call: call[0])]
    assert len(sizes) >= 3 * ROUNDS
    cores = sorted(os.sched_getaffinity(0))
    for size in (1, 2, 3):
        assert {core for rows, core in calls if rows == size} == set(cores[:: max(1, len(cores) // ROUNDS)][:ROUNDS])


def test_changed_code_is_measured_again(tmp_path: Path) -> None:
    """A profile counts only while the module that holds the function is as it was when it was measured."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    (tmp_path / "naps.py").write_text(CODE.replace("0.01 +", "0.03 +"))
    assert "measured 1 of 1 stages" in profile(spec, run).headline
    points = latency_profile.load_profile("nap", run)
    assert points is not None
    assert points[0].mean >= 0.04
    assert "measured 0 of 1 stages" in profile(spec, run).headline


def test_what_code_imports_is_part_of_it(tmp_path: Path) -> None:
    """The text of modules in the same folder that a module imports, also at second hand or in a package, counts."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "deep" / "naps.py").write_text("import os\nimport numpy\nfrom . import near\nfrom far import x\n")
    (tmp_path / "deep" / "near.py").write_text("import last\n")
    (tmp_path / "far.py").write_text("import missing\n")
    (tmp_path / "last.py").write_text("a\n")
    (tmp_path / "other.py").write_text("b\n")
    source = ModelSource(code="deep.naps:nap", folder=str(tmp_path))
    found = read_imported_modules(source)
    assert found == b"raise RuntimeError\nimport last\nimport missing\na\n"
    for name in ("last.py", "far.py"):
        (tmp_path / name).write_text("changed = 1\n")
        assert read_imported_modules(source) != found
    (tmp_path / "far.py").write_text("no code at all\n")
    read_imported_modules(source)
    assert read_imported_modules(ModelSource(code="none:nap", folder=str(tmp_path))) == b""


def test_code_is_found_without_running_it(tmp_path: Path) -> None:
    """The text of a module in a package is found, that of one that is not there is empty, and nothing is imported."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "deep" / "naps.py").write_text(CODE)
    for code, body in (("deep.naps:nap", CODE), ("deep:nap", "raise RuntimeError"), ("none.naps:nap", "")):
        assert read_module(ModelSource(code=code, folder=str(tmp_path))) == body.encode()


GIVEN = SPEC.replace("hardware: {core", "hardware: {gpu: {price: $1/h}, core").replace(
    "max_batch: 3", "max_batch: 3, latency: {LATENCY}"
)


def latency_under(given: str, folder: Path, *, measure: bool = True, here: str = "gpu") -> dict[str, float]:
    """The ms of one query by hardware of a stage with a model and the latencies that are given."""
    text = GIVEN.replace("LATENCY", given) + f"machine: {here}\n"
    _, run = surroundings(folder)
    spec = validate(PipelineSpec, parse(text, "naps.yaml"))
    if measure:
        profile(spec, run)
    options = build.build_problem(spec, run).pipeline.stages[0].options
    return {option.hardware: float(option.latency_s[1]) * 1e3 for option in options}


def test_given_latencies_go_before_measured_ones(tmp_path: Path) -> None:
    """What the spec gives for a hardware counts there, whatever was measured; the profile counts elsewhere."""
    assert latency_under("gpu: {1: 70 ms}, core: {1: 90 ms}", tmp_path) == pytest.approx({"gpu": 70, "core": 90})
    found = latency_under("gpu: {1: 70 ms}", tmp_path, here="core")
    assert found["gpu"] == pytest.approx(70)
    assert 20 <= found["core"] < 50


def test_a_stage_is_planned_on_what_is_given(tmp_path: Path) -> None:
    """A model that was not measured needs no profile where the spec gives a latency on any hardware."""
    assert latency_under("core: {1: 90 ms}", tmp_path, measure=False) == pytest.approx({"core": 90})


def test_a_plan_says_what_was_measured(tmp_path: Path) -> None:
    """A plan names the hardware whose latencies were measured and the machine; or says that they were not taken."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    assert (
        dict(plan(spec, run).lines)["measured"]
        == f"nap: profiled on {latency_profile.describe_processor()} (core in the spec)"
    )
    given = validate(PipelineSpec, parse(GIVEN.replace("LATENCY", "gpu: {1: 9 ms}, core: {1: 9 ms}"), "naps.yaml"))
    assert dict(plan(given, run).lines)["overridden"].startswith("nap: the latency of the spec on gpu overrides")
    assert "plans use the latency of the spec on gpu" in dict(profile(given, run).lines)["overridden"]
