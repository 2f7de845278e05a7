"""What a person sees of a plan for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from unfold_supernet.accelerator.cost_model import joules
from unfold_supernet.accelerator.hardware import Energy, Machine
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.scheduler import Outcome
from unfold_supernet.accelerator.subgraph_cache import Column as Kept
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.study.strategies import Way
from unfold_supernet.study.study import Study
from unfold_supernet.study.sweep import Savings, Setting
from unfold_supernet.units import buffer_unit, scaled, size
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict

WIDE = 50
"""From which span of sizes on an even axis would crowd the small ones at its edge."""


def report(spec: SupernetSpec, what: Study) -> Report:
    """Return the report of a plan."""
    return Report(
        kind="supernet",
        verb="plan",
        name=spec.name,
        verdict=Verdict.YES,
        headline=headline(what),
        subtitle=subtitle(what),
        metrics=metrics(what),
        tables=(nets_table(what), buffers_table(what), ways_table(what), targets_table(what), claims_table(what)),
        figures=(savings_figure(what),),
        lines=tuple(lines(what)),
        notes=notes(what, scale=spec.family is not None),
        next="unfold plan SPEC --out report.html",
        provenance={"inputs": dict(what.inputs)} if what.inputs else {},
    )


def headline(what: Study) -> str:
    """Return what the buffer saves, and under deadlines what accuracy it gives, as its time goes into larger nets."""
    traffic, latency, fair = scheduled(what)
    queries, held = what.queries, size(what.here.persistent)
    kept = f"{size(_held(what))} of {source(what.setting.kept)} kept on chip"
    if queries.keep != "fixed":
        when = "after each query" if queries.every == 1 else f"every {queries.every} queries"
        kept = f"{held} on chip, chosen by {queries.keep} {when},"
    if queries.policy == "strict-latency":
        none, way = what.ways[0], what.ways[place(what)]
        points, deep = (one.accuracy - zero.accuracy for one, zero in zip(flows(way), flows(none), strict=True))
        gain = f"give {points:+.2f} points of accuracy at the same deadlines ({deep:+.2f}"
        return f"{kept} {gain} if layers may prefetch ahead) and save {percent(traffic)} of the traffic"
    gain = f"{_gain(latency)} of the latency ({_gain(fair)} if layers may prefetch ahead instead)"
    return f"{kept} save {percent(traffic)} of the traffic and {gain}"


def source(kept: Kept) -> str:
    """Return in words what is kept was cut from."""
    if kept.source == "core":
        return "the shared core"
    return f"what {' and '.join(kept.source.split('∩'))} share" if "∩" in kept.source else f"net {kept.source}"


def _held(what: Study) -> int:
    return int(what.setting.kept.graph.prod(axis=1).sum()) * what.setting.machine.weight


def flows(way: Way) -> tuple[Outcome, Outcome]:
    """Return the outcomes of a way, without and with prefetch through the layers."""
    return way.layered, way.deep


def place(what: Study) -> int:
    """Return the place of the way in which the spec's queries choose what to keep."""
    keep = what.queries.keep
    return next(at for at, way in enumerate(what.ways) if way.keep == keep)


def scheduled(what: Study) -> tuple[float, float, float]:
    """Return the shares of traffic, latency and fair latency that the spec's way to keep saves, refills included."""
    none, way = what.ways[0], what.ways[place(what)]
    return (
        1 - way.layered.bytes / none.layered.bytes,
        1 - way.layered.seconds / none.layered.seconds,
        1 - way.deep.seconds / none.deep.seconds,
    )


def too_slow(spec: SupernetSpec, whole: Family, chosen: Setting) -> Report:
    """Return the answer to a deadline that no net meets."""
    deadline, times = spec.queries.deadline or 0.0, chosen.layered.seconds[:, chosen.fixed]
    index = int(times.argmin())
    net, best, bound = whole.nets[index], float(times[index]), float(chosen.works[index].compute.sum())
    memory = "computation" if best - bound < bound else "memory"
    lines_ = (
        ("binding", f"net {net.name}, the fastest, takes {best * 1e3:.2f} ms: mostly {memory}"),
        ("bound", f"{bound * 1e3:.2f} ms are computation at any bandwidth"),
        ("relaxation", f"deadline {math.ceil(best * 1e5) / 100:.2f} ms for {net.accuracy:.1f} %"),
    )
    metrics_ = {"fastest_ms": Metric(best * 1e3, "ms", target=f"≤ {deadline * 1e3:g}", ok=False)}
    headline = f"no net of {whole.name} answers within {deadline * 1e3:g} ms"
    return Report("supernet", "plan", spec.name, Verdict.NO, headline, (), metrics_, lines=lines_)


def subtitle(what: Study) -> tuple[str, ...]:
    """Return the facts beside the title."""
    machine = what.setting.machine
    queries = f"{what.queries.count:,} {what.queries.pattern} queries"
    if what.queries.path:
        queries = f"queries of {Path(what.queries.path).name}"
    return (f"{len(what.family.nets)} nets", machine.name, bandwidth(machine.bandwidth), queries, what.queries.policy)


def metrics(what: Study) -> dict[str, Metric]:
    """Return the shares saved, at the buffer of the spec and at every other size."""
    found = {f"{name}_saving": Metric(value) for name, value in _shares(what.here).items()}
    names = ("traffic", "latency", "latency_fair")
    found |= {f"scheduled_{name}_saving": Metric(value) for name, value in zip(names, scheduled(what), strict=True)}
    way = what.ways[place(what)].layered
    shares = {"in_time": way.in_time, "accurate_enough": way.enough, "both_targets": way.both}
    found |= {name: Metric(value) for name, value in shares.items()}
    found["accuracy_served"] = Metric(way.accuracy, "%")
    found["accuracy_gain_points"] = Metric(what.here.points, "points")
    found["accuracy_gain_points_fair"] = Metric(what.here.fair_points, "points")
    for point in _at_bandwidth(what):
        label = size(point.persistent).replace(" ", "")
        found |= {f"{name}_saving_{label}": Metric(value) for name, value in _shares(point).items()}
    return found


def nets_table(what: Study) -> Table:
    """Return what each net costs without and with what is kept."""
    setting = what.setting
    nets = [item.net for item in setting.works]
    columns = (
        (Column("net"), [net.name for net in nets]),
        (Column("accuracy", "%", 1), [net.accuracy for net in nets]),
        scaled("weights", "MB", [float(item.weights.sum()) for item in setting.works]),
        scaled("work", "GMAC", [float(net.macs.sum()) for net in nets]),
        scaled("nothing kept", "ms", setting.layered.seconds[:, 0].tolist()),
        scaled("core kept", "ms", setting.layered.seconds[:, setting.fixed].tolist()),
        scaled("off chip", "MB", setting.layered.bytes[:, setting.fixed].tolist()),
        scaled("energy", "mJ", [joules(item, setting.kept.graph, setting.machine) for item in setting.works]),
    )
    return _by_column("nets", columns)


def _by_column(name: str, columns: Sequence[tuple[Column, Sequence[Cell]]], accent: int | None = None) -> Table:
    rows = tuple(zip(*(values for _, values in columns), strict=True))
    return Table(name, tuple(column for column, _ in columns), rows, accent=accent)


def buffers_table(what: Study) -> Table:
    """Return the shares saved by the size of the buffer: over the stream, and by the net that gains most."""
    names = (
        "traffic", "traffic, best net", "latency", "latency, best net", "fair latency", "fair latency, best net",
        "whole energy",
    )  # fmt: skip
    unit, each = buffer_unit([point.persistent for point in what.points])
    columns = (Column("buffer", unit, 2), *(Column(name, "%", 1) for name in names))
    rows: list[tuple[Cell, ...]] = []
    for point in _at_bandwidth(what):
        shares = (
            point.traffic, point.traffic_best, point.latency, point.latency_best, point.fair, point.fair_best,
            point.energy,
        )  # fmt: skip
        rows.append((point.persistent / each, *(share * 100 for share in shares)))
    accent = [row[0] for row in rows].index(what.here.persistent / each)
    return Table("buffers", columns, tuple(rows), accent=accent)


def ways_table(what: Study) -> Table:
    """Return every way to save traffic, a query, on the same stream."""
    flows = [way.layered for way in what.ways]
    columns = (
        (Column("way"), [way.name for way in what.ways]),
        scaled("latency", "ms", [flow.seconds for flow in flows], 3),
        scaled("with deep prefetch", "ms", [way.deep.seconds for way in what.ways], 3),
        scaled("off chip", "MB", [flow.bytes for flow in flows]),
        (Column("hits", "%", 0), [flow.hit * 100 for flow in flows]),
        (Column("refills", "% of time", 2), [flow.refill / flow.seconds * 100 for flow in flows]),
        (Column("changes"), [flow.changes for flow in flows]),
    )
    return _by_column("ways", columns, accent=place(what))


def targets_table(what: Study) -> Table:
    """Return how many queries have what they asked for, way by way; in time with refills, and with deep prefetch."""
    played = [way.layered for way in what.ways]
    columns = (
        (Column("targets met by"), [way.name for way in what.ways]),
        (Column("accuracy served", "%", 2), [flow.accuracy for flow in played]),
        (Column("accurate enough", "%", 1), [flow.enough * 100 for flow in played]),
        (Column("in time", "%", 1), [flow.in_time * 100 for flow in played]),
        (Column("both", "%", 1), [flow.both * 100 for flow in played]),
        (Column("both, deep prefetch", "%", 1), [way.deep.both * 100 for way in what.ways]),
    )
    return _by_column("targets", columns, accent=place(what))


def claims_table(what: Study) -> Table:
    """Return what was published beside what is obtained, for the net that gains most."""
    unit, each = buffer_unit([point.persistent for point in what.points])
    columns = (
        Column("claimed in"),
        Column("of"),
        Column("up to"),
        Column("bandwidth", "GB/s", 1),
        Column("obtained"),
        Column("fair"),
        Column("needs", unit, 2),
        Column("fair needs", unit, 2),
    )
    rows: list[tuple[Cell, ...]] = []
    for item in what.claims:
        claim, points = item.claim, item.claim.what == "accuracy points"
        values = [_value(value, points=points) for value in (claim.value, item.layered, item.fair)]
        needs = [None if value is None else value / each for value in (item.needs, item.needs_fair)]
        rows.append((claim.version, claim.what, values[0], item.bandwidth / 1e9, *values[1:], *needs))
    return Table("claimed and obtained", columns, tuple(rows))


def savings_figure(what: Study) -> Figure:
    """Return the shares saved by the size of the buffer."""
    points = _at_bandwidth(what)
    unit, each = buffer_unit([point.persistent for point in points])
    sizes = tuple(point.persistent / each for point in points)
    series = [
        Series(name, sizes, tuple(share * 100 for share in shares))
        for name, shares in (
            ("traffic and off-chip energy", [point.traffic for point in points]),
            ("latency", [point.latency for point in points]),
            ("latency, fair baseline", [point.fair for point in points]),
        )
    ]
    wide = max(sizes) > WIDE * min(sizes) > 0
    return Figure("savings", "Saved by the persistent buffer", f"buffer {unit}", "saved %", tuple(series), log_x=wide)


def lines(what: Study) -> list[tuple[str, str]]:
    """Return the sentences under the tables."""
    kept, here = what.setting.kept, what.here
    layers = int((kept.graph.prod(axis=1) > 0).sum())
    fixed, others = what.ways[1], what.ways[2:6]
    best = min(others, key=lambda way: way.layered.seconds)
    gain = 1 - best.layered.seconds / fixed.layered.seconds
    return [
        ("keep", f"{size(_held(what))} in {layers} layers, cut from {source(kept)} by {kept.order}"),
        ("cache-aware", f"{best.name}: {percent(gain)} of latency against the fixed core"),
        ("energy", f"off chip {percent(here.traffic)} less, as traffic; in all {percent(here.energy)}"),
        ("family", what.family.about),
        ("values", precision(what.setting.machine)),
        ("accuracy", f"{here.points:+.2f} points at equal deadlines ({here.fair_points:+.2f} fair)"),
    ]


def precision(machine: Machine) -> str:
    """Return the bits of weights and maps, and of which the energy of a multiply-accumulate is."""
    bits = f"{8 * machine.weight} bits a weight, {8 * machine.value} a map's value; partial sums stay on chip"
    own = machine.energy.mac != Energy().mac or machine.weight == machine.value == 1
    return bits if own else f"{bits}; energy.mac is still that of INT8"


def notes(what: Study, *, scale: bool) -> tuple[str, ...]:
    """Return what a reader must know to quote a figure; ``scale`` says that no net has these accuracies."""
    line = " The accuracies are a scale, not measured nets." if scale else ""
    return (
        f"Everything is computed by a model; no board was measured.{line}",
        "Nothing kept: the same bytes are given to the dynamic buffer; fair lets transfers run ahead through layers.",
        f"Needs: the least buffer of the sweep, up to {size(max(p.persistent for p in what.points))}, that reaches it.",
    )


def bandwidth(per_second: float) -> str:
    """Return a bandwidth as text."""
    return f"{per_second / 1e9:g} GB/s"


def percent(share: float) -> str:
    """Return a share as text."""
    # nothing is nothing, not less than nothing
    return f"{round(share * 100, 1) + 0.0:.1f} %"


def _gain(share: float) -> str:
    # what rounds to nothing costs nothing
    return f"cost {percent(-share)}" if round(share * 100, 1) < 0 else percent(share)


def _value(value: float, *, points: bool) -> str:
    return f"{value:.2f}" if points else percent(value)


def _shares(point: Savings) -> dict[str, float]:
    return {
        "traffic": point.traffic,
        "latency": point.latency,
        "latency_fair": point.fair,
        "energy": point.traffic,
        "whole_energy": point.energy,
        "traffic_best": point.traffic_best,
        "latency_best": point.latency_best,
        "latency_fair_best": point.fair_best,
    }


def _at_bandwidth(what: Study) -> list[Savings]:
    return [point for point in what.points if point.bandwidth == what.setting.machine.bandwidth]
