"""Small models for the tests of the server; none of them needs a library that learns."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfoldkit.serving.model import Array, Batch, Column, Field, Predictions, Rejection
from unfoldkit.serving.state.store import State

POISON = 666.0
HANG = 888.0
DEATH = 999.0
REFUSED = 409.0


@dataclass(slots=True)
class Total:
    """Adds up three numbers; sleeps, fails on POISON, refuses REFUSED, never ends on HANG, ends its process on DEATH.

    It remembers how many rows each batch had.
    """

    name: str = "total"
    version: str = "1"
    delay_s: float = 0.0
    inputs: tuple[Field, ...] = (Field("x", "FP64", (3,)),)
    outputs: tuple[Field, ...] = (Field("total", "FP64"), Field("twice", "FP64", (2,)))
    facts: Mapping[str, Any] = field(default_factory=lambda: {"kind": "toy"})
    batches: list[int] = field(default_factory=list)

    def predict(self, batch: Batch) -> Predictions:
        if not batch.trial:
            self.batches.append(batch.rows)
        time.sleep(self.delay_s)
        x = batch.inputs["x"]
        if (x == HANG).any():
            threading.Event().wait()
        if (x == DEATH).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x == POISON).any():
            raise ZeroDivisionError("poison")
        total = x.sum(axis=1)
        firsts = np.cumsum([0, *(call.rows for call in batch.calls)])[:-1]
        refused = {i: Rejection(409, "no") for i, first in enumerate(firsts) if x[first, 0] == REFUSED}
        return Predictions({"total": total, "twice": np.column_stack([total, total])}, refused)


@dataclass(frozen=True, slots=True)
class Diary:
    """Keeps, for each entity, the values of all its hours in the order in which they were stepped."""

    name: str = "diary"
    version: str = "1"
    inputs: tuple[Field, ...] = (Field("x", "FP64"),)
    outputs: tuple[Field, ...] = (Field("seen", "BYTES"), Field("gap", "INT64"))
    facts: Mapping[str, Any] = field(default_factory=dict)

    def step(
        self, inputs: Mapping[str, Array], times: Sequence[int], states: Sequence[State | None]
    ) -> tuple[Mapping[str, Column], Sequence[bytes]]:
        old = [json.loads(state.data) if state else [] for state in states]
        new = [[*past, [time, value]] for past, time, value in zip(old, times, inputs["x"].tolist(), strict=True)]
        gaps = [0 if state is None else time - state.time - 1 for state, time in zip(states, times, strict=True)]
        text = [json.dumps(diary) for diary in new]
        seen = np.empty(len(text), dtype=object)
        seen[:] = text
        return {"seen": seen, "gap": np.array(gaps)}, [line.encode() for line in text]
