"""The report of ``unfold profile`` and ``unfold plan`` for a list of members: what each costs, and which matter."""

from __future__ import annotations

from unfold_supernet.members.profile import MemberProfiles
from unfold_supernet.report import sentences
from unfold_supernet.report.tables import note_delayed_members
from unfoldkit.api import Cell, Column, Metric, Report, Table, Verdict

SHOWN_BATCHES = (1, 32)


def build_members_report(name: str, members: MemberProfiles, verb: str) -> Report:
    """Build the report of measured members.

    Args:
        name: Name of the spec.
        members: The members.
        verb: ``profile`` or ``plan``.
    """
    profiles, front = members.profiles, members.front
    best = max(profile.accuracy for profile in profiles)
    dominated = [profile.name for profile in profiles if profile.name not in front]
    lines = [
        ("memory", sentences.state_memory_limit(members.needed_bytes, members.memory_bytes)),
        ("figures", sentences.explain_member_figures()),
    ]
    if dominated:
        lines.append(("dominated", sentences.list_dominated(dominated)))
    return Report(
        kind="supernet",
        verb=verb,
        name=name,
        verdict=Verdict.YES,
        headline=sentences.state_members(len(profiles), len(front), members.fits),
        subtitle=(f"{len(profiles)} members", f"{len(members.classes)} classes"),
        metrics={
            "members": Metric(len(profiles)),
            "front": Metric(len(front)),
            "accuracy_max": Metric(best, "%"),
            "memory_mb": Metric(members.needed_bytes / 1e6, "MB", timed=True),
            "load_ms_max": Metric(max(cost.load_s for cost in members.costs) * 1e3, "ms", timed=True),
            "latency_ms_min": Metric(profiles[0].estimate_latency(1) * 1e3, "ms", timed=True),
            "latency_ms_max": Metric(profiles[-1].estimate_latency(1) * 1e3, "ms", timed=True),
        },
        tables=(_tabulate_members(members),),
        lines=tuple(lines),
        notes=note_delayed_members(members.delayed),
        decision={"nets": list(front), "memory_bytes": members.memory_bytes} if verb == "plan" else None,
        next="unfold plan SPEC --replay TRACE",
        provenance={"inputs": {source.file.member.path.name: source.file.digest for source in members.sources}},
    )


def _tabulate_members(members: MemberProfiles) -> Table:
    columns = (
        Column("member"),
        Column("accuracy", "%", 2),
        *(Column(f"batch of {batch}", "ms", 3, timed=True) for batch in SHOWN_BATCHES),
        Column("best rate", "rows/s", timed=True),
        Column("load", "ms", 1, timed=True),
        Column("memory", "MB", 1, timed=True),
        Column("front"),
    )
    rows: list[tuple[Cell, ...]] = []
    for profile, cost in zip(members.profiles, members.costs, strict=True):
        latencies = [profile.estimate_split_latency(batch) * 1e3 for batch in SHOWN_BATCHES]
        rate = max(size / seconds for size, seconds in profile.seconds)
        is_front = "yes" if profile.name in members.front else "no"
        rows.append(
            (profile.name, profile.accuracy, *latencies, round(rate), cost.load_s * 1e3, cost.bytes / 1e6, is_front)
        )
    return Table("members", columns, tuple(rows))
