"""The edges of the gateway's contract, over real sockets: what clients, proxies and providers do in the field."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always, serve_upstream
from plugins.cascade.tests.language_models.served_gateway import (
    CALLS,
    LARGE_COST,
    LARGE_PRICE,
    SMALL_COST,
    SMALL_PRICE,
    Gateway,
    ask,
    make_plan,
    serve_gateway,
)
from unfold_cascade.language_models.gateway import app as gateway_app
from unfold_cascade.language_models.gateway import idempotency
from unfold_cascade.language_models.gateway.dashboard import build_dashboard
from unfold_cascade.language_models.gateway.plan import ClientKey, UpstreamLimits
from unfold_cascade.language_models.gateway.router import Trace
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.planning.prompt_features import list_scripts

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.timed

UNSURE = always(text="cheap answer", logprob=-2.0)
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": WEATHER}


def _call(city: str, number: int) -> dict[str, Any]:
    arguments = json.dumps({"city": city})
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def _get(gateway: Gateway, path: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(gateway.url + path, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status, response.read()


def _open(gateway: Gateway, body: bytes, *headers: str) -> socket.socket:
    """Send a request on a connection of its own and return the connection."""
    place = urlparse(gateway.url)
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers)
    client = socket.create_connection((place.hostname or "", place.port or 0))
    client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return client


def _wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_health_and_models_have_both_prefixes(tmp_path: Path) -> None:
    """Probes may use HEAD; the list of models is there with and without /v1."""
    with serve_gateway(tmp_path) as gateway:
        for path in ("/health", "/v1/health"):
            assert json.loads(_get(gateway, path)[1]) == {"status": "ok", "promise": "2pt@95"}
            assert _get(gateway, path, "HEAD")[0] == 200
        assert _get(gateway, "/models") == _get(gateway, "/v1/models")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (ask(n=0), {}, 400),
        ({**ask(), "model": "none"}, {}, 404),
        (ask("x" * 5000), {}, 413),
        (ask(), {"authorization": "Bearer wrong"}, 401),
        (ask(max_tokens=10_000_000), {}, 429),
    ],
)
def test_every_error_names_the_request_the_plan_and_the_promise(
    tmp_path: Path, body: Any, headers: dict[str, str], status: int
) -> None:
    """Whatever is wrong, the client can quote the id, and the body has OpenAI's form."""
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    with serve_gateway(tmp_path, keys=keys, body_bytes=4096) as gateway:
        code, head, data = gateway.post(body, **{"authorization": "Bearer k", **headers})
        assert code == status
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}
        assert head["x-unfold-request-id"].startswith("unfold-")
        assert head["x-unfold-plan"] == "abc123"
        assert (head["x-unfold-calls"], float(head["x-unfold-cost-usd"])) == ("0", 0.0)


def test_an_error_of_the_request_keeps_its_type_param_and_code(tmp_path: Path) -> None:
    """A 400 of the upstream reaches the client with all four fields."""
    error = {"message": "no such voice", "type": "invalid_request_error", "param": "voice", "code": "bad_voice"}
    with serve_gateway(tmp_path, always(status=400, error={"error": error})) as gateway:
        assert json.loads(gateway.post(ask())[2])["error"] == error


def test_the_cheap_model_is_called_as_the_client_called(tmp_path: Path) -> None:
    """A stream is a stream upstream too; the gate adds log-probabilities and the usage, and removes them again."""
    with serve_gateway(tmp_path) as gateway:
        gateway.events(ask(temperature=0.3))
        request = gateway.small.requests[0]
        assert (request["stream"], request["logprobs"], request["temperature"]) == (True, True, 0.3)
        assert request["stream_options"] == {"include_usage": True}
        raw = gateway.post(ask(logprobs=True))[2]
        assert json.loads(raw)["choices"][0]["logprobs"]["content"]


def test_log_probabilities_are_those_of_the_model_that_answers(tmp_path: Path) -> None:
    """After an escalation a client that requested them gets those of the last model."""
    with serve_gateway(tmp_path, UNSURE, always(text="dear", logprob=-0.5)) as gateway:
        body = json.loads(gateway.post(ask(logprobs=True))[2])
        assert [token["logprob"] for token in body["choices"][0]["logprobs"]["content"]] == [-0.5]


def test_streams_keep_the_connections_to_upstreams(tmp_path: Path) -> None:
    """Ten streams in turn use one connection to each model."""
    with serve_gateway(tmp_path, always(text="a b", logprob=-2.0, keeps=True), always(text="c", keeps=True)) as gateway:
        for _ in range(10):
            assert gateway.events(ask())[1][-1] == "data: [DONE]"
        assert (len(gateway.small.connections), len(gateway.large.connections)) == (1, 1)


@pytest.mark.slow
def test_comments_keep_a_waiting_stream_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the gate waits, SSE comments flow; the official client skips them, and a late failure is an error event."""
    monkeypatch.setattr(gateway_app, "KEEP_ALIVE_S", 0.1)
    with serve_gateway(tmp_path, always(text="late answer", delay=0.5)) as gateway:
        head, events = gateway.events(ask())
        assert head["x-unfold-model"] == "pending"
        assert events[0] == ": waiting"
        assert events[-1] == "data: [DONE]"
        assert "x-unfold-model=small" in events[-2]
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        chunks = list(client.chat.completions.create(**ask(), stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).split() == ["late", "answer"]
    slow = always(status=500, delay=0.4)
    with serve_gateway(tmp_path / "b", slow, slow) as gateway:
        _, events = gateway.events(ask())
        assert "error" in events[-1]
        assert "data: [DONE]" not in events


def test_parallel_tool_calls_in_a_stream_are_replayed_whole(tmp_path: Path) -> None:
    """Arguments that come in pieces are judged as one, and reach the client unchanged."""
    calls = [_call("Rome", 1), _call("São Paulo", 2)]
    with serve_gateway(tmp_path, always(tool_calls=calls)) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        raw = client.chat.completions.with_raw_response.create(**ask(tools=[TOOL]), stream=True)
        arguments = {0: "", 1: ""}
        for chunk in raw.parse():
            for delta in chunk.choices[0].delta.tool_calls or []:
                arguments[delta.index] += delta.function.arguments
        assert [json.loads(text)["city"] for text in arguments.values()] == ["Rome", "São Paulo"]
        assert raw.headers["x-unfold-model"] == "small"
        assert gateway.events(ask())[0]["x-unfold-route"] == "small:tool,large"


@pytest.mark.parametrize("stream", [False, True])
def test_the_least_sure_choice_decides(tmp_path: Path, stream: bool) -> None:
    """Two sure choices of three are not enough."""
    with serve_gateway(tmp_path, always(text="a", logprob=[-0.1, -2.0, -0.1])) as gateway:
        head = gateway.events(ask(n=3))[0] if stream else gateway.post(ask(n=3))[1]
        assert head["x-unfold-route"] == "small:0.27<0.50,large"
        head = gateway.events(ask(n=1))[0] if stream else gateway.post(ask(n=1))[1]
        assert head["x-unfold-model"] == "small"


@pytest.mark.parametrize(("trusts", "model"), [(True, "small"), (False, "large")])
def test_a_filtered_answer_is_trusted_by_setting(tmp_path: Path, trusts: bool, model: str) -> None:
    """``content_filter`` is the provider's verdict on the request; whether it ends the chain is a setting."""
    with serve_gateway(tmp_path, always(finish="content_filter"), trusts_filtered=trusts) as gateway:
        assert gateway.post(ask())[1]["x-unfold-model"] == model


def test_missing_log_probabilities_are_counted(tmp_path: Path) -> None:
    """Metrics show by model how many answers could not be judged."""
    with serve_gateway(tmp_path, always(text="a", logprob=None)) as gateway:
        assert gateway.post(ask())[1]["x-unfold-model"] == "large"
        text = _get(gateway, "/metrics")[1].decode()
        assert 'unfold_gateway_missing_confidences_total{model="small"} 1.0' in text


def test_a_chunk_without_choices_may_say_null(tmp_path: Path) -> None:
    """A chunk with ``choices: null`` adds nothing, as one with an empty list does."""
    logprobs = {"content": [{"token": "yes", "logprob": -0.05}]}
    choice = {"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop", "logprobs": logprobs}
    chunks: list[dict[str, Any]] = [{"choices": None}, {"choices": [choice]}, {"choices": None, "usage": {}}]
    raw = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    with serve_gateway(tmp_path, always(raw=raw + b"data: [DONE]\n\n")) as gateway:
        head, _ = gateway.events(ask())
        assert head["x-unfold-model"] == "small"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 1e30, "completion_tokens": -5}, {"prompt_tokens": 0}])
def test_a_missing_usage_is_estimated_and_never_free(tmp_path: Path, stream: bool, usage: Any) -> None:
    """The key is charged by the length of prompt and answer, and the call is counted as unpriced."""
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    with serve_gateway(tmp_path, always(text="word " * 40, usage=usage), keys=keys) as gateway:
        body = {**ask("y" * 400), "stream": stream}
        assert gateway.post(body, authorization="Bearer k")[0] == 200
        assert gateway.app.router.state.spent("a") == pytest.approx(100e-6 + 50 * 2e-6, rel=0.2)
        assert "unfold_gateway_unpriced_calls_total 1.0" in _get(gateway, "/metrics")[1].decode()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_charged_where_a_stream_breaks_off(tmp_path: Path, name: str) -> None:
    """Thoughts are billed as output, though no usage arrived; the same thoughts under two names count once."""
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    delta = {name: "think " * 2000, "reasoning": "think " * 2000}
    raw = b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
    with serve_gateway(tmp_path, large=always(raw=raw), keys=keys) as gateway:
        gateway.post({**ask(), "model": "large", "stream": True}, authorization="Bearer k")
        assert gateway.app.router.state.spent("a") == pytest.approx(3000 * LARGE_PRICE.output, rel=0.05)


@pytest.mark.parametrize("url", ["data:image/png;base64," + "A" * 900_000, "https://host/picture.png"])
def test_an_image_is_priced_by_its_tokens(tmp_path: Path, url: str) -> None:
    """A photograph fits a small budget, and costs as an image where no usage is reported."""
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    parts = [{"type": "text", "text": "y" * 400}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "large", "messages": [{"role": "user", "content": parts}], "tools": [{"x": "z" * 4000}]}
    with serve_gateway(tmp_path, large=always(text="word " * 40, usage=None), keys=keys) as gateway:
        assert gateway.app.router.worst_cost(body, ("large",), Trace("")) > 48_000 * LARGE_PRICE.input
        assert gateway.post(body, authorization="Bearer k")[0] == 200
        assert gateway.app.router.state.spent("a") == pytest.approx((100 + 1600 + 1000) * 1e-5 + 50 * 2e-5, rel=0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_without_an_answer_costs_its_input(tmp_path: Path, stream: bool) -> None:
    """An upstream that was sent the request charges for it, though its answer got lost."""
    limits = UpstreamLimits(connect_s=1, first_token_s=9, between_tokens_s=5, total_s=20, retries=0)
    keys = (ClientKey(name="a", key="k", budget_usd=1.0),)
    with serve_gateway(tmp_path, always(broken=True), limits=limits, keys=keys) as gateway:
        _, head, _ = gateway.post({**ask("y" * 4000), "stream": stream}, authorization="Bearer k")
        assert head["x-unfold-route"] == "small:broken,large"
        spent = gateway.app.router.state.spent("a")
        assert spent == pytest.approx(LARGE_COST + 1000 * SMALL_PRICE.input, rel=0.05)


def test_an_upstream_that_is_down_is_skipped(tmp_path: Path) -> None:
    """A refused connection is retried, then the next model answers; nothing is billed for it."""
    with serve_gateway(tmp_path) as gateway:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        model = gateway.app.plan.models["small"]
        object.__setattr__(model, "url", f"http://127.0.0.1:{port}/v1")
        _, head, _ = gateway.post(ask())
        assert head["x-unfold-route"] == "small:busy,large"
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(LARGE_COST)


@pytest.mark.parametrize("stream", [False, True])
def test_a_first_token_that_comes_too_late_leads_to_the_next_model(tmp_path: Path, stream: bool) -> None:
    """The time to the first token has a limit of its own."""
    limits = UpstreamLimits(connect_s=1, first_token_s=0.3, between_tokens_s=5, total_s=20, retries=0)
    with serve_gateway(tmp_path, always(delay=2.0), limits=limits) as gateway:
        head = gateway.events(ask())[0] if stream else gateway.post(ask())[1]
        assert head["x-unfold-route"] == "small:busy,large"


def test_a_hang_up_before_the_decision_stops_the_chain(tmp_path: Path) -> None:
    """The client leaves while the cheap model works: its call is cancelled, and the expensive one is never called."""
    with serve_gateway(tmp_path, always(text=" ".join(["w"] * 200), pace=0.05, logprob=-2.0)) as gateway:
        with _open(gateway, json.dumps(ask(stream=True)).encode()):
            _wait_for(lambda: gateway.small.requests)
            time.sleep(0.2)
        _wait_for(lambda: gateway.small.hang_ups)
        time.sleep(0.2)
        assert not gateway.large.requests


def test_a_stall_after_the_decision_ends_with_an_error(tmp_path: Path) -> None:
    """The official client raises; it does not take the part for a whole answer."""
    with serve_gateway(tmp_path, UNSURE, always(text="one two three four", stall=5.0)) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.APIError, match="stalled"):
            list(client.chat.completions.create(**ask(), stream=True))


def test_a_repeat_of_an_abandoned_request_is_answered(tmp_path: Path) -> None:
    """The first client hangs up while the second waits for its reply: the second is answered by a call of its own."""
    with serve_gateway(tmp_path, always(text="cheap answer", delay=0.6)) as gateway:
        body = json.dumps(ask()).encode()
        with ThreadPoolExecutor(1) as pool, _open(gateway, body, "idempotency-key: a") as first:
            _wait_for(lambda: gateway.small.requests)
            second = pool.submit(gateway.post, body, idempotency_key="a")
            time.sleep(0.2)
            first.close()
            assert second.result(10)[0] == 200
        assert len(gateway.small.requests) == 2


def test_a_failure_is_not_replayed(tmp_path: Path) -> None:
    """A repeat after an error is a new request."""

    def once(_request: dict[str, Any], number: int) -> dict[str, Any]:
        return {"status": 400} if number == 0 else {"text": "ok"}

    with serve_gateway(tmp_path, once) as gateway:
        assert [gateway.post(ask(), idempotency_key="a")[0] for _ in "ab"] == [400, 200]


def test_keys_of_two_clients_do_not_meet(tmp_path: Path) -> None:
    """The same idempotency key of another client is another request."""
    keys = (ClientKey(name="a", key="k"), ClientKey(name="b", key="l"))
    with serve_gateway(tmp_path, keys=keys) as gateway:
        for key in "kl":
            assert gateway.post(ask(), idempotency_key="same", authorization=f"Bearer {key}")[0] == 200
        assert len(gateway.small.requests) == 2


def test_stored_replies_are_bounded_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest reply is forgotten first, so its repeat is a new request; the newest is replayed."""
    monkeypatch.setattr(idempotency, "MAX_BYTES", 5_000)
    with serve_gateway(tmp_path) as gateway:
        for k in range(8):
            gateway.post(ask(), idempotency_key=str(k))
        assert gateway.app.replies.size <= 5_000
        assert "x-unfold-replayed" in gateway.post(ask(), idempotency_key="7")[1]
        assert "x-unfold-replayed" not in gateway.post(ask(), idempotency_key="0")[1]


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_requests_of_one_key_never_overdraw_it(tmp_path: Path, stream: bool) -> None:
    """50 at once with a budget for 10, some of them given up by the client: spent and reserved stay within it."""
    budget = 10 * (SMALL_COST + LARGE_COST)
    keys = (ClientKey(name="a", key="k", budget_usd=budget),)
    changes: dict[str, Any] = {"keys": keys, "largest_cost_usd": SMALL_COST + LARGE_COST}
    with serve_gateway(tmp_path, always(text="a", logprob=-2.0, delay=0.2), **changes) as gateway:
        body = json.dumps({**ask(max_tokens=10), "stream": stream}).encode()

        def send(k: int) -> int:
            if k % 5 == 0:
                with _open(gateway, body, "authorization: Bearer k"):
                    time.sleep(0.1)
                return 0
            return gateway.post(body, authorization="Bearer k")[0]

        with ThreadPoolExecutor(50) as pool:
            statuses = list(pool.map(send, range(50)))
        assert set(statuses) <= {0, 200, 429}
        state = gateway.app.router.state
        _wait_for(lambda: not state._db.execute("SELECT * FROM reservation").fetchall())
        assert 0.0 < state.spent("a") <= budget


def test_characters_split_over_writes_arrive_whole(tmp_path: Path) -> None:
    """The upstream sends byte by byte: neither a character nor an event is torn."""
    text = "naïve — 日本語 🌍"
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": {"content": [{"logprob": -0.1}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    lines = [*(f"data:{json.dumps(chunk, ensure_ascii=False)}" for chunk in chunks), "data: [DONE]"]
    raw = "".join(f": comment\r\nevent: x\r\n{line}\r\n\r\n" for line in lines).encode()
    for number, large in enumerate((None, always(raw=raw, raw_size=1))):
        small = UNSURE if large else always(raw=raw, raw_size=1)
        with serve_gateway(tmp_path / str(number), small, large) as gateway:
            events = gateway.events(ask())[1]
            assert events[0]["choices"][0]["delta"]["content"] == text
            assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("2 + 2 = ?", set()),
        ("naïve café", {"LATIN"}),
        ("Что такое HTTP?", {"CYRILLIC", "LATIN"}),
        ("Explain the word Ω in this sentence.", {"LATIN"}),
        ("これは日本語です", {"HIRAGANA", "CJK"}),
        ("\uff21\uff22\uff23", {"LATIN"}),
    ],
)
def test_scripts_of_a_text(text: str, scripts: set[str]) -> None:
    """A name or a symbol of another script does not count."""
    assert list_scripts(text) == scripts


def test_prompts_in_a_script_that_the_log_lacks_are_unpromised(tmp_path: Path) -> None:
    """They go to the reference; a single foreign word does not matter, and a plan without scripts covers all."""
    scripts = frozenset({"LATIN", "CYRILLIC"})
    with serve_gateway(tmp_path, scripts=scripts) as gateway:
        for text, promise in (
            ("Какая столица Франции?", "2pt@95"),
            ("フランスの首都は", "unpromised"),
            ("1+1", "2pt@95"),
        ):
            head = gateway.post(ask(text))[1]
            assert head["x-unfold-promise"] == promise
            assert head["x-unfold-model"] == ("large" if promise == "unpromised" else "small")
    with serve_gateway(tmp_path / "b") as gateway:
        assert gateway.post(ask("フランスの首都は"))[1]["x-unfold-model"] == "small"


def test_the_live_page_shows_promise_models_money_and_keys(tmp_path: Path) -> None:
    """Its figures are those of the metrics and the budgets; it holds neither texts nor keys."""
    keys = (ClientKey(name="web", key="super-key", budget_usd=1.0),)

    def small(request: dict[str, Any], number: int) -> dict[str, Any]:
        return {"text": "giraffe", "logprob": [-0.1, -2.0, None][number]}

    with serve_gateway(tmp_path, small, keys=keys) as gateway:
        read = build_dashboard(gateway.app.plan, gateway.app.router.state, gateway.app.metrics)
        before = read()
        for _ in range(3):
            gateway.post(ask("zebra"), authorization="Bearer super-key")
        # a request is counted once its answer is sent, its time last
        limit = time.monotonic() + 5.0
        while sum(read().spreads[0].counts) < 3:
            assert time.monotonic() < limit
            time.sleep(0.01)
        page = read()
        tiles = {tile.label: tile for tile in page.tiles}
        assert (before.shares[0].values, page.shares[0].values) == ({}, {"small": 1.0, "large": 2.0})
        assert (tiles["promise"].value, tiles["requests"].value, tiles["requests"].note) == (
            "2pt@95",
            "3",
            "5 upstream calls",
        )
        assert (tiles["missing confidences"].value, tiles["failed"].ok) == ("1", True)
        assert sum(page.spreads[0].counts) == 3
        assert page.grids[0].rows == (("web", f"{3 * SMALL_COST + 2 * LARGE_COST:.4f}", "1.00"),)
        assert not any(text in repr(page) for text in ("zebra", "giraffe", "super-key"))
        gateway.app.router.state.is_revoked = True
        assert (read().tiles[0].value, read().tiles[0].ok) == ("revoked", False)


@pytest.mark.parametrize(
    ("answer", "outcome"), [({}, "complete"), ({"logprob": None}, "failed"), ({"status": 500}, "complete")]
)
def test_a_model_without_log_probabilities_is_not_served(tmp_path: Path, answer: dict[str, Any], outcome: str) -> None:
    """The start fails with a message that names the model; one that is down at the start may come up later."""
    sent: list[dict[str, Any]] = []

    async def start(url: str) -> None:
        app = build_app(make_plan(url, url, is_probed=True), tmp_path, logging.getLogger("unfold.test"))

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        await app({"type": "lifespan"}, receive, send)

    with serve_upstream(always(text="a", **answer)) as upstream:
        asyncio.run(start(upstream.url))
        assert sent[0]["type"] == f"lifespan.startup.{outcome}"
        assert outcome == "complete" or "small returns no log-probabilities" in str(sent[0]["error"])
        assert {request["model"] for request in upstream.requests} == {"s-1"}


NEW_NAME = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
OLD_NAME = [
    {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "error"),
    [
        ("stream_options", {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        ("max_tokens", {"error": {"message": NEW_NAME, "param": "max_tokens", "code": "unsupported_parameter"}}),
        ("max_completion_tokens", {"detail": OLD_NAME}),
    ],
)
def test_a_field_that_an_endpoint_does_not_know_is_left_out(
    tmp_path: Path, field: str, error: dict[str, Any], stream: bool
) -> None:
    """The next request is written as the endpoint takes it; a limit of the output keeps its value."""
    given = {} if field == "stream_options" else {field: 7}

    def picky(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"status": 422, "error": error} if field in request else {"text": "dear answer"}

    with serve_gateway(tmp_path, large=picky) as gateway:
        body = {**ask(**given), "model": "large"}
        for _ in range(2):
            head = gateway.events(body)[0] if stream else gateway.post(body)[1]
            assert head["x-unfold-model"] == "large"
        assert len(gateway.large.requests) == (2 if field == "stream_options" and not stream else 3)
        limits = {name: value for name, value in gateway.large.requests[-1].items() if name.startswith("max_")}
        assert list(limits.values()) == list(given.values())
        assert field not in gateway.large.requests[-1]


def test_a_header_names_what_an_endpoint_does_not_take(tmp_path: Path) -> None:
    """Reasoning models have no temperature; a value that is too high stays the mistake of the client."""
    message = (
        "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) is supported."
    )

    def reasoning(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"status": 400, "error": {"error": {"message": message}}} if "temperature" in request else {}

    with serve_gateway(tmp_path, UNSURE, reasoning) as gateway:
        for _ in range(2):
            status, head, _ = gateway.post(ask(temperature=0.2))
            assert (status, head["x-unfold-model"], head["x-unfold-left-out"]) == (200, "large", "temperature")
        assert gateway.events(ask(temperature=0.2))[0]["x-unfold-left-out"] == "temperature"
        assert "x-unfold-left-out" not in gateway.post(ask())[1]
        assert len(gateway.large.requests) == 5


def test_a_field_is_never_left_out_for_ever(tmp_path: Path) -> None:
    """An endpoint that refuses both names of a limit is called twice, and its error is returned."""

    def refuse(request: dict[str, Any], _number: int) -> dict[str, Any]:
        (name,) = (name for name in request if name.startswith("max_"))
        return {"status": 400, "error": {"error": {"message": f"unknown field {name}"}}}

    with serve_gateway(tmp_path, large=refuse) as gateway:
        status, _, data = gateway.post({**ask(max_tokens=7), "model": "large"})
        assert (status, len(gateway.large.requests)) == (400, 2)
        assert "unknown field" in json.loads(data)["error"]["message"]


def test_log_probabilities_that_an_endpoint_refuses_in_its_own_words_lead_to_the_next_model(tmp_path: Path) -> None:
    """Mistral's servers name the field in a list of details."""
    error = {"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "Extra inputs"}]}
    with serve_gateway(tmp_path, always(status=422, error=error)) as gateway:
        status, head, _ = gateway.post(ask())
        assert (status, head["x-unfold-route"]) == (200, "small:client,large")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"object": "error", "message": "too hot", "type": "invalid_request_error"}, "too hot"),
        ({"detail": "too hot"}, "too hot"),
        ({"error": "too hot"}, "too hot"),
        ({"detail": [{"loc": ["body", "temperature"], "msg": "too hot"}]}, "body.temperature: too hot"),
        ([], "the upstream answered with status 400"),
        ([{"error": {"code": 400, "message": "too hot", "status": "INVALID_ARGUMENT"}}], "too hot"),
    ],
)
def test_messages_of_other_servers_reach_the_client(tmp_path: Path, body: Any, message: str) -> None:
    """Errors of FastAPI, Gemini, Mistral and vLLM have other forms than OpenAI's."""
    with serve_gateway(tmp_path, always(status=400, error=body)) as gateway:
        assert json.loads(gateway.post(ask())[2])["error"]["message"] == message


@pytest.mark.parametrize(
    ("answer", "route"),
    [
        ({"status": 429, "error": {"error": {"message": "pay", "code": "insufficient_quota"}}}, "small:refused,large"),
        ({"status": 200, "error": {"error": {"message": "busy", "code": 429}}}, "small:busy,large"),
        ({"status": 200, "error": {"error": {"message": "no", "code": 401}}}, "small:refused,large"),
        ({"status": 400, "error": {"error": {"message": "prompt is too long: 9 > 8"}}}, "small:context,large"),
        ({"status": 400, "error": [{"error": {"message": "API key not valid."}}]}, "small:refused,large"),
        ({"status": 400, "error": {"error": "Incorrect API key provided: s***t."}}, "small:refused,large"),
        ({"status": 400, "error": {"error": {"message": "Invalid model name in model=s-1"}}}, "small:refused,large"),
    ],
)
def test_faults_are_known_by_more_than_their_status(tmp_path: Path, answer: dict[str, Any], route: str) -> None:
    """Credit that is used up, errors with status 200, and windows, keys and models in the words of other vendors."""
    with serve_gateway(tmp_path, always(**answer)) as gateway:
        assert gateway.post(ask())[1]["x-unfold-route"] == route


def test_an_error_that_quotes_the_request_is_no_fault_of_the_key(tmp_path: Path) -> None:
    """Otherwise a client could leave a model out for all others."""
    error = {"error": {"message": "invalid value: 'my API key'"}}
    with serve_gateway(tmp_path, always(status=400, error=error)) as gateway:
        status, _, body = gateway.post(ask("my API key"))
        assert (status, json.loads(body)["error"]["message"]) == (400, "invalid value: 'my API key'")


@pytest.mark.parametrize("calls", [None, CALLS])
def test_an_endpoint_that_does_not_stream_is_read_too(tmp_path: Path, calls: Any) -> None:
    """It answers a stream with one JSON object: the client gets its text, calls and usage as chunks, at one price."""
    answer = {"text": "whole", "whole": True, "tool_calls": calls}
    options = {"stream_options": {"include_usage": True}}
    with serve_gateway(tmp_path, UNSURE, always(**answer)) as gateway:
        _, events = gateway.events({**ask(), **options})
        chunks = [event for event in events if isinstance(event, dict)]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        delta = chunks[0]["choices"][0]["delta"]
        assert [call["index"] for call in delta["tool_calls"]] == [0, 1] if calls else delta["content"] == "whole"
        assert chunks[-1]["usage"]["completion_tokens"] == 10
        assert events[-1] == "data: [DONE]"
    error = {"error": {"message": "busy", "code": 429}}
    with serve_gateway(tmp_path / "b", UNSURE, always(status=200, error=error)) as gateway:
        status, _, data = gateway.post({**ask(), "stream": True})
        assert (status, json.loads(data)["error"]["message"]) == (429, "busy")


def test_a_whole_stream_without_done_is_an_answer(tmp_path: Path) -> None:
    """Some servers end with the reason to finish; a stream without that broke off."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "l-1"}
    choice = {"index": 0, "delta": {"role": "assistant", "content": "whole"}, "finish_reason": None}
    parts = [{**chunk, "choices": [choice]}, {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    raw = [b"data: %b\n\n" % json.dumps(part).encode() for part in parts]
    for sent, last in ((raw, "data: [DONE]"), (raw[:1], None)):
        with serve_gateway(tmp_path / str(len(sent)), UNSURE, always(raw=b"".join(sent))) as gateway:
            _, events = gateway.events(ask())
            assert events[-1] == last or (last is None and "error" in events[-1])


CONTEXT = {"object": "error", "message": "the maximum context length is 8", "type": "BadRequestError", "code": 400}
WORD = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
LOST = {"error": {"code": 502}, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]}


@pytest.mark.parametrize(
    ("sent", "status", "shown"),
    [
        ([CONTEXT], 400, "maximum context length"),
        ([{"error": {"message": "slow down", "code": 429}}], 429, "slow down"),
        ([], 502, "without choices"),
        ([{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}], 200, "without choices"),
        ([WORD, CONTEXT], 200, "reported an error"),
        ([WORD, LOST], 200, "reported an error"),
    ],
)
def test_a_stream_that_reports_an_error_or_has_no_choice_is_no_answer(
    tmp_path: Path, sent: list[dict[str, Any]], status: int, shown: str
) -> None:
    """Whatever its form, also where ``[DONE]`` follows; before the first word it has the status that it names."""
    raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in sent) + b"data: [DONE]\n\n"
    with serve_gateway(tmp_path, large=always(raw=raw)) as gateway:
        answered, _, data = gateway.post({**ask(), "model": "large", "stream": True})
        *_, last = [line for line in data.decode().split("\n\n") if line]
        assert (answered, shown in json.loads(last.removeprefix("data: "))["error"]["message"]) == (status, True)


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_error_beside_a_chunk_is_none(tmp_path: Path, empty: Any) -> None:
    """Some servers write every field of a chunk."""
    events = [{**WORD, "error": empty}, {"error": empty}, {"choices": [{"index": 0, "finish_reason": "stop"}]}]
    raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    with serve_gateway(tmp_path, UNSURE, always(raw=raw)) as gateway:
        assert gateway.events(ask())[1][-1] == "data: [DONE]"


def test_the_last_model_has_the_time_of_the_request_for_a_whole_answer(tmp_path: Path) -> None:
    """Its first byte comes when all is written, so the time to the first token is no bound."""
    limits = UpstreamLimits(connect_s=1, first_token_s=0.3, between_tokens_s=0.3, total_s=20, retries=2)
    with serve_gateway(tmp_path, large=always(text="long", delay=1.0), limits=limits) as gateway:
        status, head, _ = gateway.post({**ask(), "model": "large"})
        assert (status, head["x-unfold-calls"]) == (200, "1")


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_wait_is_left_to_the_next_model(tmp_path: Path, stream: bool) -> None:
    """A cheap model over its rate is not waited for; the last one is, as there is no other."""
    busy = always(status=429, headers={"retry-after": "8"})
    limits = UpstreamLimits(connect_s=1, first_token_s=2, between_tokens_s=1, total_s=12, retries=1)
    with serve_gateway(tmp_path, busy, limits=limits) as gateway:
        begin = time.monotonic()
        head = gateway.events(ask())[0] if stream else gateway.post(ask())[1]
        assert (head["x-unfold-route"], head["x-unfold-calls"]) == ("small:busy,large", "2")
        assert time.monotonic() - begin < 4.0
