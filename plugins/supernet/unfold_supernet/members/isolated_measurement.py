"""What a member costs, measured in a process of its own, so that neither memory nor a crash concerns the caller.

``python -P -m unfold_supernet.members.isolated_measurement FILE INPUT DTYPE SIZE ROWS LABELS`` prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.family.onnx_session import open_session, read_resident_bytes, release_free_memory
from unfold_supernet.members.files import CheckedFile, reject
from unfold_supernet.scheduling.engines import MAX_WAITING
from unfold_supernet.scheduling.speed import BATCHES, time_rounds

TIMEOUT_S = 300.0
MAX_BATCH_S = 1.0
"""Larger batches are not measured once one takes this long."""
ROUNDS, LOADS = 20, 3
SIZE_S = 0.2
"""Seconds of rounds for one batch size."""
SUM_TOLERANCES = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-3}
"""Difference to 1 below which a row's outputs are probabilities, by their number type; sums of trees round below 0."""
TRIAL_ROWS = 4
SCALES = (1, 10, 100)
"""Factors of the inputs for which a label is compared with scores: rows near zero may all be of one class."""
TIE_TOLERANCE = 1e-5
"""Difference, relative to the largest score, up to which classes have equal ones."""
ROW_TOLERANCE = 0.1
"""Difference, relative to the largest score, up to which a row has the same scores in a batch: int8 rounds by batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was measured of a member.

    Attributes:
        output_name: Its output (rows, classes).
        classes: Number of classes.
        is_probability: Whether the outputs are probabilities; otherwise they are logits.
        load_s: Seconds to open it, with the file in the page cache.
        bytes: Memory that it adds to a process, at least the size of the file.
        seconds: Latency by batch size.
        waiting: Fraction of the measured time in which the thread did not run.
    """

    output_name: str
    classes: int
    is_probability: bool
    load_s: float
    bytes: int
    seconds: dict[int, float]
    waiting: float

    @property
    def is_busy(self) -> bool:
        """Whether other programs delayed the measurement."""
        return self.waiting > MAX_WAITING


def probe_file(checked: CheckedFile) -> ProbeResult:
    """Measure a checked file in a process of its own.

    Raises:
        UnfoldError: ONNX Runtime cannot run it, or its outputs are no finite scores of classes (exit code 2).
    """
    member = checked.member
    size, rows = json.dumps(checked.size), str(checked.fixed_rows)
    # -P: modules in the user's folder must not shadow ours
    command = [sys.executable, "-P", "-m", __name__, str(member.path), checked.input_name, checked.dtype, size, rows]
    command.append(json.dumps(checked.labels))
    try:
        done = subprocess.run(  # noqa: S603 - the file is an argument, not code
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise reject(member, f"it was not measured within {TIMEOUT_S:.0f} s", "use a smaller model") from error
    if done.returncode:
        message = f"ONNX Runtime ended with exit code {done.returncode} while it ran the model"
        raise reject(member, message, "check the model with onnx.checker")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in document:
        raise reject(member, document["error"], document["hint"])
    document["seconds"] = {int(batch): seconds for batch, seconds in document["seconds"].items()}
    document["bytes"] = max(document["bytes"], checked.bytes)
    return ProbeResult(**document)


def measure_model(
    path: Path, input_name: str, dtype: str, size: tuple[int, ...], *, fixed_rows: int, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Open a model, check its outputs, and time it by batch size; runs in the process of the probe.

    Args:
        path: The file.
        input_name: Name of its input.
        dtype: Number type of the input.
        size: Shape of a row.
        fixed_rows: The only number of rows that it accepts; 0 for any.
        labels: Names of the classes that the file states.

    Returns:
        The fields of :class:`ProbeResult`, or ``error`` and ``hint``.
    """
    inputs = _draw_inputs(dtype, size)
    try:
        # the first session brings the runtime, which is no memory of the member's
        first = open_session(path)
        release_free_memory()
        before = read_resident_bytes()
        # the limit of memory is for feature maps too
        session = open_session(path, keeps_maps=True)
    except ValueError as error:
        return {"error": f"ONNX Runtime cannot load it: {error}", "hint": "check the model with onnx.checker"}
    try:
        trial = np.resize(inputs, (fixed_rows or TRIAL_ROWS, *size))
        described = _describe_outputs(session, input_name, trial)
        if "error" not in described and fixed_rows != 1:
            described |= _compare_rows(session, input_name, trial, described["output_name"], fixed_rows or 1)
        if "error" not in described and not described["is_probability"]:
            spread = np.concatenate([inputs * scale for scale in SCALES]).astype(dtype)
            rows = np.resize(spread, (fixed_rows or len(spread), *size))
            described |= _compare_labels(session, input_name, rows, described["output_name"], labels)
        if "error" in described:
            return described
        name = described["output_name"]
        seconds: dict[int, float] = {}
        wall, ran = time.perf_counter(), time.thread_time()
        for batch in dict.fromkeys((1, fixed_rows)) if fixed_rows else BATCHES:
            rows = np.resize(inputs, (fixed_rows or batch, *size))
            call = partial(session.run, [name], {input_name: rows})
            time_rounds(call, 2, SIZE_S / 4, min_rounds=1)
            seconds[batch] = float(np.median(time_rounds(call, ROUNDS, SIZE_S, min_rounds=3)))
            if seconds[batch] > MAX_BATCH_S:
                break
        wall, ran = time.perf_counter() - wall, time.thread_time() - ran
    # the runtime's own exceptions share no base
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())
        return {"error": f"it fails on rows of its own input shape: {reason}", "hint": "run it once in ONNX Runtime"}
    # what reading the file needed is free again
    release_free_memory()
    used = read_resident_bytes() - before
    del first
    load_s = float(np.median(time_rounds(lambda: _load(path), LOADS)))
    waiting = max(0.0, 1 - ran / wall)
    return {**described, "load_s": load_s, "bytes": max(0, used), "seconds": seconds, "waiting": waiting}


def _load(path: Path) -> None:
    """Open a model as a service does."""
    open_session(path)
    release_free_memory()


def _draw_inputs(dtype: str, size: tuple[int, ...]) -> FloatArray:
    """Draw normal rows; the first row is zeros."""
    rows: FloatArray = np.random.default_rng(0).normal(size=(32, *size)).astype(dtype)
    rows[0] = 0
    return rows


def _describe_outputs(session: Any, input_name: str, rows: FloatArray) -> dict[str, Any]:
    """Find the output with a score for each class, and check the scores of some rows."""
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {input_name: rows}), strict=True))
    scores = {
        name: values
        for name, values in outputs.items()
        if isinstance(values, np.ndarray) and values.dtype in SUM_TOLERANCES and values.shape[:1] == (len(rows),)
    }
    columns = [name for name, values in scores.items() if values.ndim == 2 and values.shape[1] >= 2]
    if len(columns) != 1:
        shapes = ", ".join(f"{name} {_describe_value(values)}" for name, values in outputs.items())
        hint = "export one output (rows, classes) in float32, with at least two classes"
        which = "no output is" if not columns else f"{len(columns)} outputs are"
        return {"error": f"{which} a float score for each row and class: {shapes}", "hint": hint}
    values = scores[columns[0]]
    if not np.isfinite(values).all():
        kind = "zeros" if not np.isfinite(values[0]).all() else "normal numbers"
        hint = "check the weights for NaN and infinity"
        return {"error": f"output {columns[0]} is not finite for an input of {kind}", "hint": hint}
    sums, tolerance = values.sum(axis=1, dtype=np.float64), SUM_TOLERANCES[values.dtype]
    is_share = bool((values >= -tolerance).all()) and bool((np.abs(sums - 1) < tolerance).all())
    if not is_share and values.min() >= 0 and np.ptp(sums) <= tolerance * sums[0] and np.ptp(values, axis=0).any():
        message = f"the scores of output {columns[0]} sum to {sums[0]:g} in every row: neither probabilities nor logits"
        return {"error": message, "hint": "divide the scores of a row by their sum at the end of the model"}
    return {"output_name": columns[0], "classes": int(values.shape[1]), "is_probability": is_share}


def _compare_rows(session: Any, input_name: str, rows: FloatArray, name: str, copies: int) -> dict[str, Any]:
    """Check that a row has the same scores beside others and alone, or beside ``copies`` of itself."""
    together = session.run([name], {input_name: rows})[0][:TRIAL_ROWS]
    apart = np.stack([session.run([name], {input_name: np.stack([row] * copies)})[0][0] for row in rows[:TRIAL_ROWS]])
    if np.allclose(together, apart, rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE * float(np.abs(together).max())):
        return {}
    message = f"output {name} of a row depends on chance or on the other rows of its batch"
    return {"error": message, "hint": "export it in inference mode: model.eval(), without means over the rows"}


def _compare_labels(
    session: Any, input_name: str, rows: FloatArray, name: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Check that the largest score is that of the class which the model itself names.

    Support vector machines are converted with a score for each pair of classes; of two classes, in reverse order.
    """
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {input_name: rows}), strict=True))
    scores = outputs.pop(name)
    for values in outputs.values():
        texts = [str(value) for value in np.ravel(values).tolist()] if isinstance(values, np.ndarray) else []
        if len(texts) != len(scores) or len(labels) != scores.shape[1] or not {*texts} <= {*labels}:
            continue
        of_label = scores[np.arange(len(scores)), [labels.index(text) for text in texts]]
        if (of_label < scores.max(axis=1) - TIE_TOLERANCE * np.abs(scores).max()).any():
            message = f"output {name} is largest for another class than the one that the model returns as its label"
            return {"error": message, "hint": "convert it with probabilities: CalibratedClassifierCV(model)"}
    return {}


def _describe_value(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return "is not a tensor (zipmap: turn it off)"
    return f"{value.dtype} {'x'.join(map(str, value.shape))}"


def run_probe(arguments: list[str], write: Callable[[str], object] = print) -> None:
    """Measure the model that the arguments name, and print the result."""
    path, input_name, dtype, size, rows, labels = arguments
    result = measure_model(
        Path(path), input_name, dtype, tuple(json.loads(size)), fixed_rows=int(rows), labels=json.loads(labels)
    )
    write(json.dumps(result))


if __name__ == "__main__":
    run_probe(sys.argv[1:])
