"""What runs in a stage: files are loaded without executing code from them; code runs only where it is allowed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.runtime import onnx_inputs
from unfold_pipeline.schema.models import ModelSpec
from unfoldkit.api import Run, UnfoldError, fail, fingerprint
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.boosters import check_booster
from unfoldkit.safe_io.files import read_bytes, require_regular
from unfoldkit.safe_io.skops import dump_skops, load_skops

Rows = NDArray[np.float32]
Predict = Callable[[Rows], NDArray[Any]]
MEASURED = 3  # how profiles are measured; a profile of another way is measured again
START_S = 180.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where a replica finds its model: a file, or ``code`` as ``module:function`` with the folder to import from.

    ``columns`` are the numbers of a query that it reads; all if there are none. It may take ``start`` s to load.
    """

    path: str = ""
    code: str = ""
    folder: str = ""
    columns: tuple[int, ...] = ()
    start: float = START_S


def source_of(stage: str, model: ModelSpec, run: Run) -> Source:
    """Return where a stage's model is; an estimator is fitted and stored in the run first.

    Raises:
        UnfoldError: the file is not there or of an unknown kind, or the spec names code without leave.
    """
    if model.code is not None:
        if not run.allow_code:
            hint = "--allow-code lets it run; only for specs that you trust"
            raise fail(f"{model.code} is code, which a spec may not run", key=f"stages.{stage}.model.code", hint=hint)
        return _source(model, code=model.code, folder=str(run.base.absolute()))
    if model.file is not None:
        path = run.path(model.file, key=f"stages.{stage}.model.file")
        if path.suffix not in (".ubj", ".json", ".skops", ".onnx"):
            hint = "one of: .ubj, .json (XGBoost), .skops (scikit-learn), .onnx"
            raise fail(f"cannot load a model that ends in {path.suffix!r}", file=str(path), hint=hint)
        return _source(model, path=str(path.absolute()))
    return _source(model, path=str(_fitted(stage, model, run)))


def _source(model: ModelSpec, **place: str) -> Source:
    return Source(**place, columns=model.columns or (), start=model.start or START_S)


def identity(source: Source, model: ModelSpec, pinned: bool = False) -> str:
    """Return a fingerprint of a model: of its file, or its module and what that imports; and of keeping to a core."""
    body = read_bytes(source.path) if source.path else module_bytes(source) + imported_bytes(source)
    words = model.model_dump(mode="json", exclude_none=True, exclude={"start"}) | ({"pin": "core"} if pinned else {})
    return fingerprint(MEASURED, words, hashlib.sha256(body).hexdigest())


def module_bytes(source: Source) -> bytes:
    """Return the text of the module that holds a source's code, found without running it; empty if it has no file."""
    places: list[str] | None = [source.folder, *sys.path]
    found = None
    for part in source.code.partition(":")[0].split("."):
        found = PathFinder.find_spec(part, places)
        if found is None:
            return b""
        places = list(found.submodule_search_locations or ())
    file = Path(found.origin or "") if found else Path()
    return file.read_bytes() if file.is_file() else b""


def imported_bytes(source: Source) -> bytes:
    """Return the text of the modules beside a source's code that it imports, found without running any of them."""
    name = source.code.partition(":")[0]
    finder = ModuleFinder([source.folder])
    # a module that is elsewhere or does not compile is told when it is loaded
    with contextlib.suppress(ImportError, SyntaxError, UnicodeDecodeError):
        finder.import_hook(name)
    files = {item: getattr(found, "__file__", None) for item, found in finder.modules.items() if item != name}
    return b"".join(Path(str(files[item])).read_bytes() for item in sorted(files) if files[item])


def load(source: Source) -> Predict:
    """Return the function that answers a batch of rows, shape (batch, features).

    Raises:
        UnfoldError: the file is damaged, or the code is not there.
    """
    whole, columns = _whole(source), list(source.columns)
    return (lambda rows: whole(rows[:, columns])) if columns else whole


def _whole(source: Source) -> Predict:
    if source.code:
        return _function(source)
    require_regular(source.path)
    loaders: dict[str, Callable[[str], Predict]] = {".onnx": onnx_inputs.opened, ".skops": _skops}
    try:
        return loaders.get(Path(source.path).suffix, _xgboost)(source.path)
    except UnfoldError:
        raise
    except Exception as error:  # each library has errors of its own for a damaged file
        raise fail(f"cannot load the model: {brief(error)}", file=source.path) from error


def brief(error: BaseException) -> str:
    """Return the first line of what a library says, without the place in its own sources."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a class of the model's own may raise even here
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", lines[0])[:200] if lines else type(error).__name__


def rows_for(model: ModelSpec, width: int | None, run: Run) -> Rows:
    """Return rows to profile with: those that the spec names, of the data set, or numbers drawn between 0 and 1.

    Raises:
        UnfoldError: the file that the spec names is not there, or holds no queries.
    """
    if model.rows is not None:
        return _named_rows(run.path(model.rows, key="stages"))
    if model.features is None and width in (None, 64):
        return _digits()[0]
    return np.random.default_rng(0).random((512, model.features or width or 1)).astype(np.float32)


def _named_rows(path: Path) -> Rows:
    try:
        rows: Rows = read_npz(read_bytes(path), str(path), ("x",))["x"].astype(np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise fail(f"holds no queries: {error}", file=str(path), hint="an NPZ file with an array x") from error
    if rows.ndim != 2 or not rows.size:
        raise fail(f"an array x of shape {rows.shape} is not rows of queries", file=str(path))
    return rows


def width_of(stage: str, source: Source) -> int | None:
    """Return the numbers that a stage's model wants in a row, where its file says so.

    Raises:
        UnfoldError: the file is damaged, or it is of an ONNX model with an input that no row can fill.
    """
    hint = "is the file whole? save the model again"
    try:
        return _width(source)
    except UnfoldError as error:
        problem = error.diagnostics[0]
        message = f"cannot load the model {problem.file}: {problem.message}" if problem.file else problem.message
        raise fail(message, key=f"stages.{stage}.model", hint=problem.hint or hint) from error
    except Exception as error:  # each library has errors of its own for a damaged file
        message = f"cannot load the model {source.path}: {brief(error)}"
        raise fail(message, key=f"stages.{stage}.model", hint=hint) from error


def check_rows(stage: str, source: Source, rows: Rows) -> None:
    """Refuse rows that do not fill the inputs of an ONNX model, before a replica dies of them.

    Raises:
        UnfoldError: they do not; names the model, the input, its type and its shape.
    """
    if not source.path.endswith(".onnx"):
        return
    try:
        onnx_inputs.opened(source.path).refuse(source.path, len(source.columns) or rows.shape[1])
    except UnfoldError as error:
        problem = error.diagnostics[0]
        raise fail(problem.message, key=f"stages.{stage}.model", hint=problem.hint) from error


def _width(source: Source) -> int | None:
    suffix = Path(source.path).suffix if source.path else ""
    if suffix:
        require_regular(source.path)
    if suffix in (".ubj", ".json"):
        return int(_booster(source.path).num_features())
    if suffix == ".skops":
        return getattr(_skops_object(source.path), "n_features_in_", None)
    if suffix == ".onnx":
        return onnx_inputs.opened(source.path).width
    return None


def _function(source: Source) -> Predict:
    module, _, name = source.code.partition(":")
    sys.path.insert(0, source.folder)
    try:
        found: Predict = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise fail(f"cannot import {source.code}: {error}") from error
    return found


def _xgboost(path: str) -> Predict:
    booster = _booster(path)
    return lambda rows: np.asarray(booster.inplace_predict(rows))


def _booster(path: str) -> Any:
    import xgboost

    data = read_bytes(path)
    check_booster(data, path)
    return xgboost.Booster({"nthread": 1}, model_file=bytearray(data))


def _skops(path: str) -> Predict:
    found = _skops_object(path)
    method = found.predict_proba if hasattr(found, "predict_proba") else found.predict
    return lambda rows: np.asarray(method(rows))


def _skops_object(path: str) -> Any:
    return load_skops(read_bytes(path), path)


def _digits() -> tuple[Rows, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    return (rows / 16.0).astype(np.float32), labels


def _fitted(stage: str, model: ModelSpec, run: Run) -> Path:
    suffix = "ubj" if model.estimator == "xgboost" else "skops"
    name = f"models/{stage}.{suffix}"
    made_from = fingerprint(model.estimator, model.dataset, run.seed)
    run.directory.once(name, made_from, lambda: _fit(model, run.seed))
    return (run.directory.path / name).absolute()


def _fit(model: ModelSpec, seed: int) -> bytes:
    rows, labels = _digits()
    if model.estimator == "xgboost":
        import xgboost

        fitted = xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=1, random_state=seed).fit(rows, labels)
        return bytes(fitted.get_booster().save_raw("ubj"))
    name = str(model.estimator)
    return dump_skops(_estimator(name, seed).fit(rows, labels), name)


def _estimator(name: str, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    made = {
        "logistic-regression": lambda: LogisticRegression(max_iter=500),
        "svc": lambda: SVC(gamma=0.25, random_state=seed),
    }
    return made[name]()
