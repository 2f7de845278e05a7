"""The path of requests through the models of a route: shares, correct answers, and the cost of each branch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.language_models.planning.call_log import CallLog, Outcome, Route, find_first_calls
from unfold_cascade.language_models.report import sentences
from unfold_cascade.report.gate_quality import MIN_CASES, GateScores
from unfoldkit.api import Flow, Link, Stop

END_TONES: Mapping[str, Literal["good", "bad", "neutral"]] = {
    sentences.CORRECT: "good",
    sentences.WRONG: "bad",
    sentences.UNLABELLED: "neutral",
}


def draw_route_flow(log: CallLog, route: Route, outcome: Outcome) -> Flow:
    """Draw how requests pass the models of a route.

    A request enters at the first model unless a gate on its prompt, or an earlier turn of its conversation, sends it
    further on. Requests without a labelled answer end in a branch of their own.

    Args:
        log: The requests.
        route: The route, of at least two models.
        outcome: What the route does with them.
    """
    names = [log.models[model] for model in route.chain]
    first_calls = find_first_calls(log, route, outcome)
    counts = Counter(_list_steps(names, first_calls, outcome.exit, _find_ends(log, route, outcome)))
    reached = {name for step in counts for name in step}
    stops = [Stop(name, _price_branch(outcome, position)) for position, name in enumerate(names) if name in reached]
    if first_calls.any():
        facts = [sentences.ENTRY_GATE] if route.entry is not None else []
        facts += [sentences.LATER_TURNS] if log.turn is not None else []
        stops.insert(0, Stop(sentences.ALL_REQUESTS, tuple(facts)))
    ends = [end for end in END_TONES if end in reached]
    order = {name: rank for rank, name in enumerate([stop.name for stop in stops] + ends)}
    steps = sorted(counts.items(), key=lambda step: (order[step[0][0]], order[step[0][1]]))
    return Flow(
        name="flow",
        title=sentences.FLOW_TITLE,
        unit="requests",
        stops=(*stops, *map(Stop, ends)),
        links=tuple(Link(*pair, float(count), END_TONES.get(pair[1], "neutral")) for pair, count in steps),
        good=sentences.CORRECT.removeprefix("→ "),
        bad=sentences.WRONG.removeprefix("→ "),
    )


def list_gates(log: CallLog, score: FloatArray, route: Route, outcome: Outcome) -> list[GateScores]:
    """List the gates of a route, each on the requests with a label and a confidence that reach it.

    Args:
        log: The requests.
        score: (n, M) calibrated probabilities.
        route: The route.
        outcome: What the route does with the requests.
    """
    first_calls, gates = find_first_calls(log, route, outcome), []
    for position, (model, cut) in enumerate(zip(route.chain, route.cuts, strict=False)):
        is_used = (first_calls <= position) & (outcome.exit >= position) & np.isfinite(score[:, model])
        if log.is_unlabelled is not None:
            is_used &= ~log.is_unlabelled[:, model]
        if int(is_used.sum()) >= MIN_CASES:
            gates.append(GateScores(log.models[model], score[is_used, model], log.is_correct[is_used, model], cut))
    return gates


def _find_ends(log: CallLog, route: Route, outcome: Outcome) -> list[str]:
    """Name the end of each request: correct, wrong or without a label."""
    ends = np.where(outcome.loss > 0, sentences.WRONG, sentences.CORRECT)
    if log.is_unlabelled is not None:
        answered_by = np.array(route.chain)[outcome.exit]
        ends = np.where(log.is_unlabelled[np.arange(len(log)), answered_by], sentences.UNLABELLED, ends)
    return [str(end) for end in ends]


def _list_steps(names: list[str], first_calls: IntArray, exits: IntArray, ends: list[str]) -> Iterator[tuple[str, str]]:
    """Yield every step of every request from one stop to the next."""
    has_entry = bool(first_calls.any())
    for entry, exit_, end in zip(first_calls.tolist(), exits.tolist(), ends, strict=True):
        visited = [*([sentences.ALL_REQUESTS] if has_entry else []), *names[entry : exit_ + 1], end]
        yield from itertools.pairwise(visited)


def _price_branch(outcome: Outcome, position: int) -> tuple[str, ...]:
    answered = outcome.exit == position
    return (sentences.branch_cost(float(outcome.cost[answered].mean())),) if answered.any() else ()
