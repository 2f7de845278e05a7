"""Escalation: a small net answers, and what it is unsure of is asked again of the largest one.

A pair of nets is one more choice for a rule: it has an accuracy of its own, which lies between theirs or above, and
the time of the small net with that of the largest one for as many as are unsure.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Ints
from unfold_supernet.scheduling.policies import Served
from unfoldkit.safe_io.arrays import read_npz

SPREAD = 2.0
"""Standard deviations of the number of unsure answers in a batch that its time has room for."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What each net said of the test rows: classes and confidences [nets, rows], and the labels."""

    names: tuple[str, ...]
    said: Ints
    confidence: NDArray[np.float32]
    y: Ints


def packed(answered: Answered) -> bytes:
    """Return the answers as an NPZ archive of plain arrays."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        names=np.array(answered.names),
        said=answered.said.astype(np.int32),
        confidence=answered.confidence.astype(np.float32),
        y=answered.y.astype(np.int32),
    )
    return stream.getvalue()


def unpacked(content: bytes) -> Answered:
    """Return the answers of an archive; loading it executes nothing."""
    stored = read_npz(content)
    said, y = stored["said"].astype(np.int64), stored["y"].astype(np.int64)
    return Answered(tuple(map(str, stored["names"])), said, stored["confidence"], y)


def pairs(nets: Sequence[Served], answered: Answered, below: float) -> dict[Served, Mapping[int, float | None]]:
    """Return every smaller net with the most accurate one behind it, and the sensitivity of the pair by class.

    ``below`` is the confidence under which an answer is asked again; it is the caller's, never fitted to these rows.
    """
    places = {name: at for at, name in enumerate(answered.names)}
    large = max(nets, key=lambda net: net.accuracy)
    found: dict[Served, Mapping[int, float | None]] = {}
    for net in nets:
        if net is large:
            continue
        small, big = places[net.name], places[large.name]
        unsure = answered.confidence[small] < below
        said = np.where(unsure, answered.said[big], answered.said[small])
        right = said == answered.y
        sensitivity = {int(c): float(right[answered.y == c].mean()) for c in np.unique(answered.y)}
        pair = Served(f"{net.name}>{large.name}", float(right.mean()) * 100, net.seconds, large.name, unsure.mean())
        found[timed(pair, net, large)] = sensitivity
    return found


def timed(pair: Served, small: Served, large: Served) -> Served:
    """Return a pair with the seconds of the small net and of the large one for those who are unsure.

    There is room for more of these than on average.
    """
    seconds, share = [], float(pair.unsure)
    for size, time in small.seconds:
        count = math.ceil(size * share + SPREAD * math.sqrt(size * share * (1 - share)))
        seconds.append((size, time + (large.takes(max(1, min(size, count))) if share > 0 else 0.0)))
    return replace(pair, seconds=tuple(seconds), unsure=share)


def first(net: Served) -> str:
    """Return the name of the net that answers first."""
    return net.name.partition(">")[0]
