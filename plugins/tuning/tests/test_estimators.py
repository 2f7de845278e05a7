"""The built-in trainables: what is learnt in parts is what is learnt in one go."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from unfold_tuning.schema.models import Trainable, TuningSpec
from unfold_tuning.trial.trainable import Work, make
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

no_torch = importlib.util.find_spec("torch") is None
ESTIMATORS = [
    ("xgboost", {"learning_rate": 0.2, "max_depth": 3, "subsample": 0.8}),
    ("sgd", {"alpha": 1e-3}),
    ("mlp", {"hidden_layer_sizes": 16, "learning_rate_init": 0.01}),
    pytest.param(
        "torch-mlp",
        {"width": 24, "depth": 2, "learning_rate": 0.01, "dropout": 0.1, "weight_decay": 1e-4},
        marks=[pytest.mark.torch, pytest.mark.skipif(no_torch, reason="torch is not installed")],
    ),
]


@pytest.mark.parametrize("metric", ["accuracy", "log-loss"])
@pytest.mark.parametrize(("name", "config"), ESTIMATORS)
def test_a_checkpoint_in_the_middle_changes_nothing(name: str, config: dict[str, float], metric: str) -> None:
    """Two iterations, a checkpoint and two more give the metric of four at once, better than one pass gives."""
    trainable = Trainable.model_validate({"estimator": name, "data": "breast-cancer", "metric": metric, "rounds": 2})
    train = make(Work(trainable))
    at_once, _ = train(config, None, 4, 1, 5)
    first, state = train(config, None, 2, 1, 5)
    in_parts, _ = make(Work(trainable))(config, state, 2, 1, 5)
    assert in_parts == pytest.approx(at_once, abs=1e-12 if name != "xgboost" else 0.02)
    assert at_once > (0.9 if metric == "accuracy" else -0.7)
    assert np.isfinite(first)


@pytest.mark.parametrize(("name", "config"), ESTIMATORS)
def test_a_table_with_gaps_can_be_learnt(name: str, config: dict[str, float], tmp_path: Path) -> None:
    """A CSV file with missing values and labels of words is learnt by every estimator."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    lines = [f"{a:.4f},{'' if rng.random() < 0.1 else f'{b:.4f}'},{c:.4f},{'yes' if a > 0 else 'no'}" for a, b, c in x]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,target", *lines]))
    work = Work(Trainable.model_validate({"estimator": name, "data": "t.csv", "rounds": 10}), tmp_path / "t.csv")
    assert make(work)(config, None, 2, 1, 0)[0] > 0.85


def test_torch_that_is_not_there_is_told_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec with torch-mlp and no torch is refused with the words that install it."""
    from unfold_tuning.verbs import profile

    text = """
version: 1
kind: tuning
name: t
search: {algorithm: random, trials: 2, iters: 1}
trainable: {estimator: torch-mlp, data: digits}
deadline: 1 min
cloud: {provider: local, instances: [{type: p, accelerators: 1, price: $1/h}]}
"""
    monkeypatch.setattr(profile.importlib.util, "find_spec", lambda _name: None)
    spec = validate(TuningSpec, parse(text, "t.yaml"))
    with pytest.raises(UnfoldError, match="needs torch"):
        profile.work_of(spec, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))


def test_rows_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    """What can only be learnt from other rows of the same group is not learnt, and columns not named are not seen."""
    rng = np.random.default_rng(0)
    # the label is a coin of the patient; the mark gives the patient away, and so the label, but only within a patient
    coins = rng.integers(0, 2, 200)
    lines = [f"p{i:03d},{i},word,{coins[i]}" for i in range(200) for _ in range(5)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["patient,mark,note,target", *lines]))
    given = {"estimator": "xgboost", "data": "t.csv", "rounds": 200, "columns": ("mark",)}
    config = {"learning_rate": 0.5, "max_depth": 8}
    seen = {
        group: make(Work(Trainable.model_validate({**given, "group": group}), path))(config, None, 1, 1, 0)[0]
        for group in (None, "patient")
    }
    assert seen[None] > 0.95
    assert seen["patient"] < 0.7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"columns": ("mrak",)}, "no column 'mrak' (did you mean \"mark\"?)"),
        ({"group": "ward"}, "no column 'ward' (trainable.group names the column whose rows are held out together)"),
        ({"target": "label"}, "no column 'label' (trainable.target names the column to predict)"),
        ({}, "trainable.columns names those to learn from"),
    ],
)
def test_columns_that_are_not_there_are_told(change: dict[str, object], told: str, tmp_path: Path) -> None:
    """A column that the file lacks is named with the key that asks for it; one of words is refused."""
    path = tmp_path / "t.csv"
    path.write_text("patient,mark,target\np1,1,0\np2,2,1\n")
    with pytest.raises(UnfoldError) as caught:
        make(Work(Trainable.model_validate({"estimator": "xgboost", "data": "t.csv", **change}), path))
    assert told in str(caught.value)
