"""Routes of queries through a running pipeline: the same items and edges that the estimator simulates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import BoolArray, IndexArray
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.sample import Sample, Visits, draw_sample

Item = tuple[int, int]
"""A stage and the number of an item there."""
ROUTES_PER_DRAW = 256


def follow_every_flow(_child: int) -> bool:
    """Return true: the routes alone decide."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """The paths of the items of some queries.

    Attributes:
        pipeline: The stages.
        sample: The visits of the queries; a flow with a condition is in it for every query if ``tests_values``.
        pending_flows: Flows that each item of a join still waits for, by stage; ``None`` where nothing joins.
        is_reached: Whether a flow has reached each item of a join, by stage; ``None`` where nothing joins.
        open_items: Items of each query that are not done, shape (queries,).
        tests_values: Whether conditions on the output decide, as in a service, or the sample, as in a replay.
    """

    pipeline: Pipeline
    sample: Sample
    pending_flows: tuple[IndexArray | None, ...]
    is_reached: tuple[BoolArray | None, ...]
    open_items: IndexArray
    tests_values: bool = False

    def find_entries(self, query: int) -> Iterator[Item]:
        """Yield the items with which a query enters."""
        for index, stage in enumerate(self.pipeline.stages):
            if not stage.parents:
                start, stop = np.searchsorted(self.sample.visits[index].query, [query, query + 1])
                yield from ((index, item) for item in range(int(start), int(stop)))

    def query_of(self, item: Item) -> int:
        """Return the index of the query that an item, (stage, index of the visit), belongs to."""
        return int(self.sample.visits[item[0]].query[item[1]])

    def list_flows(self, item: Item) -> Iterator[Item]:
        """Yield the items to which a flow from ``item`` leads."""
        stage, number = item
        for child in self.pipeline.children(stage):
            visits = self.sample.visits[child]
            first = int(visits.first_child[stage][number])
            yield from ((child, copy) for copy in range(first, first + int(visits.child_count[stage][number])))

    def release_children(self, item: Item, follows: Callable[[int], bool] = follow_every_flow) -> Iterator[Item]:
        """Yield the items that become ready when ``item`` is done. Call it once per item, and exhaust it.

        A join waits until each of its flows has come or was not followed, and runs if one has come. What no flow
        reaches is skipped, with everything behind it: the dead-path elimination of WS-BPEL 2.0.

        Args:
            item: The item that is done.
            follows: Whether its flow to a stage is followed.
        """
        for child, copy in self.list_flows(item):
            yield from self._resolve_flow(child, copy, is_followed=follows(child))

    def complete_item(self, item: Item) -> bool:
        """Count an item as done and return whether it was the last of its query."""
        query = self.query_of(item)
        self.open_items[query] -= 1
        return bool(self.open_items[query] == 0)

    def _resolve_flow(self, child: int, copy: int, *, is_followed: bool) -> Iterator[Item]:
        pending, reached = self.pending_flows[child], self.is_reached[child]
        if pending is not None and reached is not None:
            pending[copy] -= 1
            reached[copy] |= is_followed
            if pending[copy] > 0:
                return
            is_followed = bool(reached[copy])
        if is_followed:
            yield child, copy
            return
        self.open_items[self.query_of((child, copy))] -= 1
        for grandchild, number in self.list_flows((child, copy)):
            yield from self._resolve_flow(grandchild, number, is_followed=False)


@dataclass(slots=True)
class RouteDrawer:
    """Draws routes for queries that arrive one by one; a batch of draws costs as much as a single draw.

    A flow with a condition is drawn for every query, because its output decides.
    """

    pipeline: Pipeline
    rng: np.random.Generator
    routes: Routes | None = None
    next_query: int = 0

    def draw_next(self) -> tuple[Routes, int]:
        """Return the routes that hold the next query, and its number there."""
        if self.routes is None or self.next_query == self.routes.sample.size:
            sample = draw_sample(_open_conditions(self.pipeline), np.zeros(ROUTES_PER_DRAW), self.rng)
            self.routes = replace(build_routes(self.pipeline, sample), tests_values=True)
            self.next_query = 0
        self.next_query += 1
        return self.routes, self.next_query - 1


def build_routes(pipeline: Pipeline, sample: Sample) -> Routes:
    """Return the routes of a sample, with no item done yet; its visits decide every flow."""
    open_items = np.zeros(sample.size, dtype=np.int32)
    pending: list[IndexArray | None] = []
    for visits in sample.visits:
        np.add.at(open_items, visits.query, 1)
        pending.append(count_flows(visits) if len(visits.first_child) > 1 else None)
    reached = tuple(None if flows is None else np.zeros(flows.size, dtype=np.bool_) for flows in pending)
    return Routes(
        pipeline=pipeline, sample=sample, pending_flows=tuple(pending), is_reached=reached, open_items=open_items
    )


def count_flows(visits: Visits) -> IndexArray:
    """Return how many flows each item of a join waits for, shape (items,)."""
    flows = np.zeros(visits.query.size, dtype=np.int32)
    for parent, count in visits.child_count.items():
        np.add.at(flows, visits.first_child[parent][count > 0], 1)
    return flows


def _open_conditions(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with a share of 1 on each flow that has a condition."""
    stages = (
        replace(
            stage,
            parents=tuple(edge if edge.condition is None else replace(edge, share=1.0) for edge in stage.parents),
        )
        for stage in pipeline.stages
    )
    return Pipeline(tuple(stages))
