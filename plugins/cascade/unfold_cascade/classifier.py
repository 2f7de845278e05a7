"""`CascadeClassifier`: a cascade of scikit-learn classifiers, from Python, with a budget per call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates import confidence as confidences
from unfold_cascade.gates.chains import Chain, ChainFront, search_all_chains
from unfold_cascade.gates.evidential import ensemble_confidence, evidential_confidence
from unfold_cascade.gates.exact import MAX_MODELS
from unfold_cascade.gates.pareto import thin_front
from unfold_cascade.learners import cost
from unfoldkit.api import UnfoldError

Verdict = Literal["answers", "asks on"]
MAX_POINTS = 64
CONFIDENCES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "max-probability": confidences.max_probability,
    "margin": confidences.margin,
    "entropy": confidences.entropy,
}
INSPECTIONS: Mapping[str, Callable[[Any, Any], FloatArray]] = {
    "evidential": evidential_confidence,
    "ensemble": ensemble_confidence,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One model on the path of a case.

    ``probability`` is that of its most likely class. The case exits if ``confidence`` reaches ``threshold``, which is
    ``None`` for the last model of a chain. ``price`` is the cost of the call.
    """

    model: str
    probability: float
    confidence: float
    threshold: float | None
    verdict: Verdict
    price: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on some rows: their (m,) numbers, top probabilities and confidences."""

    rows: IntArray
    top: FloatArray
    confidence: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedCases:
    """What a chain did with n cases: (n,) exits, (n, C) probabilities at the exit, and its evaluations in order."""

    chain: Chain
    cuts: FloatArray
    exits: IntArray
    probability: FloatArray
    evaluations: Sequence[Evaluation]


class CascadeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies with cheap estimators first, and with expensive ones only where the cheap ones are uncertain.

    ``fit`` fits every estimator and searches, on out-of-fold probabilities, the exact Pareto front of accuracy and cost
    over all chains of up to ``max_models`` of them. The ``budget`` of each call selects a cascade from the front.
    Nothing is certified here: use ``unfold train``, or ``unfold_cascade.planner.certificate`` on unseen cases.

    Args:
        estimators: (name, classifier with ``predict_proba``) pairs; a small and a large forest by default.
        prices: Cost of one call of each estimator; by default its arithmetic operations.
        confidence: What thresholds are compared with: ``max-probability``, ``margin`` or ``entropy`` of the
            probabilities; or ``evidential`` (trees and forests of scikit-learn) or ``ensemble`` (forests, XGBoost),
            which read the internals of the models.
        max_models: Longest chain, from 1 to 5.
        bins: Thresholds to try per gate; by default all or many.
        folds: Folds of the out-of-fold probabilities; fewer where a class has fewer cases.
        budget: Mean cost of a case that ``predict`` may spend without a budget of its own; unlimited by default.
        random_state: Of the folds, and of default estimators.

    Attributes:
        classes_: (C,) labels.
        estimators_: Fitted estimators, in the order given.
        prices_: (M,) cost of one call of each.
        front_: The cascades by ascending mean cost and descending loss, as estimated out of fold.
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
            ValueError: data or parameters are invalid, y has a single class, or the operations of an estimator are
                unknown and no prices are given.
        """
        X, y = validate_data(self, X, y)  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes; there is one class: {self.classes_[0]!r}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        estimators = self._check_parameters(seed)
        out_of_fold = [self._predict_out_of_fold(model, X, labels, seed) for _, model in estimators]
        self.names_ = tuple(name for name, _ in estimators)
        self.estimators_ = [clone(model).fit(X, labels) for _, model in estimators]
        self.prices_ = self._compute_prices(X.shape[1])
        self.front_: ChainFront = self._search_front(out_of_fold, labels)
        return self

    def predict(self, X: Any, budget: float | None = None) -> Any:  # noqa: N803
        """Predict (n,) labels, at a mean cost of at most ``budget`` a case, as estimated in ``fit``."""
        probability = self.predict_proba(X, budget)
        return self.classes_[probability.argmax(axis=1)]

    def predict_proba(self, X: Any, budget: float | None = None) -> FloatArray:  # noqa: N803
        """Return (n, C) probabilities of the models at which cases exit."""
        return self._route(X, budget).probability

    def route(self, X: Any, budget: float | None = None) -> list[tuple[Step, ...]]:  # noqa: N803
        """Return for each case the models on its path, in order; the case exits at the last of them."""
        routed = self._route(X, budget)
        routes: list[list[Step]] = [[] for _ in routed.exits]
        for position, evaluation in enumerate(routed.evaluations):
            threshold = float(routed.cuts[position, 1]) if position < len(routed.cuts) else None
            model = routed.chain[position]
            columns = (evaluation.rows.tolist(), evaluation.top.tolist(), evaluation.confidence.tolist())
            for row, top, confidence in zip(*columns, strict=True):
                verdict: Verdict = "answers" if routed.exits[row] == position else "asks on"
                price = float(self.prices_[model])
                routes[row].append(Step(self.names_[model], top, confidence, threshold, verdict, price))
        return [tuple(steps) for steps in routes]

    def cost(self, X: Any, budget: float | None = None) -> FloatArray:  # noqa: N803
        """Compute the (n,) cost of each case."""
        routed = self._route(X, budget)
        path_cost: FloatArray = np.cumsum(self.prices_[list(routed.chain)])[routed.exits]
        return path_cost

    def point(self, budget: float | None = None) -> int:
        """Find the cascade of ``front_`` that a budget buys: the most accurate that costs no more.

        Raises:
            ValueError: every cascade costs more.
        """
        check_is_fitted(self)
        front, limit = self.front_.front, self.budget if budget is None else budget
        if limit is None:
            return int(front.loss.argmin())
        point = front.best_within(limit)
        if point is None:
            raise ValueError(f"no cascade costs so little: the cheapest needs {front.cost.min():g} a case")
        return point

    def _check_parameters(self, seed: int) -> list[tuple[str, Any]]:
        """Check the parameters and return the (name, estimator) pairs."""
        estimators = list(self.estimators if self.estimators is not None else _default_estimators(seed))
        names = [name for name, _ in estimators]
        if not estimators or len(set(names)) < len(names):
            raise ValueError(f"estimators must be (name, classifier) pairs with different names, not {names}")
        supported = (*CONFIDENCES, *INSPECTIONS)
        if self.confidence not in supported:
            raise ValueError(f"confidence must be one of {', '.join(supported)}, not {self.confidence!r}")
        if not 1 <= self.max_models <= MAX_MODELS:
            raise ValueError(f"max_models must be from 1 to {MAX_MODELS}, not {self.max_models!r}")
        if self.prices is not None and len(self.prices) != len(estimators):
            raise ValueError(f"{len(estimators)} estimators need as many prices, not {len(self.prices)}")
        return estimators

    def _compute_prices(self, columns: int) -> FloatArray:
        if self.prices is not None:
            return np.asarray(self.prices, dtype=np.float64)
        try:
            return np.array([cost.count_flops(model, columns) for model in self.estimators_], dtype=np.float64)
        except UnfoldError as error:
            raise ValueError(f"{error.diagnostics[0].message}; give prices") from error

    def _search_front(self, out_of_fold: Sequence[tuple[FloatArray, FloatArray]], labels: IntArray) -> ChainFront:
        score = np.column_stack([score for _, score in out_of_fold])
        loss = np.column_stack([(p.argmax(axis=1) != labels).astype(np.float64) for p, _ in out_of_fold])
        chains = search_all_chains(score, loss, self.prices_, max_models=self.max_models, bins=self.bins)
        points = thin_front(chains.front, MAX_POINTS)
        return ChainFront(chains.front.take(points), chains.chain[points], chains.chains)

    def _compute_confidence(self, model: Any, x: Any, probability: FloatArray) -> FloatArray:
        if self.confidence in CONFIDENCES:
            return CONFIDENCES[self.confidence](probability)
        try:
            return INSPECTIONS[self.confidence](model, x)
        except TypeError as error:
            raise ValueError(f"confidence {self.confidence}: {error}") from error

    def _predict_out_of_fold(self, model: Any, x: Any, labels: IntArray, seed: int) -> tuple[FloatArray, FloatArray]:
        """Predict (n, C) probabilities and (n,) confidences by models that were not fitted on the case.

        A class with one case has no such model.
        """
        classes = len(self.classes_)
        probability, score = np.zeros((len(labels), classes)), np.zeros(len(labels))
        for fitted, held_out in _split_folds(labels, self.folds, seed):
            if len(np.unique(labels[fitted])) < 2:
                fitted = np.arange(len(labels))  # noqa: PLW2901 - a single class cannot be fitted
            fold_model = clone(model).fit(x[fitted], labels[fitted])
            probability[held_out] = _predict_probability(fold_model, x[held_out], classes)
            score[held_out] = self._compute_confidence(fold_model, x[held_out], probability[held_out])
        return probability, score

    def _route(self, X: Any, budget: float | None) -> RoutedCases:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)  # noqa: N806
        chain, cuts = self.front_.policy(self.point(budget))
        rows, exits = np.arange(len(X)), np.zeros(len(X), dtype=np.int64)
        probability = np.zeros((len(X), len(self.classes_)))
        evaluations: list[Evaluation] = []
        for position, model in enumerate(chain):
            predicted = _predict_probability(self.estimators_[model], X[rows], len(self.classes_))
            confidence = self._compute_confidence(self.estimators_[model], X[rows], predicted)
            exits[rows], probability[rows] = position, predicted
            evaluations.append(Evaluation(rows, predicted.max(axis=1), confidence))
            if position < len(cuts):
                rows = rows[(confidence >= cuts[position, 0]) & (confidence < cuts[position, 1])]
            if not len(rows):
                break
        return RoutedCases(chain=chain, cuts=cuts, exits=exits, probability=probability, evaluations=tuple(evaluations))


def _default_estimators(seed: int) -> list[tuple[str, Any]]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    small = DecisionTreeClassifier(max_depth=4, random_state=seed)
    return [("small", small), ("large", RandomForestClassifier(50, random_state=seed))]


def _split_folds(labels: IntArray, folds: int, seed: int) -> Iterable[tuple[IntArray, IntArray]]:
    from sklearn.model_selection import StratifiedKFold

    rarest = int(np.bincount(labels).min())
    count = min(folds, max(rarest, 2), len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    if rarest >= 2:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels[:, None], labels))
    parts = np.array_split(order, count)
    return [(np.setdiff1d(order, part), part) for part in parts]


def _predict_probability(model: Any, x: Any, classes: int) -> FloatArray:
    probability = np.zeros((len(x), classes))
    probability[:, np.asarray(model.classes_, dtype=np.int64)] = model.predict_proba(x)
    return probability
