"""Labelled hours: the timeline of all entities with the stages entered, stored in the run without any features."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, Hashes, IntArray
from unfold_cascade.data.changed_units import ChangedUnit, Quartiles, find_changed_units, measure_quartiles
from unfold_cascade.data.dataset import hash_file
from unfold_cascade.data.doubtful_values import Doubt, find_doubts
from unfold_cascade.data.leakage import LabelMark, find_label_columns, find_label_marks
from unfold_cascade.data.splits import UnitTable, list_sites, split_units
from unfold_cascade.data.table import Rows
from unfold_cascade.temporal.data.copies import (
    count_copies,
    find_known,
    find_moving_columns,
    hash_records,
    join_copies,
)
from unfold_cascade.temporal.data.features import expand_patterns, has_pattern
from unfold_cascade.temporal.data.readers import list_psv_files
from unfold_cascade.temporal.data.table import EntityTable, Timeline, compute_hours_since, index_entities
from unfold_cascade.temporal.data.targets import label_stages
from unfold_cascade.temporal.problem import FeatureSet, LongSource, TemporalProblem
from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object, read_bytes

HOURS_FILE = "hours.npz"
MAX_LEAK_ROWS = 50_000
"""Rows of a longer table in which leaked labels are looked for, evenly spread."""


@dataclass(frozen=True, slots=True)
class LabelledHours:
    """All hours of a table with their labels.

    Attributes:
        timeline: The hours of the entities.
        entered: (n, S) whether each stage was entered.
        since: (n, S) hours since then, minus infinity if never.
        highest: (n,) highest stage entered, 0 for none.
        digest: Hash of the table.
        columns: Columns of the table, from which features can be made.
        part: (P,) part of each entity, 0 to 2 for train, calibrate and test, unless parts are drawn at random.
        sites: Values of the column of sites that are left out in turn.
        leaks: Columns of features that predict the stages without error.
        repeated: A column that names one patient for several entities, if the spec does not name it; or empty.
        doubts: Columns of features with values that may be no measurements.
        copies: Independent units that repeat the records of another one, and were joined with it.
        moving: Columns of features that identify a record.
        sketch: Hashes of the records; ``None`` in runs of earlier versions.
        quartiles: Quartiles of the columns of features.
        marks: Columns of features with a state that occurs in one stage and hardly any other.
        stays: A column that names several stays of one entity; or empty.
    """

    timeline: Timeline
    entered: BoolArray
    since: FloatArray
    highest: IntArray
    digest: str
    columns: tuple[str, ...]
    part: IntArray | None = None
    sites: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    repeated: str = ""
    doubts: tuple[Doubt, ...] = ()
    copies: int = 0
    moving: tuple[str, ...] = ()
    sketch: Hashes | None = None
    quartiles: Quartiles = field(default_factory=dict)
    marks: tuple[LabelMark, ...] = ()
    stays: str = ""

    def find_changed_units(self, table: EntityTable) -> Iterator[ChangedUnit]:
        """Yield the columns of features that another table seems to hold in another unit."""
        names = [name for name in self.quartiles if name in table.columns]
        columns = {name: table.values[:, table.columns.index(name)].astype(np.float64) for name in names}
        return find_changed_units(self.quartiles, measure_quartiles(columns))

    def recognize(self, table: EntityTable) -> tuple[EntityTable, BoolArray]:
        """Join the copies within another table, and mark (P,) its entities that have records of these."""
        if self.sketch is None or set(self.moving) - set(table.columns):
            return table, np.zeros(len(table.ids), dtype=np.bool_)
        hashes = hash_records(table, self.moving)
        return join_copies(table, hashes), find_known(hashes, len(table.ids), self.sketch)

    def expand_features(self, problem: TemporalProblem) -> Mapping[str, FeatureSet]:
        """Replace column patterns of the problem's feature sets by names; label columns never match."""
        return _expand_features(problem, self.columns)


def _expand_features(problem: TemporalProblem, columns: Sequence[str]) -> Mapping[str, FeatureSet]:
    usable = [column for column in columns if column not in problem.label_columns]
    return expand_patterns(problem.features, usable) if has_pattern(problem.features) else problem.features


def label_hours(problem: TemporalProblem, run: Run, load_table: Callable[[], EntityTable]) -> LabelledHours:
    """Label the hours of the table, or read them from the run if neither the table nor the targets changed."""
    run.directory.once(HOURS_FILE, _made_from(problem, run), lambda: _pack(load_table(), problem))
    return load_hours(run)


def label_table(problem: TemporalProblem, table: EntityTable) -> LabelledHours:
    """Label the hours of a table; nothing is stored."""
    return _unpack(_pack(table, problem))


def are_hours_current(problem: TemporalProblem, run: Run) -> bool:
    """Check whether the run's labelled hours were made from the problem's table as it is now."""
    return run.directory.has(HOURS_FILE, made_from=_made_from(problem, run))


def load_hours(run: Run) -> LabelledHours:
    """Load what ``label_hours`` stored.

    Raises:
        UnfoldError: The file is missing or damaged.
    """
    with run.directory.decoding(HOURS_FILE, "hours") as data:
        return _unpack(data)


def _unpack(data: bytes) -> LabelledHours:
    arrays = read_npz(data)
    facts = parse_object(arrays["facts"].tobytes())
    return LabelledHours(
        Timeline(arrays["starts"], arrays["hour"], arrays.get("group"), arrays.get("order")),
        arrays["on"],
        arrays["since"],
        arrays["highest"],
        facts["digest"],
        tuple(facts.get("columns", ())),
        arrays.get("part"),
        tuple(facts.get("sites", ())),
        tuple(facts.get("leaks", ())),
        facts.get("repeated", ""),
        tuple(Doubt(*doubt) for doubt in facts.get("doubts", ())),
        facts.get("copies", 0),
        tuple(facts.get("moving", ())),
        arrays.get("sketch"),
        facts.get("quartiles", {}),
        tuple(LabelMark(*mark) for mark in facts.get("marks", ())),
        facts.get("stays", ""),
    )


def _pack(original: EntityTable, problem: TemporalProblem) -> bytes:
    moving = find_moving_columns(original, _list_used(problem, original))
    hashes = hash_records(original, moving)
    table = join_copies(original, hashes)
    entered, highest = label_stages(table, [stage.target for stage in problem.stages])
    source = problem.source
    rule, units = problem.split, _describe_units(table, source.group if isinstance(source, LongSource) else "")
    sites = list_sites(rule.column, units)[1] if rule.kind == "leave-out" else ()
    columns, rows = _sample_columns(problem, table)
    leaks, doubts = (
        _find_leaks(columns, rows, table, highest, entered),
        [astuple(doubt) for doubt in find_doubts(columns)],
    )
    found: dict[str, object] = {
        "digest": table.digest,
        "columns": table.columns,
        "sites": sites,
        "leaks": leaks,
        "doubts": doubts,
    }
    found |= {"copies": count_copies(original.timeline, table.timeline), "moving": moving}
    found["quartiles"] = measure_quartiles(columns)
    marks = find_label_marks({name: values for name, values in columns.items() if name not in leaks}, highest[rows])
    found["stays"] = table.stays
    found["marks"] = [astuple(mark) for mark in marks]
    facts = json.dumps(found | ({"repeated": table.repeated} if table.repeated else {})).encode()
    since = np.column_stack([compute_hours_since(entered[:, s], table.timeline) for s in range(entered.shape[1])])
    arrays = {"starts": table.starts, "hour": table.hour, "on": entered, "highest": highest, "since": since}
    arrays["sketch"] = hashes.sketch()
    if rule.kind not in ("random", "leave-out"):
        part = _number_parts(split_units(rule, find_highest(table.timeline, highest), units, problem.seed))
        arrays["part"] = part[table.timeline.cluster]
    arrays |= {name: each for name, each in (("group", table.group), ("order", table.order)) if each is not None}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, facts=np.frombuffer(facts, dtype=np.uint8), **arrays)
    return stream.getvalue()


def find_highest(timeline: Timeline, highest: IntArray) -> IntArray:
    """Find the highest stage that each cluster of entities reaches, from the highest (n,) stage of every hour."""
    cluster = timeline.cluster
    reached = np.zeros(int(cluster.max()) + 1, dtype=np.int64)
    np.maximum.at(reached, cluster, np.maximum.reduceat(highest, timeline.starts[:-1]))
    return reached


def _sample_columns(problem: TemporalProblem, table: EntityTable) -> tuple[dict[str, FloatArray], IntArray]:
    """Sample the columns of features: their values by name in evenly spread rows, and the numbers of these rows."""
    rows = np.arange(0, len(table), -(-len(table) // MAX_LEAK_ROWS))
    numbers = {name: table.columns.index(name) for name in _list_used(problem, table)}
    return {name: table.values[rows, number].astype(np.float64) for name, number in numbers.items()}, rows


def _list_used(problem: TemporalProblem, table: EntityTable) -> list[str]:
    """List the columns of features, in the order of the table."""
    used = {column for features in _expand_features(problem, table.columns).values() for column in features.columns}
    return [name for name in table.columns if name in used]


def _find_leaks(
    columns: Mapping[str, FloatArray], rows: IntArray, table: EntityTable, highest: IntArray, entered: BoolArray
) -> tuple[str, ...]:
    """Find columns that predict the stage of a row, or in the first row of an entity whether it will enter a stage."""
    first = table.starts[:-1]
    found = list(find_label_columns(columns, highest[rows]))
    for has_entered in entered.T:
        undecided = ~has_entered[first]
        will_enter = np.logical_or.reduceat(has_entered, first)[undecided].astype(np.int64)
        ahead = {name: table.values[first[undecided], table.columns.index(name)].astype(np.float64) for name in columns}
        found += find_label_columns(ahead, will_enter)
    return tuple(dict.fromkeys(found))


def _describe_units(table: EntityTable, group_column: str) -> UnitTable:
    sizes = np.diff(table.starts)

    def read(column: str) -> np.ndarray:
        # a split file names the entities or their groups; other splits read one column
        if table.split_values is not None:
            return table.split_values
        return np.repeat(table.group_names if column == group_column else table.ids, sizes)

    cluster = table.timeline.cluster
    names = [table.ids[entity] for entity in np.unique(cluster, return_index=True)[1]]
    unit = cluster[index_entities(table.starts)]
    return UnitTable(unit=unit, names=names, read=read, noun="patient", table=table.name)


def _number_parts(rows: Rows) -> IntArray:
    """Number the part of each entity; the order within a part is lost, and has no meaning."""
    parts = (rows.train, rows.calibrate, rows.test)
    part = np.zeros(sum(map(len, parts)), dtype=np.int64)
    for number, entities in enumerate(parts):
        part[entities] = number
    return part


def _made_from(problem: TemporalProblem, run: Run) -> str:
    # added only where it is read, so that the hours of older runs stay valid
    extra = ["columns"] if has_pattern(problem.features) else []
    documents, split_file = problem.documents, problem.split.locate
    if split_file is not None:
        extra.append(hash_file(split_file(), problem.split.path, "data.split.file"))
    if problem.split.kind in ("column", "time"):
        extra.append(str(problem.seed))
    return fingerprint(documents.data, documents.targets, _hash_source(problem.source.path, run), *extra)


def _hash_source(name: str, run: Run) -> str:
    """Hash the files of a table without parsing them."""
    path = run.path(name, key="data.path")
    digest = hashlib.sha256()
    for file in list_psv_files(path) if path.is_dir() else [path]:
        digest.update(file.name.encode() + b"\0" + read_bytes(file))
    return digest.hexdigest()
