"""Tables: grouped rows and missing columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.trial.trainable import WorkerSetup, build_train_function
from unfoldkit.api import UnfoldError


def test_grouped_rows_are_held_out_together(tmp_path: Path) -> None:
    """What can only be learnt from rows of the same group is not learnt, and other columns are not used."""
    rng = np.random.default_rng(0)
    # the label is random per patient; the mark identifies the patient, and so the label, only within a patient
    labels = rng.integers(0, 2, 200)
    lines = [f"p{i:03d},{i},word,{labels[i]}" for i in range(200) for _ in range(5)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["patient,mark,note,target", *lines]))
    ungrouped = TrainableConfig(estimator="xgboost", data="t.csv", data_path=path, rounds=200, columns=("mark",))
    config = {"learning_rate": 0.5, "max_depth": 8}
    accuracy = {
        group: build_train_function(WorkerSetup(replace(ungrouped, group=group)))(config, None, 1, 1, 0)[0]
        for group in (None, "patient")
    }
    assert accuracy[None] > 0.95
    assert accuracy["patient"] < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ("mrak",)}, "no column 'mrak' (did you mean \"mark\"?)"),
        ({"group": "ward"}, "no column 'ward' (trainable.group names the column of rows that are held out together)"),
        ({"target": "label"}, "no column 'label' (trainable.target names the column to predict)"),
        ({}, "trainable.columns names the feature columns"),
    ],
)
def test_missing_and_text_columns_are_errors(
    change: dict[str, tuple[str, ...] | str], message: str, tmp_path: Path
) -> None:
    """A missing column is named with the key that requires it; a text column is refused."""
    path = tmp_path / "t.csv"
    path.write_text("patient,mark,target\np1,1,0\np2,2,1\n")
    trainable = replace(TrainableConfig(estimator="xgboost", data="t.csv", data_path=path), **change)
    with pytest.raises(UnfoldError) as caught:
        build_train_function(WorkerSetup(trainable))
    assert message in str(caught.value)
