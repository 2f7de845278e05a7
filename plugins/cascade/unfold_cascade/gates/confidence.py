"""Confidence functions q: from class probabilities to one number in [0, 1]."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray


def max_probability(probabilities: FloatArray) -> FloatArray:
    """Return the probability of the likeliest class.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [1/C, 1]. For two classes ``max(p, 1 - p)``.

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    top: FloatArray = np.maximum.reduce(_checked(probabilities), axis=1)
    return top


def margin(probabilities: FloatArray) -> FloatArray:
    """Return the lead of the likeliest class over the second one.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [0, 1]. For two classes ``|2p - 1|``.

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    top = np.partition(_checked(probabilities), -2, axis=1)[:, -2:]
    return np.clip(top[:, 1] - top[:, 0], 0.0, 1.0)


def entropy(probabilities: FloatArray) -> FloatArray:
    """Return one minus the normalised entropy, ``1 - H(p) / log C``.

    For two classes it orders rows as ``max_probability`` and ``margin`` do, as far as floats can tell.

    Args:
        probabilities: (n, C) class probabilities, C >= 2, each row summing to one.

    Returns:
        (n,) confidence in [0, 1].

    Raises:
        ValueError: The array is not (n, C) with C >= 2.
    """
    p = _checked(probabilities)
    information = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)
    confidence: FloatArray = np.clip(1.0 + information / np.log(p.shape[1]), 0.0, 1.0)
    return confidence


def _checked(probabilities: FloatArray) -> FloatArray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"probabilities must be (n, C) with C >= 2, not {p.shape}")
    return p
