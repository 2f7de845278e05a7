"""Confidence functions: from class probabilities to one number in [0, 1]."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray


def max_probability(probabilities: FloatArray) -> FloatArray:
    """Compute the probability of the most likely class.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [1/C, 1]. For two classes ``max(p, 1 - p)``.

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    top: FloatArray = np.maximum.reduce(_check_probabilities(probabilities), axis=1)
    return top


def margin(probabilities: FloatArray) -> FloatArray:
    """Compute the lead of the most likely class over the second one.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [0, 1]. For two classes ``|2p - 1|``.

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    top = np.partition(_check_probabilities(probabilities), -2, axis=1)[:, -2:]
    return np.clip(top[:, 1] - top[:, 0], 0.0, 1.0)


def entropy(probabilities: FloatArray) -> FloatArray:
    """Compute one minus the normalized entropy, ``1 - H(p) / log C``.

    For two classes it orders rows as ``max_probability`` and ``margin`` do, up to rounding.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [0, 1].

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    p = _check_probabilities(probabilities)
    information = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)
    confidence: FloatArray = np.clip(1.0 + information / np.log(p.shape[1]), 0.0, 1.0)
    return confidence


def _check_probabilities(probabilities: FloatArray) -> FloatArray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"probabilities must be (n, C) with C >= 2, not {p.shape}")
    return p
