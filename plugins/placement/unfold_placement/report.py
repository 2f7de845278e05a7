"""The plan's report, in words and tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from unfold_placement.core.explain import abbreviate_names
from unfold_placement.core.types import Task
from unfold_placement.schema.models import PlacementSpec
from unfold_placement.simulation import metrics as measure
from unfold_placement.simulation.replay import Explained, Replay
from unfold_placement.simulation.simulator import SimulationResult
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, time_axis

COLUMNS = (
    Column("order"),
    Column("makespan", "s", 1),
    Column("mean wait", "s", 1),
    Column("p95 wait", "s", 1),
    Column("fairness", "", 3),
    Column("used", "%", 1),
    Column("fragmented", "%", 1),
    Column("violations"),
)
WHY = (Column("needs"), Column("put by"), Column("is there"), Column("is missing"), Column("since", "s", 1))
GROUPS = 6


NOBODY: Mapping[str, str] = MappingProxyType({})


def report(
    spec: PlacementSpec, mine: Replay, plain: Replay, why: Explained | None, never: Mapping[str, str] = NOBODY
) -> Report:
    """Return the report of a replay; ``never`` says of tasks that were left out why they can never run."""
    stuck, wrong = mine.result.stuck, mine.violations
    good = not stuck and not wrong and not never
    tables = [Table("replay", COLUMNS, (_row(named(spec), mine), _row("FIFO, no policy", plain)), accent=0)]
    return Report(
        kind="placement",
        verb="plan",
        name=spec.name,
        verdict=Verdict.YES if good else Verdict.NO,
        headline=_headline(mine, plain, never),
        subtitle=_subtitle(spec, mine.result),
        metrics=metrics(mine, plain, never),
        tables=(*tables, *([_why_table(why)] if why else [])),
        figures=(timeline(mine.result), waiting(mine.result, plain.result)),
        lines=_lines(mine, plain, why, never),
        next="unfold plan SPEC --out report.html",
        decision=_decision(mine.result),
    )


def metrics(mine: Replay, plain: Replay, never: Mapping[str, str] = NOBODY) -> dict[str, Metric]:
    """Return the figures of a replay, and of the same workload without policy under ``fifo_``."""
    found = mine.metrics
    return {
        "violations": Metric(len(mine.violations), target="0", ok=not mine.violations),
        "waiting_for_ever": Metric(len(mine.result.stuck), target="0", ok=not mine.result.stuck),
        "unplaceable": Metric(len(never), target="0", ok=not never),
        "makespan_s": Metric(found.makespan_s, "s"),
        "wait_mean_s": Metric(found.wait_mean_s, "s"),
        "wait_p95_s": Metric(found.wait_p95_s, "s"),
        "fairness": Metric(found.fairness),
        "utilisation": Metric(found.utilisation),
        "fragmentation": Metric(found.fragmentation),
        "preemptions": Metric(found.preemptions),
        "refused": Metric(len(mine.result.rejections)),
        "deadlines_missed": Metric(found.missed_deadlines),
        "fifo_makespan_s": Metric(plain.metrics.makespan_s, "s"),
        "fifo_wait_mean_s": Metric(plain.metrics.wait_mean_s, "s"),
        "fifo_violations": Metric(len(plain.violations)),
        "fifo_fairness": Metric(plain.metrics.fairness),
        "decisions": Metric(mine.result.decisions),
        "decisions_per_second": Metric(mine.result.decisions / max(mine.elapsed_s, 1e-9), "/s", timed=True),
        "replay_seconds": Metric(mine.elapsed_s, "s", timed=True),
    }


def named(spec: PlacementSpec) -> str:
    """Return the names of the policies."""
    return " + ".join(name.replace("_", "-") for name, _, _ in spec.policy.parts()) or "no policy"


def log(found: SimulationResult, left: Sequence[Task] = ()) -> str:
    """Return the placements as CSV: task, node, arrival, start and end in s; empty where a task never ran.

    Those that were ``left`` out of the replay come last.
    """
    rows = ["task,node,arrival_s,start_s,end_s"]
    for task, place, start, end in zip(found.tasks, found.node_rows, found.start_s, found.end_s, strict=True):
        times = [f"{value:.6f}" if math.isfinite(value) else "" for value in (task.arrival, start, end)]
        rows.append(",".join([task.name, found.nodes[place].name if place >= 0 else "", *times]))
    rows += [f"{task.name},,{task.arrival:.6f},," for task in left]
    return "\n".join(rows) + "\n"


def timeline(found: SimulationResult) -> Figure:
    """Return how many tasks of each job (or, where there are many, user) run over time."""
    counts = {name: measure.count_running(found, members) for name, members in _groups(found.tasks).items()}
    unit, each = time_axis(max((x[-1] for x, _ in counts.values()), default=0.0))
    series = tuple(Series(name, tuple(at / each for at in x), tuple(y), "steps") for name, (x, y) in counts.items())
    return Figure("timeline", "Tasks that run", unit, "tasks", series)


def waiting(mine: SimulationResult, plain: SimulationResult) -> Figure:
    """Return the distribution of waits, beside that without policy."""
    both = (("policy", _waits(mine)), ("FIFO, no policy", _waits(plain)))
    unit, each = time_axis(max((waits[-1] for _, waits in both if waits), default=0.0))
    series = tuple(_shares(name, waits, each) for name, waits in both)
    return Figure("waits", "Share of the tasks that waited no longer", f"wait {unit}", "share", series)


def _waits(found: SimulationResult) -> list[float]:
    return sorted(
        start - task.arrival
        for task, start in zip(found.tasks, found.start_s.tolist(), strict=True)
        if math.isfinite(start)
    )


def _shares(name: str, waits: Sequence[float], each: float) -> Series:
    picks = sorted({round(place * (len(waits) - 1) / 100) for place in range(101)}) if waits else []
    x = tuple(waits[place] / each for place in picks)
    return Series(name, x, tuple((place + 1) / len(waits) for place in picks), "steps")


def _groups(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    for key in ("job", "user", "role"):
        counts = Counter(task.key(key) for task in tasks)
        if len(counts) <= GROUPS:
            return {name or "tasks": [task for task in tasks if task.key(key) == name] for name in counts}
    return {"tasks": list(tasks)}


def _row(name: str, item: Replay) -> tuple[Cell, ...]:
    f = item.metrics
    return (
        name, f.makespan_s, f.wait_mean_s, f.wait_p95_s, f.fairness, f.utilisation * 100, f.fragmentation * 100,
        len(item.violations),
    )  # fmt: skip


def _subtitle(spec: PlacementSpec, found: SimulationResult) -> tuple[str, ...]:
    jobs = len({task.job for task in found.tasks})
    return (f"{len(found.nodes):,} nodes", f"{len(found.tasks):,} tasks", f"{jobs:,} jobs", named(spec))


def _headline(mine: Replay, plain: Replay, never: Mapping[str, str]) -> str:
    if mine.result.stuck:
        return f"{len(mine.result.stuck)} tasks wait for ever, the first is {mine.result.stuck[0].name}"
    if mine.violations:
        return f"{len(mine.violations)} violations, the first at {mine.violations[0]}"
    ran = len(mine.result.tasks) - len(mine.result.rejections)
    if never:
        out = "1 task" if len(never) == 1 else f"{len(never):,} tasks"
        seconds = _seconds(mine.metrics.makespan_s)
        return f"{out} can never run, the first is {next(iter(never))}; the other {ran:,} placed in {seconds}"
    beside = f"{len(plain.violations)} violations and {_seconds(plain.metrics.makespan_s)} without the policy"
    return f"{ran:,} tasks placed in {_seconds(mine.metrics.makespan_s)} without a violation; {beside}"


def _seconds(value: float) -> str:
    """Return a span in whole seconds, or with two digits where there are fewer than ten."""
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def _lines(mine: Replay, plain: Replay, why: Explained | None, never: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    lines = [
        ("scarce", f"{mine.metrics.bottleneck}: {mine.metrics.utilisation:.1%} of it in use until the last start"),
        ("without", plain.violations[0] if plain.violations else "the same rules hold by themselves"),
    ]
    lines += [("never", line) for line in told(never)]
    if mine.result.rejections:
        name, reason = next(iter(mine.result.rejections.items()))
        lines.append(("refused", f"{len(mine.result.rejections)}, the first {name}: {reason}"))
    if why:
        lines.append(("waits", f"{why.task.name} at {why.at:,.1f} s; its table says for what (choose by explain.task)"))
    return tuple(lines)


def told(never: Mapping[str, str]) -> list[str]:
    """Return a line for each reason why tasks can never run, the commonest first, with the names of some."""
    names: dict[str, list[str]] = {}
    for name, why in never.items():
        names.setdefault(why, []).append(name)
    most = sorted(names.items(), key=lambda item: -len(item[1]))
    lines = [f"{why}: {abbreviate_names(same, len(never) + 1)}" for why, same in most[:GROUPS]]
    return [*lines, *([f"and {len(most) - GROUPS} more reasons"] if len(most) > GROUPS else [])]


def _why_table(why: Explained) -> Table:
    rows = tuple(
        (item.requirement, item.set_by, item.available_on or "nowhere", item.missing_on, item.since_s)
        for item in why.reasons
    )
    return Table(f"why {why.task.name} waits at {why.at:g} s", WHY, rows)


def _decision(found: SimulationResult) -> dict[str, object]:
    placed = Counter(found.nodes[place].name for place in found.node_rows if place >= 0)
    shown = [
        {"task": task.name, "node": found.nodes[place].name, "start_s": round(float(start), 6)}
        for task, place, start in zip(found.tasks, found.node_rows, found.start_s, strict=True)
        if place >= 0
    ]
    few = len(found.tasks) <= 200
    return (
        {"tasks": len(found.tasks), "placements": shown}
        if few
        else {"tasks": len(found.tasks), "by_node": dict(placed)}
    )
