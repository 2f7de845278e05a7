"""Load the model of a stage. Files are loaded without executing code from them; code runs only with permission."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import RowArray
from unfold_pipeline.problem.model_source import ModelSource, hash_source, load_digits
from unfold_pipeline.runtime.models.onnx_inputs import load_onnx
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.boosters import check_booster
from unfoldkit.safe_io.files import read_bytes, require_regular
from unfoldkit.safe_io.skops import load_skops

Predict = Callable[[Any], Any]
"""Takes rows, shape (batch, features), or tensors by name, and returns an output per row, or several by name."""
LABEL = "label"
PROBABILITIES = "probabilities"
SKLEARN_METHODS = ("predict_proba", "predict", "transform")
SYNTHETIC_ROWS = 512
DIGITS_WIDTH = 64
MAX_MESSAGE_CHARACTERS = 200


def load_model(source: ModelSource) -> Predict:
    """Return the function that answers a batch of rows.

    Raises:
        UnfoldError: The file is damaged, the code does not exist, or either has changed since the service started.
    """
    try:
        predict, columns = _load_predict(source), list(source.columns)
    finally:
        # after loading: a file that is being replaced may be damaged, or a mixture
        _require_same_model(source)
    return (lambda rows: predict(rows[:, columns])) if columns else predict


def load_rows(source: ModelSource, width: int | None) -> RowArray:
    """Return rows to profile with: those of the spec's file, the digits data set, or random numbers in 0..1.

    Args:
        source: The model.
        width: Numbers per row that the model determines, if any.

    Raises:
        UnfoldError: The file holds no queries.
    """
    if source.rows_file:
        return _read_rows(source.rows_file)
    if source.features is None and width in (None, DIGITS_WIDTH):
        return load_digits()[0]
    shape = (SYNTHETIC_ROWS, source.features or width or 1)
    return np.random.default_rng(0).random(shape).astype(np.float32)


def read_width(stage: str, source: ModelSource) -> int | None:
    """Return the numbers that a stage's model takes per row, where its file states them.

    Raises:
        UnfoldError: The file is damaged, or no row can fill an input of an ONNX model.
    """
    hint = "is the file complete? save the model again"
    try:
        return _read_width(source)
    except UnfoldError as error:
        problem = error.diagnostics[0]
        message = f"cannot load the model {problem.file}: {problem.message}" if problem.file else problem.message
        raise user_error(message, key=f"stages.{stage}.model", hint=problem.hint or hint) from error
    except Exception as error:  # each library has its own errors for a damaged file
        message = f"cannot load the model {source.path}: {summarize_error(error)}"
        raise user_error(message, key=f"stages.{stage}.model", hint=hint) from error


def fit_rows(stage: str, source: ModelSource, rows: RowArray) -> RowArray:
    """Return rows of which an ONNX model can read all numbers: whole ones, where it takes integers.

    Raises:
        UnfoldError: Names the model, the input, its type and its shape.
    """
    if not source.path.endswith(".onnx"):
        return rows
    try:
        model = load_onnx(source.path)
        model.check_width(source.path, len(source.columns) or rows.shape[1])
    except UnfoldError as error:
        problem = error.diagnostics[0]
        raise user_error(problem.message, key=f"stages.{stage}.model", hint=problem.hint) from error
    return np.trunc(rows) if any(item.is_whole for item in model.inputs) else rows


def summarize_error(error: BaseException) -> str:
    """Return the first line of a library's message, without the position in its own sources."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a class of the model may raise even here
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", lines[0])[:MAX_MESSAGE_CHARACTERS]


def _load_predict(source: ModelSource) -> Predict:
    if source.code:
        return _import_function(source)
    require_regular(source.path)
    loaders: dict[str, Callable[[str], Predict]] = {
        ".onnx": partial(load_onnx, on_gpu=source.on_gpu),
        ".skops": partial(_load_sklearn, has_label=LABEL in source.wanted),
    }
    try:
        return loaders.get(Path(source.path).suffix, _load_xgboost)(source.path)
    except UnfoldError:
        raise
    except Exception as error:  # each library has its own errors for a damaged file
        raise user_error(f"cannot load the model: {summarize_error(error)}", file=source.path) from error


def _require_same_model(source: ModelSource) -> None:
    if source.sha256 and hash_source(source) != source.sha256:
        subject = "the file" if source.path else f"the code of {source.code}"
        hint = f"start the service again, or put {'the file' if source.path else 'it'} back"
        raise user_error(f"{subject} has changed since the service started", file=source.path, hint=hint)


def _read_rows(path: str) -> RowArray:
    try:
        rows: RowArray = read_npz(read_bytes(path), path, ("x",))["x"].astype(np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise user_error(f"holds no queries: {error}", file=path, hint="an NPZ file with an array x") from error
    if rows.ndim != 2 or not rows.size:
        raise user_error(f"an array x of shape {rows.shape} does not hold rows of queries", file=path)
    return rows


def _read_width(source: ModelSource) -> int | None:
    suffix = Path(source.path).suffix if source.path else ""
    if suffix:
        require_regular(source.path)
    if suffix in (".ubj", ".json"):
        return int(load_booster(source.path).num_features())
    if suffix == ".skops":
        return getattr(load_skops(read_bytes(source.path), source.path), "n_features_in_", None)
    if suffix == ".onnx":
        return load_onnx(source.path).width
    return None


def _import_function(source: ModelSource) -> Predict:
    module, _, name = source.code.partition(":")
    sys.path.insert(0, source.folder)
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise user_error(f"cannot import {source.code}: {error}") from error
    return lambda batch: function(**batch) if isinstance(batch, dict) else function(batch)


def _load_xgboost(path: str) -> Predict:
    booster = load_booster(path)
    return _warm_up(lambda rows: np.asarray(booster.inplace_predict(rows)), booster.num_features())


def load_booster(path: str) -> Any:
    """Return the trees of an XGBoost file, for one core."""
    import xgboost

    data = read_bytes(path)
    check_booster(data, path)
    return xgboost.Booster({"nthread": 1}, model_file=bytearray(data))


def name_sklearn_output(estimator: Any) -> str:
    """Return the name of what an estimator returns by itself: ``probabilities``, ``label`` or ``output``."""
    if hasattr(estimator, "predict_proba"):
        return PROBABILITIES
    return LABEL if hasattr(estimator, "classes_") and hasattr(estimator, "predict") else "output"


def _load_sklearn(path: str, *, has_label: bool) -> Predict:
    estimator = load_skops(read_bytes(path), path)
    method = getattr(estimator, next(name for name in SKLEARN_METHODS if hasattr(estimator, name)))
    width = getattr(estimator, "n_features_in_", 1)
    if has_label and name_sklearn_output(estimator) == PROBABILITIES:
        return _warm_up(
            lambda rows: {PROBABILITIES: np.asarray(method(rows)), LABEL: np.asarray(estimator.predict(rows))}, width
        )
    return _warm_up(lambda rows: np.asarray(method(rows)), width)


def _warm_up(predict: Predict, width: int) -> Predict:
    """Return a model after a first row: the libraries load parts of themselves then, which no query should wait for."""
    with contextlib.suppress(Exception):
        predict(np.zeros((1, width), np.float32))
    return predict
