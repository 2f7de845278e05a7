"""Laws of the classifier in unusual use: dtypes, containers and meta-estimators that a voting classifier accepts."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - registers the searches
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.impute import SimpleImputer
from sklearn.inspection import partial_dependence
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    LeaveOneGroupOut,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from plugins.cascade.tests.test_classifier_uses import CASES, Cases, check_use, counts, plain
from unfold_cascade.classifier import CascadeClassifier

Build = Callable[..., Any]
WORDS = pd.Series(["good day", "bad day"] * (CASES // 2), dtype="string")


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases()


def strings(cases: Cases, dtype: str) -> pd.DataFrame:
    """A frame of numbers, strings with missing values, and a category with missing values."""
    frame = cases.x[["b"]].copy()
    frame["s"] = cases.x.c.astype(dtype)
    frame.loc[frame.index[::9], "s"] = pd.NA
    frame["k"] = cases.x.c.where(np.arange(CASES) % 11 > 0)
    return frame


def encoders() -> list[tuple[str, Any]]:
    """Models of strings and categories: one-hot columns, missing values filled first."""
    fill = SimpleImputer(missing_values=pd.NA, strategy="constant", fill_value="none")
    words = make_pipeline(fill, OneHotEncoder(handle_unknown="ignore"))
    columns = make_column_transformer((words, ["s"]), (OneHotEncoder(handle_unknown="ignore"), ["k"]), ("drop", ["b"]))
    return [
        ("linear", make_pipeline(columns, LogisticRegression())),
        ("tree", make_pipeline(clone(columns), DecisionTreeClassifier(max_depth=3, random_state=0))),
    ]


def trees() -> list[tuple[str, Any]]:
    return [
        (name, HistGradientBoostingClassifier(max_iter=rounds, random_state=0)) for name, rounds in (("a", 3), ("b", 6))
    ]


def shape_of(build: Build, models: list[tuple[str, Any]], x: Any, y: Any) -> tuple[int, ...]:
    """Fit on all cases and return the shape of their probabilities."""
    shape: tuple[int, ...] = build(models).fit(x, y).predict_proba(x).shape
    return shape


def fit_memory_map(build: Build, cases: Cases, folder: Path) -> tuple[int, ...]:
    joblib.dump(cases.numbers.to_numpy(), folder / "x.joblib")
    x = joblib.load(folder / "x.joblib", mmap_mode="r")
    shape: tuple[int, ...] = build(plain()).set_params(n_jobs=2).fit(x, cases.y).predict(x).shape
    return shape


def route_nested_weights(build: Build, cases: Cases) -> bool:
    """Route weights through a search and a pipeline to the steps of a pipeline inside."""
    with sklearn.config_context(enable_metadata_routing=True):
        inner = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=True),
            LogisticRegression().set_fit_request(sample_weight=True),
        )
        tree = DecisionTreeClassifier(max_depth=2).set_fit_request(sample_weight=True)
        outer = make_pipeline(MaxAbsScaler(), build([("linear", inner), ("tree", tree)]))
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        grid = {f"{outer.steps[-1][0]}__tree__max_depth": [1, 2]}
        search = GridSearchCV(outer, grid, cv=2, scoring=scorer).fit(cases.numbers, cases.y, sample_weight=cases.weight)
        return bool(search.best_score_ > 0)


def fit_in_threads(build: Build, cases: Cases) -> tuple[int, ...]:
    with joblib.parallel_config("threading", n_jobs=2):
        return shape_of(build, plain(), cases.numbers, cases.y)


def fit_polars(build: Build, cases: Cases) -> tuple[list[str], str]:
    polars = pytest.importorskip("polars")
    x = polars.DataFrame({"b": cases.numbers["b"].to_numpy()})
    model = build(plain()).set_output(transform="polars").fit(x, polars.Series(cases.y.tolist()))
    return list(model.feature_names_in_), type(model.transform(x)).__module__.partition(".")[0]


def refuse(build: Build, x: Any, y: Any) -> bool:
    with pytest.raises((ValueError, NotImplementedError, TypeError)):
        build(plain()).fit(x, y)
    return True


def label_half(cases: Cases) -> np.ndarray:
    return np.where(np.arange(CASES) % 3 == 0, -1, cases.y == "sick")


def keep_answers(build: Build, cases: Cases, copy: Callable[[Any], Any]) -> bool:
    frame = strings(cases, "string")
    model = build(encoders()).fit(frame, cases.y)
    return bool((copy(model).predict(frame) == model.predict(frame)).all())


def dump_and_load(model: Any) -> Any:
    stream = io.BytesIO()
    joblib.dump(model, stream, compress=3)
    stream.seek(0)
    return joblib.load(stream)


USES: dict[str, tuple[Callable[[Build, Cases], Any], Any]] = {
    **{
        f"strings and categories with missing values, {dtype}": (
            lambda k, c, d=dtype: shape_of(k, encoders(), strings(c, d), c.y),
            (CASES, 2),
        )
        for dtype in ("string", "string[pyarrow]")
    },
    "nullable numbers and flags": (
        lambda k, c: shape_of(k, trees(), c.x[["a"]].assign(o=(c.x.c == "x").astype("boolean")).convert_dtypes(), c.y),
        (CASES, 2),
    ),
    "columns selected by dtype": (
        lambda k, c: shape_of(
            k,
            [
                (name, make_pipeline(make_column_transformer((scale, make_column_selector(dtype_include="float"))), m))
                for name, scale, m in (
                    ("a", StandardScaler(), GaussianNB()),
                    ("b", MaxAbsScaler(), LogisticRegression()),
                )
            ],
            c.x[["b", "c"]],
            c.y,
        ),
        (CASES, 2),
    ),
    "frames of polars": (fit_polars, (["b"], "polars")),
    "a series of nullable strings as text": (
        lambda k, c: shape_of(
            k,
            [
                (name, make_pipeline(sklearn.feature_extraction.text.HashingVectorizer(n_features=n, norm=norm), model))
                for name, n, norm, model in (
                    ("a", 8, "l1", LogisticRegression()),
                    ("b", 64, "l2", LogisticRegression()),
                )
            ],
            WORDS,
            c.y,
        ),
        (CASES, 2),
    ),
    "dictionaries": (
        lambda k, c: shape_of(
            k,
            [
                ("a", make_pipeline(DictVectorizer(), LogisticRegression())),
                ("b", make_pipeline(DictVectorizer(), DecisionTreeClassifier(max_depth=2))),
            ],
            [{"b": value, "c": word} for value, word in zip(c.x.b, c.x.c, strict=True)],
            c.y,
        ),
        (CASES, 2),
    ),
    **{
        f"sparse {form}": (
            lambda k, c, f=form: shape_of(k, counts(), getattr(sp, f)(np.abs(c.numbers.to_numpy())), c.y),
            (CASES, 2),
        )
        for form in ("csr_array", "coo_array", "bsr_array", "dok_array")
    },
    "arrays in column order": (
        lambda k, c: shape_of(k, plain(), np.asfortranarray(c.x[["b", "b"]].to_numpy()), c.y),
        (CASES, 2),
    ),
    "two levels of the index": (
        lambda k, c: shape_of(k, plain(), c.numbers.set_index([np.arange(CASES) // 2, np.arange(CASES) % 2]), c.y),
        (CASES, 2),
    ),
    "labels of a string dtype": (
        lambda k, c: set(k(plain()).fit(c.numbers, c.y.astype("string")).predict(c.numbers)) <= {"sick", "well"},
        True,
    ),
    "labels of fixed width": (
        lambda k, c: k(plain()).fit(c.numbers, c.y.to_numpy().astype("U4")).classes_.tolist(),
        ["sick", "well"],
    ),
    "labels -1 and 1": (
        lambda k, c: k(plain()).fit(c.numbers, np.where(c.y == "sick", 1, -1)).classes_.tolist(),
        [-1, 1],
    ),
    "a class of three cases": (
        lambda k, c: shape_of(k, plain(), c.numbers, ["a"] * 3 + ["b"] * 120 + ["c"] * (CASES - 123)),
        (CASES, 3),
    ),
    "a class that outer folds miss": (
        lambda k, c: (
            cross_val_score(k(plain()), c.numbers, ["a"] * 2 + ["b", "c"] * (CASES // 2 - 1), cv=KFold(3)).shape
        ),
        (3,),
    ),
    "several labels a case": (lambda k, c: refuse(k, c.numbers, np.column_stack([c.y == "sick", c.y == "well"])), True),
    "sparse labels": (lambda k, c: refuse(k, c.numbers, sp.csr_array(np.eye(CASES, 2, dtype=int))), True),
    "several outputs around it": (
        lambda k, c: MultiOutputClassifier(k(plain())).fit(c.numbers, np.c_[c.y, c.y[::-1]]).predict(c.numbers).shape,
        (CASES, 2),
    ),
    "a chain of outputs around it": (
        lambda k, c: (
            ClassifierChain(k(plain()), cv=2)
            .fit(c.numbers, np.c_[c.y == "sick", c.x.c == "x"].astype(int))
            .predict(c.numbers)
            .shape
        ),
        (CASES, 2),
    ),
    "halving over cases": (
        lambda k, c: (
            HalvingRandomSearchCV(k(plain()), {"tree__max_depth": [1, 2, 3, 4]}, cv=2, random_state=0, min_resources=60)
            .fit(c.numbers, c.y)
            .best_score_
            > 0
        ),
        True,
    ),
    "halving over a parameter inside": (
        lambda k, c: (
            HalvingGridSearchCV(
                k(trees()),
                {"b__learning_rate": [0.1, 0.3]},
                resource="a__max_iter",
                max_resources=4,
                cv=2,
                random_state=0,
            )
            .fit(c.numbers, c.y)
            .best_score_
            > 0
        ),
        True,
    ),
    "a search of two scores in parallel": (
        lambda k, c: (
            GridSearchCV(
                k(plain()), {"linear__C": [1, 2]}, scoring=["accuracy", "roc_auc"], refit="roc_auc", cv=2, n_jobs=2
            )
            .fit(c.numbers, c.y)
            .best_score_
            > 0
        ),
        True,
    ),
    "weights through nested pipelines": (route_nested_weights, True),
    "scores by groups": (
        lambda k, c: (
            cross_validate(
                k(plain()),
                c.numbers,
                c.y,
                groups=c.groups,
                cv=GroupKFold(3),
                scoring=["roc_auc", "neg_log_loss"],
                return_estimator=True,
            )["test_roc_auc"].shape
        ),
        (3,),
    ),
    "one group left out": (
        lambda k, c: cross_val_score(k(plain()), c.numbers, c.y, groups=c.groups // 12, cv=LeaveOneGroupOut()).shape,
        (4,),
    ),
    "isotonic calibration without an ensemble": (
        lambda k, c: shape_of(
            lambda m: CalibratedClassifierCV(k(m), method="isotonic", cv=2, ensemble=False), plain(), c.numbers, c.y
        ),
        (CASES, 2),
    ),
    "calibrated models inside": (
        lambda k, c: shape_of(k, [("svc", CalibratedClassifierCV(LinearSVC(), cv=2)), *plain()], c.numbers, c.y),
        (CASES, 2),
    ),
    "half of the labels unknown": (
        lambda k, c: SelfTrainingClassifier(k(plain())).fit(c.numbers, label_half(c)).predict(c.numbers).shape,
        (CASES,),
    ),
    "pairs of classes": (
        lambda k, c: OneVsOneClassifier(k(plain())).fit(c.numbers, c.x.c).predict(c.numbers).shape,
        (CASES,),
    ),
    "codes of classes": (
        lambda k, c: OutputCodeClassifier(k(plain()), random_state=0).fit(c.numbers, c.x.c).predict(c.numbers).shape,
        (CASES,),
    ),
    "features selected by it": (
        lambda k, c: int(
            SequentialFeatureSelector(k(trees()), n_features_to_select=1, cv=2).fit(c.x[["a", "b"]], c.y).support_.sum()
        ),
        1,
    ),
    "partial dependence": (
        lambda k, c: (
            partial_dependence(k(plain()).fit(c.numbers, c.y), c.numbers, ["b"], kind="average", grid_resolution=5)[
                "average"
            ].shape
        ),
        (1, 5),
    ),
    "curves over sizes and parameters": (
        lambda k, c: (
            learning_curve(k(plain()), c.numbers, c.y, cv=2, train_sizes=[0.5, 1.0])[1].shape,
            validation_curve(k(plain()), c.numbers, c.y, param_name="linear__C", param_range=[1, 2], cv=2)[0].shape,
        ),
        ((2, 2), (2, 2)),
    ),
    "labels shuffled": (
        lambda k, c: permutation_test_score(k(plain()), c.numbers, c.y, cv=2, n_permutations=2)[1].shape,
        (2,),
    ),
    "a fixed threshold around it": (
        lambda k, c: (
            FixedThresholdClassifier(k(plain()), threshold=0.3).fit(c.numbers, c.y == "sick").predict(c.numbers).shape
        ),
        (CASES,),
    ),
    "a first step of a union": (
        lambda k, c: (
            make_pipeline(FeatureUnion([("k", k(plain())), ("s", StandardScaler())]), LogisticRegression())
            .fit(c.numbers, c.y)
            .predict(c.numbers)
            .shape
        ),
        (CASES,),
    ),
    "probabilities beside the features of a stack": (
        lambda k, c: shape_of(
            lambda m: StackingClassifier([("k", k(m))], passthrough=True, cv=2), plain(), c.numbers, c.y
        ),
        (CASES, 2),
    ),
    "itself inside": (
        lambda k, c: shape_of(k, [("inner", k(plain())), ("bayes", GaussianNB())], c.numbers, c.y),
        (CASES, 2),
    ),
    "threads": (fit_in_threads, (CASES, 2)),
    "clone after set_params": (
        lambda k, _: [
            (model.get_params()["linear__C"], type(model.get_params()["tree"]).__name__)
            for model in [clone(k(plain()).set_params(linear__C=3.0, tree=GaussianNB()))]
        ],
        [(3.0, "GaussianNB")],
    ),
    "pickled with its frames": (
        lambda k, c: keep_answers(k, c, lambda model: pickle.loads(pickle.dumps(model, protocol=5))),  # noqa: S301
        True,
    ),
    "dumped and compressed": (lambda k, c: keep_answers(k, c, dump_and_load), True),
    "fitted on a frame, then on an array": (
        lambda k, c: k(plain()).fit(c.numbers, c.y).fit(c.numbers.to_numpy(), c.y).predict(c.numbers.to_numpy()).shape,
        (CASES,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_unusual_uses_of_a_voting_classifier_work_with_a_cascade(name: str, cases: Cases) -> None:
    """Each use gives what is expected from both, without a warning; so the table itself is checked as well."""
    check_use(*USES[name], cases)


@pytest.mark.slow
def test_a_memory_map_is_shared_by_workers(cases: Cases, tmp_path: Path) -> None:
    """Two workers fit on an array that stays on the disk."""
    assert fit_memory_map(lambda m: CascadeClassifier(m, random_state=0), cases, tmp_path) == (CASES,)


def test_a_nested_cascade_is_priced_by_its_time(cases: Cases) -> None:
    """The operations of a cascade vary by case, so all prices are measured unless they are given."""
    model = CascadeClassifier([("inner", CascadeClassifier(plain(), random_state=0)), ("bayes", GaussianNB())])
    assert model.fit(cases.numbers, cases.y).price_unit_ == "microseconds"
    assert (model.prices_ > 0).all()
