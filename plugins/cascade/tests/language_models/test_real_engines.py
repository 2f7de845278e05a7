"""The gateway and ``profile`` in front of two real llama.cpp servers with different context windows.

Both serve SmolLM2-135M, so these tests are about the protocol; what a route saves is tested on logs.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.llama_server import Engine, find_gap, serve_engine
from plugins.cascade.tests.language_models.served_gateway import (
    IDENTITY,
    SMALL_PRICE,
    make_plan,
)
from tests.asgi import host
from tests.served import COMMAND, serving, unfold
from unfold_cascade.language_models.gateway.app import GatewayApp
from unfold_cascade.language_models.gateway.plan import ClientKey, ConfidenceMethod, Gate, Source, UpstreamLimits
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.openai_api.completion import Completion
from unfold_cascade.language_models.planning.calibration import Calibration
from unfold_cascade.language_models.planning.prices import TokenPrices

openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.engines, pytest.mark.skipif(bool(find_gap()), reason=find_gap())]

SMALL_WINDOW, LARGE_WINDOW = 256, 512
PATIENT = UpstreamLimits(connect_s=5.0, first_token_s=60.0, between_tokens_s=30.0, total_s=90.0, retries=0)
OPEN, SHUT = Gate(0.0, IDENTITY), Gate(1.0, IDENTITY)
UNICODE = "ñ — 日本 🌍"
"""Characters that the tokens of the model split into bytes."""
PROMPTS = 46
SPEC = """
version: 1
kind: cascade
name: real
data: {source: endpoints, prompts: prompts.csv, expected: expected, split: {train: 45%, calibrate: 45%, test: 10%}}
stages:
  - name: answer
    models:
      - {name: small, endpoint: {url: URL_SMALL, model: any, window: 256}, price: {in: 1, out: 2}}
      - {name: large, endpoint: {url: URL_LARGE, model: any, window: 512}, price: {in: 10, out: 20}}
confidence: {from: logprob, of: mean}
collect: {cap: 1.00, concurrency: 2, max_tokens: 3, score: {by: regex, pattern: '\\w+'}}
goal: {max_loss: 15%}
serve: {audit: 0%}
"""


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    with serve_engine(SMALL_WINDOW, slots=2) as small, serve_engine(LARGE_WINDOW) as large:
        yield small, large


@contextmanager
def serve_chain(
    folder: Path, engines: tuple[Engine, Engine], gate: Gate, **changes: Any
) -> Iterator[tuple[Any, GatewayApp]]:
    """Serve the chain small -> large, and give the official client and the application."""
    plan = make_plan(engines[0].url, engines[1].url, gates=(gate,), limits=PATIENT, **changes)
    app = build_app(plan, folder, logging.getLogger("unfold.test"))
    with host(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client, app


def write(text: str, **fields: Any) -> dict[str, Any]:
    """Build a request, answered alike every time."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def price(prices: TokenPrices, usage: Any) -> float:
    """Compute the cost of an answer from its usage, cached tokens included."""
    cached = usage.prompt_tokens_details.cached_tokens
    return prices.cost(usage.prompt_tokens, usage.completion_tokens, cached, 0.0)


@pytest.mark.parametrize(("gate", "model", "calls"), [(OPEN, "small", "1"), (SHUT, "large", "2")])
def test_whole_and_streamed_answers_are_those_of_the_engine(
    tmp_path: Path, engines: tuple[Engine, Engine], gate: Gate, model: str, calls: str
) -> None:
    """Text, usage and finish reason agree with and without a stream, and the cost is that of the usage."""
    request = write("What is 2 + 2? Answer with a number.", max_tokens=12)
    with serve_chain(tmp_path, engines, gate) as (client, _):
        raw = client.chat.completions.with_raw_response.create(**request)
        answer = raw.parse()
        stream = client.chat.completions.with_raw_response.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream.parse())
    head = raw.headers
    assert (head["x-unfold-model"], head["x-unfold-calls"]) == (model, calls)
    assert (answer.model, answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("auto", "stop", None)
    if model == "small":
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(price(SMALL_PRICE, answer.usage), abs=1e-9)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert stream.headers["x-unfold-model"] == model
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert not any(getattr(chunk.choices[0], "logprobs", None) for chunk in chunks if chunk.choices)


def test_log_probabilities_come_if_they_were_requested(tmp_path: Path, engines: tuple[Engine, Engine]) -> None:
    """Every token has one, at most 0, and their texts make up the answer."""
    with serve_chain(tmp_path, engines, OPEN) as (client, _):
        answer = client.chat.completions.create(**write("Say hello.", max_tokens=12), logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == answer.choices[0].message.content.strip()
    assert all(token.logprob <= 0.0 for token in tokens)
    assert {len(token.top_logprobs) for token in tokens} == {2}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("gate", [OPEN, SHUT])
def test_characters_that_tokens_divide_arrive_whole(
    tmp_path: Path, engines: tuple[Engine, Engine], gate: Gate, stream: bool
) -> None:
    """A field that the gateway does not read (a grammar) reaches the engine, and its text comes back unharmed."""
    request = write("Write.", max_tokens=60, extra_body={"grammar": f'root ::= "{UNICODE}"'}, stream=stream)
    with serve_chain(tmp_path, engines, gate) as (client, _):
        answer = client.chat.completions.create(**request)
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
            if stream
            else answer.choices[0].message.content
        )
    assert text == UNICODE


@pytest.mark.parametrize(("windows", "step"), [({}, "small:context"), ({"small": SMALL_WINDOW}, "small:window")])
def test_a_prompt_beyond_the_small_window_is_answered_by_the_large_engine(
    tmp_path: Path, engines: tuple[Engine, Engine], windows: dict[str, int], step: str
) -> None:
    """Whether or not the spec declares the window; a prompt beyond both is an error of the request."""
    with serve_chain(tmp_path, engines, OPEN, windows=windows) as (client, _):
        raw = client.chat.completions.with_raw_response.create(**write("word " * 240, max_tokens=2))
        assert raw.headers["x-unfold-route"] == f"{step},large"
        assert raw.parse().usage.prompt_tokens > SMALL_WINDOW
        with pytest.raises(openai.BadRequestError) as failure:
            client.chat.completions.create(**write("word " * 600, max_tokens=2))
        assert failure.value.code == "context_length_exceeded"


def test_an_answer_cut_by_its_limit_is_not_trusted(tmp_path: Path, engines: tuple[Engine, Engine]) -> None:
    """Both engines reach ``max_tokens``: the cheap answer is dropped, that of the last model is returned as it is."""
    with serve_chain(tmp_path, engines, OPEN) as (client, _):
        raw = client.chat.completions.with_raw_response.create(**write("Tell me a story.", max_tokens=3))
    assert raw.headers["x-unfold-route"] == "small:length,large"
    assert raw.parse().choices[0].finish_reason == "length"


def test_two_choices_and_a_schema_pass_through(tmp_path: Path, engines: tuple[Engine, Engine]) -> None:
    """``n`` and ``response_format`` are the engine's business; every choice is JSON of the schema."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with serve_chain(tmp_path, engines, OPEN) as (client, _):
        request = write("Is water wet? Reply in JSON.", max_tokens=40, n=2, response_format=shape)
        answer = client.chat.completions.create(**request)
    assert [set(json.loads(choice.message.content)) for choice in answer.choices] == [{"ok"}, {"ok"}]


def test_a_client_that_hangs_up_frees_the_engine(tmp_path: Path, engines: tuple[Engine, Engine]) -> None:
    """The engine has one slot: after a hang-up in a long answer it takes the next request at once."""
    keys = (ClientKey(name="a", key="k", budget_usd=100.0),)
    with serve_chain(tmp_path, engines, SHUT, keys=keys) as (client, app):
        long = write("Count from one to one thousand.", max_tokens=600, extra_body={"ignore_eos": True}, stream=True)
        stream = client.chat.completions.create(**{**long, "model": "large"})
        for _, _ in zip(range(4), stream, strict=False):
            pass
        stream.close()
        begin = time.monotonic()
        client.chat.completions.create(**{**write("Hi", max_tokens=2), "model": "large"})
        assert time.monotonic() - begin < 5.0
        assert app.router.state.spent("a") > 0.0


def test_an_engine_that_is_killed_while_it_writes_costs_the_client_nothing(
    tmp_path: Path, engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheap engine dies before the decision: the client gets the whole answer of the other one."""
    add_chunk = Completion.add_chunk
    with serve_engine(SMALL_WINDOW) as doomed, serve_chain(tmp_path, (doomed, engines[1]), OPEN) as (client, _):

        def add_and_kill(completion: Completion, chunk: dict[str, Any]) -> None:
            if len(completion.chunks) == 5:
                doomed.process.kill()
            add_chunk(completion, chunk)

        monkeypatch.setattr(Completion, "add_chunk", add_and_kill)
        request = write("Count.", max_tokens=60, stream=True, extra_body={"ignore_eos": True})
        raw = client.chat.completions.with_raw_response.create(**request)
        chunks = list(raw.parse())
    assert raw.headers["x-unfold-route"] in ("small:busy,large", "small:broken,large")
    assert chunks[-1].choices[0].finish_reason == "length"
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 40


@pytest.mark.parametrize("source", ["votes", "check", "judge"])
def test_confidences_of_real_engines(tmp_path: Path, engines: tuple[Engine, Engine], source: Source) -> None:
    """Samples at temperature 1 differ, a check reads yes and no among the first tokens, and each call is billed."""
    gates = (Gate(0.0, Calibration(scale="number", transform="identity", low=0, high=1, slope=8, intercept=-4)),)
    with serve_chain(tmp_path, engines, gates[0]) as (client, app):
        judge = app.router.plan.models["large"] if source == "judge" else None
        app.router.plan = replace(app.router.plan, method=ConfidenceMethod(source=source, samples=4, judge=judge))
        heads = []
        for text in ("What is 2 + 2? Answer with a number.", "Name a colour of the rainbow."):
            raw = client.chat.completions.with_raw_response.create(**write(text, max_tokens=24))
            assert len(raw.parse().choices) == 1
            heads.append(raw.headers)
    assert {head["x-unfold-route"].partition(":")[0] for head in heads} == {"small"}
    for head in heads:
        assert not head["x-unfold-route"].startswith("small:none"), head["x-unfold-route"]
        assert int(head["x-unfold-calls"]) >= (1 if source == "votes" else 2)
        assert float(head["x-unfold-cost-usd"]) > 0.0


def read_store(run: Path) -> list[dict[str, Any]]:
    """Read the whole lines of the calls of a collection."""
    path = run / "calls" / "calls.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def test_a_log_is_collected_through_a_cap_and_a_kill_then_planned_and_served(
    tmp_path: Path, engines: tuple[Engine, Engine]
) -> None:
    """No call is made twice but those in flight at the kill, no cap is exceeded, and the run can be served."""
    lines = [f"Capital of country {k}?,The" for k in range(PROMPTS)]
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt,expected", *lines]) + "\n")
    spec = SPEC.replace("URL_SMALL", engines[0].url).replace("URL_LARGE", engines[1].url)
    (tmp_path / "real.yaml").write_text(spec)
    run = tmp_path / "runs" / "real"

    capped = unfold(tmp_path, "profile", "real.yaml", "--set", "collect.cap=0.004")
    assert capped.returncode == 1, capped.stderr
    spent = json.loads((run / "report.json").read_text())["metrics"]["spent_usd"]["value"]
    assert 0.0 < spent <= 0.004
    ended = sum("end" in record for record in read_store(run))
    assert 0 < ended < 2 * PROMPTS

    with subprocess.Popen([*COMMAND, "profile", "real.yaml"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 60
        while sum("end" in record for record in read_store(run)) < ended + 10:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.kill()
    killed = read_store(run)
    ends = {record["end"] for record in killed if "end" in record}
    lost = [record for record in killed if "start" in record and record["start"] not in ends]

    whole = unfold(tmp_path, "profile", "real.yaml")
    assert whole.returncode == 0, whole.stderr
    records = read_store(run)
    answers = [(record["row"], record["model"]) for record in records if "end" in record]
    assert sorted(answers) == sorted((row, name) for row in range(PROMPTS) for name in ("small", "large"))
    assert sum("start" in record for record in records) == 2 * PROMPTS + len(lost)
    paid = sum(record["cost_usd"] for record in records if "end" in record)
    tokens = sum(
        (1 if record["model"] == "small" else 10) * (record["tokens_in"] + 2 * record["tokens_out"])
        for record in records
        if "end" in record
    )
    assert paid == pytest.approx(tokens * 1e-6)
    total = json.loads((run / "report.json").read_text())["metrics"]["spent_usd"]["value"]
    assert total == pytest.approx(paid + sum(record["worst_usd"] for record in lost))

    planned = unfold(tmp_path, "plan", "runs/real")
    # both engines have the same weights, so the cheaper one is the reference, and nothing is left to promise
    assert (planned.returncode, planned.stdout.count("no route is cheaper than small alone")) == (1, 1), planned.stdout
    with serving(tmp_path, "runs/real") as (_, url), openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        stream = client.chat.completions.with_raw_response.create(**write("Say hello.", max_tokens=20), stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream.parse() if chunk.choices)
        assert text
        assert (stream.headers["x-unfold-route"], stream.headers["x-unfold-promise"]) == ("small", "none")
