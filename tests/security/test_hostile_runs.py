"""Runs with exchanged models, manifest included: no verb of any kind runs their code."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.security.hostile import HOSTILE, replace_in_run
from tests.support import call
from unfold_tuning.trial.estimators import DataSplit, build_mlp, build_sgd
from unfoldkit.errors import UnfoldError

VARIANTS = ("eval", "partial", "bound method", "operator", "foreign estimator")
CASCADE = """
version: 1
kind: cascade
name: tumours
data: {source: sklearn, dataset: breast_cancer, split: {train: 50%, calibrate: 25%, test: 25%}}
features:
  means: {columns: ["mean_*"], price: 1}
  worst: {columns: ["worst_*"], price: 4}
stages:
  - name: diagnosis
    target: {column: target}
    models:
      - {name: quick, estimator: gaussian-nb, features: [means]}
      - {name: trees, estimator: decision-tree, features: [means, worst]}
baseline: {candidates: [{estimator: logistic-regression}]}
cost: {by: price}
goal: {max_loss: 10%, confidence: 90%}
"""
PIPELINE = """
version: 1
kind: pipeline
name: digits
slo: {p99: 500 ms}
arrivals: {process: poisson, rate: 5/s, duration: 5 s}
hardware: {core: {price: $0.05/h}}
stages:
  first: {model: {MODEL}, max_batch: 1, latency: {core: {1: 2 ms}}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a cascade with all models stored by skops."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tumours.yaml").write_text(CASCADE)
    done = call(["train", folder / "tumours.yaml", "--run", folder / "run", "--jobs", "1"])
    assert done.code in (0, 1), done.err
    return folder


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let skops create nothing."""
    import skops.io

    monkeypatch.setattr(skops.io, "loads", lambda *_, **__: pytest.fail("skops was asked"))
    monkeypatch.setattr(skops.io, "load", lambda *_, **__: pytest.fail("skops was asked"))


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cascade_with_a_hostile_model_is_refused(trained: Path, tmp_path: Path, variant: str) -> None:
    """Serving refuses the run with the file's name; the other verbs do without the model, or refuse it too."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    shutil.copy(trained / "tumours.yaml", tmp_path)
    for path in run.rglob("*.skops"):
        replace_in_run(run, str(path.relative_to(run)), HOSTILE[variant](tmp_path / "marker"))
    for words in (
        ["train", tmp_path / "tumours.yaml", "--run", run, "--jobs", "1"],
        ["plan", run, "--run", run],
        ["report", run],
        ["serve", run, "--port", "0"],
    ):
        done = call(words)
        assert done.code == 2 or (words[0] != "serve" and done.code in (0, 1)), (words[0], done.err)
        assert "Traceback" not in done.err
        assert not (tmp_path / "marker").exists(), words[0]
    assert ".skops: the file holds a type that is not trusted" in done.err


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pipeline_with_a_hostile_model_is_refused(tmp_path: Path, variant: str) -> None:
    """Measuring and serving refuse the file; planning with known latencies and reporting never load it."""
    (tmp_path / "bad.skops").write_bytes(HOSTILE[variant](tmp_path / "marker"))
    spec = tmp_path / "digits.yaml"
    spec.write_text(PIPELINE.replace("MODEL", "file: bad.skops"))
    for verb in ("profile", "plan", "serve", "report"):
        words = [tmp_path / "run"] if verb == "report" else [spec, "--run", tmp_path / "run"]
        done = call([verb, *words, *(["--port", "0"] if verb == "serve" else [])])
        assert done.code == 2 or (verb in ("plan", "report") and done.code in (0, 1)), (verb, done.err)
        assert "Traceback" not in done.err
        assert not (tmp_path / "marker").exists(), verb
        if verb in ("profile", "serve"):
            assert "bad.skops" in done.err
            assert "not trusted" in done.err


@pytest.mark.parametrize("train", [build_sgd, build_mlp])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hostile_checkpoint_of_a_trial_is_refused(tmp_path: Path, variant: str, train: object) -> None:
    """Going on from a state that was exchanged is an error before anything is created."""
    x = np.random.default_rng(0).random((20, 2))
    y = (x[:, 0] > 0.5).astype(np.int64)
    split = DataSplit(x=x, y=y, x_held_out=x, y_held_out=y, classes=2, rounds=1, metric="accuracy")
    fit = train(split)  # type: ignore[operator]
    with pytest.raises(UnfoldError, match="not trusted") as error:
        fit({}, HOSTILE[variant](tmp_path / "marker"), 1, 1, 0)
    assert error.value.code == 2
    assert not (tmp_path / "marker").exists()
