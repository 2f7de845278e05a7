"""Import benchmark results of an engine: vLLM (``--save-detailed``), SGLang, GuideLLM, inference-perf, AIPerf.

A file may hold several runs: a sweep of GuideLLM, or results that a tool appended to one file. TTFT and TPOT are
computed from times and token counts, never taken from a tool's own TPOT, which may count stream events. What cannot be
compared is rejected: runs with failures, without lengths, or with times of several clocks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfoldkit.api import Diagnostic, UnfoldError, user_error
from unfoldkit.safe_io.archives import gunzip
from unfoldkit.safe_io.files import parse_values, read_bytes

EVENTS_PER_TOKEN = 1.5
MAX_BURSTINESS = 1e6
MAX_UNSTREAMED = 0.05
"""Largest fraction of requests with several tokens at one moment: answers that a server did not stream."""
SLACK = 1.05
CLOSED_STRATEGIES = frozenset({"synchronous", "concurrent", "throughput"})
"""Strategies of GuideLLM that send a request when another one ends."""
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
MAX_SPAN_S = 30 * 86_400.0
FEWEST_REQUESTS = 8
OTHER_FORMATS = "sglang.bench_serving, GuideLLM, inference-perf or AIPerf"
FORMATS = f"vllm bench serve --save-detailed, {OTHER_FORMATS}"
RESULT_HINT = f"the file that --save-result --save-detailed of vllm bench serve writes; also: {OTHER_FORMATS}"
WHOLE_HINT = "a complete result, or its gzip file"
SUMMARY_LINE = "Serving Benchmark Result"
"""Headline of what the benchmarks of vLLM and SGLang print at their end."""
LOG_LINE = re.compile(
    r"^(\([^)\n]{1,60}\) )?\[?(\d{4}-\d\d-\d\d[ T][\d:.,]+\]? )?(INFO|WARNING|ERROR|DEBUG)\b", re.MULTILINE
)
MAX_SEARCHED = 1 << 16
OFFLINE_MARKS: Mapping[str, frozenset[str]] = {
    "vllm bench latency": frozenset({"avg_latency", "latencies"}),
    "vllm bench throughput": frozenset({"elapsed_time", "requests_per_second"}),
    "a benchmark of embeddings": frozenset({"e2els", "input_lens"}),
    "trtllm-bench": frozenset({"engine", "performance"}),
    "Ollama": frozenset({"eval_count", "eval_duration"}),
    "llama-bench": frozenset({"n_prompt", "n_gen", "avg_ts"}),
}
"""Keys by which results of offline benchmarks, and answers with times, are known."""
FIRST_TOKEN_KEYS = ("first_token_time", "first_token_iteration", "first_iteration")
LAST_TOKEN_KEYS = (
    *("last_token_time", "last_token_iteration", "last_iteration"),
    *("end_time", "request_end_time", "request_end"),
)
DRAWN_NOTE = "the result has no start times; arrivals are drawn at its request rate"
EVENTS_NOTE = "stream events outnumber tokens; TPOT is computed from the output lengths"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRun:
    """Requests of a benchmark in order of arrival, times in seconds.

    Attributes:
        path: The file.
        arrival_s: (n,) arrival times from 0 on.
        input_tokens: (n,) prompt tokens.
        output_tokens: (n,) generated tokens.
        ttft_s: (n,) time to first token.
        last_s: (n,) time from arrival to the last token.
        closed_loop: Requests that the client kept in flight; 0 for an open loop.
        compares_ttft: Whether TTFT means the same in a simulation: equal lengths make closed loops run in step.
        notes: What limits the comparison, in words.
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


def read_benchmarks(path: Path) -> tuple[BenchmarkRun, ...]:
    """Read the benchmark runs of a file.

    Of several runs, those that cannot be compared are left out, and a note of the others says why.

    Raises:
        UnfoldError: The format is not known, or no run compares: requests failed, lengths are missing, or clocks are
            mixed.
    """
    file = str(path)
    results = _split_results(_read_values(gunzip(read_bytes(path), file), file), path)
    if not results:
        raise user_error("the file is empty", file=file, hint=RESULT_HINT)
    runs: list[BenchmarkRun] = []
    rejected: list[tuple[int, UnfoldError]] = []
    for number, result in enumerate(results, 1):
        try:
            runs.append(_read_result(result, path))
        except UnfoldError as error:
            rejected.append((number, error))
    if not runs:
        raise rejected[0][1]
    notes = tuple(
        f"run {number} of {len(results)} is left out: {error.diagnostics[0].message}" for number, error in rejected
    )
    return tuple(replace(run, notes=(*run.notes, *notes)) for run in runs)


def _read_values(data: bytes, file: str) -> list[Any]:
    """Return the JSON values of a file.

    Raises:
        UnfoldError: It is a log, a table, other text, or no text, rather than JSON, or the JSON breaks off.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise user_error("binary data, not the JSON of a benchmark", file=file, hint=RESULT_HINT) from error
    try:
        return list(parse_values(text))
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith(("{", "[")) or LOG_LINE.match(text):
            message = f"{_describe_text(text)}, not the JSON of a benchmark"
            raise UnfoldError(Diagnostic(message, file, 1, 1, hint=RESULT_HINT)) from error
        message = f"the JSON breaks off or is damaged: {error.msg}"
        # positions count from the first value on
        before = text[: len(text) - len(text.lstrip())].count("\n")
        raise UnfoldError(Diagnostic(message, file, error.lineno + before, error.colno, hint=WHOLE_HINT)) from error
    except (ValueError, RecursionError) as error:
        raise user_error(f"the JSON cannot be read: {error}", file=file, hint=WHOLE_HINT) from error


def _describe_text(text: str) -> str:
    """Return what a text without JSON is, as far as its beginning or a usual line says."""
    if SUMMARY_LINE in text:
        return "the printed summary of a benchmark, which lacks the individual requests"
    if LOG_LINE.search(text[:MAX_SEARCHED]):
        return "the log of a server"
    first = text.lstrip().partition("\n")[0]
    return "a table" if first.count(",") and not first.count(" ") else "text"


def _split_results(values: Sequence[Any], path: Path) -> list[Any]:
    """Return one value for each run; a list holds the requests of one run."""
    if values and all(map(_is_aiperf_request, values)):
        return [[value for value in values if value["metadata"].get("benchmark_phase") != "warmup"]]
    results: list[Any] = []
    for value in values:
        if isinstance(value, list) and value and all(isinstance(part, dict) and "ttfts" in part for part in value):
            results += value
        elif isinstance(value, dict) and isinstance(value.get("benchmarks"), list):
            if not value["benchmarks"]:
                raise user_error("the result holds no benchmark", file=str(path), key="benchmarks")
            results += [{"requests": None, **part} if isinstance(part, dict) else part for part in value["benchmarks"]]
        else:
            results.append(value)
    return results


def _is_aiperf_request(value: Any) -> bool:
    """Return whether a value is a request of AIPerf: documents of other tools have metadata of their runs."""
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict) and "benchmarks" not in value


def _read_result(result: Any, path: Path) -> BenchmarkRun:
    file = str(path)
    _reject_other_files(result, path)
    try:
        if isinstance(result, list) and result and isinstance(result[0].get("metadata"), dict):
            return _read_aiperf(result, path)
        if isinstance(result, list):
            return _read_inference_perf(result, path)
        if isinstance(result, dict) and "requests" in result:
            return _read_guidellm(result, path)
        if isinstance(result, dict):
            return _read_vllm(result, path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, UnfoldError):
            raise
        cause = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        if "NoneType" in cause:
            cause = "an entry is null where it has a value in a result"
        raise user_error(f"not a benchmark result: {cause}", file=file, hint=FORMATS) from error
    raise user_error("not a benchmark result", file=file, hint=FORMATS)


def _reject_other_files(result: Any, path: Path) -> None:
    """Reject files of known tools that hold no times or tokens of individual requests, with the file to take instead.

    Raises:
        UnfoldError: The result is such a file.
    """
    keys = set(result) if isinstance(result, dict) else set()
    first = result[0] if isinstance(result, list) and result and isinstance(result[0], dict) else {}
    if "experiments" in keys:
        message, hint = "a profile export of genai-perf has no prompt tokens", "the profile_export.jsonl of AIPerf"
    elif "load_summary" in keys:
        message = "a summary of inference-perf has no individual requests"
        hint = "per_request_lifecycle_metrics.json: report.request_lifecycle.per_request: true"
    elif isinstance(result, dict) and isinstance(result.get("time_to_first_token"), dict):
        message, hint = "a summary of AIPerf has no individual requests", "profile_export.jsonl"
    elif "end_to_end_latency_s" in first or "results_ttft_s_mean" in keys:
        message, hint = "a result of LLMPerf does not state when its requests were sent", FORMATS
    elif tool := next((name for name, marks in OFFLINE_MARKS.items() if marks <= (keys or set(first))), ""):
        message, hint = f"a result of {tool} has no requests that arrive at a server", FORMATS
    else:
        return
    raise user_error(message, file=str(path), hint=hint)


def _read_vllm(data: Mapping[str, Any], path: Path) -> BenchmarkRun:
    if "queued_ts" in data or not isinstance(data.get("ttfts"), list):
        hint = "--output-details" if data.get("backend") == "sglang" else "--save-detailed"
        raise user_error("the result has no times of individual requests", file=str(path), hint=hint)
    errors = [error for error in data.get("errors") or [] if error]
    completed = _read_count(data["completed"], "completed")
    failed = max(
        len(errors),
        _read_count(data.get("failed"), "failed"),
        _read_count(data.get("num_prompts"), "num_prompts") - completed,
    )
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
    ttft = _read_numbers(data["ttfts"], "ttfts")
    last = [first + _sum_gaps(row, path) for first, row in zip(ttft, gaps, strict=True)]
    _check_summary(data, ttft, last, path)
    arrivals, clients, is_drawn = _read_arrivals(data, len(prompt), path)
    notes += [DRAWN_NOTE] if is_drawn else []
    return _build_run(path, arrivals, prompt, generated, ttft, last, clients, notes)


def _read_arrivals(data: Mapping[str, Any], count: int, path: Path) -> tuple[list[float], int, bool]:
    """Return the arrivals, the clients of a closed loop, and whether the arrivals were drawn at the request rate."""
    clients, rate = _read_load(data, path)
    starts = data.get("start_times")
    if isinstance(starts, list) and starts and len(starts) != count:
        message = f"{len(starts):,} start times for {count:,} requests"
        raise user_error(message, file=str(path), key="start_times", hint="--save-detailed")
    if isinstance(starts, list) and starts:
        arrivals = _read_numbers(starts, "start_times")
        if math.isfinite(rate) and max(arrivals) <= min(arrivals):
            message = "all requests start at the same time at a finite rate"
            raise user_error(message, file=str(path), key="start_times", hint="--save-detailed")
        # at a finite rate, max_concurrency is a cap that the recorded starts include
        return arrivals, 0 if math.isfinite(rate) else clients, False
    if clients or math.isinf(rate):
        return [0.0] * count, clients, False
    if data.get("ramp_up_strategy"):
        message = "the rate rises during the run, and the result has no start times"
        raise user_error(message, file=str(path), key="ramp_up_strategy", hint="a constant rate")
    burstiness = 1.0 if data.get("burstiness") is None else _read_number(data["burstiness"], "burstiness")
    if not 0 < burstiness <= MAX_BURSTINESS:
        message = f"{burstiness:g} is not a valid burstiness"
        raise user_error(message, file=str(path), key="burstiness", hint="1 for Poisson arrivals")
    gaps_s = np.random.default_rng(0).gamma(burstiness, 1 / (rate * burstiness), count)
    return [float(value) for value in np.cumsum(gaps_s)], clients, True


def _read_load(data: Mapping[str, Any], path: Path) -> tuple[int, float]:
    """Return the clients of a closed loop and the request rate; 0 and infinite where none is recorded."""
    clients = 0 if data.get("max_concurrency") is None else _read_number(data["max_concurrency"], "max_concurrency")
    rate = math.inf
    if data.get("request_rate") not in (None, "inf"):
        rate = _read_number(data["request_rate"], "request_rate", is_endless=True)
    if clients < 0 or clients != int(clients):
        raise user_error(f"{clients:g} is not a valid load of a client", file=str(path), key="max_concurrency")
    if not rate > 0:
        raise user_error(f"{rate:g} is not a valid load of a client", file=str(path), key="request_rate")
    return int(clients), rate


def _sum_gaps(row: Any, path: Path) -> float:
    gaps = _read_numbers(row, "itls")
    if any(gap < 0 for gap in gaps):
        raise user_error("a token arrives before the one before it", file=str(path), key="itls")
    return sum(gaps)


def _check_summary(data: Mapping[str, Any], ttft: Sequence[float], last: Sequence[float], path: Path) -> None:
    """Reject times of requests that contradict the summary of the same file: another unit, or parts of two runs.

    Raises:
        UnfoldError: A request took longer than the run, or the mean TTFT is another.
    """
    duration = data.get("duration")
    if duration is not None and last and max(last) > SLACK * _read_number(duration, "duration") + 1:
        message = f"a request of {max(last):,.4g} s is longer than the run of {duration:,.4g} s"
        raise user_error(message, file=str(path), key="duration", hint="times in seconds, of one run")
    mean_ms = data.get("mean_ttft_ms")
    if mean_ms is not None and ttft:
        stated_s, mean_s = _read_number(mean_ms, "mean_ttft_ms") / 1e3, sum(ttft) / len(ttft)
        if not stated_s / SLACK <= mean_s <= stated_s * SLACK:
            message = f"the requests have a mean TTFT of {mean_s:,.4g} s, the summary {stated_s:,.4g} s"
            raise user_error(message, file=str(path), key="mean_ttft_ms", hint="times in seconds, of one run")


def _read_guidellm(benchmark: Mapping[str, Any], path: Path) -> BenchmarkRun:
    requests = benchmark["requests"]
    if not isinstance(requests, Mapping):
        raise user_error("the result has no individual requests", file=str(path), key="requests", hint="a JSON output")
    _reject_failures(len(requests.get("errored") or []), path)
    rows = requests["successful"]
    if not isinstance(rows, list):
        raise user_error("the result has no individual requests", file=str(path), key="requests.successful")
    _check_sample(benchmark, len(rows), path)
    columns: list[list[float]] = [[], [], [], [], []]
    events = 0
    for row in rows:
        timings = _find_timings(row)
        start = _first_number({**timings, **row}, ("start_time", "request_start_time", "request_start"), path)
        lengths = [
            _first_number({**_find_usage(row, metrics, name), **row}, (name, "text_tokens", "total_tokens"), path)
            for name, metrics in (("prompt_tokens", "input_metrics"), ("output_tokens", "output_metrics"))
        ]
        first = row.get("time_to_first_token_ms")
        ttft = (
            _read_number(first, "time_to_first_token_ms") / 1e3
            if first is not None
            else _first_number({**timings, **row}, FIRST_TOKEN_KEYS, path) - start
        )
        last = _first_number({**timings, **row}, LAST_TOKEN_KEYS, path) - start
        counted = row.get("output_events") or timings.get("token_iterations")
        events += _read_count(counted or row.get("iterations") or timings.get("iterations"), "output_events")
        for column, value in zip(columns, (start, *lengths, ttft, last), strict=True):
            column.append(value)
    notes = [EVENTS_NOTE] if events > EVENTS_PER_TOKEN * sum(columns[2]) else []
    if cut_off := len(requests.get("incomplete") or []):
        notes.append(f"{cut_off:,} requests were cut off at the end of the run and are left out")
        if cut_off > len(rows):
            message = f"{cut_off:,} requests were cut off, {len(rows):,} are complete"
            raise user_error(message, file=str(path), hint="a longer run")
    starts, prompt, generated, ttft_s, last_s = columns
    return _build_run(path, starts, prompt, generated, ttft_s, last_s, _find_clients(benchmark), notes)


def _find_usage(row: Mapping[str, Any], metrics: str, name: str) -> Mapping[str, Any]:
    """Return the token counts that newer versions of GuideLLM keep in an object of their own."""
    usage = row.get(metrics)
    return usage if row.get(name) is None and isinstance(usage, Mapping) else {}


def _find_timings(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the times of a request that newer versions of GuideLLM keep in an object of their own."""
    for outer, inner in (("info", "timings"), ("scheduler_info", "request_timings")):
        timings = row[outer].get(inner) if isinstance(row.get(outer), Mapping) else None
        if isinstance(timings, Mapping):
            return timings
    return {}


def _find_clients(benchmark: Mapping[str, Any]) -> int:
    """Return the clients of a closed loop of GuideLLM; 0 where the recorded starts are the load."""
    strategy = _find_mapping(benchmark, "strategy") or benchmark
    kind = strategy.get("type_", "")
    if strategy is not benchmark and kind not in CLOSED_STRATEGIES:
        return 0
    return 1 if kind == "synchronous" else int(_find_key(strategy, ("streams", "max_concurrency")) or 0)


def _read_inference_perf(rows: Sequence[Mapping[str, Any]], path: Path) -> BenchmarkRun:
    _reject_failures(sum(row.get("error") is not None for row in rows), path)
    columns: list[list[float]] = [[], [], [], [], []]
    events = 0
    for row in rows:
        prompt_tokens, answer = _read_info(row["info"])
        if prompt_tokens is None or answer.get("output_tokens") is None:
            raise user_error("a request has no lengths", file=str(path), key="info")
        times = _read_numbers(answer.get("output_token_times") or [], "output_token_times")
        if not times:
            raise user_error("a request has no token times", file=str(path), hint="streaming: true")
        if any(later < earlier for earlier, later in itertools.pairwise(times)):
            raise user_error("a token arrives before the one before it", file=str(path), key="output_token_times")
        start = _read_number(row["start_time"], "start_time")
        events += len(times)
        values = (start, prompt_tokens, answer["output_tokens"], times[0] - start, times[-1] - start)
        for column, value in zip(columns, values, strict=True):
            column.append(_read_number(value, "info"))
    notes = []
    if events > EVENTS_PER_TOKEN * sum(columns[2]):
        notes.append(EVENTS_NOTE)
    starts, prompt, generated, ttft_s, last_s = columns
    return _build_run(path, starts, prompt, generated, ttft_s, last_s, 0, notes)


def _read_info(info: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Return the prompt tokens of a request of inference-perf, and the object with its answer.

    Newer versions have objects of their own for the request and the answer, and the server's token counts, which are
    exact where the client counts the text again.
    """
    request, answer = info.get("request_metrics"), info.get("response_metrics")
    text = request.get("text") if isinstance(request, Mapping) else None
    nested = text.get("input_tokens") if isinstance(text, Mapping) else None
    prompt_tokens = nested if info.get("input_tokens") is None else info["input_tokens"]
    if not isinstance(answer, Mapping):
        return prompt_tokens, info
    usage = answer.get("server_usage")
    if not isinstance(usage, Mapping):
        return prompt_tokens, answer
    generated = usage.get("completion_tokens") or answer.get("output_tokens")
    return usage.get("prompt_tokens") or prompt_tokens, {**answer, "output_tokens": generated}


def _read_aiperf(rows: Sequence[Mapping[str, Any]], path: Path) -> BenchmarkRun:
    failed = sum(bool(row.get("error")) or row["metadata"].get("was_cancelled") is True for row in rows)
    _reject_failures(failed, path)
    columns: list[list[float]] = [[], [], [], [], []]
    for row in rows:
        metrics = row["metrics"]
        values = (
            _read_number(row["metadata"]["request_start_ns"], "request_start_ns") * SECONDS["ns"],
            _read_metric(metrics, "input_sequence_length", path),
            _read_metric(metrics, "output_sequence_length", path),
            _read_metric(metrics, "time_to_first_token", path, is_time=True),
            _read_metric(metrics, "request_latency", path, is_time=True),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    starts, prompt, generated, ttft_s, last_s = columns
    return _build_run(path, starts, prompt, generated, ttft_s, last_s, 0, [])


def _read_metric(metrics: Mapping[str, Any], name: str, path: Path, *, is_time: bool = False) -> float:
    """Return a metric of AIPerf, times in seconds; they are in milliseconds unless a unit is stated."""
    metric = metrics.get(name)
    if metric is None:
        raise user_error(f"a request has no {name}", file=str(path), key=name, hint="--streaming")
    value, unit = (metric["value"], metric.get("unit", "ms")) if isinstance(metric, Mapping) else (metric, "ms")
    return _read_number(value, name) * (SECONDS[unit] if is_time else 1.0)


def _lengths(data: Mapping[str, Any], keys: tuple[str, str], path: Path) -> tuple[list[float], list[float]]:
    for key in keys:
        if not isinstance(data.get(key), list) or not data[key]:
            message = "the result has no lengths of individual requests"
            raise user_error(message, file=str(path), key=key, hint="--save-detailed")
    prompt, generated = (_read_numbers(data[key], key) for key in keys)
    return prompt, generated


def _first_number(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> float:
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        raise user_error(f"a request has no {names[0]}", file=str(path), key=names[0])
    return _read_number(value, names[0])


def _read_number(value: Any, name: str, *, is_endless: bool = False) -> float:
    """Return a number; JSON's booleans and texts are none.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite, unless ``is_endless``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} holds {str(value)[:40]!r}, which is not a number")
    if not math.isfinite(value) and not (is_endless and value > 0):
        raise ValueError(f"{name} holds {value}, which is not finite")
    return float(value)


def _read_numbers(values: Any, name: str) -> list[float]:
    if not isinstance(values, list):
        raise TypeError(f"{name} is not a list of numbers")
    return [_read_number(value, name) for value in values]


def _read_count(value: Any, name: str) -> int:
    """Return a whole number, at least 0; none counts as 0."""
    number = 0.0 if value is None else _read_number(value, name)
    if number < 0 or number != int(number):
        raise ValueError(f"{name} holds {number:g}, which is not a count")
    return int(number)


def _check_sample(benchmark: Mapping[str, Any], count: int, path: Path) -> None:
    """Reject a result that holds only a sample of its requests: the others loaded the engine too.

    Raises:
        UnfoldError: The totals of the result are larger.
    """
    metrics = benchmark.get("metrics")
    totals = metrics.get("request_totals") if isinstance(metrics, Mapping) else None
    total = _find_key(totals, ("successful",)) if isinstance(totals, Mapping) else None
    if total is not None and total > count:
        message = f"the result holds {count:,} of {int(total):,} requests"
        raise user_error(message, file=str(path), key="requests.successful", hint="a result without --sample-requests")


def _find_mapping(data: Any, name: str) -> Mapping[str, Any] | None:
    """Return the first object under a name in nested mappings, but not in lists."""
    if not isinstance(data, Mapping):
        return None
    if isinstance(data.get(name), Mapping):
        direct: Mapping[str, Any] = data[name]
        return direct
    return next((found for part in data.values() if (found := _find_mapping(part, name)) is not None), None)


def _find_key(data: Any, names: tuple[str, ...]) -> Any:
    """Return the first value of some keys in nested mappings, but not in lists."""
    if not isinstance(data, Mapping):
        return None
    direct = next((data[name] for name in names if _is_number(data.get(name))), None)
    if direct is not None:
        return direct
    return next((value for part in data.values() if (value := _find_key(part, names)) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    if (prompts != np.floor(prompts)).any() or (outputs != np.floor(outputs)).any():
        raise user_error("a length is not a whole number of tokens", file=str(path))
    if (first_s <= 0).any() or (last_s < first_s).any() or last_s.max() > MAX_SPAN_S or np.ptp(starts) > MAX_SPAN_S:
        message = "the times come from several clocks: a first token lies before its request, or weeks after it"
        raise user_error(message, file=str(path), hint="times of the client alone, in seconds")
    several = outputs > 1
    if several.any() and (last_s <= first_s)[several].mean() > MAX_UNSTREAMED:
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
