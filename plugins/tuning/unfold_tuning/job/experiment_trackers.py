"""Times at which runs logged their metrics, as experiment trackers store them: TensorBoard and MLflow.

Only a clock is stored, no duration. The event files are read without TensorBoard's package, MLflow's stores without
MLflow.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from unfoldkit.api import did_you_mean, user_error
from unfoldkit.safe_io.files import open_regular, read_bytes

EVENT_FILES = "*.tfevents*"
SPLITS = ("train", "training", "validation", "valid", "val", "eval", "test")
"""Folders that Keras and Transformers give the parts of one run."""
SYSTEM_METRICS = "system/"
"""MLflow logs the load of the machine under this prefix: its steps count samples, not iterations."""
LOGGED_MODELS = "models"
"""MLflow repeats the metrics of a run beside the models that it logged."""
SQLITE_HEADER = b"SQLite format 3\0"
MLFLOW_QUERY = """
SELECT m.run_uuid, e.name, m.key, m.value, m.step, m.timestamp FROM metrics AS m
JOIN runs AS r ON r.run_uuid = m.run_uuid JOIN experiments AS e ON e.experiment_id = r.experiment_id
WHERE r.lifecycle_stage = 'active'
"""
VIEWS_QUERY = """
SELECT 1 FROM sqlite_master WHERE type = 'view' AND name COLLATE NOCASE IN ('metrics', 'runs', 'experiments')
"""
MAX_INTEGER_BITS = 63
FLOAT_BYTES = 4
Scalars = list[tuple[str, float]]
EPOCH_METRIC = "epoch"
"""Lightning and Transformers log batches as steps, and beside them this metric, also as ``train/epoch``."""
Points = dict[float, float]
"""The seconds since 1970 by step; the last time counts if a step was logged more than once.

Those of a metric of epochs are by its value: the epochs that were run, or the number of the current one.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMetric:
    """When one metric of one run was logged.

    Attributes:
        run: Names the run.
        metric: Names the metric.
        experiment: Names the experiment that the run belongs to; empty in TensorBoard.
        session: Orders the processes that continued the run: the time between two of them is no pace.
        points: When each step was logged.
    """

    run: str
    metric: str
    experiment: str = ""
    session: str = ""
    points: Points = field(default_factory=dict)


def read_logged_metrics(path: Path) -> list[LoggedMetric]:
    """Read the metrics of a folder of TensorBoard or MLflow, an event file, or an MLflow database; else none.

    Raises:
        UnfoldError: The file cannot be read, or is a database of another program.
    """
    if path.is_dir():
        events = sorted(path.rglob(EVENT_FILES))
        return _read_event_files(path, events) if events else _read_mlflow_folder(path)
    if path.match(EVENT_FILES):
        return _read_event_files(path.parent, [path])
    with open_regular(path) as stream:
        is_database = stream.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    return _read_mlflow_database(path) if is_database else []


def list_tracked_steps(
    metrics: Sequence[LoggedMetric], where: Mapping[str, str | int], path: Path, key: str
) -> dict[str, list[tuple[float, float]]]:
    """List the steps of each run: the iterations run by the end of each, and the mean seconds of one of its iterations.

    Of each run, the metric that counts epochs is used if it has several, unless ``where`` selects a metric, otherwise
    the one with the most steps. How long the first step of a session took is unknown.

    Args:
        metrics: What was logged.
        where: Values of ``run``, ``metric`` and ``experiment`` that count.
        path: The record, for messages.
        key: The key of the spec that names it.

    Raises:
        UnfoldError: ``where`` selects nothing, or several experiments are left.
    """
    chosen = [item for item in metrics if all(_get_column(item, name, path, key) == str(where[name]) for name in where)]
    for name, value in where.items() if metrics and not chosen else ():
        values = sorted({_get_column(item, name, path, key) for item in metrics})
        hint = did_you_mean(str(value), values) or f"there are {', '.join(values[:12])}"
        raise user_error(f"no metric of the record has {name} {value!r}", file=str(path), key=f"{key}.where", hint=hint)
    experiments = sorted({item.experiment for item in chosen})
    if len(experiments) > 1:
        hint = f"write {key}.where: {{experiment: {experiments[0]}}}; there are {', '.join(experiments[:12])}"
        raise user_error(
            f"the record has {len(experiments)} experiments", file=str(path), key=f"{key}.where", hint=hint
        )
    lengths: dict[tuple[str, str], int] = {}
    for item in chosen:
        lengths[item.run, item.metric] = lengths.get((item.run, item.metric), 0) + len(item.points)
    longest = {
        run: max(group, key=lambda name: (_counts_epochs(name[1]) and lengths[name] > 1, lengths[name]))[1]
        for run, group in _group_by_run(lengths)
    }
    steps: dict[str, dict[float, float]] = {}
    for item in sorted(chosen, key=lambda item: item.session):
        if item.metric == longest[item.run]:
            _add_session(steps.setdefault(item.run, {}), item.points)
    return {run: sorted(items.items()) for run, items in steps.items() if items}


def _group_by_run(names: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    return ((run, list(group)) for run, group in itertools.groupby(sorted(names), key=lambda name: name[0]))


def count_epochs(metrics: Sequence[LoggedMetric], where: Mapping[str, str | int]) -> bool:
    """Return whether the iterations that :func:`list_tracked_steps` lists are epochs where steps count batches."""
    names = {item.metric for item in metrics if _counts_epochs(item.metric) and len(item.points) > 1}
    return bool(names) and "metric" not in where


def _counts_epochs(metric: str) -> bool:
    return metric.rsplit("/", 1)[-1] == EPOCH_METRIC


def _add_session(steps: dict[float, float], points: Points) -> None:
    """Add the steps of a session to those before, which it repeats from its first step on."""
    ordered = sorted(points.items())
    for repeated in [end for end in steps if ordered and end >= ordered[0][0] + 1]:
        del steps[repeated]
    # steps that are numbered from zero
    shift = 1 if ordered and ordered[0][0] == 0 else 0
    for (before, before_s), (step, seconds) in itertools.pairwise(ordered):
        steps[float(step + shift)] = max(0.0, seconds - before_s) / (step - before)


def _get_column(item: LoggedMetric, name: str, path: Path, key: str) -> str:
    columns = {"run": item.run, "metric": item.metric, "experiment": item.experiment}
    if name not in columns:
        hint = f"there are {', '.join(columns)}"
        raise user_error(f"no column {name!r}", file=str(path), key=f"{key}.where", hint=hint)
    return columns[name]


def _add_point(points: Points, metric: str, step: int, value: float, at_s: float) -> None:
    """Add when a step was logged; a metric of epochs counts by its value."""
    position = value if _counts_epochs(metric) and 0 <= value < math.inf else step
    points[position] = max(at_s, points.get(position, 0.0))


# TensorBoard


def _read_event_files(root: Path, files: Sequence[Path]) -> list[LoggedMetric]:
    """Read event files; each process of a run writes one, and each scalar counts on its own."""
    folders = {file.parent for file in files}
    metrics: dict[tuple[str, str, str], Points] = {}
    for file in files:
        run = _find_run_folder(file.parent, folders, root)
        split = "" if run == file.parent else f"{file.parent.relative_to(run)}/"
        for wall_s, step, scalars in _iter_events(file):
            for tag, value in scalars:
                points = metrics.setdefault((str(run.relative_to(root)), split + tag, file.name), {})
                _add_point(points, tag, step, value, wall_s)
    return [LoggedMetric(run=r, metric=m, session=s, points=points) for (r, m, s), points in metrics.items()]


def _find_run_folder(folder: Path, folders: set[Path], root: Path) -> Path:
    """Find the folder of a run: event files below those of another folder, or in one per split, are parts of it."""
    above = [parent for parent in folder.parents if parent in folders and (parent == root or root in parent.parents)]
    if above:
        return above[-1]
    return folder.parent if folder != root and folder.name in SPLITS else folder


def _iter_events(path: Path) -> Iterator[tuple[float, int, Scalars]]:
    """Yield the wall time, the step and the scalars of each event; a last, incomplete one is left out.

    The format is that of TFRecord with messages of ``tensorflow.Event``:
    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto

    Raises:
        UnfoldError: A message is damaged.
    """
    data = memoryview(read_bytes(path))
    at = 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if at + 12 + size > len(data):
            return
        try:
            event = _parse_event(data[at + 12 : at + 12 + size])
        except (IndexError, KeyError, struct.error) as error:
            raise user_error("not an event file of TensorBoard, or a damaged one", file=str(path)) from error
        yield event
        at += size + 16


def _parse_event(message: memoryview) -> tuple[float, int, Scalars]:
    wall_s, step, scalars = 0.0, 0, Scalars()
    for number, value in _iter_fields(message):
        if number == 1 and isinstance(value, memoryview):
            (wall_s,) = struct.unpack("<d", value)
        elif number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, memoryview):
            scalars = [_parse_scalar(item) for _, item in _iter_fields(value) if isinstance(item, memoryview)]
    return wall_s, step, scalars


def _parse_scalar(message: memoryview) -> tuple[str, float]:
    """Parse the name and the value of what was logged; nan unless it is a plain number."""
    fields = dict(_iter_fields(message))
    tag, value = fields.get(1, 0), fields.get(2, 0)
    number = math.nan
    if isinstance(value, memoryview) and len(value) == FLOAT_BYTES:
        (number,) = struct.unpack("<f", value)
    return "" if isinstance(tag, int) else bytes(tag).decode(errors="replace"), number


def _iter_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a protocol buffer: their numbers, and their bytes or the integer that they are.

    Raises:
        IndexError: It ends within a field.
        KeyError: There is no such type of field.
    """
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            integer, at = _read_varint(message, at)
            yield key >> 3, integer
            continue
        size, at = ({1: 8, 5: 4}[kind], at) if kind != 2 else _read_varint(message, at)
        if at + size > len(message):
            raise IndexError
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read an integer of seven bits a byte, and return it with the position after it.

    Raises:
        IndexError: It ends within the integer, or the integer has more than 64 bits.
    """
    value = shift = 0
    while message[at] & 0x80:
        if shift >= MAX_INTEGER_BITS:
            raise IndexError
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


# MLflow


def _read_mlflow_folder(root: Path) -> list[LoggedMetric]:
    """Read a file store: ``EXPERIMENT/RUN/metrics/NAME`` has lines of milliseconds, value and step."""
    metrics = []
    for folder in sorted(root.rglob("metrics")):
        run = folder.parent
        if run.parent.name == LOGGED_MODELS or not _is_active(run / "meta.yaml"):
            continue
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            name = str(file.relative_to(folder))
            if not name.startswith(SYSTEM_METRICS):
                item = LoggedMetric(run=run.name, metric=name, experiment=run.parent.name)
                for at_ms, value, step in _iter_mlflow_lines(file):
                    _add_point(item.points, name, step, value, at_ms / 1000.0)
                metrics.append(item)
    return metrics


def _is_active(meta: Path) -> bool:
    return meta.is_file() and b"lifecycle_stage: deleted" not in read_bytes(meta)


def _iter_mlflow_lines(file: Path) -> Iterator[tuple[int, float, int]]:
    for number, line in enumerate(read_bytes(file).decode(errors="replace").splitlines(), 1):
        try:
            at_ms, value, step, *_ = line.split()
            yield int(at_ms), float(value), int(step)
        except ValueError as error:
            message = "not a line of milliseconds, value and step, as MLflow writes metrics"
            raise user_error(message, file=f"{file}:{number}:1") from error


def _read_mlflow_database(path: Path) -> list[LoggedMetric]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            if base.execute(VIEWS_QUERY).fetchone():
                raise sqlite3.DatabaseError("its tables are views, which run queries of their own")
            rows = base.execute(MLFLOW_QUERY).fetchall()
    except sqlite3.Error as error:
        hint = (
            "from Optuna, save study.trials_dataframe().to_csv(); from other tools, a table with a row per checkpoint"
        )
        raise user_error(f"not a database of MLflow: {error}", file=str(path), hint=hint) from error
    metrics: dict[tuple[str, str, str], Points] = {}
    for run, experiment, name, value, step, at_ms in rows:
        if not name.startswith(SYSTEM_METRICS):
            _add_point(metrics.setdefault((run, name, experiment), {}), name, step, value, at_ms / 1000.0)
    return [LoggedMetric(run=r, metric=m, experiment=e, points=points) for (r, m, e), points in metrics.items()]
