"""Estimators: building, fitting, prediction and safe storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray, Matrix
from unfold_cascade.learners.estimator_names import (
    DEFAULTS,
    LIBRARIES,
    NOT_A_CLASSIFIER,
    SCALED,
    SHORT_NAMES,
    is_classifier,
)
from unfoldkit.api import did_you_mean, user_error
from unfoldkit.safe_io.boosters import check_booster
from unfoldkit.safe_io.files import DAMAGED
from unfoldkit.safe_io.skops import dump_skops, import_skops, load_skops


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made: estimator, parameters, whether its columns are standardized."""

    estimator: str
    params: Mapping[str, Any]
    scale: bool | None = None

    @property
    def is_xgboost(self) -> bool:
        """Whether the model is stored as UBJSON instead of skops."""
        return self.estimator in ("xgboost", "xgboost.XGBClassifier")


def check_recipe(recipe: Recipe, *, key: str, allow_code: bool) -> None:
    """Raise when the estimator does not exist, may not be loaded, or does not take its parameters."""
    path = SHORT_NAMES.get(recipe.estimator, recipe.estimator)
    if "." not in path:
        raise user_error(f'no such estimator: "{path}"', key=key, hint=did_you_mean(path, SHORT_NAMES))
    if not path.startswith(LIBRARIES) and not allow_code:
        raise user_error(
            f"{path} is code outside scikit-learn and XGBoost", key=key, hint="--allow-code lets the spec name it"
        )
    build_estimator(recipe, 0, key=key)
    if not is_classifier(path):
        raise user_error(f"{path} {NOT_A_CLASSIFIER}", key=key, hint=f"one of: {', '.join(SHORT_NAMES)}")


def build_estimator(recipe: Recipe, seed: int, *, nan: bool = False, key: str = "estimator") -> Any:
    """Build an unfitted estimator; ``nan`` adds imputation of missing values, unless the model handles them."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = _instantiate(recipe, seed, key)
    is_scaled = recipe.estimator in SCALED if recipe.scale is None else recipe.scale
    steps = [SimpleImputer(strategy="median", keep_empty_features=True)] if nan and not recipe.is_xgboost else []
    steps += [StandardScaler()] if is_scaled else []
    return make_pipeline(*steps, model) if steps else model


def predict_probabilities(model: Any, x: Matrix, classes: int) -> FloatArray:
    """Predict (n, classes) probabilities; of a model without them the softmax of its decision function."""
    if hasattr(model, "predict_proba"):
        predicted = np.asarray(model.predict_proba(x), dtype=np.float64)
    else:
        predicted = apply_softmax(np.asarray(model.decision_function(x), dtype=np.float64))
    labels = np.asarray(getattr(model, "classes_", np.arange(predicted.shape[1])), dtype=np.int64)
    result = np.zeros((len(x), classes))
    result[:, labels] = predicted
    return result


def fit_estimator(
    recipe: Recipe, x: Matrix, y: IntArray, seed: int, weight: FloatArray | None = None, *, gaps: bool = False
) -> Any:
    """Fit an estimator on ``x`` (n, d) and labels ``y`` (n,) from 0 to C-1.

    Args:
        recipe: How the model is made.
        x: (n, d) features.
        y: (n,) labels.
        seed: Of the estimator.
        weight: (n,) weight of each row; 1 by default.
        gaps: Whether rows to predict may miss values, even if these rows do not.

    Raises:
        UnfoldError: The estimator rejects the data, its parameters, or weights.
    """
    import warnings

    model = build_estimator(recipe, seed, nan=gaps or has_gaps(x))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(x, y, **_weight_options(model, weight))
    except (ValueError, TypeError) as error:
        raise user_error(f"{recipe.estimator} cannot be fitted: {str(error).splitlines()[0]}") from error


def has_gaps(x: Matrix) -> bool:
    """Whether any value is missing."""
    return bool(np.isnan(x).any())


def _weight_options(model: Any, weight: FloatArray | None) -> dict[str, FloatArray]:
    if weight is None:
        return {}
    prefix = f"{model.steps[-1][0]}__" if hasattr(model, "steps") else ""
    return {f"{prefix}sample_weight": weight}


def to_bytes(recipe: Recipe, model: Any) -> bytes:
    """Serialize a fitted model in a format that loads without running code: UBJSON or skops.

    Raises:
        UnfoldError: The file would name a type that loading rejects. A model of allowed code is stored anyway: it can
            be used for planning, but not served.
    """
    if recipe.is_xgboost and not hasattr(model, "steps"):
        return bytes(model.get_booster().save_raw("ubj"))
    if not SHORT_NAMES.get(recipe.estimator, recipe.estimator).startswith(LIBRARIES):
        return bytes(import_skops().dumps(model))
    return dump_skops(model, recipe.estimator)


def from_bytes(data: bytes, *, ubjson: bool, file: str) -> Any:
    """Load the model that ``to_bytes`` stored.

    Raises:
        UnfoldError: The file names a type that is not trusted, or is not a model.
    """
    return _load_xgboost(data, file) if ubjson else load_skops(data, file)


def file_suffix(recipe: Recipe) -> str:
    """Return the file suffix of a stored model."""
    return ".ubj" if recipe.is_xgboost and not recipe.scale else ".skops"


def _instantiate(recipe: Recipe, seed: int, key: str) -> Any:
    import pkgutil

    path = SHORT_NAMES.get(recipe.estimator, recipe.estimator)
    params = {**DEFAULTS.get(recipe.estimator, {}), **recipe.params}
    try:
        cls = pkgutil.resolve_name(path)
        names = cls._get_param_names()  # the private lookup of scikit-learn itself
    except (ImportError, AttributeError, ValueError) as error:
        raise user_error(f'no such estimator: "{path}"', key=key, hint=did_you_mean(path, SHORT_NAMES)) from error
    unknown = [name for name in recipe.params if name not in names and not recipe.is_xgboost]
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise user_error(
            f'{recipe.estimator} has no parameter "{unknown[0]}"', key=key.replace("estimator", "params"), hint=hint
        )
    if "random_state" in names or recipe.is_xgboost:
        params.setdefault("random_state", seed)
    return cls(**params)


def _load_xgboost(data: bytes, file: str) -> Any:
    import xgboost

    check_booster(data, file)
    model = xgboost.XGBClassifier()
    try:
        model.load_model(bytearray(data))
    except (xgboost.core.XGBoostError, *DAMAGED) as error:
        raise user_error(f"not a stored XGBoost model: {str(error).partition(chr(10))[0]}", file=file) from error
    return model


def apply_softmax(score: FloatArray) -> FloatArray:
    """Apply the softmax to (n, C) scores, or to the (n,) score of the second of two classes, which gives (n, 2)."""
    if score.ndim == 1:
        score = np.column_stack([-score / 2, score / 2])
    shifted = np.exp(score - score.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result
