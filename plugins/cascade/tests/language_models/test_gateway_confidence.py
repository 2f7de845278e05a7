"""Votes, self-checks and a judge in front of the gates of a gateway: what they cost, and what happens if they fail."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import Script, always, serve_upstream
from plugins.cascade.tests.language_models.served_gateway import (
    LARGE_COST,
    QUICK,
    SMALL_COST,
    SMALL_PRICE,
    Gateway,
    ask,
    make_plan,
    serve_gateway,
)
from unfold_cascade.language_models.gateway.confidence import format_prompt, read_yes_probability
from unfold_cascade.language_models.gateway.plan import ClientKey, ConfidenceMethod, Gate, GatewayPlan
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.openai_api.completion import Choice, Completion
from unfold_cascade.language_models.planning.calibration import Calibration
from unfold_cascade.language_models.planning.prices import TokenPrices
from unfoldkit.api import UnfoldError

SHARE = Calibration(scale="number", transform="identity", low=0.0, high=1.0, slope=8.0, intercept=-4.8)
"""P = 1/2 at a confidence of 0.6."""
GATES = (Gate(0.5, SHARE),)
VOTES = {"method": ConfidenceMethod(source="votes", samples=5), "gates": GATES}
CHECK = {"method": ConfidenceMethod(source="check"), "gates": GATES}
SAMPLES = ["Paris", "Rome", "paris.", "Paris", "PARIS"]
PARIS, ROME = {"text": SAMPLES}, {"text": ["Paris", "Rome", "Bern", "Oslo", "Wien"]}


def is_check(request: dict[str, Any]) -> bool:
    return "yes or no" in str(request["messages"][-1]["content"])


def check_with(verdict: dict[str, Any], answer: dict[str, Any] | None = None) -> Script:
    """Answer requests with one script, and checks of an answer with another."""
    return lambda request, _: verdict if is_check(request) else answer or {"text": "cheap answer"}


def judge_plan(plan: GatewayPlan) -> ConfidenceMethod:
    return ConfidenceMethod(source="judge", judge=plan.models["large"])


def read_metrics(gateway: Gateway) -> dict[str, float]:
    with urllib.request.urlopen(gateway.url + "/metrics", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.parametrize("stream", [False, True])
def test_the_majority_answers_if_enough_samples_agree(tmp_path: Path, stream: bool) -> None:
    """One call draws five samples at temperature 1, whatever the client set; one of the majority is returned."""
    with serve_gateway(tmp_path, always(**PARIS), **VOTES) as gateway:
        body = ask(temperature=0, seed=7, top_p=0.1, user="me")
        if stream:
            head, events = gateway.events(body)
            deltas = [c for event in events if isinstance(event, dict) for c in event["choices"]]
            text = "".join(choice["delta"].get("content") or "" for choice in deltas).strip()
            assert {choice["index"] for choice in deltas} == {0}
            assert events[-1] == "data: [DONE]"
        else:
            _, head, data = gateway.post(body)
            (choice,) = json.loads(data)["choices"]
            text = choice["message"]["content"]
            assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        (request,) = gateway.small.requests
    assert text == "Paris"
    assert (head["x-unfold-route"], head["x-unfold-calls"]) == ("small:0.83>=0.50", "1")
    assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST, abs=1e-9)
    assert (request["n"], request["temperature"], request["user"]) == (5, 1, "me")
    assert "seed" not in request
    assert "top_p" not in request
    assert "logprobs" not in request


def test_disagreement_escalates_and_the_last_model_gets_the_request_as_it_is(tmp_path: Path) -> None:
    """No two samples agree: the reference answers once, with the client's temperature, and all samples are paid."""
    with serve_gateway(tmp_path, always(**ROME), **VOTES) as gateway:
        _, head, data = gateway.post(ask(temperature=0, seed=7))
        (request,) = gateway.large.requests
        metrics = read_metrics(gateway)
    assert json.loads(data)["choices"][0]["message"]["content"] == "dear answer"
    assert (head["x-unfold-route"], head["x-unfold-calls"]) == ("small:0.04<0.50,large", "2")
    assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST + LARGE_COST, abs=1e-9)
    assert (request["temperature"], request["seed"], "n" in request) == (0, 7, False)
    paid = metrics["unfold_gateway_confidence_cost_usd_total"]
    # four of five samples: the input is paid once, for the answer
    assert paid == pytest.approx(0.8 * 10 * SMALL_PRICE.output)


@pytest.mark.parametrize("refuses", [False, True])
def test_an_upstream_without_n_is_called_once_per_sample(tmp_path: Path, refuses: bool) -> None:
    """It ignores ``n`` or answers 400: the samples come one by one, and each is billed."""

    def answer(request: dict[str, Any], _number: int) -> dict[str, Any]:
        if refuses and "n" in request:
            return {"status": 400, "error": {"error": {"message": "n is not supported", "param": "n"}}}
        return {"text": "Paris", "ignores_n": True}

    with serve_gateway(tmp_path, answer, **VOTES) as gateway:
        _, head, _ = gateway.post(ask())
        assert len(gateway.small.requests) == 5 + refuses
    assert head["x-unfold-model"] == "small"
    assert head["x-unfold-calls"] == str(5 + refuses)
    assert float(head["x-unfold-cost-usd"]) == pytest.approx(5 * SMALL_COST, abs=1e-9)


def test_a_lost_sample_agrees_with_none(tmp_path: Path) -> None:
    """Two of five samples fail: three equal ones are 60 %, not all."""

    def answer(_request: dict[str, Any], number: int) -> dict[str, Any]:
        return {"text": "Paris", "ignores_n": True} if number < 3 else {"status": 500}

    limits = replace(QUICK, retries=0)
    with serve_gateway(tmp_path, answer, limits=limits, **VOTES) as gateway:
        _, head, _ = gateway.post(ask())
    assert head["x-unfold-route"] == "small:0.50>=0.50"


def test_equal_tool_calls_agree_whatever_their_ids(tmp_path: Path) -> None:
    """Ids are drawn anew for each sample, and white space of arguments does not count."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

    def answer(_request: dict[str, Any], number: int) -> dict[str, Any]:
        arguments = '{"a": 1}' if number % 2 else '{"a":1}'
        call = {"id": f"call-{number}", "type": "function", "function": {"name": "add", "arguments": arguments}}
        return {"tool_calls": [call], "ignores_n": True}

    with serve_gateway(tmp_path, answer, **VOTES) as gateway:
        _, head, data = gateway.post(ask(tools=tools))
    assert head["x-unfold-route"].startswith("small:0.96>=")
    assert json.loads(data)["choices"][0]["message"]["tool_calls"][0]["id"] == "call-0"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("yes", "model"), [(-0.05, "small"), (-2.0, "large")])
def test_a_self_check_decides_and_is_billed(tmp_path: Path, stream: bool, yes: float, model: str) -> None:
    """The same model is asked about its answer; both calls are in the headers, the metrics and no answer."""
    verdict = {"text": "Yes", "logprob": yes, "usage": {"prompt_tokens": 60, "completion_tokens": 1}}
    check_usd = 60 * SMALL_PRICE.input + SMALL_PRICE.output
    with serve_gateway(tmp_path, check_with(verdict), **CHECK) as gateway:
        if stream:
            head, events = gateway.events(ask("capital of France?"))
            data = json.dumps(events).encode()
        else:
            _, head, data = gateway.post(ask("capital of France?"))
        first, second = gateway.small.requests
        metrics = read_metrics(gateway)
    assert head["x-unfold-model"] == model
    assert head["x-unfold-calls"] == ("2" if model == "small" else "3")
    spent = SMALL_COST + check_usd + (0.0 if model == "small" else LARGE_COST)
    if not stream or model == "small":
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(spent, abs=1e-9)
    assert metrics["unfold_gateway_confidence_cost_usd_total"] == pytest.approx(check_usd)
    assert sum(value for name, value in metrics.items() if "cost_usd_total{" in name) == pytest.approx(spent)
    question = second["messages"][0]["content"]
    assert "Question: capital of France?" in question
    assert "Proposed answer: cheap answer" in question
    assert (second["max_tokens"], second["temperature"], second["logprobs"]) == (1, 0, True)
    assert "logprobs" not in first
    assert b"Yes" not in data


def test_a_price_of_confidence_replaces_the_price_of_the_check(tmp_path: Path) -> None:
    """``price_of_confidence: 0.01`` bills each check with a cent."""
    verdict = {"text": "Yes", "logprob": -0.01}
    with serve_gateway(tmp_path, check_with(verdict), **CHECK) as gateway:
        models = gateway.app.plan.models
        models["small"] = replace(models["small"], confidence_prices=TokenPrices(fixed=0.01))  # type: ignore[index]
        _, head, _ = gateway.post(ask())
    assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST + 0.01, abs=1e-9)


@pytest.mark.parametrize(
    ("verdict", "calls"),
    [({"status": 500}, 4), ({"broken": True}, 4), ({"text": "Yes", "logprob": None}, 3), ({"text": "Maybe"}, 3)],
)
def test_an_answer_without_its_check_is_not_trusted(tmp_path: Path, verdict: dict[str, Any], calls: int) -> None:
    """A check that fails, has no log-probabilities or says neither yes nor no: the next model answers."""
    with serve_gateway(tmp_path, check_with(verdict), **CHECK) as gateway:
        _, head, data = gateway.post(ask())
        metrics = read_metrics(gateway)
    assert json.loads(data)["choices"][0]["message"]["content"] == "dear answer"
    assert (head["x-unfold-route"], head["x-unfold-calls"]) == ("small:none<0.50,large", str(calls))
    assert metrics['unfold_gateway_missing_confidences_total{model="small"}'] == 1.0


def test_checks_share_the_time_of_the_request(tmp_path: Path) -> None:
    """A check that stalls ends with the request's deadline or its own, and the client still gets an answer."""
    limits = replace(QUICK, first_token_s=0.4, total_s=3.0, retries=0)
    with serve_gateway(tmp_path, check_with({"text": "Yes", "delay": 2.0}), limits=limits, **CHECK) as gateway:
        status, head, _ = gateway.post(ask())
    assert (status, head["x-unfold-model"]) == (200, "large")
    assert float(head["x-unfold-gate-ms"]) < 1500


def test_a_judge_scores_the_answer_at_its_own_price(tmp_path: Path) -> None:
    """The judge is called with prompt and answer; its identity is part of the promise."""
    fingerprints = iter(["fp_1", "fp_1", "fp_2", "fp_2", "fp_2"])

    def large(request: dict[str, Any], _number: int) -> dict[str, Any]:
        fingerprint = next(fingerprints)
        return {"text": "yes" if is_check(request) else "dear answer", "logprob": -0.1, "fingerprint": fingerprint}

    with serve_gateway(tmp_path, None, large, gates=GATES) as gateway:
        plan = gateway.app.router.plan
        gateway.app.router.plan = replace(plan, method=judge_plan(plan))
        _, head, data = gateway.post(ask())
        assert json.loads(data)["choices"][0]["message"]["content"] == "cheap answer"
        assert (head["x-unfold-model"], head["x-unfold-calls"]) == ("small", "2")
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST + LARGE_COST, abs=1e-9)
        gateway.post(ask())
        assert gateway.post(ask())[1]["x-unfold-promise"] == "2pt@95"
        assert gateway.post(ask())[1]["x-unfold-promise"] == "void"


def test_a_judge_that_refuses_the_gateway_switches_its_gates_off(tmp_path: Path) -> None:
    """The key of the judge is wrong: the cheap model is not paid in vain."""

    def large(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"status": 401} if is_check(request) else {"text": "dear answer"}

    with serve_gateway(tmp_path, None, large, gates=GATES) as gateway:
        plan = gateway.app.router.plan
        other = replace(plan.models["large"], name="judge")
        method = ConfidenceMethod(source="judge", judge=other)
        gateway.app.router.plan = replace(plan, method=method)
        assert gateway.post(ask())[1]["x-unfold-route"] == "small:none<0.50,large"
        assert gateway.post(ask())[1]["x-unfold-route"] == "small:off,large"
        assert len(gateway.small.requests) == 1


def test_several_choices_are_beyond_votes_and_checks(tmp_path: Path) -> None:
    """With ``n`` above 1 the last model answers; the gate was certified for one answer."""
    with serve_gateway(tmp_path, **VOTES) as gateway:
        _, head, data = gateway.post(ask(n=2))
    assert head["x-unfold-route"] == "small:n,large"
    assert len(json.loads(data)["choices"]) == 2


@pytest.mark.parametrize("changes", [VOTES, CHECK])
def test_budgets_cover_confidences(tmp_path: Path, changes: dict[str, Any]) -> None:
    """50 requests at once with money for about ten: no more is spent than the budget, and what is spent is billed."""
    verdict = {"text": "yes", "logprob": -0.1}
    script = check_with(verdict, {"text": "Paris"})
    keys = (ClientKey(name="a", key="k", budget_usd=0.03),)
    with serve_gateway(tmp_path, script, keys=keys, **changes) as gateway:

        async def send_all() -> list[tuple[int, dict[str, str], bytes]]:
            body = ask(max_tokens=20)
            send = (asyncio.to_thread(gateway.post, body, authorization="Bearer k") for _ in range(50))
            return await asyncio.gather(*send)

        replies = asyncio.run(send_all())
        spent = gateway.app.router.state.spent("a")
    billed = sum(float(head["x-unfold-cost-usd"]) for status, head, _ in replies if status == 200)
    assert {status for status, _, _ in replies} <= {200, 429}
    assert 0.0 < spent <= 0.03
    assert spent == pytest.approx(billed)


def test_the_probe_calls_the_checking_model(tmp_path: Path) -> None:
    """A model that checks without log-probabilities is not served; votes need none."""

    async def probe(url: str) -> list[str]:
        plan = make_plan(url, url, **CHECK)
        app = build_app(plan, tmp_path, logging.getLogger("unfold.test"))
        messages = []
        for changed in (plan, replace(plan, method=judge_plan(plan)), replace(plan, **VOTES)):
            app.router.plan = changed
            try:
                await app.router.probe()
            except UnfoldError as error:
                messages.append(str(error))
        await app.close()
        return messages

    with serve_upstream(always(text="yes", logprob=None)) as silent:
        messages = asyncio.run(probe(silent.url))
    assert [message.partition(" returns no")[0].rpartition(" ")[2] for message in messages] == ["small", "large"]
    assert len(silent.requests) == 2
    assert all(map(is_check, silent.requests))


def test_yes_is_weighed_against_no() -> None:
    """Spellings are added up, an unlisted word counts with the least listed probability, other words with nothing."""

    def read(text: str, *listed: tuple[str, float]) -> float | None:
        logprobs = [listed[0][1]] if listed else []
        return read_yes_probability(Completion({0: Choice(text, logprobs=logprobs, alternatives=list(listed[1:]))}))

    assert read("yes") is None
    assert read("Yes", ("Yes", -0.1)) == pytest.approx(0.9048, abs=1e-4)
    assert read(" no.", ("no", -0.1)) == pytest.approx(0.0952, abs=1e-4)
    assert read("maybe", ("maybe", -0.1)) is None
    several = (("Yes", -0.7), ("Yes", -0.6931), (" yes", -1.3863), ("NO", -1.6094), ("The", -3.0))
    assert read("Yes", *several) == pytest.approx(0.75 / 0.95, abs=1e-3)
    assert read("Yes", ("Yes", -0.1), ("Yes", -0.1), ("The", -3.0)) == pytest.approx(0.9478, abs=1e-3)
    assert read("The", ("The", -0.1), ("The", -0.1), ("A", -3.0)) is None


def test_a_check_sees_the_conversation_and_no_system_message() -> None:
    """One message is the prompt itself, as in the log; several are a transcript; parts and tool calls are texts."""
    system = {"role": "system", "content": "be brief"}
    assert format_prompt([system, {"role": "user", "content": "2+2?"}]) == "2+2?"
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "4"},
    ]
    assert format_prompt(turns) == 'user: a\nb\nassistant: [{"id": "1"}]\ntool: 4'


def test_no_text_of_a_check_is_stored_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither prompt nor answer is in the state or the log of the gateway."""
    caplog.set_level(logging.DEBUG, "unfold")
    with serve_gateway(tmp_path, check_with({"status": 401}, {"text": "marmalade"}), **CHECK) as gateway:
        gateway.post(ask("rhubarb"))
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for word in ("rhubarb", "marmalade"):
        assert word not in caplog.text
        assert word.encode() not in stored
