"""Routing to running engines over real sockets: streams, failover, balance, bounds, and a replayed trace."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugins.pipeline.tests.engine import scripted_engine as scripted
from plugins.pipeline.tests.engine.scripted_engine import Script, run_engine
from plugins.pipeline.tests.verbs.test_profile_engine import SPEC
from tests.asgi import host
from tests.http_server import serve_handler
from unfold_pipeline.engine.autoscaling.token_envelope import TokenLog
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointLimits
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.serving.engine_router import EngineRouterApp, Estimate, build_router_metrics
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir, Service, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

ESTIMATE = Estimate(quantiles={"ttft": {"0.5": 0.1}, "tpot": {"0.5": 0.01}})
LIMITS = EndpointLimits(first_token_s=5.0, between_tokens_s=0.5)
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.timed


@contextlib.contextmanager
def route_to(*urls: str, routing: Any = "round_robin", max_in_flight: int = 64) -> Iterator[str]:
    """Run a router on a free port of the loopback and yield its address."""
    balancer = EngineBalancer(urls, routing)
    endpoints = tuple(Endpoint(url=url, key="secret") for url in urls)
    metrics = build_router_metrics(balancer, ESTIMATE)
    app = EngineRouterApp(endpoints, balancer, metrics, ESTIMATE, LIMITS, max_in_flight)
    with host(app) as url:
        yield url


def ask(url: str, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 5, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


def test_answers_and_streams_pass_through() -> None:
    """The official client reads answers and streams; usage comes only if it was asked for, and the key is added."""
    with run_engine(Script(key="secret")) as engine, route_to(engine) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="of the client")
        assert [model.id for model in client.models.list()] == ["tiny"]
        message = {"role": "user", "content": "one two"}
        answer = client.chat.completions.create(model="tiny", messages=[message], max_tokens=3)
        assert answer.usage.completion_tokens == 3
        for wants_usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if wants_usage else {}
            stream = client.chat.completions.create(
                model="tiny", messages=[message], max_tokens=4, stream=True, **options
            )
            chunks = list(stream)
            assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == " a" * 4
            assert sum(chunk.usage is not None for chunk in chunks) == wants_usage
        metrics = httpx.get(f"{url}/metrics").text
        assert "unfold_engine_ttft_seconds_count 2.0" in metrics
        assert "unfold_engine_tpot_seconds_count 2.0" in metrics
        assert 'unfold_engine_estimate_seconds{measure="ttft",quantile="0.5"} 0.1' in metrics
        status = httpx.get(f"{url}/status").json()
        assert status["measured_mean_ms"]["tpot"] > 0
        assert status["engines"][0]["outstanding_tokens"] == 0
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_usage_of_booleans_counts_as_none() -> None:
    """The time per token is then that of the stream's events, and the log keeps the tokens of the request."""
    with run_engine(Script(fault=scripted.BOOLEAN_USAGE, per_request_s=0.01)) as engine, route_to(engine) as url:
        assert ask(url, stream=True).status_code == 200
        # four gaps between five tokens of at least 10 ms; as one token there would be no time per token
        assert httpx.get(f"{url}/status").json()["measured_mean_ms"]["tpot"] > 9


def run_canned_engine(body: bytes, kind: str, pause_s: float = 0.0) -> contextlib.AbstractContextManager[int]:
    """Run an engine that answers the same to everything, event by event with pauses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            for part in body.split(b"\n\n"):
                self.wfile.write(part + b"\n\n")
                self.wfile.flush()
                time.sleep(pause_s)

        do_GET = do_POST  # noqa: N815 - the name that http.server asks for

    return serve_handler(Handler)


def test_choices_and_tool_calls_are_measured() -> None:
    """Choices are generated side by side, so the time per token is that of one; a tool call has tokens too."""
    parts = [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}}] * 4
    events = [{"choices": [{"index": index, **part}]} for part in parts for index in range(2)]
    events.append({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 8}})
    body = b"\n\n".join(f"data: {json.dumps(event)}".encode() for event in events) + b"\n\ndata: [DONE]"
    with run_canned_engine(body, "text/event-stream", 0.01) as port, route_to(f"http://127.0.0.1:{port}") as url:
        assert ask(url, stream=True, n=2).status_code == 200
        # 70 ms between the first and the last of four tokens each; of eight tokens it would be 10 ms
        assert httpx.get(f"{url}/status").json()["measured_mean_ms"]["tpot"] > 15


def test_an_answer_at_once_corrects_the_log_of_tokens() -> None:
    """Until then the log has what the request may generate, for each of its choices."""
    usage = {"prompt_tokens": 7, "completion_tokens": 4}
    for answer, tokens in (({"usage": usage}, (7, 4)), ({"usage": None}, (10, 40)), ([], (10, 40))):
        with run_canned_engine(json.dumps(answer).encode(), "application/json") as port:
            urls, log = (f"http://127.0.0.1:{port}",), TokenLog(60.0)
            balancer = EngineBalancer(urls, "round_robin")
            metrics, endpoints = build_router_metrics(balancer, ESTIMATE), (Endpoint(url=urls[0]),)
            with host(EngineRouterApp(endpoints, balancer, metrics, ESTIMATE, LIMITS, 8, log=log)) as url:
                assert ask(url, n=2, max_tokens=20).status_code == 200
        (arrival,) = log.arrivals
        assert (arrival.prompt, arrival.output) == tokens


def test_a_list_of_models_is_bounded() -> None:
    """An engine that returns no end of models is one that does not respond."""
    with run_canned_engine(b"x" * (9 << 20), "application/json") as port, route_to(f"http://127.0.0.1:{port}") as url:
        assert httpx.get(f"{url}/v1/models").status_code == 502


def test_another_engine_answers_where_one_refuses_or_is_gone() -> None:
    """Before the first byte a failed engine is replaced; with none left the client gets the error."""
    broken = Script(fault=scripted.REFUSE)
    with run_engine(broken) as bad, run_engine(Script()) as good, route_to("http://127.0.0.1:9", bad, good) as url:
        assert [ask(url).status_code for _ in range(6)] == [200] * 6
        # an engine that failed is left alone for a while
        assert broken.requests == 1
    with route_to("http://127.0.0.1:9") as url:
        reply = ask(url)
        assert reply.status_code == 502
        assert reply.json()["error"]["message"] == "the connection to the engine failed"
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.get(f"{url}/v1/models").status_code == 502


@contextlib.contextmanager
def run_refusing_engine(status: int, **headers: str) -> Iterator[str]:
    """Run an engine that answers every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", "0")
            self.end_headers()

    with serve_handler(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("status", [307, 401, 429, 505, 529])
def test_a_status_that_is_no_fault_of_the_request_leads_to_the_next_engine(status: int) -> None:
    """A redirect, a wrong key and overload are faults of one engine; the last one's Retry-After reaches the client."""
    refusing = run_refusing_engine(status, retry_after="7", location="http://127.0.0.1:9/")
    with refusing as bad, run_engine(Script()) as good, route_to(bad, good) as url:
        assert [ask(url).status_code for _ in range(3)] == [200] * 3
    with run_refusing_engine(status, retry_after="7") as bad, route_to(bad) as url:
        reply = ask(url)
        assert (reply.status_code, reply.headers["retry-after"]) == (status if status >= 400 else 502, "7")
    with run_refusing_engine(404) as bad, run_engine(Script()) as good, route_to(bad, good) as url:
        assert ask(url).status_code == 404


@pytest.mark.parametrize("fault", [scripted.BREAK_OFF, scripted.STALL, scripted.BAD_JSON])
def test_a_stream_that_breaks_off_ends_with_an_error(fault: str) -> None:
    """Once the head is sent, the client sees an error event and no [DONE]; nothing is sent twice."""
    with run_engine(Script(fault=fault)) as engine, run_engine(Script()) as other, route_to(engine, other) as url:
        text = ask(url, stream=True).text
        assert "[DONE]" not in text
        assert "broke off" in text
        assert text.count('"content"') <= 2


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[1]", 400), (b"[" * 100_000, 400), (b" " * (9 << 20), 413)],
)
def test_bad_requests_reach_no_engine(body: bytes, status: int) -> None:
    """What is not a JSON object, or too large, is rejected in OpenAI's form; unknown paths are named."""
    script = Script()
    with run_engine(script) as engine, route_to(engine) as url:
        reply = httpx.post(f"{url}/v1/completions", content=body)
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert httpx.post(f"{url}/v1/embeddings", json={}).status_code == 404
        assert httpx.get(f"{url}/v1/completions").status_code == 405
        assert not script.requests


def test_requests_beyond_the_bound_are_rejected_and_a_client_that_hangs_up_frees_its_place() -> None:
    """More requests than may wait get 429 with a time to retry; a closed connection ends its request."""
    slow = Script(overhead_s=0.05)
    with run_engine(slow) as engine, route_to(engine, max_in_flight=1) as url:
        body = {"prompt": "one", "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            reply = ask(url)
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        deadline = time.monotonic() + 5
        while httpx.get(f"{url}/status").json()["engines"][0]["requests"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert httpx.get(f"{url}/status").json()["engines"][0]["requests"] == 0


def test_ties_rotate_and_tokens_balance() -> None:
    """Round robin takes turns; least tokens avoids the engine that holds more, and rotates where both hold as much."""
    turns = EngineBalancer(("a", "b", "c"), "round_robin")
    assert [turns.choose(1, 0.0) for _ in range(5)] == [0, 1, 2, 0, 1]
    least = EngineBalancer(("a", "b"), "least_tokens")
    assert [least.choose(tokens, 0.0) for tokens in (100, 10, 10, 10)] == [0, 1, 1, 1]
    least.release(0, 100)
    assert least.choose(1, 0.0) == 0
    least.mark_down(0, 0.0)
    assert least.choose(1, 1.0) == 1
    assert least.choose(1, 100.0) == 0
    assert least.choose(1, 100.0, {0, 1}) is None
    even = EngineBalancer(("a", "b"), "least_tokens")
    served = []
    for _ in range(4):
        index = even.choose(5, 0.0)
        assert index is not None
        served.append(index)
        even.release(index, 5)
    assert served == [0, 1, 0, 1]


ROOFLINE = (
    ("hardware: {box: {price: $1/h}}", "hardware: {l4: {price: $1/h}}"),
    ("{box: {1: 8192}}", "{l4: {1: 8192}}"),
    ("{box: {endpoint: true}}", "{l4: {roofline: true}}"),
)


def open_engines(folder: Path, urls: str, **options: Any) -> Service | Report:
    text = SPEC.replace("url: URL", urls)
    for old, new in ROOFLINE:
        assert old in text
        text = text.replace(old, new)
    spec = validate(PipelineSpec, parse(text, "chat.yaml"))
    return serve(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder, options=options))  # type: ignore[arg-type]


def write_trace(folder: Path, count: int) -> str:
    rows = [f"{0.02 * index:.3f},{20 + 7 * (index % 9)},{4 + index % 6}" for index in range(count)]
    path = folder / "live.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n", "utf-8")
    return str(path)


def test_a_replayed_trace_is_measured_next_to_the_estimate(tmp_path: Path) -> None:
    """Every request of the trace is sent to the engines in turn; the report has both figures of each measure."""
    scripts = Script(), Script()
    with run_engine(scripts[0]) as first, run_engine(scripts[1]) as second:
        report = open_engines(tmp_path, f"urls: [{first}, {second}]", replay=write_trace(tmp_path, 60))
    assert isinstance(report, Report)
    assert [script.requests for script in scripts] == [31, 31]
    assert report.verdict is Verdict.YES
    for key in ("ttft_p50_ms", "ttft_p50_estimate_ms", "tpot_mean_ms", "tpot_mean_estimate_ms", "latency_p99_ms"):
        assert (report.metrics[key].value or 0) > 0
    assert [row[1] for row in report.tables[1].rows] == [30, 30]


def test_a_replay_sends_other_words_each_time(tmp_path: Path) -> None:
    """Engines keep the prompts of the last replay in their prefix cache: a replay of equal prompts measured hits."""
    script = Script()
    with run_engine(script) as url:
        for _ in range(2):
            open_engines(tmp_path, f"url: {url}", replay=write_trace(tmp_path, 6))
    assert len(set(script.prompts)) == len(script.prompts) == 14


def test_prompts_from_a_prefix_cache_are_named(tmp_path: Path) -> None:
    """The usage of the engine says so, and the report repeats it."""
    with run_engine(Script(cached_share=0.5)) as url:
        report = open_engines(tmp_path, f"url: {url}", replay=write_trace(tmp_path, 6))
    assert isinstance(report, Report)
    assert "of their tokens came from a prefix cache" in dict(report.lines)["prompts"]
    assert "interval" in dict(report.lines)


def test_failed_requests_are_counted_and_no_is_said(tmp_path: Path) -> None:
    """An engine that fails amid the trace makes the verdict a no and is named; one that is gone is an error."""
    with run_engine(Script(fail_after=20)) as url:
        report = open_engines(tmp_path, f"url: {url}", replay=write_trace(tmp_path, 40))
    assert isinstance(report, Report)
    assert report.verdict is Verdict.NO
    assert report.metrics["failed"].value == 21
    assert "overloaded" in report.notes[0]
    with pytest.raises(UnfoldError, match="refused"):
        open_engines(tmp_path, "url: http://127.0.0.1:9", replay=write_trace(tmp_path, 4))
    with pytest.raises(UnfoldError, match="no running engine"):
        open_engines(tmp_path, "front: 8 ms", replay=write_trace(tmp_path, 4))


def test_a_service_names_its_engines_and_estimate(tmp_path: Path) -> None:
    """Without a trace the verb returns a service that routes to the engines of the spec."""
    service = open_engines(tmp_path, "urls: [http://127.0.0.1:9, http://127.0.0.1:10/v1]")
    assert isinstance(service, Service)
    assert "2 running engines by round robin" in dict(service.lines)["engines"]
    assert json.dumps(service.app.estimate.quantiles)  # type: ignore[attr-defined]
