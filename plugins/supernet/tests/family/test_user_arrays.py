"""Validation of a user's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.supernet.tests.helpers import LABELS, load_arrays, load_data, make_run
from unfold_supernet.schema.training import DataSpec
from unfoldkit.api import UnfoldError


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
def test_axes_are_arranged_for_the_form(
    tmp_path: Path, form: str, shape: Any, channels: str | None, loaded: Any
) -> None:
    """Inputs are arranged as channels and the axes of the form; no value is lost."""
    x = np.random.default_rng(0).integers(0, 256, (len(LABELS), *shape)).astype(np.uint8)
    found = load_arrays(tmp_path, form, {"channels": channels}, x=x)
    assert found.x.shape == (len(LABELS), *loaded)
    wanted = np.moveaxis(x, -1, 1) if channels == "last" else x.reshape(found.x.shape)
    np.testing.assert_array_equal(found.x, wanted)
    assert found.names == ("3", "5")


@pytest.mark.parametrize(
    ("form", "arrays", "message"),
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
        ("conv1d", {"x": np.ones((40, 9)), "y": np.eye(2)[LABELS // 4]}, "not one label a row"),
        ("conv1d", {"x": np.ones((40, 9)), "y": np.where(LABELS == 3, 1.0, np.nan)}, r"y\[20\] is nan"),
        ("conv1d", {"x": np.ones((40, 9)), "y": LABELS + 0.5}, "is not a class"),
        ("conv1d", {"x": np.ones((40, 9)), "y": LABELS * 0}, "y holds 1 classes"),
        ("conv1d", {"x": np.ones((0, 9)), "y": LABELS[:0]}, "y holds 0 classes"),
        ("conv1d", {"x": np.ones((40, 9)), "y": LABELS.astype(object)}, "Python objects.*y.astype.*pad sequences"),
        ("conv1d", {"x": np.ones((40, 9)), "extra": np.ones((39, 2))}, "extra has shape"),
        ("conv1d", {"x": np.ones((40, 9)), "extra": np.full(40, np.inf)}, r"extra\[0\] holds a value"),
        ("conv1d", {"data": np.ones((40, 9))}, "holds no x"),
    ],
)
def test_invalid_arrays_are_refused(tmp_path: Path, form: str, arrays: dict[str, Any], message: str) -> None:
    """Arrays that do not fit the form, each other or a classification are refused; no code is executed."""
    with pytest.raises(UnfoldError, match=message):
        load_arrays(tmp_path, form, **arrays)


@pytest.mark.parametrize("y", [LABELS[:, None], LABELS.astype(float), LABELS.astype(np.uint8), LABELS.astype(str)])
def test_label_storage_does_not_matter(tmp_path: Path, y: Any) -> None:
    """A column, integers of any type and text are the same labels; one extra number a row may be flat."""
    found = load_arrays(tmp_path, "conv1d", x=np.ones((40, 9)), y=y, extra=np.arange(40), notes=np.array([object()]))
    assert found.names == ("3", "5")
    np.testing.assert_array_equal(found.y, LABELS // 5)
    assert found.extra.shape == (40, 1)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    """A truncated archive and a file that is no archive are the caller's fault."""
    np.savez(tmp_path / "d.npz", x=np.ones((40, 9)), y=LABELS)
    whole = (tmp_path / "d.npz").read_bytes()
    run = make_run(tmp_path, base=tmp_path)
    for content, message in ((whole[: len(whole) // 2], "damaged"), (b"\x93NUMPY" + whole, "not an NPZ archive")):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(UnfoldError, match=message):
            load_data(DataSpec(source="file", path="d.npz"), run)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.0, np.inf, 1.0, 0.0, 1.0, 1.0], "y\\[1\\] is inf, which is not a class"),
        ([17, 23, 5, 88, 41, 17], "5 classes in 6 rows, fewer than two rows each"),
    ],
)
def test_measured_quantities_are_no_labels(tmp_path: Path, y: list[float], message: str) -> None:
    """Labels that are not finite, or nearly all different, are refused instead of becoming classes."""
    with pytest.raises(UnfoldError, match=message):
        load_arrays(tmp_path, "mlp", x=np.ones((6, 3)), y=np.array(y))


@pytest.mark.parametrize("mark", ["nan", "NaN", "None", "<NA>", ""])
def test_marks_of_missing_labels_are_no_classes(tmp_path: Path, mark: str) -> None:
    """Pandas writes missing labels and groups as text; a class ``none`` is one."""
    labels = np.array(["cat", "dog", mark] * 10)
    with pytest.raises(UnfoldError, match=rf"y\[2\] is '{mark}', which marks a missing label"):
        load_arrays(tmp_path, "mlp", x=np.ones((30, 3)), y=labels)
    options = {"split": "inter-patient", "group": "p"}
    with pytest.raises(UnfoldError, match=rf"p\[2\] is '{mark}', which marks a missing value"):
        load_arrays(tmp_path, "mlp", options, x=np.ones((30, 3)), y=np.arange(30) % 2, p=labels)
    named = np.where(labels == mark, "none", labels)
    assert load_arrays(tmp_path, "mlp", x=np.ones((30, 3)), y=named).names == ("cat", "dog", "none")
    if mark:
        (tmp_path / "d.csv").write_text("a,target\n" + f"1,cat\n2,dog\n3,{mark}\n" * 10, "utf-8")
        with pytest.raises(UnfoldError, match=rf"d\.csv:4.*target: '{mark}' marks a missing label"):
            load_data(DataSpec(source="file", path="d.csv"), make_run(tmp_path, base=tmp_path))


def test_a_number_is_one_class_however_it_is_written(tmp_path: Path) -> None:
    """A table with ``4`` and ``4.0`` holds one class of them; where one form is used, it is the name."""
    for cells, names in ((["4", "4.0", "5"], ("4", "5")), (["4.0", "5.0", "4.0"], ("4.0", "5.0"))):
        (tmp_path / "d.csv").write_text("a,target\n" + "".join(f"1,{cell}\n" for cell in cells * 8), "utf-8")
        assert load_data(DataSpec(source="file", path="d.csv"), make_run(tmp_path, base=tmp_path)).names == names


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_single_precision_are_refused_without_a_warning(tmp_path: Path) -> None:
    """The error is all that is printed; classes in half precision are compared in a wider one."""
    (tmp_path / "d.csv").write_text("a,target\n1e300,x\n" + "1,x\n2,y\n" * 9, "utf-8")
    with pytest.raises(UnfoldError, match="not finite in single precision"):
        load_data(DataSpec(source="file", path="d.csv"), make_run(tmp_path, base=tmp_path))
    assert load_arrays(tmp_path, "mlp", x=np.ones((40, 3)), y=LABELS.astype(np.float16)).names == ("3", "5")


def test_byte_labels_are_decoded(tmp_path: Path) -> None:
    """Labels stored as bytes, as in HDF5, are named by their text."""
    assert load_arrays(tmp_path, "mlp", x=np.ones((6, 3)), y=np.array([b"N", b"V"] * 3)).names == ("N", "V")
    # of no encoding that is known, they are still two classes
    assert len(load_arrays(tmp_path, "mlp", x=np.ones((6, 3)), y=np.array([b"\xe9", b"\xe8"] * 3)).names) == 2


def test_rows_without_a_group_are_refused(tmp_path: Path) -> None:
    """Rows of an unknown patient are no patient of their own, in an archive or a table."""
    patients = np.where(np.arange(len(LABELS)) == 7, np.nan, np.arange(len(LABELS)) // 5)
    options = {"split": "inter-patient", "group": "p"}
    with pytest.raises(UnfoldError, match=r"p\[7\] is not finite"):
        load_arrays(tmp_path, "mlp", options, x=np.ones((len(LABELS), 3)), p=patients)
    rows = "".join(f"{row},{'' if row == 7 else row // 5},{row % 2}\n" for row in range(40))
    (tmp_path / "d.csv").write_text(f"a,p,target\n{rows}", "utf-8")
    with pytest.raises(UnfoldError, match=r"d\.csv:9.*p: no value"):
        load_data(DataSpec(source="file", path="d.csv", **options), make_run(tmp_path, base=tmp_path))


@pytest.mark.parametrize("form", ["mlp", "module", "conv1d"])
def test_table_without_features_is_refused(tmp_path: Path, form: str) -> None:
    """A table without a column beside the label is refused."""
    with pytest.raises(UnfoldError, match=r"a row has shape \(0,\), which holds no value.*another target"):
        load_arrays(tmp_path, form, x=np.ones((len(LABELS), 0)))
