"""The way of queries through a running pipeline: the same items and edges that the estimator simulates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.sample import Sample, draw

Counts = NDArray[np.int32]
Item = tuple[int, int]
AHEAD = 256


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the items of some queries go. ``owed`` counts the flows that a join waits for; ``left`` open items."""

    pipeline: Pipeline
    sample: Sample
    owed: tuple[Counts | None, ...]
    left: Counts

    def entries(self, query: int) -> Iterator[Item]:
        """Yield the items with which a query enters."""
        for index, stage in enumerate(self.pipeline.stages):
            if not stage.parents:
                owner = self.sample.visits[index].owner
                low, high = np.searchsorted(owner, [query, query + 1])
                yield from ((index, item) for item in range(int(low), int(high)))

    def query(self, item: Item) -> int:
        """Return the query of an item."""
        return int(self.sample.visits[item[0]].owner[item[1]])

    def after(self, item: Item) -> Iterator[Item]:
        """Yield the items that can be served now that ``item`` is done; to be asked once an item."""
        stage, number = item
        for child in self.pipeline.children(stage):
            visits = self.sample.visits[child]
            first = int(visits.first[stage][number])
            for copy in range(first, first + int(visits.count[stage][number])):
                owed = self.owed[child]
                if owed is not None:
                    owed[copy] -= 1
                if owed is None or owed[copy] == 0:
                    yield child, copy

    def finished(self, item: Item) -> bool:
        """Count an item as done; whether it was the last of its query."""
        query = self.query(item)
        self.left[query] -= 1
        return bool(self.left[query] == 0)


@dataclass(slots=True)
class Ways:
    """The ways of queries that come one by one, drawn many at a time: one alone takes as long as hundreds together."""

    pipeline: Pipeline
    rng: np.random.Generator
    drawn: Routes | None = None
    number: int = 0

    def next(self) -> tuple[Routes, int]:
        """Return the routes that hold the next query, and its number there."""
        if self.drawn is None or self.number == self.drawn.sample.size:
            self.drawn, self.number = routes(self.pipeline, draw(self.pipeline, np.zeros(AHEAD), self.rng)), 0
        self.number += 1
        return self.drawn, self.number - 1


def routes(pipeline: Pipeline, sample: Sample) -> Routes:
    """Return the routes of a sample."""
    left = np.zeros(sample.size, dtype=np.int32)
    owed: list[Counts | None] = []
    for visits in sample.visits:
        np.add.at(left, visits.owner, 1)
        owed.append(_owed(visits.owner.size, visits.first, visits.count) if len(visits.first) > 1 else None)
    return Routes(pipeline, sample, tuple(owed), left)


def _owed(size: int, first: object, count: object) -> Counts:
    flows = np.zeros(size, dtype=np.int32)
    if isinstance(first, dict) and isinstance(count, dict):
        for parent, number in count.items():
            np.add.at(flows, first[parent][number > 0], 1)
    return flows
