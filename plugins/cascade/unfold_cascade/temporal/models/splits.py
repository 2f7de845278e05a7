"""Splits of entities: train, calibrate and test cohorts, and the folds of the training cohort."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.data.table import Rows, split_rows
from unfold_cascade.temporal.data.labels import LabelledHours
from unfold_cascade.temporal.data.table import Timeline, index_entities
from unfold_cascade.temporal.problem import TemporalProblem
from unfoldkit.api import user_error

MIN_EVENTS = 8
MIN_ENTITIES = 24


def split_entities(problem: TemporalProblem, hours: LabelledHours) -> Rows:
    """Split the entities, stratified by the highest stage that each reaches.

    Raises:
        UnfoldError: Too few entities, or too few that reach the last stage.
    """
    highest = np.maximum.reduceat(hours.highest, hours.timeline.starts[:-1])
    counts = np.bincount(highest, minlength=len(problem.stages) + 1)
    if counts[-1] < MIN_EVENTS or len(highest) < MIN_ENTITIES:
        reached = f"{counts[-1]} of {len(highest)} cases reach {problem.stages[-1].name}"
        raise user_error(f"{reached}; at least {MIN_EVENTS} of {MIN_ENTITIES} are needed", key="data")
    if hours.part is None:
        return split_rows(highest, problem.split, problem.seed)
    rows = Rows(*(np.flatnonzero(hours.part == number) for number in range(3)))
    events = np.bincount(highest[rows.train], minlength=len(problem.stages) + 1)[-1]
    if events < MIN_EVENTS or len(rows.train) < MIN_ENTITIES:
        reached = f"{events} of {len(rows.train)} cases in the training part reach {problem.stages[-1].name}"
        raise user_error(f"{reached}; at least {MIN_EVENTS} of {MIN_ENTITIES} are needed", key="data.split")
    return rows


def assign_folds(timeline: Timeline, entities: IntArray, folds: int, seed: int) -> IntArray:
    """Assign (n,) a fold to each row: entities stay whole, rows outside ``entities`` get -1.

    Args:
        timeline: The hours of all entities.
        entities: The training cohort.
        folds: Number of folds.
        seed: Seed of the assignment.
    """
    order = np.random.default_rng([seed, 0xF01D]).permutation(entities)
    fold_of_entity = np.full(len(timeline.starts) - 1, -1, dtype=np.int64)
    fold_of_entity[order] = np.arange(len(order)) % folds
    fold: IntArray = fold_of_entity[index_entities(timeline.starts)]
    return fold
