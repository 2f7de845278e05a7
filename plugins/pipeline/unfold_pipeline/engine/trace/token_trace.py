"""Traces with tokens: the arrival of each request, its prompt and generated tokens, and the prompts that repeat."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfoldkit.api import Diagnostic, UnfoldError, csv_rows, did_you_mean, user_error
from unfoldkit.arrivals.jitter import spread_rounded_times
from unfoldkit.arrivals.readers.detect import detect_form
from unfoldkit.arrivals.readers.log import parse_json_line
from unfoldkit.arrivals.readers.timestamps import TimeNotation, each_epoch_to_seconds
from unfoldkit.arrivals.traces import scale_rate_with_sources
from unfoldkit.io.csv import open_text

INPUT_COLUMNS = (
    "ContextTokens", "input_tokens", "prompt_tokens", "input_length", "prompt_len", "input_len", "isl",
    "Request tokens",
)  # fmt: skip
OUTPUT_COLUMNS = (
    "GeneratedTokens", "output_tokens", "completion_tokens", "generated_tokens", "output_length", "output_len", "osl",
    "Response tokens",
)  # fmt: skip
HASH_BLOCK_TOKENS = 512
"""Tokens of a hashed block in Mooncake's traces."""
MAX_TOKENS = 1 << 24
MAX_FIRST_LINE = 1 << 20
MAX_STAMP = 1e19
"""Above every time since 1970 in nanoseconds."""
MAX_SPAN_S = 366 * 86_400.0
_FORM_NAMES = {"document": "one document", "parquet": "Parquet"}
COLUMN_HINT = "arrivals: {input: COLUMN, output: COLUMN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """Requests with tokens, in order of arrival.

    Attributes:
        arrival_s: (n,) seconds since the first arrival.
        input_tokens: (n,) prompt tokens.
        output_tokens: (n,) generated tokens.
        shared_tokens: (n,) leading tokens equal to those of the earlier request ``shared_with``.
        shared_with: (n,) index of that request, or -1.
    """

    arrival_s: FloatArray
    input_tokens: CountArray
    output_tokens: CountArray
    shared_tokens: CountArray
    shared_with: CountArray

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
        )

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
        )


def read_tokens(
    path: Path, arrival_s: FloatArray, *, prompt: str | int | None, generated: str | int | None, match: str = ""
) -> TokenTrace:
    """Read the tokens of a CSV with known arrival times.

    Args:
        path: the CSV.
        arrival_s: (n,) arrival times of the rows.
        prompt: column of the prompt tokens, or one number for all; ``None`` for the usual names.
        generated: column of the generated tokens, or one number for all.
        match: text that a row must contain.

    Raises:
        UnfoldError: the trace has no tokens, a cell is no count, or times and rows differ.
    """
    if (form := detect_form(path)) in ("document", "parquet"):
        hint = "one object a line, such as jq -c '.[]' FILE > trace.jsonl" if form == "document" else "write it as CSV"
        message = f"tokens are read from CSV and JSON lines, and this is {_FORM_NAMES[form]}"
        raise user_error(message, file=str(path), hint=hint)
    counts: list[tuple[int, int]] = []
    columns: tuple[str | int, str | int] | None = None
    for row in csv_rows(path):
        if match and match not in ",".join(row.cells.values()):
            continue
        if columns is None:
            columns = (
                _find_column(list(row.cells), prompt, INPUT_COLUMNS, "prompt tokens", path),
                _find_column(list(row.cells), generated, OUTPUT_COLUMNS, "generated tokens", path),
            )
        cells = [column if isinstance(column, int) else _parse_count(row[column]) for column in columns]
        wrong = next((i for i, cell in enumerate(cells) if cell is None), None)
        if wrong is not None:
            name = str(columns[wrong])
            hint = "a whole number of at least 1; leave out requests that failed"
            raise row.wrong(f"{row[name][:40]!r} is no number of tokens", name, hint)
        counts.append((int(cells[0] or 0), int(cells[1] or 0)))
    if len(counts) != arrival_s.size:
        message = f"the trace has {arrival_s.size:,} arrivals and {len(counts):,} rows with tokens"
        raise user_error(message, file=str(path), hint="one row a request, with its time and tokens")
    _reject_clocks(float(np.ptp(arrival_s)) if arrival_s.size else 0.0, path, "times of one clock in one notation")
    tokens = np.array(counts, dtype=np.int64)
    return _without_sharing(arrival_s, tokens[:, 0], tokens[:, 1])


def _reject_clocks(span_s: float, path: Path, hint: str) -> None:
    if span_s > MAX_SPAN_S:
        message = f"the timestamps span {span_s / 86_400:,.0f} days: they are of several clocks"
        raise user_error(message, file=str(path), key="timestamp", hint=hint)


def constant_tokens(arrival_s: FloatArray, prompt: int, generated: int) -> TokenTrace:
    """Return requests of equal lengths."""
    size = arrival_s.size
    return _without_sharing(arrival_s, np.full(size, prompt, dtype=np.int64), np.full(size, generated, dtype=np.int64))


def is_json_lines(path: Path) -> bool:
    """Return whether a trace is a file with a JSON object a line, by its name or its first line."""
    if any(suffix in (".jsonl", ".ndjson") for suffix in path.suffixes):
        return True
    try:
        with open_text(path, errors="replace") as stream:
            return isinstance(json.loads(stream.readline(MAX_FIRST_LINE)), dict)
    except (ValueError, RecursionError, OSError, EOFError):
        return False


def list_json_fields(path: Path) -> list[str]:
    """Return the names of the first object of a file of JSON lines."""
    return [name for _, _, row in itertools.islice(_json_rows(path), 1) for name in row]


def _without_sharing(arrival_s: FloatArray, prompt: CountArray, generated: CountArray) -> TokenTrace:
    none = np.full(arrival_s.size, -1, dtype=np.int64)
    return TokenTrace(
        arrival_s=arrival_s, input_tokens=prompt, output_tokens=generated, shared_tokens=np.zeros_like(none),
        shared_with=none,
    )  # fmt: skip


def _find_column(
    names: Sequence[str], wanted: str | int | None, usual: Sequence[str], what: str, path: Path
) -> str | int:
    if isinstance(wanted, int):
        return wanted
    if wanted is not None:
        if wanted not in names:
            raise UnfoldError(Diagnostic(f"no column {wanted}", str(path), 1, 1, hint=did_you_mean(wanted, names)))
        return wanted
    lower = {name.lower(): name for name in names}
    column = next((lower[name.lower()] for name in usual if name.lower() in lower), None)
    if column is None:
        raise UnfoldError(Diagnostic(f"the trace has no {what}", str(path), 1, 1, hint=COLUMN_HINT))
    return column


def _parse_count(cell: str) -> int | None:
    text = cell.removesuffix(".0")
    is_short = text.isdecimal() and len(text) <= len(str(MAX_TOKENS))
    return int(text) if is_short and 1 <= int(text) <= MAX_TOKENS else None


def read_json_lines(
    path: Path,
    *,
    prompt: str | int | None,
    generated: str | int | None,
    column: str | None = None,
    match: str = "",
    notation: TimeNotation | None = None,
) -> TokenTrace:
    """Read a file with one JSON object a request, in any order.

    Objects with Mooncake's lengths have a ``timestamp`` in milliseconds, where nothing states another unit, and maybe
    ``hash_ids`` of the prompt's blocks. All others have a time as in logs of JSON lines.

    Args:
        path: the file.
        prompt: field of the prompt tokens, or one number for all; ``None`` for the usual names.
        generated: field of the generated tokens, or one number for all.
        column: field of the time; ``None`` for the usual names.
        match: text that a line must contain.
        notation: how times are written.

    Raises:
        UnfoldError: a line is no object, has no time or no tokens, or the unit of the times is unclear.
    """
    notation = notation or TimeNotation()
    notation.check()
    times, tokens, hashes, unitless = [], [], [], set[str]()
    for line, text, row in _json_rows(path):
        if match not in text:
            continue
        names = [name for name in row if isinstance(name, str)]
        columns = (
            _find_column(names, prompt, INPUT_COLUMNS, "prompt tokens", path),
            _find_column(names, generated, OUTPUT_COLUMNS, "generated tokens", path),
        )
        values = [field if isinstance(field, int) else _parse_count(str(row[field])) for field in columns]
        time_s = parse_json_line(text, column, notation, unitless)
        if None in values or time_s is None or not abs(time_s) < MAX_STAMP:
            message = f"the line has no {column or 'time'}, or no tokens"
            hint = "a time as in logs, such as time_s or timestamp; or arrivals.column: FIELD"
            raise UnfoldError(Diagnostic(message, str(path), line, 1, hint=hint))
        times.append(time_s)
        tokens.append([int(value or 0) for value in values])
        ids = row.get("hash_ids")
        is_hashed = isinstance(ids, list) and all(isinstance(item, (int, str)) for item in ids)
        hashes.append(ids if is_hashed else [])
    if not times:
        raise user_error("the trace has no arrival", file=str(path))
    order = np.argsort(times, kind="stable")
    arrival_s = _convert_times(np.array(times)[order], unitless, notation, path)
    _reject_clocks(float(np.ptp(arrival_s)), path, "milliseconds of one clock")
    counts = np.array(tokens, dtype=np.int64)[order]
    shared_tokens, shared_with = _share_prefixes([hashes[row] for row in order])
    return TokenTrace(
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=counts[:, 0],
        output_tokens=counts[:, 1],
        shared_tokens=np.minimum(shared_tokens, counts[:, 0]),
        shared_with=shared_with,
    )


def _convert_times(times: FloatArray, unitless: set[str], notation: TimeNotation, path: Path) -> FloatArray:
    """Return sorted times in seconds; ``unitless`` are the fields with numbers without a stated unit."""
    if notation.unit is None:
        times = np.sort(each_epoch_to_seconds(times))
    if unitless:
        times = notation.convert_numbers(times, min(unitless), str(path))
    return spread_rounded_times(times, np.random.default_rng(0), unit_s=notation.unit_s or 0.0)


def _json_rows(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    try:
        with open_text(path) as stream:
            for line, text in enumerate(stream, 1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise UnfoldError(Diagnostic("the line is no JSON object", str(path), line, 1))
                    yield line, text, row
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise user_error(f"not a file of JSON lines: {error}", file=str(path)) from error


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
