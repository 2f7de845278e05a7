"""The models of a cascade: fitted side by side, logged on every row once, stored so that a killed run goes on."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import Cases, features, group_of_label
from unfold_cascade.learners import cost, estimators
from unfold_cascade.learners.estimator_internals import inside
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.models import tuned_params
from unfold_cascade.schema.models import Candidate, CascadeSpec, ModelSpec
from unfoldkit.api import Run, UnfoldError, dump, fail, fingerprint
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object

BASELINE = "baseline"
WHOLE = "all"
AGAIN = "unfold train on the same spec goes on where it was"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one model: which question it answers, and what it is made from.

    ``own`` (n,) marks the rows that the question is about; ``y`` (n,) are the labels that the model learns, numbered
    from 0; ``answers`` (C,) say which label (or group) of the whole each of them is; ``inside`` names the confidence
    that looks into the model, if one does.
    """

    key: str
    stage: str
    group: str
    model: str
    recipe: Recipe
    columns: IntArray
    own: BoolArray
    y: IntArray
    answers: IntArray
    made_from: str
    inside: str | None = None

    @property
    def place(self) -> str:
        """The names of stage, group and model."""
        return f"{self.stage}/{self.group}/{self.model}"

    @property
    def classes(self) -> int:
        """How many answers it tells apart."""
        return len(self.answers)

    @property
    def model_file(self) -> str:
        """Where the model stands in the run."""
        return f"models/{self.stage}/{self.group}/{self.model}{estimators.suffix(self.recipe)}"

    @property
    def log_file(self) -> str:
        """Where its predictions stand in the run."""
        return f"logs/{self.stage}/{self.group}/{self.model}.npz"


@dataclass(frozen=True, slots=True)
class Job:
    """One fit as a worker gets it: (n, d) features, (n,) labels, the rows to fit on, (n,) clusters if there are.

    ``gaps`` says that the table misses values, here or in other columns: a server of it takes rows that miss any.
    """

    recipe: Recipe
    x: FloatArray
    y: IntArray
    fit: IntArray
    folds: int
    seed: int
    batch: int
    inside: str | None = None
    clusters: IntArray | None = None
    gaps: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """What one model says of every row: (n, C) probabilities, out of fold on its training rows; and its costs.

    ``confidence`` (n,) is what a look into the model tells, out of fold too; ``None`` where its probabilities are read.
    """

    probability: FloatArray
    flops: float
    bytes: float
    latency_us: float
    confidence: FloatArray | None = None


def logs(spec: CascadeSpec, run: Run, given: Cases) -> list[tuple[Slot, Log]]:
    """Fit every model that is not in the run yet, side by side, and return what each says of every row.

    Raises:
        UnfoldError: an estimator does not exist, does not fit, or a worker died.
    """
    places = slots(spec, run, given)
    todo = [slot for slot in places if not _done(run, slot)]
    for slot in todo:
        estimators.check(slot.recipe, key=slot.key, allow_code=run.allow_code)

    def keep(index: int, result: tuple[bytes, bytes]) -> None:
        run.directory.write(todo[index].model_file, result[0], made_from=todo[index].made_from)
        run.directory.write(todo[index].log_file, result[1], made_from=todo[index].made_from)
        run.log.info("fitted %s %s %s", todo[index].stage, todo[index].group, todo[index].model)
        run.progress("models", len(places) - len(todo) + index + 1, len(places))

    if todo:
        x = features(spec, run, given)
        run.engine.map(work, [_job(spec, run, given, slot, x) for slot in todo], on_result=keep)
    return [(slot, _read(run, slot)) for slot in places]


def stored(spec: CascadeSpec, run: Run, given: Cases) -> list[tuple[Slot, Log]]:
    """Return what each model says of every row, as the run holds it; nothing is fitted.

    Raises:
        UnfoldError: a model of the spec is not in the run, or was fitted with another seed or other versions.
    """
    places = slots(spec, run, given)
    for slot in places:
        if not _done(run, slot):
            message = f"the run holds no model {slot.model!r} fitted with this spec, seed and versions of the libraries"
            raise fail(message, file=str(run.directory.path), key=slot.key, hint=AGAIN)
    return [(slot, _read(run, slot)) for slot in places]


def slots(spec: CascadeSpec, run: Run, given: Cases) -> list[Slot]:
    """Return the place of every model of the spec: stage by stage, group by group, then the baseline's candidates."""
    groups = group_of_label(spec, given.names)
    found: list[Slot] = []
    for s, stage in enumerate(spec.stages):
        for group, own in _questions(spec, given, groups, s):
            truth = groups[given.labels] if stage.target.groups is not None else given.labels
            for m, model in enumerate(stage.models):
                if model.estimator == BASELINE:
                    continue
                key = f"stages[{s}].models[{m}].estimator"
                found.append(_slot(spec, run, given, model, (key, stage.name, group, model.name), truth, own))
    every = np.ones(len(given.labels), dtype=np.bool_)
    for c, candidate in enumerate(spec.baseline.candidates if spec.baseline else ()):
        place = (f"baseline.candidates[{c}].estimator", BASELINE, WHOLE, candidate_name(c, candidate))
        found.append(_slot(spec, run, given, candidate, place, given.labels, every))
    return found


def candidate_name(index: int, candidate: Candidate) -> str:
    """Return the name under which a monolithic candidate is stored and printed."""
    return f"{candidate.estimator.rsplit('.', 1)[-1]}-{index + 1}"


def work(job: Job) -> tuple[bytes, bytes]:
    """Fit one model and log it; returns the stored model and the stored log. Runs in a worker."""
    gaps = job.gaps or estimators.has_gaps(job.x)
    model = estimators.fit(job.recipe, job.x[job.fit], job.y[job.fit], job.seed, gaps=gaps)
    classes = int(job.y.max()) + 1
    said = _said(job, model, job.x, classes)
    said[job.fit] = _out_of_fold(job, classes, gaps=gaps)
    stored = estimators.to_bytes(job.recipe, model)
    predict = getattr(model, "predict_proba", None) or model.decision_function
    facts = {
        "bytes": len(stored),
        "flops": _flops(model, job.x.shape[1]),
        "latency_us": cost.latency_us(predict, job.x, job.batch, time.perf_counter),
    }
    stream = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    seen = {} if job.inside is None else {"confidence": said[:, classes]}
    np.savez(stream, allow_pickle=False, probability=said[:, :classes], facts=text, **seen)
    return stored, stream.getvalue()


def _said(job: Job, model: Any, x: FloatArray, classes: int) -> FloatArray:
    """Return (n, C) probabilities, and in one more column the confidence if it looks into the model."""
    from unfold_cascade.gates.evidential import look

    probability = estimators.probabilities(model, x, classes)
    return probability if job.inside is None else np.column_stack([probability, look(job.inside, model, x)])


def _out_of_fold(job: Job, classes: int, *, gaps: bool) -> FloatArray:
    """Return what models that never saw a row, or its cluster, say of it (k folds, stratified), as ``_said``."""
    x, y = job.x[job.fit], job.y[job.fit]
    result = np.zeros((len(y), classes + (job.inside is not None)))
    for fitted, held in _folds(job, y):
        # a label may be in clusters of one fold only
        seen, known = np.unique(y[fitted], return_inverse=True)
        model = estimators.fit(job.recipe, x[fitted], known, job.seed, gaps=gaps)
        said = _said(job, model, x[held], len(seen))
        result[np.ix_(held, seen)], result[held, classes:] = said[:, : len(seen)], said[:, len(seen) :]
    return result


def _folds(job: Job, y: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if job.clusters is None:
        folds = min(job.folds, int(np.unique(y, return_counts=True)[1].min()))
        yield from StratifiedKFold(folds, shuffle=True, random_state=job.seed).split(y, y)
        return
    whose = job.clusters[job.fit]
    folds = min(job.folds, *(len(np.unique(whose[y == label])) for label in np.unique(y)))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=job.seed).split(y, y, whose)
    yield from ((fitted, held) for fitted, held in split if len(held))


def _flops(model: Any, columns: int) -> float | None:
    try:
        return cost.flops(model, columns)
    except UnfoldError:
        return None


def _questions(spec: CascadeSpec, given: Cases, groups: IntArray, s: int) -> Iterator[tuple[str, BoolArray]]:
    """Yield the zoos of stage ``s``: one for the whole, or one for each group of two or more labels."""
    target = spec.stages[0].target.groups
    if s == 0 or target is None:
        yield WHOLE, np.ones(len(given.labels), dtype=np.bool_)
        return
    for number, name in enumerate(target):
        # a group of one label needs no model: whoever is sent there has that label
        if (groups == number).sum() > 1:
            yield name, groups[given.labels] == number


def _slot(
    spec: CascadeSpec,
    run: Run,
    given: Cases,
    model: ModelSpec | Candidate,
    place: tuple[str, str, str, str],
    truth: IntArray,
    own: BoolArray,
) -> Slot:
    answers = np.unique(truth[own])
    if len(answers) < 2:
        raise fail(f"group {place[2]!r} has one label only: there is nothing to decide", key="stages[0].target.groups")
    number = np.full(int(truth.max()) + 1, -1, dtype=np.int64)
    number[answers] = np.arange(len(answers))
    columns = given.places(model.features)
    recipe = tuned_params.recipe(model, run, key=place[0])
    facts = [given.digest, dump(spec.data), given.order, columns.tolist(), answers.tolist(), _target(spec)]
    how = [recipe.estimator, dict(recipe.params), recipe.scale, run.seed, spec.gates.folds, spec.cost.batch]
    looks = inside(spec.gates.confidence, recipe.estimator) if place[1] != BASELINE else None
    # named only where it is there: models of runs from before stay good
    made_from = fingerprint(facts, how, versions(), *([looks] if looks else []))
    return Slot(*place, recipe, columns, own, np.where(own, number[truth], -1), answers, made_from, looks)


def _target(spec: CascadeSpec) -> list[Any]:
    return [dump(stage.target) for stage in spec.stages]


def _job(spec: CascadeSpec, run: Run, given: Cases, slot: Slot, x: FloatArray) -> Job:
    rows = given.rows.train[slot.own[given.rows.train]]
    chosen, whose = np.ascontiguousarray(x[:, slot.columns]), given.clusters
    how = spec.gates.folds, run.seed, spec.cost.batch, slot.inside
    return Job(slot.recipe, chosen, slot.y, rows, *how, whose, estimators.has_gaps(x))


def versions() -> list[str]:
    """Return the versions that a fit depends on."""
    import importlib.metadata

    return [importlib.metadata.version(name) for name in ("scikit-learn", "xgboost", "numpy")]


def _done(run: Run, slot: Slot) -> bool:
    return all(run.directory.has(name, made_from=slot.made_from) for name in (slot.model_file, slot.log_file))


def _read(run: Run, slot: Slot) -> Log:
    with run.directory.decoding(slot.log_file, "a log of predictions") as data:
        stored = read_npz(data)
        facts = parse_object(stored["facts"].tobytes())
        flops = float("nan") if facts["flops"] is None else float(facts["flops"])
        return Log(
            stored["probability"], flops, float(facts["bytes"]), float(facts["latency_us"]), stored.get("confidence")
        )
