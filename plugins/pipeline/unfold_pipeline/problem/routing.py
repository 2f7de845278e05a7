"""Routes of queries through a running pipeline: the same items and edges that the estimator simulates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import IndexArray
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.sample import Sample, Visits, draw_sample

Item = tuple[int, int]
"""A stage and the number of an item there."""
ROUTES_PER_DRAW = 256


@dataclass(frozen=True, slots=True)
class Routes:
    """The paths of the items of some queries.

    Attributes:
        pipeline: the stages.
        sample: the visits of the queries.
        pending_flows: flows that each item of a join still waits for, by stage; ``None`` where nothing joins.
        open_items: items of each query that are not done, shape (queries,).
    """

    pipeline: Pipeline
    sample: Sample
    pending_flows: tuple[IndexArray | None, ...]
    open_items: IndexArray

    def find_entries(self, query: int) -> Iterator[Item]:
        """Yield the items with which a query enters."""
        for index, stage in enumerate(self.pipeline.stages):
            if not stage.parents:
                start, stop = np.searchsorted(self.sample.visits[index].query, [query, query + 1])
                yield from ((index, item) for item in range(int(start), int(stop)))

    def query_of(self, item: Item) -> int:
        """Return the query of an item."""
        return int(self.sample.visits[item[0]].query[item[1]])

    def release_children(self, item: Item) -> Iterator[Item]:
        """Yield the items that become ready when ``item`` is done. Call it once per item."""
        stage, number = item
        for child in self.pipeline.children(stage):
            visits = self.sample.visits[child]
            first = int(visits.first_child[stage][number])
            for copy in range(first, first + int(visits.child_count[stage][number])):
                pending = self.pending_flows[child]
                if pending is not None:
                    pending[copy] -= 1
                if pending is None or pending[copy] == 0:
                    yield child, copy

    def complete_item(self, item: Item) -> bool:
        """Count an item as done and return whether it was the last of its query."""
        query = self.query_of(item)
        self.open_items[query] -= 1
        return bool(self.open_items[query] == 0)


@dataclass(slots=True)
class RouteDrawer:
    """Draws routes for queries that arrive one by one; a batch of draws costs as much as a single draw."""

    pipeline: Pipeline
    rng: np.random.Generator
    routes: Routes | None = None
    next_query: int = 0

    def draw_next(self) -> tuple[Routes, int]:
        """Return the routes that hold the next query, and its number there."""
        if self.routes is None or self.next_query == self.routes.sample.size:
            sample = draw_sample(self.pipeline, np.zeros(ROUTES_PER_DRAW), self.rng)
            self.routes, self.next_query = build_routes(self.pipeline, sample), 0
        self.next_query += 1
        return self.routes, self.next_query - 1


def build_routes(pipeline: Pipeline, sample: Sample) -> Routes:
    """Return the routes of a sample, with no item done yet."""
    open_items = np.zeros(sample.size, dtype=np.int32)
    pending: list[IndexArray | None] = []
    for visits in sample.visits:
        np.add.at(open_items, visits.query, 1)
        pending.append(count_flows(visits) if len(visits.first_child) > 1 else None)
    return Routes(pipeline, sample, tuple(pending), open_items)


def count_flows(visits: Visits) -> IndexArray:
    """Return how many flows each item of a join waits for, shape (items,)."""
    flows = np.zeros(visits.query.size, dtype=np.int32)
    for parent, count in visits.child_count.items():
        np.add.at(flows, visits.first_child[parent][count > 0], 1)
    return flows
