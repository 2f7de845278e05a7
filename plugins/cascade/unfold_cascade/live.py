"""A chosen cascade as a model that the server asks: a batch goes through it stage by stage, each row its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.gates.conditional import Calibration, contexts
from unfold_cascade.pack import Engine
from unfoldkit.serving.model import Answers, Array, Batch, Coded, Field

Confidence = Callable[[FloatArray], FloatArray]


@dataclass(slots=True)
class Rows:
    """The rows of one batch, (n, d) in each number type that an engine reads, and what the monolith said of them."""

    x: Mapping[type[Any], Array]
    whole: FloatArray | None = None
    known: Array | None = None


@dataclass(frozen=True, slots=True)
class Voice:
    """One fitted model: reads ``columns`` (all if ``None``), and its classes are the answers ``answers`` (C,)."""

    engine: Engine
    columns: IntArray | None
    answers: IntArray

    def ask(self, batch: Rows, rows: IntArray) -> FloatArray:
        """Return (m, C) probabilities of some rows of a batch."""
        x = batch.x[self.engine.dtype]
        if len(rows) < len(x):
            x = x.take(rows, axis=0)
        return self.engine.predict(x if self.columns is None else x[:, self.columns])


@dataclass(frozen=True, slots=True)
class Whole:
    """The monolith as a model of a stage, asked once a row: label probabilities added up, or kept within one group.

    ``share`` (labels, answers) adds them up; ``within`` says that what is left of them is scaled to one.
    """

    voice: Voice
    share: FloatArray
    within: bool
    answers: IntArray

    def ask(self, batch: Rows, rows: IntArray) -> FloatArray:
        """Return (m, A) probabilities of some rows of a batch."""
        if batch.whole is None or batch.known is None:
            n = len(batch.x[self.voice.engine.dtype])
            batch.whole, batch.known = np.zeros((n, len(self.share))), np.zeros(n, dtype=np.bool_)
        new = rows[~batch.known[rows]]
        if len(new):
            batch.whole[new], batch.known[new] = self.voice.ask(batch, new), True
        found = batch.whole[rows] @ self.share
        return found / np.maximum(found.sum(axis=1, keepdims=True), 1e-300) if self.within else found


@dataclass(frozen=True, slots=True)
class Link:
    """One model of a chain; it answers where its score reaches ``cut``, the last of a chain wherever it is asked."""

    voice: Voice | Whole
    cut: float
    curve: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a chain of K models said of m rows: answers (m,), the position that answered (m,), scores read (m, K)."""

    answer: IntArray
    exit: IntArray
    score: FloatArray


def ask(links: Sequence[Link], confidence: Confidence, batch: Rows, rows: IntArray) -> Said:
    """Ask a chain about some rows of a batch."""
    first, score = _heard(links[0], confidence, batch, rows, ())
    scores = np.zeros((len(rows), len(links)))
    scores[:, 0] = score
    said, heard, left = Said(first.copy(), np.zeros(len(rows), np.int64), scores), [first], np.arange(len(rows))
    for k, link in enumerate(links[1:], 1):
        passed = np.flatnonzero(~(score >= links[k - 1].cut))
        if not len(passed):
            break
        left, earlier = left[passed], [answer[passed] for answer in heard]
        answer, score = _heard(link, confidence, batch, rows[left], earlier)
        heard = [*earlier, answer]
        scores[left, k], said.answer[left], said.exit[left] = score, answer, k
    return said


def _heard(
    link: Link, confidence: Confidence, batch: Rows, rows: IntArray, earlier: Sequence[IntArray]
) -> tuple[IntArray, FloatArray]:
    """Return (m,) answers of one model and the (m,) scores that its gate reads."""
    probability = link.voice.ask(batch, rows)
    answer: IntArray = link.voice.answers[probability.argmax(axis=1)]
    score = confidence(probability)
    if link.curve is not None:
        asked = np.column_stack([*earlier, answer])
        score = link.curve(score, contexts(asked, tuple(range(asked.shape[1]))))
    return answer, score


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of every way through a cascade before a row takes it, by the number of the way.

    ``labels`` by answer. Way ``(e1 * groups + g) * second + e2``: stopped at e1, sent to group g, stopped at e2 there.
    """

    labels: tuple[str, ...]
    groups: int
    second: int
    cost: FloatArray
    steps: tuple[int, ...]
    stage: tuple[tuple[str, ...], ...]
    model: tuple[tuple[str, ...], ...]
    cut: tuple[tuple[float, ...], ...]
    paid: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Way:
    """What a batch did: final answers (n,), number of the way (n,), confidence of the answer (n,), scores (n, L)."""

    answer: IntArray
    way: IntArray
    confidence: FloatArray
    score: FloatArray


@dataclass(frozen=True, slots=True)
class Cascade:
    """A cascade (or a monolith, as a chain of one) that answers batches.

    ``written`` holds, for each output that the way alone decides, its JSON by number of the way; ``count`` is told the
    ways that rows took.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    first: tuple[Link, ...]
    then: Mapping[int, tuple[Link, ...]]
    confidence: Confidence
    table: Table
    written: Mapping[str, Sequence[Any]]
    dtypes: tuple[type[Any], ...]
    count: Callable[[IntArray], None]

    def predict(self, batch: Batch) -> Answers:
        """Answer a batch."""
        found = self.follow(batch.inputs[self.inputs[0].name])
        if not batch.trial:
            self.count(found.way)
        known = {name: Coded(found.way, values) for name, values in self.written.items()}
        label = Coded(found.answer, self.table.labels)
        return Answers({"label": label, "confidence": found.confidence, "route_confidence": found.score, **known})

    def follow(self, x: FloatArray) -> Way:
        """Send (n, d) rows through the cascade."""
        batch = Rows({dtype: x.astype(dtype, copy=False) for dtype in self.dtypes})
        every = np.arange(len(x))
        first = ask(self.first, self.confidence, batch, every)
        answer, last = first.answer, first.score[every, first.exit]
        if not self.then:
            return Way(answer, first.exit, last, first.score)
        score = np.zeros((len(x), len(self.table.stage[0])))
        score[:, : len(self.first)] = first.score
        way, answer = (first.exit * self.table.groups + answer) * self.table.second, answer.copy()
        for group, links in self.then.items():
            here = np.flatnonzero(first.answer == group)
            if len(here):
                said, place = ask(links, self.confidence, batch, here), first.exit[here] + 1
                answer[here], last[here] = said.answer, said.score[np.arange(len(here)), said.exit]
                way[here] += said.exit
                for k in range(int(said.exit.max()) + 1):
                    score[here, place + k] = said.score[:, k]
        return Way(answer, way, last, score)
