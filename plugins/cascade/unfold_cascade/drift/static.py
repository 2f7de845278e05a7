"""`plan --check` on other data without time: the cascade of a plan answers cases that it was not tuned on.

Three things are compared, none needs a label: which model of each stage decided a case, how sure that model was, and,
where a stage was decided before its last model, whether the monolith gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import FILE as CASES
from unfold_cascade.data.dataset import Cases, clusters_of, made_from
from unfold_cascade.data.table import Frame, load_frame, matrix
from unfold_cascade.drift.report import Looked, tell
from unfold_cascade.drift.statistics import Change, hypergeometric_test, permutation_test
from unfold_cascade.models import onnx_runtime
from unfold_cascade.models.zoo import Log, Slot, stored
from unfold_cascade.planner.planner import FRONT_FILE
from unfold_cascade.planner.policy import Outcome, Policy, Step, follow
from unfold_cascade.planner.score_tables import Question, Zoo, assemble, recorded_again
from unfold_cascade.report.plan_loader import renewed
from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.schema.temporal import Drift
from unfoldkit.api import Report, Run

BANDS = 10


def new_data(spec: CascadeSpec, run: Run) -> CascadeSpec | None:
    """Return the spec of the plan to check, if the run holds its models and ``spec`` names other cases; else nothing.

    Raises:
        UnfoldError: beside the data, something else in the spec changed too, so there is no one thing to check.
    """
    return renewed(spec, run, FRONT_FILE, lambda: run.directory.has(CASES, made_from=made_from(spec, run)))


@dataclass(frozen=True, slots=True)
class Both:
    """Tables with the rows of the plan and, after them, the new ones; ``base`` (n,) is what the monolith answers.

    ``clusters`` (n,) says whose each row is, if rows are split by groups.
    """

    zoo: Zoo
    policy: Policy
    base: IntArray
    before: IntArray
    now: IntArray
    clusters: IntArray | None = None


def check(spec: CascadeSpec, planned: CascadeSpec, run: Run) -> Report:
    """Return whether the cases of ``spec`` are like those that no model of the plan was fitted or tuned on."""
    from unfold_cascade.serving.service import loaded_from

    plan: Mapping[str, Any] = run.options["baseline_plan"]
    loaded, frame = loaded_from(planned, run, plan), load_frame(spec, run)
    run.log.info("asking the models of the plan about %d cases", len(frame))
    zoo = _longer(planned, replace(run, seed=int(plan["seed"])), loaded.given, frame)
    base = zoo.monoliths.answer[:, zoo.monoliths.models.index(loaded.base)]
    if not loaded.is_cascade:
        zoo = replace(zoo, first=zoo.monoliths, then={})
    before = np.concatenate([loaded.given.rows.calibrate, loaded.given.rows.test])
    now = len(loaded.given.labels) + np.arange(len(frame))
    rule = planned.drift or Drift()
    whose = _whose(loaded.given.clusters, clusters_of(spec, frame))
    found = changes(Both(zoo, loaded.policy, base, before, now, whose), rule, run.seed)
    path = str(getattr(spec.data, "path", ""))
    looked = Looked(spec.name, len(frame), "cases", (f"{len(frame):,} new cases",), path, frame.digest)
    return tell(looked, found, rule, run)


def _whose(old: IntArray | None, new: IntArray | None) -> IntArray | None:
    """Return whose the rows of a plan and the new ones are; a group of both tables counts twice."""
    return None if old is None or new is None else np.concatenate([old, int(old.max()) + 1 + new])


def _longer(spec: CascadeSpec, run: Run, given: Cases, frame: Frame) -> Zoo:
    """Return the tables of a plan, lengthened by what its models say of new rows."""
    if spec.data.source == "recorded":
        return recorded_again(spec, run, given, frame)
    x = matrix(frame, given.order, key="features")
    return assemble(spec, given, [(slot, _asked(run, slot, log, x)) for slot, log in stored(spec, run, given)])


def _asked(run: Run, slot: Slot, log: Log, x: FloatArray) -> Log:
    engine = onnx_runtime.unconverted(run, slot, "a whole table")
    own = np.ascontiguousarray(x[:, slot.columns])
    probability = np.concatenate([log.probability, engine.predict(own)])
    if engine.sure is None or log.confidence is None:
        return replace(log, probability=probability)
    return replace(log, probability=probability, confidence=np.concatenate([log.confidence, engine.sure(own)]))


def changes(both: Both, rule: Drift, seed: int) -> list[Change]:
    """Return how exits, confidences and audits changed; the level is shared among all of them."""
    told = list(_compared(both))
    level = rule.level / len(told)
    found = []
    for place, (name, categories, old, new) in enumerate(told):
        test = hypergeometric_test if both.clusters is None else permutation_test
        distance, p_value = test(old, new, np.random.default_rng([seed, 0xD218, place]), level)
        shares = [counts / max(counts.sum(), 1) for counts in (_pooled(old), _pooled(new))]
        drifted = p_value <= level and distance > rule.margin
        found.append(Change(name, categories, shares[0], shares[1], distance, p_value, drifted))
    return found


Compared = tuple[str, tuple[str, ...], FloatArray, FloatArray]


def _compared(both: Both) -> Iterator[Compared]:
    went = [follow(both.zoo, both.policy, rows) for rows in (both.before, both.now)]
    rows = (both.before, both.now)
    whose = [None if both.clusters is None else both.clusters[mine] for mine in rows]
    for question, step, ends in _steps(both, went):
        names = ("not asked", *(question.models[m] for m in step.chain))
        place = f"{question.stage}" if question.group == "all" else f"{question.stage}/{question.group}"
        old, new = (_counts(end + 1, len(names), who) for end, who in zip(ends, whose, strict=True))
        yield f"exits of {place}", names, old, new
        sure = [_sureness(question, step, mine, end) for mine, end in zip(rows, ends, strict=True)]
        asked = [_some(who, end >= 0) for who, end in zip(whose, ends, strict=True)]
        yield (f"confidence in {place}", *_bands(sure, asked))
    early = [_early(both, one) for one in went]
    differs = [
        (one.answer != both.base[mine]).astype(np.int64)[here]
        for one, mine, here in zip(went, rows, early, strict=True)
    ]
    old, new = (_counts(d, 2, _some(who, here)) for d, who, here in zip(differs, whose, early, strict=True))
    yield "audit of early exits", ("as the monolith", "otherwise"), old, new


def _steps(both: Both, went: Sequence[Outcome]) -> Iterator[tuple[Question, Step, list[IntArray]]]:
    """Yield each question with its chain and, by table, the (n,) place in the chain that answered, -1 if not asked."""
    yield both.zoo.first, both.policy.first, [one.exit_first for one in went]
    for group, step in both.policy.then.items():
        yield both.zoo.then[group], step, [np.where(one.group == group, one.exit_then, -1) for one in went]


def _some(whose: IntArray | None, here: BoolArray) -> IntArray | None:
    return None if whose is None else whose[here]


def _pooled(counts: FloatArray) -> FloatArray:
    pooled: FloatArray = counts.sum(axis=0) if counts.ndim > 1 else counts
    return pooled


def _counts(category: IntArray, width: int, whose: IntArray | None) -> FloatArray:
    """Return the (K,) counts of categories, or (P, K) of each of the clusters that there are."""
    if whose is None:
        return np.bincount(category, minlength=width).astype(np.float64)
    names, place = np.unique(whose, return_inverse=True)
    flat = np.bincount(place * width + category, minlength=len(names) * width)
    return flat.reshape(len(names), width).astype(np.float64)


def _sureness(question: Question, step: Step, rows: IntArray, end: IntArray) -> FloatArray:
    asked = end >= 0
    found: FloatArray = question.score[rows[asked], np.array(step.chain)[end[asked]]]
    return found


def _bands(
    sure: Sequence[FloatArray], whose: Sequence[IntArray | None]
) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Return the names of bands of confidence that hold as many cases of both tables each, and the counts in them."""
    every = np.concatenate(sure)
    every = every[np.isfinite(every)]
    edges = np.unique(np.quantile(every, np.linspace(0, 1, BANDS + 1)[1:-1])) if every.size else np.empty(0)
    ends = ["", *(f"{edge:.3g}" for edge in edges), ""]
    names = tuple(
        f"{low} to {high}" if low and high else f"from {low}" if low else f"below {high}" if high else "all"
        for low, high in pairwise(ends)
    )
    bands = (np.searchsorted(edges, part, side="right") for part in sure)
    counts = [_counts(band, len(names), who) for band, who in zip(bands, whose, strict=True)]
    return names, counts[0], counts[1]


def _early(both: Both, one: Outcome) -> np.ndarray:
    """Return (n,) whether a stage was decided before its last model; all rows where that never happens."""
    early = one.exit_first < len(both.policy.first.chain) - 1
    for group, step in both.policy.then.items():
        early |= (one.group == group) & (one.exit_then < len(step.chain) - 1)
    return early if early.any() else np.ones_like(early)
