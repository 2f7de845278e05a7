"""A sample of the traffic: arrival times, and which stages every query visits, fixed once for all plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.problem.pipeline import Pipeline, Stage

Times = NDArray[np.float64]
Items = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Visits:
    """The items of one stage, numbered by query (and, of one query, by parent item).

    ``owner`` is the query of each item, ``origin`` its arrival in s. ``first`` and ``count`` hold, for a parent, the
    children of each of its items; ``same`` says that the items are those of the only parent, one to one, and ``single``
    that no query has two items here.
    """

    owner: Items
    origin: Times
    first: Mapping[int, Items]
    count: Mapping[int, Items]
    same: bool = False
    single: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """Arrivals in s, sorted, and the visits of each stage."""

    arrivals: Times
    visits: tuple[Visits, ...]

    @property
    def size(self) -> int:
        """The number of queries."""
        return int(self.arrivals.size)

    @property
    def rate(self) -> float:
        """Queries a second over the span of the sample."""
        return self.size / max(float(self.arrivals[-1] - self.arrivals[0]), 1e-9)

    def share(self, stage: int) -> float:
        """Return the items of a stage for each query of the pipeline: the scale factor of InferLine."""
        return float(self.visits[stage].owner.size) / self.size


def draw(
    pipeline: Pipeline, arrivals: Times, rng: np.random.Generator, table: NDArray[np.int64] | None = None
) -> Sample:
    """Return a sample with routes drawn edge by edge, or taken row by row (again from the top) of a recorded table.

    ``table`` has shape (rows, stages): how many items of a query come to each stage.
    """
    visits: list[Visits] = []
    for index, stage in enumerate(pipeline.stages):
        wanted = None if table is None else np.resize(table[:, index], arrivals.size)
        here = _visits(stage, arrivals, visits, rng, wanted)
        visits.append(replace(here, single=bool((np.diff(here.owner) > 0).all())))
    return Sample(arrivals, tuple(visits))


def part(sample: Sample, low: int, high: int) -> Sample:
    """Return the queries from number ``low`` on and before ``high``, at their times and on their ways."""
    items = [np.searchsorted(visits.owner, [low, high]) for visits in sample.visits]
    return Sample(
        sample.arrivals[low:high],
        tuple(_part(visits, index, items, low) for index, visits in enumerate(sample.visits)),
    )


def _part(visits: Visits, index: int, items: Sequence[NDArray[np.int64]], low: int) -> Visits:
    own = slice(*items[index])
    above = {parent: slice(*items[parent]) for parent in visits.first}
    first = {parent: visits.first[parent][place] - np.int32(own.start) for parent, place in above.items()}
    count = {parent: visits.count[parent][place] for parent, place in above.items()}
    owner = visits.owner[own] - np.int32(low)
    return replace(visits, owner=owner, origin=visits.origin[own], first=first, count=count)


def with_recorded(pipeline: Pipeline, table: NDArray[np.int64]) -> Pipeline:
    """Return the pipeline with no share above that in recorded visits, shape (rows, stages).

    What is written as sure, as a share is where nothing is written, would else be taken as needed by every query.
    """
    return replace(pipeline, stages=tuple(_recorded(stage, i, table) for i, stage in enumerate(pipeline.stages)))


def _recorded(stage: Stage, index: int, table: NDArray[np.int64]) -> Stage:
    here = table[:, index]
    if not stage.parents:
        return replace(stage, share=min(stage.share, float((here > 0).mean())))
    joined = len(stage.parents) > 1
    shares = [min(edge.share, _went_on(table[:, edge.parent], here, joined=joined)) for edge in stage.parents]
    edges = tuple(replace(edge, share=share) for edge, share in zip(stage.parents, shares, strict=True))
    return replace(stage, parents=edges)


def _went_on(above: NDArray[np.int64], here: NDArray[np.int64], *, joined: bool) -> float:
    """Return the share of the items above that make one here; where flows join, all of a query make one."""
    came = np.where(here > 0, above, 0) if joined else np.minimum(above, here)
    return float(came.sum() / max(1, above.sum()))


def _visits(
    stage: Stage, arrivals: Times, above: list[Visits], rng: np.random.Generator, wanted: NDArray[np.int64] | None
) -> Visits:
    if not stage.parents:
        return _entered(stage, arrivals, rng, wanted)
    if len(stage.parents) == 1:
        edge = stage.parents[0]
        count = _copies(stage, edge.share, above[edge.parent], rng, wanted)
        return _followed(edge.parent, count, above[edge.parent], arrivals)
    return _joined(stage, arrivals, above, rng, wanted)


def _entered(stage: Stage, arrivals: Times, rng: np.random.Generator, wanted: NDArray[np.int64] | None) -> Visits:
    here = rng.random(arrivals.size) < stage.share if wanted is None else wanted > 0
    copies = np.where(here, 1 if wanted is None else wanted, 0)
    owner = np.repeat(np.arange(arrivals.size, dtype=np.int32), copies)
    return Visits(owner, arrivals[owner], {}, {}, same=owner.size == arrivals.size)


def _copies(
    stage: Stage, share: float, parent: Visits, rng: np.random.Generator, wanted: NDArray[np.int64] | None
) -> Items:
    if wanted is not None:
        return _spread(parent.owner, wanted)
    here = rng.random(parent.owner.size) < share
    whole = np.floor(stage.fan_out + rng.random(parent.owner.size)) if stage.fan_out != 1 else 1
    return np.where(here, whole, 0).astype(np.int32)


def _spread(owner: Items, wanted: NDArray[np.int64]) -> Items:
    """Give the items of each query to its parent items as evenly as can be, the first ones taking the rest."""
    per_query = np.bincount(owner, minlength=wanted.size)
    rank = np.arange(owner.size) - np.repeat(np.cumsum(per_query) - per_query, per_query)
    whole, rest = np.divmod(wanted[owner], per_query[owner])
    return (whole + (rank < rest)).astype(np.int32)


def _followed(parent: int, count: Items, above: Visits, arrivals: Times) -> Visits:
    first = (np.cumsum(count) - count).astype(np.int32)
    owner = np.repeat(above.owner, count)
    same = bool((count == 1).all())
    return Visits(owner, arrivals[owner], {parent: first}, {parent: count}, same=same)


def _joined(
    stage: Stage,
    arrivals: Times,
    above: list[Visits],
    rng: np.random.Generator,
    wanted: NDArray[np.int64] | None,
) -> Visits:
    """A query comes here if any of its flows leads here, and waits for all that do."""
    taken = {edge.parent: _taken(edge.share, above[edge.parent], arrivals.size, rng, wanted) for edge in stage.parents}
    here = np.any(list(taken.values()), axis=0)
    owner = np.flatnonzero(here).astype(np.int32)
    number = np.cumsum(here) - 1
    first = {parent: number[above[parent].owner].astype(np.int32) for parent in taken}
    count = {parent: flow[above[parent].owner].astype(np.int32) for parent, flow in taken.items()}
    return Visits(owner, arrivals[owner], first, count)


def _taken(
    share: float, above: Visits, size: int, rng: np.random.Generator, wanted: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    flow = np.zeros(size, dtype=np.bool_)
    flow[above.owner] = rng.random(above.owner.size) < share if wanted is None else wanted[above.owner] > 0
    return flow
