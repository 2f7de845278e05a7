"""Fit one model in a worker: the model itself, its out-of-fold predictions and the cost of a call."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.learners import cost, estimators
from unfold_cascade.learners.estimators import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """One fit, as a worker receives it.

    Attributes:
        recipe: How the model is made.
        x: (n, d) features of all rows.
        labels: (n,) labels from 0; only those of ``training_rows`` are read.
        training_rows: The rows to fit on.
        folds: Folds of the out-of-fold predictions.
        seed: Of the estimator and the folds.
        batch: Rows per call when latency is measured.
        inspection: The confidence that reads the internals of the model, or ``None``.
        clusters: (n,) cluster of each row, or ``None`` for independent rows.
        has_gaps: Whether the table misses values, in these or other columns; a served row may miss any of them.
    """

    recipe: Recipe
    x: FloatArray
    labels: IntArray
    training_rows: IntArray
    folds: int
    seed: int
    batch: int
    inspection: str | None = None
    clusters: IntArray | None = None
    has_gaps: bool = False


def fit_model(job: FitJob) -> tuple[bytes, bytes]:
    """Fit one model; return the stored model and the stored predictions. Runs in a worker process."""
    has_gaps = job.has_gaps or estimators.has_gaps(job.x)
    rows, classes = job.training_rows, int(job.labels.max()) + 1
    model = estimators.fit_estimator(job.recipe, job.x[rows], job.labels[rows], job.seed, gaps=has_gaps)
    predictions = _predict(job, model, job.x, classes)
    predictions[rows] = _predict_out_of_fold(job, classes, has_gaps=has_gaps)
    stored = estimators.to_bytes(job.recipe, model)
    predict = getattr(model, "predict_proba", None) or model.decision_function
    facts = {
        "bytes": len(stored),
        "flops": cost.count_flops_if_known(model, job.x.shape[1]),
        "latency_us": cost.measure_latency_us(predict, job.x, job.batch, time.perf_counter),
    }
    stream = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    confidence = {} if job.inspection is None else {"confidence": predictions[:, classes]}
    np.savez(stream, allow_pickle=False, probability=predictions[:, :classes], facts=text, **confidence)
    return stored, stream.getvalue()


def _predict(job: FitJob, model: Any, x: FloatArray, classes: int) -> FloatArray:
    """Predict (n, C) probabilities; one more column holds the confidence if it reads the model's internals."""
    from unfold_cascade.gates.evidential import inspect_model

    probability = estimators.predict_probabilities(model, x, classes)
    if job.inspection is None:
        return probability
    return np.column_stack([probability, inspect_model(job.inspection, model, x)])


def _predict_out_of_fold(job: FitJob, classes: int, *, has_gaps: bool) -> FloatArray:
    """Predict the training rows by models that saw neither the row nor its cluster (stratified k-fold)."""
    x, labels = job.x[job.training_rows], job.labels[job.training_rows]
    predictions = np.zeros((len(labels), classes + (job.inspection is not None)))
    for fitted, held_out in _split_folds(job, labels):
        # all clusters of a label may be in one fold
        present, renumbered = np.unique(labels[fitted], return_inverse=True)
        model = estimators.fit_estimator(job.recipe, x[fitted], renumbered, job.seed, gaps=has_gaps)
        fold = _predict(job, model, x[held_out], len(present))
        predictions[np.ix_(held_out, present)] = fold[:, : len(present)]
        predictions[held_out, classes:] = fold[:, len(present) :]
    return predictions


def _split_folds(job: FitJob, labels: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if job.clusters is None:
        folds = min(job.folds, int(np.unique(labels, return_counts=True)[1].min()))
        yield from StratifiedKFold(folds, shuffle=True, random_state=job.seed).split(labels, labels)
        return
    clusters = job.clusters[job.training_rows]
    folds = min(job.folds, *(len(np.unique(clusters[labels == label])) for label in np.unique(labels)))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=job.seed).split(labels, labels, clusters)
    yield from ((fitted, held_out) for fitted, held_out in split if len(held_out))
