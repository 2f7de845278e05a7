"""`CascadeClassifier`: a cascade of scikit-learn classifiers, from Python, with a budget per call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from sklearn import get_config
from sklearn.base import ClassifierMixin, TransformerMixin, clone, is_classifier
from sklearn.utils import Bunch, Tags, _safe_indexing, check_random_state, column_or_1d, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates import confidence as confidences
from unfold_cascade.gates.chains import Chain, ChainFront, search_all_chains
from unfold_cascade.gates.evidential import inspect_model
from unfold_cascade.gates.exact_search import MAX_MODELS
from unfold_cascade.gates.pareto import thin_front
from unfold_cascade.learners import cost
from unfold_cascade.learners.estimators import apply_softmax
from unfoldkit.api import UnfoldError

Verdict = Literal["answers", "asks on"]
PriceUnit = Literal["given", "operations", "microseconds"]
Params = Mapping[str, Any]
DROP = "drop"
PREFIT = "prefit"
MAX_POINTS = 64
TIMED_ROWS = 256
MIN_BINS = 2
"""Fewer bins have no edge between them that a threshold could take."""
"""Rows per timed call, where prices are measured."""
CONFIDENCES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "max-probability": confidences.max_probability,
    "margin": confidences.margin,
    "entropy": confidences.entropy,
}
INSPECTIONS = ("evidential", "ensemble")


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


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A fitted estimator: its name and the (C_m,) positions of its classes among those of the cascade."""

    name: str
    estimator: Any
    columns: IntArray


class CascadeClassifier(ClassifierMixin, TransformerMixin, _BaseComposition):  # type: ignore[misc]
    """Classifies with cheap estimators first, and with expensive ones only where the cheap ones are uncertain.

    ``fit`` fits every estimator and searches, on out-of-fold probabilities, the exact Pareto front of accuracy and cost
    over all chains of up to ``max_models`` of them. The ``budget`` of each call selects a cascade from the front.
    Nothing is certified here: use ``unfold train``, or ``unfold_cascade.planner.certificate`` on unseen cases.

    X reaches the estimators unchanged: arrays, data frames with categories, sparse matrices, lists of texts. As in
    ``VotingClassifier``, estimators are fitted on labels numbered from 0. They can be replaced, dropped and tuned by
    name: ``set_params(a__C=0.1)``, ``set_params(a="drop")``.

    Args:
        estimators: (name, classifier) pairs; a small and a large forest by default. A classifier without
            ``predict_proba`` contributes the softmax of its ``decision_function``.
        prices: Cost of one call of each estimator, in their order or by name. By default their arithmetic operations,
            or the measured microseconds of a row if the operations of one are unknown.
        confidence: What thresholds are compared with: ``max-probability``, ``margin`` or ``entropy`` of the
            probabilities; or ``evidential`` (trees and forests of scikit-learn) or ``ensemble`` (forests, XGBoost),
            which read the internals of the models.
        max_models: Longest chain, from 1 to 5.
        bins: Thresholds to try per gate; by default all or many.
        folds: Folds of the out-of-fold probabilities where ``cv`` is None: stratified, and by whole groups where
            ``fit`` gets groups. Fewer where a class has fewer cases or groups.
        budget: Mean cost of a case that ``predict`` may spend without a budget of its own; unlimited by default.
        random_state: Of the folds, and of default estimators.
        cv: A number of folds, a splitter of scikit-learn, an iterable of (train, test) rows, or ``"prefit"`` to use
            fitted estimators as they are. ``fit`` then needs cases that those have not seen.
        n_jobs: Fits at a time, as for joblib.

    Attributes:
        classes_: (C,) labels.
        estimators_: Fitted estimators, in the order given, without dropped ones.
        named_estimators_: The same by name.
        prices_: (M,) cost of one call of each.
        price_unit_: ``given``, ``operations`` or ``microseconds``.
        front_: The cascades by ascending mean cost and descending loss, as estimated out of fold.
    """

    __metadata_request__fit: ClassVar[Mapping[str, bool]] = {"groups": True}

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]] | None = None,
        *,
        prices: Sequence[float] | Mapping[str, float] | None = None,
        confidence: str = "max-probability",
        max_models: int = 3,
        bins: int | None = None,
        folds: int = 5,
        budget: float | None = None,
        random_state: Any = None,
        cv: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.estimators = estimators
        self.prices = prices
        self.confidence = confidence
        self.max_models = max_models
        self.bins = bins
        self.folds = folds
        self.budget = budget
        self.random_state = random_state
        self.cv = cv
        self.n_jobs = n_jobs

    @property
    def named_estimators(self) -> Bunch:
        """The estimators as given, by name."""
        return Bunch(**dict(self.estimators or ()))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, with those of the estimators as ``name__parameter`` if ``deep``."""
        params: dict[str, Any] = self._get_params("estimators", deep=deep)
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, whole estimators by name (``"drop"`` removes one), and theirs as ``name__parameter``."""
        self._set_params("estimators", **params)
        return self

    def get_metadata_routing(self) -> MetadataRouter:
        """Return what ``fit`` consumes (groups, weights) and what it routes to the estimators."""
        router = MetadataRouter(owner=self).add_self_request(self)
        for name, estimator in self.estimators or ():
            if not _is_dropped(estimator):
                router.add(**{name: estimator}, method_mapping=MethodMapping().add(caller="fit", callee="fit"))
        return router

    def __sklearn_tags__(self) -> Tags:
        """Accept missing values and sparse matrices where every estimator does."""
        tags = super().__sklearn_tags__()
        used = [estimator for _, estimator in self.estimators or _default_estimators(0) if not _is_dropped(estimator)]
        try:
            inputs = [get_tags(estimator).input_tags for estimator in used]
        except (AttributeError, TypeError):
            return tags  # fit names the estimator that is none
        tags.input_tags.allow_nan = all(each.allow_nan for each in inputs)
        tags.input_tags.sparse = all(each.sparse for each in inputs)
        return tags

    def fit(self, X: Any, y: Any, *, groups: Any = None, **fit_params: Any) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit all estimators on n cases ``X`` and (n,) ``y``, and search the front.

        Args:
            X: n cases, in any form that the estimators accept.
            y: (n,) labels.
            groups: (n,) groups, such as patients: cases of one group share a fold.
            fit_params: (n,) ``sample_weight``, for every estimator and for loss and cost along the front. With metadata
                routing, whatever estimators request, as for ``VotingClassifier``.

        Raises:
            ValueError: Data or parameters are invalid, y has a single class, or a fold trains on a single class.
            TypeError: An estimator takes no weights, or there are ``fit_params`` without metadata routing.
        """
        X, groups = indexable(X, groups)  # noqa: N806
        labels = self._number_labels(y)
        check_consistent_length(X, labels, groups)
        validate_data(self, X, skip_check_array=True)
        if fit_params.get("sample_weight") is not None:
            weight = _check_sample_weight(fit_params["sample_weight"], X, ensure_non_negative=True)
            fit_params["sample_weight"] = weight
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        estimators = self._check_parameters(seed)
        metadata = {"groups": groups, **fit_params}
        params = self._route_metadata(
            estimators, {name: value for name, value in metadata.items() if value is not None}
        )
        # fitted on all cases first: what is wrong with X or y is then reported by the estimators themselves
        models = self._fit_models(estimators, X, labels, params)
        predicted = self._predict_held_out(models, X, labels, groups, params, seed)
        self._models = models
        self.names_ = tuple(model.name for model in models)
        self.estimators_ = [model.estimator for model in models]
        self.named_estimators_ = Bunch(**dict(zip(self.names_, self.estimators_, strict=True)))
        self.prices_, self.price_unit_ = self._compute_prices(models, X)
        self.front_: ChainFront = self._search_front(predicted, labels, fit_params.get("sample_weight"))
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
            TypeError: The budget is not a number.
            ValueError: Every cascade costs more, or the budget is NaN.
        """
        check_is_fitted(self)
        front, limit = self.front_.front, self.budget if budget is None else budget
        if limit is None:
            return int(front.loss.argmin())
        if isinstance(limit, (bool, np.bool_)) or not isinstance(limit, Real):
            raise TypeError(f"budget must be a number or None, not {limit!r}")
        if math.isnan(limit):
            raise ValueError("budget must be a number or None, not NaN")
        point = front.best_within(limit)
        if point is None:
            raise ValueError(f"no cascade costs so little: the cheapest needs {front.cost.min():g} a case")
        return point

    def transform(self, X: Any) -> FloatArray:  # noqa: N803
        """Return the (n, M C) class probabilities of all M estimators, as ``VotingClassifier`` does."""
        check_is_fitted(self)
        (X,) = indexable(X)  # noqa: N806
        return np.hstack([_predict_probability(model, X, len(self.classes_)) for model in self._models])

    def get_feature_names_out(self, input_features: Any = None) -> Any:  # noqa: ARG002 - scikit-learn's signature
        """Name the columns of ``transform``."""
        check_is_fitted(self)
        prefix = self.__class__.__name__.lower()
        names = [f"{prefix}_{name}{number}" for name in self.names_ for number in range(len(self.classes_))]
        return np.asarray(names, dtype=object)

    def _number_labels(self, y: Any) -> IntArray:
        """Check y, set ``classes_`` and number the labels from 0."""
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind.startswith("multilabel") or kind.endswith("multioutput"):
            raise ValueError(
                f"y must be one label a case, not {kind}; MultiOutputClassifier fits one cascade an output"
            )
        values = column_or_1d(y, warn=True)
        if not len(values):
            raise ValueError("found 0 cases; at least 2 classes with 2 cases each are needed")
        classes = np.unique(values)
        for name, estimator in self._list_prefit():
            classes = _join_classes(classes, name, estimator)
        if len(np.unique(values)) < 2:
            raise ValueError(f"a classifier needs samples of at least 2 classes; there is one class: {values[0]}")
        self.classes_ = classes
        labels: IntArray = np.searchsorted(classes, values).astype(np.int64)
        return labels

    def _list_prefit(self) -> list[tuple[str, Any]]:
        pairs = [(name, estimator) for name, estimator in self.estimators or () if not _is_dropped(estimator)]
        is_prefit = isinstance(self.cv, str) and self.cv == PREFIT
        return [(name, estimator) for name, estimator in pairs if is_prefit or _is_frozen(estimator)]

    def _check_parameters(self, seed: int) -> list[tuple[str, Any]]:
        """Check the parameters and return the (name, estimator) pairs that are not dropped."""
        estimators = list(self.estimators if self.estimators is not None else _default_estimators(seed))
        if not estimators or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in estimators):
            raise ValueError(f"estimators must be a non-empty list of (name, classifier) pairs, not {estimators!r}")
        names = [name for name, _ in estimators]
        if len(set(names)) < len(names):
            raise ValueError(f"estimators must be (name, classifier) pairs with different names, not {names}")
        self._validate_names(names)
        used = [(name, estimator) for name, estimator in estimators if not _is_dropped(estimator)]
        if not used:
            raise ValueError("all estimators are dropped; at least one is needed")
        for name, estimator in used:
            if not (hasattr(estimator, "fit") and is_classifier(estimator)):
                raise ValueError(f"the estimator {name!r} must be a classifier, not {type(estimator).__name__}")
        supported = (*CONFIDENCES, *INSPECTIONS)
        if self.confidence not in supported:
            raise ValueError(f"confidence must be one of {', '.join(supported)}, not {self.confidence!r}")
        if not isinstance(self.max_models, Integral) or not 1 <= self.max_models <= MAX_MODELS:
            raise ValueError(f"max_models must be an integer from 1 to {MAX_MODELS}, not {self.max_models!r}")
        if self.bins is not None and (not isinstance(self.bins, Integral) or self.bins < MIN_BINS):
            raise ValueError(f"bins must be an integer of at least {MIN_BINS} or None, not {self.bins!r}")
        self._check_prices(names)
        return used

    def _check_prices(self, names: Sequence[str]) -> None:
        if self.prices is None:
            return
        if isinstance(self.prices, Mapping):
            unknown = sorted(set(self.prices) ^ set(names))
            if unknown:
                raise ValueError(f"prices must name the estimators {', '.join(names)}; check {', '.join(unknown)}")
        elif len(self.prices) != len(names):
            raise ValueError(f"{len(names)} estimators need as many prices, not {len(self.prices)}")
        values = list(self.prices.values()) if isinstance(self.prices, Mapping) else list(self.prices)
        if not all(np.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"prices must be finite and not negative, not {values}")

    def _route_metadata(self, estimators: Sequence[tuple[str, Any]], metadata: Params) -> dict[str, Params]:
        """Select the metadata of ``fit`` that each estimator receives, by name."""
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **metadata) if metadata else {}
            return {name: dict(routed[name].fit) if name in routed else {} for name, _ in estimators}
        unknown = sorted(set(metadata) - {"sample_weight", "groups"})
        if unknown:
            raise TypeError(f"fit() got {unknown[0]!r}: sklearn.set_config(enable_metadata_routing=True) routes it")
        if "sample_weight" not in metadata:
            return {name: {} for name, _ in estimators}
        prefit, weight = dict(self._list_prefit()), metadata["sample_weight"]
        return {name: {} if name in prefit else _weight_params(name, model, weight) for name, model in estimators}

    def _fit_models(
        self, estimators: Sequence[tuple[str, Any]], x: Any, labels: IntArray, params: Mapping[str, Params]
    ) -> list[NamedModel]:
        prefit = dict(self._list_prefit())
        jobs = [
            delayed(_keep_prefit)(name, model, self.classes_)
            if name in prefit
            else delayed(_fit_model)(name, clone(model), x, labels, params[name])
            for name, model in estimators
        ]
        models: list[NamedModel] = Parallel(n_jobs=self.n_jobs)(jobs)
        for model in models:
            if not any(hasattr(model.estimator, method) for method in ("predict_proba", "decision_function")):
                kind = type(model.estimator).__name__
                raise ValueError(f"the estimator {model.name!r} ({kind}) has no predict_proba and no decision_function")
        return models

    def _predict_held_out(
        self,
        models: Sequence[NamedModel],
        x: Any,
        labels: IntArray,
        groups: Any,
        params: Mapping[str, Params],
        seed: int,
    ) -> HeldOut:
        """Predict cases by models that were not fitted on them; a case that no fold holds out is not searched on."""
        classes, prefit = len(self.classes_), {name for name, _ in self._list_prefit()}
        if isinstance(self.cv, str) and self.cv == PREFIT:
            folds = [(np.arange(0), np.arange(len(labels)))]
        else:
            folds = self._split_folds(x, labels, groups, seed)
        held_out = np.concatenate([rows for _, rows in folds])
        predicted = []
        for model in models:
            jobs = (
                delayed(_predict_fold)(model, x, labels, params[model.name], fold, refit=model.name not in prefit)
                for fold in folds
            )
            predicted.append(Parallel(n_jobs=self.n_jobs)(jobs))
        parts = [
            [
                self._score(fold_model, _safe_indexing(x, rows), classes)
                for fold_model, (_, rows) in zip(by_fold, folds, strict=True)
            ]
            for by_fold in predicted
        ]
        probability = [np.concatenate([p for p, _ in part]) for part in parts]
        score = [np.concatenate([score for _, score in part]) for part in parts]
        return HeldOut(held_out, probability, np.column_stack(score))

    def _score(self, model: NamedModel, x: Any, classes: int) -> tuple[FloatArray, FloatArray]:
        probability = _predict_probability(model, x, classes)
        return probability, self._compute_confidence(model.estimator, x, probability)

    def _split_folds(self, x: Any, labels: IntArray, groups: Any, seed: int) -> list[tuple[IntArray, IntArray]]:
        """List the (train, test) rows of every fold.

        Raises:
            ValueError: There are too few cases or groups, or a fold trains on a single class.
        """
        from sklearn.model_selection import check_cv

        count = self.folds if self.cv is None else self.cv
        if isinstance(count, (int, np.integer)) and not isinstance(count, bool):
            splitter = _default_splitter(labels, groups, int(count), seed)
        else:
            splitter = check_cv(self.cv, labels, classifier=True)
        folds = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(x, labels, groups)]
        folds = [_keep_single_cases(train, test, labels) for train, test in folds]
        folds = [(train, test) for train, test in folds if len(test)]
        for number, (train, _) in enumerate(folds):
            present = np.unique(labels[train])
            if len(present) < 2:
                unit = "case" if groups is None else "group"
                raise ValueError(
                    f"fold {number + 1} of {len(folds)} trains on one class only, {self.classes_[present[0]]}: "
                    f"each class needs at least 2 {unit}s, in different folds"
                )
        return folds

    def _compute_prices(self, models: Sequence[NamedModel], x: Any) -> tuple[FloatArray, PriceUnit]:
        if isinstance(self.prices, Mapping):
            return np.array([self.prices[model.name] for model in models], dtype=np.float64), "given"
        if self.prices is not None:
            estimators = self.estimators or _default_estimators(0)
            kept = [not _is_dropped(estimator) for _, estimator in estimators]
            return np.asarray(self.prices, dtype=np.float64)[kept], "given"
        # the operations of a cascade vary by case, so those inside are timed
        is_nested = any(isinstance(model.estimator, CascadeClassifier) for model in models)
        columns = None if is_nested else getattr(self, "n_features_in_", None)
        try:
            if columns is not None:
                return np.array([cost.count_flops(model.estimator, columns) for model in models]), "operations"
        except (UnfoldError, AttributeError):
            pass
        rows = _safe_indexing(x, np.arange(min(TIMED_ROWS, _num_samples(x))))
        return np.array([self._measure_price(model, rows) for model in models]), "microseconds"

    def _measure_price(self, model: NamedModel, x: Any) -> float:
        """Measure the median time of one row, in µs."""
        predict = partial(_predict_probability, model, classes=len(self.classes_))
        rows: int = _num_samples(x)
        return cost.measure_call_us(predict, x, time.perf_counter) / rows

    def _search_front(self, held_out: HeldOut, labels: IntArray, weight: FloatArray | None) -> ChainFront:
        truth = labels[held_out.rows]
        loss = np.column_stack([(p.argmax(axis=1) != truth).astype(np.float64) for p in held_out.probability])
        score, price = held_out.score, self.prices_
        if weight is not None:
            w = weight[held_out.rows]
            rows = np.flatnonzero(w)
            if not len(rows):
                raise ValueError("sample_weight is zero for every case that a fold holds out")
            # weighted means are plain means of weighted rows
            share = (w[rows] / w[rows].mean())[:, None]
            score, loss, price = score[rows], loss[rows] * share, self.prices_ * share
        chains = search_all_chains(score, loss, price, max_models=self.max_models, bins=self.bins)
        points = thin_front(chains.front, MAX_POINTS)
        return ChainFront(chains.front.take(points), chains.chain[points], chains.chains)

    def _compute_confidence(self, model: Any, x: Any, probability: FloatArray) -> FloatArray:
        if self.confidence in CONFIDENCES:
            return CONFIDENCES[self.confidence](probability)
        try:
            return inspect_model(self.confidence, model, x)
        except TypeError as error:
            raise ValueError(f"confidence {self.confidence}: {error}") from error

    def _route(self, X: Any, budget: float | None) -> RoutedCases:  # noqa: N803
        check_is_fitted(self)
        (X,) = indexable(X)  # noqa: N806
        cases, classes = _num_samples(X), len(self.classes_)
        chain, cuts = self.front_.policy(self.point(budget))
        rows, exits = np.arange(cases), np.zeros(cases, dtype=np.int64)
        probability = np.zeros((cases, classes))
        evaluations: list[Evaluation] = []
        for position, model in enumerate(chain):
            x = X if len(rows) == cases else _safe_indexing(X, rows)
            predicted, confidence = self._score(self._models[model], x, classes)
            exits[rows], probability[rows] = position, predicted
            evaluations.append(Evaluation(rows, predicted.max(axis=1), confidence))
            if position < len(cuts):
                rows = rows[(confidence >= cuts[position, 0]) & (confidence < cuts[position, 1])]
            if not len(rows):
                break
        return RoutedCases(chain=chain, cuts=cuts, exits=exits, probability=probability, evaluations=tuple(evaluations))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Predictions of held-out cases: (m,) their rows, by model (m, C) probabilities, and (m, M) confidences."""

    rows: IntArray
    probability: Sequence[FloatArray]
    score: FloatArray


def _default_estimators(seed: int) -> list[tuple[str, Any]]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    small = DecisionTreeClassifier(max_depth=4, random_state=seed)
    return [("small", small), ("large", RandomForestClassifier(50, random_state=seed))]


def _default_splitter(labels: IntArray, groups: Any, folds: int, seed: int) -> Any:
    """Build the stratified splitter with as many folds as the rarest class allows, at least 2.

    Raises:
        ValueError: Fewer than 2 folds are asked for, or there are fewer than 2 cases or groups.
    """
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise ValueError(f"folds must be at least 2, not {folds}")
    if groups is not None:
        unit = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
        if unit.max() < 1:
            raise ValueError("groups has one group only; at least 2 are needed, as whole groups are held out")
        rarest = min(len(np.unique(unit[labels == label])) for label in np.unique(labels))
        return StratifiedGroupKFold(min(folds, max(rarest, 2)), shuffle=True, random_state=seed)
    rarest = int(np.unique(labels, return_counts=True)[1].min())
    if rarest < 2:
        return KFold(min(folds, len(labels)), shuffle=True, random_state=seed)
    return StratifiedKFold(min(folds, rarest), shuffle=True, random_state=seed)


def _keep_single_cases(train: IntArray, test: IntArray, labels: IntArray) -> tuple[IntArray, IntArray]:
    """Move the only case of a class into the training part: no model that knows the class could predict it."""
    is_single = (np.bincount(labels) == 1)[labels[test]]
    return (np.union1d(train, test[is_single]), test[~is_single]) if is_single.any() else (train, test)


def _weight_params(name: str, model: Any, weight: FloatArray) -> Params:
    """Build the parameters that hand weights to an estimator, in a pipeline to its last step.

    Raises:
        TypeError: The estimator takes no weights.
    """
    prefix, last = "", model
    while hasattr(last, "steps"):
        step, last = last.steps[-1]
        prefix += f"{step}__"
    if not has_fit_parameter(last, "sample_weight"):
        raise TypeError(f"the estimator {name!r} ({type(last).__name__}) does not support sample_weight")
    return {f"{prefix}sample_weight": weight}


def _select_params(params: Params, rows: IntArray, cases: int) -> Params:
    """Select some rows of every parameter that has one value a case."""
    return {
        name: _safe_indexing(value, rows) if hasattr(value, "__len__") and len(value) == cases else value
        for name, value in params.items()
    }


def _fit_model(name: str, model: Any, x: Any, labels: IntArray, params: Params) -> NamedModel:
    """Fit a model on labels that are numbered without gaps, as XGBoost demands."""
    present, numbers = np.unique(labels, return_inverse=True)
    fitted = model.fit(x, numbers, **params)
    classes = getattr(fitted, "classes_", np.arange(len(present)))
    return NamedModel(name, fitted, present[np.asarray(classes, dtype=np.int64)])


def _keep_prefit(name: str, model: Any, classes: Any) -> NamedModel:
    return NamedModel(name, model, np.searchsorted(classes, model.classes_))


def _predict_fold(
    model: NamedModel, x: Any, labels: IntArray, params: Params, fold: tuple[IntArray, IntArray], *, refit: bool
) -> NamedModel:
    """Fit the model of one fold; a prefit model serves every fold."""
    if not refit:
        return model
    train = fold[0]
    selected = _select_params(params, train, len(labels))
    return _fit_model(model.name, clone(model.estimator), _safe_indexing(x, train), labels[train], selected)


def _predict_probability(model: NamedModel, x: Any, classes: int) -> FloatArray:
    """Predict (n, C) probabilities; of a model without them the softmax of its decision function."""
    if hasattr(model.estimator, "predict_proba"):
        predicted = np.asarray(model.estimator.predict_proba(x), dtype=np.float64)
    else:
        predicted = apply_softmax(np.asarray(model.estimator.decision_function(x), dtype=np.float64))
    probability = np.zeros((len(predicted), classes))
    probability[:, model.columns] = predicted
    return probability


def _is_dropped(estimator: Any) -> bool:
    return isinstance(estimator, str) and estimator == DROP


def _is_frozen(estimator: Any) -> bool:
    """Whether ``fit`` leaves an estimator (the last step of a pipeline) as it is."""
    from sklearn.frozen import FrozenEstimator

    # a frozen pipeline shows the steps of what it wraps
    while not isinstance(estimator, FrozenEstimator) and hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return isinstance(estimator, FrozenEstimator)


def _join_classes(classes: Any, name: str, model: Any) -> Any:
    """Join the classes of y and of a fitted estimator.

    Raises:
        ValueError: One are numbers and the others are not: the model was fitted on another coding.
    """
    check_is_fitted(model)
    fitted = np.asarray(model.classes_)
    is_text = [np.asarray(each).dtype.kind in "OUS" for each in (classes, fitted)]
    if is_text[0] != is_text[1]:
        raise ValueError(
            f"the fitted estimator {name!r} predicts labels such as {fitted[0]}, but y has labels such as "
            f"{classes[0]}; fit it on the same labels"
        )
    return np.unique(np.concatenate([classes, fitted]))
