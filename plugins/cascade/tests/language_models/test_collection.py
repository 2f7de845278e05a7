"""Collecting a log from endpoints: cap, resume, retries, scoring; and the way from there to a served plan."""

from __future__ import annotations

import hashlib
import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.language_models.scripted_upstream import Upstream, serve_upstream
from plugins.cascade.tests.runs import run_in, spec_of
from tests.asgi import host
from tests.support import limited_file_size
from unfold_cascade.language_models.build import build_gateway_plan, load_log_frame, read_call_log
from unfold_cascade.language_models.collection.call_store import open_store
from unfold_cascade.language_models.collection.scoring import is_exact, is_same_choice, is_same_number
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.planning.calibration import parse_calibration
from unfold_cascade.language_models.planning.call_log import Route, follow_route
from unfold_cascade.verbs import plan, profile
from unfoldkit.api import ExitCode, UnfoldError, Verdict, dump, fingerprint

SPEC = """
version: 1
kind: cascade
name: collected
data: {source: endpoints, prompts: prompts.csv, expected: expected}
stages:
  - name: answer
    models:
      - {name: small, endpoint: {url: URL_SMALL, model: s-1, http2: false, max_tokens: 8}, price: {in: 1, out: 2}}
      - {name: large, endpoint: {url: URL_LARGE, model: l-1, http2: false, max_tokens: 8}, price: {in: 10, out: 20}}
confidence: {from: logprob, of: first}
collect: {cap: 100, concurrency: 8, retries: 1, max_tokens: 8}
goal: {max_loss: 10%}
"""


def _is_correct(prompt: str, share: float) -> bool:
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 1000 < 1000 * share


def _small(request: dict[str, Any], _number: int) -> dict[str, Any]:
    correct = _is_correct(request["messages"][-1]["content"], 0.7)
    return {"text": "yes" if correct else "no", "logprob": -0.05 if correct else -1.5}


def _large(request: dict[str, Any], _number: int) -> dict[str, Any]:
    return {"text": "yes" if _is_correct(request["messages"][-1]["content"], 0.95) else "no", "logprob": -0.1}


@pytest.fixture
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    with ExitStack() as stack:
        yield stack.enter_context(serve_upstream(_small)), stack.enter_context(serve_upstream(_large))


def _write(folder: Path, upstreams: tuple[Upstream, Upstream], rows: int = 240) -> Path:
    lines = [f"question {k},yes" for k in range(rows)]
    (folder / "prompts.csv").write_text("\n".join(["prompt,expected", *lines]) + "\n")
    text = SPEC.replace("URL_SMALL", upstreams[0].url).replace("URL_LARGE", upstreams[1].url)
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


def test_from_endpoints_to_a_served_plan(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> None:
    """Profile, plan and serve work on one spec; planned costs are those of the tokens."""
    spec, run = spec_of(_write(tmp_path, upstreams)), run_in(tmp_path / "run", base=tmp_path)
    collected = profile(spec, run)
    assert collected.verdict is Verdict.YES
    assert collected.metrics["spent_usd"].value == pytest.approx(240 * (120e-6 + 1200e-6))
    planned = plan(spec, run)
    assert planned.verdict is Verdict.YES
    assert planned.decision is not None
    served = build_gateway_plan(spec, {"decision": planned.decision, "spec_sha256": fingerprint(dump(spec))})
    assert served.chain == ("small", "large")
    assert (served.longest_prompt, served.scripts) == (len("question 239"), {"LATIN"})
    assert served.promise is not None
    assert served.promise.audit_limit is not None
    changed = spec_of(tmp_path / "spec.yaml", "confidence.of=mean")
    with pytest.raises(UnfoldError, match="voids its promise"):
        build_gateway_plan(changed, {"decision": planned.decision})
    assert "question 7" not in json.dumps(planned.decision)


def test_the_cap_is_never_exceeded_and_a_second_call_goes_on(
    tmp_path: Path, upstreams: tuple[Upstream, Upstream]
) -> None:
    """Collection stops before the call which might exceed the cap; with more money only missing calls are made."""
    path = _write(tmp_path, upstreams, 40)
    run = run_in(tmp_path / "run", base=tmp_path)
    capped = profile(spec_of(path, "collect.cap=0.02"), run)
    assert capped.verdict is Verdict.NO
    spent = capped.metrics["spent_usd"].value
    assert spent is not None
    assert 0.0 < spent <= 0.02
    before = len(upstreams[0].requests) + len(upstreams[1].requests)
    assert profile(spec_of(path), run).verdict is Verdict.YES
    assert len(upstreams[0].requests) + len(upstreams[1].requests) == 80
    assert before < 80
    profile(spec_of(path), run)
    assert len(upstreams[0].requests) + len(upstreams[1].requests) == 80


def test_a_kill_loses_no_money_and_no_answer(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> None:
    """A torn last line is dropped; a call without an end counts with its largest cost."""
    path, run = _write(tmp_path, upstreams, 20), run_in(tmp_path / "run", base=tmp_path)
    profile(spec_of(path), run)
    store = tmp_path / "run" / "calls" / "calls.jsonl"
    lines = store.read_bytes().splitlines(keepends=True)
    worst = [json.loads(line)["worst_usd"] for line in lines if b'"start"' in line]
    ends = [k for k, line in enumerate(lines) if b'"end"' in line]
    cut = ends[-1]
    store.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
    report = profile(spec_of(path), run)
    assert report.verdict is Verdict.YES
    assert len(upstreams[0].requests) + len(upstreams[1].requests) == 41
    assert report.metrics["spent_usd"].value == pytest.approx(20 * 1320e-6 + worst[-1], rel=0.2)
    (tmp_path / "prompts.csv").write_text("prompt,expected\n" + "other,yes\n" * 20)
    with pytest.raises(UnfoldError, match="other prompts"):
        profile(spec_of(path), run)


def test_a_kill_while_the_first_line_is_written_costs_nothing(tmp_path: Path) -> None:
    """A file that holds a torn first line alone begins anew, and can be opened again."""
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b'{"identi')
    assert open_store(path, "a").spent_usd == 0.0
    open_store(path, "a").finish(1, 0, "small", {"cost_usd": 1.0})
    assert open_store(path, "a").spent_usd == 1.0


def test_a_full_disk_leaves_no_part_of_a_call(tmp_path: Path) -> None:
    """A call in flight that still finds room is not lost after one that did not; that one counts at its worst."""
    path = tmp_path / "calls.jsonl"
    store = open_store(path, "a")
    numbers = [store.start(row, "small", 2.0) for row in (0, 1)]
    with limited_file_size(path.stat().st_size + 90), pytest.raises(UnfoldError, match="cannot store a call") as caught:
        store.finish(numbers[0], 0, "small", {"cost_usd": 1.0, "answer": "a" * 200})
    assert caught.value.code is ExitCode.INTERNAL
    store.finish(numbers[1], 1, "small", {"cost_usd": 1.0})
    again = open_store(path, "a")
    assert (list(again.finished), again.spent_usd) == ([(1, "small")], 3.0)


def test_failed_calls_are_tried_again_and_counted(tmp_path: Path) -> None:
    """A call that fails is retried, then reported; the log holds whole rows only."""

    def flaky(request: dict[str, Any], number: int) -> dict[str, Any]:
        if "question 3" in request["messages"][-1]["content"]:
            return {"status": 500}
        return {"status": 429, "headers": {"retry-after": "0"}} if number == 0 else _small(request, number)

    with serve_upstream(flaky) as small, serve_upstream(_large) as large:
        path, run = _write(tmp_path, (small, large), 12), run_in(tmp_path / "run", base=tmp_path)
        report = profile(spec_of(path), run)
    assert report.verdict is Verdict.NO
    assert report.metrics["rows"].value == 11
    assert report.metrics["failed_calls"].value == 1


def test_a_model_without_log_probabilities_can_be_the_last(tmp_path: Path) -> None:
    """Reasoning models refuse log-probabilities and temperature; their answers are collected all the same."""

    def reasoning(request: dict[str, Any], number: int) -> dict[str, Any]:
        refused = next((name for name in ("temperature", "logprobs", "max_tokens") if name in request), "")
        if refused:
            return {"status": 400, "error": {"error": {"message": f"Unsupported parameter: '{refused}'"}}}
        return {**_large(request, number), "logprob": None}

    with serve_upstream(_small) as small, serve_upstream(reasoning) as large:
        spec, run = spec_of(_write(tmp_path, (small, large))), run_in(tmp_path / "run", base=tmp_path)
        assert profile(spec, run).verdict is Verdict.YES
        assert large.requests[-1]["max_completion_tokens"] == 8
        # each of the calls that began together learns for itself
        assert len(large.requests) <= 240 + 3 * 8
    assert plan(spec, run).verdict is Verdict.YES


def test_votes_and_checks_give_probabilities(tmp_path: Path) -> None:
    """Votes: the share of the most frequent answer. Check: P(yes), paid beside the answer."""

    def answer(request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"text": "yes", "logprob": -0.5}

    with serve_upstream(answer) as small, serve_upstream(answer) as large:
        path = _write(tmp_path, (small, large), 12)
        votes = run_in(tmp_path / "votes", base=tmp_path)
        profile(spec_of(path, "confidence={from: votes, samples: 3}"), votes)
        line = (tmp_path / "votes" / "calls" / "log.csv").read_text().splitlines()[1]
        assert line.split(",")[3] == "1.0"
        # of three samples, two are paid for the confidence; their input is read once
        assert [float(cell) for cell in line.split(",")[4:6]] == pytest.approx([100e-6 + 20e-6 / 3, 2 * 20e-6 / 3])
        checks = run_in(tmp_path / "checks", base=tmp_path)
        profile(spec_of(path, "confidence={from: check}"), checks)
        cells = (tmp_path / "checks" / "calls" / "log.csv").read_text().splitlines()[1].split(",")
        assert float(cells[3]) == pytest.approx(0.6065, abs=1e-3)
        assert float(cells[5]) == pytest.approx(120e-6)


SOURCES = {"votes": "{from: votes}", "check": "{from: check}", "judge": "{from: judge, model: large}"}


def _answer_all(share: float) -> Any:
    """Answer a question, with votes that split where the answer is wrong, and judge the answers of others."""

    def answer(request: dict[str, Any], _number: int) -> dict[str, Any]:
        text = request["messages"][-1]["content"]
        if "Proposed answer" in text:
            return {"text": "yes", "logprob": -0.05 if "answer: yes" in text else -1.5}
        # the first sample of some is wrong, and their majority right
        right = ["no", "yes", "yes", "yes", "yes"] if "7" in text else ["yes"]
        votes = right if _is_correct(text, share) else ["no", "yes", "no", "maybe", "no"]
        usage = {"prompt_tokens": 100, "completion_tokens": 10 * (request.get("n") or 1)}
        return {"text": votes if request.get("n") else votes[0], "usage": usage}

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_each_source_of_confidences_is_billed_as_planned(tmp_path: Path, source: str) -> None:
    """Profile, plan and serve with one source: a replayed prompt takes the route of the log, at its cost."""
    with serve_upstream(_answer_all(0.7)) as small, serve_upstream(_answer_all(0.95)) as large:
        path, run = _write(tmp_path, (small, large), 150), run_in(tmp_path / "run", base=tmp_path)
        settings = [f"confidence={SOURCES[source]}", "serve={audit: 0%}", "goal.max_loss=15%"]
        if source == "judge":
            # at the price of the expensive model, no gate would pay
            settings.append("stages[0].models[0].price_of_confidence=0.00001")
        spec = spec_of(path, *settings)
        assert profile(spec, run).verdict is Verdict.YES
        planned = plan(spec, run)
        assert planned.verdict is Verdict.YES, planned.headline
        decision = planned.decision
        assert decision is not None
        assert decision["chain"] == ["small", "large"]
        assert len(decision["confidence"].get("prompt_sha256", 64 * "0")) == 64
        log = read_call_log(spec, load_log_frame(spec, run))[0]
        score = [parse_calibration(decision["calibrations"]["small"]).probability(c) for c in log.confidence[:, 0]]
        outcome = follow_route(log, np.column_stack([score, score]), Route((0, 1), tuple(decision["cuts"])))
        app = build_app(build_gateway_plan(spec, {"decision": decision}), tmp_path / "state", logging.getLogger())
        with host(app) as url:
            for row in range(0, 150, 10):
                body = {"model": "auto", "messages": [{"role": "user", "content": f"question {row}"}]}
                request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
                with urllib.request.urlopen(request, timeout=20) as reply:
                    head, answer = reply.headers, json.load(reply)["choices"][0]["message"]["content"]
                assert head["x-unfold-model"] == decision["chain"][int(outcome.exit[row])]
                assert float(head["x-unfold-cost-usd"]) == pytest.approx(outcome.cost[row], abs=2e-9)
                assert (answer == "yes") == (outcome.loss[row] == 0.0)
        changed = {"votes": "confidence.samples=7", "check": "confidence.prompt='{answer}?'"}
        other = spec_of(path, *settings, changed.get(source, "confidence.model=small"))
        with pytest.raises(UnfoldError, match="voids its promise"):
            build_gateway_plan(other, {"decision": decision})


def test_a_judge_is_paid_but_is_no_cost_of_the_answer(tmp_path: Path) -> None:
    """The log has the price that serving pays; the judge counts as spent. Braces in an answer are left alone."""

    def answer(_request: dict[str, Any], _number: int) -> dict[str, Any]:
        return {"text": "yes {expected}"}

    with serve_upstream(answer) as small, serve_upstream(answer) as large:
        path, run = _write(tmp_path, (small, large), 12), run_in(tmp_path / "run", base=tmp_path)
        (tmp_path / "prompts.csv").write_text("prompt,expected\n" + "".join(f"is it {k}?,four\n" for k in range(12)))
        report = profile(spec_of(path, "collect.score={by: judge, model: large}"), run)
        again = profile(spec_of(path, "collect.score={by: judge, model: large}"), run)
        judgement = large.requests[-1]["messages"][0]["content"]
    cells = (tmp_path / "run" / "calls" / "log.csv").read_text().splitlines()[1].split(",")
    assert float(cells[4]) == pytest.approx(120e-6)
    assert report.metrics["spent_usd"].value == pytest.approx(12 * (120e-6 + 1200e-6 + 2 * 1200e-6))
    assert again.metrics["spent_usd"].value == report.metrics["spent_usd"].value
    assert "Expected answer: four\n\nGiven answer: yes {expected}\n\n" in judgement


def test_scores_of_answers() -> None:
    """Texts without case and spacing, the first lone letter, the last number."""
    assert is_exact(" Paris\n", "paris")
    assert is_same_choice("(B) because A is wrong", "b")
    assert not is_same_choice("I think: none", "B")
    assert is_same_number("so 2 + 2 = 1,234.5", "1234.5", 1e-6)
    assert not is_same_number("no number", "3", 1e-6)


def test_keys_come_from_the_environment_and_stay_there(
    tmp_path: Path, upstreams: tuple[Upstream, Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is sent to its endpoint, is required where named, and is in no file of the run."""
    path, run = _write(tmp_path, upstreams, 12), run_in(tmp_path / "run", base=tmp_path)
    path.write_text(path.read_text().replace("model: s-1,", "model: s-1, key_env: SMALL_KEY,"))
    with pytest.raises(UnfoldError, match="SMALL_KEY is not set"):
        profile(spec_of(path), run)
    monkeypatch.setenv("SMALL_KEY", "sk-very-secret")
    profile(spec_of(path), replace(run))
    assert upstreams[0].headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "authorization" not in upstreams[1].headers[0]
    stored = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert b"sk-very-secret" not in stored
