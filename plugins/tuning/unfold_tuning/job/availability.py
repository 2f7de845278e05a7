"""The availability of spot instances by zone, as a log of probes: what a market is modelled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfoldkit.api import csv_rows, did_you_mean, user_error

TRAILING_S = 3 * 86400.0
"""A market is modelled from this much of its log: older prices and hazards do not predict its cost."""
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AvailabilityLog:
    """Whether an instance could be had, or was kept, in each zone at each tick.

    Attributes:
        zones: Names of the zones.
        tick_s: Seconds between two ticks.
        states: One character a tick, ``1`` if available, for each zone; the last tick is the present.
    """

    zones: tuple[str, ...]
    tick_s: float
    states: tuple[str, ...]

    def to_array(self) -> BoolArray:
        """Return the states: [zones, ticks]."""
        return np.array([[state == "1" for state in states] for states in self.states], dtype=bool)

    def select_trailing(self, seconds: float = TRAILING_S) -> AvailabilityLog:
        """Return the last part of the log."""
        ticks = max(2, round(seconds / self.tick_s))
        return AvailabilityLog(self.zones, self.tick_s, tuple(states[-ticks:] for states in self.states))


def read_availability(path: Path, columns: Sequence[str], tick_s: float, key: str) -> AvailabilityLog:
    """Read a log: one row a tick, one column a zone, 1 where an instance was available and 0 where not.

    Raises:
        UnfoldError: A column is missing, a cell is neither 0 nor 1, or there are fewer than two ticks.
    """
    states: list[list[str]] = [[] for _ in columns]
    for row in csv_rows(path):
        for index, column in enumerate(columns):
            if column not in row.cells:
                hint = did_you_mean(column, list(row.cells)) or f"there are {', '.join(list(row.cells)[:12])}"
                raise user_error(f"no column {column!r}", file=str(path), key=key, hint=hint)
            if row[column] not in ("0", "1"):
                raise row.wrong(f"{row[column][:20]!r} is neither 0 nor 1", column, "1: an instance was available")
            states[index].append(row[column])
    if not states or len(states[0]) < 2:
        raise user_error("a log of availability needs at least two ticks", file=str(path), key=key)
    return AvailabilityLog(tuple(columns), tick_s, tuple("".join(items) for items in states))
