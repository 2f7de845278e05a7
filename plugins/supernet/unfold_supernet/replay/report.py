"""``--replay``: a trace answered by the family under deadlines, beside every fixed net and a server that swaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet.arrays import Floats, Ints
from unfold_supernet.family.names import ANSWERS, FRONT
from unfold_supernet.replay import load, player
from unfold_supernet.replay.baselines import Contender, contenders
from unfold_supernet.replay.on_accelerator import Chip, on_chip
from unfold_supernet.scheduling import escalation
from unfold_supernet.scheduling import requests as asking
from unfold_supernet.scheduling.policies import Served, served, slower
from unfold_supernet.scheduling.requests import Targets
from unfold_supernet.scheduling.simulator import Played, Work, measure, simulate
from unfold_supernet.scheduling.speed import Pace, paced
from unfold_supernet.schema.models import ServingSpec, SupernetSpec
from unfold_supernet.training.accuracy import percentiles
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict, fail
from unfoldkit.arrivals import traces
from unfoldkit.safe_io.files import parse_object

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

    ``times`` is by how much the rate of the trace was multiplied; ``targets`` are those of the requests, if they have
    their own.
    """

    arrivals: Floats
    nets: tuple[Served, ...]
    swap: float
    serving: ServingSpec
    times: float = 1.0
    targets: Targets | None = None

    @property
    def contenders(self) -> list[Contender]:
        """Who is played, the rule in charge first."""
        return contenders(self.nets, self.serving.policy, self.serving.slo, apart=self.targets is not None)


def stage(spec: SupernetSpec, run: Run) -> Stage:
    """Return the trace and the nets of a run.

    Raises:
        UnfoldError: there is nothing to serve, no net keeps the guard, or all requests come at one instant.
    """
    serving, known = front(spec, run)
    path = Path(run.options["replay"])
    path = path if path.is_file() else run.path(str(path))
    arrivals = traces.read(path, tell=run.log.warning)
    if len(arrivals) and arrivals[-1] <= arrivals[0]:
        told = f"{len(arrivals):,} at one instant: no traffic, as there is no rate"
        raise fail(told, file=str(path), hint="a trace that lasts")
    targets = asking.read(path, arrivals.size, serving.slo)
    return Stage(arrivals, guarded(serving, known, run), known["reload_seconds"], serving, targets=targets)


def weighed(what: Stage, seed: int, pace: float = 1.0) -> Stage:
    """Return a stage whose trace is as heavy as the spec wants it for these nets, ``pace`` times as slow as they say.

    Raises:
        UnfoldError: too many requests, or none.
    """
    times = load.factor(what.arrivals, slower(what.nets, pace), what.serving)
    arrivals, places = load.laden(what.arrivals, times, seed)
    return replace(what, arrivals=arrivals, times=times, targets=what.targets and what.targets.of(places))


def front(spec: SupernetSpec, run: Run) -> tuple[ServingSpec, dict[str, Any]]:
    """Return how the spec serves and what the run knows of its nets.

    Raises:
        UnfoldError: the spec does not say what is in time, or the run holds no trained family.
    """
    if spec.serving is None:
        raise fail("nothing says what is in time", key="serving", hint='write serving: {slo: "20 ms"}')
    if not run.directory.has(FRONT):
        raise fail("this family was not trained yet", file=str(run.directory.path), hint="unfold train SPEC")
    with run.directory.decoding(FRONT, "a front") as data:
        known = parse_object(data)
        if not {"classes", "nets"} <= known.keys():
            raise KeyError("classes and nets")
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
        every |= escalation.pairs(list(every), _answers(run), serving.escalate)
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
    rules = what.contenders
    found = [(one.name, _simulated(what, one)) for one in rules]
    found.append(("swapping models", _simulated(what, rules[0], what.swap)))
    entries = [Entry(name, played, played.accuracy(what.nets)) for name, played in found]
    return _picked(report(spec, what, "plan", entries), what, found[0][1], chip)


def _simulated(what: Stage, one: Contender, swap: float = 0.0) -> Played:
    """Return a trace played by the profile; ``swap`` is what a change of net costs in seconds."""
    if what.targets is None:
        return simulate(what.arrivals, what.serving.slo, what.nets, one.rule(what.nets), swap)
    return player.play(what.arrivals, what.targets, one, what.nets, Pace(), player.Simulated(what.nets, swap))


def _picked(told: Report, what: Stage, played: Played, chip: Chip | None) -> Report:
    """Return a report with the decision: the nets that are worth having for this trace, and what the chip keeps."""
    shares = played.shares(what.nets)
    needed = {name: share for name, share in shares.items() if share >= RARE}
    nets = tuple(net for net in what.nets if net.name in needed)
    alone = replace(what, nets=nets)
    few = _simulated(alone, alone.contenders[0])
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


def measured(spec: SupernetSpec, run: Run) -> Report:
    """Return the report of a trace in real time, every answer computed by the nets of the run."""
    import torch

    from unfold_supernet.family import datasets as examples
    from unfold_supernet.family.checkpoint import read_family

    assert spec.data is not None  # noqa: S101 - a trained family has data
    what, net = stage(spec, run), read_family(run.directory)
    data = examples.load(spec.data, run, form=spec.form)
    torch.set_num_threads(1)
    count = len(data.test)
    # test rows round and round, with room for a batch at the end: a heavy trace has far more requests than rows
    rows = np.resize(data.test, count + max(one.most for one in what.nets))
    x, extra = torch.from_numpy(data.x[rows]), torch.from_numpy(data.extra[rows])
    bound = [net.ready(escalation.first(one), one.then, what.serving.escalate) for one in what.nets]

    paces: list[float] = []
    pace = [Pace()]

    def answer(at: int, part: slice | Ints, size: int) -> None:
        began = run.clock()
        bound[at](x[part], extra[part]).argmax(1)
        seconds, expected = run.clock() - began, what.nets[at].takes(size)
        pace[-1].learn(expected, seconds)
        paces.append(seconds / expected)

    def work(at: int, first: int, last: int) -> None:
        answer(at, slice(first % count, first % count + last - first), last - first)

    def apart(at: int, places: Sequence[int]) -> None:
        answer(at, np.array(places) % count, len(places))

    entries, rules = [], what.contenders
    with torch.inference_mode():
        for one, served_ in enumerate(what.nets):
            for _ in range(WARM + TIMED):
                work(one, 0, served_.most)
            del paces[-WARM - TIMED : -TIMED]
        now = float(np.median(paces))
        what = weighed(what, run.seed, now)
        paces.clear()
        for rule in rules:
            # as a server learns it, each rule anew, so that none gains by what another one met
            pace.append(Pace(now, now))
            played = _measured(what, rule, pace[-1], work, apart)
            entries.append(Entry(rule.name, played, played.accuracy(what.nets)))
            run.progress("replay", len(entries), len(rules))
    return _beside(report(spec, what, "serve", entries), what, paces[: max(1, entries[0].played.batches)])


def _measured(what: Stage, rule: Contender, pace: Pace, work: Work, apart: player.Answer) -> Played:
    """Return a trace played on the nets themselves: ``work`` answers those that follow each other, ``apart`` any."""
    if what.targets is None:
        return measure(what.arrivals, what.serving.slo, paced(rule.rule, what.nets, pace), work)
    return player.play(what.arrivals, what.targets, rule, what.nets, pace, player.Real(apart))


def _beside(told: Report, what: Stage, paces: Sequence[float]) -> Report:
    """Return a measured report with what was predicted beside it, and how much longer than its profile a batch took."""
    played = _simulated(what, what.contenders[0])
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
        **_kept_metrics(own, timed=timed),
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
        subtitle=(f"{len(what.arrivals):,} requests", f"{rate:,.0f}/s", _deadlines(what), own.name),
        metrics=metrics,
        tables=(_table(entries, timed=timed),),
        lines=(*_lines(gain, ratio), *_asked(what, own), *_load(what)),
        next="" if timed else "unfold serve SPEC --replay TRACE",
    )


def against(own: Entry, lone: Sequence[Entry]) -> tuple[float | None, float | None]:
    """Return points of accuracy over the best fixed net that is in time as often, and the ratio of attainment.

    The ratio is against the fixed net that is in time most often among those at least as accurate as what was served.
    Where requests ask for an accuracy, one that did not get it does not count as in time.
    """
    level = own.played.kept
    steady = [entry.accuracy for entry in lone if entry.played.kept >= level - 0.001]
    good = [entry.played.kept for entry in lone if entry.accuracy >= own.accuracy]
    gain = own.accuracy - max(steady) if steady else None
    return gain, level / max(good) if good and max(good) > 0 else None


def _table(entries: Sequence[Entry], *, timed: bool) -> Table:
    asked = entries[0].played.enough is not None
    columns = (
        Column("rule"),
        Column("in time", "%", 2, timed=timed),
        *((Column("and accurate enough", "%", 2, timed=timed),) if asked else ()),
        Column("accuracy served", "%", 2, timed=timed),
        *(() if asked else (Column("given up", "%", 2, timed=timed),)),
        Column("mean batch", "", 1, timed=timed),
        Column("changes of net", timed=timed),
    )
    rows: list[tuple[Cell, ...]] = []
    for entry in entries:
        played = entry.played
        answered = int((played.net >= 0).sum())
        lost = 100 - answered / played.net.size * 100
        batch = answered / max(1, played.batches)
        middle = (played.kept * 100, entry.accuracy) if asked else (entry.accuracy, lost)
        rows.append((entry.name, played.attainment * 100, *middle, batch, int(played.swaps)))
    return Table("rules", columns, tuple(rows), accent=0)


def _kept_metrics(own: Entry, *, timed: bool) -> dict[str, Metric]:
    return {} if own.played.enough is None else {"both_targets": Metric(own.played.kept, timed=timed)}


def _deadlines(what: Stage) -> str:
    """Return the time to live of the requests in words."""
    if what.targets is None:
        return f"≤ {what.serving.slo * 1e3:g} ms"
    low, high = (float(end) * 1e3 for end in (what.targets.deadlines.min(), what.targets.deadlines.max()))
    return f"≤ {low:g} ms" if low == high else f"≤ {low:g} to {high:g} ms"


def _lines(gain: float | None, ratio: float | None) -> tuple[tuple[str, str], ...]:
    more = f"{gain:+.2f} points against the best fixed net" if gain is not None else "no fixed net is in time as often"
    often = f"{ratio:.2f}x the best fixed net" if ratio is not None else "no fixed net is as accurate"
    return (("equal attainment", more), ("equal accuracy", often))


def _asked(what: Stage, own: Entry) -> tuple[tuple[str, str], ...]:
    """Return how many got all that they asked for, and how many could not."""
    if what.targets is None:
        return ()
    best = max(net.share for net in what.nets)
    more = f"{(what.targets.least > best).mean():.1%} ask for more accuracy than the best net has, {best:.2%}"
    both = f"{own.played.kept:.1%} are answered in time and as accurately as they ask"
    return (("targets", f"{both}; {more}".replace("%", " %")),)


def _load(what: Stage) -> tuple[tuple[str, str], ...]:
    if what.serving.load is None:
        return ()
    share, span = f"{what.serving.load:.0%}".replace("%", " %"), load.WINDOW * what.serving.slo * 1e3
    busy = f"its busiest {span:g} ms ask {share} of what the quickest net can answer"
    return (("load", f"the rate of the trace times {what.times:.3g}, so that {busy}"),)


def _kept(by_class: Mapping[int, float | None], classes: Sequence[str], serving: ServingSpec) -> bool:
    return all((by_class.get(classes.index(name)) or 0.0) >= least for name, least in serving.guard.items())


def _answers(run: Run) -> escalation.Answered:
    if not run.directory.has(ANSWERS):
        message, hint = "this run does not hold what its nets answered", "unfold train SPEC, with this version"
        raise fail(message, file=str(run.directory.path), key="serving.escalate", hint=hint)
    with run.directory.decoding(ANSWERS, "answers of nets") as data:
        return escalation.unpacked(data)
