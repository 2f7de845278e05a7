"""Examples in many files: a folder of NPZ or Parquet shards, or one Parquet file, read in bounded memory.

All shards hold the same arrays or columns and rows of one shape. An NPZ shard is read as a whole; a Parquet file in
batches. Inputs go to a temporary file (:mod:`.row_store`); labels and groups stay in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet.family.label_targets import parse_targets
from unfold_supernet.family.number_columns import ColumnSpread
from unfold_supernet.family.row_store import hash_files, open_store
from unfold_supernet.family.user_arrays import (
    INPUTS,
    UserData,
    UserDataOptions,
    arrange_axes,
    check_extra,
    check_numbers,
    check_present,
    parse_groups,
    parse_split,
    read_archive,
    require_arrays,
)
from unfoldkit.api import did_you_mean, require_packages, user_error
from unfoldkit.errors import list_columns
from unfoldkit.safe_io.files import first_line, read_bytes, require_regular

SUFFIXES = (".npz", ".parquet")
BATCH_BYTES = 16 << 20
"""Uncompressed bytes of a Parquet batch."""
MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a shard.

    Attributes:
        start: Index of the first row in its shard.
        arrays: By name: ``x``, ``y``, and where the shard has them, ``extra``, ``split`` and the group.
        columns: Names of all columns or arrays that the shard holds, for comparison with other shards.
        features: Names of the columns of ``x``; none for one array or column of lists.
    """

    start: int
    arrays: dict[str, Any]
    columns: tuple[str, ...]
    features: tuple[str, ...] = ()


@dataclass(slots=True)
class _Collected:
    """What stays in memory of all shards."""

    columns: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    spreads: dict[str, ColumnSpread] = field(default_factory=lambda: {name: ColumnSpread() for name in INPUTS})
    first_file: str = ""
    scale: str = ""
    parts: dict[str, list[Any]] = field(default_factory=dict)


def is_sharded(path: Path) -> bool:
    """Check whether a path is a folder of shards or a Parquet file."""
    return path.is_dir() or path.suffix == ".parquet"


def list_shards(path: Path) -> tuple[Path, ...]:
    """List the shards of a folder by name, or the Parquet file itself.

    Raises:
        UnfoldError: The folder holds no shard, or shards of both formats.
    """
    if not path.is_dir():
        return (path,)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) != 1:
        message = f"the folder holds {' and '.join(suffixes) or 'no .npz and no .parquet'} files"
        raise user_error(message, file=str(path), key="data.path", hint="a folder holds shards of one format")
    return tuple(files)


def load_shards(options: UserDataOptions, path: Path, form: str, scratch: Path | None) -> tuple[UserData, str]:
    """Load the examples of all shards for subnets of a form.

    Args:
        options: Layout of the shards.
        path: The folder, or a Parquet file.
        form: Form of the subnets.
        scratch: Folder for the decoded inputs.

    Returns:
        The examples, with inputs mapped from a file, and the SHA-256 of all shards.

    Raises:
        UnfoldError: A shard is damaged, lacks a column, differs from the first one, or holds an invalid row.
    """
    files, collected = list_shards(path), _Collected()
    with open_store(scratch) as store:
        for file in files:
            for block in read_blocks(file, options):
                _check_columns(block, collected, file)
                rows = len(block.arrays["y"])
                x = check_numbers(block.arrays["x"], "x", rows, str(file), block.start)
                store.append(arrange_axes(x, options.channels, form, str(file)), str(file))
                _collect(block, collected, rows, file)
                for name, spread in collected.spreads.items():
                    spread.add(block.arrays.get(name, np.zeros((rows, 0))))
        if not store.rows:
            raise user_error("the shards hold no row", file=str(path), key="data.path")
        for name, spread in collected.spreads.items():
            spread.check(name, collected.features if name == "x" else (), str(path))
        inputs = store.map_rows()
    joined = {name: np.concatenate(parts) for name, parts in collected.parts.items()}
    # the targets in a column of lists have no names
    has_names = files[0].suffix == ".parquet" and (joined["y"].ndim == 1 or len(options.targets) > 1)
    names = options.targets if has_names else collected.names
    targets = parse_targets(joined["y"], options.task, names, str(path))
    y = targets.y
    return UserData(
        x=inputs,
        extra=joined.get("extra", np.zeros((len(y), 0), np.float32)),
        y=y,
        names=targets.names,
        groups=parse_groups(joined[options.group]) if options.group else None,
        is_train=parse_split(joined["split"], len(y), str(path)) if options.has_split else None,
        columns=collected.features,
    ), hash_files(files)


def read_blocks(file: Path, options: UserDataOptions) -> Iterator[Block]:
    """Read a shard in blocks of rows.

    Raises:
        UnfoldError: The shard is damaged or lacks a column.
    """
    if file.suffix == ".parquet":
        yield from _read_parquet(file, options)
        return
    optional = ("extra", "names")
    names = (
        "x",
        "y",
        *optional,
        *(["split"] if options.has_split else []),
        *([options.group] if options.group else []),
    )
    arrays = read_archive(read_bytes(file), str(file), names)
    require_arrays(arrays, [name for name in names if name not in optional], str(file))
    if not arrays["y"].ndim:
        raise user_error("y is a single value", file=str(file), key="data.path", hint="store one label a row")
    yield Block(0, arrays, tuple(sorted(arrays)))


def _check_columns(block: Block, collected: _Collected, file: Path) -> None:
    """Check that a shard holds the columns of the first one."""
    if not collected.columns:
        collected.columns, collected.first_file, collected.features = block.columns, file.name, block.features
    names = tuple(map(str, np.ravel(block.arrays.get("names", ()))))
    collected.names = collected.names or names
    if names != collected.names:
        message = f"names are {list_columns(names)}, but {list_columns(collected.names)} in {collected.first_file}"
        raise user_error(message, file=str(file), key="data.path", hint="store one order of columns in all shards")
    scale = _describe_scale(np.asarray(block.arrays["x"]).dtype)
    collected.scale = collected.scale or scale
    if scale and scale != collected.scale:
        message = f"x holds {scale}, but {collected.scale} in shards before"
        raise user_error(message, file=str(file), key="data.path", hint="store one type and scale in all shards")
    missing = [name for name in collected.columns if name not in block.columns]
    added = [name for name in block.columns if name not in collected.columns]
    if missing or added:
        parts = [f"lacks {', '.join(missing[:3])}"] if missing else []
        parts += [f"adds {', '.join(added[:3])}"] if added else []
        message = f"the shard {' and '.join(parts)}, compared with {collected.first_file}"
        raise user_error(message, file=str(file), key="data.path", hint="all shards need the same columns")


def _describe_scale(kind: Any) -> str:
    """Describe numbers that are pixels up to 255, or may be scaled to 1; empty for others, such as counts."""
    if kind.kind == "f":
        return "floating-point numbers"
    return "8-bit integers" if kind.kind in "iu" and kind.itemsize == 1 else ""


def _collect(block: Block, collected: _Collected, rows: int, file: Path) -> None:
    for name, values in block.arrays.items():
        if name in ("x", "names"):
            continue
        if name == "extra":
            part = check_extra(values, rows, str(file), block.start)
        else:
            part = _check_labels(np.asarray(values), name, rows, block.start, file)
        before = collected.parts.setdefault(name, [])
        if before and (_is_text(before[0]) != _is_text(part) or before[0].shape[1:] != part.shape[1:]):
            message = f"{name} holds {_describe(part)}, but {_describe(before[0])} in {collected.first_file}"
            raise user_error(message, file=str(file), key="data.path", hint="store one type in all shards")
        before.append(part)


def _check_labels(values: Any, name: str, rows: int, start: int, file: Path) -> Any:
    """Check that there is a value for each row, and that none is missing."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if not values.ndim or len(values) != rows:
        message = f"{name} has shape {values.shape} for {rows} rows"
        raise user_error(message, file=str(file), key="data.path", hint="store one value for each row")
    return check_present(values, name, str(file), start)


def _is_text(values: Any) -> bool:
    return bool(values.dtype.kind in "US")


def _describe(values: Any) -> str:
    kind = "text" if _is_text(values) else "numbers"
    return f"{kind} of shape {values.shape[1:]} a row" if values.ndim > 1 else kind


def _read_parquet(path: Path, options: UserDataOptions) -> Iterator[Block]:
    require_packages("a Parquet file", "pyarrow", key="data.path")
    from pyarrow import ArrowException, parquet

    require_regular(path)
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = list(file.schema_arrow.names)
            named = _name_columns(names, options, path)
            index = _list_index_columns(file.schema_arrow)
            columns = [name for name in names if name in named or name not in index]
            if len(columns) == len(named):
                raise user_error("there is no column beside the label", file=str(path), key="data.path")
            start = 0
            # threads of pyarrow abort a process that ends while they start
            for batch in file.iter_batches(batch_size=_choose_batch_rows(file.metadata), use_threads=False):
                arrays = _convert_batch(batch, columns, named, start, path)
                features = tuple(name for name in columns if name not in named)
                is_table = arrays["x"].shape[1:] == (len(features),)
                yield Block(start, arrays, tuple(sorted(columns)), features if is_table else ())
                start += batch.num_rows
    except (ArrowException, OSError) as error:
        message = f"not a readable Parquet file: {first_line(error)}"
        raise user_error(message, file=str(path), key="data.path") from error


def _choose_batch_rows(metadata: Any) -> int:
    """Choose how many rows are read together, from the uncompressed bytes that the file states."""
    total = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    row_bytes = max(1, int(total) // max(1, int(metadata.num_rows)))
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // row_bytes))


def _name_columns(columns: Sequence[str], options: UserDataOptions, path: Path) -> dict[str, str]:
    """Map the columns that are no inputs to the names of their arrays."""
    named = dict.fromkeys(options.targets, "y") | ({options.group: options.group} if options.group else {})
    named |= {"split": "split"} if options.has_split else {}
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise user_error(f'column "{twice}" appears twice', file=str(path), key="data.path")
    for name in named:
        if name not in columns:
            hint = did_you_mean(name, columns) or f"columns: {list_columns(columns)}"
            raise user_error(f'there is no column "{name}"', file=str(path), key="data.target", hint=hint)
    return named


def _list_index_columns(schema: Any) -> set[str]:
    """List the columns that hold the index of a pandas table: they number its rows, and are no inputs."""
    metadata: dict[str, Any] = schema.pandas_metadata or {}
    return {name for name in metadata.get("index_columns", ()) if isinstance(name, str)}


def _convert_batch(batch: Any, columns: Sequence[str], named: dict[str, str], start: int, path: Path) -> dict[str, Any]:
    features = [name for name in columns if name not in named]
    targets = [name for name, key in named.items() if key == "y"]
    arrays = {key: _convert_labels(batch.column(name), name, start, path) for name, key in named.items() if key != "y"}
    if len(targets) == 1 and _is_list(batch.column(targets[0]).type):
        arrays["y"] = _convert_feature(batch.column(targets[0]), targets[0], start, path)
    else:
        columns_of_y = [_convert_labels(batch.column(name), name, start, path) for name in targets]
        arrays["y"] = columns_of_y[0] if len(targets) == 1 else np.stack(columns_of_y, 1)
    converted = [_convert_feature(batch.column(name), name, start, path) for name in features]
    lists = [name for name, values in zip(features, converted, strict=True) if values.ndim > 1]
    if lists and len(features) > 1:
        message = f'column "{lists[0]}" holds lists beside other columns'
        hint = f"keep one column of lists, or columns of numbers ({', '.join(features[:4])})"
        raise user_error(message, file=str(path), key="data.path", hint=hint)
    return arrays | {"x": converted[0] if lists else np.stack(converted, 1)}


def _convert_labels(column: Any, name: str, start: int, path: Path) -> Any:
    _refuse_nulls(column, name, start, path)
    array = np.array(_convert_decimals(column).to_pylist())
    if array.ndim != 1 or array.dtype.kind == "O":
        message = f'column "{name}" holds {column.type}, not one number or text a row'
        raise user_error(message, file=str(path), key="data.path", hint="convert it to numbers or text")
    return array


def _convert_feature(column: Any, name: str, start: int, path: Path) -> Any:
    """Convert a column of numbers, or of lists of one shape, to an array (n, ...)."""
    import pyarrow as pa

    _refuse_nulls(column, name, start, path)
    if isinstance(column.type, pa.FixedShapeTensorType):
        _refuse_nulls(column.storage.flatten(), name, start, path, max(1, math.prod(column.type.shape)))
        return column.to_numpy_ndarray()
    shape = [len(column)]
    while _is_list(column.type):
        lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
        if not len(lengths):
            break
        differing = np.flatnonzero(lengths != lengths[0])
        if differing.size:
            row = start + int(differing[0]) // max(1, math.prod(shape[1:]))
            message = f'row {row}: the list of column "{name}" has {lengths[differing[0]]} values, not {lengths[0]}'
            raise user_error(message, file=str(path), key="data.path", hint="all rows need one shape")
        shape.append(int(lengths[0]))
        column = column.flatten()
        _refuse_nulls(column, name, start, path, max(1, math.prod(shape[1:])))
    column = _convert_decimals(column)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        message = f'column "{name}" holds {column.type}, not numbers'
        raise user_error(message, file=str(path), key="data.path", hint="drop or encode the column")
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _convert_decimals(column: Any) -> Any:
    """Convert decimals to floating-point numbers; other columns stay as they are."""
    import pyarrow as pa

    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def _refuse_nulls(column: Any, name: str, start: int, path: Path, width: int = 1) -> None:
    """Refuse an empty cell; ``width`` is the number of values of a row."""
    if column.null_count:
        row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) // width
        message = f'row {row}: column "{name}" is empty'
        raise user_error(message, file=str(path), key="data.path", hint="fill the gaps, or drop such rows")
