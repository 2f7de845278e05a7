"""Engines of a served cascade: ONNX Runtime where it reproduces the native model, otherwise the native model.

A model is converted once and the run stores its ONNX file. At every start the converted model predicts a probe, rows
that were held out in training; the run stores the native predictions. The conversion is used only if every label is
equal and no confidence differs by more than ``TOLERANCE``. Where votes tie, single precision may prefer another label;
then the converted probabilities are rounded, so that the first label wins as it does natively.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from unfold_cascade._types import FloatArray, IntArray, Matrix
from unfold_cascade.data.dataset import Dataset, DatasetOptions, load_features
from unfold_cascade.gates.evidential import inspect_model, shrink_to_uniform
from unfold_cascade.learners import estimators, onnx_svm
from unfold_cascade.models.zoo import ModelSlot, Predictions
from unfoldkit.api import Run, RunDir, fingerprint, user_error
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.onnx_files import require_data_within

PROBE_FILE = "serving/probe.npz"
PROBE_ROWS = 512
TOLERANCE = 1e-5
DECIMALS = 6
"""Digits that single precision resolves in a probability."""
ONNX = "ONNX Runtime"
NATIVE = "native"
RAW_SCORES = "raw scores"
OPSET, ML_OPSET = 17, 3
"""The versions of the operators of ONNX and of its machine learning domain in an exported graph."""
CONVERSION_VERSION = 1
"""Increase it when the conversion changes, so that stored ONNX files are converted again."""

Predict = Callable[[Any], FloatArray]


@dataclass(frozen=True, slots=True)
class Probe:
    """Rows that no model was fitted on: their numbers and (m, d) features.

    ``has_gaps`` says whether any row of the table misses a value.
    """

    rows: IntArray
    x: FloatArray
    has_gaps: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """A model that predicts: ``predict`` maps (n, d) of ``dtype`` to (n, C) float64 probabilities.

    ``name`` is the runtime, ``reason`` why it was chosen. ``inspect`` computes the (n,) confidence from the internals
    of the model, where gates read that. ``decimals`` are the digits to which ``predict`` rounds, ``None`` for all.
    """

    predict: Predict
    dtype: type[Any]
    name: str
    reason: str
    inspect: Predict | None = None
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """A model as ONNX graph: its number type and classes, and whether it outputs raw scores.

    ``decimals`` are the digits to which its probabilities are rounded, ``None`` if they are not.
    """

    graph: Any
    dtype: type[Any]
    classes: int
    has_raw_scores: bool
    decimals: int | None = None


class StoredModel(Protocol):
    """A model in a run: its file, origin, input columns and number of classes."""

    @property
    def place(self) -> str:
        """Stage and model, as a path."""

    @property
    def model_file(self) -> str:
        """The file of the model in the run."""

    @property
    def columns(self) -> IntArray:
        """Numbers of the columns that it reads."""

    @property
    def classes(self) -> int:
        """The number of classes."""

    @property
    def made_from(self) -> str:
        """Fingerprint of all that the model depends on."""

    @property
    def inside(self) -> str | None:
        """The confidence that reads the internals of the model, or ``None``."""


def load_probe(data: DatasetOptions, dataset: Dataset, directory: RunDir) -> Probe:
    """Load the probe of a run; the table is read only if the run does not store the probe yet."""
    rows = _select_probe_rows(dataset)
    made_from = fingerprint(dataset.digest, dataset.order, [int(row) for row in rows])
    directory.once(PROBE_FILE, made_from, lambda: _pack_probe(load_features(data, dataset), rows))
    with directory.decoding(PROBE_FILE, "rows to check with") as stored:
        arrays = read_npz(stored)
        return Probe(arrays["rows"], arrays["x"], bool(arrays["missing"]))


def choose_slot_engine(
    run: Run, slot: ModelSlot, predictions: Predictions, probe: Probe, *, native: bool = False
) -> Engine:
    """Choose the engine of one model: a verified conversion, or the native model (always if ``native``).

    Raises:
        UnfoldError: The stored model was changed, or is not a model.
    """
    return choose_engine(run, slot, predictions.probability[probe.rows], probe.x, native=native)


def choose_engine(run: Run, slot: StoredModel, expected: Matrix, x: Matrix, *, native: bool = False) -> Engine:
    """Choose an engine that reproduces ``expected`` (m, C), the native predictions of the rows ``x`` (m, d)."""
    if native or slot.inside:
        reads_internals = f"its {slot.inside} confidence reads its internals"
        reason = "the ONNX forms send some rows along another path" if slot.inside is None else reads_internals
        return build_native_engine(run, slot, reason)
    equal, reasons = f"equal to the native model on {len(x)} rows", []
    loaded = {
        dtype: _load_onnx(_convert_once(run, slot, dtype), dtype, slot.classes, run.log)
        for dtype in _candidate_dtypes(slot)
    }
    for decimals in (None, DECIMALS):
        for dtype, predict in loaded.items():
            engine_predict = predict if predict is None or decimals is None else _round(predict, decimals)
            converted = None if engine_predict is None else engine_predict(x[:, slot.columns].astype(dtype))
            reasons.append(_describe_difference(converted, expected))
            if engine_predict is not None and not reasons[-1]:
                return Engine(engine_predict, dtype, ONNX, equal, decimals=decimals)
    return build_native_engine(run, slot, reasons[0])


def build_native_engine(run: Run, slot: StoredModel, reason: str, *, dtype: type[Any] = np.float64) -> Engine:
    """Build an engine of the native model that reads ``dtype``.

    Raises:
        UnfoldError: The stored model was changed, or is not a model.
    """
    data = run.directory.read(slot.model_file)
    file = str(run.directory.path / slot.model_file)
    model = estimators.from_bytes(data, ubjson=slot.model_file.endswith(".ubj"), file=file)
    classes, inspection = slot.classes, slot.inside
    inspect = None if inspection is None else lambda x: inspect_model(inspection, model, x)
    return Engine(lambda x: estimators.predict_probabilities(model, x, classes), dtype, NATIVE, reason, inspect)


def predict_table(engine: Engine, x: Matrix, *, columns: Sequence[str], place: str, source: str) -> FloatArray:
    """Predict (n, C) probabilities of (n, d) rows of a new table by a native model.

    Args:
        engine: The native model.
        x: The rows.
        columns: (d,) names of the columns, for messages.
        place: Stage and model.
        source: Name of the table.

    Raises:
        UnfoldError: A row misses a value, and the model was fitted on a table without missing values.
    """
    try:
        return engine.predict(x)
    except ValueError as error:
        gaps = np.argwhere(np.isnan(x))
        if not len(gaps):
            raise
        row, column = gaps[0]
        rows = len(np.unique(gaps[:, 0]))
        message = (
            f'{source}: row {row + 1} has no value in the column "{columns[column]}" ({rows} of {len(x)} rows have '
            f"gaps); the model {place} was fitted on a table without missing values"
        )
        hint = "fill the cells, or train on a table with missing values, which are then imputed"
        raise user_error(message, key="features", hint=hint) from error


def shrink_engine(engine: Engine) -> Engine:
    """Shrink the probabilities of an engine towards 1/C where its model is uncertain; gates over time read these."""
    if engine.inspect is None:
        return engine
    predict, inspect = engine.predict, engine.inspect
    return replace(engine, predict=lambda x: shrink_to_uniform(predict(x), inspect(x)))


def convert_model(run: Run, slot: StoredModel, dtype: type[Any], decimals: int | None = None) -> ConvertedModel:
    """Convert a model for a graph that holds several: all have the same versions of the operators.

    Raises:
        UnfoldError: The stored model was changed, or cannot be converted.
    """
    import onnx

    data = _convert(run, slot, dtype, {"": OPSET, "ai.onnx.ml": ML_OPSET})
    if not data:
        raise user_error(f"the model {slot.place} has no form in ONNX")
    model = onnx.load_model_from_string(data)
    return ConvertedModel(model, dtype, slot.classes, model.doc_string == RAW_SCORES, decimals)


def conversion_fingerprint(slot: StoredModel) -> str:
    """Compute the fingerprint of a converted model: of the model and of the converters."""
    return fingerprint(slot.made_from, CONVERSION_VERSION, _converter_versions())


def _candidate_dtypes(slot: StoredModel) -> tuple[type[Any], ...]:
    """List the number types to try; XGBoost itself computes in single precision."""
    return (np.float32,) if slot.model_file.endswith(".ubj") else (np.float32, np.float64)


def _describe_difference(converted: FloatArray | None, native: Matrix) -> str:
    """Describe how two (m, C) tables of probabilities differ; empty if they agree within the tolerance."""
    if converted is None:
        return "ONNX Runtime rejects it"
    if converted.shape != native.shape or not np.isfinite(converted).all():
        return "its ONNX form returns another shape or infinite values"
    changed = int((converted.argmax(axis=1) != native.argmax(axis=1)).sum())
    if changed:
        return f"its ONNX form changes the label of {changed} of {len(converted)} rows"
    distance = float(np.abs(converted - native).max())
    return f"its ONNX form differs by {distance:.1g}" if distance > TOLERANCE else ""


def _convert_once(run: Run, slot: StoredModel, dtype: type[Any]) -> bytes:
    """Convert a model to ONNX, or load its stored conversion; empty bytes if it cannot be converted."""
    name = f"serving/{slot.place}.{np.dtype(dtype).name}.onnx"
    return run.directory.once(name, conversion_fingerprint(slot), lambda: _convert(run, slot, dtype))


def _convert(run: Run, slot: StoredModel, dtype: type[Any], opset: Mapping[str, int] | None = None) -> bytes:
    import warnings

    data = run.directory.read(slot.model_file)
    is_xgboost = slot.model_file.endswith(".ubj")
    model = estimators.from_bytes(data, ubjson=is_xgboost, file=slot.model_file)
    convert = _convert_xgboost if is_xgboost else _convert_sklearn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert(model, len(slot.columns), dtype, opset)
    except Exception as error:  # noqa: BLE001 - converters raise whatever their parsers raise
        run.log.info("%s: no ONNX form: %s", slot.place, str(error)[:200])
        return b""


def _convert_xgboost(model: Any, columns: int, _dtype: type[Any], opset: Mapping[str, int] | None) -> bytes:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("x", FloatTensorType([None, columns]))]
    # its trees need nothing newer
    options = {"target_opset": 15} if opset else {}
    return bytes(onnxmltools.convert_xgboost(model, initial_types=types, **options).SerializeToString())


def _convert_sklearn(model: Any, columns: int, dtype: type[Any], opset: Mapping[str, int] | None) -> bytes:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    if onnx_svm.is_supported(steps):
        return _mark_raw_scores(onnx_svm.build_graph(steps, columns, dtype))
    tensor = (FloatTensorType if dtype is np.float32 else DoubleTensorType)([None, columns])
    options: dict[str, Any] = {"zipmap": False}
    if not hasattr(steps[-1], "predict_proba"):
        options["raw_scores"] = True
    versions = dict(opset) if opset else None
    types = [("x", tensor)]
    converted = skl2onnx.to_onnx(model, initial_types=types, options={id(steps[-1]): options}, target_opset=versions)
    return _mark_raw_scores(converted) if "raw_scores" in options else bytes(converted.SerializeToString())


def _round(predict: Predict, decimals: int) -> Predict:
    return lambda x: np.round(predict(x), decimals)


def _mark_raw_scores(converted: Any) -> bytes:
    """Serialize an ONNX model, marked as one that outputs scores instead of probabilities."""
    converted.doc_string = RAW_SCORES
    return bytes(converted.SerializeToString())


def _load_onnx(data: bytes, dtype: type[Any], classes: int, log: Any) -> Predict | None:
    """Load an ONNX model; ``None`` if there is none or ONNX Runtime rejects it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # one thread: batches are small, and other cores serve other requests
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        require_data_within(data, "the model", None)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        output = session.get_outputs()[-1].name
        session.run([output], {"x": np.zeros((1, session.get_inputs()[0].shape[1]), dtype)})
    except Exception as error:  # noqa: BLE001 - its errors share no base class
        log.info("ONNX Runtime: %s", str(error)[:200])
        return None
    # the native session: its Python wrapper validates every input again in Python
    run, outputs = session._sess.run, [output]  # noqa: SLF001
    if session.get_modelmeta().description == RAW_SCORES:
        return lambda x: _normalize_scores(run(outputs, {"x": x}, None)[0], classes)
    return lambda x: run(outputs, {"x": x}, None)[0].astype(np.float64)


def _normalize_scores(raw_scores: Any, classes: int) -> FloatArray:
    """Convert raw scores to probabilities by the same softmax as for the native model."""
    scores = np.asarray(raw_scores, dtype=np.float64)
    if classes > 2:
        return estimators.apply_softmax(scores)
    result = np.empty((len(scores), 2))
    # the logistic function, without overflow for large scores
    result[:, 1] = 0.5 + 0.5 * np.tanh(0.5 * scores[:, -1])
    np.subtract(1.0, result[:, 1], out=result[:, 0])
    return result


def _pack_probe(x: FloatArray, rows: IntArray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, rows=rows, x=x[rows], missing=np.array(bool(np.isnan(x).any())))
    return stream.getvalue()


def _select_probe_rows(dataset: Dataset) -> IntArray:
    held_out = np.sort(np.concatenate([dataset.rows.calibrate, dataset.rows.test]))
    selected: IntArray = held_out[np.unique(np.linspace(0, len(held_out) - 1, PROBE_ROWS).astype(np.int64))]
    return selected


def _converter_versions() -> list[str]:
    import importlib.metadata

    return [importlib.metadata.version(name) for name in ("onnx", "onnxmltools", "skl2onnx")]
