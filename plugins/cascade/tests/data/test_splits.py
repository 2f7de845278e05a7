"""Laws of the splits: whole units, every unit once, parts in the order asked for, and culprits by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_cascade.data.splits import SplitRule, TimeBound, UnitTable, list_sites, split_units
from unfold_cascade.data.table import Rows
from unfoldkit.api import UnfoldError

PATIENTS = 60


def table(**columns: np.ndarray) -> UnitTable:
    """Two rows for each patient."""
    unit = np.repeat(np.arange(PATIENTS), 2)
    names = [f"p{number}" for number in range(PATIENTS)]
    columns = {"patient": np.repeat(names, 2), **{name: np.repeat(values, 2) for name, values in columns.items()}}
    return UnitTable(unit=unit, names=names, read=columns.__getitem__, noun="patient", table="t.csv")


def strata(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, PATIENTS)


def bound(text: str) -> TimeBound:
    return TimeBound(f"< {text}", text, is_inclusive=False)


def check_partition(rows: Rows) -> None:
    units = np.concatenate([rows.train, rows.calibrate, rows.test])
    assert sorted(units.tolist()) == list(range(PATIENTS))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), sites=st.integers(3, 9))
def test_whole_sites_are_drawn(seed: int, sites: int) -> None:
    """Without names every site stands in one part, and every part has one."""
    site = np.arange(PATIENTS) % sites
    rows = split_units(SplitRule(kind="column", column="site"), strata(seed), table(site=site), seed)
    check_partition(rows)
    parts = [set(site[part]) for part in (rows.train, rows.calibrate, rows.test)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


@pytest.mark.parametrize(
    ("named", "train", "test"),
    [
        ({"test": ("C",)}, {"A", "B"}, {"C"}),
        ({"train": ("A",)}, {"A"}, {"B", "C"}),
        ({"train": ("A",), "test": ("B", "C")}, {"A"}, {"B", "C"}),
        ({"calibrate": ("B",), "test": ("C",)}, {"A"}, {"C"}),
    ],
)
def test_named_sites_stand_where_they_are_named(
    named: dict[str, tuple[str, ...]], train: set[str], test: set[str]
) -> None:
    """The remaining sites train, or test if training names its own; a third of training certifies if no site does."""
    site = np.array(list("ABC"))[np.arange(PATIENTS) % 3]
    rows = split_units(SplitRule(kind="column", column="site", named=named), strata(0), table(site=site), 0)
    check_partition(rows)
    assert set(site[rows.train]) == train
    assert set(site[rows.test]) == test
    assert set(site[rows.calibrate]) == set(named.get("calibrate", train))
    if "calibrate" not in named:
        assert len(rows.calibrate) == pytest.approx(len(rows.train) / 2, abs=2)


def test_a_column_of_parts_is_taken_as_it_is() -> None:
    """The words train, calibrate and test need no names."""
    part = np.array(["train", "test", "calibrate"])[np.arange(PATIENTS) % 3]
    rows = split_units(SplitRule(kind="column", column="part"), strata(0), table(part=part), 0)
    assert set(part[rows.calibrate]) == {"calibrate"}
    assert len(rows.train) == PATIENTS // 3


def test_a_random_part_without_cases_is_refused() -> None:
    """Two cases of each label leave none for the test, of which no figure could be stated."""
    labels = np.repeat(np.arange(PATIENTS // 2), 2).astype(str)
    with pytest.raises(UnfoldError, match=r"the part test has 0 .*; it needs 1"):
        split_units(SplitRule(train=0.5, calibrate=0.3), labels, table(), 0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), days=st.integers(5, 400), bounds=st.sampled_from(["", "train", "calibrate", "both"]))
def test_no_part_is_earlier_than_the_one_before(seed: int, days: int, bounds: str) -> None:
    """Whatever bounds are given, and equal dates stay together."""
    day = np.random.default_rng(seed).integers(0, days, PATIENTS)
    dates = (np.datetime64("2024-01-01") + day).astype(str)
    limits = {"train": bound(str(np.sort(dates)[20])), "calibrate": bound(str(np.sort(dates)[40]))}
    chosen = {name: limit for name, limit in limits.items() if bounds in (name, "both")}
    try:
        rows = split_units(SplitRule(kind="time", column="day", bounds=chosen), strata(0), table(day=dates), 0)
    except UnfoldError as error:
        # a part may be empty where many dates are equal
        if "it needs 2" not in str(error):
            raise
        return
    check_partition(rows)
    assert max(dates[rows.train]) < min(dates[rows.calibrate])
    assert max(dates[rows.calibrate]) < min(dates[rows.test])


def test_an_empty_part_in_time_names_the_range_of_the_data() -> None:
    """Bounds beyond the data leave a part empty; the error says from when to when the data run."""
    dates = (np.datetime64("2024-01-30") + np.arange(PATIENTS)).astype(str)
    rule = SplitRule(kind="time", column="day", bounds={"train": bound("2023")})
    last = str(np.datetime64("2024-01-30") + np.timedelta64(PATIENTS - 1, "D"))
    message = reject(rule, table(day=dates))
    assert "the part train has 0" in message
    assert f'the column "day" runs from 2024-01-30 to {last}' in message


def test_a_unit_is_placed_by_its_first_time() -> None:
    """A patient admitted before the limit trains, although later rows are behind it; months and numbers are limits."""
    rule = SplitRule(kind="time", column="hour", bounds={"train": bound("30"), "calibrate": bound("45")})
    units = table()
    hours = np.arange(2 * PATIENTS) / 2.0 + np.tile([0.0, 100.0], PATIENTS)
    late = UnitTable(unit=units.unit, names=units.names, read=lambda _: hours, noun="patient", table="t.csv")
    rows = split_units(rule, strata(0), late, 0)
    assert rows.train.tolist() == list(range(30))
    month = np.array(["2024-11-30", "2024-12-31T23:00", "2025-01-01"])[np.arange(PATIENTS) // 20]
    dated = SplitRule(kind="time", column="day", bounds={"train": bound("2024-12"), "calibrate": bound("2025")})
    assert len(split_units(dated, strata(0), table(day=month), 0).calibrate) == 20


@pytest.mark.parametrize("has_key", [True, False])
def test_a_file_assigns_parts(tmp_path: Path, *, has_key: bool) -> None:
    """By the column that it shares with the table, or row by row."""
    parts = np.array(["train", "calibrate", "test"])[np.arange(PATIENTS) % 3]
    lines = (
        [f"p{number},{part}" for number, part in reversed(list(enumerate(parts)))] if has_key else np.repeat(parts, 2)
    )
    file = tmp_path / "split.csv"
    file.write_text("\n".join(["patient,part" if has_key else "part", *lines]))
    rows = split_units(SplitRule(kind="file", path="split.csv", locate=lambda: file), strata(0), table(), 0)
    assert parts[rows.test].tolist() == ["test"] * (PATIENTS // 3)


def reject(rule: SplitRule, units: UnitTable) -> str:
    with pytest.raises(UnfoldError) as caught:
        split_units(rule, strata(0), units, 0)
    assert caught.value.code == 2
    return str(caught.value)


def test_sites_that_cannot_be_used_are_named() -> None:
    """One site only, a site with one patient, a patient in two sites or none, and names that the column lacks."""
    site = np.array(list("ABC"))[np.arange(PATIENTS) % 3]
    lone = np.where(np.arange(PATIENTS) == 7, "Z", site)
    by_site = SplitRule(kind="column", column="site", named={"test": ("C",)})
    assert '"Z" in the column "site" has one patient' in reject(by_site, table(site=lone))
    assert "one value only" in reject(by_site, table(site=np.full(PATIENTS, "A")))
    assert 'patient p7 has no value in the column "site"' in reject(
        by_site, table(site=np.where(lone == "Z", "", site))
    )
    unknown = SplitRule(kind="column", column="site", named={"test": ("D",)})
    assert 'has no value "D"' in reject(unknown, table(site=site))
    rest = SplitRule(kind="column", column="site", named={"train": ("A",), "test": ("B",)})
    assert '"C" is in no part' in reject(rest, table(site=site))
    assert "2 values for three parts" in reject(
        SplitRule(kind="column", column="site"), table(site=np.array(list("AB"))[np.arange(PATIENTS) % 2])
    )
    moved = np.repeat(site, 2)
    moved[5] = "B" if moved[5] != "B" else "A"
    units = table()
    both = UnitTable(unit=units.unit, names=units.names, read=lambda _: moved, noun="patient", table="t.csv")
    assert 'patient p2 has both "C" and "B"' in reject(by_site, both)
    with pytest.raises(UnfoldError, match='"Z"'):
        list_sites("site", table(site=lone))


def test_times_and_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A cell that is not a date, a limit of another kind, an empty part, and a file with gaps or unknown parts."""
    dates = np.full(PATIENTS, "2024-01-01", dtype=object)
    broken = dates.copy()
    broken[9] = "2024-13-01"
    rule = SplitRule(kind="time", column="day")
    assert '"2024-13-01" in row 19 of column "day" is not a date' in reject(rule, table(day=broken))
    zoned = np.full(PATIENTS, "2024-01-01T23:00", dtype=object)
    zoned[9] = "2024-01-01T23:00:00-05:00"
    assert 'row 19 of column "day" has a time zone, unlike the dates before it' in reject(rule, table(day=zoned))
    limited = SplitRule(kind="time", column="day", bounds={"train": bound("2024-13")})
    assert '"< 2024-13" does not end with a date' in reject(limited, table(day=dates))
    assert "the part train has 0 patients" in reject(rule, table(day=dates))
    file = tmp_path / "split.csv"
    by_file = SplitRule(kind="file", path="split.csv", locate=lambda: file)
    for text, message in (
        ("patient,part\n" + "p1,train\n" * 12, 'no part for "p0"'),
        ("patient,part\n" + "p1,train\n" * 12 + "p1,test\n", '"p1" in row 13 is in train and in test'),
        ("patient,part\n" + "p1,dev\n" * 12, '"dev" in row 1 of column "part"'),
        ("part\n" + "train\n" * 12, "has 12 rows; t.csv has 120"),
        ("patient,part,x\n" + "p1,train,1\n" * 12, "one is needed"),
        ("patient,role\n" + "p1,train\n" * 12, 'no column "part"'),
    ):
        file.write_text(text)
        assert message in reject(by_file, table())
