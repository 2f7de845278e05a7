"""`serve` for cases over time: the cascade of the plan, hour by hour, each case's stage kept in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unfold_cascade.models import onnx_runtime
from unfold_cascade.models.zoo import RESUME_HINT
from unfold_cascade.report.dashboard import read_dashboard
from unfold_cascade.report.plan_loader import load_plan
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.data.online_features import features_of, sight
from unfold_cascade.temporal.evaluation.monolith import latched
from unfold_cascade.temporal.models.study import FILE
from unfold_cascade.temporal.serving import model as live
from unfold_cascade.temporal.serving.metrics import Counts, counts
from unfold_cascade.temporal.serving.model import Hour, Timed, Voice
from unfold_cascade.temporal.serving.plan_loader import Loaded, load
from unfold_cascade.temporal.simulation.online_step import rungs
from unfold_cascade.temporal.simulation.policy import Policy, ladder
from unfold_cascade.temporal.simulation.trajectories import Clock, Walk, Zoo, walk_plain
from unfoldkit.api import Run, Service, broken, dump, fingerprint
from unfoldkit.serving.model import Field
from unfoldkit.serving.observability.dashboard import of_requests
from unfoldkit.serving.oip.app import application, served
from unfoldkit.serving.state.entity_model import Remembering
from unfoldkit.serving.state.store import open_store

MEMORY = "serving/entities.sqlite"
SECOND_H = 1.0 / 3600.0


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Return the service of what ``train`` or ``plan`` left in the run; nothing is fitted, no table is read.

    Raises:
        UnfoldError: the run holds no plan of this spec, a file of it was changed, its models answer differently now, or
            the memory of its cases belongs to another plan.
    """
    from prometheus_client import CollectorRegistry

    loaded = load(spec, run, load_plan(dump(spec), run, FILE))
    registry = CollectorRegistry()
    told = counts(loaded, registry)
    model = timed(loaded, told)
    check(loaded, model)
    store = open_store(run.directory.path / MEMORY, made_from=model.version)
    told.remembered(registry, store.count)
    kept = Remembering(model, store, round(1.0 / model.tick_h))
    app = application([kept], registry=registry, close=store.close, log=run.log, clock=run.clock)
    told.begin()
    lines = (*_told(loaded, model), ("memory", f"{store.count():,} cases in {run.directory.path / MEMORY}"))
    watch = of_requests(spec.name, "cascade", app.metrics, read_dashboard(registry, _unit(spec)))
    return served(spec.name, app, lines=lines, watch=watch)


def timed(loaded: Loaded, told: Counts) -> Timed:
    """Return the model to serve."""
    view, spec = sight(loaded.features), loaded.spec
    x, probe = features_of(view, loaded.probe), loaded.probe
    voices = {m: _voice(loaded, m, x, probe.rows) for m in ([] if loaded.alone else loaded.asked)}
    stages = rungs(ladder(loaded.policy, loaded.parallel))
    longest = 1 if loaded.alone else sum(len(rung.chain) for rung in stages)
    return Timed(
        name=spec.name,
        version=_version(loaded),
        inputs=(Field("x", "FP64", (len(view.columns),), missing=True, columns=view.columns),),
        outputs=live.fields(longest),
        facts=_facts(loaded, voices),
        sight=view,
        ladder=stages,
        moves=loaded.moves,
        stages=tuple(stage.name for stage in spec.stages),
        models=tuple(slot.place for slot in loaded.places),
        voices=voices,
        monolith=_monolith(loaded),
        needs=loaded.needs,
        purchase=loaded.purchase,
        rates=loaded.rates,
        tick_h=1.0 if loaded.whole else SECOND_H,
        count=told.count,
    )


def check(loaded: Loaded, model: Timed) -> None:
    """Take the entities that were set aside through every hour, and compare with what the plan's simulation does.

    Raises:
        UnfoldError: a stage, a call or a purchase differs.
    """
    hours = replay(model, loaded)
    expected, went = simulated(loaded)
    calls, buys = np.zeros_like(went.calls), np.zeros_like(went.buys)
    for entity, done in enumerate(hours):
        for hour in done:
            np.add.at(calls[entity], [item.model for item in hour.heard], 1)
            np.add.at(buys[entity], list(hour.groups), 1)
    stages = np.array([hour.stage for done in hours for hour in done])
    if (stages != expected).any() or (calls != went.calls).any() or (buys != went.buys).any():
        other = int((stages != expected).sum())
        message = f"the models of this run answer otherwise than when it was planned: {other} of {len(stages)} hours"
        raise broken(message, hint=RESUME_HINT)


def replay(model: Timed, loaded: Loaded) -> list[list[Hour]]:
    """Return what the model does in each hour of each entity of the probe, one hour at a time."""
    probe, found = loaded.probe, list[list[Hour]]()
    for begin, end in zip(probe.starts[:-1], probe.starts[1:], strict=True):
        case, done = None, list[Hour]()
        for row in range(begin, end):
            hours, cases = model.follow(
                probe.values[row : row + 1].astype(np.float64), probe.hour[row : row + 1], [case]
            )
            case = cases[0]
            done += hours
        found.append(done)
    return found


def simulated(loaded: Loaded) -> tuple[Any, Walk]:
    """Return the (n,) stages of the probe's hours by the plan's simulation, and all that happened."""
    probe = loaded.probe
    p = np.array([log.p[probe.rows, -1] for log in loaded.logs])
    zoo, clock = Zoo(p, loaded.needs, loaded.purchase), Clock(probe.starts, probe.hour)
    policy: Policy = loaded.monolith.policy if loaded.alone else loaded.policy
    went = walk_plain(clock, zoo, ladder(policy, np.array([True]) if loaded.alone else loaded.parallel), loaded.moves)
    if not loaded.alone:
        return went.answer.astype(np.int64), went
    stage = latched(loaded.logs[-1].p[probe.rows], probe.starts, loaded.monolith.cuts or ())
    return np.where(went.answer == 1, len(loaded.spec.stages), stage), went


def _voice(loaded: Loaded, m: int, x: Any, rows: Any) -> Voice:
    slot = loaded.places[m]
    native = onnx_runtime.shrink_engine(
        onnx_runtime.build_native_engine(loaded.run, slot, "asked near a cut", dtype=np.float32)
    )
    found = onnx_runtime.choose_engine(loaded.run, slot, loaded.logs[m].p[rows], x)
    if found.name == onnx_runtime.NATIVE:
        native = onnx_runtime.Engine(native.predict, native.dtype, native.name, found.reason)
        return Voice(native, native, slot.columns)
    return Voice(found, native, slot.columns)


def _monolith(loaded: Loaded) -> live.Monolith:
    last = len(loaded.places) - 1
    native = onnx_runtime.build_native_engine(loaded.run, loaded.places[last], "the monolith", dtype=np.float32)
    rung = rungs(ladder(loaded.monolith.policy, np.array([True])))[0]
    voice = Voice(native, native, loaded.places[last].columns)
    return live.Monolith(last, voice, rung, loaded.monolith.cuts or (), loaded.drift.audit, loaded.alone)


def _version(loaded: Loaded) -> str:
    cuts = [[list(step.chain), [list(span) for span in step.spans], step.cut, *step.owned] for step in loaded.policy]
    rule = [loaded.monolith.policy[-1].cut, list(loaded.monolith.cuts or ()), loaded.alone]
    made = [slot.made_from for slot in loaded.places]
    return fingerprint(dump(loaded.spec), repr(cuts), repr(rule), made)[:12]


def _facts(loaded: Loaded, voices: Mapping[int, Voice]) -> dict[str, Any]:
    return {
        "kind": "cascade",
        "serves": "monolith" if loaded.alone else "cascade",
        "stages": [stage.name for stage in loaded.spec.stages],
        "time": "hour" if loaded.whole else "second",
        "audit": loaded.drift.audit,
        "engines": {
            loaded.places[m].place: {"engine": voice.quick.name, "why": voice.quick.reason}
            for m, voice in voices.items()
        },
    }


def _unit(spec: CascadeSpec) -> str:
    """Return the unit of what is counted while serving, which is the price, by whatever the cascade was chosen."""
    return (spec.cost.unit if spec.cost.by == "price" else None) or "price of calls and purchases"


def _told(loaded: Loaded, model: Timed) -> list[tuple[str, str]]:
    if loaded.alone:
        return [("serves", "the monolith, which remembers the stage: no cascade was certified")]
    lines = [("serves", "the cascade of the plan")]
    for stage, rung in zip(model.stages, model.ladder, strict=True):
        names = [model.models[m].split("/", 1)[1] for m in rung.chain]
        lines.append((stage, " → ".join(names) + (", at every hour" if rung.parallel else "")))
    return [*lines, ("engine", _engines(list(model.voices.values()))), ("audit", _audit(loaded))]


def _engines(voices: Sequence[Voice]) -> str:
    quick = sum(voice.quick.name == onnx_runtime.ONNX for voice in voices)
    return f"{onnx_runtime.ONNX} for {quick} of {len(voices)} models; near a cut the native model decides"


def _audit(loaded: Loaded) -> str:
    return f"{loaded.drift.audit:.0%} of the cases are answered by the monolith too"
