"""From which confidence each answer of a model is trusted: what a gate on calibrated scores says, to carry it out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.data.dataset import Cases, group_of_label
from unfold_cascade.gates.raw_thresholds import raw_cuts
from unfold_cascade.planner.policy import Policy, Step, in_words, step_in_words, words_of
from unfold_cascade.planner.score_tables import Question, Zoo
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Cell, Column, Table

SHOWN = 60


@dataclass(frozen=True, slots=True)
class Trust:
    """A model whose answer is that of exactly the models ``agree`` among those asked before it.

    ``cuts`` (L + 1,) are the least confidences by answer, the last for an answer that is no label of the data.
    """

    model: str
    agree: tuple[str, ...]
    cuts: FloatArray


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of one question, and the names of the (L,) answers that their cuts are for."""

    question: Question
    step: Step
    names: tuple[str, ...]
    trusts: tuple[Trust, ...]


def spelled(spec: CascadeSpec, given: Cases, zoo: Zoo, policy: Policy) -> list[dict[str, Any]]:
    """Return the steps of a cascade as a plan holds them: a calibrated gate with all cuts on the raw confidence."""
    return [_spelled(gates) for gates in gates_of(spec, given, zoo, policy)]


def matches(zoo: Zoo, policy: Policy, steps: Sequence[dict[str, Any]]) -> bool:
    """Whether a plan describes this policy."""
    return in_words(zoo, policy) == [_bare(step) for step in steps]


def gates_of(spec: CascadeSpec, given: Cases, zoo: Zoo, policy: Policy) -> Iterator[Gates]:
    """Yield the gates of each question of a policy; ``trusts`` is empty where gates read the confidence itself."""
    groups = tuple(spec.stages[0].target.groups or ()) or given.names
    yield _gates(zoo.first, policy.first, np.arange(len(groups)), groups)
    for g, step in policy.then.items():
        labels = np.flatnonzero(group_of_label(spec, given.names) == g)
        yield _gates(zoo.then[g], step, labels, given.names)


def tables(every: Sequence[Gates]) -> list[Table]:
    """Return a table of raw cuts by answer for each question whose gates are calibrated."""
    return [_table(gates) for gates in every if gates.trusts]


def _gates(question: Question, step: Step, labels: Any, names: Sequence[str]) -> Gates:
    # a recorded answer that is no label has the number after the last
    answers = np.append(labels, len(names))
    trusts = tuple(trust for gate in range(len(step.curves)) for trust in _trusts(question, step, gate, answers))
    return Gates(question, step, tuple(names[label] for label in labels), trusts)


def _trusts(question: Question, step: Step, gate: int, answers: Any) -> Iterator[Trust]:
    before = [question.models[m] for m in step.chain[:gate]]
    for bits in itertools.product((1, 0), repeat=gate):
        context = answers.copy()
        for bit in bits:
            context = 2 * context + bit
        cuts = raw_cuts(step.curves[gate], context, step.cuts[gate])
        yield Trust(question.models[step.chain[gate]], tuple(itertools.compress(before, bits)), cuts)


def _spelled(gates: Gates) -> dict[str, Any]:
    told = step_in_words(gates.question, gates.step)
    if not gates.trusts:
        return told
    told["calibrated_cuts"] = told.pop("cuts")
    return told | {"trust_from": [_in_words(gates, trust) for trust in gates.trusts]}


def _in_words(gates: Gates, trust: Trust) -> dict[str, Any]:
    *cuts, other = words_of(trust.cuts.tolist())
    by_answer = dict(zip(gates.names, cuts, strict=True))
    return {"model": trust.model, "agree": list(trust.agree), "from": by_answer, "else": other}


def _bare(step: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in step.items() if key != "trust_from"}
    return {"cuts" if key == "calibrated_cuts" else key: value for key, value in plain.items()}


def _table(gates: Gates) -> Table:
    question, trusts = gates.question, gates.trusts
    head = Column(f"{question.stage}/{question.group}: trusted from, by answer")
    columns = (head, *(_column(trust, first=trust.model == trusts[0].model) for trust in trusts))
    cuts = zip(*(words_of(trust.cuts.tolist()) for trust in trusts), strict=True)
    rows: list[tuple[Cell, ...]] = [(name, *row) for name, row in zip((*gates.names, "any other"), cuts, strict=True)]
    if len(rows) > SHOWN:
        rows[SHOWN:] = [("the rest: in the plan", *(None for _ in trusts))]
    return Table("trust", columns, tuple(rows))


def _column(trust: Trust, *, first: bool) -> Column:
    said = "" if first else f" as {', '.join(trust.agree)}" if trust.agree else " alone"
    return Column(f"{trust.model}{said}", "", 3)
