"""`serve`: answer requests by the cascade that was chosen, or by the monolith where none was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade.data.dataset import Cases, group_of_label, stored_cases
from unfold_cascade.models.onnx_runtime import Engine, Probe, engine, keep_probe
from unfold_cascade.models.zoo import AGAIN, BASELINE, WHOLE, Log, Slot, stored
from unfold_cascade.planner.planner import FRONT_FILE, from_json
from unfold_cascade.planner.policy import Policy, Step, follow, in_words
from unfold_cascade.planner.score_tables import (
    Question,
    Zoo,
    assemble,
    best_single,
    confidence_of,
    recorded_again,
    settled,
)
from unfold_cascade.report.dashboard import of_counters
from unfold_cascade.report.plan_loader import planned
from unfold_cascade.report.threshold_tables import matches
from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.serving.model import Cascade, Link, Voice, Whole
from unfold_cascade.serving.routes import outputs, table, written
from unfoldkit.api import Run, Service, broken, dump, fail, fingerprint
from unfoldkit.serving.model import Field
from unfoldkit.serving.observability.dashboard import of_requests
from unfoldkit.serving.oip.app import application, served

Count = Callable[[Sequence[int]], None]
Found = Mapping[tuple[str, str, str], tuple[Slot, Log]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What stands in a run: cases, tables, logs, and the policy that is served; the monolith's is a chain of one.

    ``base`` is the best single model, ``whole`` what it costs a row.
    """

    spec: CascadeSpec
    given: Cases
    zoo: Zoo
    found: Found
    policy: Policy
    is_cascade: bool
    base: str
    whole: float


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Return the service of what ``train`` or ``plan`` left in the run; nothing is fitted.

    Raises:
        UnfoldError: the run holds no plan of this spec, a file of it was changed, or its models answer differently now.
    """
    if spec.over_time:
        from unfold_cascade.verbs.temporal import serve as over_time

        return over_time(spec, run)
    from prometheus_client import CollectorRegistry

    loaded = load(spec, run)
    registry = CollectorRegistry()
    model, engines = cascade(loaded, run, counter(loaded, registry))
    app = application([model], registry=registry, log=run.log, clock=run.clock)
    told = tuple(_told(loaded, engines))
    watch = of_requests(spec.name, "cascade", app.metrics, of_counters(registry, loaded.zoo.unit, loaded.whole))
    return served(spec.name, app, lines=told, watch=watch)


def load(spec: CascadeSpec, run: Run) -> Loaded:
    """Return what the run holds of this spec, each file against its hash."""
    return loaded_from(spec, run, _plan(spec, run))


def loaded_from(spec: CascadeSpec, run: Run, plan: Mapping[str, Any]) -> Loaded:
    """Return what the run holds of a plan; of recorded models, which have no logs, the tables."""
    given = stored_cases(run)
    recorded = spec.data.source == "recorded"
    logged = [] if recorded else stored(spec, replace(run, seed=int(plan["seed"])), given)
    zoo = recorded_again(spec, run, given) if recorded else assemble(spec, given, logged)
    found = {(slot.stage, slot.group, slot.model): (slot, log) for slot, log in logged}
    best = best_single(spec, zoo.monoliths, given)
    steps = plan["decision"].get("cascade")
    base = zoo.monoliths.models[best]
    whole = float(zoo.monoliths.price[best]) + zoo.bought(zoo.monoliths.buys[best])
    if steps is None:
        alone = replace(zoo, first=zoo.monoliths, then={})
        return Loaded(
            spec, given, alone, found, Policy(Step((best,), ()), {}), is_cascade=False, base=base, whole=whole
        )
    return Loaded(spec, given, zoo, found, _policy(run, zoo, steps), is_cascade=True, base=base, whole=whole)


def cascade(loaded: Loaded, run: Run, count: Count) -> tuple[Cascade, dict[str, Engine]]:
    """Return the model to serve and the engine of each of its parts.

    Raises:
        UnfoldError: it does not send the rows that were set aside where the plan sends them.
    """
    probe = keep_probe(loaded.spec, run, loaded.given)
    for native in (False, True):
        engines = _engines(loaded, run, probe, native=native)
        model = _model(loaded, engines, probe, count)
        strays = astray(loaded, model, probe)
        if not strays:
            return model, engines
        run.log.warning("%d of %d rows set aside go another way; trying native models", strays, len(probe.rows))
    raise broken("the models of this run answer otherwise than when it was planned", hint=AGAIN)


def astray(loaded: Loaded, model: Cascade, probe: Probe) -> int:
    """Return how many rows that were set aside get another answer or pay another cost than in the plan."""
    planned = follow(loaded.zoo, loaded.policy, probe.rows)
    now = model.follow(probe.x)
    same = (now.answer == planned.answer) & np.isclose(model.table.cost[now.way], planned.cost, rtol=1e-9)
    return int((~same).sum())


def counter(loaded: Loaded, registry: Any) -> Count:
    """Return what counts, in metrics of ``registry``, which models were asked and what was paid."""
    from prometheus_client import Counter

    ways, unit = table(loaded.zoo, loaded.policy, loaded.given.names), loaded.zoo.unit
    asked = Counter("unfold_cascade_asked", "Rows that a model was asked", ("stage", "model"), registry=registry)
    sure = Counter(
        "unfold_cascade_sure", "Rows that a model decided for its stage", ("stage", "model"), registry=registry
    )
    answered = Counter("unfold_cascade_answered", "Rows that a model answered", ("stage", "model"), registry=registry)
    cost = Counter("unfold_cascade_cost", "What the rows cost", ("unit",), registry=registry).labels(unit)
    places = sorted({stop for way in zip(ways.stage, ways.model, strict=True) for stop in zip(*way, strict=True)})
    places = [place for place in places if place[0]]
    marks = [
        np.array([[place in pick(stops) for place in places] for stops in map(_stops, ways.stage, ways.model)])
        for pick in (list, _sure, lambda stops: stops[-1:])
    ]
    counters = [[told.labels(*place) for place in places] for told in (asked, sure, answered)]

    def count(way: Sequence[int]) -> None:
        times = np.bincount(way, minlength=len(ways.cost))
        cost.inc(float(times @ ways.cost))
        for told, mark in zip(counters, marks, strict=True):
            for one, number in zip(told, (times @ mark).tolist(), strict=True):
                one.inc(number)

    return count


def _plan(spec: CascadeSpec, run: Run) -> Mapping[str, Any]:
    if spec.data.source == "recorded":
        raise fail("recorded answers cannot be served: no model was fitted", key="data.source")
    return planned(spec, run, FRONT_FILE)


def _policy(run: Run, zoo: Zoo, steps: Any) -> Policy:
    """Return the policy of the run's front that a plan describes, with its curves."""
    front = from_json(run.directory.read(FRONT_FILE), str(run.directory.path / FRONT_FILE))
    for policy in front.policies:
        if matches(zoo, policy, steps):
            return policy
    raise fail("the plan is not of this run: no cascade of its front is like it", hint=AGAIN)


def _engines(loaded: Loaded, run: Run, probe: Probe, *, native: bool) -> dict[str, Engine]:
    wanted: dict[str, tuple[Slot, Log]] = {}
    for question, step in _steps(loaded):
        for m in step.chain:
            place = _place(loaded, question, m)
            wanted["/".join(place)] = loaded.found[place]
    return {name: engine(run, slot, log, probe, native=native) for name, (slot, log) in wanted.items()}


def _steps(loaded: Loaded) -> list[tuple[Question, Step]]:
    then = [(loaded.zoo.then[g], step) for g, step in loaded.policy.then.items() if not settled(loaded.zoo.then[g])]
    return [(loaded.zoo.first, loaded.policy.first), *then]


def _place(loaded: Loaded, question: Question, m: int) -> tuple[str, str, str]:
    """Return where a model of a question stands; for the last resort, where the monolith stands."""
    place = (question.stage, question.group, question.models[m])
    return place if place in loaded.found else (BASELINE, WHOLE, loaded.base)


def _model(loaded: Loaded, engines: Mapping[str, Engine], probe: Probe, count: Count) -> Cascade:
    spec, given, zoo = loaded.spec, loaded.given, loaded.zoo
    ways = table(zoo, loaded.policy, given.names)
    order, groups = given.order, loaded.policy.then
    known = {g: int(zoo.then[g].answer[0, 0]) for g in groups if settled(zoo.then[g])}
    return Cascade(
        name=spec.name,
        version=fingerprint(dump(spec), _words(loaded))[:12],
        inputs=(Field("x", "FP64", (len(order),), missing=probe.missing, columns=order),),
        outputs=outputs(ways),
        facts=_facts(loaded, engines),
        first=_links(loaded, engines, zoo.first, loaded.policy.first, None),
        then={g: _links(loaded, engines, zoo.then[g], loaded.policy.then[g], g) for g in groups if g not in known},
        settled=known,
        confidence=confidence_of(spec, zoo.stakes),
        table=ways,
        written=written(ways),
        dtypes=tuple({one.dtype for one in engines.values()}),
        count=count,
    )


def _links(
    loaded: Loaded, engines: Mapping[str, Engine], question: Question, step: Step, group: int | None
) -> tuple[Link, ...]:
    voices = [_voice(loaded, engines, question, m, group) for m in step.chain]
    cuts = [*step.cuts, -np.inf]
    curves = [*(step.curves or [None] * len(step.cuts)), None]
    return tuple(Link(*link, loaded.zoo.stakes) for link in zip(voices, cuts, curves, strict=True))


def _voice(
    loaded: Loaded, engines: Mapping[str, Engine], question: Question, m: int, group: int | None
) -> Voice | Whole:
    place = _place(loaded, question, m)
    slot, _ = loaded.found[place]
    every = np.array_equal(slot.columns, np.arange(len(loaded.given.order)))
    voice = Voice(engines["/".join(place)], None if every else slot.columns, slot.answers)
    if place == (question.stage, question.group, question.models[m]):
        return voice
    groups = group_of_label(loaded.spec, loaded.given.names)
    if group is not None:
        labels = np.flatnonzero(groups == group)
        return Whole(voice, np.eye(len(groups))[:, labels], within=True, answers=labels)
    if groups.max() == 0:
        return Whole(voice, np.eye(len(groups)), within=False, answers=np.arange(len(groups)))
    return Whole(voice, np.eye(int(groups.max()) + 1)[groups], within=False, answers=np.arange(int(groups.max()) + 1))


def _words(loaded: Loaded) -> list[dict[str, Any]]:
    return in_words(loaded.zoo, loaded.policy)


def _facts(loaded: Loaded, engines: Mapping[str, Engine]) -> dict[str, Any]:
    return {
        "kind": "cascade",
        "serves": "cascade" if loaded.is_cascade else "monolith",
        "baseline": loaded.base,
        "labels": list(loaded.given.names),
        "cost_unit": loaded.zoo.unit,
        "steps": _words(loaded),
        "engines": {name: {"engine": one.name, "why": one.why} for name, one in engines.items()},
    }


def _told(loaded: Loaded, engines: Mapping[str, Engine]) -> list[tuple[str, str]]:
    steps = _words(loaded)
    what = "the cascade of the plan" if loaded.is_cascade else f"{loaded.base} alone: no cascade was certified"
    lines = [("serves", what)]
    lines += [(f"{step['stage']}/{step['group']}", " → ".join(step["models"])) for step in steps]
    groups: dict[str, list[str]] = {}
    for name, one in engines.items():
        groups.setdefault(f"{one.name}, {one.why}", []).append(name)
    if len(groups) == 1:
        return [*lines, *(("engine", f"{how} ({len(names)} models)") for how, names in groups.items())]
    return [*lines, *(("engine", f"{how}: {', '.join(names)}") for how, names in groups.items())]


def _stops(stage: tuple[str, ...], model: tuple[str, ...]) -> list[tuple[str, str]]:
    return [stop for stop in zip(stage, model, strict=True) if stop[0]]


def _sure(stops: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the last stop of each stage."""
    return list({stage: (stage, model) for stage, model in stops}.values())
