"""The models of a cascade over time: fitted on rows in their stage, logged on every hour once, kept in the run."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.gates.evidential import inspect_model, shrink_to_uniform
from unfold_cascade.learners import cost, estimators
from unfold_cascade.learners.estimators import Recipe, select_inspection
from unfold_cascade.models.tuned_params import resolve_recipe
from unfold_cascade.models.zoo import RESUME_HINT, library_versions
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.parts import Stage
from unfold_cascade.temporal.data.features import Layout
from unfold_cascade.temporal.data.warning_metrics import utility
from unfoldkit.api import Run, UnfoldError, dump, fail, fingerprint

BASELINE = "baseline"
MONOLITH = "monolith"
SHARED_FILE = "features.tmp.npy"
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one model: the stage that it answers for, how it is made, and what its answer is worth.

    ``own`` (n,) are the rows that it learns from where their entity is in the training part; ``y`` (n,) their labels;
    ``groups`` the feature groups that it needs, all if ``None``; ``inside`` the confidence that looks into the model.
    ``weight`` (n,) says how much each row counts, once each if ``None``.
    """

    key: str
    stage: str
    model: str
    recipe: Recipe
    groups: tuple[str, ...] | None
    columns: IntArray
    own: BoolArray
    y: IntArray
    made_from: str
    inside: str | None = None
    weight: FloatArray | None = None

    @property
    def place(self) -> str:
        """The names of stage and model."""
        return f"{self.stage}/{self.model}"

    @property
    def classes(self) -> int:
        """How many answers it tells apart."""
        return int(self.y.max()) + 1

    @property
    def model_file(self) -> str:
        """Where the model stands in the run."""
        return f"models/{self.stage}/{self.model}{estimators.suffix(self.recipe)}"

    @property
    def log_file(self) -> str:
        """Where its predictions stand in the run."""
        return f"logs/{self.stage}/{self.model}.npz"


@dataclass(frozen=True, slots=True)
class Log:
    """(n, C) probabilities of every hour, out of fold for the training part, and the costs of one call."""

    p: Float32
    flops: float
    bytes: float
    latency: float


@dataclass(frozen=True, slots=True)
class Job:
    """One fit as a worker gets it: (n,) labels, the rows to learn from and the (n,) fold of each row.

    ``file`` holds the (n, d) features, of which the model sees ``columns``. Fold -1 is no part of the training: it is
    answered by the model that learnt from all folds.
    """

    recipe: Recipe
    file: str
    columns: IntArray
    y: IntArray
    own: BoolArray
    fold: IntArray
    seed: int
    batch: int
    inside: str | None = None
    weight: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What slots are made from: (P+1,) starts, (n, S) stages entered and hours since, the highest (n,), a digest."""

    starts: IntArray
    on: BoolArray
    since: FloatArray
    highest: IntArray
    digest: str


def slots(spec: CascadeSpec, run: Run, facts: Facts, layout: Layout) -> list[Slot]:
    """Return the place of every model, stage by stage, then the rivals of the monolith, and last itself."""
    found = []
    for s, stage in enumerate(spec.stages):
        own = rows_in_stage(facts.highest, facts.since, s, parallel=stage.parallel, fresh=stage.fresh)
        lesson = _lesson(stage, facts, s, own)
        for m, model in enumerate(stage.models):
            place = (f"stages[{s}].models[{m}].estimator", stage.name, model.name)
            found.append(
                _slot(spec, run, facts, layout, place, resolve_recipe(model, run, key=place[0]), model.features, lesson)
            )
    base = spec.baseline
    if base is None:
        return found
    whole = Lesson(np.ones(len(facts.highest), dtype=np.bool_), facts.highest, None)
    for r, rival in enumerate(base.rivals):
        place = (f"baseline.rivals[{r}].estimator", BASELINE, rival.name)
        found.append(
            _slot(spec, run, facts, layout, place, resolve_recipe(rival, run, key=place[0]), rival.features, whole)
        )
    place = ("baseline.estimator", BASELINE, MONOLITH)
    return [
        *found,
        _slot(spec, run, facts, layout, place, resolve_recipe(base, run, key=place[0]), base.features, whole),
    ]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model learns: the (n,) rows, their (n,) labels, and the (n,) weights, once each if ``None``."""

    own: BoolArray
    y: np.ndarray
    weight: FloatArray | None


def _lesson(stage: Stage, facts: Facts, s: int, own: BoolArray) -> Lesson:
    """Return the labels of a stage; or, to learn the utility, whether a warning pays, weighted by how much."""
    if stage.learn == "label":
        return Lesson(own, facts.on[:, s], None)
    worth = utility(facts.since[:, s])
    gain = worth.yes - worth.no
    return Lesson(own & (gain != 0.0), gain > 0.0, np.abs(gain))


def rows_in_stage(highest: IntArray, since: FloatArray, s: int, *, parallel: bool, fresh: float | None) -> BoolArray:
    """Return (n,) the rows that the models of stage ``s`` learn from.

    A stage in parallel is asked at every hour, and learns from every hour. Another one is asked from the moment that
    the case entered the stage before until it moves on: it learns from the hours in the stage before, and from those
    in its own, which end when the stage after is entered or (``fresh``, in seconds) so long after the entry.
    """
    if parallel:
        return np.ones(len(highest), dtype=np.bool_)
    inside = (highest == s) | (highest == s + 1)
    late = np.inf if fresh is None else fresh / HOUR
    result: BoolArray = inside & (since[:, s] < late)
    return result


def logs(
    spec: CascadeSpec, run: Run, places: Sequence[Slot], features: Callable[[], Float32], fold: IntArray
) -> list[Log]:
    """Fit every model that is not in the run yet, side by side, and return what each says of every hour.

    Args:
        spec: the spec.
        run: keeps models and logs.
        places: the models.
        features: gives the (n, d) features; called only if there is something to fit.
        fold: (n,) fold of each row, -1 outside the training part.

    Raises:
        UnfoldError: an estimator does not exist, does not fit, or a worker died.
    """
    # the costliest come last in a spec; begun first, they leave no worker alone at the end
    todo = [slot for slot in reversed(places) if not _done(run, slot)]
    for slot in todo:
        estimators.check_recipe(slot.recipe, key=slot.key, allow_code=run.allow_code)

    def keep(index: int, result: tuple[bytes, bytes]) -> None:
        run.directory.write(todo[index].model_file, result[0], made_from=todo[index].made_from)
        run.directory.write(todo[index].log_file, result[1], made_from=todo[index].made_from)
        run.log.info("fitted %s %s", todo[index].stage, todo[index].model)
        run.progress("models", len(places) - len(todo) + index + 1, len(places))

    if todo:
        with _shared(run, features) as file:
            jobs = [
                Job(
                    slot.recipe,
                    file,
                    slot.columns,
                    slot.y,
                    slot.own,
                    fold,
                    run.seed,
                    spec.cost.batch,
                    slot.inside,
                    slot.weight,
                )
                for slot in todo
            ]
            run.engine.map(work, jobs, on_result=keep)
    return [_read(run, slot) for slot in places]


def kept(run: Run, places: Sequence[Slot]) -> list[Log]:
    """Return what each model says of every hour, as the run holds it; nothing is fitted.

    Raises:
        UnfoldError: a model is not in the run, or was fitted with another seed or other versions of the libraries.
    """
    for slot in places:
        if not _done(run, slot):
            message = f"the run holds no model {slot.place} fitted with this spec, seed and versions of the libraries"
            raise fail(message, file=str(run.directory.path), key=slot.key, hint=RESUME_HINT)
    return [_read(run, slot) for slot in places]


def work(job: Job) -> tuple[bytes, bytes]:
    """Fit one model and log it; returns the stored model and the stored log. Runs in a worker."""
    classes = int(job.y.max()) + 1
    x = np.ascontiguousarray(np.load(job.file, mmap_mode="r")[:, job.columns])
    learns = job.own & (job.fold >= 0)
    model = _fitted(job, x, learns)
    p = np.empty((len(job.y), classes), dtype=np.float32)
    p[job.fold < 0] = said(model, x[job.fold < 0], classes, job.inside)
    for held in range(int(job.fold.max()) + 1):
        other, here = learns & (job.fold != held), job.fold == held
        part = _fitted(job, x, other)
        p[here] = said(part, x[here], classes, job.inside)
    stored = estimators.to_bytes(job.recipe, model)
    facts = {"bytes": len(stored), "flops": _flops(model, x.shape[1]), "latency": _latency(model, x, job.batch)}
    stream = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(stream, allow_pickle=False, p=p, facts=text)
    return stored, stream.getvalue()


def _fitted(job: Job, x: Float32, rows: BoolArray) -> Any:
    weight = None if job.weight is None else job.weight[rows]
    return estimators.fit_estimator(job.recipe, x[rows], job.y[rows], job.seed, weight, gaps=estimators.has_gaps(x))


def said(model: Any, x: Float32, classes: int, looks: str | None) -> FloatArray:
    """Return (n, C) probabilities, drawn to 1/C by the doubt of a confidence that looks into the model, if one does."""
    p = estimators.predict_probabilities(model, x, classes)
    return p if looks is None else shrink_to_uniform(p, inspect_model(looks, model, x))


def _latency(model: Any, x: Float32, batch: int) -> float:
    return cost.measure_latency_us(model.predict_proba, x, batch, time.perf_counter)


@contextmanager
def _shared(run: Run, features: Callable[[], Float32]) -> Iterator[str]:
    """Lay the features where every worker can map them: sent to each, they would fill the memory several times."""
    file = run.directory.path.resolve() / SHARED_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        np.save(file, features(), allow_pickle=False)
        yield str(file)
    finally:
        file.unlink(missing_ok=True)


def _flops(model: Any, columns: int) -> float | None:
    try:
        return cost.count_flops(model, columns)
    except UnfoldError:
        return None


def _slot(
    spec: CascadeSpec,
    run: Run,
    facts: Facts,
    layout: Layout,
    place: tuple[str, str, str],
    recipe: Recipe,
    groups: tuple[str, ...] | None,
    lesson: Lesson,
) -> Slot:
    columns, own = layout.places(groups), lesson.own
    labels = lesson.y.astype(np.int64)
    names = [layout.names[column] for column in columns]
    how = [recipe.estimator, dict(recipe.params), recipe.scale, run.seed, spec.gates.folds, spec.cost.batch]
    how.append(dump(spec.data.split))
    looks = select_inspection(spec.gates.confidence, recipe.estimator) if place[1] != BASELINE else None
    # named only where it is there: models of runs from before stay good
    seen = [*([looks] if looks else []), *([] if lesson.weight is None else [_hash(lesson.weight)])]
    made_from = fingerprint(facts.digest, names, how, _hash(own), _hash(labels), library_versions(), *seen)
    return Slot(*place, recipe, groups, columns, own, labels, made_from, looks, lesson.weight)


def _hash(array: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _done(run: Run, slot: Slot) -> bool:
    return all(run.directory.has(name, made_from=slot.made_from) for name in (slot.model_file, slot.log_file))


def _read(run: Run, slot: Slot) -> Log:
    try:
        with np.load(io.BytesIO(run.directory.read(slot.log_file)), allow_pickle=False) as stored:
            p, facts = stored["p"], json.loads(stored["facts"].tobytes())
    except (ValueError, KeyError, OSError) as error:
        raise fail(f"not a log of predictions: {error}", file=str(run.directory.path / slot.log_file)) from error
    flops = float("nan") if facts["flops"] is None else float(facts["flops"])
    return Log(p, flops, float(facts["bytes"]), float(facts["latency"]))
