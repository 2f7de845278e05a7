"""Lets a model remember each entity: reads its state, steps the model hour by hour, keeps the new state.

What happens to a row of logical time t (an hour, say) of an entity whose last row was that of time s:

* no row yet, t = s + 1, or t > s + 1: the row is taken; the model is told s, so a gap is visible to it.
* t = s, a repeated hour: it is answered again from the state before s, and replaces it. So the same row gets the same
  answer, however often it is sent, and a corrected row corrects the state.
* t < s, a late hour: refused with 409 and told s; nothing changes, and what was answered since then stays.
* hours that arrive together in the wrong order are put in order first, so only an hour that missed its batch is late.
* no time given: the hour after s, or 0. Such a call cannot be repeated safely; a client that retries gives times.

Where time is counted in seconds, the hour after s is s + 3600: ``hour`` says how long one is. A request of several rows
holds consecutive hours of its entity; it is taken or refused as a whole. States are committed
before any of the batch is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unfoldkit.serving.model import Answers, Array, Batch, Call, Coded, Column, Described, Field, Refusal
from unfoldkit.serving.state.store import Memory, State, Store


class Stepper(Described, Protocol):
    """A model that knows each entity's past as a small state. It is called by one thread at a time."""

    def step(
        self, inputs: Mapping[str, Array], times: Sequence[int], states: Sequence[State | None]
    ) -> tuple[Mapping[str, Column], Sequence[bytes]]:
        """Return the columns of the answers and the new states, for one row each of different entities.

        ``times`` are logical; ``states[i].time`` is that of the entity's row before, ``None`` without one.
        """


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: where it stands, whose it is, and when."""

    place: int
    entity: str
    time: int


@dataclass(frozen=True, slots=True)
class Remembering:
    """A ``Stepper`` with the memory of its entities, as a ``Model``; ``hour`` is how much time lies between rows."""

    stepper: Stepper
    store: Store
    hour: int = 1

    @property
    def name(self) -> str:
        """The stepper's."""
        return self.stepper.name

    @property
    def version(self) -> str:
        """The stepper's."""
        return self.stepper.version

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The stepper's."""
        return self.stepper.inputs

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The stepper's, and the time of each row."""
        return (*self.stepper.outputs, Field("time", "INT64"))

    @property
    def facts(self) -> Mapping[str, Any]:
        """The stepper's."""
        return self.stepper.facts

    def predict(self, batch: Batch) -> Answers:
        """Step the model through the batch, in order of time for each entity, and keep the states."""
        if batch.trial:
            columns, _ = self.stepper.step(batch.inputs, [0] * batch.rows, [None] * batch.rows)
            return Answers({**columns, "time": np.zeros(batch.rows, dtype=np.int64)})
        # another process may answer for the same entity: nobody else steps between what is read and what is kept
        with self.store.alone():
            known = self.store.read(call.entity for call in batch.calls if call.entity)
            times = {entity: memory.now.time for entity, memory in known.items()}
            rows, refused = in_order(batch.calls, times, self.hour)
            columns, changed = self._stepped(batch, waves(rows), known)
            self.store.write(changed)
        return Answers(columns, refused)

    def _stepped(
        self, batch: Batch, steps: Sequence[Sequence[Row]], known: Mapping[str, Memory]
    ) -> tuple[Mapping[str, Column], dict[str, Memory]]:
        memories, parts, changed = dict(known), [], set[str]()
        for wave in steps:
            before = [_before(memories.get(row.entity), row.time) for row in wave]
            places = np.array([row.place for row in wave])
            chosen = {name: array[places] for name, array in batch.inputs.items()}
            columns, data = self.stepper.step(chosen, [row.time for row in wave], before)
            times = np.array([row.time for row in wave])
            parts.append((places, {**columns, "time": times}))
            for row, new, old in zip(wave, data, before, strict=True):
                memories[row.entity] = Memory(State(row.time, new), old)
                changed.add(row.entity)
        return _put_back(parts, batch.rows), {entity: memories[entity] for entity in changed}


def in_order(calls: Sequence[Call], known: Mapping[str, int], hour: int = 1) -> tuple[list[Row], dict[int, Refusal]]:
    """Return the rows to take, by time within each entity, and the calls to refuse.

    Args:
        calls: the calls of a batch.
        known: the time of each known entity.
        hour: time from one row to the next where no other is given.
    """
    last, rows, refused = dict(known), [], dict[int, Refusal]()
    firsts = np.cumsum([0, *(call.rows for call in calls)]).tolist()
    for index in sorted(range(len(calls)), key=lambda i: (calls[i].time is None, calls[i].time or 0)):
        call = calls[index]
        seen = last.get(call.entity)
        begin = call.time if call.time is not None else 0 if seen is None else seen + hour
        if not call.entity:
            refused[index] = Refusal(400, "the parameter 'entity' is missing: this model remembers whom it answers")
        elif seen is not None and begin < seen:
            refused[index] = Refusal(409, f"time {begin} of {call.entity!r} is late: time {seen} was answered")
        else:
            rows += [Row(firsts[index] + step, call.entity, begin + step * hour) for step in range(call.rows)]
            last[call.entity] = begin + (call.rows - 1) * hour
    return rows, refused


def waves(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows in waves: the first of each entity, then the second of each, and so on."""
    found: list[list[Row]] = []
    depth: dict[str, int] = {}
    for row in rows:
        wave = depth.get(row.entity, 0)
        depth[row.entity] = wave + 1
        if wave == len(found):
            found.append([])
        found[wave].append(row)
    return found


def _before(memory: Memory | None, time: int) -> State | None:
    if memory is None:
        return None
    return memory.before if memory.now.time == time else memory.now


def _put_back(parts: Sequence[tuple[Array, Mapping[str, Column]]], rows: int) -> dict[str, Column]:
    """Return one column of all rows from those of the waves; rows that were refused hold what the first row holds."""
    if not parts:
        return {}
    order = np.concatenate([places for places, _ in parts])
    source = np.zeros(rows, dtype=np.int64)
    source[order] = np.arange(len(order))
    return {name: _joined([columns[name] for _, columns in parts], source) for name in parts[0][1]}


def _joined(columns: Sequence[Column], source: Array) -> Column:
    coded = [column for column in columns if isinstance(column, Coded)]
    if not coded:
        return np.concatenate(columns)[source]  # type: ignore[arg-type]
    values = [value for column in coded for value in column.values]
    shifts = np.cumsum([0, *(len(column.values) for column in coded)])
    codes = np.concatenate([column.codes + shift for column, shift in zip(coded, shifts, strict=False)])
    return Coded(codes[source], values)
