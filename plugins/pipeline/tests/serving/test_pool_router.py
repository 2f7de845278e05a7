"""Routing to pools of prefill and decode engines over real sockets, by the protocol of vLLM's KV connectors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugins.pipeline.tests.engine.scripted_engine import BREAK_OFF, REFUSE, KvLink, Script, run_engine
from plugins.pipeline.tests.serving.test_engine_router import ROOFLINE, write_trace
from plugins.pipeline.tests.verbs.test_profile_engine import SPEC
from tests.asgi import host
from unfold_pipeline.engine.endpoint.prefill import build_prompt_request, read_transfer
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.serve import serve
from unfoldkit.api import Report, Run, RunDir, Service, UnfoldError
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.timed
GONE = "http://127.0.0.1:9"


def open_pools(folder: Path, prefill: str, decode: str, **options: Any) -> Service | Report:
    pools = f"{{bandwidth: 25 GB/s, latency: 5 ms, prefill_urls: [{prefill}], decode_urls: [{decode}]}}"
    text = SPEC.replace("url: URL", f"disaggregated: {pools}")
    for old, new in ROOFLINE:
        text = text.replace(old, new)
    spec = validate(PipelineSpec, parse(text, "chat.yaml"))
    return serve(spec, Run(RunDir(folder / "run"), LocalEngine(1), base=folder, options=options))  # type: ignore[arg-type]


@contextlib.contextmanager
def route(folder: Path, prefill: str, decode: str) -> Iterator[str]:
    """Run a router to pools and yield its address."""
    service = open_pools(folder, prefill, decode)
    assert isinstance(service, Service)
    with host(service.app) as url:
        yield url


@contextlib.contextmanager
def run_pools(prefill: Script, *decode: Script) -> Iterator[tuple[str, str, KvLink]]:
    """Run a prefill engine and decode engines with a link between them."""
    link = KvLink()
    with contextlib.ExitStack() as stack:
        urls = []
        for script, role in ((prefill, "prefill"), *((each, "decode") for each in decode)):
            script.role, script.link = role, link
            urls.append(stack.enter_context(run_engine(script)))
        yield urls[0], ", ".join(urls[1:]), link


def ask(url: str, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


def test_a_request_passes_both_pools(tmp_path: Path) -> None:
    """The official client reads answers and streams of both paths; every cache is kept once and read once."""
    prefill, decode = Script(), (Script(), Script())
    with run_pools(prefill, *decode) as (first, second, link), route(tmp_path, first, second) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x")
        message = {"role": "user", "content": "one two three"}
        for limits in ({"max_tokens": 4}, {"max_completion_tokens": 4, "extra_body": {"min_tokens": 3}}):
            answer = client.chat.completions.create(model="tiny", messages=[message], **limits)
            assert answer.usage.completion_tokens == 4
            stream = client.chat.completions.create(
                model="tiny", messages=[message], stream=True, stream_options={"include_usage": True}, **limits
            )
            assert sum(bool(event.choices) for event in stream) == 4
        assert client.completions.create(model="tiny", prompt="a b c", max_tokens=2).usage.completion_tokens == 2
        metrics, status = httpx.get(f"{url}/metrics").text, httpx.get(f"{url}/status").json()
    assert link.faults == []
    assert (link.reads, link.local, link.caches) == (5, 0, {})
    assert prefill.requests == 5
    assert [script.requests for script in decode] == [3, 2]
    assert 'unfold_engine_prefills_total{engine="1",status="200"} 5.0' in metrics
    assert "unfold_engine_local_prompts_total 0.0" in metrics
    assert (len(status["engines"]), len(status["prefill_engines"])) == (2, 1)
    assert status["prefill_engines"][0]["outstanding_tokens"] == 0


@pytest.mark.parametrize("fault", ["gone", REFUSE, "no cache"])
def test_decode_engines_compute_prompts_that_no_prefill_engine_does(tmp_path: Path, fault: str) -> None:
    """Clients get their answers, and a metric counts the prompts."""
    prefill = Script(fault=fault if fault == REFUSE else "", keeps_caches=fault != "no cache")
    with (
        run_pools(prefill, Script()) as (first, second, link),
        route(tmp_path, GONE if fault == "gone" else first, second) as url,
    ):
        assert ask(url).json()["usage"]["completion_tokens"] == 5
        assert "unfold_engine_local_prompts_total 1.0" in httpx.get(f"{url}/metrics").text
    assert (link.local, link.reads) == (1, 0)


def test_the_next_prefill_engine_computes_what_one_does_not(tmp_path: Path) -> None:
    """A prefill engine that is gone delays no other prompt for a while."""
    prefill = Script()
    with run_pools(prefill, Script()) as (first, second, link), route(tmp_path, f"{GONE}, {first}", second) as url:
        for _ in range(3):
            assert ask(url).status_code == 200
        assert 'unfold_engine_prefills_total{engine="1",status="unreachable"} 1.0' in httpx.get(f"{url}/metrics").text
    assert (link.reads, link.local, link.faults) == (3, 0, [])


def test_another_decode_engine_gets_a_prompt_of_its_own(tmp_path: Path) -> None:
    """A cache can be read once, so a request that moves on is computed again."""
    prefill, decode = Script(), Script()
    with run_pools(prefill, decode) as (first, second, link), route(tmp_path, first, f"{GONE}, {second}") as url:
        assert ask(url).status_code == 200
    assert (prefill.requests, decode.requests, link.faults) == (2, 1, [])


def test_a_client_that_hangs_up_frees_its_place_at_the_prefill_engine(tmp_path: Path) -> None:
    """Its prompt is counted as given up, the engine is not avoided, and no decode engine gets the request."""
    decode = Script()
    with run_pools(Script(front_s=1.5), decode) as (first, second, _), route(tmp_path, first, second) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": "a b", "max_tokens": 2}, timeout=0.5)
        deadline_s = time.monotonic() + 10
        while httpx.get(f"{url}/status").json()["prefill_engines"][0]["requests"] and time.monotonic() < deadline_s:
            time.sleep(0.05)
        status = httpx.get(f"{url}/status").json()["prefill_engines"][0]
        assert 'unfold_engine_prefills_total{engine="1",status="499"} 1.0' in httpx.get(f"{url}/metrics").text
    assert (status["requests"], status["outstanding_tokens"], status["is_up"]) == (0, 0, True)
    assert decode.requests == 0


def test_a_transfer_of_a_client_reaches_no_engine(tmp_path: Path) -> None:
    """Otherwise a client could name an address that the decode engines read from."""
    with run_pools(Script(), Script()) as (first, second, link), route(tmp_path, first, second) as url:
        own = {"do_remote_prefill": True, "remote_host": "203.0.113.1", "remote_block_ids": [7]}
        assert ask(url, kv_transfer_params=own).status_code == 200
    assert link.faults == []
    with run_pools(Script(), Script()) as (_, second, link), route(tmp_path, GONE, second) as url:
        assert ask(url, kv_transfer_params=own).status_code == 200
    assert (link.local, link.faults) == (1, [])


def test_faults_of_decode_engines_reach_the_client(tmp_path: Path) -> None:
    """A stream that breaks off ends with an error and no ``[DONE]``, as with engines that do both."""
    with run_pools(Script(), Script(fault=BREAK_OFF)) as (first, second, _), route(tmp_path, first, second) as url:
        text = ask(url, stream=True).text
    assert "error" in text
    assert "[DONE]" not in text


def test_a_trace_is_replayed_on_pools(tmp_path: Path) -> None:
    """Every prompt passes a prefill engine, and the estimate is that of two pools."""
    prefill, decode = Script(), Script()
    with run_pools(prefill, decode) as (first, second, link):
        report = open_pools(tmp_path, first, second, replay=write_trace(tmp_path, 40))
        assert isinstance(report, Report)
        assert link.faults == []
        lines = dict(report.lines)
        assert lines["hand-over"] == "all 40 prompts were computed by prefill engines"
        assert "1 × l4 tp1 for prefill and 1 × l4 tp1 for decode" in lines["estimate"]
        assert report.metrics["failed"].value == 0
        assert (report.metrics["ttft_p50_estimate_ms"].value or 0) > 5
    with (
        run_pools(Script(keeps_caches=False), Script()) as (first, second, _),
        pytest.raises(UnfoldError, match=r"without kv_transfer_params.*NixlConnector"),
    ):
        open_pools(tmp_path, first, second, replay=write_trace(tmp_path, 4))
    with pytest.raises(UnfoldError, match=r"stages\.chat\.engine\.disaggregated"):
        open_pools(tmp_path, GONE, GONE, replay=write_trace(tmp_path, 4))


def test_a_plan_of_pools_needs_their_engines(tmp_path: Path) -> None:
    """Engines that do both cannot serve it, and the message says what to state."""
    text = SPEC.replace(
        "url: URL", "urls: [http://127.0.0.1:9]\n      disaggregated: {bandwidth: 1 GB/s, latency: 0 ms}"
    )
    for old, new in ROOFLINE:
        text = text.replace(old, new)
    spec = validate(PipelineSpec, parse(text, "chat.yaml"))
    options: Any = {"plan": {"decision": {"disaggregated": {"stage": "chat"}}}}
    with pytest.raises(UnfoldError, match=r"names no engines of them.*prefill_urls"):
        serve(spec, Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path, options=options))


def test_requests_for_prompts_and_their_answers() -> None:
    """One token and no stream; what is not an object with a transfer counts as none."""
    request = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9, "seed": 3}
    body = build_prompt_request(request)
    assert {name: body[name] for name in ("prompt", "stream", "max_tokens", "seed")} == {
        "prompt": "a", "stream": False, "max_tokens": 1, "seed": 3,
    }  # fmt: skip
    assert "stream_options" not in body
    for answer in (b"", b"[]", b"{", b"{}", b'{"kv_transfer_params": null}', b'{"kv_transfer_params": {}}', b"\xff"):
        assert read_transfer(answer) is None
