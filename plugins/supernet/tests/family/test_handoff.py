"""Hand-over files for cascades and pipelines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import (  # noqa: E402
    HANDOFF_SPEC,
    make_run,
    parse_spec,
)
from unfold_supernet.family import checkpoint, handoff  # noqa: E402
from unfold_supernet.scheduling.escalation import SubnetPredictions  # noqa: E402
from unfold_supernet.scheduling.policies import SubnetProfile  # noqa: E402
from unfold_supernet.serving.loader import bind_models  # noqa: E402
from unfold_supernet.training.evaluation import predict_test_rows  # noqa: E402
from unfold_supernet.verbs.build import build_dataset, build_service_problem  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402
from unfoldkit.spec.yaml_reader import parse  # noqa: E402

pytestmark = pytest.mark.torch


def run_command(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and return how it ended."""
    command = [sys.executable, "-m", "unfoldkit", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def test_row_models_give_the_shares_of_the_supernet(handoff_run: Path) -> None:
    """Each exported row model gives the class shares of its subnet."""
    spec, run = parse_spec(HANDOFF_SPEC), make_run(handoff_run)
    data, found = build_dataset(spec, run), checkpoint.read_supernet(run.directory)
    places = data.test[:40]
    rows = handoff.flatten_rows(data, places).astype(np.float32)
    for name in found.bound:
        session = onnxruntime.InferenceSession(str(handoff_run / "stages" / f"{name}.onnx"))
        shares, label = session.run(None, {"rows": rows})
        logits = found(name, torch.from_numpy(data.x[places]), torch.from_numpy(data.extra[places]))
        np.testing.assert_allclose(shares, torch.softmax(logits, 1).numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(label, shares.argmax(1))
    assert set(predict_test_rows(found, data).names) == set(found.bound)


def test_exported_models_name_their_classes(handoff_run: Path) -> None:
    """Both ONNX files of a subnet name the classes in their metadata, in the order of the outputs."""
    for file in (*handoff_run.glob("subnets/*.onnx"), *handoff_run.glob("stages/*.onnx")):
        message = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
        assert json.loads(message["classes"]) == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("fault", ["text", "other inputs"])
def test_a_damaged_model_of_a_subnet_is_named(handoff_run: Path, tmp_path: Path, fault: str) -> None:
    """A service names an ONNX model that cannot be loaded or takes other inputs; exit code 2."""
    shutil.copytree(handoff_run, tmp_path / "run")
    spec, run = parse_spec(HANDOFF_SPEC), make_run(tmp_path / "run")
    for name in [name for name in run.directory.files() if name.startswith("subnets/") and name.endswith(".onnx")]:
        rows = run.directory.read(name.replace("subnets/", "stages/"))
        run.directory.write(name, b"text" if fault == "text" else rows)
    with pytest.raises(UnfoldError, match=r"subnets/.*\.onnx: not an ONNX model") as error:
        bind_models(build_service_problem(spec, run))
    assert error.value.code == 2


def test_specs_have_class_names_and_valid_lengths() -> None:
    """Predictions are class names, and the specs of a supernet with a long name are valid."""
    said = SubnetPredictions(("a", "b"), np.array([[1, 0], [1, 1]]), np.full((2, 2), 0.5, np.float32), np.array([0, 1]))
    lines = handoff._format_predictions(said, ("N", "V")).splitlines()
    assert lines[0].startswith("label,a_answer,b_answer")
    assert [line.split(",")[:3] for line in lines[1:]] == [["N", "V", "V"], ["V", "N", "V"]]
    hostile = handoff._format_predictions(said, ("=cmd|'/C calc'!A0", "-1")).splitlines()
    assert hostile[1].split(",")[:3] == ["'=cmd|'/C calc'!A0", "-1", "-1"]
    nets = [SubnetProfile("a", 90.0, ((1, 0.001),))]
    for text in (
        handoff.write_cascade_spec("n" * 80, nets),
        handoff.write_pipeline_spec("n" * 80, nets[0], nets[0], 0.1),
    ):
        assert len(str(parse(text, "t.yaml").data["name"])) <= 80


def test_cascade_spec_is_planned_unchanged(handoff_run: Path, tmp_path: Path) -> None:
    """The cascade spec is valid and planned by its kind as it is."""
    words = ["plan", str(handoff_run / "stages" / "cascade.yaml"), "--run", str(tmp_path / "c"), "--format", "json"]
    done = run_command(words)
    assert done.returncode in {0, 1}, done.stderr
    assert json.loads(done.stdout)["kind"] == "cascade"


def test_pipeline_spec_is_profiled_and_planned(handoff_run: Path, tmp_path: Path) -> None:
    """The pipeline spec is profiled on the supernet's queries without a warning, and planned from that."""
    spec, rest = str(handoff_run / "stages" / "pipeline.yaml"), ["--run", str(tmp_path / "p"), "--format", "json"]
    early = run_command(["plan", spec, *rest])
    assert early.returncode == 2
    assert "not profiled yet" in early.stderr
    done = run_command(["profile", spec, *rest])
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" not in done.stderr
    assert {"first", "again"} <= set(json.dumps(json.loads(done.stdout)).replace('"', " ").split())
    planned = run_command(["plan", spec, *rest])
    assert planned.returncode in {0, 1}, planned.stderr
    assert json.loads(planned.stdout)["kind"] == "pipeline"
