"""A log of calls: correctness, confidence, cost and latency of every model, and routes followed through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.language_models.planning.calibration import Calibration
from unfold_cascade.language_models.planning.prompt_gate import EntryRule


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLog:
    """The calls of M models on n requests.

    Attributes:
        models: Names.
        is_correct: (n, M) whether the answer was correct.
        confidence: (n, M) recorded confidences; NaN where a model gave none.
        cost: (n, M) cost of the call.
        confidence_cost: (n, M) cost of the confidence, paid only where a gate follows.
        latency_ms: (n, M) duration of the call; NaN where it was not recorded.
        unit: (n,) number of the independent unit of each request: a conversation, or all requests of one prompt.
        turn: (n,) order of the requests of a conversation; ``None`` where each request is routed for itself.
        conversation: (n,) number of the conversation of each request; ``None``: its unit.
        answer: (n, M) number of the text of each answer, equal for equal texts; ``None`` where no texts were recorded.
        is_answered: (n, M) whether the model answered; ``None`` where every one did.
        is_unlabelled: (n, M) whether it is unknown if the answer was correct; ``None`` where all is known.
        confidence_latency_ms: (n, M) duration of the confidence where a gate follows; ``None``: none beside the call.
        is_gated_correct: (n, M) whether the answer that a gate trusts was correct, if it is another one, as the
            majority of votes is; ``None``: the same answer.
        features: (n, F) of prompts, ``None`` if no gate before the first model is searched.
        entry_score: (n, M) probability of a correct answer from the features, once it is fitted.
        gated_answer: (n, M) number of its text, on the scale of ``answer``; ``None``: the same answer.
    """

    models: tuple[str, ...]
    is_correct: BoolArray
    confidence: FloatArray
    cost: FloatArray
    confidence_cost: FloatArray
    latency_ms: FloatArray
    unit: IntArray
    turn: IntArray | None = None
    conversation: IntArray | None = None
    answer: IntArray | None = None
    is_answered: BoolArray | None = None
    is_unlabelled: BoolArray | None = None
    confidence_latency_ms: FloatArray | None = None
    is_gated_correct: BoolArray | None = None
    gated_answer: IntArray | None = None
    features: FloatArray | None = None
    entry_score: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.is_correct)

    def take(self, rows: IntArray) -> CallLog:
        """Return some of the requests."""
        arrays: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[rows]
            for name in (field.name for field in fields(self))
            if name != "models"
        }
        return replace(self, **arrays)

    @property
    def trusted_correct(self) -> BoolArray:
        """(n, M) whether the answer that a gate trusts was correct."""
        return self.is_correct if self.is_gated_correct is None else self.is_gated_correct

    @property
    def has_latency(self) -> bool:
        """Whether the duration of every call was recorded."""
        return bool(np.isfinite(self.latency_ms).all())


@dataclass(frozen=True, slots=True)
class Route:
    """A chain of models and the probability from which each gate trusts; the last model is always trusted.

    ``entry`` decides where a request enters the chain; ``None``: at the first model.
    """

    chain: tuple[int, ...]
    cuts: tuple[float, ...]
    entry: EntryRule | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What n requests cost under a route: (n,) position in the chain of the answer, loss, cost and latency."""

    exit: IntArray
    loss: FloatArray
    cost: FloatArray
    latency_ms: FloatArray


def score_log(log: CallLog, calibrations: Sequence[Calibration]) -> FloatArray:
    """Compute the (n, M) calibrated probabilities of correct answers."""
    columns = [calibration.probabilities(log.confidence[:, m]) for m, calibration in enumerate(calibrations)]
    return np.column_stack(columns)


def follow_route(log: CallLog, score: FloatArray, route: Route) -> Outcome:
    """Follow a route on every request; a request in a conversation keeps the route of its first turn."""
    chain, entries = np.array(route.chain), find_entries(log, route)
    passes = score[:, chain[:-1]] >= np.array(route.cuts)
    passes &= np.arange(len(chain) - 1) >= entries[:, None]
    exits = np.where(passes.any(axis=1), passes.argmax(axis=1), len(chain) - 1) if len(chain) > 1 else None
    rows = np.arange(len(log))
    exits = np.zeros(len(log), dtype=np.int64) if exits is None else exits
    if log.turn is not None and len(chain) > 1:
        return _follow_conversations(log, route, exits, entries)
    cost, latency = accumulate_chain(log, route.chain)
    is_last = exits == len(chain) - 1
    is_correct = np.where(is_last, log.is_correct[rows, chain[exits]], log.trusted_correct[rows, chain[exits]])
    skipped = [_before_entry(table, entries) for table in (cost, latency)]
    return Outcome(exits, 1.0 - is_correct, cost[rows, exits] - skipped[0], latency[rows, exits] - skipped[1])


def find_entries(log: CallLog, route: Route) -> IntArray:
    """Find the (n,) positions in the chain at which requests enter."""
    if route.entry is None or len(route.chain) == 1:
        return np.zeros(len(log), dtype=np.int64)
    assert log.entry_score is not None  # noqa: S101 - rules are searched on logs with scores
    return route.entry.find_entries(log.entry_score, route.chain)


def find_first_calls(log: CallLog, route: Route, outcome: Outcome) -> IntArray:
    """Find the (n,) positions in the chain of the first call; a later turn calls only the model that answers it."""
    entries = find_entries(log, route)
    if log.turn is None or len(route.chain) == 1:
        return entries
    first_calls: IntArray = np.where(_find_openers(log) == np.arange(len(log)), entries, outcome.exit)
    return first_calls


def _before_entry(table: FloatArray, entries: IntArray) -> FloatArray:
    """Return the (n,) accumulated values that requests do not pay, as they enter later."""
    return np.where(entries > 0, table[np.arange(len(table)), np.maximum(entries - 1, 0)], 0.0)


def accumulate_chain(log: CallLog, chain: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Compute the (n, K) cost and latency of a request which exits at each position of a chain."""
    models = list(chain)
    gate_cost = log.confidence_cost[:, models].copy()
    gate_cost[:, -1] = 0.0
    latency = log.latency_ms[:, models].copy()
    if log.confidence_latency_ms is not None:
        latency[:, :-1] += log.confidence_latency_ms[:, models[:-1]]
    return np.cumsum(log.cost[:, models] + gate_cost, axis=1), np.cumsum(latency, axis=1)


def find_answers(log: CallLog, route: Route, exits: IntArray) -> IntArray:
    """Find the (n,) numbers of the texts with which a route answers; the log must have texts."""
    assert log.answer is not None  # noqa: S101 - the caller has checked it
    rows, model = np.arange(len(log)), np.array(route.chain)[exits]
    answer: IntArray = log.answer[rows, model]
    if log.gated_answer is not None:
        is_gated = exits < len(route.chain) - 1
        if log.turn is not None:
            is_gated &= _find_openers(log) == rows
        answer = np.where(is_gated, log.gated_answer[rows, model], answer)
    return answer


def _find_openers(log: CallLog) -> IntArray:
    """Find for each request of a log with turns the (n,) row of the first turn of its conversation."""
    assert log.turn is not None  # noqa: S101 - the caller has checked it
    conversation = log.unit if log.conversation is None else log.conversation
    order = np.lexsort((log.turn, conversation))
    _, start, number = np.unique(conversation[order], return_index=True, return_inverse=True)
    opener = np.empty(len(log), dtype=np.int64)
    opener[order] = order[start][number]
    return opener


def _follow_conversations(log: CallLog, route: Route, exits: IntArray, entries: IntArray) -> Outcome:
    """The gate decides the first turn of a conversation; later turns go straight to the model which answered it."""
    opener = _find_openers(log)
    exits = exits[opener]
    rows = np.arange(len(log))
    model = np.array(route.chain)[exits]
    cost, latency = accumulate_chain(log, route.chain)
    is_opener = opener == rows
    is_trusted = is_opener & (exits < len(route.chain) - 1)
    return Outcome(
        exits,
        1.0 - np.where(is_trusted, log.trusted_correct[rows, model], log.is_correct[rows, model]),
        np.where(is_opener, cost[rows, exits] - _before_entry(cost, entries), log.cost[rows, model]),
        np.where(is_opener, latency[rows, exits] - _before_entry(latency, entries), log.latency_ms[rows, model]),
    )


def select_reference(log: CallLog, rows: IntArray) -> int:
    """Select the model with the most correct answers on some rows; of equals the cheapest."""
    accuracy, cost = log.is_correct[rows].mean(axis=0), log.cost[rows].mean(axis=0)
    return int(np.lexsort((cost, -accuracy))[0])
