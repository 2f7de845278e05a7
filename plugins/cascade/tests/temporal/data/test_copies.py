"""Records that occur more than once are recognized, whatever their names, clocks and counters; others are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade.temporal.data.copies import find_known, find_moving_columns, hash_records, join_copies
from unfold_cascade.temporal.data.table import EntityTable

COLUMNS = ("HR", "Temp", "Resp", "Age", "hour_of_day", "night", "row", "admission")
CLOCKS = {"Age", "hour_of_day", "night", "row", "admission"}
HOURS = 30


def build_table(patients: int, *, seed: int, copies: int = 1, decimals: int = 0) -> EntityTable:
    """Simulate patients, each of them several times under other names, admissions and row numbers."""
    generator = np.random.default_rng(seed)
    hour = np.tile(np.arange(HOURS), patients)
    start = np.repeat(generator.integers(0, 24, patients), HOURS)
    vitals = np.round(generator.normal([85.0, 37.0, 18.0], [10.0, 1.0, 3.0], (len(hour), 3)), decimals)
    vitals[generator.random(vitals.shape) < 0.2] = np.nan
    clock = (hour + start) % 24
    age = np.repeat(generator.integers(18, 90, patients), HOURS)
    once = np.column_stack([vitals, age, clock, clock < 6])
    rows = np.arange(len(hour) * copies)
    values = np.column_stack([np.tile(once, (copies, 1)), rows, rows // HOURS]).astype(np.float32)
    return EntityTable(
        ids=tuple(map(str, range(patients * copies))),
        starts=np.arange(patients * copies + 1) * HOURS,
        hour=np.tile(hour, copies).astype(np.float64),
        columns=COLUMNS,
        values=values,
        digest="",
        name="ward.csv",
    )


@pytest.mark.parametrize("decimals", [0, 5])
def test_copies_of_a_record_are_one_unit(decimals: int) -> None:
    """Twelve copies of each patient are one independent unit, in whole numbers and in long fractions."""
    table = build_table(40, seed=1, copies=12, decimals=decimals)
    moving = find_moving_columns(table, COLUMNS)
    assert set(moving).isdisjoint(CLOCKS)
    joined = join_copies(table, hash_records(table, moving))
    assert joined.timeline.clusters == 40
    assert (joined.timeline.cluster == np.tile(joined.timeline.cluster[:40], 12)).all()


def test_different_patients_are_never_joined() -> None:
    """No two of 3,000 patients share a record, not even those with hardly a measurement."""
    table = build_table(3000, seed=2)
    table.values[np.random.default_rng(3).random(len(table)) < 0.9, :3] = np.nan
    assert join_copies(table, hash_records(table, ("HR", "Temp", "Resp"))) is table


def test_groups_stay_together_and_parts_of_a_record_are_copies() -> None:
    """The stays of a patient stay in one group, and a stay that a later export continues is the same one."""
    table = build_table(6, seed=4)
    longer = table.take(np.array([0, 1, 2, 3, 4, 5, 0]))
    rows = np.delete(np.arange(len(longer)), np.arange(6 * HOURS, 6 * HOURS + 12))
    starts = np.append(table.starts, 7 * HOURS - 12)
    part = replace(longer, starts=starts, hour=longer.hour[rows], values=longer.values[rows])
    grouped = replace(part, group=np.array([0, 0, 1, 2, 3, 4, 5]))
    joined = join_copies(grouped, hash_records(grouped, ("HR", "Temp", "Resp")))
    assert joined.timeline.cluster.tolist() == [0, 0, 1, 2, 3, 4, 0]


def test_entities_of_another_table_are_recognized() -> None:
    """A sketch of one table marks its entities in another one, and no others."""
    table, other = build_table(50, seed=5), build_table(50, seed=6)
    mixed = replace(other, values=np.concatenate([other.values[: 25 * HOURS], table.values[25 * HOURS :]]))
    columns = ("HR", "Temp", "Resp")
    known = find_known(hash_records(mixed, columns), 50, hash_records(table, columns).sketch())
    assert known.tolist() == [False] * 25 + [True] * 25
