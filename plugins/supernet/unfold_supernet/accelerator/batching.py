"""Several inputs of one net: together, weights loaded once a layer, or one after the other, maps kept on chip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Ints

Flags = NDArray[np.bool_]


def crossing(maps: Ints, together: Flags, batch: int, streaming: int) -> Ints:
    """Return the bytes of a batch's maps that cross the interface once: those that find no room on chip.

    ``maps`` are bytes of one input's map by layer; where inputs go ``together`` all their maps are there at a time.
    """
    alone = np.where(maps > streaming, 0, batch)
    room = np.where(together, streaming // np.maximum(maps, 1), alone)
    result: Ints = maps * np.maximum(0, batch - room)
    return result


def joined(weights: Ints, inputs: Ints, outputs: Ints, batch: int, streaming: int) -> Flags:
    """Return by layer whether a batch goes through it together, so that as few bytes as can be cross the interface.

    All in bytes, of layers in a row. Where it does not, each input brings the weights again. Maps between two layers
    are those of the whole batch if either has it together. Exact, by dynamic programming over the layers.
    """
    if batch == 1:
        return np.zeros(len(weights), bool)
    ways = (np.zeros(len(weights) - 1, bool), np.ones(len(weights) - 1, bool))
    written, read = ([crossing(maps, way, batch, streaming) for way in ways] for maps in (outputs[:-1], inputs[1:]))
    between = list(zip((written[0] + read[0]).tolist(), (written[1] + read[1]).tolist(), strict=True))
    loads = [(int(weight) * batch, int(weight)) for weight in weights]
    costs, came = list(loads[0]), []
    for load, maps in zip(loads[1:], between, strict=True):
        # by whether this layer is joint, what it costs to come from one that is not, and from one that is
        steps = [[cost + maps[max(before, now)] for before, cost in enumerate(costs)] for now in (0, 1)]
        came.append([int(step[1] < step[0]) for step in steps])
        costs = [min(step) + one for step, one in zip(steps, load, strict=True)]
    return _back(came, int(costs[1] < costs[0]))


def _back(came: Sequence[Sequence[int]], last: int) -> Flags:
    """Return the choices that led to the last one."""
    found = [last]
    for before in reversed(came):
        found.append(before[found[-1]])
    return np.array(found[::-1], bool)
