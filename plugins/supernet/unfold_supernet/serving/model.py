"""The supernet as a model of the server: each batch runs on the subnet that the queue selected for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_supernet._types import ShareModel
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.speed import Slowdown
from unfold_supernet.serving.metrics import CountBatch
from unfoldkit.serving.model import Array, Batch, CategoricalColumn, Field, Predictions

OUTPUTS = (
    Field("label", "BYTES"),
    Field("confidence"),
    Field("net", "BYTES"),
    Field("expected_accuracy"),
    Field("in_time", "BOOL"),
    Field("accurate_enough", "BOOL"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetModel:
    """The served subnets.

    The output ``expected_accuracy`` is a fraction: that of the subnet on the test rows of its training.

    Attributes:
        name: Name of the model.
        version: Fingerprint of the weights.
        inputs: Input tensors.
        facts: Metadata for clients.
        classes: Names of the classes.
        profiles: Accuracy and latency of each subnet.
        bound: The subnets and escalation pairs, in the order of ``profiles``.
        count_batch: Counts served requests.
        clock: Source of time, in seconds.
        take_load_s: Returns the seconds of loading members since its last call; they do not count as slowdown.
        slowdown: Updated with every batch.
        outputs: Output tensors.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    classes: tuple[str, ...]
    profiles: tuple[SubnetProfile, ...]
    bound: tuple[ShareModel, ...]
    count_batch: CountBatch
    clock: Callable[[], float]
    take_load_s: Callable[[], float] = lambda: 0.0
    slowdown: Slowdown = field(default_factory=Slowdown)
    outputs: tuple[Field, ...] = OUTPUTS

    def predict(self, batch: Batch) -> Predictions:
        """Compute labels, confidences and service quality for a batch."""
        subnet = batch.turn.way if batch.turn else 0
        shares = self._compute_shares(batch.inputs, subnet)
        end = self.clock()
        deadlines = batch.turn.due if batch.turn else ()
        in_time = [end <= deadline for deadline in deadlines] or [True] * len(batch.calls)
        profile = self.profiles[subnet]
        if batch.turn is not None and not batch.trial:
            # from the selection: the hand-over to the worker thread is part of the latency
            worked_s = end - batch.turn.picked - self.take_load_s()
            self.slowdown.update(profile.estimate_split_latency(batch.rows), worked_s)
            self.count_batch(subnet, in_time)
        enough = [profile.accuracy_fraction >= call.least_accuracy for call in batch.calls]
        rows = [call.rows for call in batch.calls]
        index = np.zeros(len(shares), np.int64)
        columns = {
            "label": CategoricalColumn(shares.argmax(1), self.classes),
            "confidence": shares.max(1).astype(np.float64),
            "net": CategoricalColumn(index, (profile.name,)),
            "expected_accuracy": CategoricalColumn(index, (profile.accuracy_fraction,)),
            "in_time": np.repeat(in_time, rows),
            "accurate_enough": np.repeat(enough, rows),
        }
        return Predictions(columns)

    def _compute_shares(self, inputs: Mapping[str, Array], subnet: int) -> Array:
        x = inputs["x"].astype(np.float32)
        extra = inputs["extra"].astype(np.float32) if "extra" in inputs else np.zeros((len(x), 0), np.float32)
        part, model = self.profiles[subnet].max_batch, self.bound[subnet]
        parts = [model(x[start : start + part], extra[start : start + part]) for start in range(0, len(x), part)]
        shares: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return shares
