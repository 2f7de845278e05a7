"""Array types shared by all modules of the plugin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ShareModel = Callable[[Float32Array, Float32Array], Float32Array]
"""From inputs (n, *size) and extra numbers (n, extra) to probabilities (n, classes)."""
