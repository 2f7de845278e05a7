"""A family as a model that the server asks: each batch by the net that was picked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unfold_supernet.networks.supernet import Pair, Ready
from unfold_supernet.scheduling.policies import Served
from unfold_supernet.scheduling.speed import Pace
from unfoldkit.serving.model import Answers, Array, Batch, Coded, Field

OUTPUTS = (
    Field("label", "BYTES"),
    Field("confidence"),
    Field("net", "BYTES"),
    Field("expected_accuracy"),
    Field("in_time", "BOOL"),
    Field("accurate_enough", "BOOL"),
)
Count = Callable[[int, Sequence[bool]], None]


@dataclass(frozen=True, slots=True)
class Live:
    """The nets that answer, in the order of ``bound``; ``count`` is told which one answered and which calls in time.

    Expected accuracy is a share, that of the net on the test rows of its training.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    classes: tuple[str, ...]
    nets: tuple[Served, ...]
    bound: tuple[Ready | Pair, ...]
    count: Count
    clock: Callable[[], float]
    pace: Pace = field(default_factory=Pace)
    outputs: tuple[Field, ...] = OUTPUTS

    def predict(self, batch: Batch) -> Answers:
        """Return label, confidence, and who answered, for a batch."""
        way = batch.turn.way if batch.turn else 0
        shares = self._shares(batch.inputs, way)
        ended = self.clock()
        due = batch.turn.due if batch.turn else ()
        in_time = [ended <= limit for limit in due] or [True] * len(batch.calls)
        if batch.turn is not None and not batch.trial:
            # from when it was picked: the way into the thread is part of it
            self.pace.learn(self.nets[way].takes(batch.rows), ended - batch.turn.picked)
            self.count(way, in_time)
        enough = [self.nets[way].share >= call.least_accuracy for call in batch.calls]
        each = [call.rows for call in batch.calls]
        return self._told(shares, way, np.repeat(in_time, each), np.repeat(enough, each))

    def _shares(self, inputs: Mapping[str, Array], way: int) -> Array:
        x = torch.from_numpy(inputs["x"].astype(np.float32))
        extra = inputs["extra"].astype(np.float32) if "extra" in inputs else np.zeros((len(x), 0), np.float32)
        with torch.inference_mode():
            found: Array = torch.softmax(self.bound[way](x, torch.from_numpy(extra)), 1).numpy()
        return found

    def _told(self, shares: Array, way: int, in_time: Array, enough: Array) -> Answers:
        net, none = self.nets[way], np.zeros(len(shares), np.int64)
        columns = {
            "label": Coded(shares.argmax(1), self.classes),
            "confidence": shares.max(1).astype(np.float64),
            "net": Coded(none, (net.name,)),
            "expected_accuracy": Coded(none, (net.share,)),
            "in_time": in_time,
            "accurate_enough": enough,
        }
        return Answers(columns)
