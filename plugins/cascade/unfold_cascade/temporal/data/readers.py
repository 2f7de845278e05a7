"""Readers of tables over time: folders and archives of psv files (PhysioNet 2019), long CSV and Parquet tables."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.data.case_order import rank_by_time
from unfold_cascade.data.dataset import check_size
from unfold_cascade.data.table import Frame, frame_of_file
from unfold_cascade.schema.cell_values import has_zone, is_missing
from unfold_cascade.temporal.data.table import (
    EntityTable,
    Timeline,
    check_hour_order,
    index_entities,
    starts_from_sizes,
)
from unfold_cascade.temporal.data.windows import LARGEST_VALUE
from unfold_cascade.temporal.problem import HOUR_S, LongSource, PsvSource, TableSource
from unfoldkit.api import PERSON_COLUMNS, Diagnostic, Run, UnfoldError, user_error
from unfoldkit.arrivals.readers import timestamps
from unfoldkit.io.tables import is_number
from unfoldkit.safe_io.archives import max_expanded_bytes
from unfoldkit.safe_io.files import read_bytes, require_regular

HOUR_COLUMN = "ICULOS"
UNIT_COLUMN = "unit"
UNITS = {"Unit1": "MICU", "Unit2": "SICU"}
"""Indicator columns of the care units in PhysioNet 2019, and the units: medical and surgical intensive care."""
PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "subject_id", "stay_id", "icustay_id", "entity", "case", "id")
"""Names of the column of patients where all hours are in one table, in lower case."""
SITE_COLUMNS = ("hospital", "hospital_id", "hospitalid", "site", "site_id", "siteid", "center", "centre", "center_id")
"""Names of columns of hospitals, in lower case."""
STAY_COLUMNS = frozenset(
    ("stay", "stay_id", "icustay_id", "hadm_id", "admission_id", "encounter_id", "visit_occurrence_id", "csn")
)
"""Names of columns of stays, in lower case."""
MIN_HOURS_OF_STAY = 2.0
"""Fewer rows a stay are visits, with one row each."""
MAX_TRANSFERRED_SHARE = 0.2
"""Share of entities that may have rows of two hospitals: transfers are rarer, repeated numbers more common."""
TABLE_ENDINGS = (".csv", ".csv.gz", ".psv", ".tsv", ".txt", ".parquet", ".jsonl", ".jsonl.gz", ".ndjson")
FILES_PER_CHUNK = 512
MINUTE_COLUMNS = frozenset(
    f"{name}offset"
    for name in ("observation", "labresult", "nursingchart", "respchart", "drug", "infusion", "intakeoutput", "chart")
)
"""Names of columns of time in eICU, in lower case."""
OTHER_HOURS = {60.0: "minutes", 3600.0: "seconds", 3.6e6: "milliseconds"}
"""How long an hour is in other units."""
MAX_MEASURED_KINDS = 1000
MIN_SEPARABLE = 0.9
"""Share of rows that the names of measurements separate; some are measured twice at one time."""
STEPS: Mapping[float, str] = {
    **dict.fromkeys((5.0, 10.0, 15.0, 20.0, 30.0), "minutes"),
    **dict.fromkeys((300.0, 600.0, 900.0, 1800.0), "seconds"),
}
"""Usual steps of recordings; as hours, they are neither parts of a day nor days."""
STEPS_IN_DAYS = (1 / 24, 1 / 48, 1 / 96)
"""An hour, half and a quarter of one in days; as hours, they are 150, 75 and 37.5 seconds, which few devices use."""
REPEATED_HOUR_HINT = "did daylight saving time end? write the times in UTC; if not, sort the rows by time"
SKIPPED_HOUR_HINT = "did daylight saving time begin? write the times in UTC, such as 2026-03-01T07:15Z"
MAX_CHANCE = 0.01
"""Chance up to which the gaps of several entities in one hour are none."""
DAY_S = 86_400.0
MAX_HOURS = 1e7
"""Eleven centuries: larger times are seconds since 1970, or digits of a date."""
_LINE_END = re.compile(rb"\r+\n?")
NamedContent = tuple[str, bytes]


def read_table(source: TableSource, run: Run) -> EntityTable:
    """Read the table of a problem.

    Raises:
        UnfoldError: A file is missing, damaged or empty; the message names file and line.
    """
    path = run.path(source.path, key="data.path")
    if isinstance(source, PsvSource):
        is_one_table = path.name.endswith(TABLE_ENDINGS)
        table = read_patient_table(path) if is_one_table else read_psv(path, max_patients=source.max_patients)
        return replace(table, split_values=_read_split_values(table, source.split_column))
    return read_long(path, source)


def _read_split_values(table: EntityTable, column: str) -> np.ndarray | None:
    """Read the (n,) cells of a column of psv files; ``unit`` names the care unit, ``patient`` the file."""
    if not column:
        return None
    if column == "patient":
        return np.repeat(table.ids, np.diff(table.starts))
    if column == UNIT_COLUMN and not set(UNITS) - set(table.columns):
        is_in_unit = table.values[:, [table.columns.index(unit) for unit in UNITS]] == 1.0
        return np.select(list(is_in_unit.T), list(UNITS.values()), "unknown")
    return table.values[:, table.column_index(column, key="data.split")].astype(np.float64)


def read_psv(path: Path, *, max_patients: int | None = None) -> EntityTable:
    """Read the hours of all ``*.psv`` files of a folder or archive, ordered by file name.

    Args:
        path: A folder (searched recursively), a ``.zip``, a ``.tar``, a ``.tar.xz`` or a ``.tar.gz``.
        max_patients: Read only this many patients, the first by name.

    Raises:
        UnfoldError: No psv file, two files of one name, different headers, or a cell that is not a number.
    """
    files = _read_folder(path) if path.is_dir() else _read_archive(path)
    contents = sorted((name, _normalize(content)) for name, content in files)[:max_patients]
    if not contents:
        raise user_error("holds no .psv file", file=str(path), key="data.path")
    duplicate = next((name for (name, _), (following, _) in itertools.pairwise(contents) if name == following), None)
    if duplicate is not None:
        raise user_error(f"two patients are called {duplicate}", file=str(path), key="data.path")
    header = contents[0][1].split(b"\n", 1)[0].strip()
    columns = tuple(header.decode("utf-8", "replace").split("|"))
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise user_error(f'two columns are called "{twice}"', file=f"{path / contents[0][0]}:1:1", key="data.path")
    digest = hashlib.sha256()
    for name, content in contents:
        digest.update(name.encode() + b"\0" + content)
        if content.split(b"\n", 1)[0].strip() != header or b"\n" not in content:
            raise user_error("the header differs from that of the other files", file=f"{path / name}:1:1")
        if not _count_rows(content):
            raise user_error("the patient has no hours", file=f"{path / name}:1:1", hint="remove the file")
    chunks = [
        _parse_numbers(path, contents[begin : begin + FILES_PER_CHUNK], len(columns))
        for begin in range(0, len(contents), FILES_PER_CHUNK)
    ]
    return _assemble_table(path, contents, columns, chunks, digest.hexdigest())


def read_long(path: Path, source: LongSource) -> EntityTable:
    """Read a long table: one row per entity and hour, in any order. Only numeric columns are kept.

    Raises:
        UnfoldError: A column is missing, a row has no entity, a time is neither number nor date, an hour repeats.
    """
    if path.is_dir():
        hint = "join its tables into one, with one row per entity and hour and one column for each measurement"
        raise user_error("is a folder, but source: long reads one table", file=str(path), key="data.path", hint=hint)
    return _arrange_long(frame_of_file(path), source)


def _arrange_long(frame: Frame, source: LongSource) -> EntityTable:
    """Order the rows of a long table by entity and hour."""
    _check_long(frame, source)
    entity = frame.identifiers(source.entity, key="data.entity")
    if any(map(is_missing, entity)):
        row = next(row for row, name in enumerate(entity) if is_missing(name))
        raise user_error(f'{frame.name}: row {row + 1} has no "{source.entity}"', key="data.entity")
    ids, number = np.unique(entity, return_inverse=True)
    _check_sites(frame, source, number)
    hour, rank = _read_hours(frame, source, number)
    order = np.lexsort((hour, number))
    timeline = Timeline(starts_from_sizes(np.bincount(number, minlength=len(ids))), hour[order])
    columns, unreadable = _read_columns(frame, {source.entity, source.time, source.group})
    group, group_names = _read_groups(frame, source.group, number, ids.tolist()) if source.group else (None, ())
    split_values = None
    if source.split_column:
        frame.text(source.split_column, key="data.split")
        split_values = np.asarray(frame.columns[source.split_column])[order]
    values = np.array([column[order] for column in columns.values()], dtype=np.float32).T.reshape(len(order), -1)
    names = tuple(map(str, ids))
    _check_measurements(frame, source, number, hour)
    check_hour_order(timeline, names, frame.name, "data.time")
    return EntityTable(
        ids=names,
        starts=timeline.starts,
        hour=timeline.hour,
        columns=tuple(columns),
        values=values,
        digest=frame.digest,
        name=frame.name,
        unreadable=unreadable,
        split_values=split_values,
        group=group,
        group_names=group_names,
        order=rank,
        repeated="" if source.group else _find_repeated_patients(frame, source.entity, number),
        stays=_find_merged_stays(frame, source.entity, number),
    )


def _check_long(frame: Frame, source: LongSource) -> None:
    """Reject a wide table: one row per entity, with columns such as HR_0, HR_1 and HR_2.

    Raises:
        UnfoldError: There is no column of times, but there are such columns.
    """
    first = next((name for name in frame.columns if name[-1:] == "0" and name[:-1] + "2" in frame.columns), None)
    if source.time not in frame.columns and first is not None:
        names = ", ".join(f"{first[:-1]}{hour}" for hour in range(3))
        hint = f"{names} look like hours: write one row per entity and hour, as pandas.wide_to_long does"
        raise user_error(f'{frame.name} has no column "{source.time}"', key="data.time", hint=hint)


def _check_measurements(frame: Frame, source: LongSource, entity: IntArray, hour: FloatArray) -> None:
    """Reject a table with one row per measurement, such as those of OMOP and the chart events of MIMIC.

    Raises:
        UnfoldError: Most rows share their time with another one, and a column of few words separates them.
    """
    # NumPy 2.0.0 returns a column of numbers here
    moment = np.unique(np.column_stack([entity, hour]), axis=0, return_inverse=True)[1].ravel()
    if 2 * (np.bincount(moment)[moment] > 1).sum() < len(moment):
        return
    counts = {}
    for name in (name for name in frame.columns if name not in (source.entity, source.time)):
        words, number = np.unique(frame.text(name, key="data.time"), return_inverse=True)
        cells = np.unique(number * np.int64(len(moment)) + moment)
        if 1 < len(words) <= MAX_MEASURED_KINDS and len(cells) >= MIN_SEPARABLE * len(moment):
            counts[name] = len(words)
    if counts:
        kind = min(counts, key=lambda name: counts[name])
        message = f'{frame.name} has one row per measurement: its column "{kind}" names {counts[kind]} of them'
        index = f'index=["{source.entity}", "{source.time}"]'
        hint = f'make a column of each: pandas.pivot_table(table, {index}, columns="{kind}", values=...)'
        raise user_error(message, key="data.time", hint=hint)


def _check_sites(frame: Frame, source: LongSource, entity: IntArray) -> None:
    """Reject entities with rows from several hospitals: their numbers repeat, and rows of two would be joined.

    Raises:
        UnfoldError: There are many such entities.
    """
    first = np.unique(entity, return_index=True)[1]
    for name in frame.columns:
        if name.lower() not in SITE_COLUMNS or name == source.entity:
            continue
        words = frame.text(name, key="data.entity")
        several = np.unique(entity[words != words[first][entity]])
        if len(several) > MAX_TRANSFERRED_SHARE * len(first):
            message = f'{frame.name}: {len(several):,} of {len(first):,} entities have several values of "{name}"'
            hint = f"do their numbers repeat? make a column of {name} and {source.entity} together"
            raise user_error(message, key="data.entity", hint=hint)


def _read_groups(frame: Frame, column: str, entity: IntArray, ids: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Number and name (P,) the groups of entities; an entity without a value is a group of its own.

    Raises:
        UnfoldError: There is no such column, or the rows of an entity name two groups.
    """
    words = frame.text(column, key="data.group")
    present = np.array([not is_missing(word) for word in words], dtype=np.bool_)
    named, first = np.unique(entity[present], return_index=True)
    names = np.array([f"entity {name}" for name in ids], dtype=object)
    names[named] = words[present][first]
    different = np.flatnonzero(present & (names[entity] != words))
    if len(different):
        row = int(different[0])
        both = f'"{names[entity[row]]}" and "{words[row]}"'
        raise user_error(f'{frame.name}: {ids[entity[row]]} has both {both} in "{column}"', key="data.group")
    is_named = np.isin(np.arange(len(ids)), named)
    keys = [f"{flag:d}{name}" for flag, name in zip(is_named, names, strict=True)]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64), tuple(map(str, names))


def _find_repeated_patients(frame: Frame, entity_column: str, entity: IntArray) -> str:
    """Find a column that names one patient for several entities; empty if there is none."""
    first = np.unique(entity, return_index=True)[1]
    for name in frame.columns:
        if name.lower() in PERSON_COLUMNS and name != entity_column:
            words = frame.text(name, key="data.group")
            is_constant = (words == words[first][entity]).all()
            known = [word for word in words[first] if not is_missing(word)]
            if is_constant and len(set(known)) < len(known):
                return name
    return ""


def _find_merged_stays(frame: Frame, entity_column: str, entity: IntArray) -> str:
    """Find a column that names several stays of one entity; empty if there is none."""
    for name in frame.columns:
        if name.lower() in STAY_COLUMNS and name != entity_column:
            words = frame.text(name, key="data.entity")
            present = np.array([not is_missing(word) for word in words], dtype=np.bool_)
            stay = np.unique(words[present], return_inverse=True)[1]
            stays = len(np.unique(np.column_stack([entity[present], stay]), axis=0))
            entities = len(np.unique(entity[present]))
            if entities < stays <= present.sum() / MIN_HOURS_OF_STAY:
                return name
    return ""


def read_patient_table(path: Path) -> EntityTable:
    """Read the columns of PhysioNet 2019 from one table, in which a column such as ``patient`` names the patient.

    Raises:
        UnfoldError: As in ``read_long``, or no column names the patient.
    """
    frame = frame_of_file(path)
    entity = next((name for name in frame.columns if name.lower() in PATIENT_COLUMNS), None)
    if entity is None:
        message = f"{path.name} has no column that names the patient"
        raise user_error(message, key="data.path", hint=f"name it {PATIENT_COLUMNS[0]}, or give a folder of psv files")
    table = _arrange_long(frame, LongSource(str(path), entity, HOUR_COLUMN))
    hours = table.hour.astype(np.float32)[:, None]
    return replace(table, columns=(*table.columns, HOUR_COLUMN), values=np.hstack([table.values, hours]))


def _read_hours(frame: Frame, source: LongSource, entity: IntArray) -> tuple[FloatArray, IntArray]:
    """Read hours, and rank the entities by their first date: that of the hours, of another column, or else the row.

    Returns:
        (n,) numbers as they are, dates as hours since the first date of their entity; (P,) ranks from 0.
    """
    dates_s = frame.dates(source.time, key="data.time")
    first = np.unique(entity, return_index=True)[1]
    if dates_s is None:
        hours = frame.numbers(source.time, key="data.time")
        _check_unit(hours, entity, source.time, frame.name)
        # beside hours since admission, a table may have its date, and the newest stay first
        rank = rank_by_time(frame)
        return hours, _rank(first if rank is None else rank[first])
    earliest_s = np.full(int(entity.max()) + 1, np.inf)
    np.fmin.at(earliest_s, entity, dates_s)
    _check_repeated_hour(frame, source, entity, dates_s)
    return (dates_s - earliest_s[entity]) / HOUR_S, _rank(earliest_s, first)


def _rank(*keys: FloatArray | IntArray) -> IntArray:
    """Rank (P,) entities from 0 by keys, the first one before the others."""
    rank: IntArray = np.argsort(np.lexsort(keys[::-1]))
    return rank


def _check_repeated_hour(frame: Frame, source: LongSource, entity: IntArray, dates_s: FloatArray) -> None:
    """Reject dates without a zone that repeat an hour as daylight saving time ends: its rows would interleave.

    Raises:
        UnfoldError: The rows of an entity, which ascend otherwise, go back once by such an hour, or all times that
            repeat are in such nights.
    """
    if any(map(has_zone, map(str, frame.columns[source.time]))):
        return
    by_time = np.lexsort((dates_s, entity))
    is_same = (np.diff(dates_s[by_time]) == 0) & (np.diff(entity[by_time]) == 0)
    repeats = by_time[1:][is_same]
    if len(repeats) and all(timestamps.is_end_of_summer(time) for time in dates_s[repeats]):
        row, column = int(repeats[0]), source.time
        message = f'"{frame.columns[column][row]}" in row {row + 1} of column "{column}" repeats a time of its entity'
        raise user_error(f"{frame.name}: {message}", key="data.time", hint=REPEATED_HOUR_HINT)
    order = np.argsort(entity, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(entity))[:-1]):
        repeated = timestamps.find_repeated_hour(dates_s[rows])
        if repeated is not None:
            row, column = int(rows[repeated]), source.time
            message = f'"{frame.columns[column][row]}" in row {row + 1} of column "{column}" goes back an hour'
            raise user_error(f"{frame.name}: {message}", key="data.time", hint=REPEATED_HOUR_HINT)
    _check_skipped_hour(frame, source, by_time, entity, dates_s)


def _check_skipped_hour(
    frame: Frame, source: LongSource, by_time: IntArray, entity: IntArray, dates_s: FloatArray
) -> None:
    """Reject dates without a zone that skip an hour as daylight saving time begins: later rows would be an hour off.

    Args:
        frame: The table.
        source: The names of its columns.
        by_time: (n,) rows in the order of their entity and time.
        entity: (n,) number of the entity of each row.
        dates_s: (n,) time of each row in s.

    Raises:
        UnfoldError: All entities lack a row in such an hour, and only there: their rows come too regularly for chance.
    """
    before, after = by_time[:-1], by_time[1:]
    is_step = entity[before] == entity[after]
    before, after = before[is_step], after[is_step]
    # the first hour of the clock that begins after a row
    next_s = (dates_s[before] // HOUR_S + 1.0) * HOUR_S
    is_gap = dates_s[after] >= next_s + HOUR_S
    hours_s = np.unique(next_s[np.isfinite(next_s)])
    hours_s = hours_s[timestamps.may_start_summer(hours_s)]
    occupied_s = np.unique(dates_s // HOUR_S) * HOUR_S
    for hour_s in hours_s[~np.isin(hours_s, occupied_s)]:
        is_at = next_s == hour_s
        crossings = np.flatnonzero(is_at & (dates_s[after] < hour_s + 2 * HOUR_S))
        # a device may rest at the same hour of each day
        is_same = ~is_at & (next_s % DAY_S == hour_s % DAY_S)
        chances = ((is_gap[mask].sum() + 1) / (mask.sum() + 2) for mask in (~is_at, is_same))
        if len(crossings) and len(hours_s) * max(chances) ** len(crossings) <= MAX_CHANCE:
            row, moment = int(after[crossings[0]]), f"{datetime.fromtimestamp(hour_s, UTC):%Y-%m-%d %H:%M}"
            message = f'column "{source.time}" has no row in the hour from {moment}, before row {row + 1}'
            raise user_error(f"{frame.name}: {message}", key="data.time", hint=SKIPPED_HOUR_HINT)


def _check_unit(hours: FloatArray, entity: IntArray, column: str, table: str) -> None:
    """Reject numbers that do not count hours: stamps of a clock, spreadsheet days, or those that name another unit."""
    known = hours[np.isfinite(hours)]
    first, last = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    first_serial, last_serial = timestamps.SPREADSHEET_DAYS
    order = np.lexsort((hours, entity))
    gaps = np.diff(hours[order])[np.diff(entity[order]) == 0]
    gap = float(np.median(gaps)) if len(gaps) else 0.0
    step_unit = "days" if np.isclose(gap, STEPS_IN_DAYS, rtol=0.01, atol=0.0).any() else STEPS.get(gap)
    if timestamps.split_unit(column)[1] not in (None, HOUR_S):
        doubt = "its name states another unit"
    elif column.lower() in MINUTE_COLUMNS:
        doubt = "it counts minutes in eICU"
    elif last >= MAX_HOURS:
        doubt = f"{last:.15g} is a date"
    elif first_serial <= first and last < last_serial and (known % 1.0).any():
        doubt = f"{first:.10g} may be a date of a spreadsheet, in days"
    elif step_unit and timestamps.split_unit(column)[1] is None:
        doubt = f"most rows of an entity are {gap:g} apart, as in {step_unit}"
    elif gap in OTHER_HOURS:
        doubt = f"most rows of an entity are {gap:g} apart, as hours are in {OTHER_HOURS[gap]}"
    else:
        return
    message = f'{table}: the column "{column}" does not count hours: {doubt}'
    if column == HOUR_COLUMN:
        raise user_error(message, key="data.path", hint="write the hours since admission to intensive care")
    hint = "write hours since the first row of each entity, or dates such as 2026-03-01 07:15"
    if step_unit:
        hint += "; if it counts hours, name it hours"
    raise user_error(message, key="data.time", hint=hint)


def _read_columns(frame: Frame, excluded: Container[str]) -> tuple[dict[str, Float32], dict[str, Diagnostic]]:
    """Read the numeric columns; of every other column keep the diagnostic for a feature that names it."""
    numeric, unreadable = {}, {}
    for name in frame.columns:
        if name not in excluded:
            try:
                values = frame.numbers_or_flags(name, key="features")
                check_size(frame, name, values, LARGEST_VALUE)
                numeric[name] = values.astype(np.float32)
            except UnfoldError as error:
                unreadable[name] = error.diagnostics[0]
    return numeric, unreadable


def _normalize(content: bytes) -> bytes:
    """Return a text as UTF-8 with line feeds: spreadsheets write marks of byte order, and other ends of lines."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    return _LINE_END.sub(b"\n", content) if b"\r" in content else content


def list_psv_files(folder: Path) -> list[Path]:
    """List the psv files of a folder and its subfolders, ordered by name."""
    files = (file for file in folder.rglob("*.psv") if _is_psv_name(file.name) and file.is_file())
    return sorted(files, key=lambda file: (file.name, file))


def _is_psv_name(name: str) -> bool:
    # macOS archives contain a "._NAME" companion of each file
    return name.endswith(".psv") and not Path(name).name.startswith("._")


def _read_folder(path: Path) -> Iterator[NamedContent]:
    for file in list_psv_files(path):
        yield file.name, read_bytes(file)


def _read_archive(path: Path) -> Iterator[NamedContent]:
    require_regular(path)
    left = limit = max_expanded_bytes(path.stat().st_size)
    try:
        for name, stream in _open_zip(path) if zipfile.is_zipfile(path) else _open_tar(path):
            content = stream.read(left + 1)
            left -= len(content)
            if left < 0:
                message = f"the archive expands to more than {limit / (1 << 20):,.0f} MiB"
                raise user_error(message, file=str(path), key="data.path")
            yield name, content
    # RuntimeError: a zip with a password
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
        raise user_error(f"not an archive of psv files: {error}", file=str(path), key="data.path") from error


def _open_zip(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for name in filter(_is_psv_name, archive.namelist()):
            with archive.open(name) as stream:
                yield Path(name).name, stream


def _open_tar(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isdir() or not _is_psv_name(member.name):
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                # a link cannot be followed in a stream, and may lead out of the archive
                raise tarfile.TarError(f"{member.name} is a link or a device")
            yield Path(member.name).name, stream


def _parse_numbers(path: Path, contents: Iterable[NamedContent], width: int) -> Float32:
    """Parse the rows of many files at once; only if that fails, check line by line for the mistake."""
    bodies = [content.split(b"\n", 1)[1].strip() for _, content in contents]
    text = b"|".join(body.replace(b"\n", b"|") for body in bodies if body)
    numbers = _parse_cells(text)
    lines = sum(body.count(b"\n") + 1 for body in bodies if body)
    if numbers is None or numbers.size != lines * width or np.isinf(numbers).any():
        raise _locate_mistake(path, contents, width)
    return numbers.reshape(-1, width)


def _parse_cells(text: bytes) -> Float32 | None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(text, dtype=np.float32, sep="|")
        except (DeprecationWarning, ValueError):
            return None


def _locate_mistake(path: Path, contents: Iterable[NamedContent], width: int) -> Exception:
    for name, content in contents:
        for number, line in enumerate(content.splitlines()[1:], 2):
            cells = line.split(b"|")
            if len(cells) != width:
                message = f"has {len(cells)} cells where the header has {width}"
                return UnfoldError(Diagnostic(message, str(path / name), number, 1, "data.path"))
            for cell in cells:
                if not is_number(cell) or np.isinf(np.float32(cell)):
                    message = f'"{cell.decode("utf-8", "replace")[:40]}" is not a {"finite " * is_number(cell)}number'
                    return UnfoldError(Diagnostic(message, str(path / name), number, 1, "data.path"))
    return user_error("not a table of numbers", file=str(path), key="data.path")


def _assemble_table(
    path: Path, contents: list[NamedContent], columns: tuple[str, ...], chunks: list[Float32], digest: str
) -> EntityTable:
    values = np.concatenate(chunks)
    starts = starts_from_sizes(np.array([_count_rows(content) for _, content in contents]))
    ids = tuple(Path(name).stem for name, _ in contents)
    timeline = Timeline(starts, _hours_of_rows(values, columns, starts))
    _check_unit(timeline.hour, index_entities(starts), HOUR_COLUMN, path.name)
    check_hour_order(timeline, ids, path.name, "data.path")
    return EntityTable(ids, starts, timeline.hour, columns, values, digest, path.name)


def _count_rows(content: bytes) -> int:
    body = content.split(b"\n", 1)[1].strip()
    return body.count(b"\n") + 1 if body else 0


def _hours_of_rows(values: Float32, columns: tuple[str, ...], starts: IntArray) -> FloatArray:
    """Read the hours from ``ICULOS``, in any case; without that column number the rows of each patient."""
    names = [name.upper() for name in columns]
    if HOUR_COLUMN in names:
        return values[:, names.index(HOUR_COLUMN)].astype(np.float64)
    sizes = np.diff(starts)
    hour: FloatArray = (np.arange(len(values)) - np.repeat(starts[:-1], sizes)).astype(np.float64)
    return hour
