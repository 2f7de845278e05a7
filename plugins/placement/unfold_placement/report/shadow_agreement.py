"""The report of a shadow: what the policies would have done with every task, next to kube-scheduler."""

from __future__ import annotations

import math

from unfold_placement.core.shadow_agreement import (
    BOTH_WAIT,
    EARLIER,
    LATER,
    OTHER_NODE,
    SAME_NODE,
    Agreement,
    Placement,
    count_outcomes,
    median_waits_s,
)
from unfold_placement.report import sentences
from unfoldkit.api import Column, Metric, Report, Table, Verdict, format_count

COLUMNS = (
    Column("task"),
    Column("outcome"),
    Column("policy"),
    Column("policy wait", "s", 1),
    Column("kube-scheduler"),
    Column("its wait", "s", 1),
)
MAX_ROWS = 200
"""Tasks that the report lists, the latest; all are counted."""


def agreement_report(name: str, policy_names: str, agreement: Agreement) -> Report:
    """Build the report of a shadow.

    Args:
        name: Name of the spec.
        policy_names: Names of the policies.
        agreement: The placements of both.
    """
    placements = agreement.list_placements()
    counts, (decided_s, bound_s) = count_outcomes(placements), median_waits_s(placements)
    outcomes = (SAME_NODE, OTHER_NODE, LATER, EARLIER, BOTH_WAIT)
    return Report(
        kind="placement",
        verb="serve",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.agreement_headline(len(placements), counts[SAME_NODE], counts[LATER]),
        subtitle=(format_count(len(placements), "task"), policy_names),
        metrics={
            **{outcome.replace(" ", "_"): Metric(counts[outcome]) for outcome in outcomes},
            "policy_wait_s": Metric(decided_s, "s", timed=True),
            "scheduler_wait_s": Metric(bound_s, "s", timed=True),
        },
        tables=(Table("latest tasks", COLUMNS, tuple(map(_row, placements[-MAX_ROWS:]))),),
    )


def _row(item: Placement) -> tuple[str, str, str, float | None, str, float | None]:
    waits = [time_s - item.submitted_s if math.isfinite(time_s) else None for time_s in (item.decided_s, item.bound_s)]
    return item.task, item.outcome, item.decided_node or "–", waits[0], item.bound_node or "–", waits[1]
