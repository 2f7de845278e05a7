"""`CascadeClassifier`: a cascade of scikit-learn classifiers, from Python, with a budget at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates import confidence as functions
from unfold_cascade.gates.chains import ChainFront, search_all_chains
from unfold_cascade.gates.evidential import ensemble_confidence, evidential_confidence
from unfold_cascade.gates.exact import MAX_MODELS
from unfold_cascade.gates.pareto import thin_front
from unfold_cascade.learners import cost
from unfoldkit.api import UnfoldError

Verdict = Literal["answers", "asks on"]
POINTS = 64
CONFIDENCES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "max-probability": functions.max_probability,
    "margin": functions.margin,
    "entropy": functions.entropy,
}
LOOKING: Mapping[str, Callable[[Any, Any], FloatArray]] = {
    "evidential": evidential_confidence,
    "ensemble": ensemble_confidence,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One model that was asked about a case.

    ``probability`` is that of its likeliest class; ``threshold`` what its ``confidence`` must reach to answer, ``None``
    for the last of a chain, which always answers; ``price`` what the call costs.
    """

    model: str
    probability: float
    confidence: float
    threshold: float | None
    verdict: Verdict
    price: float


@dataclass(frozen=True, slots=True)
class Way:
    """What a chain did with n cases: (n,) place that answered, (n, C) probabilities of it, and what was heard."""

    place: IntArray
    probability: FloatArray
    heard: Mapping[int, tuple[IntArray, FloatArray, FloatArray]]


class CascadeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Asks cheap classifiers first, and costlier ones only where those are not sure.

    ``fit`` fits every estimator, and finds on out-of-fold probabilities the whole front of accuracy and cost over all
    chains of up to ``max_models`` of them, the thresholds searched exactly (reference, section 1.5). Which cascade of
    the front answers is decided at each call by its ``budget``. Nothing is certified here: hold a front against cases
    that it has not seen with ``unfold train``, or ``unfold_cascade.planner.certificate``.

    Args:
        estimators: (name, classifier with ``predict_proba``) pairs; a small and a large forest by default.
        prices: Cost of one call of each estimator; by default its arithmetic operations.
        confidence: What thresholds are compared with: ``max-probability``, ``margin`` or ``entropy`` of the
            probabilities; or ``evidential_confidence`` (trees and forests of scikit-learn) or ``ensemble_confidence`` (forests, XGBoost),
            which look into the models.
        max_models: Longest chain, from 1 to 5.
        bins: Thresholds tried per gate; by default all or many.
        folds: Folds of the out-of-fold probabilities; fewer where a class has fewer cases.
        budget: Mean cost of a case that ``predict`` may spend if it is not told; by default as much as helps.
        random_state: Of the folds, and of default estimators.

    Attributes:
        classes_: (C,) labels.
        estimators_: Fitted estimators, in the order given.
        prices_: (M,) cost of one call of each.
        front_: The cascades found, by ascending mean cost and descending loss, as estimated out of fold.
    """

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]] | None = None,
        *,
        prices: Sequence[float] | None = None,
        confidence: str = "max-probability",
        max_models: int = 3,
        bins: int | None = None,
        folds: int = 5,
        budget: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimators = estimators
        self.prices = prices
        self.confidence = confidence
        self.max_models = max_models
        self.bins = bins
        self.folds = folds
        self.budget = budget
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit all estimators on (n, d) ``X`` and (n,) ``y``, and search the front.

        Raises:
            ValueError: data or parameters do not fit, y has a single class, or the operations of an estimator are
                not known and no prices are given.
        """
        X, y = validate_data(self, X, y)  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes; there is one class: {self.classes_[0]!r}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        named = self._named(seed)
        held = [self._out_of_fold(model, X, labels, seed) for _, model in named]
        self.names_ = tuple(name for name, _ in named)
        self.estimators_ = [clone(model).fit(X, labels) for _, model in named]
        self.prices_ = self._priced(X.shape[1])
        self.front_: ChainFront = self._searched(held, labels)
        return self

    def predict(self, X: Any, budget: float | None = None) -> Any:  # noqa: N803
        """Return (n,) labels, spending at most ``budget`` a case on average, as estimated in ``fit``."""
        probability = self.predict_proba(X, budget)
        return self.classes_[probability.argmax(axis=1)]

    def predict_proba(self, X: Any, budget: float | None = None) -> FloatArray:  # noqa: N803
        """Return (n, C) probabilities of the models that answer."""
        return self._follow(X, budget)[0].probability

    def route(self, X: Any, budget: float | None = None) -> list[tuple[Step, ...]]:  # noqa: N803
        """Return for each case the models that were asked, in order; the last of them answers."""
        way, chain, cuts = self._follow(X, budget)
        routes: list[list[Step]] = [[] for _ in way.place]
        for place, (rows, top, score) in way.heard.items():
            threshold = float(cuts[place, 1]) if place < len(cuts) else None
            for row, p, q in zip(rows.tolist(), top.tolist(), score.tolist(), strict=True):
                verdict: Verdict = "answers" if way.place[row] == place else "asks on"
                price = float(self.prices_[chain[place]])
                routes[row].append(Step(self.names_[chain[place]], p, q, threshold, verdict, price))
        return [tuple(steps) for steps in routes]

    def cost(self, X: Any, budget: float | None = None) -> FloatArray:  # noqa: N803
        """Return (n,) what each case costs."""
        way, chain, _ = self._follow(X, budget)
        paid: FloatArray = np.cumsum(self.prices_[list(chain)])[way.place]
        return paid

    def point(self, budget: float | None = None) -> int:
        """Return which cascade of ``front_`` a budget buys: the most accurate that costs no more.

        Raises:
            ValueError: no cascade is so cheap.
        """
        check_is_fitted(self)
        allowed = self.budget if budget is None else budget
        if allowed is None:
            return int(self.front_.front.loss.argmin())
        within = np.flatnonzero(self.front_.front.cost <= allowed)
        if not len(within):
            raise ValueError(f"no cascade costs so little: the cheapest needs {self.front_.front.cost.min():g} a case")
        return int(within[self.front_.front.loss[within].argmin()])

    def _named(self, seed: int) -> list[tuple[str, Any]]:
        named = list(self.estimators if self.estimators is not None else _default(seed))
        names = [name for name, _ in named]
        if not named or len(set(names)) < len(names):
            raise ValueError(f"estimators must be (name, classifier) pairs with different names, not {names}")
        known = (*CONFIDENCES, *LOOKING)
        if self.confidence not in known:
            raise ValueError(f"confidence must be one of {', '.join(known)}, not {self.confidence!r}")
        if not 1 <= self.max_models <= MAX_MODELS:
            raise ValueError(f"max_models must be from 1 to {MAX_MODELS}, not {self.max_models!r}")
        if self.prices is not None and len(self.prices) != len(named):
            raise ValueError(f"{len(named)} estimators need as many prices, not {len(self.prices)}")
        return named

    def _priced(self, columns: int) -> FloatArray:
        if self.prices is not None:
            return np.asarray(self.prices, dtype=np.float64)
        try:
            return np.array([cost.count_flops(model, columns) for model in self.estimators_], dtype=np.float64)
        except UnfoldError as error:
            raise ValueError(f"{error.diagnostics[0].message}; give prices") from error

    def _searched(self, held: Sequence[tuple[FloatArray, FloatArray]], labels: IntArray) -> ChainFront:
        score = np.column_stack([score for _, score in held])
        loss = np.column_stack([(p.argmax(axis=1) != labels).astype(np.float64) for p, _ in held])
        found = search_all_chains(score, loss, self.prices_, max_models=self.max_models, bins=self.bins)
        keep = thin_front(found.front, POINTS)
        return ChainFront(found.front.take(keep), found.chain[keep], found.chains)

    def _score(self, model: Any, x: Any, probability: FloatArray) -> FloatArray:
        if self.confidence in CONFIDENCES:
            return CONFIDENCES[self.confidence](probability)
        try:
            return LOOKING[self.confidence](model, x)
        except TypeError as error:
            raise ValueError(f"confidence {self.confidence}: {error}") from error

    def _out_of_fold(self, model: Any, x: Any, labels: IntArray, seed: int) -> tuple[FloatArray, FloatArray]:
        """Return (n, C) what models that never saw a case say of it, and (n,) how sure they are.

        Of a class with one case there is no such model.
        """
        classes = len(self.classes_)
        result, score = np.zeros((len(labels), classes)), np.zeros(len(labels))
        for fitted, kept in _folds(labels, self.folds, seed):
            if len(np.unique(labels[fitted])) < 2:
                fitted = np.arange(len(labels))  # noqa: PLW2901 - nothing smaller can be fitted
            one = clone(model).fit(x[fitted], labels[fitted])
            result[kept] = _probabilities(one, x[kept], classes)
            score[kept] = self._score(one, x[kept], result[kept])
        return result, score

    def _follow(self, X: Any, budget: float | None) -> tuple[Way, tuple[int, ...], FloatArray]:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)  # noqa: N806
        chain, cuts = self.front_.policy(self.point(budget))
        n, classes = len(X), len(self.classes_)
        left, place = np.arange(n), np.zeros(n, dtype=np.int64)
        probability = np.zeros((n, classes))
        heard: dict[int, tuple[IntArray, FloatArray, FloatArray]] = {}
        for position, model in enumerate(chain):
            found = _probabilities(self.estimators_[model], X[left], classes)
            score = self._score(self.estimators_[model], X[left], found)
            place[left], probability[left] = position, found
            heard[position] = (left, found.max(axis=1), score)
            if position < len(cuts):
                left = left[(score >= cuts[position, 0]) & (score < cuts[position, 1])]
            if not len(left):
                break
        return Way(place, probability, heard), chain, cuts


def _default(seed: int) -> list[tuple[str, Any]]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    small = DecisionTreeClassifier(max_depth=4, random_state=seed)
    return [("small", small), ("large", RandomForestClassifier(50, random_state=seed))]


def _folds(labels: IntArray, folds: int, seed: int) -> Iterable[tuple[IntArray, IntArray]]:
    from sklearn.model_selection import StratifiedKFold

    least = int(np.bincount(labels).min())
    count = min(folds, max(least, 2), len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    if least >= 2:
        split = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels[:, None], labels)
        return [(fitted, kept) for fitted, kept in split]
    parts = np.array_split(order, count)
    return [(np.setdiff1d(order, part), part) for part in parts]


def _probabilities(model: Any, x: Any, classes: int) -> FloatArray:
    found = np.zeros((len(x), classes))
    found[:, np.asarray(model.classes_, dtype=np.int64)] = model.predict_proba(x)
    return found
