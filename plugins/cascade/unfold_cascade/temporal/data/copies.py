"""Copied records: entities that occur in a table, or in two tables, more than once under different names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, Float32, Hashes, IntArray
from unfold_cascade.data.leakage import mix_bits
from unfold_cascade.temporal.data.table import EntityTable, Timeline, index_entities

WINDOW = 12
"""Consecutive rows that are compared, so that a record and a part of it are found."""
MIN_CHANGES = 20
"""Values that differ from the row above, at least, in rows that identify a record."""
MIN_RECORD_CHANGES = 16
"""The same in whole records, which may be shorter than a window or have one column."""
SKETCH = 4
"""Hashes kept of a record, its smallest: one with half of the rows shares one of them in 15 of 16 cases."""
MAX_PREDICTED = 0.45
"""Share of the changes of a column up to which the value before them does not predict the value after them."""
MIN_REPEATS = 5
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class RecordHashes:
    """Hashes (m,) of windows of rows and of whole records, and the (m,) number of the entity of each."""

    entity: IntArray
    value: Hashes

    def sketch(self) -> Hashes:
        """Keep the smallest hashes of each entity, sorted."""
        order = np.lexsort((self.value, self.entity))
        first = np.flatnonzero(np.diff(self.entity[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
        return np.unique(self.value[order][rank < SKETCH])


def find_moving_columns(table: EntityTable, columns: Sequence[str]) -> tuple[str, ...]:
    """List the columns that identify a record: measurements, and not clocks, counters, flags or constants."""
    before = np.flatnonzero(np.diff(index_entities(table.starts)) == 0)
    values = {name: table.values[:, table.columns.index(name)] for name in columns}
    values = {name: column for name, column in values.items() if not _is_counter(column[before], column[before + 1])}
    row = sum((mix_bits(_bits(column) ^ _hash_name(name)) for name, column in values.items()), _zeros(len(table)))
    # each pair of rows once, since copies would make every value predict the next one
    pair = mix_bits(row[before]) + row[before + 1]
    before = before[np.unique(pair, return_index=True)[1]]
    return tuple(name for name, column in values.items() if not _is_clock(column[before], column[before + 1]))


def _is_counter(before: Float32, after: Float32) -> bool:
    """Whether values are constant, or most steps are equal."""
    step = np.round(after - before, 6)
    count = np.unique(step[np.isfinite(step) & (step != 0)], return_counts=True)[1]
    return not len(count) or count.max() > MAX_PREDICTED * count.sum()


def _is_clock(before: Float32, after: Float32) -> bool:
    """Whether the value before a change predicts the value after it, as in hours of a day and flags."""
    has_changed = np.isfinite(before) & np.isfinite(after) & (before != after)
    value, number = np.unique(before[has_changed], return_inverse=True)
    repeats, commonest = np.bincount(number, minlength=len(value)), np.zeros(len(value), dtype=np.int64)
    pairs, count = np.unique(np.column_stack([number, after[has_changed]]), axis=0, return_counts=True)
    np.maximum.at(commonest, pairs[:, 0].astype(np.int64), count)
    is_repeated = repeats >= MIN_REPEATS
    return bool(commonest[is_repeated].sum() > MAX_PREDICTED * repeats[is_repeated].sum())


def hash_records(table: EntityTable, columns: Sequence[str]) -> RecordHashes:
    """Hash each entity, and each window of its rows, in which enough values change.

    Args:
        table: The entities.
        columns: Names of the columns to compare.
    """
    entity, first = index_entities(table.starts), table.starts[:-1]
    row, changes = _zeros(len(table)), np.zeros(len(table), dtype=np.int64)
    for name in columns:
        values = table.values[:, table.columns.index(name)]
        row += mix_bits(_bits(values) ^ _hash_name(name))
        has_changed = np.isfinite(values[1:]) & (values[1:] != values[:-1]) & (np.diff(entity) == 0)
        changes[1:] += has_changed
    total = np.concatenate(([0], np.cumsum(changes)))
    position = (np.arange(len(table)) - first[entity]).astype(np.uint64)
    whole = np.add.reduceat(mix_bits(row + position * _ODD), first)
    is_whole = total[table.starts[1:]] - total[first] >= MIN_RECORD_CHANGES
    start = np.arange(max(len(table) - WINDOW + 1, 0))
    offset = np.arange(WINDOW, dtype=np.uint64) * _ODD
    window = sum((mix_bits(row[start + k] + offset[k]) for k in range(WINDOW)), _zeros(len(start)))
    is_window = (entity[start] == entity[start + WINDOW - 1]) & (
        total[start + WINDOW] - total[start + 1] >= MIN_CHANGES
    )
    return RecordHashes(
        np.concatenate([np.flatnonzero(is_whole), entity[start][is_window]]),
        np.concatenate([whole[is_whole], window[is_window]]),
    )


def _zeros(size: int) -> Hashes:
    return np.zeros(size, dtype=np.uint64)


def _bits(values: Float32) -> Hashes:
    # one pattern for every NaN, and for both zeros
    canonical = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0.0))
    return np.ascontiguousarray(canonical, dtype=np.float32).view(np.uint32).astype(np.uint64)


def _hash_name(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))


def join_copies(table: EntityTable, hashes: RecordHashes) -> EntityTable:
    """Put entities that share a hash into one group, together with those of their groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = np.unique(hashes.value, return_inverse=True)[1]
    is_shared = np.bincount(number)[number] > 1 if len(number) else np.zeros(0, dtype=np.bool_)
    count, cluster = len(table.ids), table.timeline.cluster
    start, end = hashes.entity[is_shared], number[is_shared] + 2 * count
    links = np.concatenate([np.arange(count), start]), np.concatenate([cluster + count, end])
    size = int(max(links[1].max(), links[0].max())) + 1
    graph = coo_array((np.ones(len(links[0])), links), shape=(size, size))
    group = np.unique(connected_components(graph, directed=False)[1][:count], return_inverse=True)[1].astype(np.int64)
    return table if group.max() == cluster.max() else replace(table, group=group)


def count_copies(timeline: Timeline, joined: Timeline) -> int:
    """Count the independent units that repeat the records of another one."""
    return timeline.clusters - joined.clusters


def find_known(hashes: RecordHashes, entities: int, sketch: Hashes) -> BoolArray:
    """Mark (entities,) those of a table that have records in a sketch of another one."""
    return np.isin(np.arange(entities), hashes.entity[np.isin(hashes.value, sketch)])
