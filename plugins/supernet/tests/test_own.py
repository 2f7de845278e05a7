"""Laws of examples of one's own: which axes are what, which rows are whose, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import load_data, make_run, parse_spec
from unfold_supernet.family.datasets import Dataset, hold_out_rows, split_by_group
from unfold_supernet.schema.training import DataSpec
from unfoldkit.api import UnfoldError

Y = np.repeat([3, 5], 20)
SPEC = """
version: 1
kind: supernet
name: t
data: {source: file, path: d.npz}
space: {form: conv1d, stages: [{width: 8}]}
"""


def read(folder: Path, form: str, given: dict[str, Any] | None = None, **arrays: Any) -> Dataset:
    """Return arrays as they are loaded from a file for nets of a form."""
    np.savez(folder / "d.npz", **{"y": Y, **arrays})
    run = make_run(folder, base=folder)
    return load_data(DataSpec.model_validate({"source": "file", "path": "d.npz", **(given or {})}), run, form)


@pytest.mark.parametrize(
    ("form", "shape", "channels", "loaded"),
    [
        ("conv2d", (28, 28), None, (1, 28, 28)),
        ("conv2d", (28, 27), "none", (1, 28, 27)),
        ("conv2d", (3, 32, 32), None, (3, 32, 32)),
        ("conv2d", (32, 31, 3), "last", (3, 32, 31)),
        ("conv2d", (16, 4, 4), "first", (16, 4, 4)),
        ("conv1d", (187,), None, (1, 187)),
        ("conv1d", (9, 128), None, (9, 128)),
        ("conv1d", (128, 9), "last", (9, 128)),
        ("transformer", (187,), None, (1, 187)),
        ("transformer", (9, 128), "first", (9, 128)),
        ("transformer", (28, 28), "none", (1, 28, 28)),
        ("transformer", (3, 32, 32), None, (3, 32, 32)),
        ("mlp", (28, 28), None, (784, 1)),
    ],
)
def test_axes_are_what_the_form_needs(tmp_path: Path, form: str, shape: Any, channels: str | None, loaded: Any) -> None:
    """Inputs come as channels and the axes of the form; no number is lost or moved within its channel."""
    x = np.random.default_rng(0).integers(0, 256, (len(Y), *shape)).astype(np.uint8)
    found = read(tmp_path, form, {"channels": channels}, x=x)
    assert found.x.shape == (len(Y), *loaded)
    wanted = np.moveaxis(x, -1, 1) if channels == "last" else x.reshape(found.x.shape)
    np.testing.assert_array_equal(found.x, wanted)
    assert found.names == ("3", "5")


@pytest.mark.parametrize(
    ("form", "arrays", "told"),
    [
        ("conv2d", {"x": np.ones((40, 187))}, "conv2d cannot take"),
        ("conv1d", {"x": np.ones((40, 3, 8, 8))}, "conv1d cannot take"),
        ("conv2d", {"x": np.ones((40, 32, 32, 3))}, "32 channels of 32 x 3?"),
        ("conv1d", {"x": np.ones((40, 128, 9))}, "128 channels of 9?"),
        ("transformer", {"x": np.ones((40, 2, 333))}, "signals of 2 channels, or images of 2 x 333?"),
        ("transformer", {"x": np.ones((40, 128, 9))}, "channels: last"),
        ("conv1d", {"x": np.ones((39, 9))}, "y holds 40 labels"),
        ("conv1d", {"x": np.full((40, 9), np.nan)}, r"x\[0\] holds a value"),
        ("conv1d", {"x": np.full((40, 9), "a")}, "not numbers"),
        ("conv1d", {"x": np.ones((40, 9)), "y": np.eye(2)[Y // 4]}, "not one label a row"),
        ("conv1d", {"x": np.ones((40, 9)), "y": np.where(Y == 3, 1.0, np.nan)}, r"y\[20\] is nan"),
        ("conv1d", {"x": np.ones((40, 9)), "y": Y + 0.5}, "is not a class"),
        ("conv1d", {"x": np.ones((40, 9)), "y": Y * 0}, "y holds 1 classes"),
        ("conv1d", {"x": np.ones((0, 9)), "y": Y[:0]}, "y holds 0 classes"),
        ("conv1d", {"x": np.ones((40, 9)), "y": Y.astype(object)}, "Python objects"),
        ("conv1d", {"x": np.ones((40, 9)), "extra": np.ones((39, 2))}, "extra has shape"),
        ("conv1d", {"x": np.ones((40, 9)), "extra": np.full(40, np.inf)}, r"extra\[0\] holds a value"),
        ("conv1d", {"data": np.ones((40, 9))}, "holds no x"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, form: str, arrays: dict[str, Any], told: str) -> None:
    """Arrays that do not fit the form, each other or a classification are refused, and nothing is executed."""
    with pytest.raises(UnfoldError, match=told):
        read(tmp_path, form, **arrays)


@pytest.mark.parametrize("y", [Y[:, None], Y.astype(float), Y.astype(np.uint8), Y.astype(str)])
def test_labels_are_the_same_however_they_are_stored(tmp_path: Path, y: Any) -> None:
    """A column, whole numbers of any type and text are the same labels; one extra number a row may be flat."""
    found = read(tmp_path, "conv1d", x=np.ones((40, 9)), y=y, extra=np.arange(40), notes=np.array([object()]))
    assert found.names == ("3", "5")
    np.testing.assert_array_equal(found.y, Y // 5)
    assert found.extra.shape == (40, 1)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """An archive that was cut off and an array that is no archive are mistakes of the file, not of the program."""
    np.savez(tmp_path / "d.npz", x=np.ones((40, 9)), y=Y)
    whole = (tmp_path / "d.npz").read_bytes()
    run = make_run(tmp_path, base=tmp_path)
    for content, told in ((whole[: len(whole) // 2], "damaged"), (b"\x93NUMPY" + whole, "not an NPZ archive")):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(UnfoldError, match=told):
            load_data(DataSpec(source="file", path="d.npz"), run)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=200), st.floats(0.05, 0.95), st.integers(0, 99))
def test_no_group_is_on_both_sides(whose: list[int], share: float, seed: int) -> None:
    """Every row is on one side, no group on both, and each side has some as soon as there are two groups."""
    train, test = split_by_group(np.array(whose), share, seed)
    assert sorted([*train, *test]) == list(range(len(whose)))
    assert {whose[row] for row in train}.isdisjoint(whose[row] for row in test)
    assert len(set(whose)) == 1 or (len(train) and len(test))


def test_patients_and_given_sides_are_kept(tmp_path: Path) -> None:
    """With a group no patient is on both sides, nor held back in part, of an NPZ or CSV; given sides are kept."""
    who = np.tile(np.arange(8), 5)
    by_group = {"split": "inter-patient", "group": "subject"}
    found = read(tmp_path, "conv1d", by_group, x=np.ones((40, 9)), subject=who)
    held = hold_out_rows(found, 0.3, 0)
    for one, other in ((found.train, found.test), (held.train, held.holdout)):
        assert min(len(one), len(other)) > 0
        assert set(who[one]).isdisjoint(who[other])
    sides = np.where(who < 5, 1, 2)
    given_ = read(tmp_path, "conv1d", {"split": "given"}, x=np.ones((40, 9)), split=sides)
    np.testing.assert_array_equal(given_.train, np.flatnonzero(sides == 1))
    rows = "\n".join(f"{at},p{who[at]},{Y[at]}" for at in range(40))
    (tmp_path / "d.csv").write_text(f"f,subject,target\n{rows}\n", "utf-8")
    run = make_run(tmp_path, base=tmp_path)
    table = load_data(DataSpec(source="file", path="d.csv", split="inter-patient", group="subject"), run)
    assert table.x.shape == (40, 1, 1)
    assert set(who[table.train]).isdisjoint(who[table.test])


@pytest.mark.parametrize("data", ["split: inter-patient", "group: subject", "split: random, group: subject"])
def test_a_split_that_cannot_be_carried_out_is_refused(data: str) -> None:
    """A split by patient needs to know whose rows are; a group that no split asks for is not ignored."""
    with pytest.raises(UnfoldError, match=r"group of each row|no effect on this split"):
        parse_spec(SPEC.replace("d.npz", f"d.npz, {data}"))


def test_one_row_is_not_trained_on(tmp_path: Path) -> None:
    """A single row to train on has no spread for the norms, so it is refused with the counts, not met by a crash."""
    split = np.where(np.arange(len(Y)) < 1, 1, 2)
    with pytest.raises(UnfoldError, match="1 rows to train and 39 to test"):
        read(tmp_path, "mlp", {"split": "given"}, x=np.ones((len(Y), 3)), split=split)


@pytest.mark.parametrize(
    ("y", "told"),
    [
        ([0.0, np.inf, 1.0, 0.0, 1.0, 1.0], "y\\[1\\] is inf, which is not a class"),
        ([17, 23, 5, 88, 41, 17], "5 classes in 6 rows, fewer than two rows each"),
    ],
)
def test_a_measured_number_is_no_class(tmp_path: Path, y: list[float], told: str) -> None:
    """Labels that are not finite, or nearly all different, are refused; they became classes that nobody meant."""
    with pytest.raises(UnfoldError, match=told):
        read(tmp_path, "mlp", x=np.ones((6, 3)), y=np.array(y))


def test_labels_in_bytes_are_text(tmp_path: Path) -> None:
    """Labels stored as bytes, as HDF5 hands them out, are named by their text."""
    assert read(tmp_path, "mlp", x=np.ones((6, 3)), y=np.array([b"N", b"V"] * 3)).names == ("N", "V")


def test_a_table_of_labels_alone_is_refused(tmp_path: Path) -> None:
    """Without a column beside the label there is nothing to learn from."""
    with pytest.raises(UnfoldError, match="x has no column"):
        read(tmp_path, "mlp", x=np.ones((len(Y), 0)))
