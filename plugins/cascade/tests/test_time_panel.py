"""Laws of tables over time: reading, carrying forward, targets, splits."""

from __future__ import annotations

import io
import itertools
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, spec_of
from unfold_cascade.schema.parts import FeatureGroup, Stage
from unfold_cascade.schema.temporal import LongData
from unfold_cascade.temporal.data.features import expanded, layout, panel
from unfold_cascade.temporal.data.online_features import Past, sight
from unfold_cascade.temporal.data.readers import read_long, read_psv
from unfold_cascade.temporal.data.table import Long, first_true, rows_of, starts_of
from unfold_cascade.temporal.data.targets import entered, partial_sofa, rule, sirs, truth
from unfold_cascade.temporal.data.windows import STATISTICS, carried, statistics
from unfold_cascade.temporal.models.study import Hours
from unfold_cascade.temporal.models.training import Facts, rows_in_stage
from unfold_cascade.temporal.simulation.trajectories import Clock
from unfoldkit.errors import UnfoldError

HEAD = "HR|Temp|Resp|PaCO2|WBC|ICULOS|SepsisLabel"
SEEDS = range(20)


def _folder(folder: Path, files: dict[str, str]) -> Path:
    for name, body in files.items():
        (folder / name).write_text(f"{HEAD}\n{body}")
    return folder


TWO = {"p2.psv": "90|NaN|20|NaN|NaN|3|0\n95|38.5|22|NaN|13|4|1\n", "p1.psv": "80|37|16|40|9|1|0\n"}


def test_psv_files_are_read_by_name_whole_and_in_order(tmp_path: Path) -> None:
    """Each file is one entity, ordered by name; hours come from ICULOS and gaps stay NaN."""
    table = read_psv(_folder(tmp_path, TWO))
    assert table.ids == ("p1", "p2")
    assert table.starts.tolist() == [0, 1, 3]
    assert table.hour.tolist() == [1.0, 3.0, 4.0]
    assert np.array_equal(
        table.values[1], np.array([90, np.nan, 20, np.nan, np.nan, 3, 0], dtype=np.float32), equal_nan=True
    )


def test_an_archive_reads_as_its_folder(tmp_path: Path) -> None:
    """A tar.xz and a zip of the same files give the same table, digest included."""
    folder = tmp_path / "set"
    folder.mkdir()
    _folder(folder, TWO)
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as archive:
        archive.add(folder, "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        for name, body in TWO.items():
            zipped.writestr(f"training/set/{name}", f"{HEAD}\n{body}")
            zipped.writestr(f"__MACOSX/training/set/._{name}", b"\0\1")
    first = read_psv(folder)
    for other in (read_psv(tmp_path / name) for name in ("set.tar.xz", "set.zip")):
        assert np.array_equal(first.values, other.values, equal_nan=True)
        assert (first.ids, first.digest) == (other.ids, other.digest)


def test_files_of_several_folders_are_one_table(tmp_path: Path) -> None:
    """Patients of folders within a folder are read by name, with the line ends of Windows too; a name counts once."""
    for name, body in TWO.items():
        (tmp_path / f"set_{name}").mkdir()
        (tmp_path / f"set_{name}" / name).write_bytes(f"{HEAD}\n{body}".replace("\n", "\r\n").encode())
    table = read_psv(tmp_path)
    assert table.ids == ("p1", "p2")
    assert table.columns[-1] == "SepsisLabel"
    assert table.starts.tolist() == [0, 1, 3]
    _folder(tmp_path, {"p1.psv": TWO["p1.psv"]})
    with pytest.raises(UnfoldError, match=r"two patients are called p1\.psv"):
        read_psv(tmp_path)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("80|37|16|40|9|1|0\n80|37|16|40|9|2\n", "p3.psv:3:1: .*has 6 cells where the head has 7"),
        ("80|37|16|40|9|1|0\n80|warm|16|40|9|2|0\n", 'p3.psv:3:1: .*"warm" is not a number'),
        ("80|37|16|40|9|2|0\n80|37|16|40|9|1|0\n", "the hours of p3 do not ascend"),
    ],
)
def test_a_damaged_file_is_told_with_its_line(tmp_path: Path, body: str, told: str) -> None:
    """A ragged line, a word in place of a number and a repeated hour are told with file, line or patient."""
    _folder(tmp_path, TWO | {"p3.psv": body})
    with pytest.raises(UnfoldError, match=told):
        read_psv(tmp_path)


def test_a_folder_without_psv_files_is_told(tmp_path: Path) -> None:
    """An empty folder, a head that differs and a file that is no archive are errors, not empty tables."""
    with pytest.raises(UnfoldError, match=r"no \.psv file"):
        read_psv(tmp_path)
    _folder(tmp_path, TWO)
    (tmp_path / "p9.psv").write_text("HR|Temp\n1|2\n")
    with pytest.raises(UnfoldError, match=r"p9.psv:1:1: .*not that of the other files"):
        read_psv(tmp_path)
    (tmp_path / "no.tar").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "cut.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("p1.psv", HEAD + "\n" + "80|37|16|40|9|1|0\n" * 99)
    whole = (tmp_path / "cut.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:50] + b"\0" * 20 + whole[70:])
    for name in ("no.tar", "cut.zip"):
        with pytest.raises(UnfoldError, match="not an archive"):
            read_psv(tmp_path / name)


def test_long_tables_may_come_in_any_order(tmp_path: Path) -> None:
    """The order of the rows of a CSV or Parquet table does not matter."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(1)
    rows = [(f"e{e}", hour, round(float(rng.random()), 3)) for e in range(4) for hour in range(5)]
    data = LongData(source="long", path="x", entity="who", time="h")
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


def test_a_repeated_hour_is_told(tmp_path: Path) -> None:
    """Two rows of one entity at the same hour are an error that names the entity."""
    (tmp_path / "t.csv").write_text("who,h,v\n" + "".join(f"a,{h},1\n" for h in range(11)) + "a,3,2\n")
    with pytest.raises(UnfoldError, match="hours of a do not ascend at hour 3"):
        read_long(tmp_path / "t.csv", LongData(source="long", path="x", entity="who", time="h"))


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_carried_within_their_validity_and_their_entity(seed: int) -> None:
    """Each hour has the last value measured at most v hours ago by the same entity, and its age; else NaN."""
    values, hour, starts = _column(seed)
    valid = float(np.random.default_rng(seed).integers(0, 6))
    found, age = carried(values, hour, starts, valid)
    for begin, end in itertools.pairwise(starts):
        for row in range(begin, end):
            past = [k for k in range(begin, row + 1) if not np.isnan(values[k])]
            good = past and hour[row] - hour[past[-1]] <= valid
            assert np.array_equal(found[row], values[past[-1]] if good else np.nan, equal_nan=True)
            assert np.array_equal(age[row], hour[row] - hour[past[-1]] if good else np.nan, equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_are_those_of_the_window(seed: int) -> None:
    """Mean, least, most, change and spread are numpy's over the values of the window; nothing later is seen."""
    values, hour, starts = _column(seed)
    found = statistics(values, hour, starts, 4.0)
    for begin, end in itertools.pairwise(starts):
        for row in range(begin, end):
            inside = [k for k in range(begin, row + 1) if hour[row] - hour[k] <= 4.0 and not np.isnan(values[k])]
            seen = values[inside].astype(np.float64)
            wanted = (seen.mean(), seen.min(), seen.max(), seen[-1] - seen[0], seen.std()) if inside else (np.nan,) * 5
            got = [float(found[name][row]) for name in STATISTICS]
            assert got == pytest.approx(wanted, abs=1e-3, nan_ok=True)


def test_nothing_of_the_future_enters_a_feature() -> None:
    """Changing every value after an hour changes no feature of that hour or before."""
    rng = np.random.default_rng(0)
    table = _table(rng, 6)
    groups = {"all": FeatureGroup(columns=("HR", "WBC"), derive=("last", "age", *STATISTICS))}
    before = panel(table, groups)
    later = table.values.copy()
    row = int(table.starts[3]) + 2
    later[row + 1 : table.starts[4]] += 50.0
    after = panel(Long(table.ids, table.starts, table.hour, table.columns, later, "", "t"), groups)
    assert np.array_equal(before[: row + 1], after[: row + 1], equal_nan=True)
    assert np.array_equal(before[table.starts[4] :], after[table.starts[4] :], equal_nan=True)


def test_a_feature_of_two_groups_is_one_column() -> None:
    """Groups may share columns; each stands once in the matrix and in each group's places."""
    found = layout({"a": FeatureGroup(columns=("HR",)), "b": FeatureGroup(columns=("HR", "WBC"))})
    assert found.names == ("HR", "WBC")
    assert found.places(("b",)).tolist() == [0, 1]
    assert found.places(None).tolist() == [0, 1]


def test_the_same_column_over_another_window_is_another_feature() -> None:
    """Groups that look back, or carry forward, for other hours give features of their own, as each would alone."""
    table = _table(np.random.default_rng(1), 6)
    groups = {
        "six": FeatureGroup(columns=("HR",), derive=("last", "mean", "max")),
        "day": FeatureGroup(columns=("HR",), derive=("mean", "max"), window="24 h"),
        "short": FeatureGroup(columns=("HR",), derive=("last", "age"), valid_for="2 h"),
    }
    names = ("HR", "HR_mean", "HR_max", "HR_mean_24h", "HR_max_24h", "HR_2h", "HR_age_2h")
    assert layout(groups).names == names
    x = panel(table, groups)
    for name, group in groups.items():
        alone = panel(table, {name: group})
        np.testing.assert_array_equal(x[:, layout(groups).places((name,))], alone)


def test_sirs_counts_each_criterion_once() -> None:
    """Heart rate, temperature, breathing (rate or gas) and white cells count one each, at their bounds exactly."""
    cases = [
        ((90, 38, 20, 32, 12), 0), ((91, 38, 20, 32, 12), 1), ((90, 38.1, 20, 32, 12), 1), ((90, 35.9, 20, 32, 12), 1),
        ((90, 37, 21, 31, 12), 1), ((90, 37, 20, 31, 12), 1), ((90, 37, 20, 40, 12.1), 1), ((90, 37, 20, 40, 3.9), 1),
        ((100, 39, 30, 20, 2), 4), ((np.nan, np.nan, np.nan, np.nan, np.nan), 0),
    ]  # fmt: skip
    names = ("HR", "Temp", "Resp", "PaCO2", "WBC")
    columns = {name: np.array([row[k] for row, _ in cases], dtype=np.float32) for k, name in enumerate(names)}
    with np.errstate(invalid="ignore"):
        assert sirs(columns).tolist() == [count for _, count in cases]


def test_partial_sofa_follows_its_table() -> None:
    """Points grow with creatinine and bilirubin, and fall with platelets and pressure, at the published bounds."""
    v = {
        "MAP": np.array([70, 69, 70, 70, 70, 70], dtype=np.float32),
        "Creatinine": np.array([1.1, 1.1, 1.2, 5.0, 1.1, 1.1], dtype=np.float32),
        "Bilirubin_total": np.array([1.1, 1.1, 1.1, 1.1, 6.0, 1.1], dtype=np.float32),
        "Platelets": np.array([150, 150, 150, 150, 150, 19], dtype=np.float32),
    }
    assert partial_sofa(v).tolist() == [0, 1, 1, 4, 3, 4]


def test_a_stage_is_entered_ahead_and_never_left() -> None:
    """The stage is on from ``ahead`` hours before the column is first 1, until the end, and only in its own case."""
    label = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=np.float32)[:, None]
    table = Long(("a", "b"), np.array([0, 6, 9]), np.array([0, 1, 2, 3, 4, 5, 0, 1, 2.0]), ("y",), label, "", "t")
    stage = Stage.model_validate(
        {"name": "s", "target": {"column": "y", "ahead": "2 h"}, "models": [{"name": "m"}]}, strict=False
    )
    assert entered(table, stage.target, key="k").tolist() == [False, False, True, True, True, True, False, False, False]
    on, highest = truth(table, (stage,))
    assert highest.tolist() == on[:, 0].astype(int).tolist()


def test_a_label_that_is_no_flag_is_told() -> None:
    """A target column with another value than 0 and 1 names the case and the hour."""
    values = np.array([[0], [2]], dtype=np.float32)
    table = Long(("a",), np.array([0, 2]), np.array([5.0, 6.0]), ("y",), values, "", "t")
    stage = Stage.model_validate({"name": "s", "target": {"column": "y"}, "models": [{"name": "m"}]}, strict=False)
    with pytest.raises(UnfoldError, match='"y" is 2 at a, hour 6'):
        entered(table, stage.target, key="k")


@pytest.mark.parametrize("seed", SEEDS)
def test_models_learn_only_from_rows_in_their_stage(seed: int) -> None:
    """A gated stage learns from no hour before its turn, none of a later stage, and none long after its entry."""
    rng = np.random.default_rng(seed)
    highest = rng.integers(0, 4, 300)
    since = rng.normal(0, 10, (300, 3))
    for s in range(3):
        own = rows_in_stage(highest, since, s, parallel=False, fresh=5 * 3600.0)
        assert np.isin(highest[own], (s, s + 1)).all()
        assert (since[own, s] < 5.0).all()
        assert rows_in_stage(highest, since, s, parallel=True, fresh=None).all()


def test_the_first_true_row_is_of_its_own_entity() -> None:
    """The first row of an entity where a flag is set; where it never is, the first row after the entity."""
    flag = np.array([0, 1, 1, 0, 0, 1], dtype=np.bool_)
    assert first_true(flag, np.array([0, 3, 5, 6])).tolist() == [1, 5, 5]
    assert rows_of(np.array([0, 3, 5, 6]), np.array([2, 0])).tolist() == [5, 0, 1, 2]


def _column(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = starts_of(rng.integers(1, 15, 5))
    n = int(starts[-1])
    values = np.where(rng.random(n) < 0.5, np.nan, rng.normal(50, 9, n)).astype(np.float32)
    hour = np.concatenate([np.cumsum(rng.integers(1, 3, b - a)) for a, b in itertools.pairwise(starts)])
    return values, hour.astype(np.float64), starts


def _table(rng: np.random.Generator, entities: int) -> Long:
    starts = starts_of(np.full(entities, 8))
    hour = np.tile(np.arange(8.0), entities)
    values = rng.normal(80, 9, (8 * entities, 2)).astype(np.float32)
    return Long(tuple(map(str, range(entities))), starts, hour, ("HR", "WBC"), values, "", "t")


def _archive_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_only_psv_members_of_an_archive_are_read(tmp_path: Path) -> None:
    """Other files of an archive are left aside."""
    (tmp_path / "x.tar").write_bytes(_archive_of("notes/readme.txt", b"hello"))
    with pytest.raises(UnfoldError, match=r"no \.psv file"):
        read_psv(tmp_path / "x.tar")


def test_a_group_with_all_columns_of_a_rule_counts_what_the_rule_counts() -> None:
    """The points of a group are those of the rule on the same values; the most so far begins anew with each case."""
    rng = np.random.default_rng(5)
    starts = starts_of(rng.integers(1, 12, 30))
    n = int(starts[-1])
    hour = np.concatenate([np.arange(float(b - a)) for a, b in itertools.pairwise(starts)])
    signs = rng.normal((90, 37.5, 19, 36, 11), (15, 1, 4, 6, 4), (n, 5))
    values = np.where(rng.random((n, 5)) < 0.4, signs, np.nan).astype(np.float32)
    table = Long(tuple(map(str, range(30))), starts, hour, ("HR", "Temp", "Resp", "PaCO2", "WBC"), values, "", "t")
    groups = {"all": FeatureGroup(columns=table.columns, derive=(), rule="sirs")}
    now, most = panel(table, groups).T
    assert layout(groups).names == ("all_sirs", "all_sirs_most")
    assert np.array_equal(now >= 2, rule(table, "sirs", key=""))
    for begin, end in itertools.pairwise(starts):
        assert np.array_equal(most[begin:end], np.maximum.accumulate(now[begin:end]))


@pytest.mark.parametrize("seed", SEEDS)
def test_features_made_hour_by_hour_are_those_of_the_table(seed: int) -> None:
    """From a small memory of each entity, every feature of every hour is what the whole table gives, to the bit."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 15, 9)
    starts = starts_of(sizes)
    n = int(sizes.sum())
    hour = np.concatenate([np.cumsum(rng.choice([0.25, 1.0, 2.0, 5.0], size)) for size in sizes])
    signs = rng.normal((95, 37.5, 19, 11), (15, 1, 4, 4), (n, 4))
    every = np.column_stack((rng.normal(50, 20, (n, 4)), signs))
    values = np.where(rng.random((n, 8)) < 0.6, every, np.nan).astype(np.float32)
    names = ("a", "b", "c", "d", "HR", "Temp", "Resp", "WBC")
    table = Long(tuple(map(str, range(9))), starts, hour, names, values, "", "t")
    groups = {
        "now": FeatureGroup(columns=("a", "d")),
        "short": FeatureGroup(
            columns=("b", "a"), derive=("mean", "min", "age", "change"), window="3 h", valid_for="2 h"
        ),
        "long": FeatureGroup(
            columns=("b", "c"), derive=("last", "age", "max", "spread"), window="7 h", valid_for="6 h"
        ),
        "vital": FeatureGroup(columns=("HR", "Temp", "Resp"), derive=(), rule="sirs"),
        "blood": FeatureGroup(columns=("WBC", "HR", "a"), derive=("last",), rule="sirs"),
    }
    view, whole = sight(groups), panel(table, groups)
    x = values[:, [table.columns.index(name) for name in view.columns]].astype(np.float64)
    pasts: list[Past | None] = [None] * 9
    for late in range(int(sizes.max())):
        here = np.flatnonzero(starts[:-1] + late < starts[1:])
        rows = starts[here] + late
        found, kept = view.inspect_model(x[rows], hour[rows], [pasts[case] for case in here])
        for case, past in zip(here, kept, strict=True):
            pasts[case] = past
        np.testing.assert_array_equal(found, whole[rows])


def test_patterns_name_the_columns_that_they_match() -> None:
    """A pattern stands for what it matches, once, labels left out; features and what is served are as with names."""
    spec = spec_of(CONFIGS / "wards.yaml")
    table = read_long(CONFIGS / "wards.csv", spec.data)  # type: ignore[arg-type]
    clock, nothing = Clock(table.starts, table.hour), np.zeros((0, 0))
    hours = Hours(clock, Facts(table.starts, nothing, nothing, table.starts, ""), table.columns)
    given = spec.model_copy(update={"features": {"all": FeatureGroup(columns=("HR", "?R", "*"))}})
    found = hours.features(given)["all"].columns
    labels = {stage.target.column for stage in spec.stages}
    assert found == ("HR", *(name for name in table.columns if name not in {"HR", *labels}))
    named = {"all": FeatureGroup(columns=found)}
    assert np.array_equal(panel(table, hours.features(given)), panel(table, named), equal_nan=True)
    assert sight(hours.features(given)).columns == sight(named).columns


def test_a_pattern_that_matches_nothing_is_told() -> None:
    """A pattern without a column is refused at its group."""
    with pytest.raises(UnfoldError, match=r'no column "lob_\*"') as error:
        expanded({"labs": FeatureGroup(columns=("lob_*",))}, ("lab_a", "lab_b"))
    assert error.value.diagnostics[0].key == "features.labs.columns"
