"""The report of a run: the best trial, what the run took and cost, and what was predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig, RunOutcome, RunState
from unfold_tuning.executor.messages import describe_progress, describe_stragglers
from unfold_tuning.executor.ranking import has_reached_target
from unfold_tuning.job.allocation import Plan
from unfold_tuning.report import sentences
from unfold_tuning.report.figures import MAX_BARS, draw_gantt, draw_held_instances, draw_learning_curves
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfold_tuning.trial.ledger import FinishedStage, Ledger
from unfoldkit.api import AnyFigure, Cell, Column, Metric, Report, RunDir, Table, Verdict, format_count

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
        question=sentences.ASK_FOR_RUN,
        headline=_build_headline(config, outcome, metric, is_late=is_late),
        subtitle=_build_subtitle(config, ledger),
        metrics=_build_metrics(config, ledger, outcome, predicted, metric),
        tables=(_build_stage_table(config, ledger, outcome.plan, predicted),),
        figures=_draw_figures(config, ledger, predicted, outcome.began, outcome.ended),
        lines=tuple(_build_lines(config, ledger, outcome)),
        next=f"unfold report {RunDir(config.folder.parent).word} --out report.html" if is_good else "",
        provenance={"plan": [[allocation.instances, allocation.workers] for allocation in config.plan]},
    )


def report_progress(
    name: str, config: ExecutionConfig, ledger: Ledger, state: RunState, predicted: SimulatedPlan
) -> Report:
    """Report a run that goes on: what it has done, and when it is expected to end.

    The verdict states whether deadline and budget hold by the current estimate.

    Args:
        name: Name of the spec.
        config: The run.
        ledger: Its ledger.
        state: How far it has come.
        predicted: The simulated runs of its plan.
    """
    deadline_s, budget_usd = config.deadline_s, config.budget_usd
    expected_s = None if state.ends_at is None else state.ends_at - state.began
    is_on_time = None if deadline_s is None or expected_s is None else expected_s <= deadline_s
    is_affordable = None if budget_usd is None else state.spent_usd <= budget_usd
    remaining_s = None if state.ends_at is None else state.ends_at - state.now
    return Report(
        kind="tuning",
        verb="train",
        name=name,
        verdict=Verdict.NO if False in (is_on_time, is_affordable) else Verdict.YES,
        headline=describe_progress(state.index + 1, len(config.stages), remaining_s, state.spent_usd, budget_usd),
        subtitle=_build_subtitle(config, ledger),
        metrics={
            "expected_wall_s": Metric(
                expected_s, "s", _format_limit(deadline_s), is_on_time, timed=True, label="expected time"
            ),
            "wall_s": Metric(state.now - state.began, "s", timed=True, label="time so far"),
            "cost_usd": Metric(state.spent_usd, "$", _format_limit(budget_usd), is_affordable, timed=True),
            "iterations": Metric(sum(trial.iters for trial in ledger.list_trials()), timed=True),
        },
        tables=(_build_stage_table(config, ledger, state.plan, predicted),),
        figures=_draw_figures(config, ledger, predicted, state.began, state.now),
    )


def _draw_figures(
    config: ExecutionConfig, ledger: Ledger, predicted: SimulatedPlan, began: float, ended: float
) -> tuple[AnyFigure, ...]:
    # trials that the profile has finished run on no node
    bars = (draw_gantt(config, ledger, began, ended),) if 0 < len(ledger.list_parts()) <= MAX_BARS else ()
    curves = draw_learning_curves(ledger, config.trainable)
    return (draw_held_instances(config, ledger, predicted, began, ended), *bars, *((curves,) if curves.series else ()))


def _build_subtitle(config: ExecutionConfig, ledger: Ledger) -> tuple[str, ...]:
    return (
        format_count(len(config.stages), "stage"),
        format_count(len(ledger.list_trials()), "trial"),
        config.machine.name,
    )


def _format_limit(limit: float | None) -> str | None:
    return None if limit is None else f"≤ {limit:g}"


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
    profile_usd = _read_profile_cost(ledger)
    metric_key = f"best_{re.sub('[^A-Za-z0-9]+', '_', config.trainable.metric_name).strip('_')}"
    return {
        metric_key: Metric(metric),
        "wall_s": Metric(
            seconds,
            "s",
            target=_format_limit(deadline_s),
            ok=seconds <= deadline_s if deadline_s is not None else None,
            timed=True,
            label="time",
        ),
        "predicted_wall_s": Metric(predicted.mean_seconds, "s", timed=True, label="predicted time"),
        "cost_usd": Metric(
            outcome.spent_usd,
            "$",
            target=_format_limit(budget_usd),
            ok=outcome.spent_usd <= budget_usd if budget_usd is not None else None,
            timed=True,
            label="cost with its profile" if profile_usd > 0 else "cost",
        ),
        "predicted_cost_usd": Metric(
            predicted.mean_cost_usd,
            "$",
            timed=True,
            label="predicted without its profile" if profile_usd > 0 else "predicted cost",
        ),
        **({"profile_cost_usd": Metric(profile_usd, "$", timed=True)} if profile_usd > 0 else {}),
        "iterations": Metric(sum(trial.iters for trial in ledger.list_trials())),
        "lost_nodes": Metric(outcome.lost_nodes, timed=True),
    }


def _read_profile_cost(ledger: Ledger) -> float:
    """Read the dollars that measuring the profile cost; 0 where the spec has one."""
    return float(ledger.read_fact("profile-usd") or 0.0)


def _build_stage_table(config: ExecutionConfig, ledger: Ledger, plan: Plan, predicted: SimulatedPlan) -> Table:
    ends = [0.0, *predicted.ends.mean(axis=1).tolist()]
    rows: list[tuple[Cell, ...]] = []
    for stage in ledger.list_finished_stages():
        allocation, index = plan[stage.stage], stage.stage
        best = max(_list_scores(config, ledger, stage), default=None)
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


def _list_scores(config: ExecutionConfig, ledger: Ledger, stage: FinishedStage) -> list[float]:
    """List the scores of a stage's trials at its end, not those that they have reached since."""
    ends = {group.bracket: group.done + group.iters for group in config.stages[stage.stage].groups}
    limits = {trial.id: ends[trial.bracket] for trial in ledger.list_trials() if trial.id in stage.survivors}
    scores = {step.trial: step.metric for step in ledger.list_checkpoints() if step.iters <= limits.get(step.trial, 0)}
    return list(scores.values())


def _build_lines(config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome) -> Iterator[tuple[str, str]]:
    if outcome.winner is not None:
        winner = outcome.winner
        yield "winner", sentences.describe_winner(winner.id, winner.iters, winner.config)
    profile_usd = _read_profile_cost(ledger)
    if profile_usd > 0:
        yield "profile", sentences.describe_profile_cost(profile_usd, outcome.spent_usd - profile_usd)
    if config.trainable.mode == "min":
        yield "mode", sentences.describe_minimized(config.trainable.metric_name)
    yield from _describe_early_stops(config, ledger)
    offers = ledger.list_offers()
    if not all(offers.values()):
        yield "offers", sentences.describe_offers(offers)
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
    if stragglers := ledger.list_stragglers():
        yield "stragglers", describe_stragglers(stragglers)
