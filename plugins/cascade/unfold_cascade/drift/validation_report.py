"""The report of ``validate``: each outcome on new data beside what the plan states, kept, broken or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unfold_cascade.drift.outcomes import Judgement
from unfold_cascade.report import sentences
from unfoldkit.api import Cell, Column, Metric, Report, Run, Table, Verdict

VALIDATE = "validate"
FACTORS = {"points": 100.0, "%": 100.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationData:
    """The new data: name of the spec, counts for the subtitle, path, digest, and what is served."""

    name: str
    subtitle: tuple[str, ...]
    path: str
    digest: str
    confidence: float
    unlabelled: int
    served: str


def build_validation_report(data: ValidationData, judgements: Sequence[Judgement], run: Run) -> Report:
    """Build the report; the verdict is no if a promise is broken."""
    by_state = {
        state: [judgement.promise.name for judgement in judgements if judgement.state == state]
        for state in ("kept", "broken", "undecided")
    }
    broken = by_state["broken"]
    metrics = {f"promises_{state}": Metric(float(len(names))) for state, names in by_state.items()}
    columns = (
        Column("outcome"), Column("unit"), Column("basis"), Column("before"), Column("here", "", 3),
        Column("low", "", 3), Column("high", "", 3), Column("promise"),
    )  # fmt: skip
    lines = [
        ("served", data.served),
        ("intervals", sentences.intervals_of_validation(data.confidence)),
        ("not shown", sentences.NOT_VALIDATED),
    ]
    if data.unlabelled:
        lines.append(("unlabelled", sentences.unlabelled_rows(data.unlabelled, data.path)))
    return Report(
        kind="cascade",
        verb=VALIDATE,
        name=data.name,
        verdict=Verdict.NO if broken else Verdict.YES,
        headline=sentences.validation_headline(broken, by_state["kept"], by_state["undecided"]),
        subtitle=data.subtitle,
        metrics=metrics,
        tables=(Table("promises", columns, tuple(_row(judgement) for judgement in judgements)),),
        lines=tuple(lines),
        next=f"unfold plan {run.directory.word} --recalibrate {data.path}" if broken else "",
        provenance={"inputs": {"data": data.digest}},
    )


def join_reports(drift: Report, validation: Report) -> Report:
    """Join a report of drift and one of promises: yes only if nothing drifted and nothing is broken."""
    is_broken = validation.verdict is Verdict.NO
    lines = [line for line in drift.lines if line[0] != "certificate" or not is_broken]
    return replace(
        drift,
        verdict=Verdict.NO if is_broken else drift.verdict,
        headline=f"{drift.headline} · {validation.headline}",
        metrics={**drift.metrics, **validation.metrics},
        tables=(*validation.tables, *drift.tables),
        lines=(*validation.lines, *lines),
        notes=tuple(dict.fromkeys((*validation.notes, *drift.notes))),
        next=validation.next or drift.next,
    )


def describe_unlabelled(report: Report, verb: str) -> Report:
    """Turn a report of drift into what can be concluded from data without labels."""
    lines = [line for line in report.lines if line[0] != "certificate"]
    has_drifted = report.verdict is Verdict.NO
    lines.append(("can be concluded", sentences.concluded_without_labels(has_drifted=has_drifted)))
    lines.append(("cannot be concluded", sentences.NOT_CONCLUDED))
    decision = None if verb == VALIDATE else report.decision
    return replace(report, verb=verb, lines=tuple(lines), decision=decision)


def _row(judgement: Judgement) -> tuple[Cell, ...]:
    promise, factor = judgement.promise, FACTORS.get(judgement.promise.unit, 1.0)
    low, high = (factor * end for end in judgement.interval)
    before = [factor * end for end in judgement.before]
    is_certified = promise.limit is not None
    text = (
        f"{'≥' if promise.higher_is_better else '≤'} {before[0]:.3g}"
        if is_certified
        else sentences.estimate_before(
            factor * promise.before.value if promise.before is not None else float("nan"), before[0], before[1]
        )
    )
    here = factor * promise.now.value
    numbers = (None if value != value else value for value in (here, low, high))  # noqa: PLR0124 - NaN
    return (promise.name, promise.unit, "certified" if is_certified else "estimated", text, *numbers, judgement.state)
