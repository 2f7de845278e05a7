"""The supernet as a model of the server: each batch runs on the subnet that the queue selected for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from unfold_supernet._types import ShareModel, Task
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.speed import Slowdown
from unfold_supernet.serving.metrics import CountBatch
from unfoldkit.api import UnfoldError
from unfoldkit.serving.model import Array, Batch, CategoricalColumn, Column, Field, Predictions, Rejection
from unfoldkit.serving.oip.errors import InvalidRequest, find_refused_input

THRESHOLD = 0.5
"""Probability from which a label applies."""


@cache
def list_outputs(task: Task, names: tuple[str, ...]) -> tuple[Field, ...]:
    """List the outputs of a task: the prediction, then the member and how well it served the request.

    Args:
        task: What the members predict.
        names: Names of the classes, labels or values.
    """
    predicted: dict[Task, tuple[Field, ...]] = {
        "classes": (Field("label", "BYTES"), Field("confidence")),
        "labels": (
            Field("labels", "BOOL", (len(names),), columns=names),
            Field("probabilities", shape=(len(names),), columns=names),
        ),
        "values": (Field("values", shape=(len(names),), columns=names),),
    }
    scores: dict[Task, str] = {"classes": "expected_accuracy", "labels": "expected_auroc", "values": "expected_r2"}
    served = (Field("net", "BYTES"), Field(scores[task]), Field("in_time", "BOOL"), Field("accurate_enough", "BOOL"))
    return (*predicted[task], *served)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetModel:
    """The served subnets.

    ``expected_accuracy``, ``expected_auroc`` or ``expected_r2`` is that of the subnet on the test rows of its training,
    as a fraction.

    Attributes:
        name: Name of the model.
        version: Fingerprint of the weights.
        inputs: Input tensors.
        facts: Metadata for clients.
        classes: Names of the classes, labels or values.
        task: What the subnets predict.
        profiles: Accuracy and latency of each subnet.
        bound: The subnets and escalation pairs, in the order of ``profiles``.
        count_batch: Counts served requests.
        clock: Source of time, in seconds.
        take_load_s: Returns the seconds of loading members since its last call; they do not count as slowdown.
        slowdown: Updated with every batch.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    classes: tuple[str, ...]
    task: Task = "classes"
    profiles: tuple[SubnetProfile, ...]
    bound: tuple[ShareModel, ...]
    count_batch: CountBatch
    clock: Callable[[], float]
    take_load_s: Callable[[], float] = lambda: 0.0
    slowdown: Slowdown = field(default_factory=Slowdown)

    @property
    def outputs(self) -> tuple[Field, ...]:
        """Output tensors."""
        return list_outputs(self.task, self.classes)

    def predict(self, batch: Batch) -> Predictions:
        """Compute predictions and service quality for a batch."""
        subnet, shares = self._run(batch, batch.turn.way if batch.turn else 0)
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
        served = (
            CategoricalColumn(index, (profile.name,)),
            CategoricalColumn(index, (profile.accuracy_fraction,)),
            np.repeat(in_time, rows),
            np.repeat(enough, rows),
        )
        names = [item.name for item in self.outputs]
        columns = dict(zip(names, (*self._arrange_predictions(shares), *served), strict=True))
        return Predictions(columns, _refuse_overflow(shares, rows))

    def _run(self, batch: Batch, subnet: int) -> tuple[int, Array]:
        """Run a batch on a subnet, or on another one that is accurate enough where its file cannot be opened.

        Returns:
            The subnet that ran, and its outputs.
        """
        try:
            return subnet, self._compute_shares(batch.inputs, subnet)
        except UnfoldError:
            # a measurement of one must not be that of another
            if batch.trial:
                raise
            for substitute in self._list_substitutes(batch, subnet):
                with contextlib.suppress(UnfoldError):
                    return substitute, self._compute_shares(batch.inputs, substitute)
            raise

    def _list_substitutes(self, batch: Batch, subnet: int) -> list[int]:
        """List the other subnets that are accurate enough for all calls, those first that are nearest in accuracy.

        For a call that asks for more than the subnet has, none is: any other one may stand for it.
        """
        accuracies = [profile.accuracy_fraction for profile in self.profiles]
        reached_least = (call.least_accuracy for call in batch.calls if call.least_accuracy <= accuracies[subnet])
        needed = max(reached_least, default=0.0)
        others = [index for index, reached in enumerate(accuracies) if index != subnet and reached >= needed]
        return sorted(others, key=lambda index: abs(accuracies[index] - accuracies[subnet]))

    def _arrange_predictions(self, shares: Array) -> tuple[Column, ...]:
        """Arrange probabilities or values (n, outputs) as the first outputs of the task."""
        if self.task == "classes":
            return CategoricalColumn(shares.argmax(1), self.classes), shares.max(1).astype(np.float64)
        numbers = shares.astype(np.float64)
        return (numbers,) if self.task == "values" else (numbers >= THRESHOLD, numbers)

    def _compute_shares(self, inputs: Mapping[str, Array], subnet: int) -> Array:
        x = inputs["x"]
        extra = inputs["extra"] if "extra" in inputs else np.zeros((len(x), 0))
        part, model = self.profiles[subnet].max_batch, self.bound[subnet]
        starts = range(0, len(x), part)
        # what is too large for the precision of a model has no finite outputs, and is refused
        with np.errstate(over="ignore"):
            try:
                parts = [model(x[start : start + part], extra[start : start + part]) for start in starts]
            except Exception as error:
                if (refused := find_refused_input(error)) is None:
                    raise
                raise InvalidRequest(f"the model cannot handle one of the inputs: {refused}") from error
        shares: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return shares


def _refuse_overflow(shares: Array, rows: Sequence[int]) -> dict[int, Rejection]:
    """Refuse the calls with a row of outputs that are not finite, which name neither class nor value.

    Args:
        shares: Outputs of all calls.
        rows: Rows of each call.
    """
    is_finite = np.isfinite(shares)
    if is_finite.all():
        return {}
    broken = np.flatnonzero(~is_finite.all(axis=1))
    calls = np.searchsorted(np.cumsum(rows), broken, side="right")
    message = "the outputs are not finite: the model cannot handle one of the inputs, such as a very large one"
    return {int(call): Rejection(400, message) for call in calls}
