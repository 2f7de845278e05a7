"""Candidates for the cache and refills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import MACHINE, build_tables, random_family
from unfold_supernet.accelerator import (
    subgraph_cache,
)
from unfold_supernet.accelerator.layers import count_hits, count_weights


def _cells(graph: np.ndarray) -> np.ndarray:
    # layers x kernels x depth; all windows of these families are 3 x 3
    at = np.arange(200)
    return (at[None, :, None] < graph[:, 0, None, None]) & (at[None, None, :] < graph[:, 1, None, None])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 400_000), st.sampled_from([1, 2, 4]))
def test_candidates_fit_the_buffer_and_contain_the_core(seed: int, room: int, weight: int) -> None:
    """Every candidate fits the buffer, and contains weights outside the core only if it contains the entire core."""
    family = random_family(seed)
    machine = replace(MACHINE, persistent_bytes=room, weight_bytes=weight)
    _known, found, _works = build_tables(family, machine)
    core = int(count_weights(family.core).sum())
    for column in found:
        held = int(count_weights(column.graph).sum())
        inside = int(count_hits(family.core, column.graph).sum())
        assert held * machine.weight_bytes <= room
        assert inside in {held, core}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1000, 400_000))
def test_refill_weights_are_exact(seed: int, room: int) -> None:
    """A refill loads what the new candidate has and the old one lacks; in passing, less what the last subnet loaded."""
    family = random_family(seed)
    _known, found, works = build_tables(family, replace(MACHINE, persistent_bytes=room))
    plain, passing = subgraph_cache.count_refill_weights(found), subgraph_cache.count_refill_weights(found, works)
    net = _cells(works[0].subnet.graph)
    for i, old in enumerate(found[:3]):
        for j, new in enumerate(found[:3]):
            brought = _cells(new.graph) & ~_cells(old.graph)
            assert plain[i, j] == 9 * brought.sum()
            assert passing[0, i, j] == 9 * (brought & ~net).sum()
