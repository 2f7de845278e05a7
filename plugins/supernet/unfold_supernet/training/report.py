"""What a person sees of a trained family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfold_supernet.networks.space import Space, macs, parameters
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.training.accuracy import Difference, Quality, difference, separable
from unfold_supernet.units import scaled
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict

if TYPE_CHECKING:
    from unfold_supernet.family.datasets import Data
    from unfold_supernet.training.latency import Switching
    from unfold_supernet.training.subnet_search import Searched

MICRO = 1e6
MANY = 16
CLASSES = 12


@dataclass(frozen=True, slots=True)
class Alone:
    """A subnet of the family and the same net trained alone."""

    family: Quality
    alone: Quality

    @property
    def gap(self) -> Difference:
        """How much better alone is than in the family: the cost of sharing."""
        return difference(self.alone.right, self.family.right)


@dataclass(frozen=True, slots=True)
class Told:
    """All that was measured; dictionaries by subnet, cheapest first; ``times`` are seconds by batch size."""

    spec: SupernetSpec
    data: Data
    space: Space
    found: dict[str, Quality]
    times: dict[str, dict[int, float]]
    alone: dict[str, Alone]
    switching: Switching
    steps: dict[str, int]
    seconds: float
    searched: Searched | None = None

    @property
    def front(self) -> list[str]:
        """The subnets of the front."""
        names = list(self.found)
        return [names[place] for place in separable(self.macs, list(self.found.values()))]

    @property
    def macs(self) -> list[float]:
        """Multiply-accumulates of each subnet."""
        by_name = {one.name: float(macs(self.space, one)) for one in self.space.subnets}
        return [by_name[name] for name in self.found]

    @property
    def cost(self) -> float | None:
        """The largest cost of sharing, in points."""
        return max((pair.gap.points for pair in self.alone.values()), default=None)


def report(told: Told) -> Report:
    """Return the report."""
    accuracies = [one.accuracy for one in told.found.values()]
    cost = f", {sharing([pair.gap for pair in told.alone.values()])}" if told.alone else ""
    headline = (
        f"{len(told.found)} nets in one set of weights, {min(accuracies):.1f} to {max(accuracies):.1f} %, "
        f"{len(told.front)} surely different{cost}; a switch takes {told.switching.p50 * MICRO:.1f} µs"
    )
    tables = [_nets(told), _classes(told), _switches(told)]
    if told.alone:
        tables.insert(1, _alone(told))
    return Report(
        kind="supernet",
        verb="train",
        name=told.spec.name,
        verdict=Verdict.YES,
        headline=headline,
        subtitle=_subtitle(told),
        metrics=_metrics(told),
        tables=tuple(tables),
        figures=(_figure(told),),
        lines=tuple(_lines(told)),
        notes=_missed(told),
        next="unfold plan SPEC",
        provenance={"inputs": {told.data.about: told.data.digest}},
    )


def sharing(gaps: Sequence[Difference]) -> str:
    """Return what sharing costs; a cost that few test rows may have brought about by chance is told as such."""
    worst = max(gaps, key=lambda gap: gap.points)
    if worst.points <= 0:
        return "sharing costs no accuracy"
    if any(gap.points > 0 and gap.separable for gap in gaps):
        return f"sharing costs {worst.points:.2f} points at most"
    return f"no cost of sharing shown ({worst.points:.2f} points, paired error {worst.error:.2f})"


def facts(told: Told) -> dict[str, Any]:
    """Return what a plan needs to know of the family, as data."""
    return {
        "nets": [
            {
                "name": name,
                "accuracy": one.accuracy,
                "sensitivity": [None if math.isnan(value) else value for value in one.sensitivity],
                "macs": work,
                "seconds": {str(batch): seconds for batch, seconds in told.times[name].items()},
            }
            for (name, one), work in zip(told.found.items(), told.macs, strict=True)
        ],
        "front": told.front,
        "classes": list(told.data.names),
        "reload_seconds": told.switching.reload,
    }


def _subtitle(told: Told) -> tuple[str, ...]:
    data = told.data
    return (f"{len(told.found)} nets", data.about, f"{len(data.train):,} to train", f"{len(data.test):,} to test")


def _metrics(told: Told) -> dict[str, Metric]:
    accuracies = [one.accuracy for one in told.found.values()]
    switch = told.switching
    found = {
        "front_points": Metric(float(len(told.front))),
        "accuracy_min": Metric(min(accuracies), "%"),
        "accuracy_max": Metric(max(accuracies), "%"),
        "cost_of_sharing_points": Metric(told.cost, "points"),
        "switch_us_p50": Metric(switch.p50 * MICRO, "µs", timed=True),
        "switch_us_p99": Metric(switch.p99 * MICRO, "µs", timed=True),
        "reload_ratio": Metric(switch.reload / switch.p50, "x", timed=True),
        "load_state_ratio": Metric(switch.load_state / switch.p50, "x", timed=True),
        "memory_ratio": Metric(switch.bytes / switch.separate),
        "train_seconds": Metric(told.seconds, "s", timed=True),
    }
    for place, pair in zip(("min", "mid", "max"), told.alone.values(), strict=False):
        found[f"sharing_cost_{place}_points"] = Metric(pair.gap.points, "points")
    return found


def _nets(told: Told) -> Table:
    shown, works = scaled("work", "kMAC", told.macs, 0)
    columns = (
        Column("net"),
        Column("accuracy", "%", 2),
        Column("±", "points", 2),
        Column("macro F1", "%", 1),
        shown,
        Column("weights", "kB", 1),
        Column("batch 1", "µs", 0, timed=True),
        Column("batch 32", "µs", 0, timed=True),
    )
    front = set(told.front)
    sizes = {one.name: parameters(told.space, one) * 4 / 1e3 for one in told.space.subnets}
    rows: list[tuple[Cell, ...]] = []
    for (name, one), work in zip(told.found.items(), works, strict=True):
        times = [told.times[name][batch] * MICRO for batch in (1, 32)]
        label = name + (" *" if name in front else "")
        rows.append((label, one.accuracy, one.half, one.macro_f1, work, sizes[name], *times))
    return Table("nets", columns, tuple(rows))


def _alone(told: Told) -> Table:
    columns = (
        Column("net"),
        Column("in the family", "%", 2),
        Column("alone", "%", 2),
        Column("cost of sharing", "points", 2),
        Column("paired error", "points", 2),
        Column("surely"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, pair in told.alone.items():
        gap = pair.gap
        sure = "no difference shown" if not gap.separable else "worse" if gap.points > 0 else "better"
        rows.append((name, pair.family.accuracy, pair.alone.accuracy, gap.points, gap.error, sure))
    return Table("cost of sharing", columns, tuple(rows))


def _classes(told: Told) -> Table:
    last = list(told.found.values())[-1].sensitivity
    # of many classes those that the last net recognises worst
    places = sorted(sorted(range(len(last)), key=lambda at: (math.isnan(last[at]), last[at]))[:CLASSES])
    columns = (Column("sensitivity"), *(Column(f"class {told.data.names[at]}", "%", 1) for at in places))
    rows: list[tuple[Cell, ...]] = []
    for name, one in told.found.items():
        values = [one.sensitivity[at] for at in places]
        rows.append((name, *(None if math.isnan(value) else value * 100 for value in values)))
    few = f", the {CLASSES} of {len(last)} that the largest net recognises worst" if len(last) > CLASSES else ""
    return Table(f"classes{few}", columns, tuple(rows))


def _switches(told: Told) -> Table:
    switch = told.switching
    columns = (
        Column("a switch by"),
        Column("time", "µs", 2, timed=True),
        Column("against routing", "x", 0, timed=True),
    )
    ways = (
        ("routing (median)", switch.p50),
        ("routing (99 %)", switch.p99),
        ("binding views anew", switch.views),
        ("loading a state in place", switch.load_state),
        ("building and loading the model", switch.reload),
    )
    return Table("switch", columns, tuple((name, time * MICRO, time / switch.p50) for name, time in ways))


def _figure(told: Told) -> Figure:
    work, accuracies = tuple(told.macs), tuple(one.accuracy for one in told.found.values())
    chosen = [index for index, name in enumerate(told.found) if name in set(told.front)]
    front = Series("front", tuple(work[at] for at in chosen), tuple(accuracies[at] for at in chosen), "steps")
    points = Series("nets", work, accuracies, "points")
    return Figure("front", "Accuracy by work", "MAC", "accuracy %", (points, front), log_x=True)


def _lines(told: Told) -> list[tuple[str, str]]:
    switch = told.switching
    counts = _steps(told.steps | {name: told.steps.get(name, 0) for name in told.found})
    family = f"{switch.bytes / 1e3:.0f} kB with statistics against {switch.separate / 1e3:.0f} kB of separate nets"
    return [
        *_search(told.searched),
        ("front", f"{' < '.join(told.front)}: each surely more accurate than the one before it (95 %, paired)"),
        ("steps", counts),
        ("switch", "every subnet is bound to views of the shared weights once; a switch is to look it up"),
        ("memory", family),
        ("files", "family/ holds weights and statistics, subnets/ each net alone (safetensors, ONNX)"),
    ]


def _missed(told: Told) -> tuple[str, ...]:
    """Return which classes no net ever answers rightly, which accuracy hides where they are rare."""
    recalls = zip(told.data.names, *(one.sensitivity for one in told.found.values()), strict=True)
    missed = [name for name, *values in recalls if not any(values)]
    few = ", ".join(missed[:CLASSES]) + (f" and {len(missed) - CLASSES} more" if len(missed) > CLASSES else "")
    return (f"No net recognises any test row of class {few}.",) if missed else ()


def _steps(steps: dict[str, int]) -> str:
    """Return the steps by subnet; of many, the least, the median and the most."""
    if len(steps) <= MANY:
        return " · ".join(f"{name} {count:,}" for name, count in steps.items())
    ordered = sorted(steps.values())
    return f"{ordered[0]:,} at least, {ordered[len(ordered) // 2]:,} in the middle, {ordered[-1]:,} at most a net"


def _search(found: Searched | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    told = (
        f"{found.count:,} nets, {found.measured:,} measured on rows held back; the predictor's ranks: {found.rank:.2f}"
    )
    return [("search", told)]
