"""Tables of a plan over time: policies, alerts, the stages of the cascade, and the alarms that were searched."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.temporal.search.planner import PolicyEvaluation, Solution
from unfold_cascade.temporal.simulation.cost import compute_savings
from unfold_cascade.temporal.simulation.policy import StagePolicy
from unfoldkit.api import Cell, Column, Table

CURRENCIES = ("price", "flops", "latency")


def build_policy_table(solution: Solution) -> Table:
    """Compare all policies on the test cohort; savings are against the latched baseline."""
    columns = (
        Column("policy"),
        Column("accuracy", "%", 2),
        Column("macro F1", "", 3),
        Column("utility", "", 3),
        Column("AUPRC", "", 3),
        Column("alerts", "per 100 h", 1),
        Column("price saving", "x", 1),
        Column("FLOPs saving", "x", 1),
    )
    policies = (
        ("baseline, argmax", solution.argmax),
        ("baseline, latched", solution.latched),
        *((f"baseline, latched: {baseline.name}", baseline) for baseline in solution.other_baselines),
        *((f"{role}: {alarm.name}", alarm) for role, alarm in list_alarm_policies(solution)),
        ("cascade, vs argmax", solution.argmax_cascade),
        ("cascade, uncertified", solution.tuned_only),
        ("cascade, vs latched", solution.cascade),
    )
    rows = tuple(_policy_row(solution, name, evaluation) for name, evaluation in policies)
    return Table("policies", columns, rows, len(rows) - 1)


def list_alarm_policies(solution: Solution) -> list[tuple[str, PolicyEvaluation]]:
    """List the cheapest single model and the cheapest chain of the last stage; once if they are the same."""
    model, chain = solution.single_model, solution.single_stage
    policies = [("single model", model), ("last stage only", chain)]
    return policies[:1] if (model.name, model.policy) == (chain.name, chain.policy) else policies


def _policy_row(solution: Solution, name: str, evaluation: PolicyEvaluation) -> tuple[Cell, ...]:
    quality = evaluation.quality
    savings = compute_savings(solution.latched.quality.bill, quality.bill, CURRENCIES)
    decides_stages = evaluation is not solution.single_model and evaluation is not solution.single_stage
    stages = (100 * (1 - quality.loss), quality.macro_f1) if decides_stages else (None, None)
    ratios = savings.get("price"), savings.get("flops")
    return (name, *stages, quality.utility, finite_or_none(quality.auprc), quality.alerts, *ratios)


def build_alert_table(solution: Solution) -> Table:
    """Compare how policies alert: rates with the tuned cut, lead time and sensitivity at one exact rate."""
    columns = (
        Column("policy"),
        Column("AUROC", "", 3),
        Column("alerts", "per 100 h", 2),
        Column("95 % low", "", 2),
        Column("95 % high", "", 2),
        Column("lead time", "h", 1),
        Column("sensitivity", "%", 1),
    )
    alarm_policies = (evaluation for _, evaluation in list_alarm_policies(solution))
    policies = (solution.latched, *solution.other_baselines, *alarm_policies, solution.cascade)
    rows = tuple(
        (
            policy.name,
            finite_or_none(policy.quality.auroc),
            policy.alerts.rate,
            *policy.alerts.rate_interval,
            finite_or_none(policy.alerts.mean_lead_h),
            finite_or_none(100 * policy.alerts.sensitivity),
        )
        for policy in policies
    )
    return Table("warnings", columns, rows, len(rows) - 1)


def build_route_table(solution: Solution) -> Table:
    """List the models of the cascade in evaluation order, with their cuts and shares of hours on the test cohort."""
    columns = (
        Column("stage"),
        Column("model"),
        Column("evaluated", "% of hours", 1),
        Column("lower threshold", "", 3),
        Column("upper threshold", "", 3),
        Column("exits", "% of hours", 1),
        Column("cost per call", "FLOPs", 0),
    )
    evaluated = solution.cascade.outcome.trajectories.evaluated
    rows: list[tuple[Cell, ...]] = []
    for s, stage_policy in enumerate(solution.selection.point.policy):
        rows += _stage_rows(solution, solution.problem.stages[s].name, stage_policy, evaluated[:, s].astype(np.int64))
    return Table("route", columns, tuple(rows))


def _stage_rows(
    solution: Solution, stage: str, stage_policy: StagePolicy, evaluated: IntArray
) -> list[tuple[Cell, ...]]:
    study = solution.study
    spans = (*stage_policy.spans, (stage_policy.cut, stage_policy.cut))
    rows: list[tuple[Cell, ...]] = []
    for position, (model, (lo, hi)) in enumerate(zip(stage_policy.chain, spans, strict=True)):
        reached, decided = (100 * float(mask.mean()) for mask in (evaluated > position, evaluated == position + 1))
        flops = finite_or_none(float(study.call_costs.flops[model]))
        rows.append((stage, study.model_name(model), reached, _format_cut(lo), _format_cut(hi), decided, flops))
    return rows


def build_owned_tables(solution: Solution) -> list[Table]:
    """List the gates with other cuts where the next model needs no purchase; no table without such gates."""
    columns = (
        Column("if the next model needs no purchase"),
        Column("lower threshold", "", 3),
        Column("upper threshold", "", 3),
    )
    rows: list[tuple[Cell, ...]] = []
    for stage, stage_policy in zip(solution.problem.stage_names, solution.selection.point.policy, strict=True):
        names = [solution.study.model_name(model) for model in stage_policy.chain]
        for gate, (lo, hi) in enumerate(stage_policy.owned):
            if (lo, hi) != stage_policy.spans[gate]:
                rows.append((f"{stage}: {names[gate]} → {names[gate + 1]}", _format_cut(lo), _format_cut(hi)))
    return [Table("gates without a purchase", columns, tuple(rows))] if rows else []


def build_alarm_table(solution: Solution) -> Table:
    """List alarms of the last stage on the tuning cohort: single models, and the best alarms of other chains."""
    columns = (
        Column("alarm, on tuning patients"),
        Column("utility", "", 3),
        Column("AUPRC", "", 4),
        Column("price saving", "x", 1),
        Column("FLOPs saving", "x", 1),
    )
    base = solution.latched.quality.bill
    singles = [alarm for alarm in solution.front.alarms if len(alarm.stage_policy.chain) == 1]
    chains = [alarm for alarm in solution.front.alarms if len(alarm.stage_policy.chain) > 1]
    best = {alarm.stage_policy.chain: alarm for alarm in sorted(chains, key=lambda alarm: alarm.quality.utility)}
    rows = []
    for alarm in [*singles, *sorted(best.values(), key=lambda alarm: -alarm.quality.utility)[:4]]:
        quality = alarm.quality
        savings = compute_savings(base, quality.bill, CURRENCIES)
        name = " → ".join(map(solution.study.model_name, alarm.stage_policy.chain))
        ratios = savings.get("price"), savings.get("flops")
        rows.append((name, quality.utility, finite_or_none(quality.auprc), *ratios))
    return Table("alarms", columns, tuple(rows))


def finite_or_none(value: float | None) -> float | None:
    """Replace NaN and infinity, which JSON does not have, by ``None``."""
    return None if value is None or not np.isfinite(value) else float(value)


def _format_cut(cut: float) -> float | None:
    """Leave out a cut that is always or never reached."""
    return cut if 0.0 < cut < 1.0 else None
