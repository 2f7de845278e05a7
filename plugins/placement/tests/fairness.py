"""How far a replay is from the fair shares of its users, as tests and benchmarks require."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unfold_placement._types import FloatArray
from unfold_placement.core import kernel
from unfold_placement.simulation.simulator import SimulationResult


def compute_fairness_error(result: SimulationResult, weights: Mapping[str, float], *, dominant: bool) -> float:
    """Compute the largest distance between the users' weighted shares, in tasks, while all users have tasks waiting.

    Args:
        result: The replay.
        weights: Weights of users, 1 where missing.
        dominant: Compare held dominant shares, in units of the largest share of one task. Otherwise compare starts so
            far with those of ideal weighted fair queueing.
    """
    users = sorted({task.user for task in result.tasks})
    user_weights = np.array([weights.get(user, 1.0) for user in users])
    task_shares = _dominant_shares(result) if dominant else np.ones(len(result.tasks))
    held, waiting, largest_error = np.zeros(len(users)), np.zeros(len(users)), 0.0
    log = result.log
    for entry in range(log.times.size):
        row, kind = log.tasks[entry], log.kinds[entry]
        user = users.index(result.tasks[row].user)
        waiting[user] += {kernel.LOG_SUBMITTED: 1, kernel.LOG_PREEMPTED: 1, kernel.LOG_STARTED: -1}.get(kind, 0)
        change = 1 if kind == kernel.LOG_STARTED else -1 if kind == kernel.LOG_ENDED and dominant else 0
        held[user] += task_shares[row] * change
        ends_instant = entry + 1 == log.times.size or log.times[entry + 1] > log.times[entry]
        if ends_instant and (waiting > 0).all():
            error = _share_distance(held, user_weights, task_shares.max(), dominant=dominant)
            largest_error = max(largest_error, error)
    return largest_error


def _share_distance(held: FloatArray, weights: FloatArray, unit: float, *, dominant: bool) -> float:
    if dominant:
        weighted = held / weights
        return float((weighted.max() - weighted.min()) / (unit / weights.min()))
    return float(np.abs(held - held.sum() * weights / weights.sum()).max())


def _dominant_shares(result: SimulationResult) -> FloatArray:
    demand = result.table.demand_by_kind[: len(result.tasks)]
    total = [sum(node.capacity.get(kind, 0) for node in result.nodes) for kind in result.table.resource_kinds]
    return np.asarray((demand / np.maximum(total, 1)).max(axis=1))
