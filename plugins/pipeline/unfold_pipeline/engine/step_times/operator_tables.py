"""Step times from operator tables in the layout of LLMServingSim: dense, per sequence, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes, pad_axes
from unfold_pipeline.engine.step_times.all_reduce import AllReduce, compute_step_all_reduces
from unfold_pipeline.engine.step_times.columns import TableEnd
from unfoldkit.api import CsvRow, csv_rows, user_error
from unfoldkit.errors import list_columns

MICROSECOND = 1e-6
RUNS_PER_STEP: Mapping[str, int] = {"embedding": 1, "final_layernorm": 1}
RUNS_PER_LAYER: Mapping[str, int] = {"layernorm": 2}
ATTENTION_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
DENSE_OPERATORS = frozenset(
    {"act_fn", "down_proj", "embedding", "final_layernorm", "gate_up_proj", "layernorm", "o_proj", "qkv_proj"}
)


def read_profile(
    folder: Path,
    *,
    layers: int,
    hidden: int,
    tensor_parallel: int,
    max_tokens: int,
    max_requests: int,
    all_reduce: AllReduce | None,
) -> StepTimes:
    """Read a profile of LLMServingSim: a folder for each tensor parallelism with three tables.

    Operators that do not depend on the tensor parallelism may stand in ``tp1`` only.

    Raises:
        UnfoldError: The folder lacks this tensor parallelism or a table, or no all-reduce was measured.
    """
    part = folder / f"tp{tensor_parallel}"
    if not part.is_dir():
        held = ", ".join(sorted(path.name for path in folder.glob("tp*"))) or "none"
        raise user_error(f"the profile has no tp{tensor_parallel}", file=str(folder), hint=f"it has {held}")
    if (part / "moe.csv").exists():
        raise user_error("the profile is of a mixture of experts, which is not simulated", file=str(part))
    reduced_s = compute_step_all_reduces(
        all_reduce, tensor_parallel, np.arange(1, max_tokens + 1.0), layers=layers, hidden=hidden, file=str(folder)
    )
    paths = {name: _find_profile_table(part, name) for name in ("dense", "per_sequence", "attention")}
    shared = folder / "tp1"
    times = read_operator_tables(
        **paths,
        gpu="",
        layers=layers,
        max_tokens=max_tokens,
        max_requests=max_requests,
        stable=shared / "dense.csv" if (shared / "dense.csv").exists() else None,
    )
    times.dense[1:] += reduced_s
    return times


def find_profile_ends(times: StepTimes, *, max_requests: int, max_context: int) -> tuple[TableEnd, ...]:
    """Return where the attention table of a profile ends before the sizes that are needed."""
    chunk, history, decodes, context = (
        int(axis[size - 1]) for axis, size in zip(times.axes, times.axis_lengths, strict=True)
    )
    sizes = (
        ("attention of prompts", "context", chunk + history, max_context),
        ("attention of decodes", "requests", decodes, max_requests),
        ("attention of decodes", "context", context, max_context),
    )
    return tuple(
        TableEnd(operator=operator, size=size, measured=measured, needed=needed)
        for operator, size, measured, needed in sizes
        if needed > measured
    )


def _find_profile_table(folder: Path, name: str) -> Path:
    path = next((folder / file for file in (f"{name}.csv", f"{name}.csv.gz") if (folder / file).exists()), None)
    if path is None:
        raise user_error(f"the profile has no {name}.csv", file=str(folder))
    return path


def read_operator_tables(
    *,
    dense: Path,
    per_sequence: Path,
    attention: Path,
    gpu: str,
    layers: int,
    max_tokens: int,
    max_requests: int,
    stable: Path | None = None,
) -> StepTimes:
    """Read the operator tables of one GPU.

    Args:
        dense: Table with ``gpu``, ``layer`` (the operator), ``tokens``, ``time_us``.
        per_sequence: Table with ``gpu``, ``layer``, ``sequences``, ``time_us``.
        attention: Table with ``gpu``, the four axes of ``ATTENTION_AXES``, and ``time_us`` of one layer.
        gpu: The rows to use; empty for all.
        layers: Layers of the model.
        max_tokens: Largest token budget.
        max_requests: Largest number of requests in a step.
        stable: Table with the operators that ``dense`` lacks, as they do not depend on the tensor parallelism.

    Raises:
        UnfoldError: A table has no rows of the GPU, lacks an operator, or has an unexplained hole.
    """
    tokens, requests = np.arange(max_tokens + 1.0), np.arange(max_requests + 1.0)
    operators = _by_operator(dense, gpu, "tokens")
    if stable is not None and not operators.keys() >= DENSE_OPERATORS:
        operators = {**_by_operator(stable, gpu, "tokens"), **operators}
    missing = sorted(DENSE_OPERATORS - operators.keys())
    if missing:
        raise user_error(f"the table lacks the operators {', '.join(missing)}", file=str(dense))
    dense_s = sum(
        (_runs(name, layers) * _interpolated(points, tokens) for name, points in operators.items()),
        start=np.zeros(tokens.size),
    )
    sequence_s = sum(
        (_interpolated(points, requests) for points in _by_operator(per_sequence, gpu, "sequences").values()),
        start=np.zeros(requests.size),
    )
    dense_s[0] = sequence_s[0] = 0.0
    axes, table = _attention(attention, gpu)
    padded, lengths = pad_axes(axes)
    return StepTimes(
        dense=dense_s * MICROSECOND,
        sequence=sequence_s * MICROSECOND,
        axes=padded,
        axis_lengths=lengths,
        attention=table * layers * MICROSECOND,
    )


def _runs(operator: str, layers: int) -> int:
    return RUNS_PER_STEP.get(operator) or layers * RUNS_PER_LAYER.get(operator, 1)


def _rows_of(path: Path, gpu: str) -> list[CsvRow]:
    rows = [row for row in csv_rows(path, ["gpu"] if gpu else []) if not gpu or row["gpu"] == gpu]
    if not rows:
        raise user_error(f"the table has no rows of {gpu}", file=str(path))
    return rows


def _by_operator(path: Path, gpu: str, size: str) -> dict[str, list[tuple[float, float]]]:
    operators: dict[str, list[tuple[float, float]]] = {}
    for row in _rows_of(path, gpu):
        operators.setdefault(row["layer"], []).append((row.number(size), row.number("time_us")))
    return operators


def _interpolated(points: Sequence[tuple[float, float]], at: FloatArray) -> FloatArray:
    sizes, times = np.array(sorted(points)).T
    inside = np.interp(at, sizes, times)
    # beyond the table, operators grow as between its last two sizes
    slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2]) if sizes.size > 1 else 0.0
    extended: FloatArray = inside + np.maximum(0.0, at - sizes[-1]) * slope
    return extended


def _attention(path: Path, gpu: str) -> tuple[list[FloatArray], FloatArray]:
    rows = _rows_of(path, gpu)
    missing = [name for name in (*ATTENTION_AXES, "time_us") if name not in rows[0].cells]
    if missing:
        raise user_error(
            f"no column {', '.join(missing)}", file=str(path), hint=f"it has {list_columns(list(rows[0].cells))}"
        )
    points = np.array([[row.number(axis, least=0) for axis in ATTENTION_AXES] for row in rows])
    seconds = np.array([row.number("time_us", least=0) for row in rows])
    axes, table = _tabulate(points, seconds)
    doubling = _is_doubling(points)
    if np.isnan(table).any() and doubling.any() and not doubling.all():
        # profilers measure two grids into one file; the doubling one is a product
        axes, table = _tabulate(points[doubling], seconds[doubling])
    holes = np.argwhere(np.isnan(table))
    if holes.size:
        where = ", ".join(f"{name} {axes[i][holes[0][i]]:.0f}" for i, name in enumerate(ATTENTION_AXES))
        raise user_error(f"the attention table has {len(holes)} holes, the first at {where}", file=str(path))
    return axes, table


def _tabulate(points: FloatArray, seconds: FloatArray) -> tuple[list[FloatArray], FloatArray]:
    """Return the axes of a grid, and its values with NaN where nothing was measured."""
    axes = [np.unique(column) for column in points.T]
    axes = [axis if axis.size > 1 else np.r_[axis, axis + 1] for axis in axes]
    table = np.full(tuple(axis.size for axis in axes), np.nan)
    table[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, points.T, strict=True))] = seconds
    _fill_structural_holes(axes, table)
    return axes, table


def _is_doubling(points: FloatArray) -> NDArray[np.bool_]:
    """Return which points have chunk and contexts that are 0 or powers of two."""
    sizes = points[:, [0, 1, 3]].astype(np.int64)
    return np.asarray(((sizes & (sizes - 1)) == 0).all(axis=1))


def _fill_structural_holes(axes: Sequence[FloatArray], table: FloatArray) -> None:
    """Fill the points that cannot be measured: no chunk with a history, no decode with a context, and so on."""
    if np.isnan(table[0, 0, 0, 0]):
        table[0, 0, 0, 0] = 0.0
    table[0, 1:] = np.where(np.isnan(table[0, 1:]), table[0, :1], table[0, 1:])
    table[:, :, 0, 1:] = np.where(np.isnan(table[:, :, 0, 1:]), table[:, :, 0, :1], table[:, :, 0, 1:])
    # decodes always have a context
    table[:, :, 1:, 0] = np.where(np.isnan(table[:, :, 1:, 0]), table[:, :, 1:, 1], table[:, :, 1:, 0])
    table[0, 1:] = np.where(np.isnan(table[0, 1:]), table[0, :1], table[0, 1:])
    decodes = axes[2]
    for index in range(2, decodes.size):
        step = (decodes[index] - decodes[index - 1]) / (decodes[index - 1] - decodes[index - 2])
        extended = table[:, :, index - 1] + step * (table[:, :, index - 1] - table[:, :, index - 2])
        table[:, :, index] = np.where(np.isnan(table[:, :, index]), extended, table[:, :, index])
