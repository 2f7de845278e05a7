"""Tables over time are read as they are, and every damage is reported with its file and line."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from unfold_cascade.temporal.data.features import find_longest_span
from unfold_cascade.temporal.data.online_features import build_online_features
from unfold_cascade.temporal.data.readers import read_long, read_patient_table, read_psv
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.data.windows import compute_window_statistics
from unfold_cascade.temporal.problem import FeatureSet, LongSource
from unfold_cascade.temporal.report.sentences import describe_rare_rows
from unfoldkit.errors import UnfoldError

HEAD = "HR|Temp|Resp|PaCO2|WBC|ICULOS|SepsisLabel"
TWO_PATIENTS = {"p2.psv": "90|NaN|20|NaN|NaN|3|0\n95|38.5|22|NaN|13|4|1\n", "p1.psv": "80|37|16|40|9|1|0\n"}


ICU = """stay,charttime,unit,HR,note
b,2150-03-02 07:15:00,MICU,80,
a,2150-03-01 23:15:00,SICU,,"asleep, calm"
b,2150-03-02 08:45:00,MICU,82,
a,2150-03-02 00:15:00,SICU,91,
"""


def _write_patients(folder: Path, files: dict[str, str]) -> Path:
    for name, body in files.items():
        (folder / name).write_text(f"{HEAD}\n{body}")
    return folder


def _padded(text: str) -> str:
    """Append entities until the table is long enough to be read."""
    return text + "".join(f"z{n},2150-03-01 01:00:00,MICU,70,\n" for n in range(8))


def _archive_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_psv_files_become_entities_in_name_order(tmp_path: Path) -> None:
    """Each file is one entity; hours come from ICULOS and missing values stay NaN."""
    table = read_psv(_write_patients(tmp_path, TWO_PATIENTS))
    assert table.ids == ("p1", "p2")
    assert table.starts.tolist() == [0, 1, 3]
    assert table.hour.tolist() == [1.0, 3.0, 4.0]
    assert np.array_equal(
        table.values[1], np.array([90, np.nan, 20, np.nan, np.nan, 3, 0], dtype=np.float32), equal_nan=True
    )


def test_a_byte_order_mark_is_no_part_of_a_column_name(tmp_path: Path) -> None:
    """Files with a byte order mark, as spreadsheets write them, equal the others, and may stand beside them."""
    table = read_psv(_write_patients(tmp_path, TWO_PATIENTS))
    (tmp_path / "p1.psv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "p1.psv").read_bytes())
    marked = read_psv(tmp_path)
    assert marked.columns == table.columns
    assert marked.digest == table.digest


@pytest.mark.parametrize(("end", "encoding"), [("\r", "utf-8"), ("\r\r\n", "utf-8"), ("\r\n", "utf-16")])
def test_psv_files_of_spreadsheets_equal_the_others(end: str, encoding: str, tmp_path: Path) -> None:
    """Whatever ends a line, and in UTF-16, in all files or in one of them."""
    table = read_psv(_write_patients(tmp_path, TWO_PATIENTS))
    for file in sorted(tmp_path.glob("*.psv")):
        file.write_bytes(file.read_text().replace("\n", end).encode(encoding))
        other = read_psv(tmp_path)
        assert (other.columns, other.digest, other.starts.tolist()) == (
            table.columns,
            table.digest,
            table.starts.tolist(),
        )
        assert np.array_equal(other.values, table.values, equal_nan=True)


def test_archives_equal_their_write_patients(tmp_path: Path) -> None:
    """A tar.xz and a zip of the same files give the same table, digest included."""
    folder = tmp_path / "set"
    folder.mkdir()
    _write_patients(folder, TWO_PATIENTS)
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as archive:
        archive.add(folder, "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        for name, body in TWO_PATIENTS.items():
            zipped.writestr(f"training/set/{name}", f"{HEAD}\n{body}")
            zipped.writestr(f"__MACOSX/training/set/._{name}", b"\0\1")
    first = read_psv(folder)
    for other in (read_psv(tmp_path / name) for name in ("set.tar.xz", "set.zip")):
        assert np.array_equal(first.values, other.values, equal_nan=True)
        assert (first.ids, first.digest) == (other.ids, other.digest)


def test_subfolders_are_read_as_one_table(tmp_path: Path) -> None:
    """Subfolders and Windows line ends are read; a patient that occurs twice is an error."""
    for name, body in TWO_PATIENTS.items():
        (tmp_path / f"set_{name}").mkdir()
        (tmp_path / f"set_{name}" / name).write_bytes(f"{HEAD}\n{body}".replace("\n", "\r\n").encode())
    table = read_psv(tmp_path)
    assert table.ids == ("p1", "p2")
    assert table.columns[-1] == "SepsisLabel"
    assert table.starts.tolist() == [0, 1, 3]
    _write_patients(tmp_path, {"p1.psv": TWO_PATIENTS["p1.psv"]})
    with pytest.raises(UnfoldError, match=r"two patients are called p1\.psv"):
        read_psv(tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("80|37|16|40|9|1|0\n80|37|16|40|9|2\n", "p3.psv:3:1: .*has 6 cells where the header has 7"),
        ("80|37|16|40|9|1|0\n80|warm|16|40|9|2|0\n", 'p3.psv:3:1: .*"warm" is not a number'),
        ("80|37|16|40|9|1|0\ninf|37|16|40|9|2|0\n", 'p3.psv:3:1: .*"inf" is not a finite number'),
        ("", "p3.psv:1:1: .*the patient has no hours"),
        ("80|37|16|40|9|NaN|0\n80|37|16|40|9|1|0\n", '"p3" has a row without an hour'),
        ("80|37|16|40|9|2|0\n80|37|16|40|9|1|0\n", '"p3" has hour 1 after hour 2: the hours do not ascend'),
    ],
)
def test_damaged_psv_files_are_reported_with_their_line(tmp_path: Path, body: str, message: str) -> None:
    """A ragged line, a word for a number and a repeated hour are reported with file, line or patient."""
    _write_patients(tmp_path, TWO_PATIENTS | {"p3.psv": body})
    with pytest.raises(UnfoldError, match=message):
        read_psv(tmp_path)


def test_unusable_psv_sources_are_errors(tmp_path: Path) -> None:
    """An empty folder, a different header and a damaged archive are errors, not empty tables."""
    with pytest.raises(UnfoldError, match=r"no \.psv file"):
        read_psv(tmp_path)
    _write_patients(tmp_path, TWO_PATIENTS)
    (tmp_path / "p9.psv").write_text("HR|Temp\n1|2\n")
    with pytest.raises(UnfoldError, match=r"p9.psv:1:1: .*header differs from that of the other files"):
        read_psv(tmp_path)
    (tmp_path / "no.tar").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "cut.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("p1.psv", HEAD + "\n" + "80|37|16|40|9|1|0\n" * 99)
    whole = (tmp_path / "cut.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:50] + b"\0" * 20 + whole[70:])
    for name in ("no.tar", "cut.zip"):
        with pytest.raises(UnfoldError, match="not an archive"):
            read_psv(tmp_path / name)


def test_other_files_of_an_archive_are_ignored(tmp_path: Path) -> None:
    """An archive without psv files is an error."""
    (tmp_path / "x.tar").write_bytes(_archive_of("notes/readme.txt", b"hello"))
    with pytest.raises(UnfoldError, match=r"no \.psv file"):
        read_psv(tmp_path / "x.tar")


def test_row_order_of_long_tables_does_not_matter(tmp_path: Path) -> None:
    """Shuffled rows give the same table, from CSV and from Parquet."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(1)
    rows = [(f"e{e}", hour, round(float(rng.random()), 3)) for e in range(4) for hour in range(5)]
    data = LongSource("x", entity="who", time="h")
    mixed = [rows[place] for place in rng.permutation(len(rows))]
    for name, chosen in (("a.csv", rows), ("b.csv", mixed)):
        text = "who,h,v\n" + "".join(f"{who},{hour},{value}\n" for who, hour, value in chosen)
        (tmp_path / name).write_text(text)
    columns = dict(zip(("who", "h", "v"), map(list, zip(*mixed, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    tables = [read_long(tmp_path / name, data) for name in ("a.csv", "b.csv", "c.parquet")]
    for table in tables[1:]:
        assert np.array_equal(table.values, tables[0].values)
        assert np.array_equal(table.starts, tables[0].starts)


@pytest.mark.parametrize(
    ("times", "ranks"),
    [
        (["5", "0", "1", "6"], [1, 0]),
        (["2026-03-05 07:00", "2026-03-04 08:00", "2026-03-04 06:00", "2026-03-05 08:00"], [0, 1]),
        (["2026-03-02 07:00", "2026-03-02 08:00", "2026-03-02 07:00", "2026-03-02 08:00"], [1, 0]),
    ],
)
def test_entities_are_ranked_by_their_first_date_or_row(times: list[str], ranks: list[int], tmp_path: Path) -> None:
    """Hours count from each entity, so that only dates order entities; equal ones are in the order of the table."""
    rows = zip(("b", "a", "a", "b") if times[0] != times[2] else ("b", "b", "a", "a"), times, strict=True)
    last = "2026-04-01 01:00" if "-" in times[0] else "1"
    others = [(f"c{number}", last) for number in range(9)]
    (tmp_path / "a.csv").write_text("who,h,v\n" + "".join(f"{who},{time},1\n" for who, time in [*rows, *others]))
    table = read_long(tmp_path / "a.csv", LongSource("x", entity="who", time="h"))
    assert table.order is not None
    assert table.order.tolist() == [*ranks, *range(2, 11)]
    assert table.take(np.array([1])).timeline.order == ranks[1:]


def test_repeated_hours_are_reported(tmp_path: Path) -> None:
    """Two rows of one entity at the same hour are an error that names entity and hour."""
    (tmp_path / "t.csv").write_text("who,h,v\n" + "".join(f"a,{h},1\n" for h in range(11)) + "a,3,2\n")
    with pytest.raises(UnfoldError, match='"a" has two rows of hour 3'):
        read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="h"))


@pytest.mark.parametrize("form", ["{:02}:13:00", "82:{:02}", "{} days 10:13"])
def test_clocks_without_a_date_are_named_as_no_times(form: str, tmp_path: Path) -> None:
    """The hint says what times are, and not to divide cells that hold a number and more, as for measurements."""
    (tmp_path / "a.csv").write_text("who,h\n" + "".join(f"a,{form.format(hour)}\n" for hour in range(24)))
    with pytest.raises(UnfoldError, match=r"hours as numbers, such as 1\.5, or dates"):
        read_long(tmp_path / "a.csv", LongSource("x", entity="who", time="h"))


def test_a_table_with_one_row_per_measurement_is_recognized(tmp_path: Path) -> None:
    """The error of tables such as chartevents names the column of measurements, and how to make columns of them."""
    rows = [f"a,{h},{item},{number}.5" for h in range(12) for number, item in enumerate(("220045", "223762", "220210"))]
    (tmp_path / "t.csv").write_text("\n".join(["stay,h,itemid,valuenum", *rows]))
    with pytest.raises(UnfoldError, match='its column "itemid" names 3 of them') as caught:
        read_long(tmp_path / "t.csv", LongSource("x", entity="stay", time="h"))
    assert 'pivot_table(table, index=["stay", "h"], columns="itemid"' in str(caught.value)


def test_an_hour_that_the_clock_repeats_is_reported(tmp_path: Path) -> None:
    """Hourly rows of a night in which daylight saving time ends have one time twice; other repeats are others."""
    for day, hint in ((27, "did daylight saving time end"), (28, "keep one row an hour")):
        hours = [*range(3), *range(2, 12)]
        rows = [f"a,2024-10-{day} {hour:02}:00:00,{value}" for value, hour in enumerate(hours)]
        (tmp_path / "t.csv").write_text("\n".join(["who,t,v", *rows]))
        with pytest.raises(UnfoldError, match=hint):
            read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="t"))


@pytest.mark.parametrize(
    ("column", "first", "step", "doubt"),
    [
        ("t", 1_774_728_000, 3600, "1774767600 is a date"),
        ("t", 20_260_328_200_000, 10_000, "20260328310000 is a date"),
        ("t", 46_109.75, 1 / 24, "46109.75 may be a date of a spreadsheet"),
        ("time_minutes", 0, 60, "its name states another unit"),
        ("observationOffset", -20, 5, "it counts minutes in eICU"),
        ("offset", -60, 60, "most rows of an entity are 60 apart, as hours are in minutes"),
        ("step", 0, 15, "most rows of an entity are 15 apart, as in minutes"),
        ("t", 0, 300, "most rows of an entity are 300 apart, as in seconds"),
        ("t", 0, 1 / 24, "most rows of an entity are 0.0416667 apart, as in days"),
        ("julian", 2_460_613.1, 1 / 48, "most rows of an entity are 0.0208333 apart, as in days"),
    ],
)
def test_numbers_that_count_no_hours_are_refused(
    column: str, first: float, step: float, doubt: str, tmp_path: Path
) -> None:
    """Stamps of a clock and spreadsheet days, read as hours, would make every purchase expire at once."""
    rows = [(first + hour * step, hour) for hour in range(12)]
    (tmp_path / "t.csv").write_text(f"who,{column},v\n" + "".join(f"a,{time:.15g},{v}\n" for time, v in rows))
    with pytest.raises(UnfoldError, match=f'"{column}" does not count hours: {doubt}'):
        read_long(tmp_path / "t.csv", LongSource("x", entity="who", time=column))
    (tmp_path / "t.csv").write_text("who,hour,v\n" + "".join(f"a,{46_109 + hour},{hour}\n" for hour in range(12)))
    assert read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="hour")).hour[0] == 46_109.0


@pytest.mark.parametrize(
    ("column", "step"), [("t", 6), ("t", 24), ("hours", 15), ("ICULOS", 1), ("t", 1 / 12), ("hours", 1 / 24)]
)
def test_steps_of_hours_and_days_are_hours(column: str, step: int, tmp_path: Path) -> None:
    """Parts of a day and days are usual, and the name of the column may state the unit."""
    text = f"who,{column},v\n" + "".join(f"a,{hour * step},{hour}\n" for hour in range(12))
    (tmp_path / "t.csv").write_text(text)
    assert read_long(tmp_path / "t.csv", LongSource("x", entity="who", time=column)).hour[-1] == 11 * step


def test_values_too_large_for_a_model_are_refused_where_a_feature_reads_them(tmp_path: Path) -> None:
    """They were infinite in single precision, and fitting ended with an error of the library."""
    (tmp_path / "t.csv").write_text("who,h,v\n" + "".join(f"a,{h},{'1e39' if h == 4 else h}\n" for h in range(12)))
    table = read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="h"))
    with pytest.raises(UnfoldError, match='"1e39" in row 5 of column "v" is too large for a model'):
        table.column_index("v", key="features.all.columns")


def test_a_wide_table_is_named_as_such(tmp_path: Path) -> None:
    """One row for each entity, with a column for each hour, has no column of times."""
    head = ",".join(["stay", *(f"{name}_{hour}" for name in ("HR", "Temp") for hour in range(3))])
    (tmp_path / "t.csv").write_text(f"{head}\n" + "".join(f"{row},1,2,3,4,5,6\n" for row in range(12)))
    with pytest.raises(UnfoldError, match='has no column "hour"') as error:
        read_long(tmp_path / "t.csv", LongSource("x", entity="stay", time="hour"))
    assert error.value.diagnostics[0].hint.startswith("HR_0, HR_1, HR_2")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dates_become_hours_since_the_first_of_the_entity(form: str, tmp_path: Path) -> None:
    """Dates are times, both as text and as Parquet timestamps."""
    path = tmp_path / f"icu.{form}"
    if form == "csv":
        path.write_text(_padded(ICU))
    else:
        from pyarrow import csv, parquet

        parquet.write_table(csv.read_csv(io.BytesIO(_padded(ICU).encode())), path)
    table = read_long(path, LongSource("x", entity="stay", time="charttime"))
    assert table.hour[:4].tolist() == [0.0, 1.0, 0.0, 1.5]
    assert table.values[:4, table.column_index("HR", key="features")].tolist()[1:] == [91.0, 80.0, 82.0]


def test_windows_end_exactly_whatever_times_count_from(tmp_path: Path) -> None:
    """Rows 20 minutes apart have the same windows in the table and at a server that receives seconds since 1970."""
    start = 1_774_728_600
    times = [start + 1200 * row for row in range(60)]
    lines = [f"a,{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M},{row}" for row, time in enumerate(times)]
    (tmp_path / "t.csv").write_text("\n".join(["who,t,v", *lines]))
    table = read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="t"))
    online = build_online_features({"all": FeatureSet(columns=("v",), derive=("age", "min"), window_h=6.0)})
    history, served = None, []
    for row, time in enumerate(times):
        features, (history,) = online.update(np.array([[float(row)]]), np.array([time / 3600.0]), [history])
        served.append(features[0].tolist())
    expected = [[0.0, float(max(row - 18, 0))] for row in range(60)]
    assert served == expected
    lowest = compute_window_statistics(table.values[:, 0], table.hour, table.starts, 6.0)["min"]
    assert lowest.tolist() == [lowest_row for _, lowest_row in expected]


def test_text_columns_are_errors_only_where_used(tmp_path: Path) -> None:
    """A table may contain notes; a feature that names such a column is reported with its first bad cell."""
    (tmp_path / "icu.csv").write_text(_padded(ICU))
    table = read_long(tmp_path / "icu.csv", LongSource("x", entity="stay", time="charttime"))
    assert table.columns == ("HR",)
    with pytest.raises(UnfoldError, match='"MICU" in row 1 of column "unit" is not a number') as error:
        table.column_index("unit", key="features.bedside.columns")
    assert error.value.diagnostics[0].key == "features.bedside.columns"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2150-03-02 08:45:00", "soon", '"soon" in row 3 of column "charttime" is not a date'),
        ("2150-03-02 08:45:00", "2150-03-02 08:45:00+01:00", 'row 3 of column "charttime" has a time zone, unlike'),
        ("a,2150-03-02 00:15", ",2150-03-02 00:15", 'row 4 has no "stay"'),
    ],
)
def test_rows_without_time_or_entity_are_reported(old: str, new: str, message: str, tmp_path: Path) -> None:
    """Neither the entity nor the time of a row is guessed."""
    (tmp_path / "icu.csv").write_text(_padded(ICU.replace(old, new)))
    with pytest.raises(UnfoldError, match=message):
        read_long(tmp_path / "icu.csv", LongSource("x", entity="stay", time="charttime"))


@pytest.mark.parametrize(("separator", "ending"), [(",", "csv"), (";", "csv"), ("|", "psv"), ("\t", "tsv")])
def test_one_table_of_many_patients_equals_their_files(separator: str, ending: str, tmp_path: Path) -> None:
    """The columns of PhysioNet are read from one table too, rows in any order; the hours stay a column."""
    rng = np.random.default_rng(0)
    header, rows = ["HR", "SepsisLabel", "ICULOS"], []
    (tmp_path / "psv").mkdir()
    for patient in ("p1", "p2", "p3"):
        lines = [[f"{rng.normal(80, 9):.1f}" if rng.random() < 0.7 else "NaN", "0", str(hour)] for hour in range(2, 9)]
        (tmp_path / "psv" / f"{patient}.psv").write_text("\n".join("|".join(line) for line in [header, *lines]))
        rows += [[*line, patient] for line in lines]
    text = [separator.join([*header, "Patient_ID"]), *(separator.join(rows[row]) for row in rng.permutation(len(rows)))]
    (tmp_path / f"all.{ending}").write_text("\n".join(text))
    table, files = read_patient_table(tmp_path / f"all.{ending}"), read_psv(tmp_path / "psv")
    assert table.ids == files.ids
    assert (table.starts == files.starts).all()
    for column in header:
        pair = (each.values[:, each.columns.index(column)] for each in (table, files))
        np.testing.assert_array_equal(*pair)
    (tmp_path / "none.csv").write_text(text[0].replace("Patient_ID", "bed") + "\n" + "\n".join(text[1:]))
    with pytest.raises(UnfoldError, match="no column that names the patient"):
        read_patient_table(tmp_path / "none.csv")


def test_a_stay_belongs_to_one_patient(tmp_path: Path) -> None:
    """Rows of a stay may lack the patient, but not name two; a stay that never names one is on its own."""
    rows = [
        ("a", "7"),
        ("a", ""),
        ("b", "7"),
        ("c", ""),
        ("d", ""),
        ("e", "8"),
        *((f"z{n}", f"{n}") for n in range(20, 25)),
    ]
    text = "who,h,mrn\n" + "".join(f"{who},{h},{mrn}\n" for h, (who, mrn) in enumerate(rows))
    (tmp_path / "t.csv").write_text(text)
    source = LongSource("x", entity="who", time="h", group="mrn")
    cluster = read_long(tmp_path / "t.csv", source).timeline.cluster.tolist()
    assert cluster[0] == cluster[1]
    assert len(set(cluster)) == len(cluster) - 1
    (tmp_path / "t.csv").write_text(f"{text}a,99,9\n")
    with pytest.raises(UnfoldError, match='a has both "7" and "9" in "mrn"'):
        read_long(tmp_path / "t.csv", source)


def test_an_hour_that_a_clock_repeats_is_reported(tmp_path: Path) -> None:
    """Local times go back once by an hour in a night to Sunday: sorted by time, the rows would interleave."""
    hours = ["00:55", "01:25", "01:55", "01:05", "01:35", "02:05", "02:35", "03:05", "03:35", "04:05"]
    rows = [f"2026-10-25 {hour}" for hour in hours]
    source = LongSource("x", entity="who", time="t")
    (tmp_path / "t.csv").write_text("who,t,v\n" + "".join(f"a,{time},1\n" for time in rows))
    with pytest.raises(UnfoldError, match='"2026-10-25 01:05" in row 4 of column "t" goes back an hour') as error:
        read_long(tmp_path / "t.csv", source)
    assert "UTC" in error.value.diagnostics[0].hint
    for others in ([f"{time}:00Z" for time in rows], sorted(rows), rows[::-1]):
        (tmp_path / "t.csv").write_text("who,t,v\n" + "".join(f"a,{time},1\n" for time in others))
        assert len(read_long(tmp_path / "t.csv", source)) == 10


def _write_nights(path: Path, *, entities: int, keep: Callable[[datetime], bool], zone: str = "") -> Path:
    """Write a row an hour of some entities, from Friday to Monday after 2026-03-27 at 05:00 UTC."""
    begin = datetime(2026, 3, 27, 5, tzinfo=UTC)
    moments = [begin + timedelta(hours=hour) for hour in range(80)]
    rows = [f"p{n},{at:%Y-%m-%d %H}:{7 * n % 60:02}{zone},1" for n in range(entities) for at in moments if keep(at)]
    path.write_text("\n".join(["who,t,v", *rows]) + "\n")
    return path


def test_an_hour_that_a_clock_skips_is_reported(tmp_path: Path) -> None:
    """Local times of all entities skip an hour in a night to Sunday in spring: later rows would be an hour late."""
    source, skipped = LongSource("x", entity="who", time="t"), datetime(2026, 3, 29, 2, tzinfo=UTC)
    local = _write_nights(tmp_path / "local.csv", entities=6, keep=lambda at: at != skipped)
    with pytest.raises(UnfoldError, match='"t" has no row in the hour from 2026-03-29 02:00, before row 46') as error:
        read_long(local, source)
    assert "UTC" in error.value.diagnostics[0].hint
    for zone in ("Z", " GMT", " (UTC)"):
        stated = _write_nights(tmp_path / "utc.csv", entities=6, keep=lambda at: at != skipped, zone=zone)
        assert len(read_long(stated, source)) == 6 * 79


@pytest.mark.parametrize(
    ("entities", "is_kept"),
    [
        (1, lambda at: at != datetime(2026, 3, 29, 2, tzinfo=UTC)),
        (6, lambda at: at.hour != 2),
        (6, lambda at: 8 <= at.hour < 18),
        (6, lambda at: at != datetime(2026, 3, 28, 2, tzinfo=UTC)),
        (6, lambda at: at.hour % 2),
    ],
    ids=["one entity", "rest of a device", "hours of a clinic", "Saturday", "every other hour"],
)
def test_an_hour_without_rows_may_be_chance(tmp_path: Path, entities: int, is_kept: Callable[[datetime], bool]) -> None:
    """A single gap, one at the same hour of each day, or longer ones do not show a clock that was put forward."""
    path = _write_nights(tmp_path / "t.csv", entities=entities, keep=is_kept)
    assert len(read_long(path, LongSource("x", entity="who", time="t")).ids) == entities


def test_numbers_that_repeat_across_hospitals_are_no_entities(tmp_path: Path) -> None:
    """Stays of two hospitals years apart were joined into one patient; a single transfer is none of that."""
    rows = [f"{stay},20{19 + 2 * site}-03-01 0{hour}:00,{'AB'[site]},{stay + hour}"
            for site in range(2) for stay in range(10) for hour in range(3)]  # fmt: skip
    (tmp_path / "a.csv").write_text("\n".join(["stay,time,hospital,HR", *rows]) + "\n")
    with pytest.raises(UnfoldError, match='10 of 10 entities have several values of "hospital"'):
        read_long(tmp_path / "a.csv", LongSource("a.csv", "stay", "time"))
    moved = [row.replace(",A,", ",B,") if k == 2 else row for k, row in enumerate(rows[:30])]
    (tmp_path / "b.csv").write_text("\n".join(["stay,time,hospital,HR", *moved]) + "\n")
    assert len(read_long(tmp_path / "b.csv", LongSource("b.csv", "stay", "time")).ids) == 10


def test_a_folder_of_tables_is_no_long_table(tmp_path: Path) -> None:
    """A folder, such as one of OMOP, needs joining first; the error says into what."""
    with pytest.raises(UnfoldError, match="is a folder, but source: long reads one table") as error:
        read_long(tmp_path, LongSource("x", entity="who", time="h"))
    assert "one row per entity and hour" in error.value.diagnostics[0].hint


@pytest.mark.parametrize(("unit_h", "is_doubtful"), [(60.0, True), (1.0, False)])
def test_rows_further_apart_than_every_validity_are_noted(unit_h: float, is_doubtful: bool, tmp_path: Path) -> None:
    """Irregular minutes look like no step of hours, but make every purchase expire before the next row."""
    gaps = np.random.default_rng(3).uniform(0.4, 3.0, (6, 20))
    rows = [(f"s{stay}", hour * unit_h) for stay, times in enumerate(gaps.cumsum(1)) for hour in times]
    (tmp_path / "t.csv").write_text("who,t,v\n" + "".join(f"{who},{time:.3f},1\n" for who, time in rows))
    table = read_long(tmp_path / "t.csv", LongSource("x", entity="who", time="t"))
    span = find_longest_span([FeatureSet(columns=("v",), derive=("mean",)), FeatureSet(columns=("v",), valid_h=24.0)])
    assert span == 24.0
    gap = Timeline(table.starts, table.hour).median_gap
    assert gap == pytest.approx(float(np.median(np.diff(gaps.cumsum(1)))) * unit_h, abs=0.1)
    assert bool(describe_rare_rows(gap, span)) == is_doubtful


@pytest.mark.parametrize(("entity", "hours", "found"), [("mrn", 6, "stay_id"), ("stay_id", 6, ""), ("mrn", 1, "")])
def test_stays_joined_into_one_entity_are_found(entity: str, hours: int, found: str, tmp_path: Path) -> None:
    """A second stay of a patient would start in the stage that the first one entered; visits are rows of their own."""
    rows = [f"p{n // 2},{n},{500 * n + hour},1" for n in range(24) for hour in range(hours)]
    (tmp_path / "t.csv").write_text("\n".join(["mrn,stay_id,hours,v", *rows]) + "\n")
    assert read_long(tmp_path / "t.csv", LongSource("x", entity=entity, time="hours")).stays == found


def test_psv_files_with_other_times_or_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    """Seconds since 1970 lost digits and passed for hours, and of two columns the first was read."""
    for head, first, step, message in (
        ("HR|ICULOS", 1_700_000_000, 3600, "is a date"),
        ("HR|ICULOS", 0, 60, "as hours are in minutes"),
        ("ICULOS|ICULOS", 1, 1, 'two columns are called "ICULOS"'),
    ):
        rows = [f"80|{first + row * step}" for row in range(12)]
        (tmp_path / "p1.psv").write_text("\n".join([head, *rows]) + "\n")
        with pytest.raises(UnfoldError, match=message):
            read_psv(tmp_path)


def test_the_column_of_hours_is_found_in_any_case(tmp_path: Path) -> None:
    """In lower case it was ignored, and rows were numbered: gaps of hours were lost."""
    (tmp_path / "p1.psv").write_text("hr|iculos\n80|1\n81|2\n82|9\n")
    assert read_psv(tmp_path).hour.tolist() == [1.0, 2.0, 9.0]


@pytest.mark.parametrize(("column", "ranks"), [("admission_date", list(range(11, -1, -1))), ("ward", list(range(12)))])
def test_a_column_of_dates_orders_entities_whose_hours_are_numbers(
    tmp_path: Path, column: str, ranks: list[int]
) -> None:
    """Exports often begin with the newest stay; hours since admission do not show it, and the date beside them does."""
    path = tmp_path / "icu.csv"
    rows = [f"s{k:02},{hour},8{hour},2025-01-{28 - k}\n" for k in range(12) for hour in range(2)]
    path.write_text("".join([f"stay,hour,HR,{column}\n", *rows]))
    order = read_long(path, LongSource(str(path), "stay", "hour")).order
    assert order is not None
    assert order.tolist() == ranks
