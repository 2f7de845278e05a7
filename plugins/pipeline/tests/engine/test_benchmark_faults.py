"""Results of four tools with missing and odd fields: each is rejected or flagged, and none is misread."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.engine.test_benchmark_runs import (
    as_guidellm,
    as_inference_perf,
    measure,
    read_one,
    write,
)
from plugins.pipeline.tests.engine.test_cluster import step_times
from unfold_pipeline.engine.step_times.benchmark_runs import read_benchmarks
from unfoldkit.api import UnfoldError

Mutation = Callable[[Any], object]
DATA = measure(step_times(), 20.0, count=20)
MEAN_MS = sum(DATA["ttfts"]) / 20 * 1e3


def put(key: str, value: Any) -> Mutation:
    return lambda data: {**data, key: value}


def spoil(key: str, value: Any) -> Mutation:
    """Return a mutation of the first value of a list."""
    return lambda data: {**data, key: [value, *data[key][1:]]}


def drawn(**changes: Any) -> Mutation:
    """Return a result without start times, as of versions that did not record them, with changes."""
    return lambda data: {**{key: value for key, value in data.items() if key != "start_times"}, **changes}


def edit_row(key: str, value: Any) -> Mutation:
    """Return a mutation of the first request of GuideLLM."""

    def mutate(data: Any) -> object:
        data["benchmarks"][0]["requests"]["successful"][0][key] = value
        return data

    return mutate


def edit_benchmark(**changes: Any) -> Mutation:
    """Return a mutation of a benchmark of GuideLLM."""
    return lambda data: {"benchmarks": [{**data["benchmarks"][0], **changes}]}


def leave(**changes: Any) -> Mutation:
    """Return a mutation of the lists of requests of GuideLLM."""
    return lambda data: {"benchmarks": [{"requests": {**data["benchmarks"][0]["requests"], **changes}}]}


def edit_info(key: str, value: Any) -> Mutation:
    """Return a mutation of the first request of inference-perf."""

    def mutate(data: Any) -> object:
        data[0]["info"][key] = value
        return data

    return mutate


VLLM: dict[str, Mutation] = {
    "burstiness 0": drawn(burstiness=0),
    "burstiness -1": drawn(burstiness=-1.0),
    "burstiness true": drawn(burstiness=True),
    "burstiness text": drawn(burstiness="1.0"),
    "burstiness nan": drawn(burstiness=math.nan),
    "burstiness endless": drawn(burstiness=math.inf),
    "ramp": drawn(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=40),
    "rate 0": put("request_rate", 0),
    "rate true": put("request_rate", True),
    "rate nan": put("request_rate", math.nan),
    "rate text": put("request_rate", "fast"),
    "concurrency true": put("max_concurrency", True),
    "concurrency 2.5": put("max_concurrency", 2.5),
    "concurrency text": put("max_concurrency", "8"),
    "completed true": put("completed", True),
    "completed fraction": put("completed", 19.5),
    "failed text": put("failed", "none"),
    "ttft true": spoil("ttfts", True),
    "ttft text": spoil("ttfts", "0.1"),
    "ttft null": spoil("ttfts", None),
    "ttft 0": spoil("ttfts", 0.0),
    "ttft ms": lambda data: {**data, "ttfts": [value * 1e3 for value in data["ttfts"]], "mean_ttft_ms": MEAN_MS},
    "ttft ms by duration": lambda data: {**data, "ttfts": [value * 1e3 for value in data["ttfts"]], "duration": 2.0},
    "length fraction": spoil("input_lens", 12.5),
    "length true": spoil("output_lens", True),
    "length text": spoil("input_lens", "12"),
    "length huge": spoil("input_lens", 1 << 40),
    "gap negative": lambda data: {**data, "itls": [[-0.001, 0.9], *data["itls"][1:]]},
    "gap true": lambda data: {**data, "itls": [[True], *data["itls"][1:]]},
    "gaps a text": lambda data: {**data, "itls": ["0.1", *data["itls"][1:]]},
    "no streams": lambda data: {**data, "itls": [[] for _ in data["itls"]]},
    "some not streamed": lambda data: {**data, "itls": [[] for _ in data["itls"][:4]] + data["itls"][4:]},
    "starts equal": put("start_times", [7.0] * 20),
    "starts true": spoil("start_times", True),
    "lists nested": put("input_lens", [[20]] * 20),
    "summary of another run": put("mean_ttft_ms", MEAN_MS * 3),
}
GUIDELLM: dict[str, Mutation] = {
    "sample": edit_benchmark(metrics={"request_totals": {"successful": 400}}),
    "cut off": leave(incomplete=[{}] * 30),
    "no list": leave(successful={"0": {}}),
    "prompt true": edit_row("prompt_tokens", True),
    "output null": edit_row("output_tokens", None),
    "output fraction": edit_row("output_tokens", 7.5),
    "first text": edit_row("time_to_first_token_ms", "12"),
    "first 0": edit_row("time_to_first_token_ms", 0),
    "end true": edit_row("end_time", True),
    "events text": edit_row("output_events", "12"),
    "failed": leave(errored=[{}]),
    "none": lambda _: {"benchmarks": []},
}
INFERENCE_PERF: dict[str, Mutation] = {
    "tokens true": edit_info("output_tokens", True),
    "tokens text": edit_info("input_tokens", "20"),
    "times backwards": edit_info("output_token_times", [1e4 + 2.0, 1e4 + 1.0]),
    "times true": edit_info("output_token_times", [True, True]),
    "no times": edit_info("output_token_times", []),
    "start text": lambda rows: [{**rows[0], "start_time": "now"}, *rows[1:]],
    "error": lambda rows: [{**rows[0], "error": {"type": "timeout"}}, *rows[1:]],
    "no info": lambda rows: [{"start_time": 1.0}, *rows[1:]],
}
CASES = [
    *(pytest.param(DATA, mutation, id=f"vllm {name}") for name, mutation in VLLM.items()),
    *(pytest.param(as_guidellm(DATA), mutation, id=f"guidellm {name}") for name, mutation in GUIDELLM.items()),
    *(
        pytest.param(as_inference_perf(DATA), mutation, id=f"inference-perf {name}")
        for name, mutation in INFERENCE_PERF.items()
    ),
]


@pytest.mark.parametrize(("data", "mutation"), CASES)
def test_odd_fields_are_rejected(tmp_path: Path, data: Any, mutation: Mutation) -> None:
    """No result with a damaged field is read; the error names the file."""
    with pytest.raises(UnfoldError) as caught:
        read_one(write(tmp_path, mutation(copy.deepcopy(data))))
    assert "bench.json" in str(caught.value)


def as_sglang(data: dict[str, Any]) -> dict[str, Any]:
    """Return the result as ``sglang.bench_serving --output-details`` writes it: no start times, an endless rate."""
    names = ("completed", "input_lens", "output_lens", "ttfts", "itls", "errors")
    return {"backend": "sglang", "dataset_name": "random", "request_rate": 20.0, **{name: data[name] for name in names}}


def test_sound_results_of_several_versions_are_read(tmp_path: Path) -> None:
    """What versions add or leave out changes nothing that counts, and what limits the comparison is noted."""
    plain = read_one(write(tmp_path, DATA))
    duration = max(DATA["start_times"]) - min(DATA["start_times"]) + 1
    summary = {"mean_ttft_ms": MEAN_MS, "duration": duration, "burstiness": 1.0, "failed": 0, "tokenizer_id": "x"}
    for body in (
        {**DATA, **summary},
        {**DATA, "request_rate": "inf"},
        {**DATA, "max_concurrency": 64, "generated_texts": [""] * 20},
        {**DATA, "errors": [], "num_prompts": None},
    ):
        run = read_one(write(tmp_path, body))
        assert run.ttft_s.tolist() == plain.ttft_s.tolist()
    assert "drawn" in read_one(write(tmp_path, as_sglang(DATA))).notes[0]
    (tmp_path / "sglang.jsonl").write_text(json.dumps(as_sglang(DATA)) + "\n", "utf-8")
    assert read_one(tmp_path / "sglang.jsonl").output_tokens.size == 20
    guide = as_guidellm(DATA)["benchmarks"][0]
    left = {"requests": {**guide["requests"], "incomplete": [{}]}}
    assert "cut off" in read_one(write(tmp_path, {"benchmarks": [left]})).notes[0]
    open_loop = {**guide, "config": {"strategy": {"type_": "poisson", "rate": 20, "max_concurrency": 512}}}
    assert read_one(write(tmp_path, {"benchmarks": [open_loop]})).closed_loop == 0
    closed_loop = {**guide, "config": {"strategy": {"type_": "concurrent", "streams": 8}}}
    assert read_one(write(tmp_path, {"benchmarks": [closed_loop]})).closed_loop == 8


def rows_of(data: dict[str, Any]) -> list[tuple[float, int, int, float, float]]:
    """Return start, prompt, generated, TTFT and latency of each request, times in seconds."""
    columns = (data["start_times"], data["input_lens"], data["output_lens"], data["ttfts"], data["itls"])
    return [(*row[:4], row[3] + sum(row[4])) for row in zip(*columns, strict=True)]


def guidellm_03(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return requests as GuideLLM 0.3 writes them: times in ``scheduler_info.request_timings``."""
    return [
        {
            "scheduler_info": {
                "request_timings": {
                    "request_start": start,
                    "first_iteration": start + ttft,
                    "last_iteration": start + last,
                    "request_end": start + last + 0.2,
                }
            },
            "iterations": generated,
            "prompt_tokens": prompt,
            "output_tokens": generated,
            "time_to_first_token_ms": ttft * 1e3,
        }
        for start, prompt, generated, ttft, last in rows_of(data)
    ]


def guidellm_05(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return requests as GuideLLM 0.5 writes them: times in ``info.timings``, the request ends after its tokens."""
    return [
        {
            "info": {
                "timings": {
                    "request_start": start,
                    "first_token_iteration": start + ttft,
                    "last_token_iteration": start + last,
                    "token_iterations": generated,
                }
            },
            "request_start_time": start,
            "request_end_time": start + last + 0.2,
            "prompt_tokens": prompt,
            "output_tokens": generated,
        }
        for start, prompt, generated, ttft, last in rows_of(data)
    ]


def as_benchmark(rows: Sequence[dict[str, Any]], strategy: dict[str, Any]) -> dict[str, Any]:
    requests = {"successful": list(rows), "errored": [], "incomplete": []}
    return {"type_": "generative_benchmark", "config": {"strategy": strategy}, "requests": requests}


def inference_perf_06(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return requests as newer versions of inference-perf write them, with the counts of the server."""
    rows = as_inference_perf(data)
    for row in rows:
        info = row["info"]
        tokens = info.pop("output_tokens")
        row["info"] = {
            "request_metrics": {"text": {"input_tokens": info["input_tokens"] - 1}},
            "response_metrics": {
                "output_tokens": tokens - 1,
                "output_token_times": info["output_token_times"],
                "server_usage": {"prompt_tokens": info["input_tokens"], "completion_tokens": tokens},
            },
        }
    return rows


def aiperf(data: dict[str, Any]) -> str:
    """Return requests as AIPerf writes them, one object a line, after a request that warms up."""
    lines = [
        {
            "metadata": {"request_start_ns": round(start * 1e9), "benchmark_phase": "profiling"},
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": generated, "unit": "tokens"},
                "time_to_first_token": {"value": ttft * 1e3, "unit": "ms"},
                "request_latency": {"value": last, "unit": "sec"},
            },
            "error": None,
        }
        for start, prompt, generated, ttft, last in rows_of(data)
    ]
    warm = {**lines[0], "metadata": {"request_start_ns": 0, "benchmark_phase": "warmup"}}
    return "\n".join(map(json.dumps, [warm, *lines]))


def guidellm_usage(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return requests of GuideLLM with token counts in objects of their own."""
    rows = guidellm_05(data)
    for row in rows:
        row["input_metrics"] = {"text_tokens": row.pop("prompt_tokens")}
        row["output_metrics"] = {"text_tokens": row.pop("output_tokens")}
    return rows


def test_newer_versions_describe_the_same_run(tmp_path: Path) -> None:
    """Versions that moved their times and lengths give the requests of the others, and the tokens of the server."""
    plain = read_one(write(tmp_path, DATA))
    bodies = {
        "guidellm 0.3": {"benchmarks": [as_benchmark(guidellm_03(DATA), {"type_": "poisson", "rate": 20})]},
        "guidellm 0.5": {"benchmarks": [as_benchmark(guidellm_05(DATA), {"type_": "constant", "max_concurrency": 9})]},
        "guidellm with metadata": {
            "metadata": {"version": 2, "guidellm_version": "0.5.0"},
            "benchmarks": [as_benchmark(guidellm_usage(DATA), {"type_": "poisson", "rate": 20})],
        },
        "inference-perf": inference_perf_06(DATA),
    }
    paths = [write(tmp_path, body, f"{name}.json") for name, body in bodies.items()]
    paths.append(tmp_path / "profile_export.jsonl")
    paths[-1].write_text(aiperf(DATA), "utf-8")
    for path in paths:
        run = read_one(path)
        assert run.closed_loop == 0
        for name in ("arrival_s", "input_tokens", "output_tokens", "ttft_s", "last_s"):
            np.testing.assert_allclose(getattr(run, name), getattr(plain, name), atol=1e-5, err_msg=path.name)


def test_a_file_may_hold_several_runs(tmp_path: Path) -> None:
    """A sweep, and results that were appended, are one run each; one that cannot be compared is left out and named."""
    rows = guidellm_05(DATA)
    sweep = [as_benchmark(rows, {"type_": "synchronous"}), as_benchmark(rows, {"type_": "concurrent", "streams": 8})]
    broken = as_benchmark(rows, {"type_": "throughput"})
    broken["requests"]["incomplete"] = [{}] * 30
    runs = read_benchmarks(write(tmp_path, {"benchmarks": [*sweep, broken]}))
    assert [run.closed_loop for run in runs] == [1, 8]
    assert runs[0].notes == ("run 3 of 3 is left out: 30 requests were cut off, 20 are complete",)
    (tmp_path / "appended.json").write_text(f"{json.dumps(DATA)}\n{json.dumps(as_sglang(DATA))}", "utf-8")
    assert len(read_benchmarks(tmp_path / "appended.json")) == 2
    assert len(read_benchmarks(write(tmp_path, [DATA, as_sglang(DATA)], "list.json"))) == 2


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"experiments": [{"requests": []}]}, "genai-perf has no prompt tokens"),
        ({"avg_latency": 1.2, "latencies": [1.2]}, "vllm bench latency has no requests that arrive"),
        ({"elapsed_time": 9.0, "requests_per_second": 3.0}, "vllm bench throughput has no requests that arrive"),
        ({"e2els": [0.1], "input_lens": [5], "completed": 1}, "a benchmark of embeddings has no requests"),
        ({"engine": {}, "performance": {}}, "trtllm-bench has no requests that arrive"),
        ([{"n_prompt": 512, "n_gen": 0, "avg_ts": 300.0}], "llama-bench has no requests that arrive"),
        ({"eval_count": 9, "eval_duration": 3}, "Ollama has no requests that arrive"),
        ({"load_summary": {"count": 20}, "successes": {}}, "summary of inference-perf has no individual requests"),
        ({"time_to_first_token": {"avg": 50, "unit": "ms"}}, "summary of AIPerf has no individual requests"),
        ([{"ttft_s": 0.1, "end_to_end_latency_s": 1.0, "number_output_tokens": 9}] * 9, "LLMPerf does not state when"),
        ({"backend": "sglang", "completed": 9}, "no times of individual requests .*--output-details"),
        ({**DATA, "itls": [None, *DATA["itls"][1:]]}, "an entry is null"),
    ],
)
def test_other_files_of_known_tools_are_named(tmp_path: Path, result: Any, message: str) -> None:
    """Summaries and exports without single requests are refused with the file or option to take instead."""
    with pytest.raises(UnfoldError, match=message) as error:
        read_benchmarks(write(tmp_path, result))
    assert error.value.diagnostics[0].hint


@pytest.mark.parametrize(("key", "value"), [("error", {"message": "timeout"}), ("metrics", {})])
def test_a_run_of_aiperf_that_failed_is_rejected(tmp_path: Path, key: str, value: Any) -> None:
    """A request with an error or without its times is named."""
    lines = [json.loads(line) for line in aiperf(DATA).splitlines()]
    lines[5][key] = value
    path = tmp_path / "bench.json"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    with pytest.raises(UnfoldError, match=r"1 requests failed|has no input_sequence_length"):
        read_benchmarks(path)


LOG = "INFO 11-20 10:12:15 [kv_cache_utils.py:1087] GPU KV cache size: 410,000 tokens\n"
TEXTS = {
    LOG: "the log of a server, not the JSON of a benchmark (the file that --save-result --save-detailed",
    f"(APIServer pid=1) {LOG}": "the log of a server",
    "[2026-03-01 10:00:00] INFO server_args: x\n": "the log of a server",
    f"{LOG}============ Serving Benchmark Result ============\n": "the printed summary of a benchmark, which lacks",
    "ttft_ms,tpot_ms\n12,3\n": "a table, not",
    "requests took 3 s\n": "text, not",
    '\n{"a": [1,\n': "t.json:2:10: the JSON breaks off or is damaged: Expecting value (a complete result",
    "": "the file is empty",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_json_is_named_for_what_it_is(tmp_path: Path, text: str) -> None:
    """A log is the first thing that users have at hand: the message says which file is wanted in its place."""
    path = tmp_path / "t.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UnfoldError) as caught:
        read_benchmarks(path)
    assert TEXTS[text] in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnfoldError, match="binary data, not the JSON of a benchmark"):
        read_benchmarks(path)
