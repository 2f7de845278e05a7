"""Tables that gates are searched on: for each question, what every model answers, how sure it is, and its price."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.cases import Cases, source_digest
from unfold_cascade.data import load_frame
from unfold_cascade.gates import confidence
from unfold_cascade.spec import CascadeSpec, ModelSpec
from unfold_cascade.zoo import BASELINE, WHOLE, Log, Slot, candidate_name, logs
from unfoldkit.api import Run, dump, fail, fingerprint

RECORDED_FILE = "logs/recorded.npz"


@dataclass(frozen=True, slots=True)
class Question:
    """One zoo: ``answer`` (n, M) labels or groups, ``score`` (n, M) confidences, ``price`` (M,) of the call alone.

    ``buys`` are the feature groups that each model needs; ``latency_us`` (M,) is measured, NaN if it was not.
    """

    stage: str
    group: str
    models: tuple[str, ...]
    answer: IntArray
    score: FloatArray
    price: FloatArray
    buys: tuple[frozenset[str], ...]
    latency_us: FloatArray


@dataclass(frozen=True, slots=True)
class Zoo:
    """All questions of a cascade: ``first``, and by group number ``then``; ``monoliths`` holds the candidates.

    ``prices`` are what the feature groups cost, each once a case; empty when the cost is not by price.
    """

    first: Question
    then: Mapping[int, Question]
    monoliths: Question
    prices: Mapping[str, float]
    unit: str

    def bought(self, groups: frozenset[str]) -> float:
        """Return the price of feature groups."""
        return sum(self.prices.get(name, 0.0) for name in groups)


def zoo(spec: CascadeSpec, run: Run, given: Cases) -> Zoo:
    """Return the tables of a spec, fitting what is not fitted yet."""
    if spec.data.source == "recorded":
        question = _recorded(spec, run, given)
        return Zoo(question, {}, question, {}, unit(spec))
    found = logs(spec, run, given)
    target = spec.stages[0].target.groups
    first = _question(spec, found, spec.stages[0].name, WHOLE)
    then = {g: _question(spec, found, spec.stages[1].name, name) for g, name in enumerate(target or {})}
    prices = {name: group.price for name, group in spec.features.items()} if spec.cost.by == "price" else {}
    return Zoo(first, then, _question(spec, found, BASELINE, WHOLE), prices, unit(spec))


def unit(spec: CascadeSpec) -> str:
    """Return the unit that costs are printed in."""
    names = {"flops": "FLOPs", "bytes": "bytes", "latency": "µs", "price": "$"}
    return spec.cost.unit or names[spec.cost.by]


def _question(spec: CascadeSpec, found: list[tuple[Slot, Log]], stage: str, group: str) -> Question:
    own = [(slot, log) for slot, log in found if (slot.stage, slot.group) == (stage, group)]
    specs = _model_specs(spec, stage)
    models = [specs[slot.model] for slot, _ in own]
    return Question(
        stage,
        group,
        tuple(slot.model for slot, _ in own),
        np.column_stack([slot.answers[log.probability.argmax(axis=1)] for slot, log in own]),
        np.column_stack([_confidence(spec, log.probability) for _, log in own]),
        np.array([_price(spec, slot, log, specs[slot.model]) for slot, log in own]),
        tuple(frozenset(spec.features if model.features is None else model.features) for model in models),
        np.array([log.latency_us for _, log in own]),
    )


def _model_specs(spec: CascadeSpec, stage: str) -> dict[str, ModelSpec]:
    if stage != BASELINE:
        return {model.name: model for item in spec.stages if item.name == stage for model in item.models}
    candidates = spec.baseline.candidates if spec.baseline else ()
    return {
        candidate_name(c, item): ModelSpec(
            name=candidate_name(c, item), estimator=item.estimator, features=item.features, params=item.params
        )
        for c, item in enumerate(candidates)
    }


def _confidence(spec: CascadeSpec, probability: FloatArray) -> FloatArray:
    functions = {
        "max-probability": confidence.max_probability,
        "margin": confidence.margin,
        "entropy": confidence.entropy,
    }
    return functions[spec.gates.confidence](probability)


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
    made_from = fingerprint([dump(model) for model in models], given.names, source_digest(spec, run))
    data = run.directory.once(RECORDED_FILE, made_from, lambda: _read_recorded(spec, run, given))
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        answer, score = stored["answer"], stored["score"]
    price = np.array([model.price or 0.0 for model in models])
    buys = tuple(frozenset[str]() for _ in models)
    names = tuple(model.name for model in models)
    return Question(spec.stages[0].name, WHOLE, names, answer, score, price, buys, np.full(len(models), np.nan))


def _read_recorded(spec: CascadeSpec, run: Run, given: Cases) -> bytes:
    frame = load_frame(spec, run)
    number = {name: index for index, name in enumerate(given.names)}
    answers, scores = [], []
    for m, model in enumerate(spec.stages[0].models):
        columns = model.recorded
        if columns is None:
            continue
        key = f"stages[0].models[{m}].recorded"
        text = frame.text(columns.prediction, key=f"{key}.prediction")
        # an answer that is no label of the data is wrong whatever the truth
        answers.append([number.get(str(value), len(number)) for value in text])
        scores.append(np.nan_to_num(frame.numbers(columns.confidence, key=f"{key}.confidence"), nan=-np.inf))
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, answer=np.array(answers, dtype=np.int64).T, score=np.array(scores).T)
    return stream.getvalue()
