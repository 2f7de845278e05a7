"""The models of a run made ready to answer: ONNX Runtime where it says what the native model says, else the native one.

A model is converted once and its ONNX file kept in the run. At every start the converted model answers rows that were
set aside in training; what the native model said of them stands in its log. It serves only if every answer is the same
and no confidence differs by more than ``TOLERANCE``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from unfold_cascade._types import FloatArray, IntArray, Matrix
from unfold_cascade.data.dataset import Cases, features
from unfold_cascade.gates.evidential import look, shrunk
from unfold_cascade.learners import estimators, onnx_svm
from unfold_cascade.models.zoo import Log, Slot
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Run, fingerprint
from unfoldkit.safe_io.arrays import read_npz

PROBE_FILE = "serving/probe.npz"
PROBE_ROWS = 512
TOLERANCE = 1e-5
ONNX = "ONNX Runtime"
NATIVE = "native"
SCORES = "raw scores"
FORMS = 1
"""Counts up when models are converted in another way, so that forms of before are made again."""

Predict = Callable[[Any], FloatArray]


@dataclass(frozen=True, slots=True)
class Probe:
    """Rows that no model was fitted on: their numbers and (m, d) features; ``missing`` says if any row has a gap."""

    rows: IntArray
    x: FloatArray
    missing: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """A model that answers: ``predict`` takes (n, d) of ``dtype`` and gives (n, C) float64 probabilities.

    ``name`` says what runs it, ``why`` how it was chosen; ``sure`` gives the (n,) confidence of a look into it.
    """

    predict: Predict
    dtype: type[Any]
    name: str
    why: str
    sure: Predict | None = None


class Fitted(Protocol):
    """A model that a run keeps: where, from what it was made, which columns it reads, how many classes it tells."""

    @property
    def place(self) -> str:
        """The names of stage and model, one after the other."""

    @property
    def model_file(self) -> str:
        """Where the model stands in the run."""

    @property
    def columns(self) -> IntArray:
        """The columns that it reads."""

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""

    @property
    def made_from(self) -> str:
        """The fingerprint of what it was made from."""

    @property
    def inside(self) -> str | None:
        """The confidence that looks into the model, if one does."""


def keep_probe(spec: CascadeSpec, run: Run, given: Cases) -> Probe:
    """Return the probe of a run; the table is read only if the run does not hold it yet."""
    made_from = fingerprint(given.digest, given.order, [int(row) for row in _probe_rows(given)])
    run.directory.once(PROBE_FILE, made_from, lambda: _make_probe(spec, run, given))
    with run.directory.decoding(PROBE_FILE, "rows to check with") as data:
        return _read_probe(data)


def engine(run: Run, slot: Slot, log: Log, probe: Probe, *, native: bool = False) -> Engine:
    """Return what answers for one model: a converted form that passes the check, else (or if asked for) the native one.

    Raises:
        UnfoldError: the stored model was changed, or is none.
    """
    return checked(run, slot, log.probability[probe.rows], probe.x, native=native)


def checked(run: Run, slot: Fitted, said: Matrix, x: Matrix, *, native: bool = False) -> Engine:
    """Return what answers for one model: ``said`` (m, C) is what the native model said of the rows ``x`` (m, d)."""
    wrong = "asked for" if slot.inside is None else f"its {slot.inside} confidence looks into it"
    for form in () if native or slot.inside else _forms(slot):
        found = _onnx(_converted(run, slot, form), form, slot.classes, run.log)
        now = None if found is None else found(x[:, slot.columns].astype(form))
        wrong = _difference(now, said)
        if found is not None and not wrong:
            return Engine(found, form, ONNX, f"as the native model on {len(x)} rows")
    return unconverted(run, slot, wrong)


def _forms(slot: Fitted) -> tuple[type[Any], ...]:
    """Return the number types of the forms that are tried; XGBoost computes in single precision itself."""
    return (np.float32,) if slot.model_file.endswith(".ubj") else (np.float32, np.float64)


def _difference(said: FloatArray | None, native: Matrix) -> str:
    """Return in what two (m, C) tables of probabilities differ; nothing if they are as good as equal."""
    if said is None:
        return "ONNX Runtime does not run it"
    if said.shape != native.shape or not np.isfinite(said).all():
        return "its ONNX form gives something else"
    other = int((said.argmax(axis=1) != native.argmax(axis=1)).sum())
    if other:
        return f"its ONNX form answers {other} of {len(said)} rows differently"
    worst = float(np.abs(said - native).max())
    return f"its ONNX form differs by {worst:.1g}" if worst > TOLERANCE else ""


def unconverted(run: Run, slot: Fitted, why: str, *, dtype: type[Any] = np.float64) -> Engine:
    """Return the native model as an engine that reads ``dtype``.

    Raises:
        UnfoldError: the stored model was changed, or is none.
    """
    data = run.directory.read(slot.model_file)
    file = str(run.directory.path / slot.model_file)
    model = estimators.from_bytes(data, ubjson=slot.model_file.endswith(".ubj"), file=file)
    classes, looks = slot.classes, slot.inside
    sure = None if looks is None else lambda x: look(looks, model, x)
    return Engine(lambda x: estimators.probabilities(model, x, classes), dtype, NATIVE, why, sure)


def drawn(engine: Engine) -> Engine:
    """Return an engine whose probabilities are drawn to 1/C by the doubt of a look into the model: gates over time."""
    if engine.sure is None:
        return engine
    predict, sure = engine.predict, engine.sure
    return replace(engine, predict=lambda x: shrunk(predict(x), sure(x)))


def _converted(run: Run, slot: Fitted, form: type[Any]) -> bytes:
    """Return the ONNX form of a model that reads ``form``, made once; empty bytes if it has none."""
    name = f"serving/{slot.place}.{np.dtype(form).name}.onnx"
    return run.directory.once(name, form_of(slot), lambda: _convert(run, slot, form))


def form_of(slot: Fitted) -> str:
    """Return the fingerprint of what a converted model is made from: the model, and the converters."""
    return fingerprint(slot.made_from, FORMS, _versions())


def _convert(run: Run, slot: Fitted, form: type[Any]) -> bytes:
    import warnings

    data = run.directory.read(slot.model_file)
    ubjson = slot.model_file.endswith(".ubj")
    model = estimators.from_bytes(data, ubjson=ubjson, file=slot.model_file)
    convert = _from_xgboost if ubjson else _from_sklearn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert(model, len(slot.columns), form)
    except Exception as error:  # noqa: BLE001 - converters raise whatever their parsers raise
        run.log.info("%s: no ONNX form: %s", slot.place, str(error)[:200])
        return b""


def _from_xgboost(model: Any, columns: int, _form: type[Any]) -> bytes:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("x", FloatTensorType([None, columns]))]
    return bytes(onnxmltools.convert_xgboost(model, initial_types=types).SerializeToString())


def _from_sklearn(model: Any, columns: int, form: type[Any]) -> bytes:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    if onnx_svm.is_known(steps):
        return _scores(onnx_svm.graph(steps, columns, form))
    kind = (FloatTensorType if form is np.float32 else DoubleTensorType)([None, columns])
    options: dict[str, Any] = {"zipmap": False}
    if not hasattr(steps[-1], "predict_proba"):
        options["raw_scores"] = True
    found = skl2onnx.to_onnx(model, initial_types=[("x", kind)], options={id(steps[-1]): options})
    return _scores(found) if "raw_scores" in options else bytes(found.SerializeToString())


def _scores(found: Any) -> bytes:
    """Return the bytes of an ONNX model, marked as one whose output is not probabilities yet."""
    found.doc_string = SCORES
    return bytes(found.SerializeToString())


def _onnx(data: bytes, form: type[Any], classes: int, log: Any) -> Predict | None:
    """Return the prediction of an ONNX form; ``None`` if there is none or ONNX Runtime does not take it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # one thread: a batch is small, and a second core has other requests to answer
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        output = session.get_outputs()[-1].name
        session.run([output], {"x": np.zeros((1, session.get_inputs()[0].shape[1]), form)})
    except Exception as error:  # noqa: BLE001 - its errors share no base class
        log.info("ONNX Runtime: %s", str(error)[:200])
        return None
    # the session beneath the Python class, which looks at every input again in Python
    run, wanted = session._sess.run, [output]  # noqa: SLF001
    if session.get_modelmeta().description == SCORES:
        return lambda x: _from_scores(run(wanted, {"x": x}, None)[0], classes)
    return lambda x: run(wanted, {"x": x}, None)[0].astype(np.float64)


def _from_scores(scores: Any, classes: int) -> FloatArray:
    """Return probabilities from raw scores by the softmax that the native model's scores go through."""
    known = np.asarray(scores, dtype=np.float64)
    if classes > 2:
        return estimators.softmax(known)
    result = np.empty((len(known), 2))
    # the logistic function, without overflow for large scores
    result[:, 1] = 0.5 + 0.5 * np.tanh(0.5 * known[:, -1])
    np.subtract(1.0, result[:, 1], out=result[:, 0])
    return result


def _make_probe(spec: CascadeSpec, run: Run, given: Cases) -> bytes:
    x, rows = features(spec, run, given), _probe_rows(given)
    stream = io.BytesIO()
    missing = np.array(bool(np.isnan(x).any()))
    np.savez(stream, allow_pickle=False, rows=rows, x=x[rows], missing=missing)
    return stream.getvalue()


def _read_probe(data: bytes) -> Probe:
    stored = read_npz(data)
    return Probe(stored["rows"], stored["x"], bool(stored["missing"]))


def _probe_rows(given: Cases) -> IntArray:
    unseen = np.sort(np.concatenate([given.rows.calibrate, given.rows.test]))
    chosen: IntArray = unseen[np.unique(np.linspace(0, len(unseen) - 1, PROBE_ROWS).astype(np.int64))]
    return chosen


def _versions() -> list[str]:
    import importlib.metadata

    return [importlib.metadata.version(name) for name in ("onnx", "onnxmltools", "skl2onnx")]
