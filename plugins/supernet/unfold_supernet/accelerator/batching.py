"""Batching on the accelerator: which layers process a batch together, so that the fewest bytes cross the interface.

Together, the weights of a layer are loaded once, but all maps of the batch need room. One input after the other, each
brings the weights again, but its map may stay on chip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_supernet._types import BoolArray, IntArray


def count_crossing_bytes(maps: IntArray, joint: BoolArray, batch: int, streaming: int) -> IntArray:
    """Count the bytes of a batch's activation maps that do not fit on chip and cross the interface once.

    Args:
        maps: Bytes of one input's map, by layer.
        joint: Whether the layer processes the batch together, so that all maps exist at a time.
        batch: Inputs in the batch.
        streaming: Bytes of the streaming buffer.

    Returns:
        Bytes by layer.
    """
    resident_alone = np.where(maps > streaming, 0, batch)
    resident = np.where(joint, streaming // np.maximum(maps, 1), resident_alone)
    crossing: IntArray = maps * np.maximum(0, batch - resident)
    return crossing


def choose_joint_layers(
    weights: IntArray, inputs: IntArray, outputs: IntArray, batch: int, streaming: int
) -> BoolArray:
    """Choose the layers that process a batch together so that the fewest bytes cross; exact, by dynamic programming.

    Args:
        weights: Bytes of weights, by layer in execution order.
        inputs: Bytes of one input map, by layer.
        outputs: Bytes of one output map, by layer.
        batch: Inputs in the batch.
        streaming: Bytes of the streaming buffer.

    Returns:
        By layer, whether it processes the batch together. A map between two layers counts for the entire batch if
        either of them does.
    """
    if batch == 1:
        return np.zeros(len(weights), bool)
    modes = (np.zeros(len(weights) - 1, bool), np.ones(len(weights) - 1, bool))
    written, read = (
        [count_crossing_bytes(maps, joint, batch, streaming) for joint in modes] for maps in (outputs[:-1], inputs[1:])
    )
    between = list(zip((written[0] + read[0]).tolist(), (written[1] + read[1]).tolist(), strict=True))
    loads = [(int(weight) * batch, int(weight)) for weight in weights]
    costs, choices = list(loads[0]), []
    for load, maps in zip(loads[1:], between, strict=True):
        # by this layer's mode: cost of reaching it from a layer in single and in joint mode
        steps = [[cost + maps[max(mode, joint)] for mode, cost in enumerate(costs)] for joint in (0, 1)]
        choices.append([int(step[1] < step[0]) for step in steps])
        costs = [min(step) + load_bytes for step, load_bytes in zip(steps, load, strict=True)]
    return _trace_back(choices, int(costs[1] < costs[0]))


def _trace_back(choices: Sequence[Sequence[int]], final_mode: int) -> BoolArray:
    """Follow the stored choices from the final layer to the first."""
    modes = [final_mode]
    for choice in reversed(choices):
        modes.append(choice[modes[-1]])
    return np.array(modes[::-1], bool)
