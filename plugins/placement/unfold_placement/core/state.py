"""Every array of a cluster and its tasks, in one place that compiled code can read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
Small = NDArray[np.int32]
Flags = NDArray[np.uint8]
Times = NDArray[np.float64]


class Arena(NamedTuple):
    """Every array of a cluster and its tasks. Amounts are in thousandths, times in seconds.

    By task: ``need`` [tasks, resources]; ``ask``, ``much``, ``step`` [tasks, asks] the names asked for (-1: none),
    how much, and the phase of who asked; ``run`` [tasks, types]. By node: ``free`` [nodes, resources], ``left`` and
    ``cap`` [nodes, columns] of names, ``dying`` where one is deleted while held, ``kind`` [nodes] the type, ``up``.
    By name: ``column`` (-1: not there), ``wide`` (counted once for the cluster, for many tasks or for one), ``pool``
    what is left of it.
    ``tree`` [2 x leaves, resources]: the most that is free below each inner place, from the root at 1; node ``n`` is
    leaf ``leaves + n``, and a leaf without a node has less than nothing.
    """

    need: Whole
    ask: Small
    much: Whole
    step: Small
    run: Times
    arrival: Times
    order: Small
    state: Small
    place: Small
    began: Times
    ends: Times
    fresh: Flags
    free: Whole
    tree: Whole
    left: Whole
    cap: Whole
    dying: Flags
    kind: Small
    up: Flags
    dirty: Flags
    touched: Small
    column: Small
    wide: Flags
    pool: Whole
    queue: Small
    heap_time: Times
    heap_task: Small
    log_time: Times
    log_kind: Small
    log_task: Small
    log_node: Small
    mark: Whole
    clock: Times
