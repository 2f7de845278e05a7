"""Tables of members that predict several labels or real values: their score by output, and the errors of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unfold_supernet._types import Task
from unfold_supernet.report import sentences
from unfold_supernet.report.tables import MAX_CLASSES
from unfold_supernet.training.head_quality import HeadQuality
from unfoldkit.api import Cell, Column, Table


def tabulate_heads(task: Task, names: Sequence[str], qualities: Mapping[str, HeadQuality]) -> list[Table]:
    """Tabulate the score by label or value, and the errors of values; empty for classifiers.

    Args:
        task: What the members predict.
        names: Names of the labels or values.
        qualities: By member, smallest first.
    """
    if not qualities:
        return []
    shown = select_worst(list(qualities.values())[-1].by_output)
    tables = [_tabulate_outputs(task, names, qualities, shown)]
    if task == "values":
        tables.append(_tabulate_errors(names, qualities, shown))
    return tables


def select_worst(scores: Sequence[float]) -> list[int]:
    """Select the outputs with the lowest scores, in their own order; those without a score come last."""
    by_score = sorted(range(len(scores)), key=lambda index: (math.isnan(scores[index]), scores[index]))
    return sorted(by_score[:MAX_CLASSES])


def note_undefined_outputs(names: Sequence[str], qualities: Mapping[str, HeadQuality]) -> tuple[str, ...]:
    """Name the outputs that have no score, because their targets do not vary in the test rows."""
    scores = next((quality.by_output for quality in qualities.values()), ())
    undefined = [name for name, score in zip(names, scores, strict=False) if math.isnan(score)]
    return (sentences.note_undefined_outputs(undefined, MAX_CLASSES),) if undefined else ()


def _tabulate_outputs(
    task: Task, names: Sequence[str], qualities: Mapping[str, HeadQuality], shown: Sequence[int]
) -> Table:
    columns = (Column("member"), *(Column(names[index], "%", 1) for index in shown))
    rows: list[tuple[Cell, ...]] = []
    for name, quality in qualities.items():
        scores = [quality.by_output[index] for index in shown]
        rows.append((name, *(None if math.isnan(score) else score for score in scores)))
    return Table(sentences.title_outputs(task, len(shown), len(names)), columns, tuple(rows))


def _tabulate_errors(names: Sequence[str], qualities: Mapping[str, HeadQuality], shown: Sequence[int]) -> Table:
    columns = (Column("member"), Column("value"), Column("MAE"), Column("RMSE"))
    rows: list[tuple[Cell, ...]] = [
        (name, names[index], *quality.errors[index]) for name, quality in qualities.items() for index in shown
    ]
    return Table(sentences.title_errors(len(shown), len(names)), columns, tuple(rows))
