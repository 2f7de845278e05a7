"""The report of a run: what was found, what it took and cost, and what had been predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from unfold_tuning.executor.executor import Outcome, Task
from unfold_tuning.format import counted, dollars, span
from unfold_tuning.report.figures import curves, gantt
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.simulator.plan_cost import Score
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import Cell, Column, Metric, Report, RunDir, Table, Verdict

SHOWN = 8
COLUMNS = (
    Column("stage"),
    Column("trials"),
    Column("instances"),
    Column("per trial", "accel."),
    Column("predicted", "s", 2, timed=True),
    Column("took", "s", 2, timed=True),
    Column("best"),
)


def report(spec: TuningSpec, task: Task, ledger: Ledger, outcome: Outcome, guess: Score) -> Report:
    """Return the report of a run, finished or stopped by its cap."""
    late = spec.deadline is not None and outcome.ended - outcome.began > spec.deadline
    good = not outcome.stopped and not late and outcome.winner is not None
    found = outcome.winner.metric if outcome.winner else None
    metric = None if found is None else task.trainable.shown(found)
    return Report(
        kind="tuning",
        verb="train",
        name=spec.name,
        verdict=Verdict.YES if good else Verdict.NO,
        headline=_headline(spec, outcome, metric, late=late),
        subtitle=(counted(len(task.stages), "stage"), counted(len(ledger.trials()), "trial"), task.machine.name),
        metrics=_metrics(spec, ledger, outcome, guess, metric),
        tables=(_stages(task, ledger, outcome, guess),),
        figures=(gantt(task, ledger, outcome), curves(ledger, task.trainable)),
        lines=tuple(_lines(ledger, outcome)),
        next=f"unfold report {RunDir(task.folder.parent).word} --out report.html" if good else "",
        provenance={"plan": [[deal.instances, deal.gang] for deal in task.plan]},
    )


def _headline(spec: TuningSpec, outcome: Outcome, metric: float | None, *, late: bool) -> str:
    took = span(outcome.ended - outcome.began)
    if outcome.stopped:
        return f"stopped after {dollars(outcome.spent)}: {outcome.stopped}; a higher budget goes on from here"
    if outcome.winner is None or metric is None:
        return "no trial came to its end"
    name = _measured(spec)
    found = f"{name} {metric:.4f} by trial {outcome.winner.id} in {took} for {dollars(outcome.spent)}"
    return f"{found}, after the deadline of {span(spec.deadline or 0)}" if late else found


def _measured(spec: TuningSpec) -> str:
    return spec.trainable.measured if spec.trainable else "metric"


def _metrics(
    spec: TuningSpec, ledger: Ledger, outcome: Outcome, guess: Score, metric: float | None
) -> dict[str, Metric]:
    wall = outcome.ended - outcome.began
    name = f"best_{re.sub('[- ]', '_', _measured(spec))}"
    deadline = f"≤ {spec.deadline:g}" if spec.deadline is not None else None
    budget = f"≤ {spec.budget:g}" if spec.budget is not None else None
    on_time = wall <= spec.deadline if spec.deadline is not None else None
    within = outcome.spent <= spec.budget if spec.budget is not None else None
    return {
        name: Metric(metric),
        "wall_s": Metric(wall, "s", target=deadline, ok=on_time, timed=True),
        "predicted_wall_s": Metric(guess.mean_seconds, "s", timed=True),
        "cost_usd": Metric(outcome.spent, "$", target=budget, ok=within, timed=True),
        "predicted_cost_usd": Metric(guess.cost, "$", timed=True),
        "iterations": Metric(sum(trial.iters for trial in ledger.trials())),
        "lost_nodes": Metric(outcome.lost, timed=True),
    }


def _stages(task: Task, ledger: Ledger, outcome: Outcome, guess: Score) -> Table:
    ends = [0.0, *guess.ends.mean(axis=1).tolist()]
    best = {trial: metric for trial, _, metric, _, _ in ledger.steps()}
    rows: list[tuple[Cell, ...]] = []
    for stage, began, ended, survivors in ledger.stages():
        deal, top = outcome.plan[stage], max((best[t] for t in survivors if t in best), default=None)
        predicted = ends[stage + 1] - ends[stage]
        trials = task.stages[stage].trials
        shown = None if top is None or math.isinf(top) else task.trainable.shown(top)
        rows.append((stage + 1, trials, deal.instances, deal.gang, predicted, ended - began, shown))
    return Table("stages", COLUMNS, tuple(rows))


def _lines(ledger: Ledger, outcome: Outcome) -> Iterable[tuple[str, str]]:
    if outcome.winner is not None:
        shown = ", ".join(f"{key} {_short(value)}" for key, value in outcome.winner.config.items())
        yield "winner", f"trial {outcome.winner.id}, {counted(outcome.winner.iters, 'iteration')}: {shown}"
    for note in outcome.replans:
        yield "planned again", note
    diverged, failed = ledger.diverged(), ledger.failed()
    if diverged:
        yield "no number", f"{_trials(diverged)} returned nan or inf as a metric, and rank last"
    if failed:
        yield "left out", f"{_trials(list(failed))} failed; the last said: {list(failed.values())[-1]}"
    if outcome.lost:
        yield "lost", f"{counted(outcome.lost, 'node')}; the trials went on from their checkpoints"


def _trials(ids: Sequence[int]) -> str:
    shown = ", ".join(str(trial) for trial in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
    return f"{counted(len(ids), 'trial')} ({shown})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
