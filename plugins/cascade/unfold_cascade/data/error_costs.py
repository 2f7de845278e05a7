"""What errors cost: each the same, or by the true label, or by the true label and what was answered instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.confidence import max_probability
from unfold_cascade.schema.goals import Errors
from unfoldkit.api import did_you_mean, fail

KEY = "goal.errors"


@dataclass(frozen=True, slots=True)
class Stakes:
    """``cost[t, a]`` (C, C + 1) of the answer a where t is true, the last column for what is no label.

    It is scaled so that, over all cases, the dearest answer costs 1 on average: a mean loss is a share of the worst
    that could be. ``None`` where each error costs 1, and a mean loss is the share of errors.
    """

    cost: FloatArray | None = None

    @property
    def largest(self) -> float:
        """What the dearest error costs."""
        return 1.0 if self.cost is None else float(self.cost.max())

    def losses(self, answer: IntArray, truth: IntArray) -> FloatArray:
        """Return what answers cost; ``answer`` and ``truth`` are label numbers, of shapes that go together."""
        found: FloatArray = (answer != truth).astype(np.float64) if self.cost is None else self.cost[truth, answer]
        return found

    def answers(self, probability: FloatArray) -> IntArray:
        """Return (n,) the answers of least expected cost by (n, C) probabilities; of equals the first."""
        expected = -probability if self.cost is None else self._expected(probability, self.cost)
        best: IntArray = expected.argmin(axis=1)
        return best

    def confidence(self, probability: FloatArray) -> FloatArray:
        """Return (n,) 1 less the expected cost of these answers, as a share of the dearest error.

        Where each error costs 1 it is the largest probability.
        """
        if self.cost is None:
            return max_probability(probability)
        least: FloatArray = self._expected(probability, self.cost).min(axis=1)
        return 1.0 - least / self.largest

    def _expected(self, probability: FloatArray, cost: FloatArray) -> FloatArray:
        expected: FloatArray = np.asarray(probability, dtype=np.float64) @ cost[:, :-1]
        return expected


ALIKE = Stakes()
"""Each error costs 1."""


def stakes_of(errors: Errors | None, names: Sequence[str], labels: IntArray) -> Stakes:
    """Return what errors cost.

    Args:
        errors: as in the spec.
        names: (C,) labels.
        labels: (n,) numbers of the true labels of all cases.

    Raises:
        UnfoldError: a label that the data do not have, or no error costs anything.
    """
    if errors is None:
        return ALIKE
    share = np.bincount(labels, minlength=len(names)) / len(labels)
    cost = _balanced(share) if errors == "balanced" else _given(errors, names)
    mean = float(share @ cost.max(axis=1))
    if mean <= 0.0:
        raise fail("no error costs anything", key=KEY, hint="errors: {LABEL: 10}")
    return Stakes(cost / mean)


def _balanced(share: FloatArray) -> FloatArray:
    return _rightly(np.repeat(1.0 / share[:, None], len(share) + 1, axis=1))


def _given(errors: Mapping[str, float | Mapping[str, float]], names: Sequence[str]) -> FloatArray:
    number = {name: index for index, name in enumerate(names)}
    cost = np.ones((len(names), len(names) + 1))
    for label, told in errors.items():
        row = number[_known(label, names)]
        if not isinstance(told, Mapping):
            cost[row] = told
            continue
        for answer, weight in told.items():
            cost[row, number[_known(answer, names)]] = weight
        # what is no label is as bad as the worst answer
        cost[row, -1] = np.delete(cost[row, :-1], row).max()
    return _rightly(cost)


def _rightly(cost: FloatArray) -> FloatArray:
    cost[np.arange(len(cost)), np.arange(len(cost))] = 0.0
    return cost


def _known(label: str, names: Sequence[str]) -> str:
    if label not in names:
        raise fail(f'the data have no label "{label}"', key=KEY, hint=did_you_mean(label, names))
    return label


def told(errors: Errors) -> str:
    """Return in words what an error costs."""
    if errors == "balanced":
        return "the errors of each label count as much in all as those of any other"
    return ", ".join((*_told(errors), "any other error 1"))


def _told(errors: Mapping[str, float | Mapping[str, float]]) -> Iterator[str]:
    for label, cost in errors.items():
        if isinstance(cost, Mapping):
            yield from (f'"{label}" taken for "{answer}" costs {weight:g}' for answer, weight in cost.items())
        else:
            yield f'an error on "{label}" costs {cost:g}'
