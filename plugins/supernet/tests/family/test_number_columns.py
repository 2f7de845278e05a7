"""Columns that single precision rounds away, in one file and over shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.supernet.tests.helpers import LABELS, load_arrays, load_data, make_run
from unfold_supernet.family.number_columns import ColumnSpread, name_column
from unfold_supernet.schema.training import DataSpec
from unfoldkit.api import UnfoldError

ROWS = len(LABELS)
RNG = np.random.default_rng(5)
SECONDS = 1.7e9 + np.arange(ROWS) * 5.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.stack([RNG.normal(size=ROWS), SECONDS], 1)}, r"x\[:, 1\] differs by 57\.7 around 1\.7e\+09.*of 128"),
        ({"x": SECONDS.astype(np.int64)[:, None]}, r"x\[:, 0\] differs .*subtract a constant"),
        ({"x": 1e9 + RNG.normal(size=(ROWS, 2, 12))}, r"x\[:, 0, 0\] differs"),
        ({"x": RNG.normal(size=(ROWS, 9)), "extra": SECONDS}, "extra differs"),
    ],
)
def test_inputs_that_single_precision_rounds_away_are_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    """Networks compute in single precision, in which seconds since 1970 are multiples of 128."""
    with pytest.raises(UnfoldError, match=message):
        load_arrays(tmp_path, "module", **arrays)


@pytest.mark.parametrize(
    "x",
    [
        np.full((ROWS, 3), 1.7e9),
        1e4 + RNG.normal(size=(ROWS, 3)),
        1.7e9 + RNG.normal(size=(ROWS, 3)) * 1e6,
        0.3 + RNG.integers(0, 2, (ROWS, 3)) * 1e-16,
        RNG.integers(0, 1 << 62, (ROWS, 3)),
        (1.7e9 + RNG.normal(size=(ROWS, 3))).astype(np.float32),
    ],
)
def test_other_large_numbers_are_accepted(tmp_path: Path, x: Any) -> None:
    """A constant column, one that varies widely, round-off, and what was single precision before lose nothing."""
    assert load_arrays(tmp_path, "module", x=x).x.shape == x.shape


def test_columns_of_tables_and_shards_are_named(tmp_path: Path) -> None:
    """Shards count together: each holds a minute of a year of seconds, which is refused only if the year is short."""
    run = make_run(tmp_path / "run")
    rows = "\n".join(f"{at % 7},{SECONDS[at]},{LABELS[at]}" for at in range(ROWS))
    (tmp_path / "d.csv").write_text(f"a,when,target\n{rows}\n", "utf-8")
    with pytest.raises(UnfoldError, match='column "when" differs'):
        load_data(DataSpec(source="file", path=str(tmp_path / "d.csv")), run, "module")
    for step, is_refused in ((20.0, True), (1e5, False)):
        folder = tmp_path / str(step)
        folder.mkdir()
        for index in range(8):
            x = 1.7e9 + step * index + np.arange(5.0)[:, None]
            np.savez(folder / f"{index}.npz", x=x, y=LABELS[index * 5 : index * 5 + 5])
        if is_refused:
            with pytest.raises(UnfoldError, match=r"x\[:, 0\] differs"):
                load_data(DataSpec(source="file", path=str(folder)), run, "module")
        else:
            assert len(load_data(DataSpec(source="file", path=str(folder)), run, "module").x) == ROWS


def test_a_parquet_column_is_named(tmp_path: Path) -> None:
    """A table is refused by the name of its column; a column of lists by the index in it."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = {"a": np.arange(ROWS) % 7, "when": SECONDS, "target": LABELS}
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    with pytest.raises(UnfoldError, match='column "when" differs'):
        load_data(DataSpec(source="file", path=str(tmp_path / "d.parquet")), make_run(tmp_path / "run"), "module")
    lists = np.stack([RNG.normal(size=ROWS), SECONDS], 1).tolist()
    parquet.write_table(pa.table({"signal": lists, "target": LABELS}), tmp_path / "d.parquet")
    with pytest.raises(UnfoldError, match=r"x\[:, 1\] differs"):
        load_data(DataSpec(source="file", path=str(tmp_path / "d.parquet")), make_run(tmp_path / "run"), "module")


def test_blocks_give_the_spread_of_all_rows() -> None:
    """Mean and deviation do not depend on how rows are cut into blocks."""
    values = 1e6 + RNG.normal(size=(101, 3, 2)) * RNG.uniform(1, 9, (3, 2))
    spread = ColumnSpread()
    for block in np.split(values, [1, 40, 41]):
        spread.add(block)
    np.testing.assert_allclose(spread.mean, values.reshape(101, 6).mean(0))
    np.testing.assert_allclose(np.sqrt(np.asarray(spread.squares) / 101), values.reshape(101, 6).std(0))


def test_names_of_columns() -> None:
    """A column has its own name, or the index without axes of length 1."""
    assert name_column("x", ("a", "b"), (2, 1), 1) == 'column "b"'
    assert name_column("x", (), (3, 1, 4), 6) == "x[:, 1, 2]"
    assert name_column("x", (), (1, 1), 0) == "x[:, 0]"
    assert name_column("extra", (), (), 0) == "extra"
