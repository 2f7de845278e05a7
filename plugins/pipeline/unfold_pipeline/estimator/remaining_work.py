"""The stages to come together: what each query still needs on its own way, and who is late whatever they do.

A flow that a query may skip counts for nothing in what *every* query needs; but its way is fixed by the sample, so that
what *it* needs is known. Both are proven: no batch is quicker than the quickest of the quickest hardware.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.estimator import SLACK, Estimator
from unfold_pipeline.problem.pipeline import Plan
from unfoldkit.queueing import kernel

Times = NDArray[np.float64]


def rest(estimator: Estimator, index: int, fixed: int) -> Times:
    """Return (items,) the least seconds that the items of stage ``index`` need after it, at stages from ``fixed`` on.

    Stages are numbered from above to below; those before ``fixed`` count for nothing.
    """
    children = tuple(child for child in estimator.pipeline.children(index) if child >= fixed)
    known = estimator.memory.rests.get((index, children))
    if known is None:
        known = np.zeros(estimator.sample.visits[index].owner.size)
        for child in children:
            visits, least = estimator.sample.visits[child], _quickest(estimator, child)
            after = rest(estimator, child, child + 1) + least
            kernel.longest(visits.first[index], visits.count[index], after, known)
        estimator.memory.rests[index, children] = known
    return known


def hopeless(estimator: Estimator, plan: Plan, limit: float) -> bool:
    """Whether more queries than allowed are late, whatever the stages that ``plan`` leaves open do.

    ``plan`` fixes the first stages, whose flows are simulated; a query counts once, wherever it is late.
    """
    finish = estimator.sample.arrivals.copy()
    for index in range(len(plan)):
        flow, owner = estimator.sure(index, plan), estimator.sample.visits[index].owner
        after = rest(estimator, index, len(plan))
        kernel.soonest(flow.times, flow.items, flow.times.size, owner, after, finish)
    return kernel.late(finish, estimator.sample.arrivals, limit + SLACK) > estimator.allowed


def _quickest(estimator: Estimator, index: int) -> float:
    return min(option.quickest for option in estimator.pipeline.stages[index].options)
