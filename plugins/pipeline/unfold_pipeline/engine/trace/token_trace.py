"""Traces with tokens: the arrival of each request, its prompt and generated tokens, and the prompts that repeat."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.engine.trace.request_objects import holds_objects, iter_objects
from unfoldkit.api import Diagnostic, UnfoldError, csv_rows, did_you_mean, user_error
from unfoldkit.arrivals.readers.log import UnitDoubts, Warn, find_time_field, ignore_warning, parse_object_time
from unfoldkit.arrivals.readers.timestamps import (
    TimeNotation,
    each_epoch_to_seconds,
)
from unfoldkit.arrivals.spreading import spread_rounded_times
from unfoldkit.arrivals.traces import scale_rate_with_sources
from unfoldkit.errors import list_columns
from unfoldkit.io.tables import csv_chunks, read_row

INPUT_COLUMNS = (
    "ContextTokens", "input_tokens", "prompt_tokens", "input_length", "prompt_len", "input_len", "isl",
    "Request tokens", "num_prefill_tokens", "num_input_tokens", "num_prompt_tokens", "input_token_count",
    "prompt_token_count", "prefill_tokens", "prompt_length", "prompt_size", "tokens_in", "in_tokens",
)  # fmt: skip
"""Usual names, in any case, with or without separators: ``inputTokens`` is ``input_tokens``."""
OUTPUT_COLUMNS = (
    "GeneratedTokens", "output_tokens", "completion_tokens", "generated_tokens", "output_length", "output_len", "osl",
    "Response tokens", "num_decode_tokens", "num_output_tokens", "num_generated_tokens", "num_completion_tokens",
    "output_token_count", "completion_token_count", "candidates_token_count", "decode_tokens", "completion_len",
    "response_length", "token_size", "tokens_out", "out_tokens",
)  # fmt: skip
CACHED_FIELDS = ("cache_creation_input_tokens", "cache_read_input_tokens")
"""Prompt tokens that Anthropic's usage counts beside ``input_tokens``, not within them."""
HASH_BLOCK_TOKENS = 512
"""Tokens of a hashed block in Mooncake's traces."""
MAX_TOKENS = 1 << 24
CHUNK_ROWS = 8192
GRID_S, MIN_TOGETHER = 1.0, 0.2
"""Resolution from which on equal times are bursts that may not have happened, and the share of them."""
MAX_UNANSWERED = 0.1
"""Largest fraction of requests without an answer that are left out; more are an error."""
MAX_STAMP = 1e19
"""Above every time since 1970 in nanoseconds."""
MAX_SPAN_S = 366 * 86_400.0
# a dot before three zeros may separate thousands: 1.000 is 1 or 1000
_PLAIN_COUNT = re.compile(r"[1-9][0-9]{0,6}")
_PLAIN_COUNTS = re.compile(r"[1-9][0-9]{0,6}(?:\n[1-9][0-9]{0,6})*+")
_COUNT = re.compile(r"(?!\d{1,3}\.000$)\d{1,9}(\.0*)?|\d{1,3}(,\d{3})+")
_EMPTY = frozenset(("", "0", "0.0", "nan", "null", "none"))
"""Cells of generated tokens of a request that was not answered, in lower case."""
COLUMN_HINT = "arrivals: {input: COLUMN, output: COLUMN}"
TEXT_COLUMNS = ("conversation", "conversations", "messages", "prompt", "text")
TEXT_HINT = "count the tokens of its texts first, into fields such as input_tokens and output_tokens"
UNANSWERED_HINT = "a whole number of at least 1, no dot between thousands; leave out requests that failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """Requests with tokens, in order of arrival.

    Attributes:
        arrival_s: (n,) seconds since the first arrival.
        input_tokens: (n,) prompt tokens.
        output_tokens: (n,) generated tokens.
        shared_tokens: (n,) leading tokens equal to those of the earlier request ``shared_with``.
        shared_with: (n,) index of that request, or -1.
        left_out: Requests of the file without generated tokens, which are not among these.
    """

    arrival_s: FloatArray
    input_tokens: CountArray
    output_tokens: CountArray
    shared_tokens: CountArray
    shared_with: CountArray
    left_out: int = 0

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def is_shared(self) -> bool:
        """Whether the trace records prompts that repeat."""
        return bool((self.shared_with >= 0).any())

    def build_requests(self, block_tokens: int) -> EngineRequests:
        """Return the requests as the simulator reads them."""
        return build_requests(
            self.arrival_s,
            self.input_tokens,
            self.output_tokens,
            block_tokens=block_tokens,
            shared_tokens=self.shared_tokens if self.is_shared else None,
            shared_with=self.shared_with if self.is_shared else None,
            left_out=self.left_out,
        )

    def describe_grid(self) -> str:
        """Return that requests arrive together because their times are coarse; empty if they are not."""
        gaps_ms = np.round(np.diff(self.arrival_s) * 1e3, 3)
        if not gaps_ms.any() or (gaps_ms % 1).any():
            return ""
        grid_s = int(np.gcd.reduce(gaps_ms.astype(np.int64))) / 1e3
        if grid_s <= GRID_S or (gaps_ms == 0).mean() < MIN_TOGETHER:
            return ""
        return f"times are multiples of {grid_s:g} s, so requests arrive together that may not have: a harder load"

    def compress(self, factor: float) -> TokenTrace:
        """Return the trace replayed ``factor`` times as fast."""
        return self._with(np.arange(len(self)), self.arrival_s / factor)

    def scale_rate(self, factor: float, rng: np.random.Generator) -> TokenTrace:
        """Return the trace with ``factor`` times the rate: requests are left out or repeated at random."""
        times, sources = scale_rate_with_sources(self.arrival_s, factor, rng)
        return self._with(sources, times)

    def cut(self, begin_s: float, end_s: float) -> TokenTrace:
        """Return the requests that arrive in ``[begin_s, end_s)``, from 0 on."""
        rows = np.flatnonzero((self.arrival_s >= begin_s) & (self.arrival_s < end_s))
        return self._with(rows, self.arrival_s[rows] - begin_s)

    def _with(self, rows: CountArray, arrival_s: FloatArray) -> TokenTrace:
        position = np.full(len(self), -1, dtype=np.int64)
        # the first copy of a request holds its prompt
        position[rows[::-1]] = np.arange(rows.size)[::-1]
        shared = np.where(self.shared_with[rows] >= 0, position[self.shared_with[rows]], -1)
        shared = np.where(shared < np.arange(rows.size), shared, -1)
        return TokenTrace(
            arrival_s=arrival_s,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            shared_tokens=self.shared_tokens[rows],
            shared_with=shared,
            left_out=self.left_out,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLengths:
    """Lengths of requests without times.

    Attributes:
        tokens: (requests, 2) prompt and generated tokens.
        left_out: Requests of the file without generated tokens, which are not among these.
    """

    tokens: CountArray
    left_out: int


def read_tokens(
    path: Path,
    arrival_s: FloatArray,
    *,
    prompt: str | int | None,
    generated: str | int | None,
    match: str = "",
    order: CountArray | None = None,
    warn: Warn = ignore_warning,
) -> TokenTrace:
    """Read the tokens of a CSV with known arrival times; requests without generated tokens are left out.

    A column ``hash_ids`` holds lists of the hashes of the prompt's blocks, as Mooncake's traces do.

    Args:
        path: The CSV.
        arrival_s: (n,) arrival times of the rows, ascending.
        prompt: Column of the prompt tokens, or one number for all; ``None`` for the usual names.
        generated: Column of the generated tokens, or one number for all.
        match: Text that a row must contain.
        order: (n,) row of each arrival time; ``None`` if the rows are in order of arrival.
        warn: Receives a note about requests that are left out.

    Raises:
        UnfoldError: The trace has no tokens, a cell is not a count, or times and rows differ.
    """
    parts: list[CountArray] = [np.zeros((0, 2), dtype=np.int64)]
    columns: tuple[str | int, str | int] | None = None
    unanswered: list[UnfoldError] = []
    hashes: list[Sequence[Any]] = []
    for names, lines in csv_chunks(path, CHUNK_ROWS):
        columns = columns or _find_columns(names, prompt, generated, path)
        has_hashes = "hash_ids" in names
        lengths = None if match or has_hashes else _parse_plain_lengths(names, lines, columns)
        if lengths is None:
            rows = [read_row(names, cells, path, line) for line, cells in lines]
            rows = [row for row in rows if match in ",".join(row.cells.values())] if match else rows
            pairs = [_parse_lengths(row.cells, columns, row.wrong) for row in rows]
            lengths = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            skipped = [rows[index] for index in np.flatnonzero(lengths[:, 1] == 0)]
            unanswered += [row.wrong(*_describe_unanswered(row.cells, columns)) for row in skipped]
            hashes += [_list_hashes(row["hash_ids"]) for row in rows] if has_hashes else []
        parts.append(lengths)
    tokens = np.concatenate(parts)
    count = tokens.shape[0]
    if count != arrival_s.size:
        message = f"the trace has {arrival_s.size:,} arrivals and {count:,} rows with tokens"
        raise user_error(message, file=str(path), hint="one row a request, with its time and tokens")
    _reject_clocks(float(np.ptp(arrival_s)) if arrival_s.size else 0.0, path, "times of one clock in one notation")
    _check_unanswered(unanswered, count, path, warn)
    order = np.arange(count) if order is None else order
    answered = tokens[order, 1] > 0
    order, arrival_s = order[answered], arrival_s[answered]
    trace = _without_sharing(arrival_s - arrival_s[:1], tokens[order, 0], tokens[order, 1], len(unanswered))
    return _with_prefixes(trace, [hashes[row] for row in order]) if hashes else trace


def _check_unanswered(errors: Sequence[UnfoldError], count: int, path: Path, warn: Warn) -> None:
    """Warn of requests without generated tokens, which are left out.

    Raises:
        UnfoldError: They are so many that the column may be the wrong one.
    """
    if len(errors) > MAX_UNANSWERED * count:
        first = errors[0].diagnostics[0]
        share = (
            f"{len(errors):,} of {count:,} requests have none, and at most {MAX_UNANSWERED * 100:.0f} % are left out"
        )
        raise UnfoldError(replace(first, message=f"{first.message}: {share}"))
    if errors:
        warn(f"{path}: {len(errors):,} of {count:,} requests have no generated tokens and are left out")


def _describe_unanswered(fields: Mapping[str, Any], columns: tuple[str | int, str | int]) -> tuple[str, str, str]:
    name = str(columns[1])
    return f"{str(fields.get(name, ''))[:40]!r} is not a number of tokens", name, UNANSWERED_HINT


def _parse_plain_lengths(
    names: Sequence[str], lines: Sequence[tuple[int, list[str]]], columns: tuple[str | int, str | int]
) -> CountArray | None:
    """Return the lengths of many rows at once, as :func:`_parse_lengths` does; ``None`` if one is not plain digits."""
    if any(len(cells) != len(names) for _, cells in lines):
        return None
    lengths = np.empty((len(lines), 2), dtype=np.int64)
    for part, column in enumerate(columns):
        index = column if isinstance(column, int) else names.index(column)
        texts = [] if isinstance(column, int) else [cells[index] for _, cells in lines]
        if texts and not _PLAIN_COUNTS.fullmatch("\n".join(texts)):
            return None
        lengths[:, part] = [int(text) for text in texts] or index
    return lengths


def _parse_lengths(
    fields: Mapping[str, Any], columns: tuple[str | int, str | int], wrong: Callable[[str, str, str], UnfoldError]
) -> tuple[int, int]:
    """Return prompt and generated tokens; no generated tokens are 0.

    Raises:
        UnfoldError: A value is not a number of tokens.
    """
    lengths = []
    for column, may_be_empty in zip(columns, (False, True), strict=True):
        if isinstance(column, int):
            lengths.append(column)
            continue
        cell = str("" if fields[column] is None else fields[column]).strip()
        if _PLAIN_COUNT.fullmatch(cell):
            lengths.append(int(cell))
            continue
        length = 0 if may_be_empty and cell.lower() in _EMPTY else _parse_count(cell)
        if length is None:
            raise wrong(f"{cell[:40]!r} is not a number of tokens", column, UNANSWERED_HINT)
        lengths.append(length)
    return lengths[0] + _count_cached(fields, columns[0]), lengths[1]


def _count_cached(fields: Mapping[str, Any], prompt: str | int) -> int:
    """Count the prompt tokens that went through a cache, where the usage has them beside its ``input_tokens``."""
    usage, _, name = str(prompt).rpartition(".")
    if name != "input_tokens":
        return 0
    cells = (fields.get(f"{usage}.{field}" if usage else field) for field in CACHED_FIELDS)
    return sum(int(cell) for cell in cells if isinstance(cell, int))


def _reject_clocks(span_s: float, path: Path, hint: str) -> None:
    if span_s > MAX_SPAN_S:
        message = f"the timestamps span {span_s / 86_400:,.0f} days: they come from several clocks"
        raise user_error(message, file=str(path), key="timestamp", hint=hint)


def constant_tokens(arrival_s: FloatArray, prompt: int, generated: int) -> TokenTrace:
    """Return requests of equal lengths."""
    size = arrival_s.size
    return _without_sharing(arrival_s, np.full(size, prompt, dtype=np.int64), np.full(size, generated, dtype=np.int64))


def read_lengths(
    path: Path, *, prompt: str | int | None, generated: str | int | None, warn: Warn = ignore_warning
) -> TokenLengths:
    """Read the tokens of requests without times, from a table, JSON lines, a JSON document or Parquet.

    Args:
        path: The file.
        prompt: Column of the prompt tokens; ``None`` for the usual names.
        generated: Column of the generated tokens; ``None`` for the usual names.
        warn: Receives a note about requests that are left out.

    Raises:
        UnfoldError: The file has no tokens, or a value is not a count.
    """
    rows: Iterator[tuple[Mapping[str, Any], Callable[[str, str, str], UnfoldError]]]
    if holds_objects(path):
        rows = ((row.fields, row.wrong) for row in iter_objects(path))
    else:
        rows = ((row.cells, row.wrong) for row in csv_rows(path))
    lengths: list[tuple[int, int]] = []
    unanswered: list[UnfoldError] = []
    known: dict[tuple[str, ...], tuple[str | int, str | int]] = {}
    for fields, wrong in rows:
        names = tuple(fields)
        if names not in known:
            known[names] = _find_columns(names, prompt, generated, path)
        pair = _parse_lengths(fields, known[names], wrong)
        if pair[1] == 0:
            unanswered.append(wrong(*_describe_unanswered(fields, known[names])))
        else:
            lengths.append(pair)
    _check_unanswered(unanswered, len(lengths) + len(unanswered), path, warn)
    if not lengths:
        raise user_error("the file has no lengths", file=str(path), hint="a row a request, with its tokens")
    return TokenLengths(tokens=np.array(lengths, dtype=np.int64), left_out=len(unanswered))


def draw_tokens(arrival_s: FloatArray, lengths: TokenLengths, rng: np.random.Generator) -> TokenTrace:
    """Return requests that draw a row of ``lengths`` each: prompts and answers stay together."""
    rows = lengths.tokens[rng.integers(0, lengths.tokens.shape[0], arrival_s.size)]
    return _without_sharing(arrival_s, rows[:, 0].copy(), rows[:, 1].copy(), lengths.left_out)


def list_fields(path: Path) -> list[str]:
    """Return the names of the fields of the first request of a trace of objects."""
    return [name for row in itertools.islice(iter_objects(path), 1) for name in row.fields]


def _without_sharing(arrival_s: FloatArray, prompt: CountArray, generated: CountArray, left_out: int = 0) -> TokenTrace:
    none = np.full(arrival_s.size, -1, dtype=np.int64)
    return TokenTrace(
        arrival_s=arrival_s, input_tokens=prompt, output_tokens=generated, shared_tokens=np.zeros_like(none),
        shared_with=none, left_out=left_out,
    )  # fmt: skip


def _find_columns(
    names: Sequence[str], prompt: str | int | None, generated: str | int | None, path: Path, line: int = 1
) -> tuple[str | int, str | int]:
    return (
        _find_column(names, prompt, INPUT_COLUMNS, "prompt tokens", path, line),
        _find_column(names, generated, OUTPUT_COLUMNS, "generated tokens", path, line),
    )


def _find_column(
    names: Sequence[str], wanted: str | int | None, usual: Sequence[str], what: str, path: Path, line: int
) -> str | int:
    if isinstance(wanted, int):
        return wanted
    if wanted is not None:
        if wanted not in names:
            raise UnfoldError(Diagnostic(f"no column {wanted}", str(path), line, 1, hint=did_you_mean(wanted, names)))
        return wanted
    column = find_usual_column(names, usual)
    if column is None:
        hint = f"{COLUMN_HINT}; it has: {list_columns(names)}"
        hint = hint if find_usual_column(names, TEXT_COLUMNS) is None else TEXT_HINT
        if line > 1:
            hint = "arrivals.match: a text of the lines with tokens"
        raise UnfoldError(Diagnostic(f"the trace has no {what}", str(path), line, 1, hint=hint))
    return column


def find_usual_column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the column with the first usual name; fields of nested objects count by their last name, after others."""
    plain: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.count(".")):
        plain.setdefault(_normalize(name.rpartition(".")[2]), name)
    return next((plain[key] for name in usual if (key := _normalize(name)) in plain), None)


def _normalize(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _parse_count(cell: str) -> int | None:
    if not _COUNT.fullmatch(cell):
        return None
    count = int(cell.replace(",", "").partition(".")[0])
    return count if 1 <= count <= MAX_TOKENS else None


def read_objects(
    path: Path,
    *,
    prompt: str | int | None,
    generated: str | int | None,
    column: str | None = None,
    match: str = "",
    notation: TimeNotation | None = None,
    warn: Warn = ignore_warning,
) -> TokenTrace:
    """Read JSON lines, a JSON document with a list of objects, or Parquet: one object a request, in any order.

    Objects with Mooncake's lengths have a ``timestamp`` in milliseconds, where nothing states another unit, and maybe
    ``hash_ids`` of the prompt's blocks. All others have a time as in logs of JSON lines. Requests without generated
    tokens are left out.

    Args:
        path: The file.
        prompt: Field of the prompt tokens, or one number for all; ``None`` for the usual names.
        generated: Field of the generated tokens, or one number for all.
        column: Field of the time; ``None`` for the usual names.
        match: Text that a request must contain.
        notation: How times are written.
        warn: Receives a note about requests that are left out.

    Raises:
        UnfoldError: A request has no time or no tokens, or the unit of the times is unclear.
    """
    notation = notation or TimeNotation()
    notation.check()
    times: list[float] = []
    tokens: list[tuple[int, int]] = []
    hashes: list[Sequence[Any]] = []
    unanswered: list[UnfoldError] = []
    doubts, known = UnitDoubts(), dict[tuple[str, ...], tuple[str | int, str | int]]()
    time_fields: dict[tuple[str, ...], str | None] = {}
    for row in iter_objects(path):
        if match not in row.text:
            continue
        names = tuple(row.fields)
        if names not in known:
            known[names] = _find_columns(names, prompt, generated, path, row.number)
            time_fields[names] = column or find_time_field(names)
        time_s = parse_object_time(row.fields, time_fields[names], notation, doubts)
        if time_s is None or not abs(time_s) < MAX_STAMP:
            hint = "a time as in logs, such as time_s or timestamp; or arrivals.column: FIELD"
            raise row.wrong(f"the {row.unit} has no {column or 'time'}", hint=hint)
        lengths = _parse_lengths(row.fields, known[names], row.wrong)
        if lengths[1] == 0:
            unanswered.append(row.wrong(*_describe_unanswered(row.fields, known[names])))
            continue
        times.append(time_s)
        tokens.append(lengths)
        hashes.append(_list_hashes(row.fields.get("hash_ids")))
    _check_unanswered(unanswered, len(times) + len(unanswered), path, warn)
    if not times:
        raise user_error("the trace has no arrival", file=str(path))
    doubts.check_mooncake(np.array(times), str(path))
    order = np.argsort(times, kind="stable")
    arrival_s = _convert_times(np.array(times)[order], doubts.unitless, notation, path)
    _reject_clocks(float(np.ptp(arrival_s)), path, "times of one clock")
    counts = np.array(tokens, dtype=np.int64)[order]
    trace = _without_sharing(arrival_s - arrival_s[0], counts[:, 0], counts[:, 1], len(unanswered))
    return _with_prefixes(trace, [hashes[row] for row in order])


def _list_hashes(ids: Any) -> Sequence[Any]:
    """Return the hashes of the blocks of a prompt, from a list or from the text of one in a cell."""
    if isinstance(ids, str):
        try:
            ids = json.loads(ids)
        except (ValueError, RecursionError):
            return []
    return ids if isinstance(ids, list) and all(isinstance(item, (int, str)) for item in ids) else []


def _with_prefixes(trace: TokenTrace, hashes: Sequence[Sequence[Any]]) -> TokenTrace:
    """Return a trace with the prefixes that the hashes of its prompts share."""
    shared_tokens, shared_with = _share_prefixes(hashes)
    return replace(trace, shared_tokens=np.minimum(shared_tokens, trace.input_tokens), shared_with=shared_with)


def _convert_times(times: FloatArray, unitless: set[str], notation: TimeNotation, path: Path) -> FloatArray:
    """Return sorted times in seconds; ``unitless`` are the fields with numbers without a stated unit."""
    if notation.unit is None:
        times = np.sort(each_epoch_to_seconds(times))
    if unitless:
        times = notation.convert_numbers(times, min(unitless), str(path))
    return spread_rounded_times(times, np.random.default_rng(0), unit_s=notation.unit_s or 0.0)


def _share_prefixes(hashes: Sequence[Sequence[Any]]) -> tuple[CountArray, CountArray]:
    """Return the longest hashed prefix that each request shares with an earlier one, in tokens, and that request."""
    latest: dict[tuple[Any, ...], int] = {}
    shared_tokens, shared_with = np.zeros(len(hashes), dtype=np.int64), np.full(len(hashes), -1, dtype=np.int64)
    for index, ids in enumerate(hashes):
        # an id of a chained hash stands for its block and all before it
        for depth in range(len(ids), 0, -1):
            earlier = latest.get((depth, str(ids[depth - 1])))
            if earlier is not None:
                shared_tokens[index], shared_with[index] = depth * HASH_BLOCK_TOKENS, earlier
                break
        for depth, item in enumerate(ids, 1):
            latest[depth, str(item)] = index
    return shared_tokens, shared_with
