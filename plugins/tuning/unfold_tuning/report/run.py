"""The report of a run: the best trial, what the run took and cost, and what was predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from unfold_tuning.executor.execution import ExecutionConfig, RunOutcome
from unfold_tuning.executor.ranking import has_reached_target
from unfold_tuning.report import sentences
from unfold_tuning.report.figures import draw_gantt, draw_learning_curves
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import Cell, Column, Metric, Report, RunDir, Table, Verdict, format_count

COLUMNS = (
    Column("stage"),
    Column("trials"),
    Column("instances"),
    Column("per trial", "accel."),
    Column("predicted", "s", 2, timed=True),
    Column("measured", "s", 2, timed=True),
    Column("best"),
)


def report_run(
    name: str, config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome, predicted: SimulatedPlan
) -> Report:
    """Report a run that ended, or that its budget stopped.

    Args:
        name: Name of the spec.
        config: The run.
        ledger: Its ledger.
        outcome: How it ended.
        predicted: The simulated runs of its plan.
    """
    is_late = config.deadline_s is not None and outcome.seconds > config.deadline_s
    is_good = not outcome.stop_reason and not is_late and outcome.winner is not None
    score = outcome.winner.metric if outcome.winner else None
    metric = None if score is None else config.trainable.display_metric(score)
    return Report(
        kind="tuning",
        verb="train",
        name=name,
        verdict=Verdict.YES if is_good else Verdict.NO,
        headline=_build_headline(config, outcome, metric, is_late=is_late),
        subtitle=(
            format_count(len(config.stages), "stage"),
            format_count(len(ledger.list_trials()), "trial"),
            config.machine.name,
        ),
        metrics=_build_metrics(config, ledger, outcome, predicted, metric),
        tables=(_build_stage_table(config, ledger, outcome, predicted),),
        figures=(draw_gantt(config, ledger, outcome), draw_learning_curves(ledger, config.trainable)),
        lines=tuple(_build_lines(config, ledger, outcome)),
        next=f"unfold report {RunDir(config.folder.parent).word} --out report.html" if is_good else "",
        provenance={"plan": [[allocation.instances, allocation.workers] for allocation in config.plan]},
    )


def _build_headline(config: ExecutionConfig, outcome: RunOutcome, metric: float | None, *, is_late: bool) -> str:
    if outcome.stop_reason:
        return sentences.write_stopped_headline(outcome.spent_usd, outcome.stop_reason)
    if outcome.winner is None or metric is None:
        return sentences.write_no_winner_headline()
    return sentences.write_winner_headline(
        config.trainable.metric_name,
        metric,
        outcome.winner.id,
        outcome.seconds,
        outcome.spent_usd,
        config.deadline_s if is_late else None,
    )


def _build_metrics(
    config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome, predicted: SimulatedPlan, metric: float | None
) -> dict[str, Metric]:
    seconds, deadline_s, budget_usd = outcome.seconds, config.deadline_s, config.budget_usd
    metric_key = f"best_{re.sub('[- ]', '_', config.trainable.metric_name)}"
    return {
        metric_key: Metric(metric),
        "wall_s": Metric(
            seconds,
            "s",
            target=f"≤ {deadline_s:g}" if deadline_s is not None else None,
            ok=seconds <= deadline_s if deadline_s is not None else None,
            timed=True,
        ),
        "predicted_wall_s": Metric(predicted.mean_seconds, "s", timed=True),
        "cost_usd": Metric(
            outcome.spent_usd,
            "$",
            target=f"≤ {budget_usd:g}" if budget_usd is not None else None,
            ok=outcome.spent_usd <= budget_usd if budget_usd is not None else None,
            timed=True,
        ),
        "predicted_cost_usd": Metric(predicted.mean_cost_usd, "$", timed=True),
        "iterations": Metric(sum(trial.iters for trial in ledger.list_trials())),
        "lost_nodes": Metric(outcome.lost_nodes, timed=True),
    }


def _build_stage_table(config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome, predicted: SimulatedPlan) -> Table:
    ends = [0.0, *predicted.ends.mean(axis=1).tolist()]
    last_scores = {step.trial: step.metric for step in ledger.list_checkpoints()}
    rows: list[tuple[Cell, ...]] = []
    for stage in ledger.list_finished_stages():
        allocation, index = outcome.plan[stage.stage], stage.stage
        best = max((last_scores[trial] for trial in stage.survivors if trial in last_scores), default=None)
        metric = None if best is None or math.isinf(best) else config.trainable.display_metric(best)
        rows.append(
            (
                index + 1,
                config.stages[index].trials,
                allocation.instances,
                allocation.workers,
                ends[index + 1] - ends[index],
                stage.ended - stage.began,
                metric,
            )
        )
    return Table("stages", COLUMNS, tuple(rows))


def _build_lines(config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome) -> Iterator[tuple[str, str]]:
    if outcome.winner is not None:
        winner = outcome.winner
        yield "winner", sentences.describe_winner(winner.id, winner.iters, winner.config)
    if config.trainable.mode == "min":
        yield "mode", sentences.describe_minimized(config.trainable.metric_name)
    yield from _describe_early_stops(config, ledger)
    for note in outcome.notes:
        yield "re-planned", note
    diverged, failed = ledger.list_diverged(), ledger.list_failed()
    if diverged:
        yield "diverged", sentences.describe_diverged(diverged)
    if failed:
        yield "failed trials", sentences.describe_failed(list(failed), list(failed.values())[-1])
    if outcome.lost_nodes:
        yield "lost nodes", sentences.describe_lost_nodes(outcome.lost_nodes)


def _describe_early_stops(config: ExecutionConfig, ledger: Ledger) -> Iterator[tuple[str, str]]:
    rules, stopped = config.trainable.early_stop, ledger.list_early_stops()
    if has_reached_target(config, ledger) and rules.target_score is not None:
        yield "target", sentences.describe_target(config.trainable.display_metric(rules.target_score))
    if stopped and rules.patience is not None:
        yield "early stop", sentences.describe_early_stops(list(stopped), rules.patience)
