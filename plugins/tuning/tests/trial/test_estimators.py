"""The built-in trainables: training in parts equals training at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.trial.trainable import WorkerSetup, build_train_function

HAS_NO_TORCH = importlib.util.find_spec("torch") is None
ESTIMATORS = [
    ("xgboost", {"learning_rate": 0.2, "max_depth": 3, "subsample": 0.8}),
    ("sgd", {"alpha": 1e-3}),
    ("mlp", {"hidden_layer_sizes": 16, "learning_rate_init": 0.01}),
    pytest.param(
        "torch-mlp",
        {"width": 24, "depth": 2, "learning_rate": 0.01, "dropout": 0.1, "weight_decay": 1e-4},
        marks=[pytest.mark.torch, pytest.mark.skipif(HAS_NO_TORCH, reason="torch is not installed")],
    ),
]


@pytest.mark.parametrize("metric", ["accuracy", "log-loss"])
@pytest.mark.parametrize(("name", "config"), ESTIMATORS)
def test_a_checkpoint_changes_nothing(name: str, config: dict[str, float], metric: str) -> None:
    """Two iterations, a checkpoint and two more give the metric of four at once, better than chance."""
    setup = WorkerSetup(TrainableConfig(estimator=name, data="breast-cancer", metric=metric, rounds=2))
    train = build_train_function(setup)
    at_once, _ = train(config, None, 4, 1, 5)
    first, state = train(config, None, 2, 1, 5)
    in_parts, _ = build_train_function(setup)(config, state, 2, 1, 5)
    assert in_parts == pytest.approx(at_once, abs=1e-12 if name != "xgboost" else 0.02)
    assert at_once > (0.9 if metric == "accuracy" else -0.7)
    assert np.isfinite(first)


@pytest.mark.parametrize(("name", "config"), ESTIMATORS)
def test_tables_with_missing_values_can_be_learnt(name: str, config: dict[str, float], tmp_path: Path) -> None:
    """Every estimator learns a CSV file with missing values and text labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    lines = [f"{a:.4f},{'' if rng.random() < 0.1 else f'{b:.4f}'},{c:.4f},{'yes' if a > 0 else 'no'}" for a, b, c in x]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b,c,target", *lines]))
    setup = WorkerSetup(TrainableConfig(estimator=name, data="t.csv", data_path=path, rounds=10))
    assert build_train_function(setup)(config, None, 2, 1, 0)[0] > 0.85
