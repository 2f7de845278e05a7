"""Every way that a row can take through a cascade, laid out before the first row comes: its models, cuts and costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.models.zoo import WHOLE
from unfold_cascade.planner.policy import Policy, Step, owned_after, path_cost
from unfold_cascade.planner.score_tables import Question, Zoo, settled
from unfold_cascade.serving.model import Table
from unfoldkit.serving.model import Field

NEVER = 2.0


@dataclass(frozen=True, slots=True)
class Stop:
    """One model on a way: where it stands, the cut that it was held against, what it added to the cost."""

    stage: str
    model: str
    cut: float
    paid: float


def table(zoo: Zoo, policy: Policy, labels: tuple[str, ...]) -> Table:
    """Return the ways of ``policy``, numbered as ``Table`` says; shorter ones are filled up with empty stops."""
    groups, second = len(policy.then) or 1, max((len(step.chain) for step in policy.then.values()), default=1)
    ends = itertools.product(range(len(policy.first.chain)), range(groups), range(second))
    ways = [list(_way(zoo, policy, *end)) for end in ends]
    long = len(policy.first.chain) + (second if policy.then else 0)
    full = [[*way, *[Stop("", "", 0.0, 0.0)] * (long - len(way))] for way in ways]
    return Table(
        labels,
        groups,
        second,
        np.array([sum(stop.paid for stop in way) for way in ways]),
        tuple(len(way) for way in ways),
        tuple(tuple(stop.stage for stop in way) for way in full),
        tuple(tuple(stop.model for stop in way) for way in full),
        tuple(tuple(stop.cut for stop in way) for way in full),
        tuple(tuple(stop.paid for stop in way) for way in full),
    )


def written(found: Table) -> dict[str, tuple[msgspec.Raw, ...]]:
    """Return the JSON of every output that the way alone decides, by number of the way."""
    columns = {
        "cost": found.cost.tolist(),
        "route_steps": found.steps,
        "route_stage": found.stage,
        "route_model": found.model,
        "route_cut": found.cut,
        "route_cost": found.paid,
    }
    return {
        name: tuple(msgspec.Raw(msgspec.json.encode(value)) for value in column) for name, column in columns.items()
    }


def outputs(found: Table) -> tuple[Field, ...]:
    """Return the outputs of a cascade: the answer, and the route of each row, one entry a model that was asked."""
    long = (len(found.stage[0]),)
    one = (Field("label", "BYTES"), Field("confidence"), Field("cost"), Field("route_steps", "INT64"))
    route = (Field("route_stage", "BYTES", long), Field("route_model", "BYTES", long))
    return (*one, *route, *(Field(f"route_{name}", "FP64", long) for name in ("confidence", "cut", "cost")))


def _way(zoo: Zoo, policy: Policy, e1: int, group: int, e2: int) -> Iterator[Stop]:
    first = policy.first
    yield from _stops(zoo.first, first, e1, path_cost(zoo, zoo.first, first.chain, frozenset()))
    if group in policy.then and not settled(zoo.then[group]):
        step, question = policy.then[group], zoo.then[group]
        owned = owned_after(zoo.first, first.chain)[e1]
        yield from _stops(question, step, min(e2, len(step.chain) - 1), path_cost(zoo, question, step.chain, owned))


def _stops(question: Question, step: Step, end: int, cost: FloatArray) -> Iterator[Stop]:
    paid = np.diff(cost, prepend=0.0)
    place = question.stage if question.group == WHOLE else f"{question.stage}/{question.group}"
    for position in range(end + 1):
        cut = step.cuts[position] if position < len(step.cuts) else 0.0
        shown = float(np.clip(cut, 0.0, NEVER))
        yield Stop(place, question.models[step.chain[position]], shown, float(paid[position]))
