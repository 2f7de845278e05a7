"""Examples in shards, Parquet files and folders of images: equal to the arrays in memory, bounded, and validated."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.supernet.tests.helpers import load_data, make_run, parse_spec
from unfold_supernet.family.datasets import hold_out_rows
from unfold_supernet.family.image_folder import read_image
from unfold_supernet.family.row_store import RowStore
from unfold_supernet.schema.training import DataSpec
from unfold_supernet.verbs.build import build_class_weights
from unfoldkit.api import ExitCode, UnfoldError

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROWS, SHARDS = 90, 3
RNG = np.random.default_rng(3)
X = RNG.normal(size=(ROWS, 2, 12)).astype(np.float32)
Y = np.arange(ROWS) % 3
GROUP = np.arange(ROWS) // 5


def write_npz(folder: Path, change: Callable[[int, dict[str, Any]], None] = lambda _index, _arrays: None) -> Path:
    for index, rows in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        arrays: dict[str, Any] = {"x": X[rows].copy(), "y": Y[rows], "who": GROUP[rows]}
        change(index, arrays)
        np.savez(folder / f"part-{index}.npz", **arrays)
    return folder


def write_parquet(folder: Path, change: Callable[[int, dict[str, Any]], None] = lambda _index, _columns: None) -> Path:
    for index, rows in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        columns: dict[str, Any] = {f"c{column}": X[rows, 0, column].tolist() for column in range(4)}
        columns |= {"target": Y[rows].tolist()}
        change(index, columns)
        parquet.write_table(pa.table(columns), folder / f"part-{index}.parquet", row_group_size=7)
    return folder


def write_images(folder: Path, parts: tuple[str, ...] = ("",)) -> Path:
    image = pytest.importorskip("PIL.Image")
    for part in parts:
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for index in range(4):
                pixels = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
                image.fromarray(pixels).save(folder / part / label / f"{index}.png")
    return folder


def load(tmp_path: Path, path: Path, form: str = "module", **fields: Any) -> Any:
    return load_data(DataSpec(source="file", path=str(path), **fields), make_run(tmp_path / "run"), form)


def test_npz_shards_equal_one_archive(tmp_path: Path) -> None:
    """Inputs, labels, split and groups of shards are those of the same rows in one archive."""
    (tmp_path / "shards").mkdir()
    np.savez(tmp_path / "all.npz", x=X, y=Y, who=GROUP)
    fields: dict[str, Any] = {"split": "inter-patient", "group": "who"}
    whole = load(tmp_path, tmp_path / "all.npz", **fields)
    sharded = load(tmp_path, write_npz(tmp_path / "shards"), **fields)
    for name in ("x", "y", "train", "test", "groups"):
        np.testing.assert_array_equal(getattr(sharded, name), getattr(whole, name))
    assert not {*GROUP[sharded.train]} & {*GROUP[sharded.test]}
    held = hold_out_rows(sharded, 0.2, 0)
    assert not ({*held.holdout} & {*held.test}) | ({*held.train} & {*held.holdout})


def test_parquet_columns_and_lists_are_read(tmp_path: Path) -> None:
    """Columns of numbers become features in their order; a column of nested lists keeps its shape."""
    (tmp_path / "shards").mkdir()
    data = load(tmp_path, write_parquet(tmp_path / "shards"), test=0.5)
    np.testing.assert_array_equal(data.x, X[:, 0, :4])
    table = pa.table({"signal": X.tolist(), "target": [f"class {label}" for label in Y]})
    parquet.write_table(table, tmp_path / "lists.parquet", row_group_size=13)
    nested = load(tmp_path, tmp_path / "lists.parquet")
    np.testing.assert_array_equal(nested.x, X)
    assert nested.names == ("class 0", "class 1", "class 2")


def test_inputs_are_not_held_in_memory(tmp_path: Path) -> None:
    """Loading 48 MiB in shards of 2 MiB, and drawing a batch, allocates no more than a few shards."""
    (tmp_path / "shards").mkdir()
    for index in range(24):
        x = np.full((64, 8192), index, np.float32)
        np.savez(tmp_path / "shards" / f"{index:02}.npz", x=x, y=np.arange(64) % 2)
    tracemalloc.start()
    data = load(tmp_path, tmp_path / "shards")
    batch = data.x[data.train[::100]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.nbytes == 48 << 20
    assert len(batch)
    assert peak < 14 << 20
    assert not list((tmp_path / "run").glob("*")) if (tmp_path / "run").exists() else True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays["x"].__setitem__((4, 0, 0), np.nan), r"part-1\.npz.*x\[4\] holds a value"),
        (
            lambda arrays: arrays.update(x=arrays["x"][:, :, :6]),
            r"part-1\.npz.*a row has shape \(2, 6\), but \(2, 12\)",
        ),
        (
            lambda arrays: arrays.update(x=(arrays["x"] * 9).astype(np.uint8)),
            r"part-1\.npz.*x holds 8-bit integers, but floating-point numbers",
        ),
        (lambda arrays: arrays.update(extra=np.zeros(30)), r"part-1\.npz.*adds extra"),
        (lambda arrays: arrays.pop("y"), r"part-1\.npz.*holds no y"),
        (lambda arrays: arrays.update(y=arrays["y"].astype(str)), r"part-1\.npz.*y holds text, but numbers in part-0"),
        (
            lambda arrays: arrays.update(y=np.where(np.arange(30) == 7, np.nan, 1.0)),
            r"part-1\.npz.*y\[7\] is not finite",
        ),
        (lambda arrays: arrays.update(y=arrays["y"][:-1]), r"part-1\.npz.*x has shape"),
    ],
)
def test_invalid_npz_shards_are_named(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    """What is wrong with a row or a shard is reported with its file, before anything is trained."""
    folder = write_npz(tmp_path, lambda index, arrays: change(arrays) if index == 1 else None)
    with pytest.raises(UnfoldError, match=message):
        load(tmp_path, folder)


def test_shards_without_values_are_named(tmp_path: Path) -> None:
    """Rows of no value at all are refused, not mapped."""
    folder = write_npz(tmp_path, lambda _index, arrays: arrays.update(x=arrays["x"][:, :, :0]))
    with pytest.raises(UnfoldError, match=r"part-0\.npz.*a row has shape \(2, 0\), which holds no value"):
        load(tmp_path, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns["c1"].__setitem__(8, None), r"part-1\.parquet.*row 8: column \"c1\" is empty"),
        (lambda columns: columns["c1"].__setitem__(8, float("inf")), r"part-1\.parquet.*x\[8\]"),
        (lambda columns: columns["target"].__setitem__(9, None), r"part-1\.parquet.*row 9: column \"target\""),
        (lambda columns: columns.update(c9=[0.0] * 30), r"part-1\.parquet.*adds c9"),
        (lambda columns: columns.pop("c2"), r"part-1\.parquet.*lacks c2"),
        (lambda columns: columns.update(c1=["a"] * 30), r"part-1\.parquet.*column \"c1\" holds .*string"),
        (lambda columns: columns.update(c1=[[1.0]] * 30), r"part-1\.parquet.*lists beside other columns"),
        (lambda columns: columns.pop("target"), r"part-1\.parquet.*there is no column \"target\""),
    ],
)
def test_invalid_parquet_shards_are_named(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    """A gap, another type or other columns are reported with file and row."""
    folder = write_parquet(tmp_path, lambda index, columns: change(columns) if index == 1 else None)
    with pytest.raises(UnfoldError, match=message):
        load(tmp_path, folder)


@pytest.mark.parametrize("name", [None, "row"])
def test_index_of_a_pandas_table_is_no_input(tmp_path: Path, name: str | None) -> None:
    """What pandas stores to number the rows of a filtered table does not reach the network."""
    frame = pytest.importorskip("pandas").DataFrame({"a": X[:, 0, 0], "b": X[:, 0, 1], "target": Y})
    frame.index = frame.index.rename(name)
    frame[frame.index % 2 == 0].to_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(load(tmp_path, tmp_path / "a.parquet").x, X[::2, 0, :2])


def test_targets_in_lists_and_decimals_are_read(tmp_path: Path) -> None:
    """A column of lists holds several labels a row; decimals are numbers."""
    signals, labels = X[:, 0].tolist(), np.stack([Y > 0, Y > 1], 1).astype(int)
    parquet.write_table(pa.table({"x": signals, "target": labels.tolist()}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(load(tmp_path, tmp_path / "a.parquet", task="labels").y, labels)
    prices = pa.array([Decimal(index) / 4 for index in range(ROWS)])
    parquet.write_table(pa.table({"price": prices, "cost": prices, "target": prices}), tmp_path / "b.parquet")
    data = load(tmp_path, tmp_path / "b.parquet", task="values")
    np.testing.assert_array_equal(data.y[:, 0], np.arange(ROWS) / 4)
    np.testing.assert_array_equal(data.x[:, 1], np.arange(ROWS) / 4)


def test_ragged_lists_and_damaged_files_are_named(tmp_path: Path) -> None:
    """A list of another length is reported with its row; a damaged file with its name."""
    signal = [[1.0, 2.0]] * 9 + [[1.0]]
    parquet.write_table(pa.table({"signal": signal, "target": [0, 1] * 5}), tmp_path / "a.parquet")
    with pytest.raises(UnfoldError, match='row 9: the list of column "signal" has 1 values, not 2'):
        load(tmp_path, tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnfoldError, match=r"b\.parquet.*not a readable Parquet file"):
        load(tmp_path, tmp_path / "b.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnfoldError, match=r"no \.npz and no \.parquet"):
        load(tmp_path, tmp_path / "empty")
    np.savez(tmp_path / "c.npz", x=X, y=Y)
    with pytest.raises(UnfoldError, match="one format"):
        load(tmp_path, tmp_path)


def test_images_are_read_by_class_and_split(tmp_path: Path) -> None:
    """Folders name classes; train and test are the split; values lie between 0 and 1."""
    folder = write_images(tmp_path / "images", ("train", "test"))
    spec = DataSpec(source="images", path=str(folder), split="given", image_size=16)
    data = load_data(spec, make_run(tmp_path / "run"), "conv2d")
    assert data.x.shape == (16, 3, 16, 16)
    assert 0 <= float(data.x.min()) < float(data.x.max()) <= 1
    assert data.names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 8)
    np.testing.assert_array_equal(data.x[0], read_image(folder / "train" / "cat" / "0.png", 16))


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    """A truncated image, a text file, PostScript and 16-bit pixels are refused by file."""
    image = pytest.importorskip("PIL.Image")
    folder = write_images(tmp_path / "images")
    path = folder / "dog" / "2.png"
    whole = path.read_bytes()
    spec = DataSpec(source="images", path=str(folder))
    for content in (whole[: len(whole) // 2], b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b""):
        path.write_bytes(content)
        with pytest.raises(UnfoldError, match=r"dog/2\.png.*cannot be read as an image") as refused:
            load_data(spec, make_run(tmp_path / "run"), "conv2d")
        assert "BytesIO" not in str(refused.value)
    image.fromarray(np.zeros((9, 9), np.uint16)).save(path)
    with pytest.raises(UnfoldError, match=r"dog/2\.png.*not 8-bit grey"):
        load_data(spec, make_run(tmp_path / "run"), "conv2d")
    for file in (folder / "dog").iterdir():
        file.unlink()
    with pytest.raises(UnfoldError, match=r"dog.*holds no image"):
        load_data(spec, make_run(tmp_path / "run"), "conv2d")


def test_images_with_transparent_palettes_are_read(tmp_path: Path) -> None:
    """Pillow warns of the transparency of a palette; the image is read, and nothing is printed."""
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "red.png"
    image.new("RGB", (9, 9), "red").quantize(4).save(path, transparency=bytes([255, 0, 128, 255]))
    np.testing.assert_allclose(read_image(path, 8)[:, 4, 4], [1, 0, 0], atol=0.01)


def _make_png(depth: int) -> bytes:
    """Make a PNG in RGB, which Pillow reads and does not write with 16 bits."""
    header = struct.pack(">IIBBBBB", 9, 9, depth, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9 * (1 + 27 * depth // 8)))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _make_planar_tiff(depth: int) -> bytes:
    """Make an uncompressed TIFF of 9 x 9 pixels in RGB, a plane each."""
    plane, shorts = 81 * depth // 8, (3, "H")
    start = 8 + 2 + 9 * 12 + 4 + 6 + 24
    entries = [
        (256, 9),
        (257, 9),
        (258, start - 30),
        (259, 1),
        (262, 2),
        (273, start - 24),
        (277, 3),
        (279, start - 12),
    ]
    counts, kinds = {258: 3, 273: 3, 279: 3}, {273: (4, "I"), 279: (4, "I")}
    fields = b"".join(
        struct.pack("<HHII", tag, kinds.get(tag, shorts)[0], counts.get(tag, 1), value)
        for tag, value in [*entries, (284, 2)]
    )
    offsets = struct.pack("<3H3I3I", *[depth] * 3, *(start + plane * index for index in range(3)), *[plane] * 3)
    return b"II*\0" + struct.pack("<IH", 8, 9) + fields + bytes(4) + offsets + bytes(3 * plane)


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        (".png", _make_png),
        (".tif", _make_planar_tiff),
        (".ppm", lambda depth: b"P6 9 9 %d\n" % (2**depth - 1) + bytes(243 * depth // 8)),
    ],
)
def test_wide_colours_are_refused(tmp_path: Path, suffix: str, make: Callable[[int], bytes]) -> None:
    """Pillow would read the upper 8 of 16 bits a channel, and 12-bit values stored in them would all become dark."""
    pytest.importorskip("PIL.Image")
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(make(8))
    assert read_image(path, 9).shape == (3, 9, 9)
    path.write_bytes(make(16))
    with pytest.raises(UnfoldError, match=r"16 bits a channel, which is not 8-bit.*convert it"):
        read_image(path, 9)


@pytest.mark.parametrize("parts", [("train", "test"), ("Train", "Val", "Test")])
def test_folders_of_a_split_are_no_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """A folder with train and test is refused unless the spec says that it is split."""
    folder = write_images(tmp_path / "images", parts)
    with pytest.raises(UnfoldError, match=r"which are not classes.*split: given"):
        load_data(DataSpec(source="images", path=str(folder)), make_run(tmp_path / "run"), "conv2d")


def test_images_of_other_formats_are_not_left_out(tmp_path: Path) -> None:
    """An image that is not read is named, as the others would be a part of the data; JPEG has several suffixes."""
    folder = write_images(tmp_path / "images")
    (folder / "dog" / "2.png").rename(folder / "dog" / "2.jfif")
    spec = DataSpec(source="images", path=str(folder))
    assert len(load_data(spec, make_run(tmp_path / "run"), "conv2d").x) == 8
    (folder / "dog" / "9.HEIC").write_bytes(b"heic")
    with pytest.raises(UnfoldError, match=r"dog/9\.HEIC.*images of this format are not read"):
        load_data(spec, make_run(tmp_path / "run"), "conv2d")


def test_hidden_folders_hold_no_images_and_pages_are_counted(tmp_path: Path) -> None:
    """Thumbnails in a hidden folder and in a file are ignored; a stack of pages of one size is refused."""
    image = pytest.importorskip("PIL.Image")
    folder = write_images(tmp_path / "images")
    spec = DataSpec(source="images", path=str(folder))
    (folder / "dog" / ".thumbs").mkdir()
    (folder / "dog" / "2.png").rename(folder / "dog" / ".thumbs" / "2.png")
    pixels = image.fromarray(RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    pixels.save(folder / "dog" / "2.tif", save_all=True, append_images=[pixels.resize((9, 6))])
    assert len(load_data(spec, make_run(tmp_path / "run"), "conv2d").x) == 8
    pixels.save(folder / "dog" / "2.tif", save_all=True, append_images=[pixels, pixels])
    with pytest.raises(UnfoldError, match=r"dog/2\.tif.*a stack of 3 pages"):
        load_data(spec, make_run(tmp_path / "run"), "conv2d")


def test_images_outside_of_classes_are_not_left_out(tmp_path: Path) -> None:
    """An image beside the classes, a broken link, and a folder beside train and test are refused by name."""
    folder, run = write_images(tmp_path / "images"), make_run(tmp_path / "run")
    spec = DataSpec(source="images", path=str(folder))
    (folder / "dog" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UnfoldError, match=r"dog/9\.png.*No such file"):
        load_data(spec, run, "conv2d")
    (folder / "dog" / "9.png").rename(folder / "9.png")
    with pytest.raises(UnfoldError, match=r"images/9\.png.*lies in no folder of a class"):
        load_data(spec, run, "conv2d")
    parts = write_images(tmp_path / "parts", ("train", "test", "val"))
    with pytest.raises(UnfoldError, match=r"parts/val.*is not read.*move its images into train"):
        load_data(DataSpec(source="images", path=str(parts), split="given"), run, "conv2d")


def test_names_of_images_may_be_no_text(tmp_path: Path) -> None:
    """A file may have any name; that of a class appears in reports, so it must be text."""
    folder, run = write_images(tmp_path / "images"), make_run(tmp_path / "run")
    spec = DataSpec(source="images", path=str(folder))
    (folder / "dog" / "2.png").rename(folder / "dog" / "\udcff.png")
    assert len(load_data(spec, run, "conv2d").x) == 8
    (folder / "dog").rename(folder / "d\no\udcffg")
    with pytest.raises(UnfoldError, match=r"the name of this class is not printable text: 'd\\no\\udcffg'"):
        load_data(spec, run, "conv2d")


def test_names_of_labels_are_read_from_shards(tmp_path: Path) -> None:
    """Shards name their labels as one file does; another order in a later shard would mix them."""
    names = np.array(["rash", "cough", "fever"])
    labels = np.eye(3, dtype=int)[Y]

    def name_labels(index: int, arrays: dict[str, Any]) -> None:
        arrays |= {"y": labels[index * 30 : index * 30 + 30], "names": names}

    folder = tmp_path / "shards"
    folder.mkdir()
    data = load(tmp_path, write_npz(folder, name_labels), task="labels")
    assert data.names == ("rash", "cough", "fever")
    np.savez(folder / "part-2.npz", x=X[60:], y=labels[60:], who=GROUP[60:], names=names[::-1])
    with pytest.raises(
        UnfoldError, match=r"part-2\.npz.*names are fever, cough, rash, but rash, cough, fever in part-0"
    ):
        load(tmp_path, folder, task="labels")


@pytest.mark.parametrize("is_sharded", [False, True])
def test_extra_numbers_form_a_table(tmp_path: Path, is_sharded: bool) -> None:
    """Numbers beside the inputs are a list of each row; an array of more axes is refused before the training."""
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "a.npz", x=X, y=Y, extra=np.ones((ROWS, 2, 2)))
    with pytest.raises(UnfoldError, match=r"a\.npz.*extra has shape \(90, 2, 2\), not \(rows, numbers\)"):
        load(tmp_path, folder if is_sharded else folder / "a.npz")


def test_parquet_tensors_are_inputs(tmp_path: Path) -> None:
    """A column of tensors of one shape, as Arrow defines it, is read as such; a missing number is named."""
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(X.astype(np.float64))
    parquet.write_table(pa.table({"signal": tensors, "target": Y}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(load(tmp_path, tmp_path / "a.parquet").x, X)
    numbers = pa.array([None if index == 60 else 1.0 for index in range(X.size)])
    storage = pa.FixedSizeListArray.from_arrays(numbers, 24)
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), (2, 12)), storage)
    parquet.write_table(pa.table({"signal": tensors, "target": Y}), tmp_path / "a.parquet")
    with pytest.raises(UnfoldError, match='row 2: column "signal" is empty'):
        load(tmp_path, tmp_path / "a.parquet")


def test_changed_values_of_parquet_files_are_noticed(tmp_path: Path) -> None:
    """A file with checksums, as Spark writes it, is refused if a value differs from what was written."""
    table = pa.table({"c0": np.linspace(0, 1, 64), "target": ["cat", "dog"] * 32})
    path, options = tmp_path / "a.parquet", {"compression": "none", "use_dictionary": False}
    parquet.write_table(table, path, write_page_checksum=True, **options)
    content = bytearray(path.read_bytes())
    content[content.index(np.linspace(0, 1, 64)[9].tobytes()) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnfoldError, match=r"a\.parquet.*not a readable Parquet file"):
        load(tmp_path, path)


def test_class_weights_follow_the_training_rows(tmp_path: Path) -> None:
    """Balanced weights are inverse to the classes' frequencies; a weight of no class is refused."""
    np.savez(tmp_path / "a.npz", x=X[:40], y=np.where(np.arange(40) < 30, "often", "rare"))
    data = load(tmp_path, tmp_path / "a.npz", test=0.5)
    assert build_class_weights("balanced", data) == pytest.approx((20 / 30, 20 / 10))
    assert build_class_weights({"rare": 3.0}, data) == (1.0, 3.0)
    with pytest.raises(UnfoldError, match="no class 'rar'"):
        build_class_weights({"rar": 3.0}, data)


def test_keys_of_modules_are_refused_for_spaces() -> None:
    """A space does not go by an optimizer or class weights, and an image size needs images."""
    text = """
version: 1
kind: supernet
name: t
data: {source: digits, image_size: 32}
space: {form: conv2d, stages: [{width: 8}]}
training: {optimizer: sgd, class_weights: balanced}
"""
    with pytest.raises(UnfoldError) as caught:
        parse_spec(text)
    keys = {diagnostic.key for diagnostic in caught.value.diagnostics}
    assert {"data.image_size", "training.optimizer", "training.class_weights"} <= keys


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_a_full_disk_is_no_fault_of_the_data() -> None:
    """Decoded rows that find no room end with exit code 3 and name no file of the data."""
    with Path("/dev/full").open("wb") as stream:
        store = RowStore(stream)
        with pytest.raises(UnfoldError, match=r"decoded inputs after 0 rows: No space left .*another disk") as caught:
            store.append(np.zeros((2, 3), np.float32), "photo.png")
        with contextlib.suppress(OSError):
            stream.close()
    assert caught.value.code == ExitCode.INTERNAL
    assert "photo" not in str(caught.value)
