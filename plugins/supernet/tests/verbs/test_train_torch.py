"""The verb ``train``, end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from safetensors.torch import save  # noqa: E402

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_run,
    parse_spec,
)
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    DIGITS_SPEC,
)
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.family.artifacts import (  # noqa: E402
    RECORD_FILE,
    read_record,
)
from unfold_supernet.serving.loader import bind_models  # noqa: E402
from unfold_supernet.verbs.build import build_service_problem  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import (  # noqa: E402
    Report,
    RunDir,
    UnfoldError,
)
from unfoldkit.safe_io.arrays import load_tensors  # noqa: E402

pytestmark = pytest.mark.torch
LARGE_SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space:
  stages: [{width: 4}, {width: 8}]
  expand: [0.5, 1]
  depth: [1, 2]
  coupling: independent
  scope: stage
  search: {above: 8, measured: 10, points: 3, population: 8, generations: 2}
training: {epochs: 2, batch: 256, rule: sandwich, alone: false, calibrate: 256}
"""


def test_train_writes_its_artefacts(tmp_path: Path) -> None:
    """The verb trains, measures, and writes the supernet, every standalone model, and the record."""
    spec = parse_spec(DIGITS_SPEC.replace("alone: false", "alone: true"))
    report: Report = train(spec, make_run(tmp_path))
    for name in ("front_points", "accuracy_min", "accuracy_max", "cost_of_sharing_points", "switch_us_p50"):
        assert report.metrics[name].value is not None
    files = RunDir(tmp_path).files()
    assert {"front.json", "family/weights.safetensors", "subnets/0.5x1k3.onnx", "subnets/1x2k3.safetensors"} <= set(
        files
    )
    from unfold_supernet.verbs.plan import plan

    planned = plan(spec, make_run(tmp_path))
    assert planned.decision is not None
    assert planned.decision["nets"] == ["0.5x1k3", "1x2k3"]


def test_engines_return_the_same_and_keep_the_memory(tmp_path: Path) -> None:
    """Views and ONNX Runtime agree; a limit below the copies leaves views, and one below both is an error."""
    report = train(parse_spec(DIGITS_SPEC), make_run(tmp_path))
    assert {"engine", "engine memory"} <= set(dict(report.lines))
    record = read_record(RunDir(tmp_path))
    assert record.has_engines
    x = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
    shares, engines = {}, {}
    for options in ("engine: onnx", "engine: views", f"memory: {record.shared_bytes + 1} B"):
        spec = parse_spec(DIGITS_SPEC + f"serving: {{slo: 500 ms, {options}}}\n")
        bound = bind_models(build_service_problem(spec, make_run(tmp_path)))
        assert bound.engines is not None
        engines[options] = set(bound.engines.engines.values())
        shares[options] = [model(x, np.zeros((20, 0), np.float32)) for model in bound.models]
    np.testing.assert_allclose(shares["engine: onnx"], shares["engine: views"], atol=1e-5)
    assert list(engines.values()) == [{"onnx"}, {"views"}, {"views"}]
    spec = parse_spec(DIGITS_SPEC + "serving: {slo: 500 ms, memory: 1 kB}\n")
    with pytest.raises(UnfoldError, match=r"need .* MB of memory"):
        bind_models(build_service_problem(spec, make_run(tmp_path)))


def test_mlp_distinguishes_columns(tmp_path: Path) -> None:
    """The form mlp learns which column is large; forms that treat columns alike cannot."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    np.savez(tmp_path / "d.npz", x=(rng.normal(size=(600, 3)) + 4 * np.eye(3)[y]).astype(np.float32), y=y)
    text = DIGITS_SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = parse_spec(text.replace("epochs: 3", "epochs: 8"))
    report = train(spec, make_run(tmp_path / "run", base=tmp_path))
    assert (report.metrics["accuracy_min"].value or 0) > 80


def test_column_units_do_not_matter(tmp_path: Path) -> None:
    """A table in other units gives an equally accurate supernet, and its weights accept raw values."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 4)) + 3 * np.eye(3, 4)[y]
    x[:, 3] = 7
    units = {"plain": (np.zeros(4), np.ones(4)), "other": (np.array([1000, 0, -50, 2]), np.array([300, 1e-3, 20, 1]))}
    accuracy = {}
    for name, (middle, spread) in units.items():
        np.savez(tmp_path / f"{name}.npz", x=(x * spread + middle).astype(np.float32), y=y)
        text = DIGITS_SPEC.replace("{source: digits}", f"{{source: file, path: {name}.npz}}").replace("conv2d", "mlp")
        spec = parse_spec(text.replace("epochs: 3", "epochs: 8"))
        run = make_run(tmp_path / name, base=tmp_path)
        train(spec, run)
        known = json.loads(run.directory.read(RECORD_FILE))["nets"]
        accuracy[name] = {one["name"]: one["accuracy"] for one in known}
    assert accuracy["other"] == pytest.approx(accuracy["plain"], abs=1)
    assert min(accuracy["other"].values()) > 85


def test_diverged_training_is_refused(tmp_path: Path) -> None:
    """Training that diverges is refused as the spec's fault, and no such weights are stored."""
    text = DIGITS_SPEC.replace("conv2d", "transformer").replace(
        "epochs: 3", "epochs: 3, rate: 100, clip: 1e30, warmup: 0"
    )
    spec = parse_spec(text)
    run = make_run(tmp_path)
    with pytest.raises(UnfoldError, match="training diverged"):
        train(spec, run)
    assert not run.directory.has(checkpoint.WEIGHTS_FILE)
    if run.directory.has(checkpoint.CHECKPOINT_FILE):
        kept = load_tensors(run.directory.read(checkpoint.CHECKPOINT_FILE))
        assert all(tensor.isfinite().all() for name, tensor in kept.items() if name.startswith("weights/"))


DAMAGED_STATES = {
    "text": lambda _: b"text",
    "other weights": lambda _: save({"epoch": torch.tensor(1), "steps": torch.zeros(2, dtype=torch.int64)}),
    "other shapes": lambda tensors: save(tensors | {"weights/head.bias": torch.zeros(3)}),
    "other moments": lambda tensors: save(tensors | {"momentum/head.bias": torch.zeros(3)}),
}


@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_a_damaged_training_state_is_named(tmp_path: Path, damage: str) -> None:
    """A stored state that is no state of this training, its entry in the manifest renewed, is named; exit code 2."""
    spec, run = parse_spec(DIGITS_SPEC), make_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(spec, replace(run, progress=_stop_after_epoch))
    name = checkpoint.CHECKPOINT_FILE
    content = DAMAGED_STATES[damage](load_tensors(run.directory.read(name)))
    run.directory.write(name, content, made_from=run.directory.files()[name]["made_from"])
    with pytest.raises(UnfoldError, match=r"checkpoint\.safetensors: not the state of this training") as error:
        train(spec, run)
    assert error.value.code == 2


def _stop_after_epoch(_label: str, done: int, _total: int) -> None:
    if done == 1:
        raise KeyboardInterrupt


def test_unrecognized_classes_are_named(tmp_path: Path) -> None:
    """A class that every subnet misses in every test row is named, because accuracy hides it."""
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 40 == 0).astype(np.int64)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(400, 4)).astype(np.float32), y=y)
    text = DIGITS_SPEC.replace("{source: digits}", "{source: file, path: d.npz}").replace("conv2d", "mlp")
    spec = parse_spec(text)
    report = train(spec, make_run(tmp_path / "run", base=tmp_path))
    assert report.notes[0] == "No subnet recognizes any test row of class 1."


def test_large_space_is_searched(tmp_path: Path) -> None:
    """A space above the limit is searched, and the supernet contains the largest subnet."""
    spec = parse_spec(LARGE_SPEC)
    report = train(spec, make_run(tmp_path))
    held = checkpoint.read_supernet(RunDir(tmp_path)).space
    assert 2 <= len(held.subnets) <= 3
    assert held.largest in held.subnets
    assert dict(report.lines)["search"].startswith("16 subnets, ")
