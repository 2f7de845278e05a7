"""Laws of tables with few values missing: a model meets gaps in rows that it was not fitted on."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import OWN, run_in, solve_spec, spec_of
from unfold_cascade.learners.estimators import Recipe, from_bytes
from unfold_cascade.models.training import FitJob, fit_model
from unfold_cascade.temporal.models.training import TrainingJob, run_job
from unfold_cascade.temporal.models.training_sets import TrainingRows


def _table(gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 90 rows of two columns of which one value is missing, and their labels."""
    x = np.random.default_rng(0).normal(size=(90, 2))
    y = (x[:, 0] > 0).astype(np.int64)
    x[gap, 1] = np.nan
    return x, y


@pytest.mark.parametrize("gap", [10, 80])
@pytest.mark.parametrize("name", ["logistic-regression", "gaussian-nb", "svc", "xgboost"])
def test_models_accept_a_missing_value(name: str, gap: int) -> None:
    """A value may be missing in one fold only, or in no row that models are fitted on: each row is answered."""
    x, y = _table(gap)
    job = FitJob(recipe=Recipe(name, {}), x=x, labels=y, training_rows=np.arange(60), folds=3, seed=0, batch=8)
    stored = fit_model(job)[1]
    said = np.load(BytesIO(stored))["probability"]
    assert np.allclose(said.sum(axis=1), 1.0)
    assert (said.argmax(axis=1) == y).mean() > 0.8


@pytest.mark.parametrize("gap", [10, 80])
def test_models_over_time_accept_a_missing_value(gap: int, tmp_path: Path) -> None:
    """The same of hours: a stage's own may hold each value, and hours before it or of other patients miss one."""
    x, y = _table(gap)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    fold = np.where(np.arange(90) < 60, np.arange(90) % 3, -1)
    own, file = np.arange(90) % 2 == 1, str(tmp_path / "x.npy")
    job = TrainingJob(
        recipe=Recipe("logistic-regression", {}),
        file=file,
        columns=np.arange(2),
        rows=TrainingRows(own, y),
        fold=fold,
        seed=0,
        batch_rows=8,
    )
    said = np.load(BytesIO(run_job(job)[1]))["p"]
    assert np.allclose(said.sum(axis=1), 1.0)


def test_models_impute_gaps_that_occur_only_in_serving(tmp_path: Path) -> None:
    """A table misses values of one column; rows that are served may miss those of another: no model is at a loss."""
    x, y = _table(10)
    lines = "".join(f"{a:.3f},{'' if np.isnan(b) else f'{b:.3f}'},{c}\n" for (a, b), c in zip(x, y, strict=True))
    (tmp_path / "own.csv").write_text("a,b,y\n" + lines)
    (tmp_path / "own.yaml").write_text(
        OWN.replace("{all: {columns: [a, b]}}", "{all: {columns: [a]}, rest: {columns: [b]}}")
    )
    spec, run = (
        spec_of(tmp_path / "own.yaml", "stages[0].models[0].features=[all]"),
        run_in(tmp_path / "run", base=tmp_path),
    )
    solve_spec(spec, run)
    file = "models/only/all/m.skops"
    model = from_bytes(run.directory.read(file), ubjson=False, file=file)
    assert np.isfinite(model.predict_proba(np.array([[np.nan]]))).all()
