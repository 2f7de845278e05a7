"""Read the columns of Parquet files as the texts that a CSV file would hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from unfoldkit.errors import require_packages, user_error
from unfoldkit.safe_io.files import read_bytes

SUFFIX = ".parquet"


def read_parquet_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns of a Parquet file, and the cells of each as texts.

    Raises:
        UnfoldError: pyarrow is not installed, or the file is damaged.
    """
    require_packages("a Parquet file", "pyarrow", file=str(path))
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(read_bytes(path)))
        return list(table.column_names), [_to_texts(table.column(index)) for index in range(table.num_columns)]
    except pa.ArrowException as error:
        raise user_error(f"not a Parquet file: {str(error).splitlines()[0]}", file=str(path)) from error


def _to_texts(column: Any) -> list[str]:
    """Return the cells as a table of text has them: times in ISO 8601, lists and nulls empty."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        # Python's datetime has no nanoseconds
        column = column.cast(pa.timestamp("us", "UTC" if kind.tz else None), safe=False)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [""] * len(column)
    return ["" if value is None else str(value) for value in column.to_pylist()]
