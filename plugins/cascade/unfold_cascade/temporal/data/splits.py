"""Splits of entities over time: into cohorts, and the training cohort into folds."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.data.table import Rows, select_cluster_rows, split_rows
from unfold_cascade.temporal.data.labels import LabelledHours, find_highest
from unfold_cascade.temporal.data.table import Timeline, index_entities
from unfold_cascade.temporal.problem import TemporalProblem
from unfoldkit.api import user_error

MIN_EVENTS = 8
MIN_ENTITIES = 24


def split_entities(problem: TemporalProblem, hours: LabelledHours) -> Rows:
    """Split the entities, stratified by the highest stage that each reaches.

    Raises:
        UnfoldError: Too few entities, too few that reach the last stage, or no training hour before it.
    """
    rows = _split_entities(problem, hours)
    lowest = np.minimum.reduceat(hours.highest, hours.timeline.starts[:-1])
    if (lowest[rows.train] == len(problem.stages)).all():
        message = f"every hour of the training part is in {problem.stages[-1].name}: none before it can be decided"
        raise user_error(message, key="data", hint="is the label coded the other way round?")
    return rows


def _split_entities(problem: TemporalProblem, hours: LabelledHours) -> Rows:
    highest, cluster = find_highest(hours.timeline, hours.highest), hours.timeline.cluster
    counts = np.bincount(highest, minlength=len(problem.stages) + 1)
    if counts[-1] < MIN_EVENTS or len(highest) < MIN_ENTITIES:
        noun = "cases" if hours.timeline.group is None else "groups"
        reached = f"{counts[-1]} of {len(highest)} {noun} reach {problem.stages[-1].name}"
        raise user_error(f"{reached}; at least {MIN_EVENTS} of {MIN_ENTITIES} are needed", key="data")
    if hours.part is None:
        return select_cluster_rows(cluster, split_rows(highest, problem.split, problem.seed))
    rows = Rows(*(np.flatnonzero(hours.part == number) for number in range(3)))
    train = np.unique(cluster[rows.train])
    events = np.bincount(highest[train], minlength=len(problem.stages) + 1)[-1]
    if events < MIN_EVENTS or len(train) < MIN_ENTITIES:
        sites = ", ".join(problem.split.named.get("test", ()))
        part = f"the training part, which lacks {sites}," if sites else "the training part"
        reached = f"{events} of {len(train)} cases in {part} reach {problem.stages[-1].name}"
        raise user_error(f"{reached}; at least {MIN_EVENTS} of {MIN_ENTITIES} are needed", key="data.split")
    return rows


def assign_folds(timeline: Timeline, entities: IntArray, folds: int, seed: int) -> IntArray:
    """Assign (n,) a fold to each row: entities and their groups stay whole, rows outside ``entities`` get -1.

    Args:
        timeline: The hours of all entities.
        entities: The training cohort.
        folds: Number of folds.
        seed: Seed of the assignment.
    """
    cluster = timeline.cluster
    order = np.random.default_rng([seed, 0xF01D]).permutation(np.unique(cluster[entities]))
    fold_of_cluster = np.full(int(cluster.max()) + 1, -1, dtype=np.int64)
    fold_of_cluster[order] = np.arange(len(order)) % folds
    fold: IntArray = fold_of_cluster[cluster[index_entities(timeline.starts)]]
    return fold
