"""What sharing weights costs the members of a module's family, and whether ordinary networks of equal MACs beat them.

Heartbeats (MIT-BIH, no patient on both sides) and scikit-learn's digits. Member, standalone network and ordinary
network see as many batches of equal size, at the default options of ``unfold_supernet.fit``; nothing is chosen on test
rows. The logits of all three are shifted by what the sampling of classes took from them. Errors are clustered: by
patient, or by digit, since the seeds share their test rows.

Networks of the same shape differ from training to training in whole patients, and there are few of them. The same
difference is therefore taken on beats of the training patients as well, which no network saw.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import plain_torch
from unfold_supernet.family.datasets import DataOptions, Dataset, load_dataset
from unfold_supernet.family.user_arrays import UserDataOptions
from unfold_supernet.modules.elastic_family import elastic
from unfold_supernet.modules.problem import FitOptions
from unfold_supernet.modules.training import fit

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SAME_FRACTION = 0.1
"""Fraction of the training rows that are tested on instead, beside those of training patients that no side holds."""
Z_95 = 1.96
MAX_COST = 0.5
"""Points that sharing may cost a member."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """A data set, its network, and the epochs of every training."""

    name: str
    source: str
    build: plain_torch.Build
    epochs: int


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """A mean difference in points, and its standard error over clusters of rows."""

    points: float
    error: float

    @property
    def is_surely_positive(self) -> bool:
        """Whether the 95 % interval lies above 0."""
        return self.points > Z_95 * self.error


def list_tasks(*, quick: bool) -> tuple[TrainingTask, ...]:
    """List the data sets; a quick run trains for an epoch."""
    return (
        TrainingTask("mitbih", "mitbih", plain_torch.build_beat_network, 1 if quick else 5),
        TrainingTask("digits", "digits", plain_torch.build_digit_network, 1 if quick else 30),
    )


def compare_trainings(data: Path | None, seeds: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """Train families, standalone networks and ordinary networks; return ``metrics`` and the table ``rows``.

    Args:
        data: Folder that holds ``mitbih``; without it, only digits are measured.
        seeds: Of weights, batches and, for digits, the split.
        quick: One epoch each.
    """
    began = time.process_time()
    rows: list[dict[str, Any]] = []
    for task in list_tasks(quick=quick):
        if task.source == "mitbih" and data is None:
            continue
        rows += summarize_members(task.name, [compare_seed(task, data, seed) for seed in seeds])
    worst = max(rows, key=lambda row: row["sharing_cost_points"])
    same = max(
        (row for row in rows if row["same_groups_cost_points"] is not None),
        key=lambda row: row["same_groups_cost_points"],
        default={"same_groups_cost_points": None, "same_groups_cost_error": None},
    )
    metrics = {
        "sharing_cost_points_max": worst["sharing_cost_points"],
        "sharing_cost_error_points": worst["sharing_cost_error"],
        "sharing_costs_surely_beyond_half": sum(
            row["sharing_cost_points"] - Z_95 * row["sharing_cost_error"] > MAX_COST for row in rows
        ),
        "same_groups_cost_points_max": same["same_groups_cost_points"],
        "same_groups_cost_error_points": same["same_groups_cost_error"],
        "dominated": sum(row["is_dominated"] for row in rows),
        "behind_plain_points_max": max(row["behind_plain_points"] for row in rows),
        "training_processor_seconds": time.process_time() - began,
    }
    return {"metrics": metrics, "rows": rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """What one seed measured: by member, its MACs and the correct rows of three networks of its size.

    ``correct`` holds test rows in their ``clusters``; ``same_correct`` holds unseen rows of the training groups, if
    rows have groups.
    """

    macs: dict[str, float]
    plain_macs: dict[str, float]
    correct: dict[str, dict[str, np.ndarray]]
    clusters: np.ndarray
    same_correct: dict[str, dict[str, np.ndarray]]
    same_clusters: np.ndarray


def compare_seed(task: TrainingTask, data: Path | None, seed: int) -> SeedResult:
    """Train the family, every member standalone, and an ordinary network of equal MACs for each."""
    examples = load_examples(task, data, seed)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    train_rows, same_rows = split_same_groups(examples, seed)
    train, rows = torch.from_numpy(train_rows), np.concatenate([examples.test, same_rows])
    options = FitOptions(epochs=task.epochs, seed=seed)
    torch.manual_seed(seed)
    untrained = elastic(task.build(1.0), x[train[:2]], widths=WIDTHS)
    family = copy.deepcopy(untrained)
    fit(family, x, y, options, rows=train)
    correct: dict[str, dict[str, np.ndarray]] = {}
    same_correct: dict[str, dict[str, np.ndarray]] = {}
    plain_macs = {}
    for member in family.members():
        standalone = copy.deepcopy(untrained.keep(member.name))
        fit(standalone, x, y, options, rows=train)
        width = plain_torch.fit_width(task.build, x[:1], member.macs)
        torch.manual_seed(seed)
        plain = task.build(width)
        plain_torch.train_network(
            plain, x[train], y[train], epochs=options.epochs, batch=options.batch, rate=options.rate, seed=seed
        )
        plain_macs[member.name] = plain_torch.count_macs(plain, x[:1])
        networks = {"family": family.extract(member.name), "standalone": standalone.extract(member.name)}
        answers = {
            name: (plain_torch.compute_logits(network, x[rows]) + examples.logit_shift).argmax(1) == examples.y[rows]
            for name, network in {**networks, "plain": plain}.items()
        }
        correct[member.name] = {name: right[: len(examples.test)] for name, right in answers.items()}
        same_correct[member.name] = {name: right[len(examples.test) :] for name, right in answers.items()}
        means = {name: round(float(right.mean()) * 100, 2) for name, right in correct[member.name].items()}
        print(task.name, seed, member.name, means, file=sys.stderr, flush=True)
    return SeedResult(
        macs={member.name: member.macs for member in family.members()},
        plain_macs=plain_macs,
        correct=correct,
        clusters=examples.test if examples.groups is None else examples.groups[examples.test],
        same_correct=same_correct,
        same_clusters=same_rows,
    )


def split_same_groups(examples: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows to train on from unseen rows of the same groups: part of each class, in its natural mix.

    Rows of a class that was sampled are tested on as often as the others: at ``SAME_FRACTION`` of those that occur.

    Returns:
        Rows to train on, and unseen rows; none of these without groups, where test rows are of the same kind.
    """
    if examples.groups is None:
        return examples.train, np.zeros(0, np.int64)
    rng = np.random.default_rng([seed, 0x5A3E])
    held = rng.permutation(examples.train)[: round(len(examples.train) * SAME_FRACTION)]
    spare = np.setdiff1d(np.arange(len(examples.y)), np.concatenate([examples.train, examples.test]))
    spare = rng.permutation(spare)[: round(len(spare) * SAME_FRACTION)]
    return np.setdiff1d(examples.train, held), np.concatenate([np.sort(held), np.sort(spare)])


def load_examples(task: TrainingTask, data: Path | None, seed: int) -> Dataset:
    """Load a data set: beats with no patient on both sides, digits at random."""
    options = DataOptions(
        source=task.source,
        path=None if task.source == "digits" or data is None else data / "mitbih" / "beats.npz",
        user=UserDataOptions(targets=(), channels=None, group="", has_split=False),
        split="random" if task.source == "digits" else "inter-patient",
        test_fraction=0.4,
    )
    return load_dataset(options, seed)


def summarize_members(name: str, results: Sequence[SeedResult]) -> Iterator[dict[str, Any]]:
    """Yield a row for each member: means over the seeds, and differences with clustered errors."""
    clusters, same_clusters = (
        np.concatenate([getattr(result, name) for result in results]) for name in ("clusters", "same_clusters")
    )
    for member, macs in results[0].macs.items():
        right = {
            network: np.concatenate([result.correct[member][network] for result in results])
            for network in ("family", "standalone", "plain")
        }
        same = {
            network: np.concatenate([result.same_correct[member][network] for result in results])
            for network in ("family", "standalone")
        }
        cost = average_clustered(right["standalone"], right["family"], clusters)
        same_cost = average_clustered(same["standalone"], same["family"], same_clusters) if len(same_clusters) else None
        behind = average_clustered(right["plain"], right["family"], clusters)
        yield {
            "data": name,
            "member": member,
            "macs": macs,
            "plain_macs": results[0].plain_macs[member],
            **{f"accuracy_{network}": float(values.mean()) * 100 for network, values in right.items()},
            "sharing_cost_points": cost.points,
            "sharing_cost_error": cost.error,
            "same_groups_cost_points": None if same_cost is None else same_cost.points,
            "same_groups_cost_error": None if same_cost is None else same_cost.error,
            "behind_plain_points": behind.points,
            "behind_plain_error": behind.error,
            "is_dominated": behind.is_surely_positive,
        }


def average_clustered(first: np.ndarray, second: np.ndarray, clusters: np.ndarray) -> ClusteredMean:
    """Average the difference of two networks' correct rows; rows of one cluster are not independent.

    The error is that of a ratio of sums over clusters (linearized, with clusters as the units that were drawn).

    Args:
        first: Whether the first network classifies each row correctly (n).
        second: The same of the second one (n).
        clusters: Cluster of each row (n).
    """
    difference = first.astype(np.float64) - second
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, weights=difference), np.bincount(index)
    mean = difference.mean()
    residuals = sums - mean * counts
    correction = len(sums) / max(1, len(sums) - 1)
    error = float(np.sqrt(correction * (residuals**2).sum())) / len(difference)
    return ClusteredMean(float(mean) * 100, error * 100)
