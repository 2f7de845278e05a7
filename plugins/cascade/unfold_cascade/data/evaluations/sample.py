"""What models did with the requests of an evaluation, joined into a table with a row per request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unfoldkit.api import user_error

SAME_REQUESTS = "evaluate every model on the same tasks, with the same --limit and seed"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one model did with one request.

    Attributes:
        request: Its identity among those of a task.
        shared: Values that are the same for all models; ``content`` identifies what was asked.
        results: Metrics, confidence and answer of this model.
    """

    request: str
    shared: Mapping[str, Any]
    results: Mapping[str, Any]


@dataclass(slots=True)
class SampleTable:
    """Rows by task and request, and the columns that each model has filled."""

    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    models: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def add(self, model: str, task: str, sample: Sample, file: Path) -> None:
        """Add a sample.

        Raises:
            UnfoldError: The model has one of this request already, or another model was asked something else.
        """
        key = task, sample.request
        row = self.rows.setdefault(key, {"task": task, **sample.shared})
        content = sample.shared.get("content")
        if content is not None and row.get("content", content) != content:
            message = f"request {sample.request} of {task} is not that of the other models"
            raise user_error(message, file=str(file), hint=SAME_REQUESTS)
        if key in self.models.setdefault(model, set()):
            message = f"a second sample of {model} for request {sample.request} of {task}"
            raise user_error(message, file=str(file), hint="keep one evaluation of each model in the folder")
        self.models[model].add(key)
        row.update({f"{model}|{name}": value for name, value in sample.results.items()})

    def columns(self, source: Path) -> dict[str, np.ndarray]:
        """Return the columns of the requests, ``None`` where a value is missing.

        Raises:
            UnfoldError: A model has no sample of a request.
        """
        for model, keys in self.models.items():
            missing = next((key for key in self.rows if key not in keys), None)
            if missing is not None:
                message = f"{model} has no sample of request {missing[1]} of {missing[0]}, unlike other models"
                raise user_error(message, file=str(source), hint=SAME_REQUESTS)
        names = dict.fromkeys(name for row in self.rows.values() for name in row if name != "content")
        return {name: _fill([row.get(name) for row in self.rows.values()]) for name in names}


def _fill(values: list[Any]) -> np.ndarray:
    if all(value is None or isinstance(value, float) for value in values):
        return np.array([math.nan if value is None else value for value in values])
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
