"""Ray Tune's own state of an experiment on a local disk, replaced file by file so that a kill tears none.

Ray copies its state over the stored one. A driver that is killed meanwhile leaves empty files behind, among them
``tuner.pkl``, without which ``Tuner.restore`` fails.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import json
import pickletools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.result import EXPR_RESULT_FILE, TRAINING_ITERATION

STATE_PATTERN = "experiment_state-*.json"
"""Ray's states of an experiment, one for each start; it restores from the last."""


@dataclass(frozen=True, slots=True)
class WholeFileSyncer:
    """A syncer of Ray that replaces whole files when it stores the state of an experiment.

    Attributes:
        inner: The syncer, which does everything else. Workers receive it alone: they need not have this package.
    """

    inner: Any

    def __getattr__(self, name: str) -> Any:
        """Return what the syncer has."""
        return getattr(self.inner, name)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        """Pickle the syncer alone."""
        return copy.copy, (self.inner,)

    def sync_up(self, local_dir: str, remote_dir: str, exclude: list[str] | None = None) -> bool:
        """Store a folder; not in the background, where the copy of a file that is written again would be torn."""
        if exclude or self.inner._should_continue_existing_sync():  # noqa: SLF001 - as its own sync_up
            return bool(self.inner.sync_up(local_dir, remote_dir, exclude))
        replace_files(Path(local_dir), Path(remote_dir))
        return True


def store_whole_files(tune_controller: Any) -> None:
    """Let Ray replace whole files where an experiment is stored on a local disk, as object stores do."""
    # Ray wraps its controller for schedulers, and warns of what they read through the wrapper
    controller = getattr(tune_controller, "_tune_controller", tune_controller)
    storage: Any = getattr(controller, "_storage", None)
    syncer = getattr(storage, "syncer", None)
    is_local = getattr(getattr(storage, "storage_filesystem", None), "type_name", "") == "local"
    if is_local and hasattr(syncer, "_should_continue_existing_sync"):
        storage.syncer = WholeFileSyncer(syncer)


def restore_results(trial: Any, last_report: tuple[str, dict[str, Any]]) -> None:
    """Give a restored trial what it has reported since Ray stored its state, and the checkpoint of its last report.

    Args:
        trial: A trial of Ray.
        last_report: The trial and its report, flat, that came last of all: Ray's file of the trial may lack it.
    """
    from pyarrow.fs import FileType

    storage, (name, report) = trial.storage, last_report
    system, folder = storage.storage_filesystem, storage.trial_fs_path
    rows = _read_rows(system, f"{folder}/{EXPR_RESULT_FILE}")
    rows += [report] if name == trial.trial_id else []
    for row in rows:
        if row.get(TRAINING_ITERATION, 0) > trial.last_result.get(TRAINING_ITERATION, 0):
            trial.update_last_result(row | {"config": trial.config})
    checkpoint = trial.last_result.get("checkpoint_dir_name")
    path = f"{folder}/{checkpoint}"
    index = int(checkpoint.rpartition("_")[2]) if checkpoint else -1
    if index > storage.current_checkpoint_index and system.get_file_info(path).type == FileType.Directory:
        from ray.train._internal.session import _TrainingResult
        from ray.tune import Checkpoint

        # Ray counts on as it registers one
        storage.current_checkpoint_index = index - 1
        trial.on_checkpoint(_TrainingResult(Checkpoint(path, system), trial.last_result))


def _read_rows(system: Any, path: str) -> list[dict[str, Any]]:
    """Read the rows of a file of results, up to one that a kill has left half-written."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError), system.open_input_stream(path) as file:
        rows.extend(json.loads(line) for line in file.readall().splitlines())
    return rows


@dataclass(frozen=True, slots=True)
class TornFile:
    """A file of Ray's that a killed driver left half-written.

    Attributes:
        path: Its path.
        earlier: The name of an earlier, complete state of the experiment, if there is one.
    """

    path: str
    earlier: str = ""


def find_torn_file(storage: Any) -> TornFile | None:
    """Find the newest state of an experiment, or another file that Ray restores from, that is incomplete."""
    from pyarrow.fs import FileSelector

    selector = FileSelector(storage.experiment_fs_path)
    names = sorted(info.base_name for info in storage.storage_filesystem.get_file_info(selector) if info.is_file)
    states = fnmatch.filter(names, STATE_PATTERN)
    others = [name for name in names if name.endswith((".json", ".pkl")) and name not in states]
    complete = {name for name in (*states, *others) if _is_complete(storage, name)}
    if states and states[-1] not in complete:
        earlier = next((name for name in reversed(states) if name in complete), "")
        return TornFile(f"{storage.experiment_fs_path}/{states[-1]}", earlier)
    torn = next((name for name in others if name not in complete), None)
    return None if torn is None else TornFile(f"{storage.experiment_fs_path}/{torn}")


def _is_complete(storage: Any, name: str) -> bool:
    """Return whether a file is whole; a pickle is scanned, not loaded."""
    with storage.storage_filesystem.open_input_stream(f"{storage.experiment_fs_path}/{name}") as stream:
        data = stream.readall()
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        # Ray also pickles states of searchers into files with this suffix
        return _is_whole_pickle(data)
    return True


def _is_whole_pickle(data: bytes) -> bool:
    try:
        return sum(1 for _ in pickletools.genops(data)) > 0
    except (ValueError, UnicodeDecodeError):
        return False


def replace_files(source: Path, target: Path) -> None:
    """Copy the files of a folder that have changed, each in one step."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copied = target / file.relative_to(source)
        if copied.is_file() and _stamp(copied) == _stamp(file):
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        part = copied.with_name(f"{copied.name}.part")
        shutil.copy2(file, part)
        part.replace(copied)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
