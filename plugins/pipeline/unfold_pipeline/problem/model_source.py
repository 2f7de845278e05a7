"""Where the model of a stage comes from: its file or code, its identity, and estimators that are fitted here."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import machinery
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import RowArray
from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.files import open_regular, read_bytes
from unfoldkit.safe_io.onnx_files import list_data_files
from unfoldkit.safe_io.skops import dump_skops

HASHED_BYTES = 1 << 20
MEASURED = 3  # version of the profiling method; a profile of another version is measured again
DEFAULT_START_S = 180.0
MODEL_SUFFIXES = (".ubj", ".json", ".skops", ".onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a replica finds its model.

    Attributes:
        path: File of the model; empty for code.
        code: ``module:function``; empty for a file.
        folder: Folder to import the code from.
        columns: Indices of the numbers of a query that the model reads; empty for all.
        start_s: How long loading may take.
        features: Numbers per query; ``None`` if the model determines it.
        rows_file: NPZ file of queries to profile with; empty for synthetic queries.
        outputs: By tensor, the values per query that code states to return; empty if it states none.
        wanted: Tensors that other stages read or test, beside all that the model returns by itself.
        sha256: Hash of the file or code when the service started, which replicas load from then on; empty for any.
        on_gpu: Whether an ONNX model runs on the GPU that its replica reserves.
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
    sha256: str = ""
    on_gpu: bool = False


def hash_source(source: ModelSource) -> str:
    """Return the hash of the model's file, or of its code with the modules in its folder that it imports."""
    return hash_model(source.path) if source.path else hashlib.sha256(_read_code(source)).hexdigest()


def hash_model(path: str) -> str:
    """Return the hash of a model's file, and of those beside it that hold its tensors."""
    content = read_bytes(path)
    digest = hashlib.sha256(content)
    for name in list_data_files(content, path) if path.endswith(".onnx") else ():
        with open_regular(Path(path).parent / name) as stream:
            while chunk := stream.read(HASHED_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def fingerprint_source(source: ModelSource, options: Mapping[str, Any]) -> str:
    """Return a fingerprint of the model's bytes and options, by which a stored profile is recognized.

    Args:
        source: The file, or the code, which counts with the modules that it imports.
        options: What else changes the latencies.
    """
    body = read_bytes(source.path) if source.path else _read_code(source)
    return fingerprint(MEASURED, options, hashlib.sha256(body).hexdigest())


def _read_code(source: ModelSource) -> bytes:
    return read_module(source) + read_imported_modules(source)


def read_module(source: ModelSource) -> bytes:
    """Return the text of the module with a source's code, without running it; empty if it has no file."""
    return _read_text(_find_module(source.code.partition(":")[0], [source.folder, *sys.path]))


def read_imported_modules(source: ModelSource) -> bytes:
    """Return the text of the modules in the source's folder that its code imports, without running any of them."""
    first = source.code.partition(":")[0]
    texts: dict[str, bytes] = {}
    pending = {first}
    while pending:
        name = pending.pop()
        # a module that is elsewhere is installed: it changes with the environment
        spec = _find_module(name, [source.folder])
        texts[name] = _read_text(spec)
        if spec is not None and str(spec.origin).endswith(".py"):
            parent = name.rpartition(".")[0]
            package = parent if spec.submodule_search_locations is None else name
            pending |= {parent, *_list_imports(texts[name], package)} - texts.keys() - {""}
    return b"".join(texts[name] for name in sorted(texts) if name != first)


def _find_module(name: str, search_path: list[str]) -> machinery.ModuleSpec | None:
    """Return where a module is, without importing the packages around it."""
    spec = None
    for part in name.split("."):
        spec = machinery.PathFinder.find_spec(part, search_path)
        if spec is None:
            return None
        search_path = list(spec.submodule_search_locations or ())
    return spec


def _read_text(spec: machinery.ModuleSpec | None) -> bytes:
    file = Path((spec.origin if spec else None) or "")
    return file.read_bytes() if file.is_file() else b""


def _list_imports(text: bytes, package: str) -> Iterator[str]:
    """Yield the names of the modules that a module of a package may import."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        # it is reported when it is loaded
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):
                base = resolve_name("." * node.level + (node.module or ""), package)
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def load_digits() -> tuple[RowArray, NDArray[np.int64]]:
    """Return the rows of scikit-learn's digits, scaled to 0..1, shape (1797, 64), and their labels."""
    from sklearn.datasets import load_digits as load_dataset

    rows, labels = load_dataset(return_X_y=True)
    return (rows / 16.0).astype(np.float32), labels


def fit_estimator(stage: str, estimator: str, dataset: str, run: Run) -> Path:
    """Fit the estimator of a stage, unless the run holds it, and return its file."""
    suffix = "ubj" if estimator == "xgboost" else "skops"
    name = f"models/{stage}.{suffix}"
    made_from = fingerprint(estimator, dataset, run.seed)
    run.directory.once(name, made_from, lambda: _dump_fitted(estimator, run.seed))
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
