"""Where the model of a stage comes from: its file or code, its identity, and estimators that are fitted here."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import RowArray
from unfold_pipeline.schema.stages import ModelSpec
from unfoldkit.api import Run, fingerprint, user_error
from unfoldkit.safe_io.files import read_bytes
from unfoldkit.safe_io.skops import dump_skops

MEASURED = 3  # version of the profiling method; a profile of another version is measured again
DEFAULT_START_S = 180.0
MODEL_SUFFIXES = (".ubj", ".json", ".skops", ".onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a replica finds its model.

    Attributes:
        path: file of the model; empty for code.
        code: ``module:function``; empty for a file.
        folder: folder to import the code from.
        columns: indices of the numbers of a query that the model reads; empty for all.
        start_s: how long loading may take.
        features: numbers per query; ``None`` if the model determines it.
        rows_file: NPZ file of queries to profile with; empty for synthetic queries.
        outputs: by tensor, the values per query that code states to return; empty if it states none.
        wanted: tensors that other stages read or test, beside all that the model returns by itself.
    """

    path: str = ""
    code: str = ""
    folder: str = ""
    columns: tuple[int, ...] = ()
    start_s: float = DEFAULT_START_S
    features: int | None = None
    rows_file: str = ""
    outputs: tuple[tuple[str, int], ...] = ()
    wanted: tuple[str, ...] = ()


def locate_model(stage: str, model: ModelSpec, run: Run) -> ModelSource:
    """Return where the model of a stage is; an estimator is fitted and stored in the run first.

    Raises:
        UnfoldError: a file is missing or of an unknown kind, or the spec names code without permission.
    """
    if model.code is not None:
        if not run.allow_code:
            hint = "--allow-code permits it; only for specs that you trust"
            raise user_error(
                f"{model.code} is code, which a spec may not run", key=f"stages.{stage}.model.code", hint=hint
            )
        return _build_source(model, run, code=model.code, folder=str(run.base.absolute()))
    if model.file is not None:
        path = run.path(model.file, key=f"stages.{stage}.model.file")
        if path.suffix not in MODEL_SUFFIXES:
            hint = "one of: .ubj, .json (XGBoost), .skops (scikit-learn), .onnx"
            raise user_error(f"cannot load a model that ends in {path.suffix!r}", file=str(path), hint=hint)
        return _build_source(model, run, path=str(path.absolute()))
    return _build_source(model, run, path=str(_fit_estimator(stage, model, run)))


def fingerprint_model(source: ModelSource, model: ModelSpec, *, is_pinned: bool = False) -> str:
    """Return a fingerprint of the model's bytes and options, by which a stored profile is recognized.

    Args:
        source: the file, or the code, which counts with the modules that it imports.
        model: the options in the spec.
        is_pinned: whether replicas are pinned to a core, which changes latencies.
    """
    body = read_bytes(source.path) if source.path else read_module(source) + read_imported_modules(source)
    options = model.model_dump(mode="json", exclude_none=True, exclude={"start", "outputs"})
    options |= {"pin": "core"} if is_pinned else {}
    return fingerprint(MEASURED, options, hashlib.sha256(body).hexdigest())


def read_module(source: ModelSource) -> bytes:
    """Return the text of the module with a source's code, without running it; empty if it has no file."""
    search_path: list[str] | None = [source.folder, *sys.path]
    module = None
    for name in source.code.partition(":")[0].split("."):
        module = PathFinder.find_spec(name, search_path)
        if module is None:
            return b""
        search_path = list(module.submodule_search_locations or ())
    file = Path(module.origin or "") if module else Path()
    return file.read_bytes() if file.is_file() else b""


def read_imported_modules(source: ModelSource) -> bytes:
    """Return the text of the modules in the source's folder that its code imports, without running any of them."""
    name = source.code.partition(":")[0]
    finder = ModuleFinder([source.folder])
    # a module that is elsewhere or does not compile is reported when it is loaded
    with contextlib.suppress(ImportError, SyntaxError, UnicodeDecodeError):
        finder.import_hook(name)
    files = {module: getattr(found, "__file__", None) for module, found in finder.modules.items() if module != name}
    return b"".join(Path(str(files[module])).read_bytes() for module in sorted(files) if files[module])


def load_digits() -> tuple[RowArray, NDArray[np.int64]]:
    """Return the rows of scikit-learn's digits, scaled to 0..1, shape (1797, 64), and their labels."""
    from sklearn.datasets import load_digits as load_dataset

    rows, labels = load_dataset(return_X_y=True)
    return (rows / 16.0).astype(np.float32), labels


def _build_source(model: ModelSpec, run: Run, *, path: str = "", code: str = "", folder: str = "") -> ModelSource:
    return ModelSource(
        path=path,
        code=code,
        folder=folder,
        columns=model.columns or (),
        start_s=model.start or DEFAULT_START_S,
        features=model.features,
        rows_file="" if model.rows is None else str(run.path(model.rows, key="stages")),
        outputs=tuple((model.outputs or {}).items()),
    )


def _fit_estimator(stage: str, model: ModelSpec, run: Run) -> Path:
    suffix = "ubj" if model.estimator == "xgboost" else "skops"
    name = f"models/{stage}.{suffix}"
    made_from = fingerprint(model.estimator, model.dataset, run.seed)
    run.directory.once(name, made_from, lambda: _dump_fitted(str(model.estimator), run.seed))
    return (run.directory.path / name).absolute()


def _dump_fitted(estimator: str, seed: int) -> bytes:
    rows, labels = load_digits()
    if estimator == "xgboost":
        import xgboost

        fitted = xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=1, random_state=seed).fit(rows, labels)
        return bytes(fitted.get_booster().save_raw("ubj"))
    return dump_skops(_build_estimator(estimator, seed).fit(rows, labels), estimator)


def _build_estimator(name: str, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    builders = {
        "logistic-regression": lambda: LogisticRegression(max_iter=500),
        "svc": lambda: SVC(gamma=0.25, random_state=seed),
    }
    return builders[name]()
