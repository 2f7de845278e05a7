"""Tables over time: the rows of each entity are contiguous and ordered by hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfoldkit.api import Diagnostic, UnfoldError, did_you_mean, user_error

MERGE_HINT = "keep one row an hour: merge the values of rows with the same time, one column for each measurement"


@dataclass(frozen=True, slots=True)
class Timeline:
    """The hours of P entities: ``starts`` (P+1,) first rows and the row count, ``hour`` (n,) times in hours.

    ``group`` (P,) numbers the patient that each entity belongs to, such as a stay; ``None`` if each is its own.
    ``order`` (P,) ranks the entities by their first time or, without dates, row of the table; ``None`` if unknown.
    """

    starts: IntArray
    hour: FloatArray
    group: IntArray | None = None
    order: IntArray | None = None

    @property
    def cluster(self) -> IntArray:
        """(P,) number from 0 of the independent unit that each entity belongs to: its group, or itself."""
        if self.group is None:
            return np.arange(len(self.starts) - 1)
        return np.unique(self.group, return_inverse=True)[1].astype(np.int64)

    @property
    def row_cluster(self) -> IntArray:
        """(n,) number of the independent unit of each hour."""
        cluster: IntArray = self.cluster[index_entities(self.starts)]
        return cluster

    @property
    def clusters(self) -> int:
        """The number of independent units."""
        return int(self.cluster.max(initial=-1)) + 1

    @property
    def median_gap(self) -> float:
        """The median time between successive rows of an entity, in hours; 0 if no entity has two rows."""
        gaps = np.diff(self.hour)[np.diff(index_entities(self.starts)) == 0]
        return float(np.median(gaps)) if len(gaps) else 0.0

    def sum_by_cluster(self, values: FloatArray) -> FloatArray:
        """Sum (P,) values of the entities by cluster."""
        if self.group is None:
            return values
        sums: FloatArray = np.bincount(self.cluster, values).astype(np.float64)
        return sums

    def select(self, entities: IntArray) -> Timeline:
        """Return the hours of some entities."""
        starts = starts_from_sizes(np.diff(self.starts)[entities])
        group, order = (None if each is None else each[entities] for each in (self.group, self.order))
        return Timeline(starts, self.hour[select_rows(self.starts, entities)], group, order)


@dataclass(frozen=True, slots=True)
class EntityTable:
    """The numeric columns of P entities, one entity after the other.

    Attributes:
        ids: Names of the P entities.
        starts: (P+1,) first row of each entity, and the number of rows.
        hour: (n,) time of each row in hours, ascending within an entity.
        columns: Names of the C columns.
        values: (n, C) float32, NaN where nothing was measured.
        digest: Hash of the file contents.
        name: File name for messages.
        unreadable: By column that is not numeric, the diagnostic of its first bad cell.
        split_values: (n,) cells of the column of sites or times that the split reads, if it reads one.
        group: (P,) number of the patient of each entity, where a column names it.
        group_names: (P,) name of that patient.
        order: (P,) rank of each entity by its first time or row, where known.
        repeated: A column that names one patient for several entities, if the spec does not name it; or empty.
        stays: A column that names several stays of one entity; or empty.
    """

    ids: tuple[str, ...]
    starts: IntArray
    hour: FloatArray
    columns: tuple[str, ...]
    values: Float32
    digest: str
    name: str
    unreadable: Mapping[str, Diagnostic] = field(default_factory=dict)
    split_values: np.ndarray | None = None
    group: IntArray | None = None
    order: IntArray | None = None
    repeated: str = ""
    stays: str = ""
    group_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.hour)

    @property
    def timeline(self) -> Timeline:
        """The hours of the entities."""
        return Timeline(self.starts, self.hour, self.group, self.order)

    def take(self, entities: IntArray) -> EntityTable:
        """Return the table of some entities."""
        rows, timeline = select_rows(self.starts, entities), self.timeline.select(entities)
        return replace(
            self,
            ids=tuple(self.ids[entity] for entity in entities),
            starts=timeline.starts,
            hour=timeline.hour,
            values=self.values[rows],
            split_values=None if self.split_values is None else self.split_values[rows],
            group=timeline.group,
            order=timeline.order,
            group_names=tuple(self.group_names[entity] for entity in entities) if self.group_names else (),
        )

    def column_index(self, column: str, *, key: str) -> int:
        """Look up a numeric column; ``key`` is the spec key that names it.

        Raises:
            UnfoldError: The column does not exist or is not numeric.
        """
        if column in self.unreadable:
            raise UnfoldError(replace(self.unreadable[column], key=key))
        if column not in self.columns:
            raise user_error(f'{self.name} has no column "{column}"', key=key, hint=did_you_mean(column, self.columns))
        return self.columns.index(column)


def index_entities(starts: IntArray) -> IntArray:
    """Number the entity of each row, (n,)."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def select_rows(starts: IntArray, entities: IntArray) -> IntArray:
    """List the rows of some entities, in the order of ``entities``."""
    sizes = starts[entities + 1] - starts[entities]
    offset = np.cumsum(sizes) - sizes
    rows: IntArray = np.repeat(starts[entities] - offset, sizes) + np.arange(int(sizes.sum()))
    return rows


def starts_from_sizes(sizes: IntArray) -> IntArray:
    """Compute (P+1,) starts from the row counts of P entities."""
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


def find_first_true(flag: BoolArray, starts: IntArray) -> IntArray:
    """Find (P,) the first row of each entity where ``flag`` (n,) is set; the row after the entity if none is."""
    n = len(flag)
    row = np.where(flag, np.arange(n), n)
    if not n:
        return starts[1:].copy()
    first_rows: IntArray = np.minimum(np.minimum.reduceat(row, starts[:-1]), starts[1:])
    return first_rows


def compute_hours_since(flag: BoolArray, timeline: Timeline) -> FloatArray:
    """Compute (n,) hours since ``flag`` was first set in the entity: negative before, minus infinity if it never is."""
    starts, hour = timeline.starts, timeline.hour
    first_rows = find_first_true(flag, starts)
    moment = np.where(first_rows < starts[1:], hour[np.minimum(first_rows, len(hour) - 1)], np.inf)
    since: FloatArray = hour - np.repeat(moment, np.diff(starts))
    return since


def check_hour_order(timeline: Timeline, ids: Sequence[str], name: str, key: str) -> None:
    """Reject a table in which the hours of an entity do not ascend or an hour is missing.

    Raises:
        UnfoldError: The message names the table, the entity and the hour.
    """
    hour, starts = timeline.hour, timeline.starts
    disordered = ~np.isfinite(hour)
    disordered[1:] |= np.diff(hour) <= 0
    entity_starts = starts[:-1][np.diff(starts) > 0]
    disordered[entity_starts] = ~np.isfinite(hour[entity_starts])
    if disordered.any():
        row = int(np.flatnonzero(disordered)[0])
        entity = ids[int(np.searchsorted(starts, row, side="right")) - 1]
        is_repeated = row > 0 and hour[row] == hour[row - 1]
        hint = MERGE_HINT if is_repeated else ""
        raise user_error(f'{name}: "{entity}" {_describe_disorder(hour, row)}', key=key, hint=hint)


def _describe_disorder(hour: FloatArray, row: int) -> str:
    if not np.isfinite(hour[row]):
        return "has a row without an hour"
    if hour[row] == hour[row - 1]:
        return f"has two rows of hour {hour[row]:g}"
    return f"has hour {hour[row]:g} after hour {hour[row - 1]:g}: the hours do not ascend"
