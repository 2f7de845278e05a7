"""Columns of numbers: their names in messages, and whether single precision, in which networks compute, holds them.

Every value of an input counts as a column, a pixel too: (n, channels, *size) are channels times size columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet._types import FloatArray
from unfoldkit.api import user_error

MAX_ROUNDING = 0.1
"""Largest step between numbers of single precision, as a fraction of the standard deviation of the values."""
ROUND_OFF = 1e-12
"""Deviation, as a fraction of the largest value, up to which the values of a column differ by round-off alone."""
BLOCK_VALUES = 1 << 22
"""Values that are converted to double precision together."""


@dataclass(slots=True)
class ColumnSpread:
    """Mean and deviation of each column in double precision, over blocks of rows (Chan et al., Am. Stat. 1983).

    Attributes:
        size: Shape of a row.
        rows: Rows so far.
        mean: By column.
        squares: Sum of squared deviations from the mean, by column.
        largest: Largest absolute value, by column.
    """

    size: tuple[int, ...] = ()
    rows: int = 0
    mean: FloatArray | float = 0.0
    squares: FloatArray | float = 0.0
    largest: FloatArray | float = 0.0

    def add(self, values: Any) -> None:
        """Add rows (n, *size) of finite numbers; types that single precision holds exactly have nothing to lose."""
        self.size, columns = values.shape[1:], math.prod(values.shape[1:])
        if np.can_cast(values.dtype, np.float32, "safe") or not columns:
            return
        height = max(1, BLOCK_VALUES // columns)
        for start in range(0, len(values), height):
            block = values[start : start + height].reshape(-1, columns).astype(np.float64)
            mean, total = block.mean(axis=0), self.rows + len(block)
            shift = mean - self.mean
            deviations = ((block - mean) ** 2).sum(axis=0)
            self.squares = self.squares + deviations + shift**2 * (self.rows * len(block) / total)
            self.mean = self.mean + shift * (len(block) / total)
            self.largest = np.maximum(self.largest, np.abs(block).max(axis=0))
            self.rows = total

    def check(self, array: str, columns: Sequence[str], file: str, key: str = "data.path") -> None:
        """Check that single precision does not round away how the values of a column differ.

        Args:
            array: Name of the array.
            columns: Names of the columns; none where they have no names.
            file: The file, for the error.
            key: Key of the spec, for the error.

        Raises:
            UnfoldError: It rounds one away.
        """
        if not self.rows:
            return
        deviations, means = np.sqrt(np.asarray(self.squares) / self.rows), np.asarray(self.mean)
        largest = np.asarray(self.largest)
        steps = np.spacing(largest.astype(np.float32))
        for column in np.flatnonzero((deviations > ROUND_OFF * largest) & (steps > MAX_ROUNDING * deviations)):
            message = f"{name_column(array, columns, self.size, int(column))} differs by {deviations[column]:.3g}"
            message += f" around {means[column]:.6g}, where single precision has steps of {steps[column]:.3g}"
            raise user_error(message, file=file, key=key, hint="subtract a constant from the column, or leave it out")


def name_column(array: str, columns: Sequence[str], size: Sequence[int], index: int) -> str:
    """Name a column of an array for a message: by its name, or else by its index without axes of length 1."""
    if columns:
        return f'column "{columns[index]}"'
    position = zip(np.unravel_index(index, size) if size else (), size, strict=True)
    kept = ", ".join(str(at) for at, length in position if length > 1)
    return f"{array}[:, {kept or 0}]" if size else array
