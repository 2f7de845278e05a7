"""Laws of models over time: later hours may miss measurements which no training patient misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.temporal.models.slots import TrainingRows
from unfold_cascade.temporal.models.training import TrainingJob, run_job


@pytest.mark.parametrize("name", ["logistic-regression", "gaussian-nb", "xgboost"])
def test_models_accept_gaps_that_training_lacks(tmp_path: Path, name: str) -> None:
    """A site that never measures a column gets probabilities, as the server accepts empty measurements."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    rows = TrainingRows(np.ones(300, dtype=np.bool_), (x[:, 0] > 0).astype(np.int64))
    job = TrainingJob(
        recipe=Recipe(name, {}),
        file=str(tmp_path / "x.npy"),
        columns=np.arange(2),
        rows=rows,
        fold=np.arange(300) % 3 - 1,
        seed=0,
        batch_rows=64,
    )
    stored, _ = run_job(job)
    model = estimators.from_bytes(stored, ubjson=name == "xgboost", file="model")
    x[:, 1] = np.nan
    p = estimators.predict_probabilities(model, x, 2)
    assert np.isfinite(p).all()
    assert (p.argmax(axis=1) == rows.labels).mean() > 0.9
