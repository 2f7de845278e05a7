"""Several labels and real values from their spec to served ONNX members."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.served import serving  # noqa: E402
from tests.support import Outcome, call  # noqa: E402

pytestmark = pytest.mark.torch

CODE = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, num_classes))
"""
SPEC = """
version: 1
kind: supernet
name: heads
data: {{source: file, path: rows.npz, task: {task}}}
model: {{from: "head_net:net", widths: [0.125, 1]}}
training: {{epochs: {epochs}, batch: 64, rate: 0.01, alone: {alone}, validation: 0.2}}
serving: {{slo: 500 ms}}
"""
ROWS = 1500
UNIT, OFFSET = 1000.0, 50_000.0


def make_rows(task: str) -> dict[str, Any]:
    """Draw inputs, and targets that a network can learn: far from zero and in a large unit, for real values."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(ROWS, 6)).astype(np.float32)
    signal = np.stack([x[:, 0] * x[:, 1] + x[:, 2], np.abs(x[:, 3]) - 0.8 + 0.2 * x[:, 4]], 1)
    noisy = signal + 0.3 * rng.normal(size=signal.shape)
    if task == "labels":
        return {"x": x, "y": (noisy > 0).astype(np.int64), "names": np.array(["rash", "cough"])}
    return {"x": x, "y": noisy * UNIT + OFFSET, "names": np.array(["price", "rent"])}


def unfold(folder: Path, *words: str) -> Outcome:
    """Run the command line in a folder, in this process."""
    sys.modules.pop("head_net", None)
    with contextlib.chdir(folder):
        return call(words)


def write_files(folder: Path, task: str, *, epochs: int = 25, alone: str = "false", **arrays: Any) -> None:
    (folder / "head_net.py").write_text(CODE, "utf-8")
    (folder / "heads.yaml").write_text(SPEC.format(task=task, epochs=epochs, alone=alone), "utf-8")
    np.savez(folder / "rows.npz", **(make_rows(task) | arrays))


@pytest.fixture(scope="module", params=["labels", "values"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    write_files(folder, request.param, alone="true")
    done = unfold(folder, "train", "heads.yaml", "--allow-code", "--format", "json")
    assert done.code == 0, done.err + done.out
    return request.param, folder, json.loads(done.out)


def test_report_states_the_score_of_the_task(trained: tuple[str, Path, Any]) -> None:
    """The score grows with the member, beats its constant, and only labels have a calibration error."""
    task, _folder, report = trained
    name, constant = ("auroc", 50.0) if task == "labels" else ("r2", 0.0)
    metrics = {key: metric["value"] for key, metric in report["metrics"].items()}
    assert report["verdict"] == "yes"
    assert constant < metrics[f"{name}_min"] < metrics[f"{name}_max"] <= 100
    assert metrics[f"{name}_max"] > 75
    # the mean of the test rows is slightly better than that of the training rows
    assert constant <= metrics[f"constant_{name}"] < constant + 2
    assert (metrics["ece_points_max"] is None) == (task == "values")
    assert "macro AUROC" in report["headline"] if task == "labels" else "R²" in report["headline"]
    titles = [table["name"] for table in report["tables"]]
    assert ("errors by value" in titles) == (task == "values")
    assert any("weight-sharing gap" in title for title in titles)


def test_report_names_an_input_that_holds_the_target(tmp_path: Path) -> None:
    """A column that is a copy of a label is named with its label; the other label has none."""
    rows = make_rows("labels")
    write_files(tmp_path, "labels", epochs=1, x=np.concatenate([rows["x"][:, :5], rows["y"][:, 1:]], 1))
    notes = json.loads(unfold(tmp_path, "train", "heads.yaml", "--allow-code", "--format", "json").out)["notes"]
    (note,) = (note for note in notes if "by itself" in note)
    assert note.startswith("Label cough follows from x[:, 5] by itself (right for 100.0 % of the test rows). Leave out")


def test_served_outputs_are_those_of_the_onnx_members(trained: tuple[str, Path, Any]) -> None:
    """Labels come with probabilities, values in their unit; the metadata names the columns."""
    task, folder, _report = trained
    x = make_rows(task)["x"][:8]
    with serving(folder, "runs/heads") as (_, address):
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP64", "data": x.ravel().tolist()}
        body = {"inputs": [tensor], "parameters": {"deadline_ms": 20_000, "least_accuracy": 0.3}}
        request = urllib.request.Request(f"{address}/v2/models/heads/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
        with urllib.request.urlopen(f"{address}/v2/models/heads", timeout=30) as answer:
            metadata = json.load(answer)
    net = outputs["net"]["data"][0]
    raw = onnxruntime.InferenceSession(folder / "runs" / "heads" / "subnets" / f"{net}.onnx").run(None, {"x": x})[0]
    if task == "labels":
        np.testing.assert_allclose(outputs["probabilities"]["data"], 1 / (1 + np.exp(-raw)), atol=1e-5)
        assert outputs["labels"]["data"] == (np.array(outputs["probabilities"]["data"]) >= 0.5).tolist()
        assert "expected_auroc" in outputs
    else:
        assert outputs["values"]["shape"] == [8, 2]
        np.testing.assert_allclose(outputs["values"]["data"], raw, rtol=1e-5)
        assert abs(np.mean(outputs["values"]["data"]) - OFFSET) < UNIT
        assert "expected_r2" in outputs
    assert (
        metadata["parameters"]["labels"] == ["rash", "cough"]
        if task == "labels"
        else "values" in metadata["parameters"]
    )


def test_a_replay_reports_attainment(trained: tuple[str, Path, Any]) -> None:
    """A trace is served by members of any task."""
    _task, folder, _report = trained
    (folder / "trace.csv").write_text("time\n" + "\n".join(f"{index * 0.05:.2f}" for index in range(40)), "utf-8")
    done = unfold(folder, "serve", "heads.yaml", "--replay", "trace.csv", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["attainment"]["value"] > 0.5


@pytest.mark.parametrize("task", ["labels", "values"])
def test_noise_is_a_no(tmp_path: Path, task: str) -> None:
    """Targets without relation to the inputs end with exit code 1 and the name of the constant."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (ROWS, 2)) if task == "labels" else rng.normal(size=(ROWS, 2))
    write_files(tmp_path, task, epochs=2, y=y)
    done = unfold(tmp_path, "train", "heads.yaml", "--allow-code")
    assert done.code == 1, done.err
    named = "a constant probability for every label" if task == "labels" else "always predicting the mean"
    assert named in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("task", "column", "message"),
    [
        ("labels", np.zeros(ROWS), "label cough is never 1"),
        ("labels", np.full(ROWS, 2), r"y\[0, 1\] is 2, not 0 or 1"),
        ("labels", np.r_[np.full(ROWS - 1, 1.0), np.nan], r"y\[1499, 1\] is nan"),
        ("values", np.r_[np.full(ROWS - 1, 1.0), np.inf], r"y\[1499, 1\] is inf"),
        ("values", np.full(ROWS, 7.0), "value rent is 7 in all"),
    ],
)
def test_unsuitable_targets_end_with_exit_code_2(tmp_path: Path, task: str, column: Any, message: str) -> None:
    """Each mistake is named before anything is trained."""
    rows = make_rows(task)
    write_files(tmp_path, task, y=np.stack([rows["y"][:, 0].astype(np.float64), column], 1))
    done = unfold(tmp_path, "train", "heads.yaml", "--allow-code")
    assert done.code == 2, done.err
    assert re.search(message, " ".join(done.err.split())), done.err
    assert "Traceback" not in done.err


def test_columns_of_a_table_are_targets(tmp_path: Path) -> None:
    """Two columns of a CSV are two values, by their names."""
    rows = make_rows("values")
    lines = ["a,b,c,d,e,f,price,rent"]
    table = np.concatenate([rows["x"], rows["y"]], 1)[:600].tolist()
    lines += [",".join(map(str, row)) for row in table]
    write_files(tmp_path, "values", epochs=8)
    (tmp_path / "rows.csv").write_text("\n".join(lines), "utf-8")
    text = (tmp_path / "heads.yaml").read_text("utf-8").replace("rows.npz", "rows.csv, target: [price, rent]")
    (tmp_path / "heads.yaml").write_text(text, "utf-8")
    done = unfold(tmp_path, "train", "heads.yaml", "--allow-code", "--format", "json")
    assert done.code in (0, 1), done.err
    tables = {table["name"]: table for table in json.loads(done.out)["tables"]}
    assert {row[1] for row in tables["errors by value"]["rows"]} == {"price", "rent"}
