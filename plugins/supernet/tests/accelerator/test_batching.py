"""Joint layers of a batch."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.accelerator.batching import choose_joint_layers

Shapes = tuple[list[int], list[int], list[int]]


@st.composite
def chains(draw: st.DrawFn) -> Shapes:
    """Draw weights, input and output maps of a few consecutive layers, in bytes."""
    count = draw(st.integers(1, 6))
    weights, edges = (draw(st.lists(st.integers(1, 500), min_size=n, max_size=n)) for n in (count, count + 1))
    return weights, edges[:-1], edges[1:]


def bytes_of(chain: Shapes, together: tuple[bool, ...], batch: int, room: int) -> int:
    """Count the crossing bytes map by map, with one map after the other on chip."""
    weights, inputs, outputs = chain
    total = sum(weight * (1 if joint else batch) for weight, joint in zip(weights, together, strict=True))
    for at in range(len(weights) - 1):
        # maps that are there at a time: all of the batch, or the one of the input at work
        at_a_time = batch if together[at] or together[at + 1] else 1
        for size in (outputs[at], inputs[at + 1]):
            left = sum(1 for place in range(at_a_time) if (place + 1) * size > room)
            total += size * left * (batch // at_a_time)
    return total


@settings(max_examples=60, deadline=None)
@given(chains(), st.integers(1, 9), st.integers(0, 1500))
def test_joint_layers_move_the_fewest_bytes(chain: Shapes, batch: int, room: int) -> None:
    """Among all choices of joint layers, the chosen one moves the fewest bytes."""
    found = choose_joint_layers(*(np.array(part) for part in chain), batch, room)
    ways = itertools.product((False, True), repeat=len(chain[0]))
    assert bytes_of(chain, tuple(found.tolist()), batch, room) == min(bytes_of(chain, way, batch, room) for way in ways)
