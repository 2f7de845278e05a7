"""Laws of the classifier in everyday use: what works with scikit-learn's own ensembles works with a cascade."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    LeaveOneOut,
    ShuffleSplit,
    StratifiedGroupKFold,
    TimeSeriesSplit,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from unfold_cascade import CascadeClassifier

CASES = 240


class Cases:
    """Cases with a gap, a category and text; 48 groups of five."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        index = rng.permutation(CASES) + 1000
        frame = pd.DataFrame({"a": rng.normal(size=CASES), "b": rng.normal(size=CASES)}, index=index)
        frame["c"] = pd.Categorical(rng.choice(list("xyz"), CASES))
        frame.loc[frame.index[::7], "a"] = np.nan
        is_sick = frame.a.fillna(0) + (frame.c == "x") * 1.5 + rng.normal(size=CASES) * 0.5 > 0.5
        self.x, self.y = frame, is_sick.map({True: "sick", False: "well"})
        self.numbers = frame[["b"]]
        words = rng.choice(["cat", "dog", "sun"], (CASES, 3))
        self.texts = [f"{'good' if sick else 'bad'} {' '.join(row)}" for sick, row in zip(is_sick, words, strict=True)]
        self.groups, self.weight = np.arange(CASES) // 5, rng.random(CASES)


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases()


def mixed() -> list[tuple[str, Any]]:
    """A pipeline for gaps and categories, and boosted trees that read both as they are."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer((OneHotEncoder(), ["c"]), (numbers, ["a", "b"]))
    trees = HistGradientBoostingClassifier(max_iter=8, categorical_features="from_dtype", random_state=0)
    return [("linear", make_pipeline(columns, LogisticRegression())), ("trees", trees)]


def plain() -> list[tuple[str, Any]]:
    return [("linear", LogisticRegression()), ("tree", DecisionTreeClassifier(max_depth=2, random_state=0))]


def texts() -> list[tuple[str, Any]]:
    return [
        ("bayes", make_pipeline(TfidfVectorizer(), MultinomialNB())),
        ("linear", make_pipeline(TfidfVectorizer(), LogisticRegression())),
    ]


def sparse(cases: Cases, form: str) -> Any:
    return TfidfVectorizer().fit_transform(cases.texts).asformat(form)


def counts() -> list[tuple[str, Any]]:
    return [("bayes", MultinomialNB()), ("linear", LogisticRegression())]


Build = Callable[..., Any]
Use = Callable[[Build, Cases], Any]
# name: use, and what it must return (None: anything)
USES: dict[str, tuple[Use, Any]] = {
    "frame with gaps and categories": (lambda k, c: k(mixed()).fit(c.x, c.y).score(c.x, c.y) > 0.8, True),
    "texts in a list": (lambda k, c: k(texts()).fit(c.texts, c.y).score(c.texts, c.y), 1.0),
    "texts in a series": (lambda k, c: k(texts()).fit(pd.Series(c.texts), c.y).score(pd.Series(c.texts), c.y), 1.0),
    **{
        f"sparse {form}": (lambda k, c, f=form: k(counts()).fit(sparse(c, f), c.y).score(sparse(c, f), c.y), 1.0)
        for form in ("csr", "csc", "coo", "lil")
    },
    "lists of lists": (
        lambda k, c: k(plain()).fit(c.numbers.to_numpy().tolist(), list(c.y)).predict([[0.1]]).shape,
        (1,),
    ),
    "boolean labels": (lambda k, c: k(mixed()).fit(c.x, c.y == "sick").predict(c.x).dtype, np.dtype(bool)),
    "nullable labels": (
        lambda k, c: k(mixed()).fit(c.x, (c.y == "sick").astype("Int64") + 3).classes_.tolist(),
        [3, 4],
    ),
    "categorical labels": (
        lambda k, c: set(k(mixed()).fit(c.x, c.y.astype("category")).predict(c.x)),
        {"sick", "well"},
    ),
    "string labels for XGBoost": (
        lambda k, c: set(k([("x", XGBClassifier(n_estimators=5)), *plain()]).fit(c.numbers, c.x.c).classes_),
        {"x", "y", "z"},
    ),
    "nested parameters": (
        lambda k, _: k(mixed()).set_params(linear__logisticregression__C=7.0).named_estimators["linear"][-1].C,
        7.0,
    ),
    "replaced estimator": (
        lambda k, c: k(plain()).set_params(tree=GaussianNB()).fit(c.numbers, c.y).estimators_[1].__class__.__name__,
        "GaussianNB",
    ),
    "dropped estimator": (lambda k, c: len(k(mixed()).set_params(linear="drop").fit(c.x, c.y).estimators_), 1),
    "named estimators": (lambda k, c: sorted(k(mixed()).fit(c.x, c.y).named_estimators_), ["linear", "trees"]),
    "grid over nested parameters": (
        lambda k, c: set(
            GridSearchCV(k(mixed()), {"linear__logisticregression__C": [0.1, 1], "trees__max_iter": [3, 5]}, cv=2)
            .fit(c.x, c.y)
            .best_params_
        ),
        {"linear__logisticregression__C", "trees__max_iter"},
    ),
    "grid over whole estimators": (
        lambda k, c: (
            GridSearchCV(k(plain()), {"tree": [GaussianNB(), "drop"]}, cv=2).fit(c.numbers, c.y).best_score_ > 0
        ),
        True,
    ),
    "grid with groups": (
        lambda k, c: (
            GridSearchCV(k(mixed()), {"trees__max_iter": [3, 5]}, cv=GroupKFold(2))
            .fit(c.x, c.y, groups=c.groups)
            .best_score_
            > 0.7
        ),
        True,
    ),
    "clone": (lambda k, c: clone(k(mixed()).fit(c.x, c.y)).get_params()["trees__max_iter"], 8),
    "pickle": (lambda k, c: pickle.loads(pickle.dumps(k(mixed()).fit(c.x, c.y))).score(c.x, c.y) > 0.8, True),  # noqa: S301
    "cross-validated probabilities": (
        lambda k, c: cross_val_predict(k(mixed()), c.x, c.y, cv=3, method="predict_proba").shape,
        (CASES, 2),
    ),
    "calibration around it": (
        lambda k, c: CalibratedClassifierCV(k(mixed()), cv=3).fit(c.x, c.y).score(c.x, c.y) > 0.8,
        True,
    ),
    "calibration of the frozen": (
        lambda k, c: (
            CalibratedClassifierCV(FrozenEstimator(k(mixed()).fit(c.x, c.y))).fit(c.x, c.y).score(c.x, c.y) > 0.8
        ),
        True,
    ),
    "tuned threshold around it": (
        lambda k, c: (
            TunedThresholdClassifierCV(k(mixed()), cv=2).fit(c.x, c.y == "sick").score(c.x, c.y == "sick") > 0.8
        ),
        True,
    ),
    "bagging around it": (
        lambda k, c: BaggingClassifier(k(plain()), n_estimators=2).fit(c.numbers, c.y).predict(c.numbers).shape,
        (CASES,),
    ),
    "one against the rest": (
        lambda k, c: OneVsRestClassifier(k(plain())).fit(c.numbers, c.x.c).predict_proba(c.numbers).shape,
        (CASES, 3),
    ),
    "pandas output": (
        lambda k, c: type(k(mixed()).fit(c.x, c.y).set_output(transform="pandas").transform(c.x)).__name__,
        "DataFrame",
    ),
    "last step of a pipeline": (
        lambda k, c: make_pipeline(StandardScaler(), k(plain())).fit(c.numbers, c.y).predict(c.numbers).shape,
        (CASES,),
    ),
    "pipelines with pandas output inside": (
        lambda k, c: (
            k([("p", make_pipeline(SimpleImputer(), GaussianNB()).set_output(transform="pandas")), *plain()[1:]])
            .fit(c.x[["a", "b"]], c.y)
            .predict(c.x[["a", "b"]])
            .shape
        ),
        (CASES,),
    ),
    "weights": (lambda k, c: k(plain()).fit(c.numbers, c.y, sample_weight=c.weight).predict(c.numbers).shape, (CASES,)),
    "fitted and frozen estimators": (
        lambda k, c: (
            k([(n, FrozenEstimator(m.fit(c.x[:99], c.y[:99]))) for n, m in mixed()])
            .fit(c.x[99:], c.y[99:])
            .score(c.x, c.y)
            > 0.8
        ),
        True,
    ),
    "permutation importance": (
        lambda k, c: (
            permutation_importance(k(mixed()).fit(c.x, c.y), c.x[:40], c.y[:40], n_repeats=1).importances.shape
        ),
        (3, 1),
    ),
    "parallel fits": (lambda k, c: k(mixed()).set_params(n_jobs=2).fit(c.x, c.y).score(c.x, c.y) > 0.8, True),
    "an ensemble inside": (
        lambda k, c: (
            k([("vote", VotingClassifier(mixed(), voting="soft")), *mixed()]).fit(c.x, c.y).score(c.x, c.y) > 0.8
        ),
        True,
    ),
    "names of the features": (lambda k, c: list(k(plain()).fit(c.numbers, c.y).feature_names_in_), ["b"]),
    "one case at a time": (lambda k, c: k(mixed()).fit(c.x, c.y).predict(c.x[:1]).shape, (1,)),
    "a class with one case": (
        lambda k, c: k(plain()).fit(c.numbers, ["a"] * (CASES - 1) + ["b"]).classes_.tolist(),
        ["a", "b"],
    ),
    "a rare class in stacking": (
        lambda k, c: (
            StackingClassifier([("inner", k(plain()))], cv=2)
            .fit(c.numbers, ["a"] * 4 + ["b"] * (CASES - 4))
            .predict_proba(c.numbers)
            .shape
        ),
        (CASES, 2),
    ),
    "rows keep their index in pandas output": (
        lambda k, c: (
            k(plain()).set_output(transform="pandas").fit(c.numbers, c.y).transform(c.numbers[::2]).index.tolist()
            == c.numbers.index[::2].tolist()
        ),
        True,
    ),
    "a page in a notebook": (lambda k, _: "linear" in k(mixed())._repr_html_(), True),
}


def check_use(use: Callable[[Build, Any], Any], expected: Any, cases: Any) -> None:
    """Check that a use of a voting classifier and of a cascade gives what is expected, without a warning."""
    for build in (lambda m: CascadeClassifier(m, random_state=0), lambda m: VotingClassifier(m, voting="soft")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert use(build, cases) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_what_works_with_a_voting_classifier_works_with_a_cascade(name: str, cases: Cases) -> None:
    """Each use gives what is expected from both, without a warning; so the table itself is checked as well."""
    check_use(*USES[name], cases)


def cascade(models: Any, **options: Any) -> CascadeClassifier:
    return CascadeClassifier(models, random_state=0, **options)


OWN_USES: dict[str, Callable[[Cases], bool]] = {
    "grid over the cascade's parameters": lambda c: (
        set(
            GridSearchCV(cascade(mixed()), {"max_models": [1, 2], "confidence": ["margin"]}, cv=2)
            .fit(c.x, c.y)
            .best_params_
        )
        == {"max_models", "confidence"}
    ),
    "decision functions": lambda c: (
        cascade([("svc", make_pipeline(StandardScaler(), LinearSVC())), *plain()]).fit(c.numbers, c.y).classes_.shape
        == (2,)
    ),
    "weights of pipelines": lambda c: cascade(mixed()).fit(c.x, c.y, sample_weight=c.weight).score(c.x, c.y) > 0.8,
    "prices by name": lambda c: (
        cascade(mixed(), prices={"trees": 9, "linear": 1}).fit(c.x, c.y).prices_.tolist() == [1, 9]
    ),
    "prices of what is not dropped": lambda c: (
        cascade(mixed(), prices=[1, 9]).set_params(linear="drop").fit(c.x, c.y).prices_.tolist() == [9]
    ),
    "measured prices": lambda c: cascade(texts()).fit(c.texts, c.y).price_unit_ == "microseconds",
    "prefit estimators": lambda c: (
        cascade([(n, m.fit(c.x[:99], c.y[:99])) for n, m in mixed()], cv="prefit")
        .fit(c.x[99:], c.y[99:])
        .score(c.x, c.y)
        > 0.8
    ),
    "every fold by groups": lambda c: cascade(mixed()).fit(c.x, c.y, groups=c.groups).score(c.x, c.y) > 0.8,
    "groups as words": lambda c: (
        cascade(mixed()).fit(c.x, c.y, groups=pd.Series(c.groups, index=c.x.index).astype(str)).score(c.x, c.y) > 0.8
    ),
    "a splitter by groups": lambda c: (
        cascade(mixed(), cv=StratifiedGroupKFold(3)).fit(c.x, c.y, groups=c.groups).score(c.x, c.y) > 0.8
    ),
    "folds in time order": lambda c: cascade(mixed(), cv=TimeSeriesSplit(3)).fit(c.x, c.y).score(c.x, c.y) > 0.8,
    "overlapping folds": lambda c: (
        cascade(mixed(), cv=ShuffleSplit(3, random_state=0)).fit(c.x, c.y).score(c.x, c.y) > 0.8
    ),
    "one case left out": lambda c: (
        cascade([("nb", GaussianNB()), *plain()[1:]], cv=LeaveOneOut()).fit(c.numbers[:40], c.y[:40]).names_
        == ("nb", "tree")
    ),
    "given folds": lambda c: (
        cascade(plain(), cv=[(np.arange(120), np.arange(120, 240))]).fit(c.numbers, c.y).classes_.shape == (2,)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_USES)
def test_uses_beyond_those_of_a_voting_classifier(name: str, cases: Cases) -> None:
    """Each use works without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert OWN_USES[name](cases)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda c: cascade(mixed()).fit(c.x, ["a"] * CASES), ValueError, "there is one class: a"),
        (lambda c: cascade(mixed()).fit(c.x, c.y, groups=c.y == "sick"), ValueError, "trains on one class only"),
        (lambda c: cascade(mixed()).fit(c.x, c.y, groups=np.zeros(CASES)), ValueError, "groups has one group only"),
        (lambda c: cascade(mixed()).fit(c.x, c.y, groups=[1, 2]), ValueError, "inconsistent numbers of samples"),
        (lambda c: cascade(mixed(), cv="prefit").fit(c.x, c.y), ValueError, "not fitted yet"),
        (
            lambda c: cascade([(n, m.fit(c.x, c.y == "sick")) for n, m in mixed()], cv="prefit").fit(c.x, c.y),
            ValueError,
            "'linear' predicts labels such as False, but y has labels such as sick",
        ),
        (lambda c: cascade([("a", "drop")]).fit(c.x, c.y), ValueError, "all estimators are dropped"),
        (lambda c: cascade([("ridge", Ridge())]).fit(c.x, c.y), ValueError, "'ridge' must be a classifier, not Ridge"),
        (lambda c: cascade([("a__b", GaussianNB())]).fit(c.x, c.y), ValueError, "must not contain __"),
        (lambda c: cascade([("budget", GaussianNB())]).fit(c.x, c.y), ValueError, "conflict with constructor"),
        (lambda c: cascade(mixed(), prices={"trees": 1}).fit(c.x, c.y), ValueError, "check linear"),
        (lambda c: cascade(mixed(), prices=[1, -1]).fit(c.x, c.y), ValueError, "not negative"),
        (lambda c: cascade(mixed(), folds=1).fit(c.x, c.y), ValueError, "folds must be at least 2"),
        (lambda c: cascade(plain()).fit(c.numbers, np.eye(2, dtype=int)[c.groups % 2]), ValueError, "one label a case"),
        (
            lambda c: cascade([("near", KNeighborsClassifier()), *plain()]).fit(c.numbers, c.y, sample_weight=c.weight),
            TypeError,
            r"'near' \(KNeighborsClassifier\) does not support sample_weight",
        ),
        (lambda c: cascade(plain()).fit(c.numbers, c.y, depth=c.weight), TypeError, "enable_metadata_routing"),
        (lambda c: cascade(plain()).fit(c.numbers, c.y, sample_weight=-c.weight), ValueError, "[Nn]egative"),
    ],
)
def test_misuse_is_an_error_that_names_the_culprit(
    attempt: Callable[[Cases], Any], error: type[Exception], message: str, cases: Cases
) -> None:
    """What cannot work fails in ``fit``, with the estimator, class or parameter in the message."""
    with pytest.raises(error, match=message):
        attempt(cases)


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_weights_and_groups_are_routed(cases: Cases) -> None:
    """Weights reach the estimators that request them; groups reach the folds unrequested, through searches too."""
    weighted = LogisticRegression().set_fit_request(sample_weight=True)
    blind = DecisionTreeClassifier(max_depth=2).set_fit_request(sample_weight=False)
    model = cascade([("linear", weighted), ("tree", blind)])
    fitted = model.fit(cases.numbers, cases.y, sample_weight=cases.weight)
    alone = LogisticRegression().fit(cases.numbers, cases.y == "well", sample_weight=cases.weight)
    np.testing.assert_allclose(fitted.estimators_[0].coef_, alone.coef_)
    search = GridSearchCV(cascade(plain(), cv=GroupKFold(3)), {"linear__C": [1, 2]}, cv=GroupKFold(2))
    assert search.fit(cases.numbers, cases.y, groups=cases.groups).best_score_ > 0
    chained = make_pipeline(StandardScaler(), cascade(plain(), cv=GroupKFold(3)))
    scores = cross_validate(chained, cases.numbers, cases.y, params={"groups": cases.groups}, cv=GroupKFold(2))
    assert len(scores["test_score"]) == 2
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match=r"LogisticRegression\.set_fit_request"):
        cascade(plain()).fit(cases.numbers, cases.y, sample_weight=cases.weight)


def test_no_group_is_on_both_sides_of_a_fold(cases: Cases) -> None:
    """Labels that only the group determines are worthless on other groups, and the front must show it.

    Without groups the nearest neighbours find the copies of a case, and promise what new groups do not get.
    """
    rng = np.random.default_rng(1)
    patients = rng.normal(size=(60, 4))
    x, groups = np.repeat(patients, 8, axis=0), np.repeat(np.arange(60), 8)
    y = np.repeat(rng.integers(0, 2, 60), 8)
    models = [("near", KNeighborsClassifier(1)), ("tree", DecisionTreeClassifier(random_state=0))]
    assert cascade(models).fit(x, y).front_.front.loss.min() < 0.02
    assert cascade(models).fit(x, y, groups=groups).front_.front.loss.min() > 0.3


def test_weights_count_in_the_search(cases: Cases) -> None:
    """Loss and cost along the front are weighted means: rows of weight 0 do not count, equal weights change nothing."""
    # models that do not depend on the scale of weights
    models = [("bayes", GaussianNB()), ("tree", DecisionTreeClassifier(max_depth=2, random_state=0))]
    model, weight = cascade(models, prices=[1, 5]), np.full(CASES, 3.0)
    equal = clone(model).fit(cases.numbers, cases.y, sample_weight=weight).front_.front
    unweighted = clone(model).fit(cases.numbers, cases.y).front_.front
    np.testing.assert_allclose(equal.loss, unweighted.loss)
    np.testing.assert_allclose(equal.cost, unweighted.cost)
    fitted = [(name, FrozenEstimator(m.fit(cases.numbers, cases.y))) for name, m in plain()]
    half = np.arange(CASES) < CASES // 2
    ignored = cascade(fitted, prices=[1, 5], cv="prefit").fit(cases.numbers, cases.y, sample_weight=half.astype(float))
    removed = cascade(fitted, prices=[1, 5], cv="prefit").fit(cases.numbers[half], cases.y[half])
    np.testing.assert_allclose(ignored.front_.front.loss, removed.front_.front.loss)


def test_gates_read_the_last_step_of_a_pipeline(cases: Cases) -> None:
    """Evidence and agreement are read behind the preprocessing, for frames and sparse matrices alike."""
    from sklearn.ensemble import RandomForestClassifier

    forests = [
        (name, make_pipeline(SimpleImputer(), RandomForestClassifier(trees, random_state=0)))
        for name, trees in (("few", 4), ("many", 12))
    ]
    for confidence in ("evidential", "ensemble"):
        model = cascade(forests, prices=[1, 3], confidence=confidence).fit(cases.x[["a", "b"]], cases.y)
        assert 0 < model.front_.front.cost.min() <= 4
        bare = cascade([(n, m[-1]) for n, m in forests], prices=[1, 3], confidence=confidence)
        assert bare.fit(sparse(cases, "csr"), cases.y).score(sparse(cases, "csr"), cases.y) > 0.9


def test_stacking_accepts_the_same_estimators(cases: Cases) -> None:
    """A cascade is an estimator of a stack, and takes the estimators of one."""
    stack = StackingClassifier([("cascade", cascade(mixed(), prices=[1, 3])), *mixed()], cv=3).fit(cases.x, cases.y)
    assert cascade(stack.estimators[1:]).fit(cases.x, cases.y).score(cases.x, cases.y) > 0.8
