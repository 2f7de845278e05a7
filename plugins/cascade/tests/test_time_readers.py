"""Laws of long tables as they come from databases: dates, notes and wards beside the numbers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from unfold_cascade.schema.temporal import LongData
from unfold_cascade.temporal.data.readers import read_long
from unfoldkit.errors import UnfoldError

ICU = """stay,charttime,unit,HR,note
b,2150-03-02 07:15:00,MICU,80,
a,2150-03-01 23:15:00,SICU,,"asleep, calm"
b,2150-03-02 08:45:00,MICU,82,
a,2150-03-02 00:15:00,SICU,91,
"""


def _padded(text: str) -> str:
    """Return a table of enough rows to be read: those of more entities behind its own."""
    return text + "".join(f"z{n},2150-03-01 01:00:00,MICU,70,\n" for n in range(8))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dates_are_hours_since_the_first_of_their_entity(form: str, tmp_path: Path) -> None:
    """A date of a chart is a time like any other, as text and as the type that Parquet has for it."""
    path = tmp_path / f"icu.{form}"
    if form == "csv":
        path.write_text(_padded(ICU))
    else:
        from pyarrow import csv, parquet

        parquet.write_table(csv.read_csv(io.BytesIO(_padded(ICU).encode())), path)
    table = read_long(path, LongData(source="long", path="x", entity="stay", time="charttime"))
    assert table.hour[:4].tolist() == [0.0, 1.0, 0.0, 1.5]
    assert table.values[:4, table.place("HR", key="features")].tolist()[1:] == [91.0, 80.0, 82.0]


def test_columns_of_words_matter_only_to_who_names_them(tmp_path: Path) -> None:
    """A table may hold notes and wards beside its numbers; a feature that names one is told its cell and row."""
    (tmp_path / "icu.csv").write_text(_padded(ICU))
    table = read_long(tmp_path / "icu.csv", LongData(source="long", path="x", entity="stay", time="charttime"))
    assert table.columns == ("HR",)
    with pytest.raises(UnfoldError, match='"MICU" in row 1 of column "unit" is not a number') as told:
        table.place("unit", key="features.bedside.columns")
    assert told.value.diagnostics[0].key == "features.bedside.columns"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("2150-03-02 08:45:00", "soon", '"soon" in row 3 of column "charttime" is not a date'),
        ("a,2150-03-02 00:15", ",2150-03-02 00:15", 'row 4 has no "stay"'),
    ],
)
def test_a_row_without_a_time_or_an_entity_is_told(old: str, new: str, told: str, tmp_path: Path) -> None:
    """Whose a row is and when it was are never guessed."""
    (tmp_path / "icu.csv").write_text(_padded(ICU.replace(old, new)))
    with pytest.raises(UnfoldError, match=told):
        read_long(tmp_path / "icu.csv", LongData(source="long", path="x", entity="stay", time="charttime"))
