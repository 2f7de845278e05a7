"""Array types shared by all modules of the plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = NDArray[np.floating[Any]]
ShareModel = Callable[[Numbers, Numbers], Float32Array]
"""From inputs (n, *size) and extra numbers (n, extra) to outputs (n, outputs): probabilities, or real values.

A model computes in its own precision.
"""
Task = Literal["classes", "labels", "values"]
"""One class a row, several labels a row (0 or 1 each), or real values."""
