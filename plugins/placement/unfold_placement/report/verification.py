"""The report of ``unfold check --verify``: counterexamples, what follows from a strict order, and the bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfold_placement.report import sentences
from unfold_placement.simulation.problem import Problem
from unfold_placement.verification.counterexample import Counterexample
from unfold_placement.verification.scenario import KIND_END
from unfold_placement.verification.verify import Verification
from unfoldkit.api import Column, Metric, Report, Table, Verdict

SEARCH_COLUMNS = (
    Column("victim"),
    Column("other jobs"),
    Column("nodes"),
    Column("jobs"),
    Column("states"),
    Column("complete"),
)
FINDING_COLUMNS = (Column("property"), Column("victim"), Column("actions"), Column("in use", "%", 0), Column("replay"))


def verification_report(problem: Problem, verification: Verification, decision: Mapping[str, Any]) -> Report:
    """Build the report of a verification."""
    failures, notes = verification.counterexamples, verification.by_design
    searches = verification.searches
    is_good = not failures and not verification.unconfirmed and verification.is_complete
    tables = []
    if failures or notes:
        rows = tuple(_finding_row(example) for example in (*failures, *notes))
        tables.append(Table("counterexamples", FINDING_COLUMNS, rows))
    search_rows = tuple(
        (
            record.victim,
            record.kinds,
            record.nodes,
            record.jobs_in_flight,
            record.states,
            "yes" if record.is_complete else "stopped",
        )
        for record in searches
    )
    tables.append(Table("searches", SEARCH_COLUMNS, search_rows))
    lines = [("by design", sentences.by_design_line(example.finding.property_name)) for example in notes]
    lines += [("not claimed", sentences.time_dependent_line(name)) for name in verification.time_dependent]
    if verification.unconfirmed:
        lines.append(("not confirmed", sentences.unconfirmed_line(verification.unconfirmed)))
    lines.append(("bound", sentences.bound_line(searches[0].jobs_in_flight, max(record.nodes for record in searches))))
    return Report(
        kind="placement",
        verb="check",
        name=problem.name,
        verdict=Verdict.YES if is_good else Verdict.NO,
        headline=_headline(verification),
        subtitle=(problem.policy_names,),
        metrics={
            "counterexamples": Metric(len(failures), target="0", ok=not failures),
            "by_design": Metric(len(notes)),
            "states": Metric(sum(record.states for record in searches)),
            "transitions": Metric(sum(record.transitions for record in searches)),
        },
        tables=tuple(tables),
        lines=tuple(lines),
        decision=decision or None,
    )


def format_actions(example: Counterexample) -> str:
    """Return the actions of a counterexample: ``+`` arrives, ``-`` ends, and what is in brackets repeats forever."""
    finding = example.finding
    prefix = " ".join(map(str, finding.prefix))
    return f"{prefix} ({' '.join(map(str, finding.loop))})*" if finding.loop else prefix


def _finding_row(example: Counterexample) -> tuple[str, str, str, float, str]:
    finding = example.finding
    return (
        finding.property_name,
        finding.victim.rstrip(KIND_END),
        format_actions(example),
        finding.used * 100,
        example.evidence,
    )


def _headline(verification: Verification) -> str:
    if verification.counterexamples:
        finding = verification.counterexamples[0].finding
        return sentences.counterexample_headline(finding.property_name, finding.victim.rstrip(KIND_END), finding.length)
    if verification.unconfirmed:
        return sentences.unconfirmed_line(verification.unconfirmed)
    states = sum(record.states for record in verification.searches)
    if not verification.is_complete:
        return sentences.incomplete_headline(states)
    nodes = max(record.nodes for record in verification.searches)
    return sentences.verified_headline(verification.searches[0].jobs_in_flight, nodes, states)
