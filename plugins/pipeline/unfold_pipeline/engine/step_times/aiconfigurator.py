"""Step times from the operator tables of AIConfigurator: GEMM, context and generation attention, all-reduce.

A decoder layer has four GEMMs, attention and two all-reduces; norms, activation and rotary embedding move bytes. The
tables are those of ai-dynamo/aiconfigurator, ``systems/data/<system>``, as Parquet or CSV. Sizes beyond a table are
extrapolated up to the factors of ``table_ends``; larger ones are an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.hardware.gpu import Gpu, find_gpu
from unfold_pipeline.engine.hardware.model_shape import ModelShape
from unfold_pipeline.engine.simulation.engine_inputs import StepTimes, pad_axes
from unfold_pipeline.engine.step_times.all_reduce import (
    LATENCY_COLUMNS,
    AllReduce,
    compute_step_all_reduces,
    find_column,
    read_all_reduce,
)
from unfold_pipeline.engine.step_times.columns import (
    MAX_FACTORS,
    MeasuredTable,
    TableEnd,
    read_table,
    reject_distant_size,
)
from unfoldkit.api import user_error

MILLISECOND = 1e-3
TABLE_NAMES = {
    "gemm": "gemm",
    "context": "context_attention",
    "generation": "generation_attention",
    "all_reduce": "allreduce",
}
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".txt")
DATA_TYPES = {"bf16": "bfloat16", "fp8": "fp8", "int4": "int4_wo", "nvfp4": "nvfp4"}
BANDWIDTH_SHARE = 0.8
KERNEL_LAUNCH_S = 2e-6
SMALL_KERNELS = 5
REQUEST_S = 5e-6
"""What a step takes for each request besides the LM head: gather and sampling of logits, and the host's lists.

Fitted to ten stages of vLLM on H100; the four groups of closed-loop rows, which had no part in it, all come closer.
"""
UNSTATED_HEAD = 128
"""Values of a head in attention tables without ``head_dim``."""
TableCache = dict[Path, MeasuredTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTable:
    """Attention of one layer by heads: ``points[heads, kv_heads]`` holds axes and seconds."""

    path: Path
    points: Mapping[tuple[int, int], tuple[FloatArray, FloatArray, FloatArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorDatabase:
    """The operator tables of one GPU and backend.

    Attributes:
        gemm: By data type: (n, k) to sorted m and seconds.
        context: Attention of prompts by KV data type.
        generation: Attention of decodes by KV data type.
        all_reduce: All-reduces, if the tables have them.
        files: The files.
    """

    gemm: Mapping[str, Mapping[tuple[int, int], tuple[FloatArray, FloatArray]]]
    context: Mapping[str, AttentionTable]
    generation: Mapping[str, AttentionTable]
    all_reduce: AllReduce | None
    files: Mapping[str, Path]


def find_tables(folder: Path, system: str, backend: str) -> Mapping[str, Path]:
    """Find the tables of a GPU and backend in a folder and below it.

    Folders that name another system or backend are left out; of several versions, the last one counts.

    Raises:
        UnfoldError: A table is missing, or all are of other GPUs.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES))
    matches = {}
    for key, name in TABLE_NAMES.items():
        named = [path for path in files if name in path.name.lower() and "nccl" not in path.name.lower()]
        if key in ("context", "generation", "gemm"):
            named = [path for path in named if "encoder" not in path.name.lower() and "group" not in path.name.lower()]
        _reject_other_gpus(named, folder, system)
        for word in (system, backend):
            inside = [path for path in named if word in path.relative_to(folder.parent).parts]
            named = inside or named
        if named:
            matches[key] = max(named, key=_version_key)
    missing = [TABLE_NAMES[key] for key in ("gemm", "context", "generation") if key not in matches]
    if missing:
        raise user_error(f"no table {', '.join(missing)}", file=str(folder), hint="systems/data/h100_sxm, for example")
    return matches


def _reject_other_gpus(files: Sequence[Path], folder: Path, system: str) -> None:
    """Reject folders that name other GPUs only: their tables may not name their GPU again.

    Raises:
        UnfoldError: No file lies in a folder of the GPU, and all lie in folders of others.
    """
    parts = [path.relative_to(folder.parent).parts[:-1] for path in files]
    if not parts or any(system in names for names in parts):
        return
    gpus = [{gpu.name for name in names if (gpu := find_gpu(name)) is not None} for names in parts]
    if all(gpus):
        others = ", ".join(sorted(set().union(*gpus)))
        raise user_error(f"no tables of {system}", file=str(folder), hint=f"it has {others}")


def read_database(
    files: Mapping[str, Path], tables: TableCache | None = None, *, system: str, backend: str, head: int
) -> OperatorDatabase:
    """Read the operator tables of a GPU and backend.

    Args:
        files: The tables by the keys of ``TABLE_NAMES``.
        tables: Tables that were read before, which are not read again.
        system: GPU, for tables that hold several.
        backend: Engine, for tables that hold several.
        head: Values of an attention head.

    Raises:
        UnfoldError: A table is damaged, or holds nothing of this GPU and backend.
    """
    wanted, tables = {"system": system, "backend": backend}, {} if tables is None else tables
    return OperatorDatabase(
        gemm=_read_gemm(files["gemm"], wanted, tables),
        context=_read_attention(files["context"], wanted, tables, head, is_context=True),
        generation=_read_attention(files["generation"], wanted, tables, head, is_context=False),
        all_reduce=read_all_reduce(files["all_reduce"], wanted) if "all_reduce" in files else None,
        files=files,
    )


def build_step_times(
    database: OperatorDatabase,
    model: ModelShape,
    gpu: Gpu,
    *,
    tensor_parallel: int,
    precision: str,
    kv_precision: str,
    max_tokens: int,
    max_requests: int,
    max_context: int,
) -> StepTimes:
    """Build the step times of a model on some GPUs.

    Raises:
        UnfoldError: The tables lack a shape that the model needs, or the all-reduce of this many GPUs.
    """
    parallel, data_type = tensor_parallel, DATA_TYPES[precision]
    tokens, requests = np.arange(1, max_tokens + 1.0), np.arange(1, max_requests + 1.0)
    heads, kv_heads = -(-model.heads // parallel), -(-model.kv_heads // parallel)
    inner = model.inner // parallel
    shapes = (
        ((heads + 2 * kv_heads) * model.head, model.hidden),
        (model.hidden, heads * model.head),
        ((model.mlp_matrices - 1) * inner, model.hidden),
        (model.hidden, inner),
    )
    dense = np.zeros(max_tokens + 1)
    for n, k in shapes:
        dense[1:] += model.layers * _gemm_seconds(database, data_type, tokens, n, k)
    # two norms read and write the residual stream, the activation and the rotary embedding their part of it
    values = 8 * model.hidden + 3 * inner + 2 * (heads + kv_heads) * model.head
    moved_s = 2 * values * tokens / (BANDWIDTH_SHARE * gpu.bytes_per_s)
    dense[1:] += model.layers * (moved_s + SMALL_KERNELS * KERNEL_LAUNCH_S)
    dense[1:] += compute_step_all_reduces(
        database.all_reduce,
        parallel,
        tokens,
        layers=model.layers,
        hidden=model.hidden,
        file=str(database.files["gemm"].parent),
    )
    sequence = np.zeros(max_requests + 1)
    head_s = _gemm_seconds(database, DATA_TYPES["bf16"], requests, model.vocabulary // parallel, model.hidden)
    sequence[1:] = head_s + REQUEST_S * requests
    axes, attention = _attention_grid(
        database, heads, kv_heads, DATA_TYPES[kv_precision], (max_tokens, max_requests, max_context)
    )
    padded, lengths = pad_axes(axes)
    return StepTimes(
        dense=dense, sequence=sequence, axes=padded, axis_lengths=lengths, attention=attention * model.layers
    )


def find_table_ends(
    database: OperatorDatabase,
    model: ModelShape,
    *,
    tensor_parallel: int,
    kv_precision: str,
    max_requests: int,
    max_context: int,
) -> tuple[tuple[TableEnd, ...], int]:
    """Return where the attention tables end before the sizes that are needed, and the most tokens of all decodes.

    Raises:
        UnfoldError: A size is needed that lies too far beyond its table.
    """
    heads, kv_heads = -(-model.heads // tensor_parallel), -(-model.kv_heads // tensor_parallel)
    context = _select(database.context, DATA_TYPES[kv_precision])
    generation = _select(database.generation, DATA_TYPES[kv_precision])
    prompts = _by_heads(context, heads, kv_heads)
    decodes = _by_heads(generation, heads, kv_heads)
    longest = min(int(lengths.max()) for (_, lengths, _), _, _ in prompts)
    most = min(int(batches.max() / factor) for (batches, _, _), _, factor in decodes)
    deepest = min(int(lengths.max()) for (_, lengths, _), _, _ in decodes)
    tokens = min(int((batches * lengths).max() / factor) for (batches, lengths, _), _, factor in decodes)
    ends = (
        (context, TableEnd(operator="context attention", size="context", measured=longest, needed=max_context)),
        (generation, TableEnd(operator="generation attention", size="requests", measured=most, needed=max_requests)),
        (generation, TableEnd(operator="generation attention", size="context", measured=deepest, needed=max_context)),
    )
    for table, end in ends:
        hint = "a smaller max_num_seqs" if end.size == "requests" else "shorter requests"
        reject_distant_size(end, MAX_FACTORS[end.size], str(table.path), f"{hint}, or a profile: unfold profile")
    return tuple(end for _, end in ends if end.needed > end.measured), tokens


def _version_key(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.parent.name)], str(path)


def _rows(table: MeasuredTable, wanted: Mapping[str, str]) -> MeasuredTable:
    rows = table.where(wanted)
    if not len(rows):
        names = [name for name in wanted if name in table.columns]
        measured = sorted(set(zip(*(table.columns[name] for name in names), strict=True)))
        hint = "; ".join(" ".join(cells) for cells in measured[:6])
        raise user_error(f"the table has no rows of {' '.join(wanted.values())}", file=str(table.path), hint=hint)
    return rows


def _read_once(path: Path, required: Sequence[str], tables: TableCache) -> MeasuredTable:
    if path not in tables:
        tables[path] = read_table(path, required)
    return tables[path]


def _read_gemm(
    path: Path, wanted: Mapping[str, str], tables: TableCache
) -> dict[str, dict[tuple[int, int], tuple[FloatArray, FloatArray]]]:
    table = _rows(_read_once(path, ["gemm_dtype", "m", "n", "k"], tables), wanted)
    keys = np.column_stack([table.numbers(name) for name in ("n", "k", "m")]).astype(np.int64)
    seconds = table.latencies(find_column(table, LATENCY_COLUMNS)) * MILLISECOND
    types = np.array(table.columns["gemm_dtype"])
    measured = (keys >= 1).all(axis=1) & (seconds > 0)
    keys, seconds, types = keys[measured], seconds[measured], types[measured]
    result: dict[str, dict[tuple[int, int], tuple[FloatArray, FloatArray]]] = {}
    for data_type in np.unique(types):
        chosen = types == data_type
        result[str(data_type)] = {
            (int(n), int(k)): _median_by(m, times) for (n, k), m, times in _groups(keys[chosen], seconds[chosen])
        }
    return result


def _groups(keys: CountArray, seconds: FloatArray) -> Sequence[tuple[tuple[int, int], FloatArray, FloatArray]]:
    """Return the rows of each pair of the first two columns: pair, third column, seconds."""
    order = np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0]))
    keys, seconds = keys[order], seconds[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(keys[:, :2], axis=0) != 0).any(axis=1)])
    ends = np.r_[starts[1:], keys.shape[0]]
    return [
        ((int(keys[a, 0]), int(keys[a, 1])), keys[a:b, 2].astype(np.float64), seconds[a:b])
        for a, b in zip(starts, ends, strict=True)
    ]


def _median_by(positions: FloatArray, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return sorted positions and the median of the repeats at each."""
    values, inverse = np.unique(positions, return_inverse=True)
    if values.size == positions.size:
        return values, seconds[np.argsort(positions)]
    return values, np.array([np.median(seconds[inverse == index]) for index in range(values.size)])


def _gemm_seconds(database: OperatorDatabase, data_type: str, m: FloatArray, n: int, k: int) -> FloatArray:
    """Return the time of an (m, k) by (k, n) product, log-linear in all three sizes; larger n and k are in proportion.

    Raises:
        UnfoldError: The table has no such data type, or a hole around the shape.
    """
    file = str(database.files["gemm"])
    table = database.gemm.get(data_type)
    if not table:
        hint = f"it has {', '.join(sorted(database.gemm))}"
        raise user_error(f"the GEMM table has no rows of {data_type}", file=file, hint=hint)
    sizes_n, sizes_k = (np.unique([pair[axis] for pair in table]) for axis in (0, 1))
    factor = max(1.0, n / sizes_n[-1]) * max(1.0, k / sizes_k[-1])
    n, k = (int(np.clip(value, sizes[0], sizes[-1])) for value, sizes in ((n, sizes_n), (k, sizes_k)))
    corners = _find_corners(table, sizes_n, sizes_k, n, k)
    if corners is None:
        raise user_error(f"the GEMM table has a hole at n {n}, k {k} ({data_type})", file=file)
    total = np.zeros(m.size)
    for (corner_n, corner_k), weight in corners:
        sizes, seconds = table[corner_n, corner_k]
        end = TableEnd(
            operator=f"GEMM of n {corner_n}, k {corner_k}", size="m", measured=int(sizes[-1]), needed=int(m[-1])
        )
        reject_distant_size(end, MAX_FACTORS["m"], file, "a smaller max_num_batched_tokens")
        inside = np.interp(np.log(m), np.log(sizes), np.log(seconds))
        total += weight * (inside + np.log(np.maximum(1.0, m / sizes[-1])))
    result: FloatArray = np.exp(total) * factor
    return result


def _find_corners(
    table: Mapping[tuple[int, int], object], sizes_n: CountArray, sizes_k: CountArray, n: int, k: int
) -> list[tuple[tuple[int, int], float]] | None:
    """Return the nearest measured rectangle around a shape with its weights; ``None`` where the table has a hole."""
    (low_n, high_n), (low_k, high_k) = _bracket(sizes_n, n), _bracket(sizes_k, k)
    weight_n = 0.0 if low_n == high_n else np.log(n / low_n) / np.log(high_n / low_n)
    weight_k = 0.0 if low_k == high_k else np.log(k / low_k) / np.log(high_k / low_k)
    corners = [
        ((corner_n, corner_k), float(share_n * share_k))
        for corner_n, share_n in ((low_n, 1 - weight_n), (high_n, weight_n))
        for corner_k, share_k in ((low_k, 1 - weight_k), (high_k, weight_k))
        if share_n * share_k > 0
    ]
    return corners if all(pair in table for pair, _ in corners) else None


def _bracket(sizes: CountArray, value: int) -> tuple[int, int]:
    high = int(np.searchsorted(sizes, value))
    return (value, value) if sizes[high] == value else (int(sizes[high - 1]), int(sizes[high]))


def _read_attention(
    path: Path, wanted: Mapping[str, str], tables: TableCache, head: int, *, is_context: bool
) -> dict[str, AttentionTable]:
    """Read an attention table: by heads, the batch, the context and the seconds of a layer."""
    table = _rows(_read_once(path, ["num_heads", "num_key_value_heads"], tables), wanted)
    if "head_dim" in table.columns:
        table = _rows(table, {"head_dim": str(head)})
    elif head != UNSTATED_HEAD:
        message = f"the attention table has no head_dim: its rows are of {UNSTATED_HEAD} values a head, not of {head}"
        raise user_error(message, file=str(path), hint="a table with a column head_dim")
    table = table.where({"window_size": "0", "beam_width": "1"})
    heads = np.column_stack([table.numbers(name, least=1) for name in ("num_heads", "num_key_value_heads")])
    batch = table.numbers("batch_size", least=1) if "batch_size" in table.columns else np.ones(len(table))
    length = table.numbers("isl", least=0) if "isl" in table.columns else np.ones(len(table))
    if not is_context:
        length = table.numbers("step", least=0) + (length if "isl" in table.columns else 1.0)
    seconds = table.latencies(find_column(table, LATENCY_COLUMNS)) * MILLISECOND
    keep = (seconds > 0) & ((batch == 1) | (not is_context))
    if is_context and "attn_dtype" in table.columns:
        keep &= np.array(table.columns["attn_dtype"]) == DATA_TYPES["bf16"]
    types = np.array(table.columns.get("kv_cache_dtype", [DATA_TYPES["bf16"]] * len(table)))
    result = {}
    for data_type in np.unique(types[keep]):
        rows = np.flatnonzero(keep & (types == data_type))
        pairs = heads[rows].astype(np.int64)
        points = {
            (int(pair[0]), int(pair[1])): tuple(
                column[rows[(pairs == pair).all(axis=1)]] for column in (batch, length, seconds)
            )
            for pair in np.unique(pairs, axis=0)
        }
        result[str(data_type)] = AttentionTable(path=path, points=points)
    return result


def _attention_grid(
    database: OperatorDatabase, heads: int, kv_heads: int, data_type: str, largest: tuple[int, int, int]
) -> tuple[list[FloatArray], FloatArray]:
    """Return axes and seconds of one layer: prefill and decodes are added, as vLLM runs both kernels."""
    max_tokens, max_requests, max_context = largest
    chunks = np.r_[0.0, _grid(16, max_tokens)]
    history = np.r_[0.0, _grid(128, max(max_context, 256))]
    prefill = _context_seconds(_select(database.context, data_type), heads, kv_heads, chunks, history)
    decodes, context, decode = _generation_seconds(
        _select(database.generation, data_type), heads, kv_heads, max_requests, max_context
    )
    table = prefill[:, :, None, None] + decode[None, None, :, :]
    return [chunks, history, decodes, context], np.ascontiguousarray(table)


def _select(tables: Mapping[str, AttentionTable], data_type: str) -> AttentionTable:
    if data_type not in tables:
        file = next((str(table.path) for table in tables.values()), "")
        hint = f"it has {', '.join(sorted(tables)) or 'none'}"
        raise user_error(f"the attention table has no rows with a KV cache in {data_type}", file=file, hint=hint)
    return tables[data_type]


def _grid(least: int, most: int) -> FloatArray:
    """Return sizes from ``least`` to ``most``, in steps of about a factor of 1.5."""
    sizes, size = [], float(least)
    while size < most:
        sizes.extend([size, 1.5 * size])
        size *= 2
    return np.unique([*(size for size in sizes if size < most), float(most)])


def _context_seconds(
    table: AttentionTable, heads: int, kv_heads: int, chunks: FloatArray, history: FloatArray
) -> FloatArray:
    """Return the attention of a chunk after a history: the triangle of all tokens, less that of the history."""
    points = _by_heads(table, heads, kv_heads)
    total = chunks[:, None] + history[None, :]
    seconds = np.zeros(total.shape)
    for (_, lengths, times), weight, batch_factor in points:
        sizes, values = _median_by(lengths, times)
        inside = np.where(total > sizes[-1], _extend_prompt(sizes, values, total), np.interp(total, sizes, values))
        seconds += weight * batch_factor * inside
    share = 1 - (history[None, :] / np.maximum(total, 1.0)) ** 2
    result: FloatArray = np.where(chunks[:, None] > 0, seconds * share, 0.0)
    return result


def _extend_prompt(sizes: FloatArray, seconds: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return the seconds of prompts beyond a table.

    Attention grows ever closer to the square of the prompt. So its time lies between a part per token and a part per
    pair, as in the last doubling of the table, and the square alone; the geometric mean is returned.
    """
    half = max(0, int(np.searchsorted(sizes, sizes[-1] / 2, side="right")) - 1)
    per_token, square = seconds / sizes, seconds[-1] / sizes[-1] ** 2
    growth = (per_token[-1] - per_token[half]) / (sizes[-1] - sizes[half]) if half < sizes.size - 1 else square
    low = wanted * (per_token[-1] + np.clip(growth, 0.0, square) * (wanted - sizes[-1]))
    result: FloatArray = np.sqrt(np.maximum(low, 0.0) * square) * wanted
    return result


def _generation_seconds(
    table: AttentionTable, heads: int, kv_heads: int, max_requests: int, max_context: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return batches, contexts, and the seconds of decodes, shape (batches, contexts)."""
    points = _by_heads(table, heads, kv_heads)
    decodes = np.r_[0.0, [float(1 << power) for power in range((max(max_requests, 2) - 1).bit_length() + 1)]]
    contexts = np.r_[1.0, _grid(16, max(max_context, 256))]
    result = np.zeros((decodes.size, contexts.size))
    for (batches, lengths, times), weight, batch_factor in points:
        sizes = np.unique(batches)
        rows = np.array([_extend_linearly(*_median_by(lengths[batches == size], times[batches == size]), contexts)
                         for size in sizes])  # fmt: skip
        wanted = decodes * batch_factor
        for index in range(contexts.size):
            result[:, index] += weight * _extend_linearly(sizes, rows[:, index], wanted)
    result[0] = 0.0
    return decodes, contexts, result


def _extend_linearly(sizes: FloatArray, seconds: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return seconds by size; beyond the measured sizes they grow as between the last two."""
    inside = np.interp(wanted, sizes, seconds)
    if sizes.size < 2:
        return inside
    slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
    result: FloatArray = inside + slope * np.maximum(0.0, wanted - sizes[-1])
    return result


def _by_heads(
    table: AttentionTable, heads: int, kv_heads: int
) -> list[tuple[tuple[FloatArray, FloatArray, FloatArray], float, float]]:
    """Return the measured heads that stand for some heads: points, weight, and factor on the batch.

    A pair that was not measured lies between two numbers of query heads, or is a larger batch with fewer KV heads.

    Raises:
        UnfoldError: The table has neither.
    """
    points = table.points
    if (heads, kv_heads) in points:
        return [(points[heads, kv_heads], 1.0, 1.0)]
    same = sorted(query for query, key in points if key == kv_heads)
    if same and same[0] < heads < same[-1]:
        high = next(query for query in same if query > heads)
        low = same[same.index(high) - 1]
        weight = (heads - low) / (high - low)
        return [(points[low, kv_heads], 1 - weight, 1.0), (points[high, kv_heads], weight, 1.0)]
    ratio = heads / kv_heads
    fewer = [pair for pair in points if pair[1] < kv_heads and pair[0] / pair[1] == ratio]
    if fewer:
        pair = max(fewer, key=lambda item: item[1])
        return [(points[pair], 1.0, kv_heads / pair[1])]
    measured = ", ".join(f"{query}/{key}" for query, key in sorted(points)[:12])
    message = f"the attention table has a hole: {heads} query and {kv_heads} KV heads on a GPU"
    raise user_error(message, file=str(table.path), hint=f"it has {measured}")
