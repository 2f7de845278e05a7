"""Import benchmark results of an engine: ``vllm bench serve --save-detailed``, GuideLLM, inference-perf.

TTFT and TPOT are computed from times and token counts, never taken from a tool's own TPOT, which may count stream
events. What cannot be compared is rejected: runs with failures, without lengths, or with times of several clocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.safe_io.archives import gunzip
from unfoldkit.safe_io.files import read_bytes

EVENTS_PER_TOKEN = 1.5
MAX_SPAN_S = 30 * 86_400.0
FEWEST_REQUESTS = 8
FORMATS = "vllm bench serve --save-detailed, GuideLLM or inference-perf"
EVENTS_NOTE = "stream events outnumber tokens; TPOT is computed from the output lengths"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRun:
    """Requests of a benchmark in order of arrival, times in seconds.

    Attributes:
        path: the file.
        arrival_s: (n,) arrival times from 0 on.
        input_tokens: (n,) prompt tokens.
        output_tokens: (n,) generated tokens.
        ttft_s: (n,) time to first token.
        last_s: (n,) time from arrival to the last token.
        closed_loop: requests that the client kept in flight; 0 for an open loop.
        compares_ttft: whether TTFT means the same in a simulation: equal lengths make closed loops run in step.
        notes: what limits the comparison, in words.
    """

    path: Path
    arrival_s: FloatArray
    input_tokens: CountArray
    output_tokens: CountArray
    ttft_s: FloatArray
    last_s: FloatArray
    closed_loop: int
    compares_ttft: bool
    notes: tuple[str, ...]

    @property
    def tpot_s(self) -> FloatArray:
        """Time per token after the first, of the requests with several tokens."""
        several = self.output_tokens > 1
        result: FloatArray = (self.last_s - self.ttft_s)[several] / (self.output_tokens[several] - 1)
        return result


def read_benchmark(path: Path) -> BenchmarkRun:
    """Read a benchmark result.

    Raises:
        UnfoldError: the format is not known, requests failed, lengths are missing, or clocks are mixed.
    """
    file = str(path)
    try:
        data = json.loads(gunzip(read_bytes(path), file))
    except (ValueError, RecursionError) as error:
        raise user_error(f"not JSON: {error}", file=file, hint="a complete result, or its gzip file") from error
    try:
        if isinstance(data, dict) and isinstance(data.get("benchmarks"), list):
            return _read_guidellm(data["benchmarks"], path)
        if isinstance(data, list):
            return _read_inference_perf(data, path)
        if isinstance(data, dict):
            return _read_vllm(data, path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, UnfoldError):
            raise
        cause = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise user_error(f"not a benchmark result: {cause}", file=file, hint=FORMATS) from error
    raise user_error("not a benchmark result", file=file, hint=FORMATS)


def _read_vllm(data: Mapping[str, Any], path: Path) -> BenchmarkRun:
    if "queued_ts" in data or not isinstance(data.get("ttfts"), list):
        raise user_error("the result has no times of single requests", file=str(path), hint="--save-detailed")
    errors = [error for error in data.get("errors") or [] if error]
    failed = max(len(errors), int(data.get("failed") or 0), int(data.get("num_prompts") or 0) - int(data["completed"]))
    _reject_failures(failed, path)
    prompt, generated = _lengths(data, ("input_lens", "output_lens"), path)
    gaps = data.get("itls")
    if not isinstance(gaps, list) or len(gaps) != len(prompt):
        raise user_error("the result has no inter-token latencies", file=str(path), key="itls", hint="--save-detailed")
    if len({len(data["ttfts"]), len(prompt), len(generated)}) != 1:
        raise user_error("times and lengths are of different numbers of requests", file=str(path))
    notes = []
    events = sum(len(row) for row in gaps)
    if events > EVENTS_PER_TOKEN * max(1, sum(generated) - len(generated)):
        notes.append(EVENTS_NOTE)
    ttft = [float(value) for value in data["ttfts"]]
    last = [first + float(sum(row)) for first, row in zip(ttft, gaps, strict=True)]
    clients = int(data.get("max_concurrency") or 0)
    rate = float(data.get("request_rate") or math.inf)
    if clients < 0 or rate <= 0:
        key = "max_concurrency" if clients < 0 else "request_rate"
        raise user_error(f"{data[key]} is no load of a client", file=str(path), key=key)
    starts = data.get("start_times")
    if isinstance(starts, list) and starts and len(starts) != len(prompt):
        message = f"{len(starts):,} start times for {len(prompt):,} requests"
        raise user_error(message, file=str(path), key="start_times", hint="--save-detailed")
    if isinstance(starts, list) and starts:
        arrivals = [float(value) for value in starts]
        # at a finite rate, max_concurrency is a cap that the recorded starts include
        clients = 0 if math.isfinite(rate) else clients
    elif clients or math.isinf(rate):
        arrivals = [0.0] * len(prompt)
    else:
        notes.append("the result has no start times; arrivals are drawn at its request rate")
        burstiness = float(data.get("burstiness") or 1.0)
        gaps_s = np.random.default_rng(0).gamma(burstiness, 1 / (rate * burstiness), len(prompt))
        arrivals = [float(value) for value in np.cumsum(gaps_s)]
    return _build_run(path, arrivals, prompt, generated, ttft, last, clients, notes)


def _read_guidellm(benchmarks: Sequence[Mapping[str, Any]], path: Path) -> BenchmarkRun:
    if len(benchmarks) != 1:
        message = f"the result holds {len(benchmarks)} benchmarks"
        raise user_error(message, file=str(path), hint="one file a load")
    requests = benchmarks[0]["requests"]
    _reject_failures(len(requests.get("errored") or []), path)
    rows = requests["successful"]
    columns: list[list[float]] = [[], [], [], [], []]
    events = 0
    for row in rows:
        start = _first_number(row, ("start_time", "request_start_time"), path)
        lengths = [_first_number(row, names, path) for names in (("prompt_tokens",), ("output_tokens",))]
        first = row.get("time_to_first_token_ms")
        ttft = float(first) / 1e3 if first is not None else _first_number(row, ("first_token_time",), path) - start
        end = row.get("last_token_time")
        last = (_first_number(row, ("end_time", "request_end_time"), path) if end is None else float(end)) - start
        events += int(row.get("output_events") or row.get("iterations") or 0)
        for column, value in zip(columns, (start, *lengths, ttft, last), strict=True):
            column.append(value)
    notes = [EVENTS_NOTE] if events > EVENTS_PER_TOKEN * sum(columns[2]) else []
    clients = int(_find_key(benchmarks[0], ("streams", "max_concurrency")) or 0)
    starts, prompt, generated, ttft_s, last_s = columns
    return _build_run(path, starts, prompt, generated, ttft_s, last_s, clients, notes)


def _read_inference_perf(rows: Sequence[Mapping[str, Any]], path: Path) -> BenchmarkRun:
    _reject_failures(sum(row.get("error") is not None for row in rows), path)
    columns: list[list[float]] = [[], [], [], [], []]
    events = 0
    for row in rows:
        info = row["info"]
        if info.get("input_tokens") is None or info.get("output_tokens") is None:
            raise user_error("a request has no lengths", file=str(path), key="info")
        times = info.get("output_token_times") or []
        if not times:
            raise user_error("a request has no token times", file=str(path), hint="streaming: true")
        start = float(row["start_time"])
        events += len(times)
        values = (start, info["input_tokens"], info["output_tokens"], times[0] - start, times[-1] - start)
        for column, value in zip(columns, values, strict=True):
            column.append(float(value))
    notes = []
    if events > EVENTS_PER_TOKEN * sum(columns[2]):
        notes.append(EVENTS_NOTE)
    starts, prompt, generated, ttft_s, last_s = columns
    return _build_run(path, starts, prompt, generated, ttft_s, last_s, 0, notes)


def _lengths(data: Mapping[str, Any], keys: tuple[str, str], path: Path) -> tuple[list[float], list[float]]:
    for key in keys:
        if not isinstance(data.get(key), list) or not data[key]:
            message = "the result has no lengths of single requests"
            raise user_error(message, file=str(path), key=key, hint="--save-detailed")
    prompt, generated = ([float(value) for value in data[key]] for key in keys)
    return prompt, generated


def _first_number(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> float:
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        raise user_error(f"a request has no {names[0]}", file=str(path), key=names[0])
    return float(value)


def _find_key(data: Any, names: tuple[str, ...]) -> Any:
    """Return the first value of some keys in nested mappings, but not in lists."""
    if not isinstance(data, Mapping):
        return None
    direct = next((data[name] for name in names if isinstance(data.get(name), (int, float))), None)
    if direct is not None:
        return direct
    return next((value for part in data.values() if (value := _find_key(part, names)) is not None), None)


def _reject_failures(count: int, path: Path) -> None:
    if count > 0:
        message = f"{count:,} requests failed: clients that give up cannot be simulated"
        raise user_error(message, file=str(path), hint="a run at a lower load")


def _build_run(
    path: Path,
    arrivals: Sequence[float],
    prompt: Sequence[float],
    generated: Sequence[float],
    ttft: Sequence[float],
    last: Sequence[float],
    clients: int,
    notes: Sequence[str],
) -> BenchmarkRun:
    sizes = {len(column) for column in (arrivals, prompt, generated, ttft, last)}
    if len(sizes) != 1:
        raise user_error("times and lengths are of different numbers of requests", file=str(path))
    if sizes.pop() < FEWEST_REQUESTS:
        raise user_error(f"fewer than {FEWEST_REQUESTS} requests", file=str(path), hint="a longer run")
    columns = [np.asarray(column, dtype=np.float64) for column in (arrivals, prompt, generated, ttft, last)]
    if not all(np.isfinite(column).all() for column in columns):
        raise user_error("a time or length is not finite", file=str(path))
    starts, prompts, outputs, first_s, last_s = columns
    if min(prompts.min(), outputs.min()) < 1 or max(prompts.max(), outputs.max()) > 1 << 24:
        raise user_error("a request has no tokens", file=str(path), hint="lengths of at least 1")
    if (first_s <= 0).any() or (last_s < first_s).any() or last_s.max() > MAX_SPAN_S or np.ptp(starts) > MAX_SPAN_S:
        message = "the times are of several clocks: a first token lies before its request, or weeks after it"
        raise user_error(message, file=str(path), hint="times of the client alone, in seconds")
    if (outputs > 1).any() and not (last_s > first_s).any():
        raise user_error("no time passes between tokens", file=str(path), hint="a streamed response")
    order = np.argsort(starts, kind="stable")
    compares_ttft = not (clients and _is_constant(prompts) and _is_constant(outputs))
    texts = list(notes)
    if not compares_ttft:
        texts.append("equal lengths in a closed loop: TTFT depends on the client's protocol and is not fitted")
    return BenchmarkRun(
        path=path,
        arrival_s=starts[order] - starts.min(),
        input_tokens=prompts[order].astype(np.int64),
        output_tokens=outputs[order].astype(np.int64),
        ttft_s=first_s[order],
        last_s=last_s[order],
        closed_loop=clients,
        compares_ttft=compares_ttft,
        notes=tuple(texts),
    )


def _is_constant(values: FloatArray) -> bool:
    return bool((values == values[0]).all())
