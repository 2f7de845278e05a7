"""Aliases of the array types that the package passes around; shapes and units stand with each parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
CountArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]
RowArray = NDArray[np.float32]
Tensors = NDArray[Any] | dict[str, NDArray[Any]]
"""What a model reads or returns: one tensor, or several by name; the first axis of each is the batch, or absent."""
