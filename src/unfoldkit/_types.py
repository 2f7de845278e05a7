"""Array types of the package; shapes and units are documented where an array is passed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
FlagArray = NDArray[np.uint8]
"""Zeros and ones, in the type that compiled code reads and writes."""
