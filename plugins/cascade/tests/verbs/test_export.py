"""`unfold export`: a cascade as one ONNX graph answers as the service does, in ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from plugins.cascade.tests.runs import TUMOURS, load_served, run_in, spec_of
from tests.served import unfold
from unfold_cascade.planner.policy import follow
from unfold_cascade.serving.onnx_graph import OUTPUTS, run_graph
from unfold_cascade.serving.service import build_cascade
from unfoldkit.cli.plan_check import read_plan

X = np.asarray(load_breast_cancer().data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    done = unfold(folder, "train", str(TUMOURS), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    done = unfold(folder, "export", "runs/tumours", "--format", "onnx", "--out", "tumours.onnx")
    assert (done.returncode, done.stderr.startswith("wrote tumours.onnx, ")) == (0, True), done.stderr
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("rows", [1, 7, len(X)])
def test_the_graph_answers_as_the_service(folder: Path, rows: int) -> None:
    """Labels, paths and costs of every case are those of the service, whatever the size of a batch."""
    run = run_in(folder / "runs/tumours", options={"plan": read_plan(folder / "runs/tumours/plan.yaml")})
    cascade, _ = build_cascade(load_served(spec_of(TUMOURS), run), run, lambda _paths: None)
    expected = cascade.follow(X)
    assert len(set(expected.path)) > 1
    data = (folder / "tumours.onnx").read_bytes()
    parts = [run_graph(data, X[start : start + rows]) for start in range(0, min(len(X), 40 * rows), rows)]
    count = sum(len(part.path) for part in parts)
    assert sum((list(part.path) for part in parts), []) == expected.path[:count]  # noqa: RUF017 - few parts
    labels = [label for part in parts for label in part.label]
    assert labels == [cascade.paths.labels[answer] for answer in expected.answer[:count]]
    np.testing.assert_allclose(np.concatenate([part.cost for part in parts]), cascade.paths.cost[expected.path[:count]])


TIED = """
version: 1
kind: cascade
name: tied
data: {source: table, path: tied.csv}
stages:
  - name: answer
    target: {column: y}
    models:
      - {name: votes, estimator: random-forest, params: {n_estimators: 10}}
      - {name: whole, estimator: baseline}
baseline: {candidates: [{estimator: random-forest, params: {n_estimators: 20}}]}
gates: {folds: 2}
goal: {max_loss: 5%}
"""


@pytest.mark.e2e
def test_tied_votes_over_gaps_are_exported(tmp_path: Path) -> None:
    """Forests with tied votes answer in single precision as natively: the first label wins."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    y = (x[:, 0] + rng.normal(size=900) > 0).astype(int)
    cells = np.where(rng.random(x.shape) < 0.1, "", np.round(x, 4).astype(str))
    text = "".join(f"{','.join(row)},{label}\n" for row, label in zip(cells, y, strict=True))
    (tmp_path / "tied.csv").write_text("a,b,c,d,y\n" + text)
    (tmp_path / "tied.yaml").write_text(TIED)
    done = unfold(tmp_path, "train", "tied.yaml", "--jobs", "1", "--exit-zero")
    assert done.returncode == 0, done.stderr
    done = unfold(tmp_path, "export", "runs/tied", "--format", "onnx", "--out", "tied.onnx")
    assert done.returncode == 0, done.stderr
    run = run_in(tmp_path / "runs/tied", base=tmp_path, options={"plan": read_plan(tmp_path / "runs/tied/plan.yaml")})
    loaded = load_served(spec_of(tmp_path / "tied.yaml"), run)
    rows = loaded.problem.dataset.rows.test
    features = np.where(cells == "", "nan", cells).astype(float)
    planned = follow(loaded.tables, loaded.policy, rows).answer
    names = loaded.problem.dataset.names
    assert list(run_graph((tmp_path / "tied.onnx").read_bytes(), features[rows]).label) == [names[a] for a in planned]


@pytest.mark.e2e
def test_the_graph_loads_without_the_project(folder: Path) -> None:
    """ONNX Runtime alone reads the file; it names its columns and outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "tumours.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == list(OUTPUTS)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["columns"].split("\n")[0] == "mean_radius"
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape) == ("tensor(double)", ["rows", 30])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs/none",), "No such file"),
        ((str(TUMOURS),), "unfold train"),
        ((str(TUMOURS), "--format", "pmml"), "--format pmml: no such format (one of onnx)"),
    ],
)
def test_export_rejects_bad_arguments(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """A missing run, an untrained spec and an unknown format exit with 2, and no file is written."""
    done = unfold(tmp_path, "export", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.glob("*.onnx"))
