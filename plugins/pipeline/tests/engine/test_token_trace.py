"""Traces of JSON lines with tokens: times of any notation, and Mooncake's milliseconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_pipeline.engine.trace import token_trace
from unfold_pipeline.engine.trace.request_objects import holds_objects
from unfold_pipeline.engine.trace.token_trace import CHUNK_ROWS, TokenTrace, read_objects, read_tokens
from unfoldkit.api import UnfoldError
from unfoldkit.arrivals.readers.timestamps import TimeNotation
from unfoldkit.arrivals.traces import read_trace

TIMES_S = np.cumsum(np.random.default_rng(3).exponential(0.7, 60)).round(3)
EPOCH_S = 1_780_000_000
OPENAI, MOONCAKE = ("prompt_tokens", "completion_tokens"), ("input_length", "output_length")


def read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> TokenTrace:
    path = folder / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return read_objects(path, **{"prompt": None, "generated": None, **options})


def build_rows(stamp: Callable[[float], Any], field: str, names: tuple[str, str]) -> list[dict[str, Any]]:
    return [{field: stamp(time_s), names[0]: 100 + i, names[1]: 1 + i} for i, time_s in enumerate(TIMES_S.tolist())]


def to_ms(time_s: float) -> int:
    return round(time_s * 1e3)


def to_iso(time_s: float) -> str:
    return str(np.datetime64("2026-05-28") + np.timedelta64(to_ms(time_s), "ms"))


NOTATIONS: dict[str, tuple[Callable[[float], Any], str, tuple[str, str], dict[str, Any]]] = {
    "milliseconds of Mooncake": (to_ms, "timestamp", MOONCAKE, {}),
    "Mooncake's fields in seconds": (float, "timestamp", MOONCAKE, {"notation": TimeNotation(None, "s")}),
    "seconds with a fraction": (float, "timestamp", OPENAI, {}),
    "a field with its unit": (to_ms, "arrival_ms", OPENAI, {}),
    "a stated unit": (to_ms, "timestamp", OPENAI, {"notation": TimeNotation(None, "ms")}),
    "a stated field": (float, "seen", OPENAI, {"column": "seen"}),
    "seconds since 1970": (lambda time_s: EPOCH_S + time_s, "created_at", OPENAI, {}),
    "milliseconds since 1970": (lambda time_s: EPOCH_S * 1000 + to_ms(time_s), "ts", OPENAI, {}),
    "ISO 8601": (to_iso, "time", OPENAI, {}),
}


@pytest.mark.parametrize("case", NOTATIONS)
def test_times_of_any_notation_are_read(tmp_path: Path, case: str) -> None:
    """The same arrivals have the same seconds, whatever clock and unit wrote them."""
    stamp, field, names, options = NOTATIONS[case]
    trace = read(tmp_path, build_rows(stamp, field, names), **options)
    assert trace.arrival_s == pytest.approx(TIMES_S - TIMES_S[0], abs=2e-3)
    assert trace.input_tokens.tolist() == [100 + i for i in range(TIMES_S.size)]


def test_lines_in_any_order_keep_their_tokens(tmp_path: Path) -> None:
    """Requests that were logged at their end are sorted together with their tokens."""
    trace = read(tmp_path, build_rows(float, "timestamp", OPENAI)[::-1])
    assert trace.output_tokens.tolist() == [1 + i for i in range(TIMES_S.size)]


def test_a_text_selects_lines(tmp_path: Path) -> None:
    """Lines without the text of ``arrivals.match`` are skipped."""
    rows = build_rows(float, "timestamp", OPENAI)
    chosen = [{**row, "model": "big" if i % 3 else "small"} for i, row in enumerate(rows)]
    assert len(read(tmp_path, chosen, match="small")) == TIMES_S.size // 3


def test_whole_numbers_without_a_unit_are_refused(tmp_path: Path) -> None:
    """Milliseconds under a name of no format are never read as seconds, nor the other way round."""
    with pytest.raises(UnfoldError, match="the unit of the times is unclear"):
        read(tmp_path, build_rows(lambda time_s: round(time_s * 1e5), "timestamp", OPENAI))


def test_a_date_in_a_prompt_is_no_time(tmp_path: Path) -> None:
    """A line with a date only in its text has no time."""
    rows = [{"prompt": "on 2026-05-28 10:00:00", **row} for row in build_rows(float, "took", OPENAI)]
    with pytest.raises(UnfoldError, match="no time"):
        read(tmp_path, rows)


def test_a_table_of_burstgpt_has_its_tokens(tmp_path: Path) -> None:
    """Its columns are found by name; a request that failed, without a response, is named."""
    path = tmp_path / "t.csv"
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path.write_text(f"{head}5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n")
    trace = read_tokens(path, np.array([0.0, 40.0]), prompt=None, generated=None)
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([472, 1087], [18, 230])
    path.write_text(f"{head}5,ChatGPT,472,0,472,Conversation log\n")
    with pytest.raises(UnfoldError, match="leave out requests that failed"):
        read_tokens(path, np.zeros(1), prompt=None, generated=None)


def test_a_table_of_mooncake_equals_its_json_lines(tmp_path: Path) -> None:
    """Milliseconds, tokens and the prompts that repeat are the same in both forms, with requests left out in both."""
    rows = build_rows(to_ms, "timestamp", MOONCAKE)
    rows = [{**row, "input_length": 1200, "hash_ids": [0, i % 3, i]} for i, row in enumerate(rows)]
    rows[7]["output_length"] = 0
    lines, path = read(tmp_path, rows), tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows({**row, "hash_ids": json.dumps(row["hash_ids"])} for row in rows)
    trace = read_tokens(path, read_trace(path), prompt=None, generated=None)
    np.testing.assert_allclose(trace.arrival_s, lines.arrival_s, atol=1e-9)
    for name in ("input_tokens", "output_tokens", "shared_tokens", "shared_with"):
        np.testing.assert_array_equal(getattr(trace, name), getattr(lines, name))
    assert trace.is_shared
    assert trace.left_out == lines.left_out == 1


def test_requests_that_a_coarse_clock_puts_together_are_described(tmp_path: Path) -> None:
    """Mooncake's published times are multiples of three seconds; finer ones, and a batch, are not described."""
    rows = build_rows(lambda time_s: int(time_s // 3 * 3000), "timestamp", MOONCAKE)
    assert read(tmp_path, rows).describe_grid().startswith("times are multiples of 3 s")
    assert read(tmp_path, build_rows(to_ms, "timestamp", MOONCAKE)).describe_grid() == ""
    assert read(tmp_path, build_rows(lambda _: 7000, "timestamp", MOONCAKE)).describe_grid() == ""


def test_a_trace_without_columns_of_tokens_names_those_that_it_has(tmp_path: Path) -> None:
    """So that ``arrivals.input`` can be written without opening the file."""
    with pytest.raises(UnfoldError, match=r"no prompt tokens .*input: COLUMN.*it has: time_s, asked, said"):
        read(tmp_path, [{"time_s": 1.0, "asked": 5, "said": 6}])


UNANSWERED = ("", "0", "NaN", "null")


@pytest.mark.parametrize("cell", UNANSWERED)
def test_requests_without_an_answer_are_left_out(tmp_path: Path, cell: str) -> None:
    """A few requests without generated tokens are counted in a warning; the others keep their times and tokens."""
    path, notes = tmp_path / "t.csv", list[str]()
    rows = [f"{i},{100 + i},{cell if i in (0, 7) else 1 + i}" for i in range(40)]
    path.write_text("time_s,prompt_tokens,completion_tokens\n" + "\n".join(rows) + "\n", "utf-8")
    trace = read_tokens(path, np.arange(40.0), prompt=None, generated=None, warn=notes.append)
    assert trace.arrival_s[:7].tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert trace.output_tokens[:3].tolist() == [2, 3, 4]
    assert "2 of 40 requests have no generated tokens and are left out" in notes[0]


def test_too_many_requests_without_an_answer_are_counted(tmp_path: Path) -> None:
    """The error names the first of them, how many there are, and how many would be left out."""
    path = tmp_path / "t.csv"
    rows = [f"{i},{100 + i},{0 if i % 4 == 3 else 5}" for i in range(40)]
    path.write_text("time_s,prompt_tokens,completion_tokens\n" + "\n".join(rows) + "\n", "utf-8")
    with pytest.raises(UnfoldError, match=r"t\.csv:5:.*10 of 40 requests have none, and at most 10 % are left out"):
        read_tokens(path, np.arange(40.0), prompt=None, generated=None)


def test_lines_without_an_answer_are_left_out(tmp_path: Path) -> None:
    """In JSON lines too, and negative tokens remain an error with the line."""
    rows, notes = build_rows(float, "timestamp", OPENAI), list[str]()
    rows[3]["completion_tokens"] = 0
    assert len(read(tmp_path, rows, warn=notes.append)) == TIMES_S.size - 1
    assert "1 of 60 requests" in notes[0]
    rows[3]["completion_tokens"] = -2
    with pytest.raises(UnfoldError, match=r"t\.jsonl:4:1: completion_tokens: '-2' is not a number of tokens"):
        read(tmp_path, rows)


def test_a_document_and_parquet_hold_requests(tmp_path: Path) -> None:
    """The same requests are read from JSON lines, a JSON document in any order, and Parquet with dates."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = build_rows(lambda time_s: EPOCH_S + time_s, "created_at", OPENAI)
    lines = read(tmp_path, rows)
    document, columnar = tmp_path / "t.json", tmp_path / "t.parquet"
    document.write_text(json.dumps({"page": 1, "data": rows[::-1]}), "utf-8")
    stamps = pa.array([round(row["created_at"] * 1e6) for row in rows], pa.timestamp("us", "Asia/Tokyo"))
    tokens = {name: [row[name] for row in rows] for name in OPENAI}
    parquet.write_table(pa.table({"timestamp": stamps, **tokens}), columnar)
    for path in (document, columnar):
        trace = read_objects(path, prompt=None, generated=None)
        np.testing.assert_allclose(trace.arrival_s, lines.arrival_s, atol=1e-5)
        assert trace.output_tokens.tolist() == lines.output_tokens.tolist()


def test_a_long_table_is_read_in_parts(tmp_path: Path) -> None:
    """Parts of plain numbers and parts with other notations have the tokens of their rows, and faults their line."""
    rows = CHUNK_ROWS + 50
    cells = [[f"{index / 8:.3f}", str(1 + index % 90), str(1 + index % 7)] for index in range(rows)]
    cells[-30][1:] = ["1,000", "2.0"]
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["time_s", "prompt_tokens", "completion_tokens"], *cells])
    trace = read_tokens(path, read_trace(path), prompt=None, generated=None)
    assert trace.input_tokens.tolist() == [int(row[1].replace(",", "")) for row in cells]
    assert trace.output_tokens.tolist() == [int(float(row[2])) for row in cells]
    path.write_text(path.read_text("utf-8").replace("2.0", "two"), "utf-8")
    with pytest.raises(UnfoldError, match="'two' is not a number of tokens") as caught:
        read_tokens(path, np.arange(rows), prompt=None, generated=None)
    assert caught.value.diagnostics[0].line == rows - 30 + 2


def test_a_long_table_costs_no_object_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with plain numbers are never built one by one."""
    path = tmp_path / "t.csv"
    path.write_text("time_s,prompt_tokens,completion_tokens\n" + "0.5,7,8\n" * 100, "utf-8")
    monkeypatch.setattr(token_trace, "read_row", None)
    trace = read_tokens(path, np.zeros(100), prompt=None, generated=None)
    assert trace.input_tokens.tolist() == [7] * 100


def test_a_dot_between_thousands_is_refused(tmp_path: Path) -> None:
    """1.000 tokens are one or a thousand; four digits before the dot leave no doubt."""
    path = tmp_path / "t.csv"
    path.write_text("time_s,prompt_tokens,completion_tokens\n0,1200.000,5.0\n1,1.000,5\n", "utf-8")
    with pytest.raises(UnfoldError, match=r"t\.csv:3:.*'1\.000' is not a number of tokens .*no dot between thousands"):
        read_tokens(path, np.arange(2.0), prompt=None, generated=None)


def test_an_entry_of_a_document_is_named(tmp_path: Path) -> None:
    """A document has no lines: errors count its entries."""
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"time": 1, "isl": 5, "osl": 5}, {"time": 2, "isl": 0, "osl": 5}]), "utf-8")
    with pytest.raises(UnfoldError, match="entry 2: '0' is not a number of tokens"):
        read_objects(path, prompt=None, generated=None)
    path.write_text("[1, 2, 3", "utf-8")
    with pytest.raises(UnfoldError, match="breaks off"):
        read_objects(path, prompt=None, generated=None)
    path.write_text("[[1, 2], [3]]", "utf-8")
    with pytest.raises(UnfoldError, match="no list of requests"):
        read_objects(path, prompt=None, generated=None)


def test_tokens_are_found_in_the_usage_of_an_answer(tmp_path: Path) -> None:
    """Logs of OpenAI-compatible servers hold tokens in ``usage``; a dotted name states any other object."""
    rows = [
        {"created": EPOCH_S + i, "usage": {"prompt_tokens": 5 + i, "completion_tokens": 2}, "meta": {"seen": i, "n": 9}}
        for i in range(20)
    ]
    trace = read(tmp_path, rows)
    assert trace.input_tokens.tolist() == [5 + i for i in range(20)]
    assert read(tmp_path, rows, generated="meta.n", column="meta.seen").output_tokens.tolist() == [9] * 20


@pytest.mark.parametrize(
    "names", [("num_prefill_tokens", "num_decode_tokens"), ("inputTokens", "outputTokens"), ("Prompt Tokens", "OSL")]
)
def test_usual_names_count_in_any_spelling(tmp_path: Path, names: tuple[str, str]) -> None:
    """Case, blanks and separators of a name do not matter."""
    path = tmp_path / "t.csv"
    path.write_text(f'time_s,{names[0]},{names[1]}\n1,"1,200",3.0\n2,7,4\n', "utf-8")
    trace = read_tokens(path, np.array([0.0, 1.0]), prompt=None, generated=None)
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([1200, 7], [3, 4])


USAGE = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")


def build_span(index: int, operation: str, tokens: tuple[int, int] | None) -> dict[str, Any]:
    """Return a span as the collector of OpenTelemetry writes it."""
    usage = [
        {"key": name, "value": {"intValue": str(count)}}
        for name, count in zip(USAGE, tokens or (), strict=bool(tokens))
    ]
    attributes = [{"key": "gen_ai.operation.name", "value": {"stringValue": operation}}, *usage]
    return {"name": operation, "startTimeUnixNano": str((EPOCH_S + index) * 10**9 + 1), "attributes": attributes}


@pytest.mark.parametrize("name", ["spans.jsonl", "spans.json"])
def test_spans_of_model_calls_are_requests(tmp_path: Path, name: str) -> None:
    """Exports of the collector follow one another; spans of agents repeat the tokens of their calls."""
    exports = []
    for index in range(12):
        spans = [
            build_span(index, "invoke_agent", (900, 90)),
            build_span(index, "chat", (100 + index, 1 + index)),
            build_span(index, "execute_tool", None),
        ]
        exports.append({"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]})
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, exports)) + "\n", "utf-8")
    assert holds_objects(path)
    trace = read_objects(path, prompt=None, generated=None)
    assert trace.input_tokens.tolist() == list(range(100, 112))
    assert trace.output_tokens.tolist() == list(range(1, 13))
    np.testing.assert_allclose(trace.arrival_s, np.arange(12.0), atol=1e-6)


def test_tokens_from_a_cache_are_part_of_the_prompt(tmp_path: Path) -> None:
    """Anthropic counts cached tokens beside those of the prompt; totals under other names hold them already."""
    cached = {"cache_creation_input_tokens": None, "cache_read_input_tokens": 900}
    rows = [{"time": to_iso(float(index)), "usage": {"output_tokens": 5, **cached}} for index in range(9)]
    assert (
        read(tmp_path, [{**row, "usage": {**row["usage"], "input_tokens": 100}} for row in rows]).input_tokens[0]
        == 1000
    )
    assert (
        read(tmp_path, [{**row, "usage": {**row["usage"], "prompt_tokens": 1000}} for row in rows]).input_tokens[0]
        == 1000
    )


@pytest.mark.parametrize("indent", [None, 4])
def test_spans_that_an_sdk_prints_are_requests(tmp_path: Path, indent: int | None) -> None:
    """The console exporter prints spans one after another, in lines of their own or not; handlers have no tokens."""
    spans = []
    for index in range(12):
        usage = {"gen_ai.operation.name": "chat", USAGE[0]: 100 + index, USAGE[1]: 1 + index}
        for number, attributes in ((1, usage), (0, {})):
            own = {"trace_id": f"0x{index}", "span_id": f"0x{index}{number}", "trace_state": "[]"}
            above = f"0x{index}0" if number else None
            spans.append({"name": "a", "context": own, "parent_id": above, "start_time": to_iso(float(index))})
            spans[-1] |= {"attributes": attributes, "events": [{"name": "chunk", "timestamp": to_iso(50.0)}] * number}
    path = tmp_path / "spans.jsonl"
    path.write_text("\n".join(json.dumps(span, indent=indent) for span in spans), "utf-8")
    trace = read_objects(path, prompt=None, generated=None)
    assert trace.input_tokens.tolist() == list(range(100, 112))
    np.testing.assert_allclose(trace.arrival_s, np.arange(12.0), atol=1e-6)


def test_fractions_of_milliseconds_may_be_seconds(tmp_path: Path) -> None:
    """Traces with Mooncake's lengths and times in seconds are not read as 1,000 times their rate."""
    rows = build_rows(float, "timestamp", MOONCAKE)
    with pytest.raises(UnfoldError, match="may be seconds, or milliseconds"):
        read(tmp_path, rows)
    trace = read(tmp_path, rows, notation=TimeNotation(unit="s"))
    np.testing.assert_allclose(trace.arrival_s, TIMES_S - TIMES_S[0])
    slow = read(tmp_path, build_rows(lambda time_s: time_s * 1e3 + 0.25, "timestamp", MOONCAKE))
    np.testing.assert_allclose(slow.arrival_s, TIMES_S - TIMES_S[0])


def test_texts_without_counts_are_named(tmp_path: Path) -> None:
    """Data sets of conversations have no tokens: the hint is to count them."""
    with pytest.raises(UnfoldError, match="count the tokens of its texts first"):
        read(tmp_path, [{"timestamp": to_iso(1.0), "conversation": [{"role": "user", "content": "hi"}]}] * 9)


@pytest.mark.parametrize(
    ("lines", "message", "line"),
    [
        (
            ['{"time_s": 1.5, "isl": 5, "osl": 5}', '{"time_s": 2.5, "isl": 5, "os'],
            "not a JSON object: Unterminated",
            2,
        ),
        (['{"time_s": 1.5, "isl": 5, "osl": 5}', '{"time_s": 2.5, "event": "start"}'], "no prompt tokens", 2),
        (
            ['{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}'],
            "no span of the export states tokens",
            0,
        ),
    ],
)
def test_faults_have_their_line(tmp_path: Path, lines: list[str], message: str, line: int) -> None:
    """A line that breaks off or has no tokens is named by its number, and an export without model calls as such."""
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(UnfoldError, match=message) as error:
        read_objects(path, prompt=None, generated=None)
    assert error.value.diagnostics[0].line == line
    assert error.value.diagnostics[0].hint
