"""A proven lower bound on what any plan costs that keeps the promise, and the gap to it.

If a plan is on time in at least a share p of all samples, then of any subset with a share q of them (q > 1 - p) it is
on time in at least ``(p - 1 + q)/q``. The mean of that many of the subset's smallest run times is then at most the
deadline; and the sum of each stage's own such mean is smaller still. So a label search on these stage times, with
the expected costs, finds no plan dearer than the cheapest one that keeps the promise. Subsets of slow runs bind most.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unfold_tuning.planner.frontier import Grid, curve, growth, new_instances
from unfold_tuning.simulator.execution_model import Floats, Model
from unfold_tuning.simulator.kernels import Ints

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
SHARES = (0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)


def lower_bound(model: Model, table: Grid, deadline: float, share: float) -> float:
    """Return dollars that no plan undercuts with P(run time <= deadline) >= share on these samples.

    It knows the plans of the table's deals. Minimum charges and increments are left out, which only lowers it. Infinite
    where no plan can keep the promise.
    """
    table = replace(table, grow_cost=_sampled_growth_cost(model, table))
    slow = np.argsort(-_slowness(model, table)).astype(np.int64)
    found = 0.0
    for part in SHARES:
        inside = (share - 1 + part) / part
        if inside > 0:
            rows = slow[: max(1, round(part * model.samples))]
            found = max(found, _bound(model, table, rows, inside, deadline))
    return found


def _bound(model: Model, table: Grid, rows: Ints, inside: float, deadline: float) -> float:
    size = max(1, int(np.ceil(inside * len(rows) - 1e-9)))
    time = np.array(
        [[_smallest(model.seconds(i, deal)[rows], size) for deal in row] for i, row in enumerate(table.deals)]
    )
    wait = np.array([_smallest(model.provision(i)[rows] + model.startup(i, 1)[rows], size) for i in range(len(time))])
    grows = new_instances(np.array([deal.instances for deal in table.deals[0]]), model.held) > 0
    grow = wait[:, None, None] * grows
    found = curve(replace(table, time=time, grow_time=grow), deadline + 1e-6)
    return float(found.dollars.min()) if len(found.dollars) else float("inf")


def _sampled_growth_cost(model: Model, table: Grid) -> Floats:
    """The sampled cost of growths; between some numbers of new instances the smaller one's, which is no dearer."""
    counts = np.array([deal.instances for deal in table.deals[0]])
    new = new_instances(counts, model.held)
    steps = [k for k in STEPS if k <= new.max()]
    at = np.maximum(np.searchsorted(steps, new, side="right") - 1, 0)
    means = [[model.startup(index, k).mean() for k in steps] for index in range(len(table.deals))]
    return growth(model, counts, np.array(means)[:, at])[1]


def _smallest(values: Floats, size: int) -> float:
    return float(np.partition(values, size - 1)[:size].mean())


def _slowness(model: Model, table: Grid) -> Floats:
    middle = len(table.deals[0]) // 2
    total = np.zeros(model.samples)
    for index, row in enumerate(table.deals):
        total += model.seconds(index, row[middle])
    return total
