"""A cascade as data, and what happens to a case that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration, score_chain
from unfold_cascade.planner.score_tables import Question, Zoo


@dataclass(frozen=True, slots=True)
class Step:
    """One question's chain: model numbers in the order asked; each but the last answers when ``score >= cut``.

    The score is the model's confidence, or what ``curves`` (one a gate) make of it and of the answers so far.
    """

    chain: tuple[int, ...]
    cuts: tuple[float, ...]
    curves: tuple[Calibration, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """The step of the first question, and by its answer (group number) the step of the second."""

    first: Step
    then: Mapping[int, Step]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did with each of n cases.

    ``answer`` and ``cost`` (n,); ``exit_first`` the position in the chain that answered the first question;
    ``group`` its answer; ``exit_then`` the same for the second question, -1 without one.
    """

    answer: IntArray
    cost: FloatArray
    latency_us: FloatArray
    exit_first: IntArray
    group: IntArray
    exit_then: IntArray


def in_words(zoo: Zoo, policy: Policy) -> list[dict[str, Any]]:
    """Return the steps of a cascade with the names of their models, as a plan holds them."""
    steps = [step_in_words(zoo.first, policy.first)]
    return steps + [step_in_words(zoo.then[group], step) for group, step in policy.then.items()]


def step_in_words(question: Question, step: Step) -> dict[str, Any]:
    """Return one step with the names of its models; its cuts are on whatever its gates read."""
    models = [question.models[m] for m in step.chain]
    return {"stage": question.stage, "group": question.group, "models": models, "cuts": words_of(step.cuts)}


def words_of(cuts: Iterable[float]) -> list[float | str]:
    """Return cuts as a plan holds them: one that all reach is ``always``, one that none reaches ``never``."""
    return [cut if np.isfinite(cut) else ("always" if cut < 0 else "never") for cut in cuts]


def exits(question: Question, step: Step, rows: IntArray) -> IntArray:
    """Return (n,) which position of the chain answers each row: the first whose score reaches its cut."""
    if step.curves:
        score = score_chain(step.curves, question.score[rows], question.answer[rows], step.chain)
    else:
        score = question.score[np.ix_(rows, places(step.chain[:-1]))]
    sure = score >= np.array(step.cuts)
    certain = np.column_stack([sure, np.ones(len(rows), dtype=np.bool_)])
    result: IntArray = certain.argmax(axis=1)
    return result


def places(models: Sequence[int]) -> IntArray:
    """Return model numbers as an array, also when there is none."""
    return np.array(models, dtype=np.int64)


def answers(question: Question, step: Step, rows: IntArray, exit_: IntArray) -> IntArray:
    """Return (n,) what the model that answered said."""
    result: IntArray = question.answer[rows, np.array(step.chain)[exit_]]
    return result


def path_cost(zoo: Zoo, question: Question, chain: tuple[int, ...], owned: frozenset[str]) -> FloatArray:
    """Return (K,) the cost of a chain that stops at its k-th model; what is in ``owned`` is paid already."""
    return _path(question, question.price, zoo.bought, chain, owned)


def marginal(zoo: Zoo, question: Question, chain: tuple[int, ...], rows: IntArray) -> FloatArray:
    """Return what each model of a chain adds to the cost of a case: (K,), or (n, K) where each call has its price."""
    if question.paid is not None:
        return question.paid[np.ix_(rows, places(chain))]
    return np.diff(path_cost(zoo, question, chain, frozenset()), prepend=0.0)


def spent(zoo: Zoo, question: Question, chain: tuple[int, ...], rows: IntArray, exit_: IntArray) -> FloatArray:
    """Return (n,) the cost of a chain that each row leaves at its ``exit_``."""
    sums = np.cumsum(marginal(zoo, question, chain, rows), axis=-1)
    each = np.broadcast_to(sums, (len(rows), len(chain)))
    result: FloatArray = np.take_along_axis(each, exit_[:, None], axis=1)[:, 0].copy()
    return result


def path_time(zoo: Zoo, question: Question, chain: tuple[int, ...], owned: frozenset[str]) -> FloatArray:
    """Return (K,) the measured time of a chain that stops at its k-th model, in µs; NaN if it was not measured."""
    return _path(question, question.latency_us, zoo.waited, chain, owned)


def _path(
    question: Question,
    each: FloatArray,
    once: Callable[[frozenset[str]], float],
    chain: tuple[int, ...],
    owned: frozenset[str],
) -> FloatArray:
    sums, have, total = [], owned, 0.0
    for model in chain:
        total += float(each[model]) + once(question.buys[model] - have)
        have |= question.buys[model]
        sums.append(total)
    return np.array(sums)


def owned_after(question: Question, chain: tuple[int, ...]) -> list[frozenset[str]]:
    """Return the feature groups that were bought when the chain stops at its k-th model."""
    result, have = [], frozenset[str]()
    for model in chain:
        have |= question.buys[model]
        result.append(have)
    return result


def follow(zoo: Zoo, policy: Policy, rows: IntArray) -> Outcome:
    """Send ``rows`` through the cascade."""
    first = policy.first
    exit_first = exits(zoo.first, first, rows)
    group = answers(zoo.first, first, rows, exit_first)
    cost = spent(zoo, zoo.first, first.chain, rows, exit_first)
    time = path_time(zoo, zoo.first, first.chain, frozenset())[exit_first]
    answer, exit_then = group.copy(), np.full(len(rows), -1, dtype=np.int64)
    for g, step in policy.then.items():
        here = np.flatnonzero(group == g)
        question = zoo.then[g]
        exit_ = exits(question, step, rows[here])
        cost[here] += second_cost(zoo, first, question, step.chain)[exit_first[here], exit_]
        owned = owned_after(zoo.first, first.chain)
        times = np.array([path_time(zoo, question, step.chain, have) for have in owned])
        time[here] += times[exit_first[here], exit_]
        answer[here], exit_then[here] = answers(question, step, rows[here], exit_), exit_
    return Outcome(answer, cost, time, exit_first, group, exit_then)


def second_cost(zoo: Zoo, first: Step, question: Question, chain: tuple[int, ...]) -> FloatArray:
    """Return (K1, K2) the cost of the second chain, by where the first and where the second stopped."""
    return np.array([path_cost(zoo, question, chain, owned) for owned in owned_after(zoo.first, first.chain)])
