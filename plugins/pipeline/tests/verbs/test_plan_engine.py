"""``unfold plan`` for LLM engines: reports, verdicts with confidence, exports, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from plugins.pipeline.tests.engine.test_aiconfigurator import write_tables
from unfold_pipeline.engine.build import build_engine_problem
from unfold_pipeline.report.engines.exports import export_kubernetes, export_llm_services, export_ray_llm, export_vllm
from unfold_pipeline.report.engines.plan import choose_model_length
from unfold_pipeline.report.export_triton import export_triton
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan import plan
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.render.html import render as render_html
from unfoldkit.render.text import render as render_text
from unfoldkit.report import from_data, to_data
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"{index * 0.05:.3f},{100 + 7 * (index % 40)},{5 + index % 23}\n" for index in range(200)
)
SPEC = """
version: 1
kind: pipeline
name: chat
slo: {ttft_p99: 300 ms, tpot_p99: 40 ms}
arrivals: {trace: trace.csv}
hardware: {h100: {price: $4/h}, l4: {price: $0.8/h}}
stages:
  chat:
    engine:
      model: {name: org/model, layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256}
      tensor_parallel: 1
      max_num_batched_tokens: [512, 2048]
      max_num_seqs: [16, 64]
      steps: {h100: {roofline: true}, l4: {roofline: true}}
"""


def plan_spec(folder: Path, *changes: tuple[str, str], trace: str = TRACE, **options: Any) -> Report:
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "trace.csv").write_text(trace, "utf-8")
    spec = validate(PipelineSpec, parse(text, "chat.yaml"))
    run = Run(RunDir(folder / "run"), LocalEngine(1), base=folder, options=options)  # type: ignore[arg-type]
    return from_data(to_data(plan(spec, run)))


@pytest.mark.parametrize(("scaling", "warned"), [({}, 1), ({"rope_type": "yarn", "factor": 4.0}, 0)])
def test_requests_beyond_the_context_of_the_model_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scaling: dict[str, Any], warned: int
) -> None:
    """A prompt that vLLM refuses may decide the plan: a warning counts such requests."""
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 2048,
        "rope_scaling": scaling,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    text = re.sub(r"model: .*", "model: {config: config.json}", SPEC)
    (tmp_path / "trace.csv").write_text(TRACE + "10.5,4000,10\n", "utf-8")
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    build_engine_problem(validate(PipelineSpec, parse(text, "chat.yaml")), run)
    messages = [record.getMessage() for record in caplog.records if "context of 2,048 tokens" in record.getMessage()]
    assert len(messages) == warned
    assert all(message.startswith("1 of 201 requests exceeds") and "up to 1,962;" in message for message in messages)


@pytest.mark.slow
def test_a_plan_names_engines_price_interval_and_refusals(tmp_path: Path) -> None:
    """The report holds the cheapest engines, latencies at both ends, the price range and why less is refused."""
    report = plan_spec(tmp_path)
    assert report.verdict is Verdict.YES
    engine = (report.decision or {})["engines"]["chat"]
    assert engine["tensor_parallel"] == 1
    assert report.metrics["ttft_p99_ms"].ok
    assert report.metrics["tpot_p99_ms"].ok
    labels = [label for label, _ in report.lines]
    assert {"interval", "price range", "KV cache", "prefix hits", "search", "not predicted"} <= set(labels)
    low, high = (report.metrics[f"cost_per_hour_{end}"].value for end in ("low", "high"))
    cost = report.metrics["cost_per_hour"].value
    assert cost is not None
    assert low is not None
    assert low <= cost
    assert high is None or high >= cost


@pytest.mark.parametrize(("gap_s", "cautions"), [(0.05, 0), (0.3, 1)])
def test_a_trace_that_drifts_is_reported(tmp_path: Path, gap_s: float, cautions: int) -> None:
    """A caution beside the share of fresh samples names the drift; traffic of a process has none by construction."""
    times = [index * (0.05 if index < 100 else gap_s) for index in range(200)]
    rows = "".join(f"{time_s:.3f},100,9\n" for time_s in sorted(times))
    engine = ("max_num_batched_tokens: [512, 2048]", "max_num_batched_tokens: 2048"), ("[16, 64]", "64")
    report = plan_spec(tmp_path, *engine, trace=TRACE.partition("\n")[0] + "\n" + rows)
    labels = [label for label, _ in report.lines]
    assert sum("drifts" in text for label, text in report.lines if label == "caution") == cautions
    assert not cautions or labels.index("caution") == labels.index("fresh samples") + 1


def test_confidence_plans_for_the_upper_end(tmp_path: Path) -> None:
    """With a confidence the plan meets its targets at the upper end of the interval, and costs at least as much."""
    plain = plan_spec(tmp_path).metrics["cost_per_hour"].value or 0.0
    sure = plan_spec(tmp_path, ("tpot_p99: 40 ms", "tpot_p99: 40 ms, confidence: 90%"))
    assert sure.verdict is Verdict.YES
    assert (sure.metrics["cost_per_hour"].value or 0.0) >= plain
    latencies = next(table for table in sure.tables if table.name == "latencies")
    column = [item.name for item in latencies.columns].index("p99 high")
    assert latencies.rows[0][column] <= 300  # type: ignore[operator]


def test_no_engine_is_a_no_with_reasons(tmp_path: Path) -> None:
    """A target below one step excludes every option, whatever the number of engines."""
    report = plan_spec(tmp_path, ("tpot_p99: 40 ms", "tpot_p99: 1 ms"))
    assert report.verdict is Verdict.NO
    assert sum(label == "excluded" for label, _ in report.lines) == 2


def make_large(trace: str, rows: range, tokens: int) -> str:
    lines = trace.splitlines()
    for row in rows:
        lines[1 + row] = f"{row * 0.05:.3f},{tokens},9"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("rows", "verdict"), [(range(0, 200, 120), Verdict.YES), (range(0, 200, 40), Verdict.NO)])
def test_large_requests_that_drive_the_price_are_named(tmp_path: Path, rows: range, verdict: Verdict) -> None:
    """The report counts them and has the price of the plan without them, with or without a plan for all."""
    one = (
        (", l4: {price: $0.8/h}", ""),
        (", l4: {roofline: true}", ""),
        ("[512, 2048]", "2048"),
        ("[16, 64]", "64"),
    )
    usual = plan_spec(tmp_path, *one)
    report = plan_spec(tmp_path, *one, trace=make_large(TRACE, rows, 30_000))
    assert report.verdict is verdict
    line = dict(report.lines)["large requests"]
    price = report.metrics.get("cost_per_hour")
    assert line.startswith(f"{len(rows)} of 200 requests, with 30,009 tokens or more each, hold ")
    assert f"without them, the plan costs ${usual.metrics['cost_per_hour'].value:,.2f}/h" in line
    assert (f"instead of ${price.value:,.2f}/h" if price else "with them there is none") in line
    assert "large requests" not in dict(usual.lines)


def test_large_requests_are_named_beside_stages(tmp_path: Path) -> None:
    """The price without them is that of the engines and the stages around them."""
    changes = (
        (", l4: {price: $0.8/h}", ", cpu: {price: $0.1/h}"),
        (", l4: {roofline: true}", ""),
        ("[512, 2048]", "2048"),
        ("[16, 64]", "64"),
        ("    engine:", "    after: {rank: 1}\n    engine:"),
        ("stages:\n", "stages:\n  rank: {latency: {cpu: {1: 1 ms}}}\n"),
    )
    least = plan_spec(tmp_path, *changes).metrics["cost_per_hour"].value
    report = plan_spec(tmp_path, *changes, trace=make_large(TRACE, range(0, 200, 120), 30_000))
    price = report.metrics["cost_per_hour"].value
    line = dict(report.lines)["large requests"]
    assert f"without them, the plan costs ${least:,.2f}/h instead of ${price:,.2f}/h" in line


def test_a_suggested_target_is_looser(tmp_path: Path) -> None:
    """Where a single request takes longer than the target, the next command states more than it takes."""
    report = plan_spec(tmp_path, ("ttft_p99: 300 ms", "ttft_p99: 2.5 s"), trace=make_large(TRACE, range(200), 100_000))
    assert report.verdict is Verdict.NO
    suggested = re.search(r"slo\.ttft_p99=(\d+) ms", report.next)
    assert suggested is not None
    assert int(suggested[1]) > 2500


def test_a_latency_below_that_of_a_single_request_is_refused_at_once(tmp_path: Path) -> None:
    """Each later token takes a step, so no number of engines answers sooner, and none is simulated."""
    report = plan_spec(tmp_path, ("ttft_p99: 300 ms, tpot_p99: 40 ms", "p99: 5 ms"))
    assert report.verdict is Verdict.NO
    assert report.metrics["simulations"].value == 0
    assert any("latency of a single request" in text for label, text in report.lines if label == "excluded")


@pytest.mark.parametrize(
    ("changes", "trace", "message"),
    [
        ((), "TIMESTAMP\n1\n2\n3\n", "the trace has no prompt tokens"),
        ((), "TIMESTAMP,ContextTokens\n1,5\n2,5\n3,5\n", "the trace has no generated tokens"),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n1,5,0\n2,5,3\n", "is not a number of tokens"),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n1,5,2.5\n2,5,3\n", "is not a number of tokens"),
        ((), f"TIMESTAMP,ContextTokens,GeneratedTokens\n1,{'9' * 5000},2\n2,5,3\n", "is not a number of tokens"),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n1,900000,2\n2,5,3\n", "the model fits no GPU"),
        ((("trace: trace.csv", "trace: trace.csv, input: Prompt"),), TRACE, "no column Prompt"),
        ((("trace: trace.csv", "process: poisson, rate: 3/s"),), TRACE, "requests of an engine have no tokens"),
        ((("layers: 32", "layers: 800"),), TRACE, "the model fits no GPU .* tried h100 tp1, l4 tp1"),
        ((("tensor_parallel: 1", "tensor_parallel: 2"),), TRACE, "no all-reduce between 2 GPUs was measured"),
        ((("h100: {price: $4/h}", "h100: {price: $4/h, gpu: h1000}"),), TRACE, "the GPU h1000 is not known"),
        ((("l4: {roofline: true}", "l4: {profile: gone}"),), TRACE, "no such file or folder"),
        ((("tensor_parallel: 1", "tensor_parallel: [3, 5]"),), TRACE, "no tensor parallelism of 3, 5 divides 32 heads"),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,2\n", "one query is no traffic"),
        ((), f"{TRACE}2026-01-01T00:00:00Z,5,2\n", "the trace would last 56 years: arrival 201 is far"),
        ((), f"{TRACE}1e400,5,2\n", "is not a finite time"),
        ((("trace: trace.csv", "trace: trace.csv, scale: 1e9"),), TRACE, "would have 200,000,000,000 arrivals"),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n", "the trace has no arrival"),
        (
            (("trace: trace.csv", "process: poisson, rate: 1e9/s, input: 5, output: 5"),),
            TRACE,
            "would have 600,000,000,000 arrivals",
        ),
        ((), "TIMESTAMP,ContextTokens,GeneratedTokens\n1.5,5,2\n1700000001500,5,3\n2.5,5,2\n", "before the one above"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, changes: tuple[tuple[str, str], ...], trace: str, message: str) -> None:
    """Traces without tokens, models that fit no GPU and missing all-reduces are errors of the user (exit code 2)."""
    with pytest.raises(UnfoldError, match=message) as error:
        plan_spec(tmp_path, *changes, trace=trace)
    assert int(error.value.code) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"timestamp": 10**300, "input_length": 5, "output_length": 5}] * 3, "has no time"),
        ([{"timestamp": stamp, "input_length": 5, "output_length": 5} for stamp in (1.7e9, 1.7e12)], "several clocks"),
        ([{"timestamp": 7, "input_length": 5, "output_length": 0}] * 3, "is not a number of tokens"),
        ([{"timestamp": 7, "input_length": 5}] * 3, "no generated tokens"),
        ([[7, 5, 5]] * 3, "not a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    """JSON lines with impossible times, of two clocks or without tokens are errors, never tracebacks."""
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    with pytest.raises(UnfoldError, match=message) as error:
        plan_spec(tmp_path, ("trace: trace.csv", "trace: t.jsonl"))
    assert int(error.value.code) == 2


def test_json_lines_are_known_by_their_content(tmp_path: Path) -> None:
    """Objects a line are read whatever the file is called, and so is one document."""
    rows = [{"time_s": index * 0.05, "prompt_tokens": 100, "completion_tokens": 5} for index in range(100)]
    (tmp_path / "requests.log").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    assert "100 requests" in plan_spec(tmp_path, ("trace: trace.csv", "trace: requests.log")).subtitle
    (tmp_path / "requests.json").write_text(json.dumps(rows), "utf-8")
    assert "100 requests" in plan_spec(tmp_path, ("trace: trace.csv", "trace: requests.json")).subtitle


def test_a_trace_with_its_newest_row_first_is_the_same(tmp_path: Path) -> None:
    """Tokens are reversed together with their times, when planned and when replayed."""
    head, *rows = TRACE.splitlines()
    newest_first = "\n".join([head, *rows[::-1]])
    hashes = [(plan_spec(tmp_path, trace=text).decision or {})["trace_sha256"] for text in (TRACE, newest_first)]
    assert hashes[0] == hashes[1]
    (tmp_path / "live.csv").write_text(newest_first, "utf-8")
    assert "200 requests" in plan_spec(tmp_path, replay=str(tmp_path / "live.csv")).subtitle


def test_a_trace_in_the_order_of_ends_is_the_same(tmp_path: Path) -> None:
    """Stamps of a clock are sorted together with their tokens, when planned and when replayed."""
    rows = [f"2026-03-01T10:00:{i / 4:06.3f},{100 + i},{5 + i % 40}" for i in range(200)]
    head, by_end = "TIMESTAMP,ContextTokens,GeneratedTokens", sorted(rows, key=lambda row: int(row.split(",")[2]))
    texts = ["\n".join([head, *part]) + "\n" for part in (rows, by_end)]
    hashes = [(plan_spec(tmp_path, trace=text).decision or {})["trace_sha256"] for text in texts]
    assert hashes[0] == hashes[1]
    (tmp_path / "live.csv").write_text(texts[1], "utf-8")
    assert "200 requests" in plan_spec(tmp_path, replay=str(tmp_path / "live.csv")).subtitle


LENGTHS = "prompt_tokens,completion_tokens\n" + "\n".join(f"{100 + i},{5 + i}" for i in range(40)) + "\n"
COUNTS = "minute,count\n" + "\n".join(f"{minute},60" for minute in range(4)) + "\n"


@pytest.mark.parametrize(
    "traffic", ["process: poisson, rate: 3/s, duration: 60 s", "trace: counts.csv, counts: count, unit: min"]
)
def test_lengths_are_drawn_from_a_file(tmp_path: Path, traffic: str) -> None:
    """Traffic without tokens draws rows of a file; a replayed trace without tokens does too."""
    (tmp_path / "lengths.csv").write_text(LENGTHS, "utf-8")
    (tmp_path / "counts.csv").write_text(COUNTS, "utf-8")
    (tmp_path / "live.csv").write_text("time_s\n" + "\n".join(f"{0.3 * i:.2f}" for i in range(90)), "utf-8")
    change = ("trace: trace.csv", f"{traffic}, lengths: lengths.csv")
    report = plan_spec(tmp_path, change)
    lengths = re.search(r"(\d+) in, (\d+) out", " ".join(report.subtitle))
    assert lengths is not None
    assert 110 <= int(lengths[1]) <= 130
    # prompt and answer are of one row
    assert int(lengths[1]) - int(lengths[2]) == pytest.approx(95, abs=1)
    assert "90 requests" in plan_spec(tmp_path, change, replay=str(tmp_path / "live.csv")).subtitle


@pytest.mark.parametrize(
    ("text", "extra", "message"),
    [
        ("a,b\n1,2\n", "", "has no prompt tokens"),
        ("prompt_tokens,completion_tokens\n", "", "the file has no lengths"),
        ("prompt_tokens,completion_tokens\n5,x\n", "", "lengths.csv:2:1: completion_tokens: 'x' is not a number"),
        (LENGTHS, ", input: 5", "the file of lengths has the tokens"),
    ],
)
def test_bad_lengths_are_named(tmp_path: Path, text: str, extra: str, message: str) -> None:
    """A file without tokens or rows is an error with its line, and so are tokens that are stated twice."""
    (tmp_path / "lengths.csv").write_text(text, "utf-8")
    change = ("trace: trace.csv", f"process: poisson, rate: 3/s, lengths: lengths.csv{extra}")
    with pytest.raises(UnfoldError, match=message):
        plan_spec(tmp_path, change)


def test_tables_of_another_gpu_are_not_used(tmp_path: Path) -> None:
    """A folder with the tables of H100 alone does not give the steps of a B200, whatever its files hold."""
    write_tables(tmp_path / "data" / "h100_sxm" / "vllm")
    with pytest.raises(UnfoldError, match="no tables of b200_sxm") as error:
        plan_spec(
            tmp_path,
            ("h100: {price: $4/h}", "b200: {price: $4/h}"),
            ("h100: {roofline: true}", "b200: {tables: data}"),
        )
    assert "h100_sxm" in str(error.value)


def test_a_data_sheet_plans_a_newer_gpu(tmp_path: Path) -> None:
    """B200 is known by name; its steps are shorter than those of H100."""
    newer = plan_spec(tmp_path, ("h100: {price: $4/h}", "b200: {price: $4/h}"), ("h100: {roofline", "b200: {roofline"))
    assert newer.verdict is Verdict.YES
    older = plan_spec(tmp_path)
    assert (newer.metrics["tpot_p99_ms"].value or 0) < (older.metrics["tpot_p99_ms"].value or 0)


def test_the_tokens_of_a_replayed_trace_count(tmp_path: Path) -> None:
    """A trace with columns of tokens is replayed with them, where the spec gives one number for all requests."""
    (tmp_path / "live.csv").write_text(TRACE, "utf-8")
    process = ("trace: trace.csv", "process: poisson, rate: 3/s, duration: 20 s, input: 900, output: 9")
    report = plan_spec(tmp_path, process, replay=str(tmp_path / "live.csv"))
    assert "200 requests" in report.subtitle
    assert not any("900 in" in text for text in report.subtitle)


def test_a_table_with_holes_is_refused(tmp_path: Path) -> None:
    """A shape of the model that the operator tables lack is named."""
    write_tables(tmp_path / "tables", hole=True)
    model = "layers: 2, hidden: 512, heads: 8, kv_heads: 2, inner: 1024, vocabulary: 2048"
    with pytest.raises(UnfoldError, match="hole at n 2048, k 512"):
        plan_spec(
            tmp_path,
            ("layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256", model),
            ("h100: {roofline: true}", "h100: {tables: tables, system: h}"),
            ("max_num_batched_tokens: [512, 2048]", "max_num_batched_tokens: 64"),
        )


def test_requests_that_were_not_answered_are_counted_in_the_report(tmp_path: Path) -> None:
    """JSON, text and page of a plan and of a replay hold how many requests the trace has more, and why."""
    lines = TRACE.splitlines()
    for row in (3, 90):
        lines[row] = lines[row].rpartition(",")[0] + ",0"
    trace = "\n".join(lines) + "\n"
    report = plan_spec(tmp_path, trace=trace)
    assert report.metrics["requests_left_out"].value == 2
    assert "2 of 200 requests: no generated tokens" in dict(report.lines)["left out"]
    assert "2 of 200 requests: no generated tokens" in render_text(report)
    assert "2 of 200 requests: no generated tokens" in render_html(report)
    (tmp_path / "live.csv").write_text(trace, "utf-8")
    replay = plan_spec(tmp_path, replay=str(tmp_path / "live.csv"))
    assert replay.metrics["requests_left_out"].value == 2
    assert "requests_left_out" not in plan_spec(tmp_path).metrics


def test_a_plan_that_was_lucky_says_so(tmp_path: Path) -> None:
    """A target that the trace meets by a hair is missed on most fresh samples; a wide one is met on all."""
    rng = np.random.default_rng(0)
    times, prompts = np.cumsum(rng.exponential(0.02, 2000)), rng.integers(200, 2000, 2000)
    trace = "arrival_s,ContextTokens,GeneratedTokens\n" + "".join(
        f"{time:.4f},{prompt},20\n" for time, prompt in zip(times, prompts, strict=True)
    )
    wide = plan_spec(tmp_path, ("ttft_p99: 300 ms", "ttft_p99: 20 s"), trace=trace)
    assert wide.metrics["fresh_share"].value == 1
    assert "fresh samples" not in wide.headline
    hair = f"ttft_p99: {(wide.metrics['ttft_p99_ms'].value or 0) * 1.001:.3f} ms"
    report = plan_spec(tmp_path, ("ttft_p99: 300 ms", hair), trace=trace)
    assert report.verdict is Verdict.YES
    assert 0 <= (report.metrics["fresh_share"].value or 0) < 0.9
    assert "on this sample, but only on" in report.headline
    assert "of 24 fresh samples" in dict(report.lines)["fresh samples"]


@pytest.mark.parametrize("time", ["0", "2026-01-01 00:00:00"])
def test_a_batch_that_arrives_at_one_instant_is_planned(tmp_path: Path, time: str) -> None:
    """Requests without a rate are planned by the time of the last ones, and have no fresh samples."""
    rows = "".join(f"{time},{100 + index},20\n" for index in range(400))
    trace = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"
    batch = ("ttft_p99: 300 ms, tpot_p99: 40 ms", "p99: 1 min")
    report = plan_spec(tmp_path, batch, trace=trace)
    assert report.verdict is Verdict.YES
    assert "at one instant" in report.subtitle
    assert "fresh_share" not in report.metrics
    slow = (report.metrics["latency_p99_ms"].value or 0) / 2
    faster = plan_spec(tmp_path, (batch[0], f"p99: {slow:.1f} ms"), trace=trace)
    assert (faster.metrics["replicas"].value or 0) > (report.metrics["replicas"].value or 0)


def test_a_wait_that_no_target_bounds_is_named(tmp_path: Path) -> None:
    """With a target on TPOT alone, a plan may let requests wait for minutes: the report states it."""
    trace = "arrival_s,ContextTokens,GeneratedTokens\n" + "".join(f"{i * 0.01:.4f},1500,1\n" for i in range(2000))
    report = plan_spec(tmp_path, ("ttft_p99: 300 ms, ", ""), trace=trace)
    assert "no target bounds the wait for the first token" in dict(report.lines)["wait"]
    assert "wait" not in dict(plan_spec(tmp_path).lines)


def test_kv_heads_limit_tensor_parallelism(tmp_path: Path) -> None:
    """Ten KV heads do not divide among four GPUs, as vLLM refuses, but among two."""
    model = ("heads: 32, kv_heads: 8, inner: 14336", "heads: 40, kv_heads: 10, inner: 17920")
    reduced = tmp_path / "reduced.csv"
    reduced.write_text("num_gpus,message_size,latency_ms\n2,1,0.01\n2,1000000,0.1\n", "utf-8")
    steps = ("h100: {roofline: true}", "h100: {roofline: true, all_reduce: reduced.csv}")
    two = plan_spec(tmp_path, model, steps, ("l4: {roofline: true}}", "}"), ("parallel: 1", "parallel: [2, 4]"))
    assert (two.decision or {})["engines"]["chat"]["tensor_parallel"] == 2
    with pytest.raises(UnfoldError, match="no tensor parallelism of 4 divides 40 heads, 10 KV heads"):
        plan_spec(tmp_path, model, ("parallel: 1", "parallel: 4"))


def test_steps_beyond_the_tables_are_reported(tmp_path: Path) -> None:
    """Up to eight times the context of a table a plan is made, and its report names the end of the table."""
    write_tables(tmp_path / "tables")
    trace = "time,ContextTokens,GeneratedTokens\n" + "".join(f"{i},200,100\n" for i in range(50))
    small = (
        ("layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256",
         "layers: 2, hidden: 512, heads: 8, kv_heads: 2, inner: 1024, vocabulary: 2048"),
        ("h100: {roofline: true}, l4: {roofline: true}", "h100: {tables: tables, system: h}"),
        ("max_num_batched_tokens: [512, 2048]", "max_num_batched_tokens: 64"),
        ("max_num_seqs: [16, 64]", "max_num_seqs: 9"),
    )  # fmt: skip
    report = plan_spec(tmp_path, *small, trace=trace)
    line = dict(report.lines)["beyond tables"]
    assert "context attention at context 256, 300 reached" in line
    assert "at requests" not in line
    with pytest.raises(UnfoldError, match="ends at requests 8, and 64 are needed"):
        plan_spec(tmp_path, *small[:3], trace=trace)


def test_a_committed_plan_is_checked_on_new_traffic(tmp_path: Path) -> None:
    """The same trace plans again; ten times the traffic exceeds the envelope of tokens or the targets."""
    report = plan_spec(tmp_path)
    saved = {"decision": report.decision}
    assert plan_spec(tmp_path, baseline_plan=saved).verdict is Verdict.YES
    faster = plan_spec(tmp_path, ("trace: trace.csv", "trace: trace.csv, compress: 10"), baseline_plan=saved)
    assert faster.verdict is Verdict.NO


def test_kubernetes_accepts_every_name_of_a_stage(tmp_path: Path) -> None:
    """Names beyond ASCII, with digits first or too long become labels, and stay apart."""
    report = plan_spec(tmp_path)
    assert report.decision is not None
    (engine,) = report.decision["engines"].values()
    names = ("70B déjà vu", "70B deja vu", "x" * 70 + "1", "x" * 70 + "2")
    decision = {**report.decision, "engines": dict.fromkeys(names, engine)}
    documents = list(yaml.safe_load_all(export_kubernetes(replace(report, decision=decision))))
    labels = [document["metadata"]["name"] for document in documents]
    assert all(re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", label, re.ASCII) for label in labels)
    assert len(set(labels)) == len(names)


def test_kserve_finds_a_model_by_its_own_address(tmp_path: Path) -> None:
    """A folder of this machine is no name at Hugging Face: a claim must hold it, which a comment says."""
    report = plan_spec(tmp_path)
    assert report.decision is not None
    (engine,) = report.decision["engines"].values()
    uris = {
        "/data/llama": "pvc://CLAIM/data/llama",
        "./llama": "pvc://CLAIM/llama",
        "s3://bucket/llama": "s3://bucket/llama",
        "org/model": "hf://org/model",
    }
    for name, uri in uris.items():
        decision = {**report.decision, "engines": {"chat": {**engine, "model_name": name}}}
        text = export_llm_services(replace(report, decision=decision))
        assert yaml.safe_load(text)["spec"]["model"]["uri"] == uri
        assert ("# CLAIM stands for" in text) == uri.startswith("pvc")


def test_exports_carry_the_plan(tmp_path: Path) -> None:
    """Every export holds model, parallelism and limits of the plan."""
    report = plan_spec(tmp_path)
    engine = (report.decision or {})["engines"]["chat"]
    command = export_vllm(report)
    assert f"--max-num-batched-tokens {engine['max_num_batched_tokens']}" in command
    assert "vllm serve org/model" in command
    deployment, service = yaml.safe_load_all(export_kubernetes(report))
    assert deployment["spec"]["replicas"] == engine["replicas"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert yaml.safe_load(export_llm_services(report))["spec"]["model"]["name"] == "org/model"
    config = yaml.safe_load(export_ray_llm(report))["applications"][0]["args"]["llm_configs"][0]
    assert config["engine_kwargs"]["max_num_seqs"] == engine["max_num_seqs"]
    broken = replace(report, decision={**(report.decision or {}), "engines": {"chat\nreboot": engine}})
    assert [line[:6] for line in export_vllm(broken).splitlines()[-2:]] == ["# chat", "vllm s"]
    empty = Report(kind="pipeline", verb="plan", name="x", verdict=Verdict.NO, headline="none")
    with pytest.raises(UnfoldError, match="no plan of LLM engines"):
        export_vllm(empty)


@pytest.mark.parametrize(("context", "fits"), [(300, 300), (131_072, 0.9)])
def test_engines_accept_the_context_of_the_model(tmp_path: Path, context: int, fits: float) -> None:
    """The limit is the model's context, which vLLM may not exceed, as far as an estimated KV cache surely holds it."""
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": context,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    text = re.sub(r"model: .*", "model: {config: config.json}", SPEC)
    (tmp_path / "trace.csv").write_text(TRACE, "utf-8")
    run = Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path)
    problem = build_engine_problem(validate(PipelineSpec, parse(text, "chat.yaml")), run)
    cache = next(option.kv_cache for option in problem.options if option.hardware == "l4")
    expected = fits if fits > 1 else int(fits * cache.tokens) // 16 * 16
    assert choose_model_length(problem, [cache]) == expected
    assert choose_model_length(problem, [cache, replace(cache, num_blocks=12, is_measured=True)]) == 192
    assert choose_model_length(replace(problem, max_context=0), [cache]) == 512


def test_the_precision_of_a_checkpoint_is_planned(tmp_path: Path) -> None:
    """A quantized checkpoint fits more on a GPU, needs no flag in vLLM, and contradicts another stated precision."""
    sizes = {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
    sizes |= {"intermediate_size": 29568, "vocab_size": 152064, "sliding_window": 128}
    sizes |= {"use_sliding_window": True, "max_window_layers": 70}
    config = {**sizes, "model_type": "qwen2", "quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    model = "{name: org/model, layers: 32, hidden: 4096, heads: 32, kv_heads: 8, inner: 14336, vocabulary: 128256}"
    of_file = (model, "{name: org/model, config: config.json}")
    report = plan_spec(tmp_path, of_file)
    engine = (report.decision or {})["engines"]["chat"]
    assert (engine["precision"], engine["is_quantized"], engine["hardware"]) == ("int4", True, "h100")
    assert "--quantization" not in export_vllm(report)
    assert "measured groups has int4 weights" in dict(report.lines)["interval"]
    assert "10 of 80 layers attend to 128 tokens" in dict(report.lines)["sliding window"]
    with pytest.raises(UnfoldError, match="stored in int4, and the spec states bf16"):
        plan_spec(tmp_path, of_file, ("tensor_parallel: 1", "precision: bf16\n      tensor_parallel: 1"))


def test_exports_say_what_they_leave_open(tmp_path: Path) -> None:
    """A model without a name is a comment; Ray requires only accelerators that it knows; other formats are refused."""
    report = plan_spec(tmp_path, ("name: org/model, ", ""))
    for export in (export_vllm, export_kubernetes, export_llm_services, export_ray_llm):
        assert export(report).startswith("# MODEL stands for the name of the model, which engine.model.name")
    config = yaml.safe_load(export_ray_llm(report))["applications"][0]["args"]["llm_configs"][0]
    assert config["accelerator_type"] in {"H100", "L4"}
    engine = (report.decision or {})["engines"]["chat"]
    for context, is_noted in ((0, True), (4096, False)):
        engine["max_context"] = context
        assert ("longer ones are refused" in export_vllm(report)) == is_noted
    engine.update(gpu="rtx4090", tensor_parallel=2)
    config = yaml.safe_load(export_ray_llm(report))["applications"][0]["args"]["llm_configs"][0]
    assert "accelerator_type" not in config
    pod = next(iter(yaml.safe_load_all(export_kubernetes(report))))["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["shm"]
    with pytest.raises(UnfoldError, match="engines has no form in this format"):
        export_triton(report)


def test_a_trace_of_hashed_blocks_shares_prefixes(tmp_path: Path) -> None:
    """Mooncake's hash_ids make prompts that repeat hit the prefix cache."""
    lines = [
        json.dumps({"timestamp": index * 50, "input_length": 1200, "output_length": 8, "hash_ids": [1, 2, 10 + index]})
        for index in range(100)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    report = plan_spec(tmp_path, ("trace: trace.csv", "trace: t.jsonl"))
    hits = dict(report.lines)["prefix hits"]
    assert hits.startswith(("84 %", "85 %"))


SAVED = {"hardware": "h100", "tensor_parallel": 1, "replicas": 1, "max_num_batched_tokens": 512, "max_num_seqs": 16}


@pytest.mark.parametrize(
    "decision",
    [
        "text",
        {"engines": {"chat": "text"}},
        *({"engines": {"chat": {**SAVED, "replicas": value}}} for value in (0, 10**9, 1e999, "x", None)),
        *({"engines": {"chat": {**SAVED, "max_num_batched_tokens": value}}} for value in (0, -1, 1 << 30)),
        *({"engines": {"chat": {**SAVED, "max_num_seqs": value}}} for value in (0, -1, 1 << 30)),
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, decision: Any) -> None:
    """A saved plan with other engines, or with counts that no spec allows, is an error of the user."""
    (tmp_path / "live.csv").write_text(TRACE, "utf-8")
    with pytest.raises(UnfoldError, match="plan again") as error:
        plan_spec(tmp_path, plan={"decision": decision}, replay=str(tmp_path / "live.csv"))
    assert int(error.value.code) == 2
