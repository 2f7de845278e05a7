"""The gate before the first model: its scores, its search with the cuts, its promise, and its requests when served."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import LARGE_COST, SMALL_COST, ask, serve_gateway
from plugins.cascade.tests.runs import run_in, spec_of
from unfold_cascade._types import FloatArray
from unfold_cascade.language_models.build import build_gateway_plan
from unfold_cascade.language_models.gateway.loader import read_entry
from unfold_cascade.language_models.planning.calibration import fit_calibration
from unfold_cascade.language_models.planning.call_log import CallLog, Route, find_entries, follow_route, score_log
from unfold_cascade.language_models.planning.certificate import (
    Limits,
    RouteSequence,
    certify_routes,
    choose_walk,
    list_sequences,
    rank_sequences,
    row_differences,
)
from unfold_cascade.language_models.planning.planner import list_rules, score_prompts
from unfold_cascade.language_models.planning.prompt_features import LONGEST_TEXT, build_prompt_reader, measure_length
from unfold_cascade.language_models.planning.prompt_gate import (
    EntryRule,
    cross_fit,
    fit_scorer,
    parse_scorer,
)
from unfold_cascade.language_models.planning.proposals import search_chain
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError

FIRST_COST, LAST_COST = 0.6, 1.0
"""The first call costs more than half of the last one: skipping it pays."""


def make_log(rng: np.random.Generator, rows: int, first_cost: float = FIRST_COST) -> CallLog:
    """Draw a log in which long prompts are hard for the cheap model, and its confidence adds little information."""
    letters = np.exp(rng.normal(5, 1, rows))
    p = 1 / (1 + np.exp(1.6 * (np.log(letters) - 5.8)))
    luck = rng.random(rows)
    noise = rng.normal(0, 1.5, rows)
    return CallLog(
        models=("small", "large"),
        is_correct=np.column_stack([luck < p, rng.random(rows) < 0.93]),
        confidence=np.column_stack([-np.log1p(np.exp(-2 * (luck < p) + 1 + noise)), np.full(rows, -0.1)]),
        cost=np.tile([first_cost, LAST_COST], (rows, 1)) * rng.lognormal(0, 0.2, (rows, 2)),
        confidence_cost=np.zeros((rows, 2)),
        latency_ms=np.ones((rows, 2)),
        unit=np.arange(rows),
        features=np.array([measure_length("ab " * int(n / 3)) for n in letters]),
    )


def score_parts(tune: CallLog, *others: CallLog) -> tuple[list[CallLog], list[FloatArray]]:
    """Score prompts and answers of several logs by what the first one teaches."""
    whole = [tune, *others]
    assert tune.features is not None
    scorer = fit_scorer(tune.features, tune.is_correct)
    scored = [score_prompts(tune, np.arange(len(tune)))[0]]
    scored += [
        replace(log, entry_score=scorer.probabilities(log.features)) for log in others if log.features is not None
    ]
    fits = [fit_calibration(tune.confidence[:, m], tune.is_correct[:, m]) for m in range(2)]
    return scored, [score_log(log, fits) for log in whole]


def test_a_scorer_separates_hard_prompts_and_survives_as_json() -> None:
    """The probability falls with length where the model's accuracy does; cross-fitted scores are close to it."""
    log = make_log(np.random.default_rng(1), 1500)
    assert log.features is not None
    scorer = fit_scorer(log.features, log.is_correct)
    same = parse_scorer(json.loads(json.dumps(scorer.to_document())), 5)
    score = scorer.probabilities(log.features)
    assert (same.probabilities(log.features) == score).all()
    order = np.argsort(log.features[:, 0])
    assert score[order[:300], 0].mean() > score[order[-300:], 0].mean() + 0.4
    assert abs(score - cross_fit(log.features, log.is_correct, log.unit)).mean() < 0.03
    constant = fit_scorer(np.ones((20, 5)), np.ones((20, 2), dtype=np.bool_))
    assert (constant.probabilities(np.ones((1, 5))) > 0.5).all()


def test_cross_fitted_scores_do_not_see_their_unit() -> None:
    """Turning the labels of one unit round leaves its own scores as they are."""
    log = make_log(np.random.default_rng(2), 200)
    assert log.features is not None
    unit = np.repeat(np.arange(100), 2)
    flipped = log.is_correct.copy()
    flipped[:2] = ~flipped[:2]
    before, after = (cross_fit(log.features, labels, unit) for labels in (log.is_correct, flipped))
    assert (before[:2] == after[:2]).all()
    assert (before[2:] != after[2:]).any()


def test_a_request_pays_from_its_entry_on() -> None:
    """Loss, cost, exit and latency of every request equal those of a loop over the chain."""
    rng = np.random.default_rng(3)
    log = replace(
        make_log(rng, 300),
        models=("a", "b", "c"),
        is_correct=rng.random((300, 3)) < 0.7,
        confidence=rng.random((300, 3)),
        cost=rng.random((300, 3)),
        confidence_cost=rng.random((300, 3)),
        latency_ms=rng.random((300, 3)),
        entry_score=rng.random((300, 3)),
    )
    score = rng.random((300, 3))
    route = Route((0, 1, 2), (0.6, 0.7), EntryRule(0.5, (0.1, 0.5, 0.9)))
    entries, outcome = find_entries(log, route), follow_route(log, score, route)
    assert set(entries) == {0, 1, 2}
    for i in range(300):
        cost = latency = 0.0
        for k in range(int(entries[i]), 3):
            cost += log.cost[i, k] + (log.confidence_cost[i, k] if k < 2 else 0.0)
            latency += log.latency_ms[i, k]
            if k == 2 or score[i, k] >= route.cuts[k]:
                break
        assert outcome.exit[i] == k
        assert outcome.loss[i] == 1.0 - log.is_correct[i, k]
        assert (outcome.cost[i], outcome.latency_ms[i]) == (pytest.approx(cost), pytest.approx(latency))


def test_the_joint_search_is_exact_for_a_pair() -> None:
    """For one rule, no cut has less expected loss at the cost of any route that the search returns."""
    (log,), (score,) = score_parts(make_log(np.random.default_rng(4), 150))
    rule = list_rules(log, 1)[3]
    entries = find_entries(log, Route((0, 1), (), rule))
    assert 0 < entries.mean() < 1

    def expect(cut: float) -> tuple[float, float]:
        is_first = (entries == 0) & (score[:, 0] >= cut)
        loss = np.where(is_first, 1 - score[:, 0], 1 - score[:, 1]).mean()
        cost = np.where(entries == 0, log.cost[:, 0], 0.0) + np.where(is_first, 0.0, log.cost[:, 1])
        return float(loss), float(cost.mean())

    points = [expect(cut) for cut in np.unique(score[:, 0])]
    routes = [route for route in search_chain(log, score, (0, 1), 50, rule) if len(route.chain) == 2]
    assert routes
    for route in routes:
        loss, cost = expect(route.cuts[0])
        assert not any(other < loss - 1e-9 and paid <= cost + 1e-9 for other, paid in points)


def test_it_pays_where_the_first_call_is_expensive() -> None:
    """At 60 % of the last call's price the joint search is cheaper for the same limit; at 3 % it gains little."""
    gains = {}
    for first_cost in (FIRST_COST, 0.03):
        ratios = []
        for seed in range(4):
            rng = np.random.default_rng([5, seed])
            logs, scores = score_parts(make_log(rng, 300, first_cost), make_log(rng, 2000, first_cost))
            tune, truth = logs
            cost = float(tune.cost[:, 1].mean())
            for rules in ([], list_rules(tune, 1)[1:5]):
                sequence = rank_sequences(list_sequences(tune, scores[0], [(0,), (0, 1)], 1, rules), 0.05, cost)[0]
                outcomes = [
                    (float(row_differences(truth, scores[1], route, 1).mean()), follow_route(truth, scores[1], route))
                    for route in sequence.routes[::3]
                ]
                kept = [outcome.cost.mean() for loss, outcome in outcomes if loss <= 0.05]
                ratios.append(float(min(kept, default=cost)) / cost)
        gains[first_cost] = np.mean(ratios[::2]) - np.mean(ratios[1::2])
    assert gains[FIRST_COST] > 0.02
    assert abs(gains[0.03]) < 0.02


@pytest.mark.slow
def test_promises_hold_with_the_joint_search() -> None:
    """Of 24 plans chosen with rules on tuning rows, at most 5 % (and noise) lose more than promised."""
    broken = 0
    for seed in range(24):
        rng = np.random.default_rng([6, seed])
        logs, scores = score_parts(*(make_log(rng, rows) for rows in (200, 400, 5000)))
        sequences = list_sequences(logs[0], scores[0], [(0,), (0, 1)], 1, list_rules(logs[0], 1)[2:4])
        ranked = rank_sequences(sequences, 0.05, float(logs[0].cost[:, 1].mean()))
        thinned = [RouteSequence(each.chain, each.routes[::8], each.cost[::8], each.difference[::8]) for each in ranked]
        walk = choose_walk(certify_routes(thinned, logs[1], scores[1], 1, Limits(max_loss=0.05, delta=0.05)))
        if walk is not None and walk.passed is not None:
            broken += float(row_differences(logs[2], scores[2], walk.passed.route, 1).mean()) > 0.05 + 0.003
    assert broken <= 0.05 * 24 + 2 * np.sqrt(24 * 0.05 * 0.95)


SPEC = """
version: 1
kind: cascade
name: entered
data: {source: recorded, path: log.csv, prompt: prompt}
stages:
  - name: answer
    models:
      - name: small
        price: 0.6
        endpoint: {url: "http://127.0.0.1:9/v1", model: s}
        recorded: {score: s, confidence: sc}
      - name: large
        price: 1.0
        endpoint: {url: "http://127.0.0.1:9/v1", model: l}
        recorded: {score: l, confidence: lc}
confidence: {from: logprob}
entry: {features: [length]}
goal: {max_loss: 8%}
"""


def test_a_plan_with_an_entry_gate_is_served(tmp_path: Path) -> None:
    """The plan names rule and scorer; the gateway lets the same prompts skip the first model, and reports it."""
    log = make_log(np.random.default_rng(7), 1200)
    assert log.features is not None
    lines = ["prompt,s,sc,l,lc"]
    prompts = [f"{k} " + "ab " * int(np.exp(log.features[k, 0]) / 3) for k in range(1200)]
    for k, prompt in enumerate(prompts):
        cells = (int(log.is_correct[k, 0]), log.confidence[k, 0], int(log.is_correct[k, 1]), log.confidence[k, 1])
        lines.append(",".join(map(str, (prompt, *cells))))
    (tmp_path / "log.csv").write_text("\n".join(lines))
    (tmp_path / "spec.yaml").write_text(SPEC)
    spec = spec_of(tmp_path / "spec.yaml")
    report = plan(spec, run_in(tmp_path / "run", base=tmp_path))
    decision = report.decision
    assert decision is not None
    assert decision["entry"] is not None, report.lines
    assert "skip small, judged by the length of their prompt" in dict(report.lines)["entry"]
    gate = build_gateway_plan(spec, {"decision": decision}).entry
    assert gate is not None
    positions = [gate.find_position(prompt) for prompt in prompts[:200]]
    short, long = (prompts[k] for k in (positions.index(0), positions.index(1)))
    assert len(long) > len(short)
    with serve_gateway(
        tmp_path, always(text="cheap"), always(text="dear"), entry=gate, longest_prompt=10**6
    ) as gateway:
        _, head, _ = gateway.post(ask(short))
        assert head["x-unfold-route"] == "small:0.71>=0.50"
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(SMALL_COST, abs=1e-9)
        _, head, _ = gateway.post(ask(long))
        assert (head["x-unfold-route"], head["x-unfold-promise"]) == ("small:skip,large", "2pt@95")
        assert float(head["x-unfold-cost-usd"]) == pytest.approx(LARGE_COST, abs=1e-9)
    for key, value in (
        ("scorer", {}),
        ("features", ["other"]),
        ("embedding", []),
        ("costs_usd", [1.0]),
        ("price", "dear"),
    ):
        with pytest.raises(UnfoldError, match="written by another version"):
            read_entry({**decision, "entry": {**decision["entry"], key: value}})


def test_prompts_are_measured_without_a_division_by_zero() -> None:
    """An empty prompt has finite features; every feature grows with what it counts."""
    texts = ("", "a", "a b", "a b\nc", "a b\nc 1!")
    rows = [measure_length(text) for text in texts]
    assert np.isfinite(rows).all()
    assert all(later[0] > earlier[0] for earlier, later in itertools.pairwise(rows))
    assert rows[-1][3] > 0.0
    assert rows[-1][4] > 0.0


TOPICS = (
    "Solve the integral of {} over the unit circle and prove convergence",
    "Write a friendly birthday wish to my aunt {} today",
)


def make_topical_prompts(rng: np.random.Generator, rows: int) -> tuple[list[str], np.ndarray]:
    """Draw prompts of equal length; the subject decides whether the cheap model fails."""
    is_hard = rng.random(rows) < 0.5
    names = ["Ada", "Eve", "Bob", "Max", "Zoe"]
    texts = [TOPICS[0 if hard else 1].format(names[int(rng.integers(5))]) for hard in is_hard]
    return [text.ljust(80, "x") for text in texts], is_hard


def test_an_embedding_sees_the_subject_where_lengths_are_equal() -> None:
    """Scores of unseen prompts separate subjects by the embedding, and hardly without it."""
    rng = np.random.default_rng(8)
    (texts, is_hard), (others, is_other_hard) = make_topical_prompts(rng, 200), make_topical_prompts(rng, 200)
    gaps = {}
    for name in ("length", "embedding"):
        reader = build_prompt_reader(["length", name])
        is_correct = np.column_stack([rng.random(200) < np.where(is_hard, 0.2, 0.9), np.ones(200, dtype=np.bool_)])
        score = fit_scorer(reader.read(texts), is_correct).probabilities(reader.read(others))[:, 0]
        gaps[name] = score[~is_other_hard].mean() - score[is_other_hard].mean()
    assert gaps["embedding"] > 0.4
    noise = rng.random((200, 1)) < 0.5
    chance = fit_scorer(reader.read(texts), noise).probabilities(reader.read(others))
    assert np.abs(chance - noise.mean()).mean() < 0.15


def test_an_embedding_is_the_same_alone_and_in_a_batch() -> None:
    """Served prompts come alone, those of a log together; strange and endless texts have finite features too."""
    reader = build_prompt_reader(["embedding"])
    texts = ["a", "", "long " * 5000, "\ud800 lone", "\x00", "日本語の質問", "🙂" * 9000]
    together = reader.read(texts)
    assert together.shape == (len(texts), reader.size)
    assert np.isfinite(together).all()
    for row, text in zip(together, texts, strict=True):
        assert row == pytest.approx(reader.read([text])[0], abs=1e-5)
    assert reader.read(["word " * 4000])[0][5:] == pytest.approx(reader.read([("word " * 4000)[:LONGEST_TEXT]])[0][5:])


def test_a_plan_with_an_embedding_is_served_by_the_same_weights_only(tmp_path: Path) -> None:
    """The gateway reads what the plan names; other weights are refused."""
    rng = np.random.default_rng(9)
    prompts, is_hard = make_topical_prompts(rng, 900)
    small = rng.random(900) < np.where(is_hard, 0.1, 0.97)
    rows = [
        f"{prompt} {k:04},{int(s)},{np.log(rng.uniform(0.3, 0.99))},{int(rng.random() < 0.95)},-0.1"
        for k, (prompt, s) in enumerate(zip(prompts, small, strict=True))
    ]
    (tmp_path / "log.csv").write_text("\n".join(["prompt,s,sc,l,lc", *rows]))
    (tmp_path / "spec.yaml").write_text(SPEC.replace("[length]", "[length, embedding]"))
    spec = spec_of(tmp_path / "spec.yaml")
    report = plan(spec, run_in(tmp_path / "run", base=tmp_path))
    assert "judged by the length and embedding of their prompt" in dict(report.lines)["entry"]
    decision = json.loads(json.dumps(report.decision))
    gate = build_gateway_plan(spec, {"decision": decision}).entry
    assert gate is not None
    positions = np.array([gate.find_position(prompt) for prompt in prompts[:100]])
    assert positions[is_hard[:100]].mean() > 0.9
    assert positions[~is_hard[:100]].mean() < 0.1
    decision["entry"]["embedding"] = decision["entry"]["embedding"][:-1] + "?"
    with pytest.raises(UnfoldError, match="written by another version"):
        read_entry(decision)
