"""Records of experiment trackers, written here byte by byte as TensorBoard and MLflow write them."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from unfold_tuning.job.trial_logs import TrialLogSource, read_trial_log, summarize_trial_log
from unfoldkit.api import UnfoldError

START_S = 1_767_225_600.0
SECONDS = {"a": [30.0, 20.0, 22.0, 18.0], "b": [40.0, 31.0, 29.0, 30.0]}
"""Seconds of the iterations of two runs; the first one of each is unknown to a clock."""
EXPECTED = {run: [(float(n), seconds) for n, seconds in enumerate(items, 1)][1:] for run, items in SECONDS.items()}


def read(path: Path, **where: str) -> dict[str, list[tuple[float, float]]]:
    """Read the steps of a record by the last part of a run's name."""
    steps = read_trial_log(path, TrialLogSource(path="record", where=where)).steps
    return {Path(run).name: [(end, round(seconds, 3)) for end, seconds in items] for run, items in steps.items()}


def write_events(
    folder: Path, events: list[tuple[float, int]], tags: tuple[str, ...] = ("loss",), epochs: tuple[float, ...] = ()
) -> Path:
    """Write an event file: a version, then a float32 for each tag of each event; the last record is cut off.

    The metric ``train/epoch`` has the values ``epochs``.
    """

    def encode_bytes(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def encode_event(at: float, step: int, tag: str, number: float = 0.5) -> bytes:
        value = encode_bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", number)
        varint = bytes([step]) if step < 128 else bytes([step & 0x7F | 0x80, step >> 7])
        return b"\x09" + struct.pack("<d", START_S + at) + b"\x10" + varint + encode_bytes(5, encode_bytes(1, value))

    version = b"\x09" + struct.pack("<d", START_S) + encode_bytes(3, b"brain.Event:2")
    messages = [version, *(encode_event(at, step, tag) for at, step in events for tag in tags)]
    messages += [
        encode_event(at, step, "train/epoch", epoch) for (at, step), epoch in zip(events, epochs, strict=False)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"events.out.tfevents.{START_S + events[0][0]:.0f}.host.1.0"
    frames = [struct.pack("<QI", len(message), 0) + message + bytes(4) for message in messages]
    file.write_bytes(b"".join(frames) + frames[-1][:-9])
    return file


def list_ends(run: str) -> list[tuple[float, int]]:
    """List when the iterations of a run ended, and their numbers."""
    return [(sum(SECONDS[run][:n]), n) for n in range(1, len(SECONDS[run]) + 1)]


def test_event_files_show_when_steps_were_logged(tmp_path: Path) -> None:
    """Each folder is a run, of which the metric with the most steps counts, and steps from 0 are counted from 1."""
    for run in SECONDS:
        write_events(tmp_path / "plain" / run, list_ends(run), ("loss", "accuracy"))
        keras = [(at, n - 1) for at, n in list_ends(run)]
        write_events(tmp_path / "keras" / run / "train", keras, ("epoch_loss",))
        write_events(tmp_path / "keras" / run / "validation", [(at + 3, n) for at, n in keras], ("epoch_loss",))
    assert read(tmp_path / "plain") == read(tmp_path / "keras") == EXPECTED
    assert read(tmp_path / "keras", metric="validation/epoch_loss")["a"][-1] == (4.0, 18.0)
    with pytest.raises(UnfoldError, match=r"where: no metric of the record has metric 'loss' .*validation/epoch_loss"):
        read(tmp_path / "keras", metric="loss")


@pytest.mark.parametrize("is_current", [True, False])
def test_a_metric_of_epochs_counts_before_the_batches_of_the_steps(tmp_path: Path, is_current: bool) -> None:
    """Lightning logs the number of the current epoch beside batches, Transformers those that were run."""
    events = [(at, 2 * n + batch) for at, n in list_ends("a") for batch in (0, 1)]
    epochs = tuple(n - 1 if is_current else n for _, n in list_ends("a") for _ in (0, 1))
    write_events(tmp_path / "tb", events, epochs=epochs)
    assert read(tmp_path / "tb")[""] == EXPECTED["a"]
    assert read(tmp_path / "tb", metric="loss")[""][-1] == (9.0, 0.0)
    log = read_trial_log(tmp_path / "tb", TrialLogSource(path="record"))
    assert "by its metric of epochs, an iteration is one" in summarize_trial_log(log, tmp_path).describe(6)
    folder = tmp_path / "mlruns/1/a/metrics"
    folder.mkdir(parents=True)
    (folder.parent / "meta.yaml").write_text("lifecycle_stage: active\n")
    for name, values in (("epoch", epochs), ("loss", epochs)):
        rows = zip(events, values, strict=True)
        (folder / name).write_text("".join(f"{(START_S + at) * 1000:.0f} {value} {n}\n" for (at, n), value in rows))
    assert read(tmp_path / "mlruns") == {"a": EXPECTED["a"]}
    assert read(tmp_path / "mlruns", metric="loss")["a"] != EXPECTED["a"]


def test_the_time_between_two_processes_of_a_run_is_no_pace(tmp_path: Path) -> None:
    """A run that was resumed a day later from its second step repeats what it had lost."""
    ends = list_ends("a")
    write_events(tmp_path, [*ends[:3], (200.0, 4)])
    write_events(tmp_path, [(86400.0, 3), (86418.0, 4), (86443.0, 300)])
    assert read(tmp_path) == {"": [(2.0, 20.0), (3.0, 22.0), (4.0, 18.0), (300.0, round(25 / 296, 3))]}


def write_mlflow_folder(root: Path) -> None:
    """Write a file store with a metric that is logged twice an iteration, one without steps, and a deleted run."""
    for run, is_active in (("a", True), ("b", True), ("c", False)):
        folder = root / "4711" / run / "metrics"
        (folder / "val").mkdir(parents=True)
        (folder / "system").mkdir()
        ends = list_ends(run if is_active else "a")
        lines = [f"{(START_S + at) * 1000 - before:.0f} nan {n}\n" for at, n in ends for before in (5000, 0)]
        (folder / "val/loss").write_text("".join(lines))
        (folder / "accuracy").write_text(f"{(START_S + 999) * 1000:.0f} 0.5 0\n")
        (folder / "system/cpu").write_text("".join(f"{START_S * 1000 + n:.0f} 1 {n}\n" for n in range(30)))
        state = "active" if is_active else "deleted"
        (folder.parent / "meta.yaml").write_text(f"lifecycle_stage: {state}\nrun_id: {run}\n")


def write_mlflow_database(path: Path) -> None:
    """Write the tables of a database that times are read from, with the runs of two experiments."""
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        base.execute("CREATE TABLE runs (run_uuid TEXT, experiment_id INTEGER, lifecycle_stage TEXT)")
        base.execute("CREATE TABLE metrics (key TEXT, value REAL, timestamp BIGINT, run_uuid TEXT, step BIGINT)")
        base.executemany("INSERT INTO experiments VALUES (?, ?)", [(1, "resnet"), (2, "other")])
        base.executemany("INSERT INTO runs VALUES (?, ?, 'active')", [("a", 1), ("b", 1), ("z", 2)])
        rows = [("loss", 0.5, int((START_S + at) * 1000), run, n) for run in SECONDS for at, n in list_ends(run)]
        base.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?)", [*rows, ("loss", 1.0, 5, "z", 1)])


def test_stores_of_mlflow_show_when_steps_were_logged(tmp_path: Path) -> None:
    """Deleted runs, the load of the machine and other experiments do not count."""
    write_mlflow_folder(tmp_path / "mlruns")
    write_mlflow_database(tmp_path / "mlflow.db")
    assert read(tmp_path / "mlruns") == read(tmp_path / "mlflow.db", experiment="resnet") == EXPECTED
    with pytest.raises(UnfoldError, match=r"2 experiments \(write profile.recorded.where: {experiment: other}; there"):
        read(tmp_path / "mlflow.db")


def test_stores_of_other_programs_are_errors(tmp_path: Path) -> None:
    """A database without MLflow's tables, a damaged metric and a damaged event file are named."""
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as base, base:
        base.execute("CREATE TABLE trials (number INTEGER)")
    with pytest.raises(UnfoldError, match=r"optuna\.db: not a database of MLflow: no such table: metrics .from Optuna"):
        read(tmp_path / "optuna.db")
    write_mlflow_database(tmp_path / "view.db")
    with closing(sqlite3.connect(tmp_path / "view.db")) as base, base:
        base.execute("ALTER TABLE metrics RENAME TO hidden")
        base.execute("CREATE VIEW Metrics AS SELECT * FROM hidden")
    with pytest.raises(UnfoldError, match="views, which run queries of their own"):
        read(tmp_path / "view.db")
    write_mlflow_folder(tmp_path / "mlruns")
    (tmp_path / "mlruns/4711/a/metrics/accuracy").write_text("soon 0.5 1\n")
    with pytest.raises(UnfoldError, match=r"accuracy:1:1: not a line of milliseconds, value and step"):
        read(tmp_path / "mlruns")
    file = write_events(tmp_path / "events", list_ends("a"))
    data = bytearray(file.read_bytes())
    data[12] = 0xFF
    file.write_bytes(data)
    with pytest.raises(UnfoldError, match="not an event file of TensorBoard, or a damaged one"):
        read(tmp_path / "events")
    # an integer of two million bytes would take hours
    message = b"\x10" + b"\x80" * 2_000_000
    file.write_bytes(struct.pack("<QI", len(message), 0) + message + bytes(4))
    with pytest.raises(UnfoldError, match="not an event file of TensorBoard, or a damaged one"):
        read(tmp_path / "events")
