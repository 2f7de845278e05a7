"""``--replay``: a trace answered by the family under deadlines, beside every fixed net and a server that swaps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet import load
from unfold_supernet.arrays import Floats
from unfold_supernet.chipped import Chip, on_chip
from unfold_supernet.files import ANSWERS, FRONT
from unfold_supernet.nets.front import percentiles
from unfold_supernet.serving import pairs
from unfold_supernet.serving.pace import Make, Pace, paced
from unfold_supernet.serving.play import Played, measure, simulate
from unfold_supernet.serving.policies import (
    Rule,
    Served,
    cheapest,
    fitted,
    fixed,
    served,
    shedding,
    slackfit,
    slower,
    steady,
)
from unfold_supernet.spec import ServingSpec, SupernetSpec
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict, fail
from unfoldkit.arrivals import traces

RULES: dict[str, Callable[[Sequence[Served], float], Rule]] = {
    "steady": steady,
    "fitted": lambda nets, _slo: fitted(nets),
    "slackfit": lambda nets, _slo: slackfit(nets),
}
"""From nets and the time to live of a request to a rule."""


WARM, TIMED = 2, 5
"""Full batches of each net before a trace is measured: to warm up, and to see how fast the machine is now."""
RARE = 0.001
"""Share of the answers below which a net is not worth having."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule by name and how the trace went under it."""

    name: str
    played: Played
    accuracy: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What a replay needs: arrivals, nets that keep the guard, seconds to load a model, and how the spec serves.

    ``times`` is by how much the rate of the trace was multiplied.
    """

    arrivals: Floats
    nets: tuple[Served, ...]
    swap: float
    serving: ServingSpec
    times: float = 1.0


def stage(spec: SupernetSpec, run: Run) -> Stage:
    """Return the trace and the nets of a run.

    Raises:
        UnfoldError: there is nothing to serve, or no net keeps the guard.
    """
    serving, known = front(spec, run)
    path = Path(run.options["replay"])
    arrivals = traces.read(path if path.is_file() else run.path(str(path)), tell=run.log.warning)
    return Stage(arrivals, guarded(serving, known, run), known["reload_seconds"], serving)


def weighed(what: Stage, seed: int, pace: float = 1.0) -> Stage:
    """Return a stage whose trace is as heavy as the spec wants it for these nets, ``pace`` times as slow as they say.

    Raises:
        UnfoldError: too many requests, or none.
    """
    times = load.factor(what.arrivals, slower(what.nets, pace), what.serving)
    return replace(what, arrivals=load.laden(what.arrivals, times, seed), times=times)


def front(spec: SupernetSpec, run: Run) -> tuple[ServingSpec, dict[str, Any]]:
    """Return how the spec serves and what the run knows of its nets.

    Raises:
        UnfoldError: the spec does not say what is in time, or the run holds no trained family.
    """
    if spec.serving is None:
        raise fail("nothing says what is in time", key="serving", hint='write serving: {slo: "20 ms"}')
    if not run.directory.has(FRONT):
        raise fail("this family was not trained yet", file=str(run.directory.path), hint="unfold train SPEC")
    known: dict[str, Any] = json.loads(run.directory.read(FRONT))
    return spec.serving, known


def guarded(serving: ServingSpec, known: dict[str, Any], run: Run) -> tuple[Served, ...]:
    """Return the nets, and the pairs of them if answers are escalated, that keep the guard.

    Raises:
        UnfoldError: none does, or the guard names a class that is not there.
    """
    classes, items = known["classes"], known["nets"]
    for name in serving.guard:
        if name not in classes:
            raise fail(f"no such class: {name!r}", key="serving.guard", hint=f"one of: {', '.join(classes)}")
    every: dict[Served, Mapping[int, float | None]] = {
        served(item): dict(enumerate(item["sensitivity"])) for item in items
    }
    if serving.escalate is not None and len(every) > 1:
        every |= pairs.pairs(list(every), _answers(run), serving.escalate)
    nets = tuple(net for net, by_class in every.items() if _kept(by_class, classes, serving))
    if not nets:
        raise fail("no net keeps the guard", key="serving.guard", hint="a lower sensitivity, or a larger family")
    return nets


def simulated(spec: SupernetSpec, run: Run) -> Report:
    """Return the report of a trace in simulated time, from latencies that were measured in training."""
    what = stage(spec, run)
    chip = None
    if what.serving.on == "accelerator":
        chip = on_chip(spec, run, what.nets)
        what = replace(what, nets=chip.nets, swap=chip.swap)
    what = weighed(what, run.seed)
    slo = what.serving.slo
    found = [(name, simulate(what.arrivals, slo, what.nets, rule)) for name, rule in rules(what)]
    chosen = RULES[what.serving.policy](what.nets, slo)
    found.append(("swapping models", simulate(what.arrivals, slo, what.nets, chosen, what.swap)))
    entries = [Entry(name, played, played.accuracy(what.nets)) for name, played in found]
    return _picked(report(spec, what, "plan", entries), what, found[0][1], chip)


def _picked(told: Report, what: Stage, played: Played, chip: Chip | None) -> Report:
    """Return a report with the decision: the nets that are worth having for this trace, and what the chip keeps."""
    shares = played.shares(what.nets)
    needed = {name: share for name, share in shares.items() if share >= RARE}
    nets = tuple(net for net in what.nets if net.name in needed)
    few = simulate(what.arrivals, what.serving.slo, nets, RULES[what.serving.policy](nets, what.serving.slo))
    decision: dict[str, Any] = {
        "policy": what.serving.policy, "slo_ms": what.serving.slo * 1e3, "on": what.serving.on, "nets": needed,
        "attainment": few.attainment, "accuracy_served": few.accuracy(nets),
    }  # fmt: skip
    names = " · ".join(f"{name} {share:.0%}" for name, share in needed.items())
    told = replace(told, lines=(*told.lines, ("nets", f"{names}: with these alone {few.attainment:.1%} in time")))
    if chip is None:
        return replace(told, decision=decision)
    spent = chip.millijoules(played)
    metrics = {**told.metrics, "energy_mj": Metric(spent, "mJ")}
    line = ("chip", f"{spent:.3g} mJ a request; {chip.about}")
    return replace(told, decision=decision | {"buffer": chip.held}, metrics=metrics, lines=(*told.lines, line))


def makers(what: Stage) -> list[tuple[str, Make]]:
    """Return what makes the rule in charge first, the other adaptive ones, then the baselines, from nets by place."""
    slo, names = what.serving.slo, [what.serving.policy, *(name for name in RULES if name != what.serving.policy)]
    found: list[tuple[str, Make]] = [(name, partial(_adaptive, name, slo)) for name in names]
    alone = [(at, net.name) for at, net in enumerate(what.nets) if net.then is None]
    found += [(f"only {name}", partial(fixed, at=at)) for at, name in alone]
    found += [(f"shedding {name}", partial(shedding, at=at, slo=slo)) for at, name in alone]
    return [*found, ("cheapest", cheapest)]


def _adaptive(name: str, slo: float, nets: Sequence[Served]) -> Rule:
    return RULES[name](nets, slo)


def rules(what: Stage) -> list[tuple[str, Rule]]:
    """Return the rules by the profile of training, in the order of ``makers``."""
    return [(name, make(what.nets)) for name, make in makers(what)]


def measured(spec: SupernetSpec, run: Run) -> Report:
    """Return the report of a trace in real time, every answer computed by the nets of the run."""
    import torch

    from unfold_supernet.nets import data as examples
    from unfold_supernet.nets.store import read_family

    assert spec.data is not None  # noqa: S101 - a trained family has data
    what, net = stage(spec, run), read_family(run.directory)
    data = examples.load(spec.data, run, form=spec.form)
    torch.set_num_threads(1)
    count = len(data.test)
    # test rows round and round, with room for a batch at the end: a heavy trace has far more requests than rows
    rows = np.resize(data.test, count + max(one.most for one in what.nets))
    x, extra = torch.from_numpy(data.x[rows]), torch.from_numpy(data.extra[rows])
    bound = [net.ready(pairs.first(one), one.then, what.serving.escalate) for one in what.nets]

    paces: list[float] = []
    pace = [Pace()]

    def work(at: int, first: int, last: int) -> None:
        began = run.clock()
        part = slice(first % count, first % count + last - first)
        bound[at](x[part], extra[part]).argmax(1)
        seconds, expected = run.clock() - began, what.nets[at].takes(last - first)
        pace[-1].learn(expected, seconds)
        paces.append(seconds / expected)

    entries, played_by = [], makers(what)
    with torch.inference_mode():
        for one, served_ in enumerate(what.nets):
            for _ in range(WARM + TIMED):
                work(one, 0, served_.most)
            del paces[-WARM - TIMED : -TIMED]
        now = float(np.median(paces))
        what = weighed(what, run.seed, now)
        paces.clear()
        for name, make in played_by:
            # as a server learns it, each rule anew, so that none gains by what another one met
            pace.append(Pace(now, now))
            played = measure(what.arrivals, what.serving.slo, paced(make, what.nets, pace[-1]), work)
            entries.append(Entry(name, played, played.accuracy(what.nets)))
            run.progress("replay", len(entries), len(played_by))
    return _beside(report(spec, what, "serve", entries), what, paces[: max(1, entries[0].played.batches)])


def _beside(told: Report, what: Stage, paces: Sequence[float]) -> Report:
    """Return a measured report with what was predicted beside it, and how much longer than its profile a batch took."""
    rule = RULES[what.serving.policy](what.nets, what.serving.slo)
    played = simulate(what.arrivals, what.serving.slo, what.nets, rule)
    half, most = percentiles(np.array(paces or [1.0]))
    metrics = {
        "attainment_predicted": Metric(played.attainment),
        "accuracy_served_predicted": Metric(played.accuracy(what.nets), "%"),
        "pace": Metric(half, "x", timed=True),
        "pace_p99": Metric(most, "x", timed=True),
    }
    foretold = f"{played.attainment:.1%} in time at {played.accuracy(what.nets):.2f} %, by the latencies of training"
    pace = f"a batch took {half:.2f}x its latency of training, of a hundred the slowest {most:.1f}x"
    lines = (*told.lines, ("predicted", foretold.replace("%", " %", 1)), ("pace", pace))
    return replace(told, metrics={**told.metrics, **metrics}, lines=lines)


def report(spec: SupernetSpec, what: Stage, verb: str, entries: Sequence[Entry]) -> Report:
    """Return the report of a replay, simulated or measured, in one shape."""
    own, timed = entries[0], verb == "serve"
    lone = [entry for entry in entries if entry.name.startswith(("only ", "shedding "))]
    gain, ratio = against(own, lone)
    target, met = f"≥ {what.serving.attainment:g}", own.played.attainment >= what.serving.attainment
    metrics = {
        "attainment": Metric(own.played.attainment, target=target, ok=met, timed=timed),
        "accuracy_served": Metric(own.accuracy, "%", timed=timed),
        "accuracy_gain_points": Metric(gain, "points", timed=timed),
        "attainment_ratio": Metric(ratio, "x", timed=timed),
    }
    for entry in entries[1:]:
        label = entry.name.replace(" ", "_")
        metrics[f"attainment_{label}"] = Metric(entry.played.attainment, timed=timed)
        metrics[f"accuracy_served_{label}"] = Metric(entry.accuracy, "%", timed=timed)
    rate = len(what.arrivals) / float(what.arrivals[-1] - what.arrivals[0])
    way = "measured" if timed else "simulated"
    return Report(
        kind="supernet",
        verb=verb,
        name=spec.name,
        verdict=Verdict.YES if met else Verdict.NO,
        headline=f"{own.played.attainment:.1%} in time at {own.accuracy:.2f} % accuracy, {way}".replace("%", " %", 1),
        subtitle=(f"{len(what.arrivals):,} requests", f"{rate:,.0f}/s", f"≤ {what.serving.slo * 1e3:g} ms", own.name),
        metrics=metrics,
        tables=(_table(entries, timed=timed),),
        lines=(*_lines(gain, ratio), *_load(what)),
        next="" if timed else "unfold serve SPEC --replay TRACE",
    )


def against(own: Entry, lone: Sequence[Entry]) -> tuple[float | None, float | None]:
    """Return points of accuracy over the best fixed net that is in time as often, and the ratio of attainment.

    The ratio is against the fixed net that is in time most often among those at least as accurate as what was served.
    """
    level = own.played.attainment
    steady = [entry.accuracy for entry in lone if entry.played.attainment >= level - 0.001]
    good = [entry.played.attainment for entry in lone if entry.accuracy >= own.accuracy]
    gain = own.accuracy - max(steady) if steady else None
    return gain, level / max(good) if good and max(good) > 0 else None


def _table(entries: Sequence[Entry], *, timed: bool) -> Table:
    columns = (
        Column("rule"),
        Column("in time", "%", 2, timed=timed),
        Column("accuracy served", "%", 2, timed=timed),
        Column("given up", "%", 2, timed=timed),
        Column("mean batch", "", 1, timed=timed),
        Column("changes of net", timed=timed),
    )
    rows: list[tuple[Cell, ...]] = []
    for entry in entries:
        played = entry.played
        answered = int((played.net >= 0).sum())
        lost = 100 - answered / played.net.size * 100
        batch = answered / max(1, played.batches)
        rows.append((entry.name, played.attainment * 100, entry.accuracy, lost, batch, int(played.swaps)))
    return Table("rules", columns, tuple(rows), accent=0)


def _lines(gain: float | None, ratio: float | None) -> tuple[tuple[str, str], ...]:
    more = f"{gain:+.2f} points against the best fixed net" if gain is not None else "no fixed net is in time as often"
    often = f"{ratio:.2f}x the best fixed net" if ratio is not None else "no fixed net is as accurate"
    return (("equal attainment", more), ("equal accuracy", often))


def _load(what: Stage) -> tuple[tuple[str, str], ...]:
    if what.serving.load is None:
        return ()
    share, span = f"{what.serving.load:.0%}".replace("%", " %"), load.WINDOW * what.serving.slo * 1e3
    busy = f"its busiest {span:g} ms ask {share} of what the quickest net can answer"
    return (("load", f"the rate of the trace times {what.times:.3g}, so that {busy}"),)


def _kept(by_class: Mapping[int, float | None], classes: Sequence[str], serving: ServingSpec) -> bool:
    return all((by_class.get(classes.index(name)) or 0.0) >= least for name, least in serving.guard.items())


def _answers(run: Run) -> pairs.Answered:
    if not run.directory.has(ANSWERS):
        message, hint = "this run does not hold what its nets answered", "unfold train SPEC, with this version"
        raise fail(message, file=str(run.directory.path), key="serving.escalate", hint=hint)
    return pairs.unpacked(run.directory.read(ANSWERS))
