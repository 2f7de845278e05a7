"""What the models of a plan do to unseen cases, as a file for other kinds: who is asked after whom, in what time.

A case that is sure stops, one that is not is passed on: the share that is passed on is measured on the calibration and
test rows, which the search for gates has not seen.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade.learners import estimators
from unfold_cascade.models.onnx_runtime import PROBE_FILE
from unfold_cascade.models.zoo import BASELINE, WHOLE, Log, Slot, stored
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Policy, Step, follow
from unfold_cascade.planner.score_tables import Question, Zoo, settled
from unfoldkit.api import Run, dump, fingerprint

EXITS_FILE = "exits.json"
SCHEMA = "unfold_cascade.exits/1"
TRUSTED = ("sklearn.", "xgboost.")

Way = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A place where a model is asked: ``slot`` is what is stored of it, and where the monolith answers, of that."""

    stage: str
    group: str
    model: str
    slot: Slot
    log: Log

    @property
    def is_baseline(self) -> bool:
        """Whether the monolith answers here, which is asked once a case."""
        return self.slot.stage == BASELINE


def keep(plan: Plan, run: Run) -> None:
    """Write ``exits.json`` to the run; recorded predictions have no models, and a check changes no run."""
    if plan.spec.data.source != "recorded" and not run.options.get("baseline_plan"):
        body = json.dumps(exits(plan, run), indent=1) + "\n"
        run.directory.write(EXITS_FILE, body.encode(), made_from=fingerprint(dump(plan.spec)))


def exits(plan: Plan, run: Run) -> dict[str, Any]:
    """Return the models of a plan in the order asked, the shares passed on, and the ways that cases took."""
    zoo, policy = served(plan)
    asked = _asked(plan, zoo, policy, run)
    ways = _ways(zoo, policy, asked, np.concatenate([plan.given.rows.calibrate, plan.given.rows.test]))
    seen = sorted({place for way in ways for place in way})
    names, number = _names(asked), {place: index for index, place in enumerate(seen)}
    return {
        "schema": SCHEMA,
        "spec_sha256": fingerprint(dump(plan.spec)),
        "cases": sum(ways.values()),
        "columns": len(plan.given.order),
        "rows_per_call": plan.spec.cost.batch,
        "probe": PROBE_FILE if run.directory.has(PROBE_FILE) else None,
        "models": [_told(asked[place], names, place, ways) for place in seen],
        "ways": [{"models": [number[p] for p in way], "cases": count} for way, count in sorted(ways.items())],
        "unasked": [name for place, name in enumerate(names) if place not in number],
    }


def served(plan: Plan) -> tuple[Zoo, Policy]:
    """Return the tables and the policy that asks models; without a cascade the monolith's, a chain of one."""
    if plan.policy is not None:
        asked = {g: step for g, step in plan.policy.then.items() if not settled(plan.zoo.then[g])}
        return plan.zoo, replace(plan.policy, then=asked)
    return replace(plan.zoo, first=plan.zoo.monoliths, then={}), Policy(Step((plan.base.index,), ()), {})


def shares(ways: Mapping[Way, int]) -> dict[tuple[int, int], float]:
    """Return by (place, next place) the share of the cases at a place that go on to the next."""
    at = Counter[int]()
    on = Counter[tuple[int, int]]()
    for way, count in ways.items():
        at.update(dict.fromkeys(way, count))
        on.update(dict.fromkeys(itertools.pairwise(way), count))
    return {edge: count / at[edge[0]] for edge, count in sorted(on.items())}


def _steps(zoo: Zoo, policy: Policy) -> list[tuple[Question, Step]]:
    return [(zoo.first, policy.first), *((zoo.then[group], step) for group, step in policy.then.items())]


def _asked(plan: Plan, zoo: Zoo, policy: Policy, run: Run) -> list[Asked]:
    """Return every place of the cascade, question by question."""
    found = {(slot.stage, slot.group, slot.model): (slot, log) for slot, log in stored(plan.spec, run, plan.given)}
    base = found[BASELINE, WHOLE, plan.base.name]
    places = [(question, question.models[m]) for question, step in _steps(zoo, policy) for m in step.chain]
    return [Asked(q.stage, q.group, name, *found.get((q.stage, q.group, name), base)) for q, name in places]


def _ways(zoo: Zoo, policy: Policy, asked: Sequence[Asked], rows: Any) -> dict[Way, int]:
    """Return how many of ``rows`` were asked at which places, one after the other."""
    outcome = follow(zoo, policy, rows)
    ends = zip(outcome.exit_first.tolist(), outcome.group.tolist(), outcome.exit_then.tolist(), strict=True)
    ways = Counter[Way]()
    for (first, group, then), count in Counter(ends).items():
        ways[_once(_places(policy, first, group, then), asked)] += count
    return dict(ways)


def _places(policy: Policy, first: int, group: int, then: int) -> list[int]:
    way = list(range(first + 1))
    start = len(policy.first.chain)
    for number, step in policy.then.items():
        if number == group:
            way += range(start, start + then + 1)
        start += len(step.chain)
    return way


def _once(way: Sequence[int], asked: Sequence[Asked]) -> Way:
    """Leave out the monolith where it has answered already."""
    base = [place for place in way if asked[place].is_baseline]
    return tuple(place for place in way if place not in base[1:])


def _names(asked: Sequence[Asked]) -> list[str]:
    return named([(a.stage, a.group, a.model) if a.group != WHOLE else (a.stage, a.model) for a in asked])


def named(words: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each place, made of its words, that can be a key and a file."""
    names = [re.sub(r"[^\w.-]", "_", "-".join(parts)) for parts in words]
    again = Counter(names)
    return [name if again[name] == 1 else f"{name}-{index + 1}" for index, name in enumerate(names)]


def loadable(estimator: str) -> bool:
    """Whether another kind may load what is stored of an estimator: it is one of libraries that are trusted."""
    return estimators.SHORT_NAMES.get(estimator, estimator).startswith(TRUSTED)


def _told(asked: Asked, names: Sequence[str], place: int, ways: Mapping[Way, int]) -> dict[str, Any]:
    after = {names[parent]: share for (parent, child), share in shares(ways).items() if child == place}
    return {
        "name": names[place],
        "stage": asked.stage,
        "group": asked.group,
        "model": asked.model,
        "file": asked.slot.model_file if loadable(asked.slot.recipe.estimator) else None,
        "columns": asked.slot.columns.tolist(),
        "latency_us": asked.log.latency_us,
        "cases": sum(count for way, count in ways.items() if place in way),
        "after": after,
    }
