"""The report of a dry run: what the tuner would change in an existing deployment now."""

from __future__ import annotations

from unfold_pipeline.control.controller import DeploymentController, ScaleStep
from unfold_pipeline.report import sentences
from unfoldkit.api import Cell, Column, Metric, Report, Table, Verdict


def build_control_report(
    name: str, controller: DeploymentController, steps: tuple[ScaleStep, ...], warnings: list[str], every_s: float
) -> Report:
    """Return the next step of each stage; none was carried out.

    Args:
        name: Name of the spec.
        controller: Read the demand and the replicas.
        steps: The next step of each stage.
        warnings: What could not be checked.
        every_s: Time between two decisions.
    """
    record, limits = controller.record, controller.limits
    changes = sum(step.next != step.current for step in steps)
    paused = [step.stage for step in steps if step.current == 0]
    columns = (
        Column("stage"),
        Column("workload"),
        Column("replicas"),
        Column("wanted"),
        Column("next"),
    )
    return Report(
        kind="pipeline",
        verb="serve",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.describe_proposal(record.rate, record.age_s, changes),
        metrics={
            "arrivals_per_second": Metric(record.rate, "/s"),
            "signal_age_s": Metric(record.age_s, "s"),
            "changes": Metric(changes),
        },
        tables=(Table("replicas", columns, tuple(_build_row(step) for step in steps)),),
        lines=(
            ("target", controller.target.location),
            ("demand", controller.source.location),
            ("limits", sentences.describe_limits(limits.add, limits.remove, every_s)),
            *((("paused", sentences.describe_paused(paused)),) if paused else ()),
            *(("warning", text) for text in (*warnings, *((record.gap,) if record.gap else ()))),
        ),
        notes=("dry run: nothing was changed, and no lease was taken",),
    )


def _build_row(step: ScaleStep) -> tuple[Cell, ...]:
    return (step.stage, step.workload, step.current, step.wanted, step.next)
