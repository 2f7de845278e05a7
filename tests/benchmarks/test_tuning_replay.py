"""The tables that the replay of learning curves reads."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tuning_replay import EPOCHS, read_tables

COLUMNS = ("task_id", "config_id", "epoch", "val_accuracy", "elapsed_s")


def written(folder: Path, epochs: int) -> Path:
    """Write two configurations of a task, last epoch first."""
    (folder / "hpo").mkdir()
    path = folder / "hpo" / "lcbench_surrogate_replay.csv.gz"
    with gzip.open(path, "wt", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        table.writerows(
            [1, config, epoch, 10 * config + epoch, epoch] for config in (1, 0) for epoch in range(epochs, 0, -1)
        )
    return folder


def test_rows_may_stand_in_any_order(tmp_path: Path) -> None:
    """A table from its last row to its first gives the same curves."""
    (table,) = read_tables(written(tmp_path, EPOCHS))
    steps = np.arange(EPOCHS + 1)
    assert (table.elapsed == steps).all()
    assert (table.accuracy == np.where(steps > 0, steps + 10 * np.array([[0], [1]]), 0)).all()


def test_another_number_of_epochs_is_reported(tmp_path: Path) -> None:
    """Curves of other lengths are refused with the task's name, as the rungs are those of one length."""
    with pytest.raises(ValueError, match="task 1: not"):
        list(read_tables(written(tmp_path, EPOCHS - 2)))
