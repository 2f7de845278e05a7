"""The report of ``unfold check --verify``: counterexamples as timelines, and the bound of each property as a table."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from unfold_placement.report import sentences
from unfold_placement.report.plan import gantt_figures
from unfold_placement.simulation.audit import is_checked_at_starts
from unfold_placement.simulation.deadlock_check import find_jobs_blocked_alone
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import simulate
from unfold_placement.verification.counterexample import Counterexample
from unfold_placement.verification.scenario import KIND_END
from unfold_placement.verification.search import BROKEN_RULE, PREEMPTION_LOOP, PROPERTIES, STARVATION, TORN
from unfold_placement.verification.verify import Verification, forms_gangs
from unfoldkit.api import Column, Metric, Report, Table, Timeline, UnfoldError, Verdict

SEARCH_COLUMNS = (
    Column("victim"),
    Column("other jobs"),
    Column("nodes"),
    Column("jobs"),
    Column("states"),
    Column("complete"),
)
BOUND_COLUMNS = (Column("property"), Column("result"), Column("nodes"), Column("jobs"))
FINDING_COLUMNS = (Column("property"), Column("victim"), Column("actions"), Column("in use", "%", 0), Column("replay"))


def verification_report(problem: Problem, verification: Verification, decision: Mapping[str, Any]) -> Report:
    """Report what a search of the policies found: counterexamples, the bound of each property, and each search."""
    failures, notes = verification.counterexamples, verification.by_design
    searches = verification.searches
    is_good = not failures and not verification.unconfirmed and verification.is_complete
    tables = []
    for name, examples in (("counterexamples", failures), ("by design", notes)):
        if examples:
            tables.append(Table(name, FINDING_COLUMNS, tuple(_finding_row(example) for example in examples)))
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
    tables.append(Table("bound", BOUND_COLUMNS, tuple(_bound_rows(problem, verification))))
    tables.append(Table("searches", SEARCH_COLUMNS, search_rows))
    lines = [("by design", sentences.by_design_line(example.finding.property_name)) for example in notes]
    lines += [("not claimed", sentences.time_dependent_line(name)) for name in verification.time_dependent]
    lines += [("not claimed", sentences.name_dependent_line(name)) for name in verification.name_dependent]
    if verification.unconfirmed:
        lines.append(("not confirmed", sentences.unconfirmed_line(verification.unconfirmed)))
    lines += [("never starts", sentences.never_starting_line(job)) for job in _find_blocked_jobs(problem)]
    lines.append(("bound", sentences.bound_line(*verification.extent)))
    return Report(
        kind="placement",
        verb="check",
        name=problem.name,
        verdict=Verdict.YES if is_good else Verdict.NO,
        question=sentences.ASK_FOR_VERIFICATION,
        headline=_headline(verification),
        subtitle=(problem.policy_names,),
        metrics={
            "counterexamples": Metric(len(failures), target="0", ok=not failures),
            "by_design": Metric(len(notes)),
            "states": Metric(sum(record.states for record in searches)),
            "transitions": Metric(sum(record.transitions for record in searches)),
        },
        tables=tuple(tables),
        figures=tuple(_timelines(problem, verification)),
        lines=tuple(lines),
        decision=decision or None,
    )


def _find_blocked_jobs(problem: Problem) -> list[str]:
    """Return jobs that never start even alone; a search shows only that they block no other."""
    try:
        blocked = find_jobs_blocked_alone(problem.nodes, problem.tasks, problem.new_policies)
        return [counterexample.jobs[0] for counterexample, _ in blocked]
    except UnfoldError:
        return []  # a finding has what the policy raised


def _bound_rows(problem: Problem, verification: Verification) -> Iterator[tuple[str, str, int, int]]:
    """Yield what is claimed of each property, with the extent of the searches."""
    violated = {example.finding.property_name for example in verification.counterexamples}
    noted = {example.finding.property_name for example in verification.by_design}
    has_gangs = any(map(forms_gangs, problem.new_policies()))
    is_claimed = verification.is_complete and not verification.unconfirmed
    is_checked = is_checked_at_starts(problem.rules, problem.new_policies())
    for name in PROPERTIES:
        result = sentences.HOLDS if is_claimed else sentences.NOT_CLAIMED
        if name == TORN and not has_gangs:
            result = sentences.NO_GANGS
        if name == BROKEN_RULE and not is_checked:
            result = sentences.NO_RULE
        result = sentences.BY_DESIGN if name in noted else result
        yield name, sentences.VIOLATED if name in violated else result, *verification.extent


def _timelines(problem: Problem, verification: Verification) -> Iterator[Timeline]:
    """Yield each counterexample as a timeline of its replay; none of a policy that raises."""
    failures = verification.counterexamples
    for number, example in enumerate((*failures, *verification.by_design), 1):
        try:
            result = simulate(example.scenario.nodes, example.tasks, problem.new_policies(), example.node_changes)
        except UnfoldError:
            continue
        name = example.finding.property_name
        first = next((task for task in example.tasks if task.job == f"{example.finding.victim}0"), None)
        starving = first if name in {STARVATION, PREEMPTION_LOOP} else None
        kinds = {task.name: task.job.rstrip(string.digits).rstrip(KIND_END) for task in example.tasks}
        for figure in gantt_figures(result, starving, example.node_changes, kinds):
            victim = example.finding.victim.rstrip(KIND_END)
            title = sentences.counterexample_title(name, victim, is_by_design=number > len(failures))
            yield replace(figure, name=f"counterexample-{number}", title=title)


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
    by_design = tuple(dict.fromkeys(example.finding.property_name for example in verification.by_design))
    return sentences.verified_headline(*verification.extent, states, by_design)
