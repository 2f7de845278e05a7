"""Prometheus counters of a served cascade: evaluated models, exits, answers and cost, by execution path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.serving.model import PathTable

CountPaths = Callable[[Sequence[int]], None]
StageModel = tuple[str, str]


def build_path_counter(paths: PathTable, unit: str, registry: Any) -> CountPaths:
    """Build the function that counts the paths of answered rows in metrics of ``registry``.

    Args:
        paths: The execution paths of the plan, each with its models and its cost per row.
        unit: The unit of the cost, which labels it.
        registry: The registry of prometheus_client; each name can be registered once.

    Returns:
        A function of the path numbers of the rows of a request.
    """
    from prometheus_client import Counter

    labels = ("stage", "model")
    counters = [
        Counter("unfold_cascade_asked", "Rows evaluated by a model", labels, registry=registry),
        Counter("unfold_cascade_sure", "Rows that exit their stage at a model", labels, registry=registry),
        Counter("unfold_cascade_answered", "Rows that exit the cascade at a model", labels, registry=registry),
    ]
    cost = Counter("unfold_cascade_cost", "Cost of the rows", ("unit",), registry=registry).labels(unit)
    visits = [_list_models(*path) for path in zip(paths.stages, paths.models, strict=True)]
    models = sorted({model for path in visits for model in path})
    incidences = [
        _build_incidence([select(path) for path in visits], models)
        for select in (list, _select_exits, lambda path: path[-1:])
    ]
    children = [[counter.labels(*model) for model in models] for counter in counters]

    def count(path_numbers: Sequence[int]) -> None:
        times = np.bincount(path_numbers, minlength=len(paths.cost))
        cost.inc(float(times @ paths.cost))
        for by_model, incidence in zip(children, incidences, strict=True):
            for child, number in zip(by_model, (times @ incidence).tolist(), strict=True):
                child.inc(number)

    return count


def _list_models(stages: tuple[str, ...], models: tuple[str, ...]) -> list[StageModel]:
    """List the models of a path without its padding."""
    return [model for model in zip(stages, models, strict=True) if model[0]]


def _select_exits(path: list[StageModel]) -> list[StageModel]:
    """Select the last model of each stage."""
    return list({stage: (stage, model) for stage, model in path}.values())


def _build_incidence(paths: list[list[StageModel]], models: list[StageModel]) -> FloatArray:
    """Build the (paths, models) matrix that marks the models of each path."""
    incidence: FloatArray = np.array([[model in path for model in models] for path in paths])
    return incidence
