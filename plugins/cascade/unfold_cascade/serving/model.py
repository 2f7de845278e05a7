"""A chosen cascade as a model that the server asks: a batch goes through it stage by stage, each row its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import ALIKE, Stakes
from unfold_cascade.gates.calibrated import Calibration, contexts
from unfold_cascade.models.onnx_runtime import Engine
from unfoldkit.serving.model import Answers, Array, Batch, Call, Coded, Column, Field, Refusal

Confidence = Callable[[FloatArray], FloatArray]
LARGEST = float(np.finfo(np.float32).max)


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

    def ask(self, batch: Rows, rows: Sequence[int]) -> FloatArray:
        """Return (m, C) probabilities of some rows of a batch."""
        return self.engine.predict(self._own(batch, rows))

    def sure(self, batch: Rows, rows: Sequence[int]) -> FloatArray | None:
        """Return the (m,) confidence of a look into the model, if that is what its gate reads."""
        return None if self.engine.sure is None else self.engine.sure(self._own(batch, rows))

    def _own(self, batch: Rows, rows: Sequence[int]) -> Array:
        x = batch.x[self.engine.dtype]
        if len(rows) < len(x):
            x = x.take(rows, axis=0)
        return x if self.columns is None else x[:, self.columns]


@dataclass(frozen=True, slots=True)
class Whole:
    """The monolith as a model of a stage, asked once a row: label probabilities added up, or kept within one group.

    ``share`` (labels, answers) adds them up; ``within`` says that what is left of them is scaled to one.
    """

    voice: Voice
    share: FloatArray
    within: bool
    answers: IntArray

    def sure(self, _batch: Rows, _rows: Sequence[int]) -> None:
        """Tell that its gate reads its probabilities."""

    def ask(self, batch: Rows, rows: Sequence[int]) -> FloatArray:
        """Return (m, A) probabilities of some rows of a batch."""
        if batch.whole is None or batch.known is None:
            n = len(batch.x[self.voice.engine.dtype])
            batch.whole, batch.known = np.zeros((n, len(self.share))), np.zeros(n, dtype=np.bool_)
        new = [row for row in rows if not batch.known[row]]
        if new:
            batch.whole[new], batch.known[new] = self.voice.ask(batch, new), True
        found = batch.whole[list(rows)] @ self.share
        return found / np.maximum(found.sum(axis=1, keepdims=True), 1e-300) if self.within else found


@dataclass(frozen=True, slots=True)
class Link:
    """One model of a chain; it answers where its score reaches ``cut``, the last of a chain wherever it is asked.

    What it answers is what costs least by ``stakes``.
    """

    voice: Voice | Whole
    cut: float
    curve: Calibration | None = None
    stakes: Stakes = ALIKE


@dataclass(frozen=True, slots=True)
class Said:
    """What a chain said of m rows: by row, the answers of the models that were asked, and the scores that were read."""

    answers: list[list[int]]
    scores: list[list[float]]


def ask(links: Sequence[Link], confidence: Confidence, batch: Rows, rows: Sequence[int]) -> Said:
    """Ask a chain about some rows of a batch.

    Rows are routed as Python lists: a batch has tens of them, and for so few a call of NumPy costs more than a loop.
    """
    said, left = Said([[] for _ in rows], [[] for _ in rows]), list(range(len(rows)))
    for link in links:
        asked = rows if len(left) == len(rows) else [rows[i] for i in left]
        answers, scores = _heard(link, confidence, batch, asked, [said.answers[i] for i in left])
        for i, answer, score in zip(left, answers, scores, strict=True):
            said.answers[i].append(answer)
            said.scores[i].append(score)
        left = [i for i, score in zip(left, scores, strict=True) if not score >= link.cut]
        if not left:
            break
    return said


def _heard(
    link: Link, confidence: Confidence, batch: Rows, rows: Sequence[int], earlier: Sequence[Sequence[int]]
) -> tuple[list[int], list[float]]:
    """Return the answers of one model and the scores that its gate reads; ``earlier`` are the answers before it."""
    probability = link.voice.ask(batch, rows)
    answer = link.voice.answers[link.stakes.answers(probability)]
    seen = link.voice.sure(batch, rows)
    score = confidence(probability) if seen is None else seen
    if link.curve is not None:
        asked = np.column_stack([np.array(earlier, dtype=np.int64).reshape(len(rows), -1), answer])
        score = link.curve(score, contexts(asked, tuple(range(asked.shape[1]))))
    return answer.tolist(), score.tolist()


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
    """What a batch of n rows did: final answers, numbers of the ways, confidences of the answers, and all scores.

    Each list has n entries; ``score`` has lists of the length of the longest way, filled up with zeros.
    """

    answer: list[int]
    way: list[int]
    confidence: list[float]
    score: list[list[float]]


@dataclass(frozen=True, slots=True)
class Cascade:
    """A cascade (or a monolith, as a chain of one) that answers batches.

    ``settled`` has the label of each group that has only one. ``written`` holds, for each output that the way alone
    decides, its JSON by number of the way; ``count`` is told the ways that rows took.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    first: tuple[Link, ...]
    then: Mapping[int, tuple[Link, ...]]
    settled: Mapping[int, int]
    confidence: Confidence
    table: Table
    written: Mapping[str, Sequence[Any]]
    dtypes: tuple[type[Any], ...]
    count: Callable[[Sequence[int]], None]

    def predict(self, batch: Batch) -> Answers:
        """Answer a batch; calls with a value that single precision cannot hold are refused."""
        item = self.inputs[0]
        x, refused = within_single(batch.inputs[item.name], batch.calls, item)
        found = self.follow(x)
        if not batch.trial:
            self.count(answered(found.way, batch.calls, refused))
        known = {name: Coded(found.way, values) for name, values in self.written.items()}
        label = Coded(found.answer, self.table.labels)
        said: dict[str, Column] = {"confidence": found.confidence, "route_confidence": found.score}
        return Answers({"label": label, **said, **known}, refused)

    def follow(self, x: FloatArray) -> Way:
        """Send (n, d) rows through the cascade."""
        batch = Rows({dtype: x.astype(dtype, copy=False) for dtype in self.dtypes})
        first = ask(self.first, self.confidence, batch, range(len(x)))
        answer, scores = [said[-1] for said in first.answers], first.scores
        way = [(len(said) - 1) * self.table.groups * self.table.second for said in first.answers]
        for group, links in self.then.items():
            here = [row for row, said in enumerate(first.answers) if said[-1] == group]
            then = ask(links, self.confidence, batch, here) if here else Said([], [])
            for row, said, read in zip(here, then.answers, then.scores, strict=True):
                answer[row] = said[-1]
                way[row] += group * self.table.second + len(said) - 1
                scores[row] += read
        for row, said in enumerate(first.answers if self.settled else ()):
            if said[-1] in self.settled:
                answer[row] = self.settled[said[-1]]
                way[row] += said[-1] * self.table.second
        last = [read[-1] for read in scores]
        spare = [0.0] * len(self.table.stage[0])
        return Way(answer, way, last, [read + spare[len(read) :] for read in scores])


def within_single(x: FloatArray, calls: Sequence[Call], item: Field) -> tuple[FloatArray, dict[int, Refusal]]:
    """Return (n, d) rows without values that are beyond single precision, and why the calls that had some are refused.

    Trees, and most models that were converted, compute in single precision, where such a value is infinite.
    """
    # min and max make no second table of the size of x, and pass over NaN
    if np.fmin.reduce(x, axis=None) >= -LARGEST and np.fmax.reduce(x, axis=None) <= LARGEST:
        return x, {}
    large = np.abs(x) > LARGEST
    refused, first = dict[int, Refusal](), 0
    for index, call in enumerate(calls):
        for row, column in np.argwhere(large[first : first + call.rows])[:1]:
            where = f'column "{item.columns[column]}"' if item.columns else f"column {column + 1}"
            value = f"{x[first + row, column]:g} in row {row + 1}, {where}"
            refused[index] = Refusal(400, f"input {item.name!r} holds {value}: too large for single precision")
        first += call.rows
    return np.where(large, 0.0, x), refused


def answered(ways: Sequence[int], calls: Sequence[Call], refused: Mapping[int, Refusal]) -> Sequence[int]:
    """Return the ways of the rows that are answered."""
    if not refused:
        return ways
    keep = np.repeat([index not in refused for index in range(len(calls))], [call.rows for call in calls])
    return [way for way, kept in zip(ways, keep.tolist(), strict=True) if kept]
