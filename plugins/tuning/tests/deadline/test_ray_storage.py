"""A kill while Ray stores the state of an experiment leaves every stored file whole."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.tune")
from unfold_tuning.deadline.ray_scheduler import STATE_FILE
from unfold_tuning.deadline.ray_storage import WholeFileSyncer, replace_files, restore_results, store_whole_files

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def storage() -> Any:
    """Build what Ray keeps for an experiment on a local disk."""
    from pyarrow.fs import LocalFileSystem
    from ray.train._internal.storage import _FilesystemSyncer

    system = LocalFileSystem()
    return SimpleNamespace(storage_filesystem=system, syncer=_FilesystemSyncer(storage_filesystem=system))


def test_ray_stores_files_through_the_syncer(storage: Any, tmp_path: Path) -> None:
    """New and changed files arrive, also in subfolders; unchanged ones are not written again."""
    source, target = tmp_path / "staging", tmp_path / "stored"
    (source / "trial").mkdir(parents=True)
    (source / "tuner.pkl").write_text("tuner")
    (source / "trial/result.json").write_text("1")
    store_whole_files(SimpleNamespace(_tune_controller=SimpleNamespace(_storage=storage)))
    assert storage.syncer.sync_up(str(source), str(target))
    kept = (target / "tuner.pkl").stat().st_ino
    (source / "trial/result.json").write_text("1 2")
    assert storage.syncer.sync_up(str(source), str(target))
    # Ray writes the next state at once
    (source / "trial/result.json").write_text("1 2 ")
    assert (target / "trial/result.json").read_text() == "1 2"
    assert (target / "tuner.pkl").stat().st_ino == kept


def test_ray_stores_no_old_state_of_the_scheduler(storage: Any, tmp_path: Path) -> None:
    """What Ray stages to restore an experiment, and stores again, is not the state that has changed since."""
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

    stored, staging = tmp_path / "stored", tmp_path / "staging"
    storage.experiment_fs_path, storage.experiment_driver_staging_path = str(stored), str(staging)
    stored.mkdir()
    (stored / STATE_FILE).write_text("before the restore")
    (stored / "experiment_state-1.json").write_text("{}")
    manager = _ExperimentCheckpointManager(storage=storage, checkpoint_period=0, sync_every_n_trial_checkpoints=None)
    manager.sync_down_experiment_state()
    store_whole_files(SimpleNamespace(_storage=storage))
    (stored / STATE_FILE).write_text("after the restore")
    manager.sync_up_experiment_state(lambda: None, force=True, wait=True)
    assert (staging / "experiment_state-1.json").exists()
    assert (stored / STATE_FILE).read_text() == "after the restore"


def test_a_kill_during_a_copy_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored before is still whole."""
    source, target = tmp_path / "staging", tmp_path / "stored"
    source.mkdir()
    (source / "state.json").write_text("old")
    replace_files(source, target)
    (source / "state.json").write_text("newer")

    def fail_halfway(_source: Path, part: Path) -> None:
        part.write_text("ne")
        raise KilledError

    monkeypatch.setattr(shutil, "copy2", fail_halfway)
    with pytest.raises(KilledError):
        replace_files(source, target)
    assert (target / "state.json").read_text() == "old"


def test_workers_receive_the_syncer_of_ray_alone(storage: Any) -> None:
    """Nodes without this package can unpickle the storage of a trial."""
    inner = type(storage.syncer)
    store_whole_files(SimpleNamespace(_storage=storage))
    assert isinstance(storage.syncer, WholeFileSyncer)
    assert b"unfold" not in pickle.dumps(storage.syncer)
    assert type(copy.copy(storage.syncer)) is inner


def test_a_storage_that_is_no_local_disk_stays_as_it_is() -> None:
    """An object store replaces whole objects anyway."""
    storage = SimpleNamespace(storage_filesystem=SimpleNamespace(type_name="s3"), syncer=object())
    before = storage.syncer
    store_whole_files(SimpleNamespace(_storage=storage))
    store_whole_files(SimpleNamespace())
    assert storage.syncer is before


@pytest.mark.parametrize(
    ("known", "saved", "stored", "reported", "kept"),
    [
        *((0, 0, 2, None, 2), (1, 1, 2, 3, 3), (2, 2, 2, 3, 3), (0, 0, 0, 1, 1), (3, 3, 3, 3, 3), (1, 1, 1, None, 1)),
        # the snapshot was taken between a report and the registration of its checkpoint
        *((3, 2, 3, 3, 3), (2, 1, 2, None, 2)),
    ],
)
def test_a_trial_receives_what_it_reported_after_ray_stored_it(
    tmp_path: Path, known: int, saved: int, stored: int, reported: int | None, kept: int
) -> None:
    """From its file and the last report of the experiment, with the last checkpoint; half of a row is ignored."""
    from ray.train._internal.session import _TrainingResult
    from ray.train._internal.storage import StorageContext
    from ray.tune import Checkpoint
    from ray.tune.experiment import Trial

    place = StorageContext(storage_path=str(tmp_path), experiment_dir_name="search", trial_dir_name="trial")
    trial = Trial("train", config={"lr": 0.1}, trial_id="t1", stub=True, storage=place)
    folder = tmp_path / "search/trial"
    rows = [
        {"training_iteration": step, "loss": 1 / step, "checkpoint_dir_name": f"checkpoint_{step - 1:06d}"}
        for step in range(1, 4)
    ]
    for row in rows[:kept]:
        (folder / str(row["checkpoint_dir_name"])).mkdir(parents=True)
    for index, row in enumerate(rows[:known]):
        trial.update_last_result(dict(row))
        checkpoint = Checkpoint(str(folder / str(row["checkpoint_dir_name"])))
        if index < saved:
            trial.on_checkpoint(_TrainingResult(checkpoint, trial.last_result))
    (folder / "result.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows[:stored]) + '{"loss": 0')
    report = ("other", rows[2]) if reported is None else ("t1", rows[reported - 1])
    restore_results(trial, report)
    assert trial.last_result["training_iteration"] == kept
    assert known == kept or trial.last_result["config"] == {"lr": 0.1}
    assert trial.checkpoint.path == str(folder / f"checkpoint_{kept - 1:06d}")
    assert trial.storage.current_checkpoint_index == kept - 1
