"""Compiled functions as Python calls them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unfoldkit.jit import compiled, without_dispatch


class Pair(NamedTuple):
    """Two arrays."""

    first: np.ndarray
    second: np.ndarray


@compiled
def weighed(pair: Pair, place: int, weight: float) -> float:
    """Return what the first has at a place, weighed, and add one to the second there."""
    pair.second[place] += 1
    return pair.first[place] * weight


def test_a_direct_call_does_what_the_compiled_one_does() -> None:
    """Every call, the first and those after it, gives the compiled function's answer and changes the same arrays."""
    pair, quick = Pair(np.arange(4.0), np.zeros(4, np.int64)), without_dispatch(weighed)
    assert [quick(pair, at, 0.5) for at in (3, 2, 2)] == [weighed(pair, at, 0.5) for at in (3, 2, 2)]
    assert pair.second.tolist() == [0, 0, 4, 2]


def test_a_direct_call_takes_arrays_of_another_length() -> None:
    """Arrays may grow between calls."""
    quick = without_dispatch(weighed)
    assert [quick(Pair(np.full(size, 2.0), np.zeros(size, np.int64)), 0, 1.0) for size in (1, 8)] == [2.0, 2.0]


def test_compiled_callers_share_one_version() -> None:
    """A constant, a short integer and a long one ask for the same machine code: each version costs a second."""

    def plain(array: np.ndarray, place: int) -> float:
        return float(array[place])

    def caller(array: np.ndarray, short: np.int32) -> float:
        return inner(array, 1) + inner(array, short) + inner(array, array.size - 1)

    inner = compiled(plain)
    assert compiled(caller)(np.arange(4.0), np.int32(2)) == 6.0
    assert len(inner.signatures) == 1  # type: ignore[attr-defined]


def test_a_direct_call_is_not_code_that_another_function_asked_for() -> None:
    """What another compiled function calls with a constant is no constant to a direct call."""

    def plain(value: int, phase: int) -> int:
        return value if phase == 9 else -value

    def caller(value: int) -> int:
        return inner(value, 9)

    inner = compiled(plain)
    assert compiled(caller)(1) == 1
    quick = without_dispatch(inner)
    assert [quick(1, phase) for phase in (3, 3, 9)] == [-1, -1, 1]
