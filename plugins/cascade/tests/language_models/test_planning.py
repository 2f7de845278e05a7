"""Calibration, search, conversations, labels and the certificate of routes through language models."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.language_models.synthetic_logs import make_log
from plugins.cascade.tests.runs import run_in, spec_of
from unfold_cascade.language_models.build import (
    build_routing_problem,
    join_units,
    load_log_frame,
    read_call_log,
    token_prices,
)
from unfold_cascade.language_models.planning.calibration import fit_calibration, parse_calibration
from unfold_cascade.language_models.planning.call_log import Route, find_answers, follow_route, score_log
from unfold_cascade.language_models.planning.certificate import (
    FIRST_SHARE,
    Limits,
    RouteSequence,
    certify_routes,
    choose_walk,
    list_sequences,
    rank_sequences,
    row_differences,
)
from unfold_cascade.language_models.planning.planner import solve_routing
from unfold_cascade.language_models.planning.problem import split_units
from unfold_cascade.language_models.planning.proposals import search_chain
from unfold_cascade.language_models.report.plan import build_decision, build_routing_report
from unfold_cascade.schema.language_models import TokenPrice
from unfold_cascade.verbs import plan
from unfoldkit.api import UnfoldError, Verdict, dump
from unfoldkit.render.text import render

LIMITS = Limits(max_loss=0.03, delta=0.05)
SPEC = """
version: 1
kind: cascade
name: judged
data: {source: recorded, path: log.csv}
stages:
  - name: answer
    models:
      - name: small
        price: {in: 0.15, cached: 0.075, out: 0.60, per: 1M}
        recorded: {score: small, confidence: small_logp, tokens: {in: small_in, out: small_out}, latency: small_ms}
      - name: large
        price: {in: 2.5, out: 10, per: 1M}
        recorded: {score: large, confidence: large_logp, tokens: {in: large_in, out: large_out}, latency: large_ms}
goal: {max_loss: 5%}
"""


def write_log(folder: Path, rows: int = 1200, *, seed: int = 4, lift: float = 0.02) -> None:
    """Write a log with token counts and the spec for it."""
    rng = np.random.default_rng(seed)
    log = make_log(rng, rows, lift=lift)
    head = "small,small_logp,small_in,small_out,small_ms,large,large_logp,large_in,large_out,large_ms"
    lines = [
        ",".join(
            str(cell)
            for m in range(2)
            for cell in (int(log.is_correct[i, m]), log.confidence[i, m], 100 + i % 7, 20 + i % 5, log.latency_ms[i, m])
        )
        for i in range(rows)
    ]
    (folder / "log.csv").write_text("\n".join([head, *lines]) + "\n")
    (folder / "log.yaml").write_text(SPEC)


def test_calibration_recovers_probabilities_of_either_sign() -> None:
    """The score is close to the true probability, also where the confidence points the wrong way."""
    rng = np.random.default_rng(0)
    p = rng.beta(4, 2, 5000)
    is_correct = rng.random(5000) < p
    for confidence in (np.log(p), np.log1p(-p)):
        fit = fit_calibration(confidence, is_correct)
        assert np.abs(fit.probabilities(confidence) - p).mean() < 0.03
        assert parse_calibration(fit.to_document()) == fit


def test_confidences_that_are_infinite_or_missing_are_never_sure() -> None:
    """A missing confidence opens no gate, and an infinite one does not set the scale of the others."""
    confidence = np.array([-0.1, -2.0, -np.inf, np.nan, 0.0] * 20)
    is_correct = np.array([True, False, False, True, True] * 20)
    fit = fit_calibration(confidence, is_correct)
    score = fit.probabilities(confidence[:5])
    assert score[2] == score[3] == -np.inf
    assert np.isfinite(score[[0, 1, 4]]).all()
    assert score[4] > score[1]
    assert fit.probability(None) == -np.inf


@pytest.mark.parametrize(("unsure", "sure"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.4)])
def test_confidences_of_two_values_differ(unsure: float, sure: float) -> None:
    """A judge that answers 0 or 1 is calibrated like any other, though its log-odds are infinite."""
    is_correct = np.arange(400) % 10 < np.where(np.arange(400) < 200, 9, 3)
    confidence = np.where(np.arange(400) < 200, sure, unsure)
    probabilities = fit_calibration(confidence, is_correct).probabilities(np.array([sure, unsure]))
    assert np.allclose(probabilities, [0.9, 0.3], atol=0.02)


def test_one_class_and_constant_confidences_do_not_fail() -> None:
    """A model which is always correct, or a confidence without variation, gives a finite score."""
    assert 0.9 < fit_calibration(np.linspace(-1, -0.01, 50), np.ones(50, dtype=bool)).probability(-0.5) <= 1.0
    assert fit_calibration(np.full(50, -0.3), np.arange(50) % 2 == 0).probability(-0.3) == pytest.approx(0.5, abs=0.02)


def test_cost_and_exit_equal_a_walk_request_by_request() -> None:
    """The price of a confidence is paid at gates only, not by the last model."""
    rng = np.random.default_rng(1)
    log = replace(make_log(rng, 200), confidence_cost=rng.random((200, 2)))
    score = score_log(log, [fit_calibration(log.confidence[:, m], log.is_correct[:, m]) for m in range(2)])
    outcome = follow_route(log, score, Route((0, 1), (0.8,)))
    for i in range(200):
        trusted = score[i, 0] >= 0.8
        cost = log.cost[i, 0] + log.confidence_cost[i, 0] + (0.0 if trusted else log.cost[i, 1])
        assert outcome.cost[i] == pytest.approx(cost)
        assert outcome.loss[i] == 1.0 - log.is_correct[i, 0 if trusted else 1]
    assert (follow_route(log, score, Route((1,), ())).cost == log.cost[:, 1]).all()


def test_later_turns_stay_with_the_model_of_the_first() -> None:
    """In a sticky conversation the first turn decides, and only it pays the calls before."""
    rng = np.random.default_rng(2)
    unit = np.repeat(np.arange(50), 4)
    log = replace(make_log(rng, 200, unit=unit), turn=np.tile(np.arange(4), 50))
    score = score_log(log, [fit_calibration(log.confidence[:, m], log.is_correct[:, m]) for m in range(2)])
    outcome = follow_route(log, score, Route((0, 1), (0.85,)))
    for i in range(200):
        opener = 4 * (i // 4)
        model = 0 if score[opener, 0] >= 0.85 else 1
        assert outcome.exit[i] == model
        whole = log.cost[i, model] + (log.cost[i, 0] if i == opener and model == 1 else 0.0)
        assert outcome.cost[i] == pytest.approx(whole)


def test_conversations_with_a_common_prompt_are_routed_apart() -> None:
    """They are one unit of the certificate, but each has a first turn of its own, which its gate decides."""
    rng = np.random.default_rng(2)
    conversation = np.repeat(np.arange(50), 4)
    apart = replace(make_log(rng, 200, unit=conversation), turn=np.arange(200))
    together = replace(apart, unit=conversation // 2, conversation=conversation)
    score = score_log(apart, [fit_calibration(apart.confidence[:, m], apart.is_correct[:, m]) for m in range(2)])
    outcomes = [follow_route(log, score, Route((0, 1), (0.85,))) for log in (apart, together)]
    assert outcomes[1].cost.tolist() == outcomes[0].cost.tolist()


def test_later_turns_have_no_vote() -> None:
    """Only the first turn of a conversation is answered by the vote that its gate trusts; later ones by one sample."""
    rng = np.random.default_rng(3)
    log = replace(
        make_log(rng, 200, unit=np.repeat(np.arange(50), 4)),
        turn=np.tile(np.arange(4), 50),
        answer=rng.integers(0, 5, (200, 2)),
        gated_answer=rng.integers(5, 10, (200, 2)),
    )
    assert log.answer is not None
    assert log.gated_answer is not None
    exits = np.repeat(rng.integers(0, 2, 50), 4)
    expected = [
        log.gated_answer[i, 0] if i % 4 == 0 and model == 0 else log.answer[i, model] for i, model in enumerate(exits)
    ]
    assert find_answers(log, Route((0, 1), (0.85,)), exits).tolist() == expected


@pytest.mark.slow
def test_promises_hold_on_new_populations() -> None:
    """Of 120 plans at a limit between the true losses, at most 5 % (and noise) lose more than promised."""
    broken = plans = 0
    for seed in range(120):
        rng = np.random.default_rng([9, seed])
        tune, certify, truth = (make_log(rng, rows, lift=0.06) for rows in (200, 500, 20_000))
        fits = [fit_calibration(tune.confidence[:, m], tune.is_correct[:, m]) for m in range(2)]
        sequences = list_sequences(tune, score_log(tune, fits), [(0,), (0, 1)], 1)
        ranked = rank_sequences(sequences, 0.03, float(tune.cost[:, 1].mean()))
        walk = choose_walk(certify_routes(ranked, certify, score_log(certify, fits), 1, LIMITS))
        assert walk is not None
        if walk.passed is not None:
            plans += 1
            route = walk.passed.route
            broken += float(row_differences(truth, score_log(truth, fits), route, 1).mean()) > 0.03 + 0.002
    assert plans > 20
    assert broken <= 0.05 * 120 + 3 * np.sqrt(120 * 0.05 * 0.95)


def test_a_second_chain_saves_where_the_first_fails() -> None:
    """Of two chains the first is tested at most of delta and the second at the rest; the one that passes is chosen."""
    rng = np.random.default_rng(1)
    tune, certify = make_log(rng, 300), make_log(rng, 1500)
    fits = [fit_calibration(tune.confidence[:, m], tune.is_correct[:, m]) for m in range(2)]
    alone, pair = list_sequences(tune, score_log(tune, fits), [(0,), (0, 1)], 1)
    thinned = RouteSequence(pair.chain, pair.routes[:40], pair.cost[:40], pair.difference[:40])
    first, second = walks = certify_routes([alone, thinned], certify, score_log(certify, fits), 1, LIMITS)
    assert first.passed is None
    assert first.delta + second.delta == pytest.approx(LIMITS.delta)
    assert first.delta == pytest.approx(FIRST_SHARE * LIMITS.delta)
    assert choose_walk(walks) is second
    assert second.passed is not None
    assert second.passed.p_value <= second.delta
    assert second.cost == pair.cost[pair.routes.index(second.passed.route)]


def test_a_chain_within_the_first_takes_no_part_of_delta() -> None:
    """The small model alone is the last route of the pair, so the pair is tested at the whole of delta."""
    log = make_log(np.random.default_rng(2), 600)
    score = score_log(log, [fit_calibration(log.confidence[:, m], log.is_correct[:, m]) for m in range(2)])
    alone, pair = list_sequences(log, score, [(0,), (0, 1)], 1)
    assert pair.routes[-1] == alone.routes[0]
    (walk,) = certify_routes([pair, alone], log, score, 1, LIMITS)
    assert walk.delta == LIMITS.delta
    assert certify_routes([], log, score, 1, LIMITS) == ()


def test_unlabelled_rows_count_against_the_plan_unless_answers_agree() -> None:
    """Equal answers differ by nothing without a label; other unlabelled answers count as made worse."""
    rng = np.random.default_rng(6)
    log = make_log(rng, 8)
    log = replace(
        log,
        is_correct=np.tile([True, True], (8, 1)),
        answer=np.array([[0, 0], [0, 1]] * 4),
        is_unlabelled=np.array([[True, True], [True, True], [False, False], [False, False]] * 2),
    )
    d = row_differences(log, np.ones((8, 2)), Route((0, 1), (0.5,)), 1)
    assert d.tolist() == [0.0, 1.0, 0.0, 0.0] * 2


def test_search_leaves_no_model_that_never_answers() -> None:
    """Gates which trust all or none are resolved, so that no chain pays for a model in vain."""
    log = make_log(np.random.default_rng(3), 300)
    score = score_log(log, [fit_calibration(log.confidence[:, m], log.is_correct[:, m]) for m in range(2)])
    routes = search_chain(log, score, (0, 1))
    assert all(np.isfinite(route.cuts).all() for route in routes)
    assert {len(route.chain) for route in routes} == {1, 2}


def test_rows_with_one_prompt_or_group_are_one_unit() -> None:
    """Prompts are compared without case and spacing; units join through either key."""
    unit = join_units(np.array(["a", "a", "b", ""]), ["x", "y", " Y ", "z"], 4)
    assert len(set(unit[:3])) == 1
    assert unit[3] != unit[0]
    parts = split_units(np.repeat(np.arange(40), 3), 0.25, 0.6, 0, min_tuning=0)
    sizes = [len(part) for part in (parts.tune, parts.certify, parts.test)]
    assert sizes == [30, 72, 18]
    assert sorted(np.concatenate([parts.tune, parts.certify, parts.test])) == list(range(120))


def test_token_prices_count_cached_and_written_tokens_once() -> None:
    """Cached and written tokens are part of the input, each at its own price."""
    prices = token_prices(
        TokenPrice.model_validate({"in": 1.0, "cached": 0.1, "written": 1.25, "out": 4.0, "per": "1M"})
    )
    assert prices.cost(1000, 100, cached=600, written=200) == pytest.approx((200 + 60 + 250 + 400) / 1e6)
    assert prices.cost(100, 0, cached=600) >= 0.0


def test_a_plan_states_promise_costs_and_calibration(tmp_path: Path) -> None:
    """The plan names chain, cuts, calibrations and promise; costs are those of the tokens."""
    write_log(tmp_path)
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    assert report.verdict is Verdict.YES
    decision = report.decision
    assert decision is not None
    assert decision["chain"][-1] in ("small", "large")
    assert decision["promise"]["max_loss"] == 0.05
    assert report.metrics["cost_ratio"].value is not None
    assert report.metrics["cost_ratio"].value < 1
    assert "certificate" in dict(report.lines)
    assert "nan" not in str(render(report)).lower()


def test_a_refusal_states_the_limit_that_would_pass_and_the_rows_needed(tmp_path: Path) -> None:
    """Set to the stated limit, the same log is certified; at a tenth of a point less it is not."""
    write_log(tmp_path, lift=0.1)
    refused = plan(spec_of(tmp_path / "log.yaml", "goal.max_loss=0.2%"), run_in(tmp_path / "a", base=tmp_path))
    assert refused.verdict is Verdict.NO
    assert refused.decision is not None
    assert refused.decision["chain"] == ["large"]
    smallest = refused.metrics["smallest_limit_points"].value
    assert smallest is not None
    assert "needed" in dict(refused.lines)
    relaxed = plan(
        spec_of(tmp_path / "log.yaml", f"goal.max_loss={smallest + 0.1:g}%"), run_in(tmp_path / "b", base=tmp_path)
    )
    assert relaxed.verdict is Verdict.YES


def test_a_route_that_saves_on_tuning_rows_only_is_refused(tmp_path: Path) -> None:
    """Prices that change within the log, here from one part of the split to the next, must not read as a saving."""
    write_log(tmp_path)
    spec = spec_of(tmp_path / "log.yaml")
    problem = build_routing_problem(spec, run_in(tmp_path / "run", base=tmp_path))
    assert solve_routing(problem).extra_cost is None
    fresh = np.concatenate([problem.parts.certify, problem.parts.test])
    cost = problem.log.cost.copy()
    cost[fresh, 0] = 2.0 * cost[fresh, 1]
    solution = solve_routing(replace(problem, log=replace(problem.log, cost=cost)))
    report = build_routing_report(solution, run_in(tmp_path / "b", base=tmp_path).directory, "plan")
    assert solution.walk is not None
    assert solution.walk.passed is not None
    assert report.verdict is Verdict.NO
    assert "the certified one costs" in report.headline
    assert build_decision(solution)["chain"] == ["large"]


@pytest.mark.parametrize("is_newest_first", [False, True])
@pytest.mark.parametrize("late", [0.0, 0.3])
def test_a_log_whose_last_requests_break_the_promise_is_refused(
    tmp_path: Path, late: float, is_newest_first: bool
) -> None:
    """A model that a provider replaces late in a log stays as sure; tools often export the newest requests first."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    stamped = []
    for k, line in enumerate(lines):
        replaced = line if k < (1.0 - late) * len(lines) else f"0{line[1:]}"
        stamped.append(f"{replaced},2026-0{1 + k // 200}-01T00:{k // 60 % 60:02}:{k % 60:02}Z")
    ordered = stamped[::-1] if is_newest_first else stamped
    (tmp_path / "log.csv").write_text("\n".join([f"{head},created_at", *ordered]) + "\n")
    problem = build_routing_problem(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    wide = replace(problem, limits=replace(problem.limits, max_loss=0.2))
    solution = solve_routing(wide)
    report = build_routing_report(solution, run_in(tmp_path / "run", base=tmp_path).directory, "plan")
    assert report.verdict is (Verdict.NO if late else Verdict.YES)
    assert ("loss of the route grows along the log" in report.headline) == bool(late)
    if late:
        # the test of a random part alone keeps the promise
        assert solve_routing(replace(wide, rank=None)).route is not None


def test_a_log_that_is_sorted_by_subject_has_no_order_in_time(tmp_path: Path) -> None:
    """Benchmarks are sorted by subject, and the last subject may be the hardest; months and times are no subjects."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    ranks = []
    for words in (("algebra", "history"), ("2026-01", "2026-02")):
        rows = [f"{line},{words[k * 2 // len(lines)]}" for k, line in enumerate(lines)]
        (tmp_path / "log.csv").write_text("\n".join([f"{head},part", *rows]) + "\n")
        spec = spec_of(tmp_path / "log.yaml")
        ranks.append(build_routing_problem(spec, run_in(tmp_path / "run", base=tmp_path)).rank)
    assert ranks[0] is None
    assert ranks[1] is not None


def test_one_long_prompt_takes_its_own_room_only(tmp_path: Path) -> None:
    """A log with one prompt of 100,000 letters is read without giving each row that room."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    prompts = ["long " * 20_000, *(f"prompt {k}" for k in range(1, len(lines)))]
    rows = [f"{line},{prompt},{prompt}" for line, prompt in zip(lines, prompts, strict=True)]
    (tmp_path / "log.csv").write_text("\n".join([f"{head},ask,question", *rows]) + "\n")
    spec = spec_of(tmp_path / "log.yaml", "data.prompt=ask")
    tracemalloc.start()
    try:
        problem = build_routing_problem(spec, run_in(tmp_path / "run", base=tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert problem.longest_prompt == len("long " * 20_000) - 1


def test_turns_of_a_conversation_follow_their_times(tmp_path: Path) -> None:
    """The gate decides the first turn, which is the last row where the newest comes first."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [f"{line},c{k // 4},{1_800_000_000 - 60 * k}" for k, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([f"{head},talk,timestamp", *rows]) + "\n")
    settings = ("data.group=talk", "serve={sticky: conversation}")
    spec = spec_of(tmp_path / "log.yaml", *settings)
    log, _ = read_call_log(spec, load_log_frame(spec, run_in(tmp_path / "run", base=tmp_path)))
    assert log.turn is not None
    assert (np.diff(log.turn) < 0).all()


def test_a_latency_limit_is_certified_or_its_smallest_value_stated(tmp_path: Path) -> None:
    """A deadline which cannot be met is refused with the one that can."""
    write_log(tmp_path)
    spec = spec_of(tmp_path / "log.yaml", "goal.max_latency={p95: 100 ms}")
    refused = plan(spec, run_in(tmp_path / "a", base=tmp_path))
    assert refused.verdict is Verdict.NO
    assert "the smallest limit" in dict(refused.lines)["deadline"]
    kept = plan(spec_of(tmp_path / "log.yaml", "goal.max_latency={p95: 60 s}"), run_in(tmp_path / "b", base=tmp_path))
    assert kept.verdict is Verdict.YES


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("small_in, out", "missing_column, out", "missing_column"),
        ("latency: small_ms", "latency: other_ms", "other_ms"),
        ("score: small,", "score: nothing,", "nothing"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    """An error names the column that the log lacks."""
    write_log(tmp_path)
    (tmp_path / "log.yaml").write_text(SPEC.replace(before, after))
    with pytest.raises(UnfoldError, match=message):
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("logprob", np.exp, "which is no log-probability"),
        ("logprob", np.negative, "which is no log-probability"),
        ("check", lambda confidence: 100 * np.exp(confidence), "which is no probability"),
        ("check", lambda confidence: confidence - 0.1, "which is no probability"),
        ("logprob", lambda confidence: confidence + 1e-6, ""),
        ("check", np.exp, ""),
        ("column", np.exp, ""),
    ],
)
def test_confidences_have_the_scale_of_their_source(tmp_path: Path, source: str, change: Any, message: str) -> None:
    """Probabilities that are named log-probabilities were all cut to 0, and the plan said that nothing saves."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[1], row[6] = (str(float(change(min(float(row[k]), 0.0)))) for k in (1, 6))
    (tmp_path / "log.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC + f"confidence: {{from: {source}}}\n")
    if message:
        with pytest.raises(UnfoldError, match=message):
            plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    else:
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))


def test_rows_that_repeat_others_count_once(tmp_path: Path) -> None:
    """Retries of a gateway differ in latency only: 150 distinct requests, each four times, were 600 requests."""
    write_log(tmp_path, 150)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [
        [f"{float(cell) + retry}" if k == 4 else cell for k, cell in enumerate(line.split(","))]
        for retry in range(4)
        for line in lines
    ]
    (tmp_path / "log.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "a", base=tmp_path))
    assert report.metrics["certifying_units"].value == 60
    assert "(450 identical" in dict(report.lines)["note"]
    kept = plan(spec_of(tmp_path / "log.yaml", "data.duplicates=keep"), run_in(tmp_path / "b", base=tmp_path))
    assert kept.metrics["certifying_units"].value == 360


@pytest.mark.parametrize(
    ("column", "prompt", "setting", "repeats"),
    [
        ("request.Messages", "what is {0}?", None, True),
        ("question", "what is {0}?", "data.group=id", True),
        ("question", "what is {0}?", "data.duplicates=keep", False),
        ("input", "{0}", None, False),
        ("question,prompt", "what is {0}?,{1} is what?", None, False),
        ("question", "what is this?", None, False),
    ],
)
def test_samples_of_one_prompt_count_once_though_no_key_names_it(
    tmp_path: Path, column: str, prompt: str, setting: str | None, repeats: bool
) -> None:
    """Distinct ids and answers that differ hid that 600 requests have 150 prompts; numbers and templates are none."""
    write_log(tmp_path, 600)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [f"r{row},{prompt.format(row // 4, row)},{line}" for row, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([f"id,{column},{head}", *rows]) + "\n")
    settings = (setting,) if setting else ()
    report = plan(spec_of(tmp_path / "log.yaml", *settings), run_in(tmp_path / "a", base=tmp_path))
    assert (report.metrics["certifying_units"].value == 60) == repeats
    assert (f'the 600 rows count as 150: prompts of the column "{column}"' in str(report.lines)) == repeats


def test_rows_without_any_answer_are_no_requests(tmp_path: Path) -> None:
    """Failed attempts of all models counted as requests on which the route loses nothing."""
    write_log(tmp_path, 600)
    clean = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "b", base=tmp_path))
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    failed = [f",,{100 + row},0,,,,100,0," for row in range(400)]
    (tmp_path / "log.csv").write_text("\n".join([head, *lines, *failed]) + "\n")
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "a", base=tmp_path))
    assert report.metrics == clean.metrics
    assert "skipped 400 rows of log.csv in which no model answered" in str(report.lines)


def test_a_confidence_that_has_seen_the_answer_certifies_nothing(tmp_path: Path) -> None:
    """A column that separates right from wrong without error is a leaked label, unless the spec trusts it."""
    write_log(tmp_path, 300)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for k, row in enumerate(rows):
        row[1] = f"{-0.1 - k / 1e4 - 2 * (row[0] == '0')}"
    (tmp_path / "log.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "a", base=tmp_path))
    assert report.verdict is Verdict.NO
    assert '"small_logp" predicts the label without error' in report.headline
    assert report.decision is not None
    assert report.decision["chain"] == ["large"]
    trusted = plan(spec_of(tmp_path / "log.yaml", "data.trusted=[small_logp]"), run_in(tmp_path / "b", base=tmp_path))
    assert trusted.verdict is Verdict.YES


@pytest.mark.parametrize("column", ["small_ms", "small_s"])
def test_latencies_in_seconds_are_converted_or_refused(tmp_path: Path, column: str) -> None:
    """Read as milliseconds, they kept every deadline; a name that ends in _s states the unit."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[4], row[9] = (f"{float(row[k]) / 1000}" for k in (4, 9))
    head = head.replace("small_ms", column).replace("large_ms", column.replace("small", "large"))
    (tmp_path / "log.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
    names = SPEC.replace("small_ms", column).replace("large_ms", column.replace("small", "large"))
    (tmp_path / "log.yaml").write_text(names)
    spec, run = spec_of(tmp_path / "log.yaml", "goal.max_latency={p95: 2 s}"), run_in(tmp_path / "run", base=tmp_path)
    if column == "small_s":
        p95_ms = plan(spec, run).metrics["latency_p95_ms"].value
        assert p95_ms is not None
        assert 100.0 < p95_ms < 2000.0
        return
    with pytest.raises(UnfoldError, match=r"no call takes longer than .* ms, far below 2,000 ms"):
        plan(spec, run)


def test_the_last_model_needs_no_confidence(tmp_path: Path) -> None:
    """Its answers are always taken; the plan is that of the log with the column."""
    write_log(tmp_path)
    whole = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "a", base=tmp_path))
    (tmp_path / "log.yaml").write_text(SPEC.replace("confidence: large_logp, ", ""))
    part = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "b", base=tmp_path))
    assert (part.verdict, part.metrics) == (whole.verdict, whole.metrics)
    (tmp_path / "log.yaml").write_text(
        SPEC.replace("confidence: large_logp, ", "").replace("confidence: small_logp, ", "")
    )
    with pytest.raises(UnfoldError, match="no model has a confidence"):
        spec_of(tmp_path / "log.yaml")


def test_a_log_without_any_model_of_the_spec_shows_the_layout(tmp_path: Path) -> None:
    """Results of batches and exports of traces hold one call per row, and no scores."""
    write_log(tmp_path)
    _, *lines = (tmp_path / "log.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text(
        "\n".join(["custom_id,type", *(f"task-{k},ok" for k in range(len(lines)))]) + "\n"
    )
    spec = spec_of(tmp_path / "log.yaml")
    with pytest.raises(UnfoldError, match="neither a score nor a confidence of any model"):
        build_routing_problem(spec, run_in(tmp_path / "run", base=tmp_path))


@pytest.mark.parametrize("written", ["{}", "vendor/{}", "{}-2024-08-06"])
def test_a_log_of_one_row_per_call_is_named_as_such(tmp_path: Path, written: str) -> None:
    """The exports of gateways have a column with the name of the model, of its provider and of its version."""
    rows = [f"{n},{written.format(model)},1,-0.1" for n in range(20) for model in ("small", "large")]
    (tmp_path / "log.csv").write_text("\n".join(["request,model,score,logprob", *rows]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC)
    with pytest.raises(UnfoldError, match='one row per call: its column "model" names the models'):
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))


def test_rows_of_one_call_are_noticed_beside_scores(tmp_path: Path) -> None:
    """Each request occurs with each model; a column which names the model that served a request is none of that."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [f"{line},{n // 2},{('small', 'large')[n % 2]}" for n, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([f"{head},request_id,model", *rows]) + "\n")
    with pytest.raises(UnfoldError, match='one row per call: its column "model" names the models'):
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    rows = [f"{line},{n},{('small', 'large')[n % 2]}" for n, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([f"{head},request_id,served_by", *rows]) + "\n")
    assert plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path)).metrics


def test_failed_calls_of_the_reference_are_counted(tmp_path: Path) -> None:
    """They count as wrong, so a route may lose as much more; whoever retries them must know."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    rows = [",".join([*row[:5], *([""] * 5 if n % 100 == 0 else row[5:])]) for n, row in enumerate(cells)]
    whole = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "a", base=tmp_path))
    (tmp_path / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    part = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "b", base=tmp_path))
    notes = [text for name, text in part.lines if name == "note"]
    assert "gave no answer to 12 of 1,200 requests (1 %), which count as wrong" in "".join(notes)
    assert not any("gave no answer" in text for _, text in whole.lines)


def test_the_table_of_an_arena_is_refused_with_the_expected_rows(tmp_path: Path) -> None:
    """Which of two answers was preferred does not say whether either is right."""
    rows = [f"{n},small,large,model_a" for n in range(20)]
    head = "question_id,model_a,model_b,winner"
    (tmp_path / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC)
    with pytest.raises(UnfoldError, match="compares two models in each row") as failure:
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    assert "one row per request, with a score and a confidence of each model" in str(failure.value)


def test_a_certificate_of_conversations_counts_fractions_by_their_sign(tmp_path: Path) -> None:
    """Its bound is that of the test which passed, and not above the promise."""
    write_log(tmp_path, 3000)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    rows = [f"{line},conversation {k // 3}" for k, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([f"{head},chat", *rows]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC.replace("path: log.csv}", "path: log.csv, group: chat}"))
    report = plan(spec_of(tmp_path / "log.yaml", "goal.test=betting"), run_in(tmp_path / "run", base=tmp_path))
    assert report.verdict is Verdict.YES
    line = dict(report.lines)["certificate"]
    assert " and 0 made better" not in line
    bound = report.metrics["loss_bound_points"].value
    assert bound is not None
    assert report.metrics["loss_points"].value < bound <= 5.0
    assert f"by this test it loses less than {bound:.1f} points" in line


def test_conversations_without_a_name_are_an_error(tmp_path: Path) -> None:
    """Their turns would count as independent requests."""
    write_log(tmp_path)
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    (tmp_path / "log.csv").write_text("\n".join([f"{head},chat", *(f"{line}, " for line in lines)]) + "\n")
    (tmp_path / "log.yaml").write_text(SPEC.replace("path: log.csv}", "path: log.csv, group: chat}"))
    with pytest.raises(UnfoldError, match="chat has no value in any row"):
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))


def test_the_next_command_serves_only_what_has_endpoints(tmp_path: Path) -> None:
    """A log alone leads to a plan file; serving it would end with an error."""
    write_log(tmp_path)
    text = SPEC.replace("      - name: ", "      - endpoint: {url: 'http://127.0.0.1:1/v1', model: m}\n        name: ")
    for spec, end in ((SPEC, "--out plan.yaml"), (text, "unfold serve"), (text, "--out plan.yaml")):
        source = "column" if spec == text and end.startswith("--") else "logprob"
        (tmp_path / "log.yaml").write_text(f"{spec}confidence: {{from: {source}}}\n")
        report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
        assert end in report.next


@pytest.mark.parametrize(
    ("settings", "rows"),
    [((), 1200), (("data.split={train: 50%, calibrate: 25%, test: 25%}", "gates.max_models=3"), 600)],
)
def test_a_run_is_planned_again_as_its_spec(tmp_path: Path, settings: tuple[str, ...], rows: int) -> None:
    """The spec that a run keeps has the same split and the same longest chain, also where it named neither."""
    write_log(tmp_path, rows)
    spec = spec_of(tmp_path / "log.yaml", *settings)
    (tmp_path / "kept.yaml").write_text(json.dumps(dump(spec)))
    first, again = (
        plan(each, run_in(tmp_path / name, base=tmp_path))
        for name, each in (("a", spec), ("b", spec_of(tmp_path / "kept.yaml")))
    )
    lines = dict(first.lines)
    assert dict(again.lines)["split"] == lines["split"]
    assert again.metrics == first.metrics
    assert lines["split"].startswith("300 rows tune")
    for name in ("split", "max_models"):
        assert (f'"{name}"' in (tmp_path / "kept.yaml").read_text()) == bool(settings)


def test_unknown_usage_is_not_zero_usage(tmp_path: Path) -> None:
    """A call without a count of tokens is an error, not a free call."""
    write_log(tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    cells = lines[7].split(",")
    cells[2] = ""
    lines[7] = ",".join(cells)
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UnfoldError, match="row 7"):
        plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))


def change_cells(folder: Path, column: str, change: Any) -> None:
    """Change the cells of a column of the log; ``change`` receives the row number and the cell."""
    head, *lines = (folder / "log.csv").read_text().splitlines()
    k = head.split(",").index(column)
    rows = [line.split(",") for line in lines]
    cells = [[*row[:k], str(change(n, row[k])), *row[k + 1 :]] for n, row in enumerate(rows)]
    (folder / "log.csv").write_text("\n".join([head, *map(",".join, cells)]) + "\n")


def read_log(folder: Path) -> Any:
    spec = spec_of(folder / "log.yaml")
    return read_call_log(spec, load_log_frame(spec, run_in(folder / "run", base=folder)))[0]


def test_an_answer_without_confidence_that_no_judge_scored_is_unknown(tmp_path: Path) -> None:
    """Output tokens show that the last model answered; taken for failed calls, they made cheap models look better."""
    write_log(tmp_path)
    (tmp_path / "log.yaml").write_text(SPEC.replace("confidence: large_logp, ", ""))
    change_cells(tmp_path, "large", lambda n, cell: cell if n % 4 else "")
    change_cells(tmp_path, "large_out", lambda n, cell: cell if n % 40 else 0)
    log = read_log(tmp_path)
    rows = np.arange(len(log))
    assert log.is_unlabelled is not None
    assert (log.is_unlabelled[:, 1] == ((rows % 4 == 0) & (rows % 40 != 0))).all()
    report = plan(spec_of(tmp_path / "log.yaml"), run_in(tmp_path / "run", base=tmp_path))
    accuracy = float(log.is_correct[~log.is_unlabelled[:, 1], 1].mean())
    assert report.metrics["reference_accuracy"].value == pytest.approx(accuracy, abs=0.06)
    assert report.tables[0].rows[1][1] == pytest.approx(100 * accuracy, abs=6)


@pytest.mark.parametrize("score", [9, -1])
def test_scores_on_another_scale_need_a_threshold(tmp_path: Path, score: int) -> None:
    """From one half on, each answer with points of ten would be right; -1 often marks that no judge answered."""
    write_log(tmp_path)
    change_cells(tmp_path, "large", lambda n, cell: score if n == 5 else cell)
    with pytest.raises(UnfoldError, match=f'row 6 of column "large" holds {score}, beyond 0 to 1') as error:
        read_log(tmp_path)
    assert error.value.diagnostics[0].key == "stages[0].models[1].recorded.score"
    (tmp_path / "log.yaml").write_text(SPEC.replace("{score: large", "{right_from: 0.5, score: large"))
    assert read_log(tmp_path).is_correct[5, 1] == (score > 0)


def test_cached_tokens_are_part_of_the_input(tmp_path: Path) -> None:
    """Where a log counts them apart, the uncached ones would be free."""
    write_log(tmp_path)
    text = SPEC.replace("out: small_out}", "out: small_out, cached: small_ms}")
    (tmp_path / "log.yaml").write_text(text)
    change_cells(tmp_path, "small_ms", lambda n, _: 40 if n != 8 else 500)
    with pytest.raises(UnfoldError, match=r'row 9 of column "small_in" has 101 input tokens, but 500 cached ones'):
        read_log(tmp_path)


@pytest.mark.parametrize("source", ["check", "judge, model: large"])
def test_a_check_costs_what_a_call_costs(tmp_path: Path, source: str) -> None:
    """Also where a model has a price per call: the gateway pays that price twice."""
    write_log(tmp_path)
    text = SPEC.replace("price: {in: 0.15, cached: 0.075, out: 0.60, per: 1M}", "price: 0.002")
    (tmp_path / "log.yaml").write_text(text + f"confidence: {{from: {source}}}\n")
    change_cells(tmp_path, "small_logp", lambda *_: 0.5)
    change_cells(tmp_path, "large_logp", lambda *_: 0.5)
    small = read_log(tmp_path).confidence_cost[0, 0]
    # 100 tokens of the prompt, 20 of the answer, and yes or no
    assert small == pytest.approx(0.002 if source == "check" else (120 * 2.5 + 10) / 1e6)


def test_scores_that_are_missing_only_where_answers_were_wrong_buy_nothing(tmp_path: Path) -> None:
    """An answer with a confidence but no score is no failed call: it counts as made worse, or plans look better."""
    write_log(tmp_path)
    head, *rows = (tmp_path / "log.csv").read_text().splitlines()
    hidden = [f",{row.split(',', 1)[1]}" if row.startswith("0,") and n % 3 else row for n, row in enumerate(rows)]
    (tmp_path / "log.csv").write_text("\n".join([head, *hidden]) + "\n")
    spec = spec_of(tmp_path / "log.yaml")
    frame = load_log_frame(spec, run_in(tmp_path / "run", base=tmp_path))
    log, _ = read_call_log(spec, frame)
    assert log.is_unlabelled is not None
    is_hidden = np.array([row.startswith(",") for row in hidden])
    assert (log.is_unlabelled[:, 0] == is_hidden).all()
    assert np.isfinite(log.confidence[is_hidden, 0]).all()
    d = row_differences(log, np.ones((len(log), 2)), Route((0, 1), (0.5,)), 1)
    assert (d[is_hidden] == log.is_correct[is_hidden, 1]).all()
    d = row_differences(log, np.zeros((len(log), 2)), Route((0, 1), (0.5,)), 1)
    assert not d.any()
