"""Profiles are measured through a serving process, stored, and used by plans; code needs permission."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.problem import build, latency_profile
from unfold_pipeline.problem.build import locate_model
from unfold_pipeline.problem.model_source import (
    ModelSource,
    load_digits,
    read_imported_modules,
    read_module,
)
from unfold_pipeline.runtime.models import model_loader
from unfold_pipeline.runtime.profiler import MIN_DRIFT, ROUNDS, list_batch_sizes, measure_drift
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


def test_code_needs_permission(tmp_path: Path) -> None:
    """A spec that names code is rejected without --allow-code."""
    spec, run = surroundings(tmp_path, allow=False)
    with pytest.raises(UnfoldError, match="--allow-code"):
        profile(spec, run)


def test_plan_needs_a_profile(tmp_path: Path) -> None:
    """A stage with a model and no latency must be profiled first."""
    spec, run = surroundings(tmp_path)
    with pytest.raises(UnfoldError, match="unfold profile SPEC first"):
        plan(spec, run)


def test_noise_is_no_drift() -> None:
    """Heavy-tailed times are none, nor is a single batch size that becomes slower; what all sizes share is one."""
    rng = np.random.default_rng(0)
    noise = [[rng.lognormal(0.0, 1.0, 30) for _ in range(4)] for _ in range(200)]
    assert max(max(drift, 1 / drift) for drift in map(measure_drift, noise)) < MIN_DRIFT
    rising, steady = np.linspace(1.0, 5.0, 30), np.ones(30)
    assert measure_drift([rising, rising]) == pytest.approx(2.6, abs=0.2)
    assert measure_drift([rising[::-1], rising[::-1]]) == pytest.approx(1 / 2.6, abs=0.05)
    assert measure_drift([rising, steady]) == measure_drift([rising, rising[::-1]]) == 1.0
    assert measure_drift([[1.0]]) == measure_drift([]) == 1.0


def test_a_model_that_becomes_slower_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its profile is that of a moment, and no plan for later."""
    spec, run = surroundings(tmp_path)
    code = "import time\n\nmoments = []\n\ndef nap(rows):\n    moments.append(time.sleep(5e-4 * len(moments)))\n"
    (tmp_path / "naps.py").write_text(f"{code}    return rows.sum(axis=1)\n")
    with caplog.at_level("WARNING"):
        profile(spec, run)
    assert "times as long as at its beginning: does the model keep data?" in caplog.text


@pytest.mark.slow
def test_profile_measures_the_model_once(tmp_path: Path) -> None:
    """A model that sleeps 10 ms plus 10 ms per row is measured as such, once; the plan uses the profile."""
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


def test_stored_models_answer_as_before(tmp_path: Path) -> None:
    """XGBoost and scikit-learn models that are fitted, stored and loaded classify digits well above chance."""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    rows, labels = load_digits()
    for name in ("logistic-regression", "xgboost"):
        model = ModelSpec(estimator=name)  # type: ignore[arg-type]
        source = locate_model("stage", model, run)
        answers = model_loader.load_model(source)(rows[:300])
        assert model_loader.read_width("s", source) == 64
        assert (answers.argmax(axis=1) == labels[:300]).mean() > 0.9


def test_bad_models_are_rejected(tmp_path: Path) -> None:
    """A missing file, an unknown kind and a damaged model are rejected."""
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    with pytest.raises(UnfoldError, match="no such file"):
        locate_model("s", ModelSpec(file="none.onnx"), run)
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(UnfoldError, match="cannot load a model that ends in"):
        locate_model("s", ModelSpec(file="a.pkl"), run)
    (tmp_path / "a.skops").write_bytes(b"x")
    with pytest.raises(UnfoldError, match=r"a\.skops: not an archive"):
        model_loader.load_model(locate_model("s", ModelSpec(file="a.skops"), run))


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    """The batch sizes to measure are powers of two and the largest itself."""
    assert list_batch_sizes(1) == (1,)
    assert list_batch_sizes(8) == (1, 2, 4, 8)
    assert list_batch_sizes(12) == (1, 2, 4, 8, 12)


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process keep to a core")
def test_profile_is_repeated_when_pinning_changes(tmp_path: Path) -> None:
    """A profile of a replica that moves between cores is not used for a pinned one."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    pinned = validate(PipelineSpec, parse(f"{SPEC}placement: {{pin: core}}\n", "naps.yaml"))
    assert "measured 1 of 1 stages" in profile(pinned, run).headline
    assert "measured 0 of 1 stages" in profile(pinned, run).headline


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process keep to a core")
def test_sizes_and_cores_are_measured_in_turn(tmp_path: Path) -> None:
    """All batch sizes of a pinned stage are measured in turn, on several cores."""
    pinned = parse(f"{SPEC}placement: {{pin: core}}\n", "naps.yaml")
    _, run = surroundings(tmp_path)
    calls_file = tmp_path / "calls.txt"
    note = f"    open({str(calls_file)!r}, 'a').write(f'{{len(rows)}} {{min(os.sched_getaffinity(0))}}\\n')\n"
    (tmp_path / "naps.py").write_text("import os\n" + CODE.replace("(rows):\n", f"(rows):\n{note}"))
    profile(validate(PipelineSpec, pinned), run)
    calls = [tuple(map(int, line.split())) for line in calls_file.read_text().splitlines()]
    sizes = [size for size, _ in itertools.groupby(calls, lambda call: call[0])]
    assert len(sizes) >= 3 * ROUNDS
    cores = sorted(os.sched_getaffinity(0))
    for size in (1, 2, 3):
        assert {core for rows, core in calls if rows == size} == set(cores[:: max(1, len(cores) // ROUNDS)][:ROUNDS])


@pytest.mark.e2e
def test_changed_code_is_profiled_again(tmp_path: Path) -> None:
    """A profile is valid only while the module of the function is unchanged."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    (tmp_path / "naps.py").write_text(CODE.replace("0.01 +", "0.03 +"))
    assert "measured 1 of 1 stages" in profile(spec, run).headline
    points = latency_profile.load_profile("nap", run)
    assert points is not None
    assert points[0].mean >= 0.04
    assert "measured 0 of 1 stages" in profile(spec, run).headline


def test_imported_modules_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Modules of the folder count if the code imports them, indirectly or in a package."""
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


def test_code_is_read_without_running_it(tmp_path: Path) -> None:
    """The text of a module in a package is read without importing it; that of a missing module is empty."""
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


@pytest.mark.slow
def test_latencies_of_the_spec_override_measured_ones(tmp_path: Path) -> None:
    """A latency in the spec counts on its hardware; the profile counts elsewhere."""
    assert latency_under("gpu: {1: 70 ms}, core: {1: 90 ms}", tmp_path) == pytest.approx({"gpu": 70, "core": 90})
    found = latency_under("gpu: {1: 70 ms}", tmp_path, here="core")
    assert found["gpu"] == pytest.approx(70)
    assert 20 <= found["core"] < 50


def test_stage_with_a_latency_needs_no_profile(tmp_path: Path) -> None:
    """A model without a profile is planned if the spec gives a latency on any hardware."""
    assert latency_under("core: {1: 90 ms}", tmp_path, measure=False) == pytest.approx({"core": 90})


@pytest.mark.slow
def test_plan_names_the_profiled_stages(tmp_path: Path) -> None:
    """A plan names the profiled stages and the processor, or that the spec overrides them."""
    spec, run = surroundings(tmp_path)
    profile(spec, run)
    assert (
        dict(plan(spec, run).lines)["measured"]
        == f"nap: profiled on {latency_profile.describe_processor()} (core in the spec)"
    )
    given = validate(PipelineSpec, parse(GIVEN.replace("LATENCY", "gpu: {1: 9 ms}, core: {1: 9 ms}"), "naps.yaml"))
    assert dict(plan(given, run).lines)["overridden"].startswith("nap: the latency of the spec on gpu overrides")
    assert "plans use the latency of the spec on gpu" in dict(profile(given, run).lines)["overridden"]


@pytest.mark.e2e
def test_a_model_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """A model that hangs is an error with its stage and what was awaited, alone and before another stage."""
    _, run = surroundings(tmp_path)
    (tmp_path / "naps.py").write_text("import time\n\ndef nap(rows):\n    time.sleep(600)\n")
    text = SPEC.replace("features: 3}", "features: 3, start: 4 s}")
    with pytest.raises(UnfoldError, match=r"stages\.nap\.model: the model did not answer a batch of 1 within 4 s"):
        profile(validate(PipelineSpec, parse(text, "naps.yaml")), run)
    text += '  doze: {after: {nap: 100%}, model: {code: "naps:nap"}}\n'
    with pytest.raises(UnfoldError, match=r"stages\.nap\.model: the model did not answer a sample query within 4 s"):
        profile(validate(PipelineSpec, parse(text, "naps.yaml")), run)
