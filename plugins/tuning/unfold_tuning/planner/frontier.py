"""The exact cost-deadline curve of a job on a machine: every plan that no other plan beats in both.

States are (stage, number of instances), labels (time, cost); a dominated label can be dropped because what follows
adds the same to both. Exact for the expected stage times, E[max over trials] included (study of our own; the paper's
planner is the greedy of :mod:`unfold_tuning.planner.baselines`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_tuning.job.allocation import Deal, Plan
from unfold_tuning.job.profile import Machine
from unfold_tuning.simulator.allocation_table import choices
from unfold_tuning.simulator.execution_model import Floats, Model, mean_startup
from unfold_tuning.simulator.kernels import Ints, labels
from unfold_tuning.simulator.preemption import replacing


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that the label search adds up.

    ``time`` and ``cost`` are [stages, levels]; ``grow_time`` and ``grow_cost`` [stages, levels + 1, levels], row 0
    for a growth from nothing. ``deals`` are the deals of each stage by level.
    """

    deals: tuple[tuple[Deal, ...], ...]
    time: Floats
    cost: Floats
    grow_time: Floats
    grow_cost: Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """The plans on the curve, fastest and dearest first, with their expected seconds and dollars."""

    plans: tuple[Plan, ...]
    seconds: Floats
    dollars: Floats
    labels: int


def grid(model: Model, tell: Callable[[], None] = lambda: None) -> Grid:
    """Return the expected times and costs of every stage at every level worth a look; ``tell`` is called a stage."""
    machine = model.machine
    counts, deals = choices(model)
    time = np.array([_means(model, index, row, tell) for index, row in enumerate(deals)])
    cost = time * stage_rate(machine, np.array(counts))
    if machine.billing.per == "function":
        each = machine.per_second / machine.accelerators
        busy = [[float(model.busy(i, deal).mean()) for deal in row] for i, row in enumerate(deals)]
        cost = cost + each * np.array(busy)
    cost = cost + time * np.array(counts) * replacing(machine, model.profile)
    ready = expected_startup(model, new_instances(np.array(counts), model.held))
    grow_time, grow_cost = growth(model, np.array(counts), ready)
    return Grid(deals, time, cost, grow_time, grow_cost)


def _means(model: Model, index: int, row: Sequence[Deal], tell: Callable[[], None]) -> list[float]:
    found = [float(model.seconds(index, deal).mean()) for deal in row]
    tell()
    return found


def stage_rate(machine: Machine, counts: Ints) -> Floats:
    """Return dollars per second of holding a number of instances, the head node included."""
    held = counts if machine.billing.per == "instance" else counts * 0
    return np.asarray(held * machine.per_second + machine.head / 3600.0)


def expected_startup(model: Model, new: Ints) -> Floats:
    """Return the expected start-up time of the slowest of ``new`` instances: [stages, ...] seconds."""
    seconds = {int(k): mean_startup(model.profile, int(k)) for k in np.unique(new) if k > 0}
    ready = np.array([seconds.get(int(k), 0.0) for k in new.ravel()]).reshape(new.shape)
    return np.broadcast_to(ready, (len(model.stages), *new.shape))


def growth(model: Model, counts: Ints, ready: Floats) -> tuple[Floats, Floats]:
    """Return what growing takes and costs, given the start-up times: while it waits the old instances are paid."""
    machine, before, new = model.machine, np.array([model.held, *counts]), new_instances(counts, model.held)
    wait = np.array([model.provision(index).mean() for index in range(len(model.stages))])[:, None, None] * (new > 0)
    ready = ready * (new > 0)
    cost = wait * stage_rate(machine, before)[None, :, None] + ready * stage_rate(machine, counts)[None, None, :]
    return wait + ready, cost + (np.maximum(new, 0) * machine.ingress)[None]


def new_instances(counts: Ints, held: int = 0) -> Ints:
    """Return how many instances a growth adds: [levels + 1, levels], row 0 from ``held``, negative for a shrink."""
    return np.asarray(counts[None, :] - np.array([held, *counts])[:, None])


def curve(table: Grid, deadline: float = np.inf) -> Curve:
    """Return every plan that no other beats in both expected time and cost, up to a deadline."""
    time, cost, parent, level, last = labels(table.time, table.cost, table.grow_time, table.grow_cost, deadline)
    plans = tuple(walk(table.deals, parent, level, int(index)) for index in last)
    return Curve(plans, time[last], cost[last], len(time))


def walk(deals: Sequence[Sequence[Deal]], parent: Ints, level: Ints, index: int) -> Plan:
    """Return the plan whose last label has this index."""
    steps: list[Deal] = []
    for row in reversed(deals):
        steps.append(row[int(level[index])])
        index = int(parent[index])
    return tuple(reversed(steps))
