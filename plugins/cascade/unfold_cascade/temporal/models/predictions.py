"""Predictions: the probabilities of a fitted model at every hour and the costs of one call, as the run stores them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import Float32
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.temporal.models.training_sets import ModelSlot
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfoldkit.api import Run, user_error
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one model predicts and costs.

    Attributes:
        p: (n, C) probabilities of every hour, out of fold for the training cohort.
        flops: Operations of one call, NaN if unknown.
        bytes: Size of the stored model.
        latency: Measured µs of one row in a batch.
    """

    p: Float32
    flops: float
    bytes: float
    latency: float


def pack_predictions(p: Float32, *, flops: float | None, size: int, latency_us: float) -> bytes:
    """Pack the predictions of one model as a file of the run."""
    facts = json.dumps({"bytes": size, "flops": flops, "latency": latency_us}).encode()
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, p=p, facts=np.frombuffer(facts, dtype=np.uint8))
    return stream.getvalue()


def read_predictions(run: Run, slot: ModelSlot) -> Predictions:
    """Read the predictions of a fitted model.

    Raises:
        UnfoldError: The file is damaged.
    """
    with run.directory.decoding(slot.log_file, "a log of predictions") as data:
        arrays = read_npz(data)
        facts = parse_object(arrays["facts"].tobytes())
        flops = float("nan") if facts["flops"] is None else float(facts["flops"])
        return Predictions(arrays["p"], flops, float(facts["bytes"]), float(facts["latency"]))


def is_fitted(run: Run, slot: ModelSlot) -> bool:
    """Check whether the run holds the model and its predictions, made from the same inputs."""
    return all(run.directory.has(name, made_from=slot.made_from) for name in (slot.model_file, slot.log_file))


def require_predictions(run: Run, slots: Sequence[ModelSlot]) -> list[Predictions]:
    """Read the predictions of all models without fitting any.

    Raises:
        UnfoldError: A model is missing, or was fitted with another seed or other library versions.
    """
    for slot in slots:
        if not is_fitted(run, slot):
            message = f"the run holds no model {slot.place} fitted with this spec, seed and library versions"
            raise user_error(message, file=str(run.directory.path), key=slot.key, hint=RESUME_HINT)
    return [read_predictions(run, slot) for slot in slots]


def collect_call_costs(problem: TemporalProblem, predictions: Sequence[Predictions]) -> CallCosts:
    """Collect what one call of each model costs, in the order of ``problem.models``."""
    price = np.array([task.price for task in problem.models])
    flops, size, latency = (
        np.array([getattr(prediction, name) for prediction in predictions]) for name in ("flops", "bytes", "latency")
    )
    return CallCosts(price, flops, size, latency)


def check_operations(cost_by: str, slots: Sequence[ModelSlot], predictions: Sequence[Predictions]) -> None:
    """Reject a comparison by FLOPs if the operations of a model are unknown.

    Raises:
        UnfoldError: The message names the estimator.
    """
    pairs = zip(slots, predictions, strict=True)
    unknown = next((slot for slot, prediction in pairs if np.isnan(prediction.flops)), None)
    if unknown is not None and "flops" in cost_by:
        hint = "cost: {by: latency} measures instead"
        raise user_error(f"the operations of {unknown.recipe.estimator} are not known", key=unknown.key, hint=hint)
