"""The reports of cascades over time: costs of the models, and the plan with the decision that ``serve`` reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from unfold_cascade.planner.ledger import AttemptCount
from unfold_cascade.planner.select import NO_CHEAPER, SAVING_UNCERTAIN
from unfold_cascade.report import sentences as shared
from unfold_cascade.report.profile import CallCost, build_cost_report
from unfold_cascade.temporal.data.features import find_longest_span
from unfold_cascade.temporal.models.study import Study
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.report.figures import build_figures
from unfold_cascade.temporal.report.tables import (
    CURRENCIES,
    build_alarm_table,
    build_alert_table,
    build_owned_tables,
    build_policy_table,
    build_route_table,
    finite_or_none,
)
from unfold_cascade.temporal.search.planner import Solution
from unfold_cascade.temporal.simulation.cost import compute_savings
from unfold_cascade.temporal.simulation.policy import StagePolicy
from unfoldkit.api import Metric, Report, RunDir, Verdict, attach_unit, format_count, label_metrics

MetricValue = tuple[float | None, str]
METRIC_LABELS = {
    "loss_points": "loss measured on test patients",
    "loss_points_low": "that loss, lower end (95 %)",
    "loss_points_high": "that loss, upper end (95 %)",
    "loss_points_interval": "that loss, half the interval",
    "naive_price_saving": "price saving, both without memory",
    "naive_flops_saving": "FLOPs saving, both without memory",
    "naive_loss_points": "loss, both without memory",
    "tuned_price_saving": "price saving, not certified",
    "tuned_flops_saving": "FLOPs saving, not certified",
    "tuned_loss_points": "loss, not certified",
}


def build_profile_report(study: Study, directory: RunDir) -> Report:
    """Report what one call of each model costs on this machine."""
    costs = study.call_costs
    rows = [
        CallCost(
            labels=tuple(model.split("/", 1)),
            flops=float(costs.flops[index]),
            bytes=int(costs.bytes[index]),
            latency_us=float(costs.latency[index]),
        )
        for index, model in enumerate(study.models)
    ]
    return build_cost_report(
        study.problem.name,
        rows,
        batch_rows=study.problem.cost.batch_rows,
        directory=directory,
        digest=study.digest,
    )


def build_plan_report(solution: Solution, verb: str, directory: RunDir, attempt: AttemptCount | None = None) -> Report:
    """Report a solution. Every figure is from the test cohort unless its name says otherwise.

    Args:
        solution: What was found.
        verb: ``train`` or ``plan``.
        directory: The run, for messages.
        attempt: Which certificate on these data it is; ``None`` if it was not recorded.
    """
    return Report(
        kind="cascade",
        verb=verb,
        name=solution.problem.name,
        verdict=Verdict.YES if solution.selection.is_certified else Verdict.NO,
        question=_question(solution),
        headline=_headline(solution, directory),
        subtitle=_subtitle(solution),
        metrics=label_metrics(
            _metrics(solution), METRIC_LABELS | shared.label_bounds(solution.problem.goal.confidence)
        ),
        tables=(
            build_policy_table(solution),
            build_alert_table(solution),
            build_route_table(solution),
            *build_owned_tables(solution),
            build_alarm_table(solution),
        ),
        figures=build_figures(solution),
        lines=_lines(solution, attempt),
        notes=sentences.describe_table(
            solution.problem.stage_names,
            leaks=solution.study.leaks,
            marks=solution.study.marks,
            repeated=solution.study.repeated,
            stays=solution.study.stays,
            copies=solution.study.copies,
            doubts=solution.study.doubts,
            gap_h=solution.study.train.timeline.median_gap,
            span_h=find_longest_span(solution.study.features.values()),
        ),
        next=_next_command(solution, directory),
        decision=_decision(solution),
        provenance={"inputs": {"data": solution.study.digest}},
    )


def _next_command(solution: Solution, directory: RunDir) -> str:
    if solution.selection.is_certified or solution.selection.reason:
        return f"unfold serve {directory.word}"
    return f"unfold plan {directory.word} --set goal.max_loss={_smallest_certifiable_percent(solution):g}%"


def _smallest_certifiable_percent(solution: Solution) -> float:
    return float(np.ceil(solution.selection.certified_loss * 1000) / 10)


def _headline(solution: Solution, directory: RunDir) -> str:
    quality, base = solution.cascade.quality, solution.latched.quality
    if solution.selection.reason:
        return shared.use_baseline(sentences.LATCHED, _refusal_reason(solution))
    savings = compute_savings(base.bill, quality.bill, CURRENCIES)
    return sentences.summarize_plan(
        price_saving=savings.get("price"),
        flops_saving=savings.get("flops"),
        loss_points=100 * (quality.loss - base.loss),
        path=str(directory.path),
        relaxed=None if solution.selection.is_certified else _smallest_certifiable_percent(solution),
    )


def _question(solution: Solution) -> str:
    goal, cost = solution.problem.goal, solution.problem.cost
    allowed = "" if goal.max_loss is None else shared.points(goal.max_loss)
    return shared.question(sentences.LATCHED, allowed, goal.budget, cost.unit or cost.by)


def _refusal_reason(solution: Solution) -> str:
    """State why no cascade is certified where the loss is not the reason."""
    selection, goal = solution.selection, solution.problem.goal
    if selection.reason == NO_CHEAPER:
        return shared.no_saving(goal.min_saving)
    if selection.reason == SAVING_UNCERTAIN and goal.min_saving is not None:
        return sentences.describe_uncertain_saving(selection.cases, goal.min_saving, goal.confidence)
    return sentences.describe_refusal(selection.reason)


def _subtitle(solution: Solution) -> tuple[str, ...]:
    study = solution.study
    cohorts = (study.train, study.calibrate, study.test)
    hours = sum(len(cohort.highest) for cohort in cohorts)
    patients = sum(cohort.entities for cohort in cohorts)
    groups = sum(cohort.clusters for cohort in cohorts)
    return (
        format_count(len(study.stages), "stage"),
        shared.choice_of_models(len(study.models) - 1),
        f"{patients:,} cases" + (f" in {groups:,} groups" if groups < patients else ""),
        f"{hours:,} hours",
    )


def _metrics(solution: Solution) -> dict[str, Metric]:
    base, cascade = solution.latched.quality, solution.cascade.quality
    savings = compute_savings(base.bill, cascade.bill, CURRENCIES)
    values = {
        **_loss_metrics(solution, savings),
        **_alert_metrics(solution),
        **_cost_metrics(solution),
        **_other_policy_metrics(solution),
    }
    metrics = {name: Metric(finite_or_none(value), unit) for name, (value, unit) in values.items()}
    return (
        metrics
        | {"latency_saving": Metric(finite_or_none(savings.get("latency")), "x", timed=True)}
        | _interval_metrics(solution)
        | _other_baseline_metrics(solution)
        | _certificate_metric(solution)
    )


def _loss_metrics(solution: Solution, savings: dict[str, float]) -> dict[str, MetricValue]:
    """Savings and losses against the latched baseline."""
    base, loss_interval = solution.latched.quality, solution.intervals.loss
    return {
        "price_saving": (savings.get("price"), "x"),
        "flops_saving": (savings.get("flops"), "x"),
        "certified_loss_points": (100 * solution.selection.certified_loss, "points"),
        "loss_points": (100 * (solution.cascade.quality.loss - base.loss), "points"),
        "loss_points_low": (100 * loss_interval[0], "points"),
        "loss_points_high": (100 * loss_interval[1], "points"),
    }


def _other_policy_metrics(solution: Solution) -> dict[str, MetricValue]:
    """The cascade against the memoryless baseline (``naive_``), and the one that is not certified (``tuned_``)."""
    base, loss_interval = solution.latched.quality, solution.intervals.loss
    naive, naive_base = solution.argmax_cascade.quality, solution.argmax.quality
    tuned = solution.tuned_only.quality
    naive_savings = compute_savings(naive_base.bill, naive.bill, CURRENCIES)
    tuned_savings = compute_savings(base.bill, tuned.bill, CURRENCIES)
    return {
        "naive_price_saving": (naive_savings.get("price"), "x"),
        "naive_flops_saving": (naive_savings.get("flops"), "x"),
        "naive_loss_points": (100 * (naive.loss - naive_base.loss), "points"),
        "tuned_price_saving": (tuned_savings.get("price"), "x"),
        "tuned_flops_saving": (tuned_savings.get("flops"), "x"),
        "tuned_loss_points": (100 * (tuned.loss - base.loss), "points"),
        "saving_lower_bound": (solution.selection.saving_bound, "x"),
        "loss_points_interval": (50 * (loss_interval[1] - loss_interval[0]), "points"),
    }


def _alert_metrics(solution: Solution) -> dict[str, MetricValue]:
    """Lead times, ranking, utility and alert rates of the cascade and the latched baseline."""
    quality, base = solution.cascade.quality, solution.latched.quality
    alerts, base_alerts = solution.cascade.alerts, solution.latched.alerts
    return {
        "lead_hours_gain": (alerts.mean_lead_h - base_alerts.mean_lead_h, "h"),
        "lead_hours_gain_low": (solution.lead_gain_h[0], "h"),
        "lead_hours_gain_high": (solution.lead_gain_h[1], "h"),
        "lead_hours": (alerts.mean_lead_h, "h"),
        "auprc": (quality.auprc, ""),
        "auprc_baseline": (base.auprc, ""),
        "auroc": (quality.auroc, ""),
        "auroc_baseline": (base.auroc, ""),
        "utility": (quality.utility, ""),
        "utility_baseline": (base.utility, ""),
        "macro_f1": (quality.macro_f1, ""),
        "macro_f1_baseline": (base.macro_f1, ""),
        "accuracy": (1 - quality.loss, ""),
        "accuracy_baseline": (1 - base.loss, ""),
        "alerts_per_100h": (quality.alerts, ""),
        "alerts_per_100h_low": (alerts.rate_interval[0], ""),
        "alerts_per_100h_high": (alerts.rate_interval[1], ""),
        "alerts_per_100h_baseline": (base.alerts, ""),
        "alerts_per_100h_baseline_low": (base_alerts.rate_interval[0], ""),
        "alerts_per_100h_baseline_high": (base_alerts.rate_interval[1], ""),
    }


def _cost_metrics(solution: Solution) -> dict[str, MetricValue]:
    """The cheapest single model, and what an entity-hour costs."""
    quality, base, single = solution.cascade.quality, solution.latched.quality, solution.single_model.quality
    savings = compute_savings(base.bill, single.bill, CURRENCIES)
    return {
        "cheapest_single_price_saving": (savings.get("price"), "x"),
        "cheapest_single_flops_saving": (savings.get("flops"), "x"),
        "cheapest_single_utility": (single.utility, ""),
        "cheapest_single_auprc": (single.auprc, ""),
        "price_per_hour": (quality.bill["price"], ""),
        "price_per_hour_baseline": (base.bill["price"], ""),
    }


def _interval_metrics(solution: Solution) -> dict[str, Metric]:
    """Ends of the intervals of the changes against the latched baseline."""
    return {
        f"{name}_change_{end}": Metric(finite_or_none(getattr(solution.intervals, name)[index]))
        for name in ("utility", "auprc", "auroc", "macro_f1")
        for index, end in enumerate(("low", "high"))
    }


def _other_baseline_metrics(solution: Solution) -> dict[str, Metric]:
    """Loss and savings of the cascade against each of the other baselines."""
    metrics: dict[str, Metric] = {}
    for baseline in solution.other_baselines:
        savings = compute_savings(baseline.quality.bill, solution.cascade.quality.bill, CURRENCIES)
        loss_points = 100 * (solution.cascade.quality.loss - baseline.quality.loss)
        metrics[f"{baseline.name}_loss_points"] = Metric(loss_points, "points")
        for currency in CURRENCIES[:2]:
            metrics[f"{baseline.name}_{currency}_saving"] = Metric(finite_or_none(savings.get(currency)), "x")
    return metrics


def _certificate_metric(solution: Solution) -> dict[str, Metric]:
    max_loss = solution.problem.goal.max_loss
    if max_loss is None:
        return {}
    value = round(100 * solution.selection.certified_loss, 9)
    ok = solution.selection.is_certified
    return {"certified_loss_points": Metric(value, "points", target=f"≤ {max_loss * 100:g}", ok=ok)}


def _lines(solution: Solution, attempt: AttemptCount | None) -> tuple[tuple[str, str], ...]:
    quality, base, intervals = solution.cascade.quality, solution.latched.quality, solution.intervals
    alerts, base_alerts = solution.cascade.alerts, solution.latched.alerts
    loss_interval = (100 * intervals.loss[0], 100 * intervals.loss[1])
    change = sentences.describe_quality(
        utility=quality.utility - base.utility,
        utility_interval=intervals.utility,
        auprc=quality.auprc - base.auprc,
        auprc_interval=intervals.auprc,
        meets_margins=solution.front.meets_margins,
    )
    lead = sentences.describe_lead(
        lead_h=alerts.mean_lead_h,
        baseline_lead_h=base_alerts.mean_lead_h,
        per_100h=solution.problem.alerts.per_100h,
        gain_interval_h=solution.lead_gain_h,
        sensitivity=alerts.sensitivity,
        baseline_sensitivity=base_alerts.sensitivity,
    )
    study, goal, selection = solution.study, solution.problem.goal, solution.selection
    promised = [outcome.name for outcome in goal.outcomes]
    outcomes = sentences.describe_outcomes(promised, selection.refused_outcomes, goal.confidence)
    is_covered = selection.is_certified or bool(selection.refused_outcomes)
    return (
        ("certificate", _certificate_line(solution)),
        *((("outcomes", outcomes),) if promised and is_covered else ()),
        *_attempt_lines(attempt),
        ("not promised", sentences.describe_not_promised(_list_not_promised(solution))),
        ("loss", sentences.describe_loss(100 * (quality.loss - base.loss), loss_interval)),
        ("quality", change),
        ("lead time", lead),
        *_price_lines(solution),
        ("saving", _saving_line(solution)),
        ("split", sentences.describe_split(study.train.clusters, study.calibrate.clusters, study.test.clusters)),
    )


def _price_lines(solution: Solution) -> tuple[tuple[str, str], ...]:
    """State prices where the baseline pays any."""
    price, baseline = (policy.quality.bill["price"] for policy in (solution.cascade, solution.latched))
    if baseline == 0:
        return ()
    return (("price", sentences.describe_mean_price(price, baseline, solution.problem.cost.unit)),)


def _saving_line(solution: Solution) -> str:
    intervals, bound = solution.intervals, solution.selection.saving_bound
    text = sentences.describe_savings(intervals.price_saving, intervals.flops_saving)
    if bound is None:
        return text
    cost = solution.problem.cost
    return f"{text}; {sentences.describe_saving_bound(bound, cost.by, solution.problem.goal.confidence)}"


def _attempt_lines(attempt: AttemptCount | None) -> tuple[tuple[str, str], ...]:
    if attempt is None:
        return ()
    return (("attempt", shared.attempt(attempt.number, attempt.joint_confidence, attempt.allowed)),)


def _list_not_promised(solution: Solution) -> list[str]:
    """List the outcomes that the certificate of this solution does not cover."""
    goals = solution.problem.goal.outcomes if solution.selection.is_certified else ()
    covered = {
        "sensitivity": any(goal.within_h is not None for goal in goals),
        "alert rate": any(goal.per_100h is not None for goal in goals),
        "utility": any(goal.within_h is goal.per_100h is goal.label is None for goal in goals),
        "loss of each stage": any(goal.label is not None for goal in goals),
        "lead time": False,
        "saving": solution.selection.is_certified and solution.problem.goal.min_saving is not None,
    }
    return [name for name, is_covered in covered.items() if not is_covered]


def _certificate_line(solution: Solution) -> str:
    selection, target = solution.selection, solution.problem.goal
    if selection.reason:
        return shared.no_certificate(_refusal_reason(solution))
    is_refused = not selection.is_certified and target.max_loss is not None
    unit = solution.problem.cost.unit or ""
    costs = [] if target.budget is None else [f"cost ≤ {attach_unit(f'{target.budget:g}', unit)} per case-hour"]
    costs += [] if target.min_saving is None else [f"saving ≥ {target.min_saving:g}x"]
    return sentences.describe_certificate(
        loss_points=100 * selection.certified_loss,
        confidence=target.confidence,
        patients=selection.cases,
        method=selection.method,
        refused_points=100 * (target.max_loss or 0.0) if is_refused else None,
        costs=() if is_refused else costs,
    )


def _decision(solution: Solution) -> dict[str, Any]:
    """The plan as data. Its keys are read by ``serving/plan_loader.py`` and by stored runs: they stay."""
    problem, rule = solution.problem, solution.rule
    policies = {
        "cascade": solution.selection.point.policy,
        "against_argmax": solution.argmax_selection.point.policy,
    }
    decision: dict[str, Any] = {
        "goal": problem.documents.goal,
        "moves": problem.documents.transitions,
        "promised": solution.selection.is_certified,
        "alerts_per_100h": problem.alerts.per_100h,
        "monolith": {
            "cut": _encode_cut(rule.policy[-1].cut),
            "stages": [float(cut) for cut in rule.cuts or ()],
        },
    }
    for key, policy in policies.items():
        stages = zip(problem.stage_names, policy, strict=True)
        decision[key] = [_encode_stage(solution, name, stage_policy) for name, stage_policy in stages]
    return decision


def _encode_stage(solution: Solution, stage: str, policy: StagePolicy) -> dict[str, Any]:
    spans, owned = ([[_encode_cut(lo), _encode_cut(hi)] for lo, hi in pairs] for pairs in (policy.spans, policy.owned))
    models = [solution.study.model_name(model) for model in policy.chain]
    encoded = {"stage": stage, "models": models, "unsure": spans, "cut": _encode_cut(policy.cut)}
    return encoded | ({"unsure_owned": owned} if owned else {})


def _encode_cut(cut: float) -> float | str:
    """Encode infinite cuts as words, because JSON has no infinity."""
    return float(cut) if np.isfinite(cut) else ("always" if cut < 0 else "never")
