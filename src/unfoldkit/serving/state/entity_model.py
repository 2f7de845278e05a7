"""A stateful model: it reads the state of each entity, steps through the rows in order of time, and stores the result.

A row of logical time t (an hour, say) of an entity with a last row at time s is handled like this:

* No row yet, t = s + 1 or t > s + 1: the row is accepted. The model receives s, so it can see a gap.
* t = s, a repeated row: it is answered again from the state before s, and replaces it. The same row gets the same
  answer however often it is sent, and a corrected row corrects the state.
* t < s, a late row: rejected with 409 and s; nothing changes.
* t years after s, or a first row that counts in another unit: rejected with 400, since all later rows would be late.
* Rows that arrive together in the wrong order are sorted first, so only a row that missed its batch is late.
* No time: the row follows s, or has time 0. Such a request cannot be repeated safely; clients that retry send times.

Where time is counted in seconds, the row after s has time s + 3600: ``hour`` is the step. A request of several rows
holds consecutive rows of its entity, and is accepted or rejected as a whole. States are committed before any request of
the batch is answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unfoldkit.serving.model import (
    Array,
    Batch,
    Call,
    CategoricalColumn,
    Column,
    Field,
    ModelDescription,
    Predictions,
    Rejection,
    reject_large_values,
)
from unfoldkit.serving.state.store import EntityState, State, Store

MAX_GAP_H = 87_660
"""Ten years, in hours: the longest gap between rows of an entity."""
MAX_START_H = 10_000_000
"""Eleven centuries, in hours: a first row beyond them counts in a smaller unit since 1970."""


class StepModel(ModelDescription, Protocol):
    """A model that knows the past of each entity as a small state. One thread at a time calls it."""

    def step(
        self, inputs: Mapping[str, Array], times: Sequence[int], states: Sequence[State | None]
    ) -> tuple[Mapping[str, Column], Sequence[bytes]]:
        """Predict one row each of different entities.

        Args:
            inputs: Arrays of shape (rows, ``*shape``), by name of the input.
            times: The logical time of each row.
            states: The state of each entity before its row, ``None`` without one.

        Returns:
            The output columns, and the new state of each entity.
        """


@dataclass(frozen=True, slots=True)
class EntityRow:
    """One row of a batch: its index in the batch, its entity and its time."""

    index: int
    entity: str
    time: int


@dataclass(frozen=True, slots=True)
class EntityStateModel:
    """A ``StepModel`` with a store of entity states, as a ``Model``.

    Attributes:
        stepper: The model.
        store: The states.
        hour: The time from one row to the next.
        largest: The largest value of an input, either way; calls with larger ones are rejected.
    """

    stepper: StepModel
    store: Store
    hour: int = 1
    largest: float = math.inf

    @property
    def name(self) -> str:
        """The name of the stepper."""
        return self.stepper.name

    @property
    def version(self) -> str:
        """The version of the stepper."""
        return self.stepper.version

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The inputs of the stepper."""
        return self.stepper.inputs

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The outputs of the stepper, and the time of each row."""
        return (*self.stepper.outputs, Field("time", "INT64"))

    @property
    def used_parameters(self) -> tuple[str, ...]:
        """The parameters of a request which have an effect."""
        return ("entity", "time")

    @property
    def facts(self) -> Mapping[str, Any]:
        """The metadata of the stepper."""
        return self.stepper.facts

    def predict(self, batch: Batch) -> Predictions:
        """Step the model through the batch in order of time for each entity, and store the states."""
        if batch.trial:
            columns, _ = self.stepper.step(batch.inputs, [0] * batch.rows, [None] * batch.rows)
            return Predictions({**columns, "time": np.zeros(batch.rows, dtype=np.int64)})
        refused = dict[int, Rejection]()
        for item in self.inputs if math.isfinite(self.largest) else ():
            refused |= reject_large_values(batch.inputs[item.name], batch.calls, item, self.largest)[1]
        entities = [call.entity for call in batch.calls if call.entity]
        states = self.store.read(entities)
        predictions, changed = self._advance(batch, states, refused)
        # only now, so that a long request keeps no other process waiting
        with self.store.exclusive():
            current = self.store.read(entities)
            if current != states:
                # another process has served one of the entities meanwhile
                predictions, changed = self._advance(batch, current, refused)
            self.store.write(changed)
        return predictions

    def _advance(
        self, batch: Batch, states: Mapping[str, EntityState], refused: Mapping[int, Rejection]
    ) -> tuple[Predictions, dict[str, EntityState]]:
        times = {entity: state.now.time for entity, state in states.items()}
        rows, rejected = order_rows(batch.calls, times, self.hour, refused)
        columns, changed = self._step_waves(batch, group_waves(rows), states)
        return Predictions(columns, rejected), changed

    def _step_waves(
        self, batch: Batch, row_waves: Sequence[Sequence[EntityRow]], stored: Mapping[str, EntityState]
    ) -> tuple[Mapping[str, Column], dict[str, EntityState]]:
        states, parts, changed = dict(stored), [], set[str]()
        for wave in row_waves:
            before = [_state_before(states.get(row.entity), row.time) for row in wave]
            indices = np.array([row.index for row in wave])
            inputs = {name: array[indices] for name, array in batch.inputs.items()}
            columns, data = self.stepper.step(inputs, [row.time for row in wave], before)
            times = np.array([row.time for row in wave])
            parts.append((indices, {**columns, "time": times}))
            for row, new, old in zip(wave, data, before, strict=True):
                states[row.entity] = EntityState(State(row.time, new), old)
                changed.add(row.entity)
        return _merge_waves(parts, batch.rows), {entity: states[entity] for entity in changed}


def order_rows(
    calls: Sequence[Call], times: Mapping[str, int], hour: int = 1, refused: Mapping[int, Rejection] | None = None
) -> tuple[list[EntityRow], dict[int, Rejection]]:
    """Sort the rows of a batch by time within each entity, and reject late calls.

    Args:
        calls: The calls of a batch.
        times: The time of the last row of each known entity.
        hour: The time from one row to the next for calls without a time.
        refused: Calls that are rejected for another reason, by index.

    Returns:
        The rows to accept, and the rejected calls by index.
    """
    last_times, rows, rejected = dict(times), [], dict(refused or {})
    first_rows = np.cumsum([0, *(call.rows for call in calls)]).tolist()
    accepted = [index for index in range(len(calls)) if index not in rejected]
    for index in sorted(accepted, key=lambda i: (calls[i].time is None, calls[i].time or 0)):
        call = calls[index]
        last = last_times.get(call.entity)
        start = call.time if call.time is not None else 0 if last is None else last + hour
        if not call.entity:
            message = "the parameter 'entity' is missing: this model keeps a state per entity"
            rejected[index] = Rejection(400, message)
        elif last is not None and start < last:
            rejected[index] = Rejection(409, f"time {start} of {call.entity!r} is late: time {last} was answered")
        elif abs(start) > MAX_START_H * hour or start - (start if last is None else last) > MAX_GAP_H * hour:
            after = "is beyond eleven centuries" if last is None else f"is more than ten years after time {last}"
            unit = "hours" if hour == 1 else f"{hour} to an hour"
            rejected[index] = Rejection(400, f"time {start} of {call.entity!r} {after}: times count {unit}")
        else:
            steps = range(call.rows)
            rows += [EntityRow(first_rows[index] + step, call.entity, start + step * hour) for step in steps]
            last_times[call.entity] = start + (call.rows - 1) * hour
    return rows, rejected


def group_waves(rows: Sequence[EntityRow]) -> list[list[EntityRow]]:
    """Group rows into waves: the first row of each entity, then the second of each, and so on."""
    grouped: list[list[EntityRow]] = []
    depth: dict[str, int] = {}
    for row in rows:
        wave = depth.get(row.entity, 0)
        depth[row.entity] = wave + 1
        if wave == len(grouped):
            grouped.append([])
        grouped[wave].append(row)
    return grouped


def _state_before(state: EntityState | None, time: int) -> State | None:
    if state is None:
        return None
    return state.before if state.now.time == time else state.now


def _merge_waves(parts: Sequence[tuple[Array, Mapping[str, Column]]], rows: int) -> dict[str, Column]:
    """Merge the columns of the waves; rows of rejected calls hold the values of the first accepted row."""
    if not parts:
        return {}
    order = np.concatenate([indices for indices, _ in parts])
    source = np.zeros(rows, dtype=np.int64)
    source[order] = np.arange(len(order))
    return {name: _merge([columns[name] for _, columns in parts], source) for name in parts[0][1]}


def _merge(columns: Sequence[Column], source: Array) -> Column:
    categorical = [column for column in columns if isinstance(column, CategoricalColumn)]
    if not categorical:
        return np.concatenate(columns)[source]  # type: ignore[arg-type]
    values = [value for column in categorical for value in column.values]
    shifts = np.cumsum([0, *(len(column.values) for column in categorical)])
    codes = np.concatenate([column.codes + shift for column, shift in zip(categorical, shifts, strict=False)])
    return CategoricalColumn(codes[source], values)
