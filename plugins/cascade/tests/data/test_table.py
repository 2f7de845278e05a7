"""Tables as users have them: gaps, labels that are missing or rare, names with brackets, other encodings."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import OWN, load_cases, load_matrix, run_in, spec_of
from unfold_cascade.build import build_dataset_options
from unfold_cascade.data.dataset import DATASET_FILE, _pack, dataset_fingerprint
from unfold_cascade.data.table import Frame, frame_of_file, resolve_columns
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.verbs import train
from unfoldkit.api import UnfoldError
from unfoldkit.errors import ExitCode

GROUPED = """
version: 1
kind: cascade
name: own
data: {source: table, path: own.csv}
stages:
  - name: coarse
    target: {groups: {NAME: [0, 1], others: [2, 3]}}
    models: [{name: m, estimator: logistic-regression}]
  - {name: fine, target: {column: y}, models: [{name: m, estimator: logistic-regression}]}
baseline: {candidates: [{estimator: logistic-regression}]}
goal: {max_loss: 1%}
"""


def own(folder: Path, rows: Sequence[str], *settings: str, text: str = OWN) -> CascadeSpec:
    """Write a table of a, b and y, and return a spec that names it."""
    (folder / "own.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (folder / "own.yaml").write_text(text)
    return spec_of(folder / "own.yaml", *settings)


def frame(**columns: Sequence[object]) -> Frame:
    """Return a table of cells as a CSV file gives them."""
    return Frame(
        {name: np.array(cells, dtype=object) for name, cells in columns.items()}, "", "own.csv", allows_categories=True
    )


def test_rows_without_a_label_are_skipped(tmp_path: Path) -> None:
    """Rows with an empty label or a mark for nothing are in no part of the split, and a report counts them."""
    marks = ["", "NA", "#N/A", "?", "NULL", "None"]
    rows = [f"{-i},{i % 5},{marks[i // 10] if i % 10 == 0 else i % 2}" for i in range(60)]
    spec = own(tmp_path, rows)
    run = run_in(tmp_path / "run", base=tmp_path)
    given = load_cases(spec, run)
    assert given.names == ("0", "1")
    assert load_matrix(spec, run, given)[:, 0].tolist() == [-i for i in range(60) if i % 10]
    assert sorted(np.concatenate([given.rows.train, given.rows.calibrate, given.rows.test])) == list(range(54))
    assert train(spec, run).notes == ("skipped 6 rows of own.csv without a label",)


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ("data.split={column: sit, test: [C]}", 'data.split: own.csv has no column "sit"'),
        ("data.group=sit", 'data.group: own.csv has no column "sit"'),
    ],
)
def test_a_misspelt_column_is_the_culprit_not_the_words_in_the_real_one(
    tmp_path: Path, setting: str, culprit: str
) -> None:
    """Without feature groups, a site of words is a feature where the split names another column."""
    header = OWN.replace("features: {all: {columns: [a, b]}}\n", "")
    spec = own(tmp_path, [f"{i},{'ABC'[i % 3]},{i % 2}" for i in range(60)], setting, text=header)
    with pytest.raises(UnfoldError, match=re.escape(culprit)):
        train(spec, run_in(tmp_path / "run", base=tmp_path))


def test_a_number_beyond_single_precision_is_named(tmp_path: Path) -> None:
    """The largest double, a common mark of nothing, is refused with its cell before any model overflows."""
    rows = [f"{i},{'-1.7976931348623157e308' if i == 7 else i % 5},{i % 2}" for i in range(60)]
    with pytest.raises(UnfoldError, match=r'"-1\.79.*" in row 8 of column "b" is too large for a model'):
        train(own(tmp_path, rows), run_in(tmp_path / "run", base=tmp_path))


def test_a_table_of_labels_only_is_refused(tmp_path: Path) -> None:
    """Where nothing is left for a model to read, the message is about the table, not about an estimator."""
    header = OWN.replace("features: {all: {columns: [a, b]}}\n", "")
    spec = own(tmp_path, [], text=header)
    (tmp_path / "own.csv").write_text("y\n" + "0\n1\n" * 30)
    with pytest.raises(UnfoldError, match=r"own\.csv has no column that a model could read"):
        train(spec, run_in(tmp_path / "run", base=tmp_path))


@pytest.mark.parametrize(("label", "other"), [("-", "+"), ("none", "mild")])
def test_marks_used_as_labels_are_labels(tmp_path: Path, label: str, other: str) -> None:
    """A test that is - or +, and nothing of several kinds, are labels like others."""
    rows = [f"{i},1,{(label, other)[i % 2]}" for i in range(40)]
    given = load_cases(own(tmp_path, rows), run_in(tmp_path / "run", base=tmp_path))
    assert (set(given.names), given.unlabelled) == ({label, other}, 0)


def test_a_mostly_unlabelled_table_is_rejected(tmp_path: Path) -> None:
    """Where more than half of the rows have no label, the column or the mark is meant otherwise."""
    rows = [f"{i},1,{'NA' if i % 3 else i % 2}" for i in range(60)]
    with pytest.raises(UnfoldError, match=r'40 of 60 rows of own.csv have no label in the column "y"'):
        load_cases(own(tmp_path, rows), run_in(tmp_path / "run", base=tmp_path))


def test_parquet_nulls_are_not_labels(tmp_path: Path) -> None:
    """A null in a column of labels, numbers or words, means no label."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"y": [None if i % 8 == 0 else i % 2 for i in range(80)], "a": [1.0] * 80, "b": list(range(80))}
    for name, labels in (("whole", table["y"]), ("words", [v if v is None else f"c{v}" for v in table["y"]])):
        parquet.write_table(pyarrow.table({**table, "y": labels}), tmp_path / f"{name}.parquet")
        spec = own(tmp_path, [], f"data.path={name}.parquet")
        given = load_cases(spec, run_in(tmp_path / name, base=tmp_path))
        assert (len(given.names), len(given.labels), given.unlabelled) == (2, 70, 10)


def test_lists_of_parquet_are_columns_of_numbers(tmp_path: Path) -> None:
    """A list per row, or a list of lists, becomes one column per value, a null a gap; unequal ones are errors."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def read(cells: list[object]) -> Frame:
        parquet.write_table(pyarrow.table({"emb": cells, "y": list("ab" * 6)}), tmp_path / "lists.parquet")
        return frame_of_file(tmp_path / "lists.parquet")

    vectors = read([None, *([float(i), 2.0, -1.0] for i in range(1, 12))])
    assert list(vectors.columns) == ["emb_0", "emb_1", "emb_2", "y"]
    assert resolve_columns(vectors, {"all": ("emb_*",)}, "y") == {"all": ("emb_0", "emb_1", "emb_2")}
    np.testing.assert_array_equal(vectors.numbers("emb_0", key="features"), [np.nan, *range(1, 12)])
    images = read([[[i, 1], [2, 3]] for i in range(12)])
    assert [images.numbers(f"emb_{k}", key="features")[7] for k in range(4)] == [7, 1, 2, 3]
    with pytest.raises(UnfoldError, match='the lists of column "emb" have from 1 to 2 values'):
        read([[1.0] * (1 + i % 2) for i in range(12)])


def test_true_and_false_are_features(tmp_path: Path) -> None:
    """A column of true and false, as pandas writes them, becomes 1 and 0 with gaps; other words are errors."""
    rows = [f"{[True, 'false', ''][i % 3]},{i},{i % 2}" for i in range(60)]
    spec = own(tmp_path, rows)
    run = run_in(tmp_path / "run", base=tmp_path)
    np.testing.assert_array_equal(load_matrix(spec, run, load_cases(spec, run))[:3, 0], [1, 0, np.nan])
    with pytest.raises(UnfoldError, match=r"data.categories: \[a\] takes its words"):
        load_cases(own(tmp_path, [*rows[:-1], "perhaps,1,0"]), run_in(tmp_path / "again", base=tmp_path))


def test_spaces_around_the_names_of_columns_do_not_count(tmp_path: Path) -> None:
    """A head written as `a, b, y` names the columns a, b and y."""
    (tmp_path / "spaced.csv").write_text("a, b, y\n" + "1,2,3\n" * 10)
    assert list(frame_of_file(tmp_path / "spaced.csv").columns) == ["a", "b", "y"]


@pytest.mark.parametrize("groups", [{}, {"all": ("*",)}])
def test_an_unnamed_column_is_not_a_feature(groups: dict[str, tuple[str, ...]]) -> None:
    """Row numbers, as pandas writes them before the first column, are learnt from neither unasked nor by a pattern."""
    table = frame(**{"": range(10), "a": range(10), "y": range(10)})
    assert resolve_columns(table, groups, "y") == {"all": ("a",)}


def test_whole_numbers_are_one_label_in_every_notation(tmp_path: Path) -> None:
    """1 and 1.0 are one label, also in groups of a spec; 007 and 1.5 stay as they are."""
    rows = [f"{i},1,{i % 4}{'.0' if i % 3 else ''}" for i in range(80)]
    spec = own(tmp_path, rows, "stages[0].target.groups.low=[0, 1.0]", text=GROUPED.replace("NAME: [0, 1], ", ""))
    assert load_cases(spec, run_in(tmp_path / "run", base=tmp_path)).names == ("0", "1", "2", "3")
    assert frame(y=["007", "7.00", "1.5", 2.0, np.nan, None]).text("y", key="").tolist() == [
        "007", "7", "1.5", "2", "", ""]  # fmt: skip


def test_stored_data_sets_with_a_missing_label_are_read_again(tmp_path: Path) -> None:
    """A run that holds cases of a version which took a gap for a label reads its table again."""
    spec = own(tmp_path, [f"{i},1,{'' if i % 5 == 0 else i % 2}" for i in range(80)])
    run = run_in(tmp_path / "run", base=tmp_path)
    given = load_cases(spec, run)
    made_from = dataset_fingerprint(build_dataset_options(spec, run))
    run.directory.write(DATASET_FILE, _pack(replace(given, names=("", "1"))), made_from=made_from)
    assert load_cases(spec, run).names == given.names == ("0", "1")


def test_a_label_too_rare_for_training_suggests_a_split(tmp_path: Path) -> None:
    """A label with one case in the training part is refused with its numbers; the share that is named is enough."""
    rows = [f"{i % 9},{i % 7},{'rare' if i % 20 == 0 else i % 2}" for i in range(160)]
    split = "data.split={{train: {}%, calibrate: 45%, test: {}%}}"
    spec = own(tmp_path, rows, split.format(15, 40))
    with pytest.raises(UnfoldError, match='the label "rare" of "y" has 1 of its 8 cases') as error:
        load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    diagnostic = error.value.diagnostics[0]
    share = re.search(r"train: (\d+)%", diagnostic.hint)
    assert diagnostic.key == "data.split.train"
    assert share
    enough = own(tmp_path, rows, split.format(share[1], 55 - int(share[1])))
    assert train(enough, run_in(tmp_path / "enough", base=tmp_path)).metrics


@pytest.mark.parametrize("place", ["stages[0].models[0]", "baseline.candidates[0]"])
@pytest.mark.parametrize("path", ["sklearn.linear_model.LinearRegression", "xgboost.XGBRegressor"])
def test_estimators_that_are_not_classifiers_are_errors_of_the_spec(tmp_path: Path, place: str, path: str) -> None:
    """An estimator of numbers is a mistake at its key, before anything is fitted."""
    with pytest.raises(UnfoldError, match="is not a classifier") as error:
        own(tmp_path, [], f"{place}.estimator={path}")
    assert error.value.code == ExitCode.USAGE
    assert error.value.diagnostics[0].key == f"{place}.estimator"


def test_exact_column_names_take_priority_over_patterns() -> None:
    """A name with brackets is that column; the same text is still a pattern where there is no such column."""
    table = frame(**{"age [y]": [1], "a1": [2], "a2": [3], "y": [4]})
    groups = {"g": ("age [y]", "a[12]")}
    assert resolve_columns(table, groups, "y")["g"] == ("age [y]", "a1", "a2")


@pytest.mark.parametrize("name", ["N/A", "../../up", "..", ".hidden", "a\\b", "", "x" * 81])
def test_invalid_group_names_are_rejected(tmp_path: Path, name: str) -> None:
    """A name of a group that leads elsewhere is a mistake, and the hint names one that would do."""
    text = GROUPED.replace("NAME", f"'{name}'")
    with pytest.raises(UnfoldError, match="is not a valid group name") as error:
        own(tmp_path, [], text=text)
    better = re.search(r'"(.+)"', error.value.diagnostics[0].hint)
    assert better
    own(tmp_path, [], text=GROUPED.replace("NAME", f"'{better[1]}'"))
    own(tmp_path, [], text=GROUPED.replace("NAME", "'not so mild, < 5 °C'"))


def test_baseline_is_a_reserved_stage_name(tmp_path: Path) -> None:
    """The models of a stage named baseline would overwrite those of the baseline."""
    with pytest.raises(UnfoldError, match="is reserved for the baseline models") as error:
        own(tmp_path, [], "stages[0].name=baseline")
    assert error.value.diagnostics[0].key == "stages[0].name"


def test_missing_marks_are_gaps_and_percentages_are_numbers() -> None:
    """What other programs write for nothing is a gap in a column of numbers, and 78.1% is 0.781."""
    marks = ["", "?", "-", ".", "NULL", "None", "#N/A", "n/a", "<NA>", None]
    assert np.isnan(frame(a=marks).numbers("a", key="features")).all()
    assert frame(a=["78.1%", "5 %", "1"]).numbers("a", key="features") == pytest.approx([0.781, 0.05, 1])
    with pytest.raises(UnfoldError, match=r'"97" in row 3 of column "a" has no percent sign, unlike "98%"'):
        frame(a=["", "98%", "97"]).numbers("a", key="features")
    assert resolve_columns(frame(a=["x", *marks], y=[1] * 10), {}, "y", ["a"])["all"] == ("a=x",)


@pytest.mark.parametrize(
    ("cells", "words", "hint"),
    [
        (["x", "y", "1"], True, "data.categories: [a] takes its words as values"),
        (["x", "y", "1"], False, ""),
        (["x", "2", "1"], True, "leave the cell empty where the value is missing"),
        (["2,04", "x", "-0,5"], True, 'write plain digits, with a point before fractions: 1234.5, not as in "2,04"'),
        (["no", "yes", "no"], False, 'write 0 and 1, or false and true, for "no" and "yes"'),
        (
            ["87.7 bpm", "91 bpm"],
            True,
            'write plain digits, with a point before fractions: 1234.5, not as in "87.7 bpm"',
        ),
        (["<0.5", "1.2", "0.9"], True, 'write a bound as its number: 0.5, not "<0.5"'),
        (["90+", "71", "90+"], True, 'write a bound as its number: 90, not "90+"'),
        (["$1,200.00", "3"], True, 'write plain digits, with a point before fractions: 1234.5, not as in "$1,200.00"'),
        (["1,2", "x", "y"], True, "data.categories: [a] takes its words as values"),
        (
            ["2023-01-11", "2023-02-11T07:15"],
            True,
            "no model reads dates: write the days since another date, or leave a out",
        ),
        (["11.01.2023", "1/2/23"], True, "no model reads dates: write the days since another date, or leave a out"),
        (
            [f"{k}/80" for k in range(100, 130)],
            True,
            'write one number a cell, and what else "100/80" holds into a column of its own',
        ),
        (
            [*(f"{k}.5 H" for k in range(30)), *map(str, range(90))],
            True,
            'write one number a cell, and what else "0.5 H" holds into a column of its own',
        ),
        (["3A", "4B", "3B"] * 30, True, "data.categories: [a] takes its words as values"),
        (["10.0.12.1", "10.0.12.2"], True, "data.categories: [a] takes its words as values"),
        (["1", "-inf", "x"], True, "leave the cell empty"),
        (["1", "1e999", "2"], True, "leave the cell empty"),
        ([1.0, float("inf")], True, "leave the cell empty"),
    ],
)
def test_hints_for_invalid_cells_fit_the_column(cells: list[object], words: bool, hint: str) -> None:
    """A category is the way out only of a column of words in a table that may name it; inf is not a number."""
    table = Frame({"a": np.array(cells, dtype=None if isinstance(cells[0], float) else object)}, "", "own.csv", words)
    with pytest.raises(
        UnfoldError, match=r'own.csv: ".*" in row [12] of column "a" is (not a number|infinite)'
    ) as error:
        table.numbers("a", key="features")
    assert error.value.diagnostics[0].hint == hint


@pytest.mark.parametrize("packed", [False, True])
def test_tables_saved_by_spreadsheets_are_read(tmp_path: Path, packed: bool) -> None:
    """UTF-16 with a byte order mark, semicolons and decimal commas hold the same table as UTF-8, commas and points."""
    cells = [(f"{place / 4:.2f}", "größer" if place % 2 else "kleiner") for place in range(12)]
    plain, other = tmp_path / "plain.csv", tmp_path / "unicode.csv"
    plain.write_text("Alter,Gruppe\n" + "".join(f"{number},{word}\n" for number, word in cells))
    lines = "".join(f"{number};{word}\r\n".replace(".", ",") for number, word in cells)
    data = ("Alter;Gruppe\r\n" + lines).encode("utf-16")
    other.write_bytes(gzip.compress(data) if packed else data)
    wanted, found = frame_of_file(plain), frame_of_file(other)
    assert np.array_equal(found.numbers("Alter", key="k"), wanted.numbers("Alter", key="k"))
    assert np.array_equal(found.text("Gruppe", key="k"), wanted.text("Gruppe", key="k"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_in_another_encoding_is_reported_with_its_line(tmp_path: Path, packed: bool) -> None:
    """A table of Latin-1 is refused with the first line that shows it, and how to convert it."""
    data = "a,b,y\n1,2,x\n1,2,Köln\n".encode("latin-1")
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UnfoldError, match=r"a\.csv.*:3:1: the file is not in UTF-8 .*iconv -f LATIN1"):
        frame_of_file(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("a.csv", b"a,b\n1,\0\n", "the file is binary"),
        ("a.jsonl", b"{}\n\0\n", "the file is binary"),
        ("a.csv", b"question,[gpt] Answer\n2+2?,[PASS] 4\n", "a table of promptfoo: .*--output results.json"),
        ("a.jsonl.gz", gzip.compress(b"\xf6", mtime=0), "iconv -f LATIN1 -t UTF-8 a.jsonl > new.jsonl"),
        ("a.rds", b"\x1f\x8b", r'a file of R, .*readRDS\("a.rds"\), "a.csv"'),
        ("a.arff", b"@relation a\n", "a file of Weka, .*below @data"),
        ("a.csv", b"Export,,\n\na,b,c\n1,2,3\n", "two columns have no name .*remove the lines above"),
        ("a.csv", b"# of 2026\na,b\n1,2\n", "has 2 cells where the header has 1 .*remove the lines above"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """A file that is no table of text, or has lines above its head, is refused with how to make it one."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnfoldError, match=message):
        frame_of_file(tmp_path / name)


@pytest.mark.parametrize(("count", "message"), [(400, "occurs once"), (1500, "has 1500 different values")])
def test_a_measured_label_column_suggests_ranges(tmp_path: Path, count: int, message: str) -> None:
    """A price or a temperature is not a label, few or many as its values are; a rare word is another matter."""
    spec = own(tmp_path, [f"{i},1,{i / 7:.4f}" for i in range(count)])
    with pytest.raises(UnfoldError, match=message) as error:
        load_cases(spec, run_in(tmp_path / "run", base=tmp_path))
    assert "write its ranges" in error.value.diagnostics[0].hint
    spec = own(tmp_path, [f"{i},1,word{i}" for i in range(count)])
    with pytest.raises(UnfoldError, match=message) as error:
        load_cases(spec, run_in(tmp_path / "other", base=tmp_path))
    assert "ranges" not in error.value.diagnostics[0].hint
