"""The picture of routes: every request on the way it takes, at the cost of its branch, with gates, votes and turns."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade.language_models.planning.call_log import CallLog, Route, follow_route
from unfold_cascade.language_models.planning.prompt_gate import EntryRule
from unfold_cascade.language_models.report import sentences
from unfold_cascade.language_models.report.route_flow import draw_route_flow
from unfoldkit.api import Flow, Report, Verdict
from unfoldkit.render import html, md, plot, text
from unfoldkit.report import validate_report

ROUTE = Route((0, 2, 1), (0.6, 0.7))
RULE = EntryRule(0.5, (0.1, 0.9, 0.5))
SHAPES = ("plain", "entry gate", "votes", "conversations", "no labels", "everything")


def make_log(shape: str, seed: int, rows: int = 240) -> CallLog:
    """Draw a log of three models; votes answer with another text than a call, conversations have four turns."""
    rng = np.random.default_rng([seed, SHAPES.index(shape)])
    has = {name: shape in (name, "everything") for name in SHAPES}
    return CallLog(
        models=("a", "b", "c"),
        is_correct=rng.random((rows, 3)) < 0.7,
        confidence=rng.random((rows, 3)),
        cost=rng.random((rows, 3)) / 1000,
        confidence_cost=rng.random((rows, 3)) / 1000 * has["votes"],
        latency_ms=rng.random((rows, 3)),
        unit=np.arange(rows) // (4 if has["conversations"] else 1),
        turn=np.arange(rows) % 4 if has["conversations"] else None,
        is_unlabelled=rng.random((rows, 3)) < 0.2 if has["no labels"] else None,
        is_gated_correct=rng.random((rows, 3)) < 0.8 if has["votes"] else None,
        entry_score=rng.random((rows, 3)) if has["entry gate"] else None,
    )


def walk(log: CallLog, score: np.ndarray, route: Route) -> tuple[Counter[tuple[str, str]], dict[str, list[float]]]:
    """Walk every request by itself: count each step, and list the costs of the requests that a model answers."""
    steps: Counter[tuple[str, str]] = Counter()
    costs: dict[str, list[float]] = {}
    answered_by: dict[int, int] = {}
    ways = []
    for i in range(len(log)):
        cost, place = 0.0, 0
        unit, is_later = int(log.unit[i]), log.turn is not None and int(log.unit[i]) in answered_by
        if is_later:
            place = answered_by[unit]
            way, cost = [place], float(log.cost[i, route.chain[place]])
        else:
            if route.entry is not None and log.entry_score is not None:
                gains = [log.entry_score[i, m] - route.entry.price * route.entry.costs[m] for m in route.chain]
                place = gains.index(max(gains))
            way = [place]
            while place < 2 and score[i, route.chain[place]] < route.cuts[place]:
                place += 1
                way.append(place)
            for each in way:
                model = route.chain[each]
                cost += log.cost[i, model] + (log.confidence_cost[i, model] if each < 2 else 0.0)
            answered_by[unit] = place
        model = route.chain[place]
        is_voted = place < 2 and not is_later
        labels = log.trusted_correct if is_voted else log.is_correct
        end = sentences.CORRECT if labels[i, model] else sentences.WRONG
        if log.is_unlabelled is not None and log.is_unlabelled[i, model]:
            end = sentences.UNLABELLED
        names = [log.models[route.chain[each]] for each in way]
        ways.append([*names, end])
        costs.setdefault(names[-1], []).append(cost)
    has_entry = any(way[0] != log.models[route.chain[0]] for way in ways)
    for way in ways:
        full = [sentences.ALL_REQUESTS, *way] if has_entry else way
        steps.update(itertools.pairwise(full))
    return steps, costs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_the_flow_equals_a_walk_request_by_request(shape: str, seed: int) -> None:
    """Links, tones and the cost of each branch equal those of a loop over the requests."""
    log = make_log(shape, seed)
    route = replace(ROUTE, entry=RULE) if log.entry_score is not None else ROUTE
    flow = draw_route_flow(log, route, follow_route(log, log.confidence, route))
    steps, costs = walk(log, log.confidence, route)
    assert {(link.source, link.target): link.value for link in flow.links} == steps
    facts = {stop.name: stop.facts for stop in flow.stops}
    for name, each in costs.items():
        assert facts[name] == (sentences.branch_cost(float(np.mean(each))),)
    tones = {sentences.CORRECT: "good", sentences.WRONG: "bad"}
    assert all(link.tone == tones.get(link.target, "neutral") for link in flow.links)
    assert sum(link.value for link in flow.links if link.target.startswith("→")) == len(log)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flow_is_in_every_format(shape: str) -> None:
    """Routes of each shape are drawn and written, also where one model answers everything."""
    log = make_log(shape, 9)
    for cuts in (ROUTE.cuts, (-np.inf, -np.inf), (np.inf, np.inf)):
        route = replace(ROUTE, cuts=cuts, entry=RULE if log.entry_score is not None else None)
        flow = draw_route_flow(log, route, follow_route(log, log.confidence, route))
        assert isinstance(flow, Flow)
        report = Report("cascade", "plan", "llm", Verdict.YES, "yes", figures=(flow,))
        assert not list(validate_report(report, "cascade", "plan"))
        assert plot.render(report).startswith(b"\x89PNG")
        assert flow.title in html.render(report)
        assert "sankey-beta" in md.render(report)
        assert "→ correct" in text.render(report)
