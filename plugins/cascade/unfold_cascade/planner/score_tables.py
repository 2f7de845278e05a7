"""Tables that gates are searched on: for each question, what every model answers, how sure it is, and its price."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import Cases, group_of_label, labelled, source_digest
from unfold_cascade.data.error_costs import ALIKE, Stakes, stakes_of
from unfold_cascade.data.table import Frame, load_frame
from unfold_cascade.gates import confidence
from unfold_cascade.models.zoo import BASELINE, WHOLE, Log, Slot, candidate_name, logs
from unfold_cascade.schema import cells
from unfold_cascade.schema.models import CascadeSpec, ModelSpec, Recorded
from unfold_cascade.schema.prices import call_price
from unfoldkit.api import Run, dump, fail, fingerprint
from unfoldkit.safe_io.arrays import read_npz

# in the place of a model, where a group has one label and nothing is asked
SETTLED = "its only label"
RECORDED_FILE = "logs/recorded.npz"
READING = 3
"""Counts up when logs are read in another way, so that tables of before are made again."""
STRANGE = 0.95
LOOKS = 0.05
LEAST = 0.5
Heard = tuple[IntArray, FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class Question:
    """One zoo: ``answer`` (n, M) labels or groups, ``score`` (n, M) confidences, ``price`` (M,) of the call alone.

    ``buys`` are the feature groups that each model needs; ``latency_us`` (M,) is measured, NaN if it was not. ``paid``
    (n, M) is what each call cost, where that differs from case to case: ``price`` is then the mean over training rows.
    """

    stage: str
    group: str
    models: tuple[str, ...]
    answer: IntArray
    score: FloatArray
    price: FloatArray
    buys: tuple[frozenset[str], ...]
    latency_us: FloatArray
    paid: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Zoo:
    """All questions of a cascade: ``first``, and by group number ``then``; ``monoliths`` holds the candidates.

    ``prices`` are what is paid once a case, whoever needs it: feature groups (when the cost is by price) and the call
    of the monolith; ``times`` the same in µs. ``stakes`` are what errors cost; ``clusters`` (n,)
    whose the rows are, as in ``Cases``.
    """

    first: Question
    then: Mapping[int, Question]
    monoliths: Question
    prices: Mapping[str, float]
    times: Mapping[str, float]
    unit: str
    stakes: Stakes = ALIKE
    clusters: IntArray | None = None

    def bought(self, groups: frozenset[str]) -> float:
        """Return the price of what is paid once a case."""
        return sum(self.prices.get(name, 0.0) for name in groups)

    def waited(self, groups: frozenset[str]) -> float:
        """Return the time of what is done once a case, in µs."""
        return sum(self.times.get(name, 0.0) for name in groups)


def zoo(spec: CascadeSpec, run: Run, given: Cases) -> Zoo:
    """Return the tables of a spec, fitting what is not fitted yet."""
    if spec.data.source == "recorded":
        question = _recorded(spec, run, given)
        return Zoo(question, {}, question, {}, {}, unit(spec), stakes(spec, given), given.clusters)
    return assemble(spec, given, logs(spec, run, given))


def assemble(spec: CascadeSpec, given: Cases, found: list[tuple[Slot, Log]]) -> Zoo:
    """Return the tables of a spec from the logs of its models, in the order of ``slots``."""
    target = spec.stages[0].target.groups
    at = stakes(spec, given)
    monoliths = _question(spec, found, BASELINE, WHOLE, at=at)
    best = best_single(spec, monoliths, given)
    log = found[len(found) - len(monoliths.models) + best][1]
    whole = _Whole(given, group_of_label(spec, given.names), log, monoliths.buys[best] | {BASELINE})
    first = _question(spec, found, spec.stages[0].name, WHOLE, whole, None, at)
    then = {g: _second(spec, found, name, whole, g) for g, name in enumerate(target or {})}
    prices = {name: group.price for name, group in spec.features.items()} if spec.cost.by == "price" else {}
    times = {BASELINE: float(monoliths.latency_us[best])}
    return Zoo(
        first,
        then,
        monoliths,
        {**prices, BASELINE: float(monoliths.price[best])},
        times,
        unit(spec),
        at,
        given.clusters,
    )


def stakes(spec: CascadeSpec, given: Cases) -> Stakes:
    """Return what errors cost by the goal of a spec."""
    return stakes_of(spec.goal.errors, given.names, given.labels)


@dataclass(frozen=True, slots=True)
class _Whole:
    """The monolith as a model of a stage: its probabilities of labels, summed up for groups or kept within one.

    ``buys`` are its feature groups and its own call: whichever of them a case has paid for is not paid again.
    """

    given: Cases
    groups: IntArray
    log: Log
    buys: frozenset[str]

    def probability(self, group: int | None) -> tuple[FloatArray, IntArray]:
        """Return (n, A) probabilities and the (A,) answers that they are about."""
        known = self.log.probability
        if group is not None:
            labels = np.flatnonzero(self.groups == group)
            within = known[:, labels]
            return within / np.maximum(within.sum(axis=1, keepdims=True), 1e-300), labels
        if self.groups.max() == 0:
            return known, np.arange(known.shape[1])
        count = int(self.groups.max()) + 1
        return np.column_stack([known[:, self.groups == g].sum(axis=1) for g in range(count)]), np.arange(count)


def best_single(spec: CascadeSpec, monoliths: Question, given: Cases) -> int:
    """Return the candidate that loses least on the training rows, out of fold; of equals the cheapest."""
    rows = given.rows.train
    loss = stakes(spec, given).losses(monoliths.answer[rows], given.labels[rows][:, None]).mean(axis=0)
    prices = {name: group.price for name, group in spec.features.items()} if spec.cost.by == "price" else {}
    bought = [sum(prices.get(name, 0.0) for name in names) for names in monoliths.buys]
    return int(np.lexsort((monoliths.price + np.array(bought), loss))[0])


def unit(spec: CascadeSpec) -> str:
    """Return the unit that costs are printed in."""
    names = {"flops": "FLOPs", "bytes": "bytes", "latency": "µs", "price": "$"}
    return spec.cost.unit or names[spec.cost.by]


def _question(
    spec: CascadeSpec,
    found: list[tuple[Slot, Log]],
    stage: str,
    group: str,
    whole: _Whole | None = None,
    number: int | None = None,
    at: Stakes = ALIKE,
) -> Question:
    logged = {slot.model: (slot, log) for slot, log in found if (slot.stage, slot.group) == (stage, group)}
    voices = [_voice(spec, model, logged.get(model.name), whole, number) for model in _model_specs(spec, stage)]
    return Question(
        stage,
        group,
        tuple(voice.model for voice in voices),
        np.column_stack([voice.answers[at.answers(voice.probability)] for voice in voices]),
        np.column_stack([_confidence(spec, voice, at) for voice in voices]),
        np.array([voice.price for voice in voices]),
        tuple(voice.buys for voice in voices),
        np.array([voice.latency_us for voice in voices]),
    )


def _second(spec: CascadeSpec, found: list[tuple[Slot, Log]], group: str, whole: _Whole, number: int) -> Question:
    """Return the second question of a group; of a group of one label the answer stands, for nothing."""
    stage, labels = spec.stages[1].name, np.flatnonzero(whole.groups == number)
    if len(labels) > 1:
        return _question(spec, found, stage, group, whole, number)
    rows, nothing = len(whole.log.probability), np.zeros(1)
    return Question(
        stage,
        group,
        (SETTLED,),
        np.full((rows, 1), labels[0]),
        np.ones((rows, 1)),
        nothing,
        (frozenset(),),
        nothing,
    )


def settled(question: Question) -> bool:
    """Whether there is nothing to ask."""
    return question.models == (SETTLED,)


@dataclass(frozen=True, slots=True)
class _Voice:
    """What one model of a question says and costs."""

    model: str
    probability: FloatArray
    answers: IntArray
    price: float
    buys: frozenset[str]
    latency_us: float
    confidence: FloatArray | None = None


def _confidence(spec: CascadeSpec, voice: _Voice, at: Stakes) -> FloatArray:
    return confidence_of(spec, at)(voice.probability) if voice.confidence is None else voice.confidence


def _voice(
    spec: CascadeSpec, model: ModelSpec, logged: tuple[Slot, Log] | None, whole: _Whole | None, group: int | None
) -> _Voice:
    if logged is None and whole is not None:
        return _Voice(model.name, *whole.probability(group), 0.0, whole.buys, 0.0)
    if logged is None:
        raise fail(f"the model {model.name!r} was not fitted", hint="unfold train fits it")
    slot, log = logged
    buys = frozenset(spec.features if model.features is None else model.features)
    price = _price(spec, slot, log, model)
    return _Voice(model.name, log.probability, slot.answers, price, buys, log.latency_us, log.confidence)


def _model_specs(spec: CascadeSpec, stage: str) -> list[ModelSpec]:
    if stage != BASELINE:
        return [model for item in spec.stages if item.name == stage for model in item.models]
    return [
        ModelSpec(
            name=candidate_name(c, item),
            estimator=item.estimator,
            features=item.features,
            params=item.params,
            price=call_price(spec, item),
        )
        for c, item in enumerate(spec.baseline.candidates if spec.baseline else ())
    ]


def confidence_of(spec: CascadeSpec, at: Stakes) -> Callable[[FloatArray], FloatArray]:
    """Return the function from (n, C) probabilities to the (n,) confidences that gates read.

    A model that the spec's confidence cannot look into is read by its largest probability, and so is one whose
    confidence is to be calibrated; where errors do not all cost the same, by what its answer may cost.
    """
    functions = {"margin": confidence.margin, "entropy": confidence.entropy}
    return functions.get(spec.gates.confidence or "", at.confidence)


def _price(spec: CascadeSpec, slot: Slot, log: Log, model: ModelSpec) -> float:
    if spec.cost.by == "price":
        return model.price or 0.0
    value = {"flops": log.flops, "bytes": log.bytes, "latency": log.latency_us}[spec.cost.by]
    if np.isnan(value):
        hint = "cost: {by: latency} measures instead"
        raise fail(f"the operations of {slot.recipe.estimator} are not known", key=slot.key, hint=hint)
    return value


def _recorded(spec: CascadeSpec, run: Run, given: Cases) -> Question:
    models = spec.stages[0].models
    made_from = fingerprint([dump(model) for model in models], given.names, source_digest(spec, run), READING)

    def make() -> bytes:
        frame = load_frame(spec, run)
        cases = labelled(spec, frame)
        return _packed(tuple(table[cases] for table in heard(spec, given.names, frame)))

    return _question_of(spec, given, run.directory.once(RECORDED_FILE, made_from, make))


def recorded_again(spec: CascadeSpec, run: Run, given: Cases, frame: Frame | None = None) -> Zoo:
    """Return the tables that a run holds of recorded models, lengthened by the rows of ``frame``."""
    with run.directory.decoding(RECORDED_FILE, "recorded answers") as data:
        question = _question_of(spec, given, data)
    if frame is not None:
        answer, score, paid = heard(spec, given.names, frame)
        longer = np.concatenate([question.answer, answer]), np.concatenate([question.score, score])
        each = None if question.paid is None else np.concatenate([question.paid, paid])
        question = replace(question, answer=longer[0], score=longer[1], paid=each)
    return Zoo(question, {}, question, {}, {}, unit(spec), stakes(spec, given), given.clusters)


def _question_of(spec: CascadeSpec, given: Cases, data: bytes) -> Question:
    stored = read_npz(data)
    answer, score, paid = stored["answer"], stored["score"], stored.get("paid")
    models = spec.stages[0].models
    each = any(model.recorded is not None and model.recorded.price is not None for model in models)
    if each and paid is None:
        raise ValueError("the prices of the calls are missing")
    fixed = np.array([model.price or 0.0 for model in models])
    price = fixed if paid is None or not each else paid[given.rows.train].mean(axis=0)
    buys = tuple(frozenset[str]() for _ in models)
    names, nothing = tuple(model.name for model in models), np.full(len(models), np.nan)
    return Question(spec.stages[0].name, WHOLE, names, answer, score, price, buys, nothing, paid if each else None)


def heard(spec: CascadeSpec, names: Sequence[str], frame: Frame) -> Heard:
    """Return (n, M) answers, confidences and prices of recorded models; ``names`` are those of the labels.

    Where a model gave no answer, or no confidence in it, its confidence is minus infinity: no gate stops there.

    Raises:
        UnfoldError: a column is missing, the answers of a model are no labels, or a price is none.
    """
    found = [
        _heard(model, model.recorded, names, frame, f"stages[0].models[{m}].recorded")
        for m, model in enumerate(spec.stages[0].models)
        if model.recorded is not None
    ]
    answer, score, paid = (np.array(column).T for column in zip(*found, strict=True))
    return answer.astype(np.int64), score, paid


def _heard(model: ModelSpec, columns: Recorded, names: Sequence[str], frame: Frame, key: str) -> Heard:
    answer, silent = (
        _answers(columns.prediction, names, frame, model.name, f"{key}.prediction")
        if columns.prediction is not None
        else _judged(columns, frame, f"{key}.score")
    )
    sure = frame.numbers(columns.confidence, key=f"{key}.confidence")
    return (
        answer,
        np.where(np.isnan(sure) | silent, -np.inf, sure),
        _paid(model, columns, frame, silent, f"{key}.price"),
    )


def _answers(column: str, names: Sequence[str], frame: Frame, model: str, key: str) -> tuple[IntArray, BoolArray]:
    """Return (n,) what a model answered, and where it did not."""
    text = frame.text(column, key=key)
    _check_answers(text, names, model, key)
    number = {name: index for index, name in enumerate(names)}
    # an answer that is no label of the data is wrong whatever the truth
    answer = np.array([number.get(str(value), len(number)) for value in text], dtype=np.int64)
    return answer, ~cells.known(text) & (answer == len(number))


def _judged(columns: Recorded, frame: Frame, key: str) -> tuple[IntArray, BoolArray]:
    """Return (n,) 0 where an answer was right and 1 where it was not, and where there was none."""
    score = frame.flags(columns.score or "", key=key)
    least = LEAST if columns.right_from is None else columns.right_from
    return np.where(score >= least, 0, 1), np.isnan(score)


def _paid(model: ModelSpec, columns: Recorded, frame: Frame, silent: BoolArray, key: str) -> FloatArray:
    """Return (n,) the price of each call; one that was not answered may have none."""
    if columns.price is None:
        return np.full(len(silent), model.price or 0.0)
    price = frame.numbers(columns.price, key=key)
    wrong = np.flatnonzero((price < 0) | (np.isnan(price) & ~silent))
    if len(wrong):
        row = int(wrong[0])
        raise fail(f'{frame.name}: row {row + 1} of column "{columns.price}" holds no price', key=key)
    return np.nan_to_num(price)


def _check_answers(text: np.ndarray, names: Sequence[str], model: str, key: str) -> None:
    """Raise when the answers of a model look as if they were meant as labels, and are none."""
    given = Counter(map(str, text[cells.known(text)]))
    strange = Counter({answer: count for answer, count in given.items() if answer not in names})
    likely = {name.casefold(): name for name in names}
    alike = sum(count for answer, count in strange.items() if answer.casefold() in likely)
    if (strange.total() < STRANGE * given.total() and alike < LOOKS * given.total()) or not strange:
        return
    shown = [answer for answer, _ in strange.most_common(3)]
    hint = f"the labels are {_quoted(names[:6])}{', ...' * (len(names) > 6)}"
    if alike:
        shown = [answer for answer, _ in strange.most_common() if answer.casefold() in likely][:3]
        hint = f"the labels are {_quoted([likely[answer.casefold()] for answer in shown])}: write both in the same case"
    share = f"{strange.total():,} of {given.total():,} answers of {model!r}"
    raise fail(f"{share} are no labels of the data, such as {_quoted(shown)}", key=key, hint=hint)


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _packed(tables: tuple[FloatArray | IntArray, ...]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, answer=tables[0], score=tables[1], paid=tables[2])
    return stream.getvalue()
