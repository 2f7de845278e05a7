"""Laws of models over time: later hours may miss measurements which no training patient misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from tests.support import limited_file_size
from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.temporal.models.training import TrainingJob, _share_features, run_job
from unfold_cascade.temporal.models.training_sets import TrainingRows
from unfold_cascade.verbs import plan
from unfoldkit.api import ExitCode, UnfoldError


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


def test_a_stage_without_hours_of_its_own_is_named(tmp_path: Path) -> None:
    """With one hour a patient the first stage has no hours before the second, and our message names it."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(200):
        ill = int(rng.random() < 0.3)
        values = (80 + 25 * ill + 5 * rng.normal(), 36.6 + 2 * ill, 14 + 10 * ill, 8 + 6 * ill)
        rows.append(f"w{number},0,60,{','.join(f'{value:.1f}' for value in values)},,{ill}\n")
    (tmp_path / "wards.csv").write_text("patient,hour,Age,HR,Temp,Resp,WBC,PaCO2,Sepsis\n" + "".join(rows))
    with pytest.raises(UnfoldError, match="baseline/monolith cannot be fitted: no training hour is in sirs"):
        plan(spec_of(CONFIGS / "wards.yaml"), run_in(tmp_path / "run", base=tmp_path))


def test_features_that_find_no_room_are_named(tmp_path: Path) -> None:
    """A full disk gives the file with exit code 3, and leaves no part of it."""
    run = run_in(tmp_path / "run")
    with (
        limited_file_size(1000),
        pytest.raises(UnfoldError, match="cannot write the features") as caught,
        _share_features(run, lambda: np.zeros((1000, 10), np.float32)),
    ):
        pass
    assert caught.value.code is ExitCode.INTERNAL
    assert not list(run.directory.path.iterdir())
