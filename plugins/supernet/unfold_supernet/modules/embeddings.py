"""Nested embeddings, with prefixes that are embeddings too: their loss, and how well they retrieve rows of a class.

A nested loss (Matryoshka representation learning, Kusupati et al., NeurIPS 2022, section 3) adds the loss of each
prefix of the dimensions with equal weights. The loss of a prefix is the supervised contrastive one (Khosla et al.,
NeurIPS 2020, equation 2). A member of a family and a number of dimensions are then chosen independently: one sets the
cost of the encoder, the other that of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet._types import BoolArray, Float32Array, IntArray
from unfold_supernet.training.accuracy import CONFIDENCE
from unfoldkit.api import user_error

CHUNK_VALUES = 1 << 22
"""Similarities that are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalQuality:
    """How often a row of the same class is among the nearest rows.

    Attributes:
        dimensions: Leading dimensions that are compared.
        recall: Fraction of the queries with a row of their class among the nearest.
        low: Lower bound of its 95 % interval (Wilson).
        high: Upper bound.
        queries: Rows with another row of their class to find.
    """

    dimensions: int
    recall: float
    low: float
    high: float
    queries: int


def compute_nested_loss(outputs: Tensor, classes: Tensor, dimensions: Sequence[int], temperature: float) -> Tensor:
    """Compute the mean supervised contrastive loss over prefixes of the dimensions.

    Args:
        outputs: Embeddings (n, d); they are normalized here.
        classes: Class of each row (n).
        dimensions: Lengths of the prefixes; none stands for all dimensions.
        temperature: Divides the cosines.

    Raises:
        UnfoldError: A prefix is longer than the embedding.
    """
    prefixes = list_prefixes(outputs.shape[1], dimensions)
    return torch.stack([_compute_contrast(outputs[:, :size], classes, temperature) for size in prefixes]).mean()


def list_prefixes(width: int, dimensions: Sequence[int]) -> tuple[int, ...]:
    """List the prefixes of an embedding of ``width`` dimensions, shortest first.

    Raises:
        UnfoldError: A prefix is empty or longer than the embedding.
    """
    prefixes = tuple(sorted(set(dimensions))) or (width,)
    if prefixes[0] < 1 or prefixes[-1] > width:
        message = f"prefixes of {prefixes[0]} to {prefixes[-1]} dimensions of an embedding of {width}"
        raise user_error(message, key="dimensions", hint=f"use lengths from 1 to {width}")
    return prefixes


def _compute_contrast(outputs: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss of embeddings (n, d); rows without a partner do not count."""
    unit = functional.normalize(outputs, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool)
    similarities = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    logarithms = functional.log_softmax(similarities, dim=1).masked_fill(itself, 0.0)
    partners = (classes[:, None] == classes[None]) & ~itself
    counts = partners.sum(1)
    losses = -(logarithms * partners).sum(1) / counts.clamp(min=1)
    paired = counts > 0
    # a batch without any pair has no loss, but keeps its graph
    return losses[paired].mean() if bool(paired.any()) else outputs.sum() * 0.0


def measure_retrieval(
    embeddings: Float32Array, classes: IntArray, dimensions: Sequence[int] = (), nearest: int = 1
) -> tuple[RetrievalQuality, ...]:
    """Measure the recall of each prefix: every row searches for its class among all others, by cosine.

    Args:
        embeddings: Embeddings of test rows (n, d).
        classes: Class of each row (n).
        dimensions: Lengths of the prefixes; none stands for all dimensions.
        nearest: How many rows may be returned.

    Raises:
        UnfoldError: A prefix is longer than the embedding, or no class has two rows.
    """
    from scipy.stats import binomtest

    if nearest < 1:
        raise user_error(f"{nearest} rows may be returned", key="nearest", hint="at least one")
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[numbers] > 1)
    if not len(queries) or not np.isfinite(embeddings).all():
        message = "no class has two rows" if not len(queries) else "an embedding is not finite"
        raise user_error(message, key="classes", hint="measure on test rows with several rows of a class")
    qualities = []
    for size in list_prefixes(embeddings.shape[1], dimensions):
        hits = _find_hits(np.asarray(embeddings[:, :size], np.float32), numbers, queries, nearest)
        bounds = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
        low, high = float(bounds.low), float(bounds.high)
        qualities.append(
            RetrievalQuality(dimensions=size, recall=float(hits.mean()), low=low, high=high, queries=len(hits))
        )
    return tuple(qualities)


def _find_hits(embeddings: Float32Array, classes: IntArray, queries: IntArray, nearest: int) -> BoolArray:
    """Find which queries have a row of their class among the nearest; ties count as the less favourable order."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    hits, size = np.zeros(len(queries), bool), max(1, CHUNK_VALUES // len(unit))
    for start in range(0, len(queries), size):
        rows = queries[start : start + size]
        similarities = unit[rows] @ unit.T
        similarities[np.arange(len(rows)), rows] = -np.inf
        is_same = classes[rows][:, None] == classes[None]
        is_same[np.arange(len(rows)), rows] = False
        best = np.where(is_same, similarities, -np.inf).max(axis=1)
        closer = (~is_same & (similarities >= best[:, None])).sum(axis=1)
        hits[start : start + size] = closer < nearest
    return hits
