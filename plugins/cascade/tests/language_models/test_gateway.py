"""The contract of the gateway, over real sockets: routes, headers, streams, tools, faults, budgets and audit."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from urllib.parse import urlparse

import httpx
import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import (
    LARGE_COST,
    LARGE_PRICE,
    QUICK,
    SMALL_COST,
    Gateway,
    ask,
    make_plan,
    serve_gateway,
)
from unfold_cascade.language_models.gateway import app as gateway_app
from unfold_cascade.language_models.gateway.plan import ClientKey, Promise, ServedModel, UpstreamLimits
from unfold_cascade.language_models.gateway.upstream import build_client, read_retry_after, worst_cost
from unfold_cascade.language_models.openai_api.completion import matches_schema
from unfoldkit.io.http1_transport import Http1Transport

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.timed

UNSURE = always(text="cheap answer", logprob=-2.0)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _call(arguments: str, name: str = "weather") -> list[dict[str, Any]]:
    return [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}]


def test_a_trusted_answer_costs_the_cheap_call_only(tmp_path: Path) -> None:
    """Headers name model, route, calls, cost, plan, promise, request and time; the body names the alias."""
    with serve_gateway(tmp_path) as gateway:
        status, head, data = gateway.post(ask(seed=7, unknown_field={"a": 1}))
        body = json.loads(data)
        assert (status, body["model"], body["choices"][0]["message"]["content"]) == (200, "auto", "cheap answer")
        assert body["usage"]["prompt_tokens"] == 100
        assert "logprobs" not in body["choices"][0]
        assert head["x-unfold-model"] == "small"
        assert head["x-unfold-route"] == "small:0.71>=0.50"
        assert head["x-unfold-calls"] == "1"
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST)
        assert (head["x-unfold-plan"], head["x-unfold-promise"]) == ("abc123", "2pt@95")
        assert head["x-unfold-request-id"].startswith("unfold-")
        assert float(head["x-unfold-gate-ms"]) > 0
        assert gateway.small.requests[0]["unknown_field"] == {"a": 1}
        assert gateway.small.requests[0]["model"] == "s-1"
        assert not gateway.large.requests


def test_an_unsure_answer_goes_to_the_next_model(tmp_path: Path) -> None:
    """The usage is that of the answer, the cost header that of all calls."""
    with serve_gateway(tmp_path, UNSURE) as gateway:
        _, head, data = gateway.post(ask())
        assert json.loads(data)["choices"][0]["message"]["content"] == "dear answer"
        assert head["x-unfold-route"] == "small:0.27<0.50,large"
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST + LARGE_COST)
        assert "logprobs" not in gateway.large.requests[0]


def test_models_health_and_unknown_paths(tmp_path: Path) -> None:
    """The alias and the single models are listed and callable; errors have OpenAI's form."""
    with serve_gateway(tmp_path) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        assert [model.id for model in client.models.list()] == ["auto", "small", "large"]
        answer = client.chat.completions.create(model="large", messages=[{"role": "user", "content": "x"}])
        assert (answer.model, answer.choices[0].message.content) == ("large", "dear answer")
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "x"}])
        assert missing.value.code == "model_not_found"
        status, _, data = gateway.post(ask(), path="/chat/completions")
        assert status == 200
        status, _, data = gateway.post(ask(), path="/v1/embeddings")
        assert status == 404
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[1]", None),
        (b"[" * 100_000, None),
        ({"model": "auto"}, "messages"),
        ({"model": "auto", "messages": []}, "messages"),
        ({"model": "auto", "messages": ["x"]}, "messages"),
        ({"model": 3, "messages": [{"role": "user", "content": "x"}]}, "model"),
        (ask(n=0), "n"),
        (ask(n=True), "n"),
        (ask(max_tokens=-1), "max_tokens"),
        (ask(stream="yes"), "stream"),
        (ask(stream_options={"include_usage": True}), "stream_options"),
    ],
)
def test_bad_requests_are_rejected_without_a_call(tmp_path: Path, body: Any, param: str | None) -> None:
    """400 in OpenAI's form names the field; no upstream is called."""
    with serve_gateway(tmp_path) as gateway:
        status, _, data = gateway.post(body)
        assert status == 400
        assert json.loads(data)["error"]["param"] == param
        assert not gateway.small.requests


@pytest.mark.parametrize("script", [always(text="one two three"), always(text="one two three", logprob=-2.0)])
def test_streams_are_decided_before_the_first_byte(tmp_path: Path, script: Any) -> None:
    """Role first, deltas, finish reason, usage only if asked for, [DONE]; headers are known in time."""
    with serve_gateway(tmp_path, script, always(text="one two three")) as gateway:
        for wants_usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if wants_usage else {}
            head, events = gateway.events(ask(**options))
            assert head["content-type"].startswith("text/event-stream")
            assert head["x-unfold-model"] in ("small", "large")
            chunks = [event for event in events if isinstance(event, dict)]
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
            text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
            assert text.split() == ["one", "two", "three"]
            assert any(c["choices"] and c["choices"][0]["finish_reason"] == "stop" for c in chunks)
            assert [bool(c.get("usage")) for c in chunks if not c["choices"]] == [True] * wants_usage
            assert all(c["model"] == "auto" and "logprobs" not in (c["choices"] or [{}])[0] for c in chunks)
            assert events[-1] == "data: [DONE]"


def test_the_openai_client_reads_streams_usage_and_logprobs(tmp_path: Path) -> None:
    """The official client takes answers of both stages; logprobs come if they were asked for."""
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "prompt_tokens_details": {"cached_tokens": 60},
    }
    with serve_gateway(tmp_path, always(text="a b", usage=usage)) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        stream = client.chat.completions.create(**ask(), stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 60
        raw = client.chat.completions.with_raw_response.create(**ask(), logprobs=True)
        assert raw.parse().choices[0].logprobs.content[0].logprob == -0.1
        assert float(raw.headers["x-unfold-cost-usd"]) == pytest.approx((40 + 6 + 20) * 1e-6)


def test_the_last_model_streams_as_it_writes(tmp_path: Path) -> None:
    """The first chunk of the last model arrives while the model still writes."""
    with serve_gateway(tmp_path, UNSURE, always(text="a b c d e f", pace=0.15)) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        times = [time.monotonic() for _ in client.chat.completions.create(**ask(), stream=True)]
        assert times[-1] - times[0] > 0.5


def test_tool_calls_are_replayed_whole_and_checked(tmp_path: Path) -> None:
    """Arguments that break the schema are not trusted; the results stay with the model that called."""

    def small(request: dict[str, Any], _number: int) -> dict[str, Any]:
        bad = "bad" in request["messages"][0]["content"]
        return {"tool_calls": _call('{"town": 1}' if bad else '{"city": "Rome"}')}

    with serve_gateway(tmp_path, small) as gateway:
        _, head, data = gateway.post(ask(tools=[TOOL]))
        # a tool call has tokens with log-probabilities here, as llama.cpp gives them
        assert head["x-unfold-model"] == "small"
        message = json.loads(data)["choices"][0]["message"]
        _, head, _ = gateway.post(ask("bad", tools=[TOOL]))
        assert head["x-unfold-route"] == "small:tool,large"
        result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        turn = {"model": "auto", "messages": [*ask()["messages"], message, result], "tools": [TOOL]}
        _, head, _ = gateway.post(turn)
        assert head["x-unfold-model"] == "small"
        unknown = {**turn, "messages": [*ask()["messages"], message, {**result, "tool_call_id": "other"}]}
        assert gateway.post(unknown)[1]["x-unfold-model"] == "large"


def test_an_answer_outside_the_requested_format_is_not_trusted(tmp_path: Path) -> None:
    """Text, cut JSON or JSON of another schema goes to the next model, however confident it is."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    by_schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answers = ['{"age": 30}', '{"age": "old"}', '{"age": ', "thirty", "[1]"]
    with serve_gateway(tmp_path, lambda request, _: {"text": request["messages"][0]["content"]}) as gateway:
        for wanted, trusted in ((by_schema, answers[:1]), ({"type": "json_object"}, answers[:2]), (None, answers)):
            routes = [gateway.post(ask(text, response_format=wanted))[1]["x-unfold-route"] for text in answers]
            kept = [text for text, route in zip(answers, routes, strict=True) if route.startswith("small:0")]
            assert kept == trusted
            assert {route for route in routes if not route.startswith("small:0")} <= {"small:format,large"}


@pytest.mark.parametrize(
    ("answer", "route"),
    [
        ({"logprob": None}, "small:none<0.50,large"),
        ({"finish": "length"}, "small:length,large"),
        ({"text": ""}, "small:empty,large"),
        ({"broken": True}, "small:broken,large"),
        ({"status": 500}, "small:busy,large"),
        ({"status": 401}, "small:refused,large"),
        ({"status": 404}, "small:refused,large"),
        ({"status": 402}, "small:refused,large"),
        ({"status": 308, "headers": {"location": "https://elsewhere.example/"}}, "small:refused,large"),
        ({"status": 202}, "small:broken,large"),
        ({"status": 415}, "small:broken,large"),
        (
            {"status": 400, "error": {"error": {"message": "x", "code": "context_length_exceeded"}}},
            "small:context,large",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_cheap_stage_that_fails_costs_the_client_nothing(
    tmp_path: Path, answer: dict[str, Any], route: str, stream: bool
) -> None:
    """Whatever the first stage does before the decision, the client gets the whole answer of the next."""
    with serve_gateway(tmp_path, always(**answer)) as gateway:
        if stream:
            if "broken" in answer:
                answer = {"broken_chunk": True}
            head, events = gateway.events(ask())
            assert events[-1] == "data: [DONE]"
        else:
            status, head, data = gateway.post(ask())
            assert status == 200
            assert json.loads(data)["choices"][0]["message"]["content"] == "dear answer"
        assert head["x-unfold-route"].split(":")[0] == "small"
        assert head["x-unfold-model"] == "large"
        assert stream or head["x-unfold-route"] == route


@pytest.mark.parametrize("answer", [{"cut": 2}, {"stall": 5.0}, {"broken_chunk": True}])
def test_a_stream_that_breaks_before_the_decision_is_not_seen(tmp_path: Path, answer: dict[str, Any]) -> None:
    """Cut, stalled or broken chunks of the gated model lead to the next one, never to two spliced texts."""
    with serve_gateway(tmp_path, always(text="one two three four", **answer)) as gateway:
        head, events = gateway.events(ask())
        text = "".join(
            c["choices"][0]["delta"].get("content") or "" for c in events if isinstance(c, dict) and c["choices"]
        )
        assert text.split() == ["dear", "answer"]
        assert (head["x-unfold-model"], events[-1]) == ("large", "data: [DONE]")


def test_a_stream_that_breaks_after_the_decision_ends_with_an_error(tmp_path: Path) -> None:
    """Once bytes of the last model were sent, a break is an error event, without [DONE] and without another text."""
    with serve_gateway(tmp_path, UNSURE, always(text="one two three four", cut=3)) as gateway:
        _, events = gateway.events(ask())
        assert "error" in events[-1]
        assert "data: [DONE]" not in events
        assert len(gateway.large.requests) == 1


def test_errors_of_the_request_are_returned_and_never_retried(tmp_path: Path) -> None:
    """A 400 of the upstream goes to the client as it is, after one call."""
    error = {"error": {"message": "temperature is too high", "type": "invalid_request_error", "code": "bad_value"}}
    with serve_gateway(tmp_path, always(status=400, error=error)) as gateway:
        status, head, data = gateway.post(ask(temperature=99))
        assert status == 400
        assert json.loads(data)["error"]["message"] == "temperature is too high"
        assert len(gateway.small.requests) == 1
        assert not gateway.large.requests
        assert head["x-unfold-request-id"]


def test_retry_after_is_honoured_and_all_failures_give_the_last_status(tmp_path: Path) -> None:
    """429 is tried again after the time named; if every model fails the client sees the last status."""
    starts: list[float] = []

    def once(_request: dict[str, Any], number: int) -> dict[str, Any]:
        starts.append(time.monotonic())
        return {"status": 429, "headers": {"retry-after": "1"}} if number == 0 else {"text": "ok"}

    with serve_gateway(tmp_path, once) as gateway:
        assert gateway.post(ask())[1]["x-unfold-calls"] == "2"
        assert starts[1] - starts[0] >= 1.0
    busy = always(status=429, headers={"retry-after": "0"})
    with serve_gateway(tmp_path / "b", busy, busy) as gateway:
        status, head, data = gateway.post(ask())
        assert status == 429
        assert json.loads(data)["error"]["type"] == "rate_limit_error"
        assert head["x-unfold-route"] == "small:busy,large:busy"
        assert head["x-unfold-calls"] == "4"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "-7"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "nan", "retry-after": "7"}, 7.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "1e300"}, 86_400.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after_is_a_finite_time(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates; a value without a finite number is ignored."""
    assert read_retry_after(headers) == seconds


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_an_unusable_retry_after_still_gives_the_status(tmp_path: Path, value: str) -> None:
    """The client sees the status of the upstream."""
    busy = always(status=429, headers={"retry-after": value})
    limits = UpstreamLimits(connect_s=1, first_token_s=2, between_tokens_s=1, total_s=6, retries=0)
    with serve_gateway(tmp_path, busy, busy, limits=limits) as gateway:
        assert gateway.post(ask())[0] == 429


def test_no_time_out_exceeds_that_of_the_request(tmp_path: Path) -> None:
    """The total shrinks along the chain: two slow models do not take twice the time."""
    limits = UpstreamLimits(connect_s=1, first_token_s=10, between_tokens_s=10, total_s=1.5, retries=3)
    with serve_gateway(tmp_path, always(delay=4.0), always(delay=4.0), limits=limits) as gateway:
        begin = time.monotonic()
        status, _, data = gateway.post(ask())
        assert status == 504
        assert time.monotonic() - begin < 3.0
        assert "error" in json.loads(data)


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_answer_leaves_the_next_model_time(tmp_path: Path, stream: bool) -> None:
    """A model that another can follow has half of the time that is left, so a trickle of text costs no answer."""
    limits = UpstreamLimits(connect_s=1, first_token_s=10, between_tokens_s=10, total_s=3, retries=2)
    with serve_gateway(tmp_path, always(delay=4.0), limits=limits) as gateway:
        head = gateway.events(ask())[0] if stream else gateway.post(ask())[1]
        assert head["x-unfold-route"] in ("small:busy,large", "pending")


@pytest.mark.parametrize("stream", [False, True])
def test_a_status_beyond_http_is_an_error_of_the_upstream(tmp_path: Path, stream: bool) -> None:
    """The server cannot send it."""
    with serve_gateway(tmp_path, always(status=600), always(status=600)) as gateway:
        status, _, data = gateway.post({**ask(), "stream": stream})
        assert (status, json.loads(data)["error"]["type"]) == (502, "upstream_error")


def test_prompts_longer_than_a_window_skip_the_model(tmp_path: Path) -> None:
    """A model with too small a window is left out, and the next one answers."""
    with serve_gateway(tmp_path, windows={"small": 50}) as gateway:
        _, head, _ = gateway.post(ask("word " * 400))
        assert head["x-unfold-route"] == "small:window,large"
        assert not gateway.small.requests


def test_requests_which_the_log_did_not_cover_are_unpromised(tmp_path: Path) -> None:
    """Images, and prompts three times longer than any logged one, go to the reference, marked as unpromised."""
    with serve_gateway(tmp_path, longest_prompt=100) as gateway:
        image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
        for content in (image, "x" * 301):
            body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
            head = gateway.post(body)[1]
            assert (head["x-unfold-model"], head["x-unfold-promise"]) == ("large", "unpromised")
        assert gateway.post(ask("x" * 300))[1]["x-unfold-promise"] == "2pt@95"


def test_several_choices_pass_only_together(tmp_path: Path) -> None:
    """With n > 1 the least sure choice decides."""
    with serve_gateway(tmp_path) as gateway:
        _, head, data = gateway.post(ask(n=3))
        assert len(json.loads(data)["choices"]) == 3
        assert head["x-unfold-model"] == "small"


def test_a_client_that_hangs_up_cancels_the_upstream_call(tmp_path: Path) -> None:
    """The connection to the upstream is closed, so that it stops generating; the key is charged."""
    keys = (ClientKey(name="a", key="k", budget_usd=100.0),)
    slow = always(text=" ".join(["w"] * 200), pace=0.05, logprob=-2.0)
    with serve_gateway(tmp_path, UNSURE, slow, keys=keys) as gateway:
        place = urlparse(gateway.url)
        body = json.dumps(ask(stream=True)).encode()
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            "host: x",
            "authorization: Bearer k",
            f"content-length: {len(body)}",
        )
        head = "\r\n".join([*lines, "", ""])
        with socket.create_connection((place.hostname or "", place.port or 0)) as client:
            client.sendall(head.encode() + body)
            assert client.recv(100)
            time.sleep(0.4)
        end = time.monotonic() + 5
        while not gateway.large.hang_ups and time.monotonic() < end:
            time.sleep(0.05)
        assert gateway.large.hang_ups == 1
        time.sleep(0.2)
        assert gateway.app.router.state.spent("a") > SMALL_COST


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_up_before_the_first_token_is_charged(tmp_path: Path, stream: bool) -> None:
    """The upstream has read the prompt by then and may bill it, so that no client reads prompts for free."""
    keys = (ClientKey(name="a", key="k", budget_usd=100.0),)
    request = ask("x" * 4000, stream=stream) | {"model": "large"}
    with serve_gateway(tmp_path, large=always(delay=1.5), keys=keys) as gateway:
        place, body = urlparse(gateway.url), json.dumps(request).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: {len(body)}\r\n\r\n"
        end = time.monotonic() + 5
        with socket.create_connection((place.hostname or "", place.port or 0)) as client:
            client.sendall(head.encode() + body)
            while not gateway.large.requests and time.monotonic() < end:
                time.sleep(0.02)
        while not (spent := gateway.app.router.state.spent("a")) and time.monotonic() < end:
            time.sleep(0.02)
        assert spent >= 1000 * LARGE_PRICE.input


def test_idempotency_keys_replay_wait_and_conflict(tmp_path: Path) -> None:
    """The same request is billed once, also while the first is in flight; another body is a conflict."""
    keys = (ClientKey(name="a", key="k"),)
    with serve_gateway(tmp_path, always(text="cheap answer", delay=0.4), keys=keys) as gateway:
        with ThreadPoolExecutor(4) as pool:
            headers = {"idempotency_key": "one", "authorization": "Bearer k"}
            results = list(pool.map(lambda _: gateway.post(ask(), **headers), range(4)))
        assert {result[0] for result in results} == {200}
        assert len({result[2] for result in results}) == 1
        assert len(gateway.small.requests) == 1
        assert gateway.app.router.state.spent("a") == pytest.approx(SMALL_COST)
        status, _, data = gateway.post(ask("other"), **headers)
        assert (status, json.loads(data)["error"]["code"]) == (409, "idempotency_key_reused")
        first, second = (gateway.post(ask(stream=True), authorization="Bearer k", idempotency_key="s") for _ in "ab")
        assert first[2] == second[2]
        assert second[1]["x-unfold-replayed"] == "true"


def test_a_budget_is_never_exceeded_by_parallel_requests(tmp_path: Path) -> None:
    """Of 50 parallel requests with a budget for 10, at most 10 are answered, and the budget is not overdrawn."""
    request, cost = ask(max_tokens=10), SMALL_COST + LARGE_COST
    budget = 10 * cost
    keys = (ClientKey(name="a", key="k", budget_usd=budget), ClientKey(name="b", key="other"))
    with serve_gateway(tmp_path, UNSURE, keys=keys, largest_cost_usd=cost) as gateway:
        assert gateway.post(request)[0] == 401
        with ThreadPoolExecutor(50) as pool:
            results = list(pool.map(lambda _: gateway.post(request, authorization="Bearer k"), range(50)))
        answered = [result for result in results if result[0] == 200]
        refused = [json.loads(result[2])["error"]["code"] for result in results if result[0] == 429]
        assert 1 <= len(answered) <= 10
        assert len(answered) + len(refused) == 50
        assert set(refused) == {"insufficient_quota"}
        assert gateway.app.router.state.spent("a") == pytest.approx(len(answered) * cost)
        assert gateway.app.router.state.spent("a") <= budget
        assert gateway.post(request, authorization="Bearer other")[0] == 200


@pytest.mark.parametrize(
    ("period", "later"), [("day", "2026-03-02T00:00"), ("week", "2026-03-02T00:00"), ("month", "2026-04-01T00:00")]
)
def test_a_budget_begins_anew_in_each_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: Literal["day", "week", "month"], later: str
) -> None:
    """Until the last second of a period in UTC a spent budget refuses, also after a restart; then it is whole again."""
    now_s = end_s = datetime.fromisoformat(f"{later}+00:00").timestamp()
    monkeypatch.setattr(gateway_app, "time", SimpleNamespace(time=lambda: now_s, perf_counter=time.perf_counter))
    key = ClientKey(name="a", key="k", budget_usd=10.0, period=period)
    for seconds, expected in ((3600.0, 200), (3600.0, 429), (1.0, 429), (0.0, 200)):
        now_s = end_s - seconds
        with serve_gateway(tmp_path, keys=(key,)) as gateway:
            status, _, data = gateway.post(ask(), authorization="Bearer k")
            state = gateway.app.router.state
            spent_usd = state.spent(key.name_account(now_s))
            if seconds:
                reservation = state.reserve(key.name_account(now_s), 10.0 - spent_usd, None)
                assert reservation is not None
                state.settle(reservation, 10.0 - spent_usd)
        assert (status, spent_usd) == (expected, pytest.approx(SMALL_COST if expected == 200 else 10.0))
        assert (f"budget of this {period} (UTC)" in data.decode()) == (expected == 429)


def test_spending_survives_a_restart(tmp_path: Path) -> None:
    """What a key has spent is kept on disk."""
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    for count in (1, 2):
        with serve_gateway(tmp_path, keys=keys) as gateway:
            assert gateway.post(ask(), authorization="Bearer k")[0] == 200
            assert gateway.app.router.state.spent("a") == pytest.approx(count * SMALL_COST)


def test_the_larger_of_two_limits_is_reserved() -> None:
    """An endpoint that knows one of the limits gets that one alone, so a small other one saves no budget."""
    model = make_plan("http://a/v1", "http://b/v1").models["large"]
    costs = [worst_cost(model, ask(**limits)) for limits in ({"max_tokens": 900}, {"max_completion_tokens": 900})]
    assert worst_cost(model, ask(max_tokens=900, max_completion_tokens=1)) == costs[0] == costs[1]


def test_a_settled_reservation_is_never_that_of_another_request(tmp_path: Path) -> None:
    """A second call for a settled request leaves what was set aside since then for others."""
    with serve_gateway(tmp_path, keys=(ClientKey(name="web", key="k", budget_usd=1.0),)) as gateway:
        state = gateway.app.router.state
        first = state.reserve("web", 0.1, 1.0)
        assert first is not None
        state.settle(first, 0.01)
        second = state.reserve("web", 0.5, 1.0)
        assert second is not None
        state.settle(first, 0.01)
        assert state.reserve("web", 0.6, 1.0) is None
        state.settle(second, 0.2)
        assert state.spent("web") == pytest.approx(0.21)


def test_a_request_is_settled_once_and_before_its_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a client has its answer, the gateway writes nothing more for the request."""
    with serve_gateway(tmp_path, keys=(ClientKey(name="web", key="k", budget_usd=1.0),)) as gateway:
        state, settled = gateway.app.router.state, []
        monkeypatch.setattr(state, "settle", lambda *charge: settled.append(charge))
        for is_streamed in (False, True):
            if is_streamed:
                gateway.events(ask(), authorization="Bearer k")
            else:
                gateway.post(ask(), authorization="Bearer k")
            time.sleep(0.1)
            assert len(settled) == 1 + is_streamed


def test_a_full_disk_stops_spending_and_loses_no_charge(tmp_path: Path) -> None:
    """Without room a request with a key gets 503; one under way is answered and charged once there is room."""
    key = ClientKey(name="web", key="k", budget_usd=1.0)
    with serve_gateway(tmp_path, keys=(key,), promise=None) as gateway:
        state = gateway.app.router.state
        assert gateway.post(ask(), authorization="Bearer k")[0] == 200
        spent = state.spent("web")
        held = state.reserve("web", 0.5, 1.0)
        assert held is not None
        state._db.execute("CREATE TEMP TRIGGER full BEFORE UPDATE ON spending BEGIN SELECT RAISE(ABORT, 'full'); END")
        status, head, data = gateway.post(ask(), authorization="Bearer k")
        assert (status, head["retry-after"], json.loads(data)["error"]["code"]) == (503, "5", "unavailable")
        state.settle(held, 0.25)
        state.settle(held, 0.25)
        assert state.spent("web") == spent
        state._db.execute("DROP TRIGGER full")
        assert gateway.post(ask(), authorization="Bearer k")[0] == 200
        assert state.spent("web") == pytest.approx(0.25 + 2 * SMALL_COST)


def test_no_text_of_prompts_or_answers_is_stored_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither files, logs, metrics nor streams of the process hold the prompt, the answer or a key."""
    secrets = ("zebra-prompt", "giraffe-answer", "super-key")
    keys = (ClientKey(name="a", key="super-key", budget_usd=1.0),)
    with (
        caplog.at_level(logging.DEBUG),
        serve_gateway(tmp_path, always(text=secrets[1]), keys=keys, audit_share=1.0) as gateway,
    ):
        gateway.post(ask(secrets[0]), authorization="Bearer super-key", idempotency_key="x")
        gateway.post(b'{"zebra-prompt', authorization="Bearer super-key")
        time.sleep(0.3)
        import urllib.request

        metrics = urllib.request.urlopen(f"{gateway.url}/metrics", timeout=5).read().decode()
        assert "unfold_gateway_requests_total" in metrics
        assert not any(secret in repr(gateway.app.plan) for secret in secrets)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    out = capfd.readouterr()
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret not in caplog.text + metrics + out.out + out.err


def test_bodies_and_answers_are_bounded(tmp_path: Path) -> None:
    """A body above the limit is rejected unread; an endless answer is cut and the next model called."""
    limits = UpstreamLimits(connect_s=1, first_token_s=2, between_tokens_s=1, total_s=6, retries=0, answer_bytes=4096)
    with serve_gateway(tmp_path, always(text="x" * 10_000), body_bytes=2048, limits=limits) as gateway:
        assert gateway.post(ask("y" * 4000))[0] == 413
        assert gateway.post(ask())[1]["x-unfold-model"] == "large"
        assert gateway.events(ask())[0]["x-unfold-model"] == "large"
    with serve_gateway(tmp_path / "b", always(text="x" * 10_000), limits=replace(limits, retries=2)) as gateway:
        # another attempt would be as long, and is billed too
        assert gateway.post(ask())[1]["x-unfold-calls"] == "2"


def test_a_line_without_an_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    """A stream which never ends its line is dropped once it is too long, long before the upstream has sent it."""
    limits = UpstreamLimits(connect_s=1, first_token_s=5, between_tokens_s=5, total_s=20, retries=0, answer_bytes=4096)
    with serve_gateway(tmp_path, always(raw=b"data: " + b"x" * (64 << 20)), limits=limits) as gateway:
        assert gateway.events(ask())[0]["x-unfold-route"] == "small:broken,large"
        end = time.monotonic() + 5
        while not gateway.small.hang_ups and time.monotonic() < end:
            time.sleep(0.02)
        assert (gateway.small.hang_ups, gateway.small.completed) == (1, 0)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_end_at_line_ends_alone(tmp_path: Path, end: str) -> None:
    """JSON strings may hold U+2028 and U+0085 unescaped, which other line readers take for ends."""
    delta = {"content": "a\u2028b\u0085c"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "logprobs": {"content": [{"token": "a", "logprob": -0.1}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    lines = [*(f"data: {json.dumps(chunk, ensure_ascii=False)}" for chunk in chunks), "data: [DONE]"]
    raw = "".join(f"{line}{end}{end}" for line in lines).encode()
    with serve_gateway(tmp_path, always(raw=raw)) as gateway:
        head, events = gateway.events(ask())
        assert head["x-unfold-model"] == "small"
        assert events[0]["choices"][0]["delta"] == delta


def test_http2_is_offered_by_host() -> None:
    """A host is not offered HTTP/2 if its model does not want it, or without TLS; the others are."""
    models = [
        ServedModel(name=name, url=url, upstream_model="m", http2=http2)
        for name, url, http2 in (
            ("a", "https://a.example/v1", True),
            ("b", "https://b.example:8443/v1", False),
            ("c", "http://c.example/v1", True),
        )
    ]
    client = build_client(models, httpx.Limits())
    urls = [httpx.URL(f"{model.url}/x") for model in models] + [httpx.URL("https://b.example/v1/x")]
    offers = [not isinstance(client._transport_for_url(url), Http1Transport) for url in urls]
    assert offers == [True, False, False, True]


@pytest.mark.parametrize(
    ("answer", "route"),
    [
        ({"logprob": 0.5}, "small:none<0.50,large"),
        ({"finish": ["stop"]}, "small:unfinished,large"),
        ({"finish": "stop\r\nx-evil: 1"}, "small:unfinished,large"),
        ({"logprob": 10**400}, "small:none<0.50,large"),
        ({"usage": {"prompt_tokens": 10**400, "completion_tokens": float("inf")}}, "small:0.71>=0.50"),
    ],
)
def test_strange_values_of_an_upstream_are_no_fault_of_the_gateway(
    tmp_path: Path, answer: dict[str, Any], route: str
) -> None:
    """JSON of the wrong type or range is not trusted, and reaches neither headers nor budgets."""
    with serve_gateway(tmp_path, always(text="a", **answer)) as gateway:
        status, head, _ = gateway.post(ask())
        assert (status, head["x-unfold-route"]) == (200, route)
        assert "x-evil" not in head
        assert float(head["x-unfold-cost-usd"]) < 1.0


def test_schemas_of_a_client_may_be_any_json() -> None:
    """A schema that is none restricts nothing, and raises nothing."""
    assert matches_schema({"a": 1}, {"type": [["object"]], "required": [["a"], {}], "properties": {"a": 3}})
    assert not matches_schema({"a": 1}, {"required": ["b", []]})


def test_requests_cannot_choose_the_upstream(tmp_path: Path) -> None:
    """No field or header of a client reaches another address, and the client's key never reaches an upstream."""
    with serve_gateway(tmp_path) as gateway:
        body = ask(base_url="http://169.254.169.254", api_base="http://x", extra_headers={"a": "b"})
        assert gateway.post(body, host="evil.example", authorization="Bearer client-key")[0] == 200
        assert "authorization" not in gateway.small.headers[0]
        assert gateway.small.headers[0]["host"] == urlparse(gateway.small.url).netloc


def _wait_for_promise(gateway: Gateway, promise: str) -> None:
    end = time.monotonic() + 20
    while gateway.post(ask())[1]["x-unfold-promise"] != promise:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_audit_revokes_the_promise_for_good(tmp_path: Path) -> None:
    """Where cheap answers differ from the reference, traffic moves to it, and a restart does not forget that."""
    with serve_gateway(tmp_path, audit_share=1.0) as gateway:
        _wait_for_promise(gateway, "revoked")
        assert gateway.post(ask())[1]["x-unfold-model"] == "large"
    with serve_gateway(tmp_path, audit_share=0.0) as gateway:
        assert gateway.post(ask())[1]["x-unfold-promise"] == "revoked"
        assert gateway.post(ask())[1]["x-unfold-model"] == "large"


def test_labels_are_counted_once_and_only_for_drawn_requests(tmp_path: Path) -> None:
    """With labels, a client reports which answers were right; a repeated report changes nothing."""
    promise = Promise(max_loss=0.02, confidence=0.95, audit_limit=0.02)
    with serve_gateway(tmp_path, audit_share=1.0, audits_labels=True, promise=promise) as gateway:
        head = gateway.post(ask())[1]
        label = {"request_id": head["x-unfold-request-id"], "is_correct": False, "reference_is_correct": True}
        for _ in range(3):
            assert json.loads(gateway.post(label, path="/v1/audit")[2])["counted"]
        assert gateway.app.router.state.audit().audits == 1
        for wrong in (3, "\ud800", "a\0", "a" * 5000):
            assert gateway.post({**label, "request_id": wrong}, path="/v1/audit")[0] == 400


@pytest.mark.parametrize("change", [{"model": "s-2"}, {"fingerprint": "fp_2\n2026-01-01 ERROR forged"}])
def test_a_changed_model_or_fingerprint_voids_the_promise_at_once(tmp_path: Path, change: dict[str, str]) -> None:
    """The next request goes to the reference, also after a restart."""

    def small(_request: dict[str, Any], number: int) -> dict[str, Any]:
        return {"text": "cheap answer", **({} if number == 0 else change)}

    with serve_gateway(tmp_path, small) as gateway:
        assert gateway.post(ask())[1]["x-unfold-promise"] == "2pt@95"
        gateway.post(ask())
        head = gateway.post(ask())[1]
        assert (head["x-unfold-promise"], head["x-unfold-model"]) == ("void", "large")
    with serve_gateway(tmp_path) as gateway:
        pass  # other ports, but the same plan
    assert gateway.app.router.state.void_reason.isprintable()
    assert gateway.app.router.state.void_reason


@pytest.mark.parametrize(
    "later", [{"fingerprint": None}, {"fingerprint": ""}, {"model": ""}, {"model": "", "fingerprint": ""}]
)
@pytest.mark.parametrize("first", [False, True])
def test_an_identity_that_is_left_out_is_no_change(tmp_path: Path, later: dict[str, Any], first: bool) -> None:
    """Upstreams leave the fingerprint out of some answers; nothing has changed by that."""

    def small(_request: dict[str, Any], number: int) -> dict[str, Any]:
        return {"text": "cheap answer", **(later if (number % 2 == 1) is not first else {})}

    with serve_gateway(tmp_path, small) as gateway:
        promises = [gateway.post(ask())[1]["x-unfold-promise"] for _ in range(5)]
        assert promises == ["2pt@95"] * 5


def test_sticky_conversations_stay_with_the_model_of_the_first_turn(tmp_path: Path) -> None:
    """The gate decides the first turn; later turns go to its model without a gate."""

    def small(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"text": "cheap answer", "logprob": -0.1 if len(request["messages"]) == 1 else -3.0}

    with serve_gateway(tmp_path, small, sticky=True) as gateway:
        assert gateway.post(ask())[1]["x-unfold-model"] == "small"
        turns = [
            *ask()["messages"],
            {"role": "assistant", "content": "cheap answer"},
            {"role": "user", "content": "more"},
        ]
        head = gateway.post({"model": "auto", "messages": turns})[1]
        assert head["x-unfold-route"] == "small"


def test_requests_under_faults_are_neither_lost_nor_billed_twice(tmp_path: Path) -> None:
    """Every client gets one whole answer, and the key is charged for each upstream answer once."""

    def faulty(_request: dict[str, Any], number: int) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {},
            {"status": 429},
            {"cut": 1},
            {"logprob": None},
            {"usage": None},
            {"broken": True},
        ]
        return {"text": "cheap answer", **kinds[number % len(kinds)]}

    keys = (ClientKey(name="a", key="k"),)
    limits = UpstreamLimits(connect_s=5, first_token_s=10, between_tokens_s=5, total_s=30, retries=0)
    with serve_gateway(tmp_path, faulty, keys=keys, limits=limits) as gateway:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: gateway.post(ask(), authorization="Bearer k"), range(200)))
        assert {result[0] for result in results} == {200}
        total = sum(float(result[1]["x-unfold-cost-usd"]) for result in results)
        assert gateway.app.router.state.spent("a") == pytest.approx(total)
        large = sum(result[1]["x-unfold-model"] == "large" for result in results)
        assert len(gateway.large.requests) == large


def test_clients_over_the_limit_of_time_get_an_answer_in_asyncio(tmp_path: Path) -> None:
    """The asynchronous client sends 40 requests at once, and each has its own answer."""

    def echo(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"text": request["messages"][0]["content"]}

    async def send(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
            calls = (client.chat.completions.create(**ask(f"q{k}")) for k in range(40))
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    with serve_gateway(tmp_path, echo, limits=QUICK) as gateway:
        assert asyncio.run(send(gateway.url)) == [f"q{k}" for k in range(40)]
