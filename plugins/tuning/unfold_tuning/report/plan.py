"""The report of a plan: its stages, its cost against the baselines, and how sensitive it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.problem import Problem
from unfold_tuning.job.profile import Machine
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.decision import encode_decision
from unfold_tuning.planner.planner import Comparison, Selection, Solution, compare_with_baselines
from unfold_tuning.planner.sensitivity import (
    DeadlinePoint,
    simulate_profile_errors,
    simulate_total_loss,
    sweep_deadlines,
)
from unfold_tuning.report import sentences
from unfold_tuning.report.asha import CAP_LEVEL, compare_with_asha
from unfold_tuning.report.figures import draw_cluster, draw_frontier, draw_trials
from unfold_tuning.report.infeasible import report_infeasible
from unfold_tuning.simulator.plan_cost import COST_TOLERANCE_USD, SimulatedPlan, simulate_early_release
from unfold_tuning.simulator.spot_or_on_demand import ThriftyRuns
from unfoldkit.api import (
    Cell,
    Column,
    Metric,
    Report,
    Table,
    Verdict,
    divide_costs,
    format_count,
    format_duration,
    format_money,
    format_percent,
    label_metrics,
)

STAGE_COLUMNS = (
    Column("stage"),
    Column("trials", digits=0),
    Column("iterations", digits=0),
    Column("instances"),
    Column("per trial", "accel."),
    Column("waves"),
    Column("mean", "s", 0),
    Column("cost", "$", 2),
)
PLAN_COLUMNS = (
    Column("plan"),
    Column("cost", "$", 2),
    Column("mean", "s", 0),
    Column("guaranteed", "s", 0),
    Column("on time"),
    Column("against this plan"),
)
MIN_GAP_PERCENT = 0.05
MIN_SPOT_SAVING = 0.01
"""Saving of a plan on spot, as a fraction of its cost on demand, below which the report names the plan on demand."""
MIN_RELEASED = 0.005
"""The line on idle instances appears if their release saves this fraction of the bill."""
METRIC_LABELS = {
    "static_ratio": "best fixed cluster costs",
    "greedy_excess_percent": "greedy plan costs more by",
    "gap_percent": "possible saving at most",
    "cost_usd": "cost, on average",
    "mean_seconds": "mean end",
    "promised_seconds": "promised end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnalysis:
    """A plan with everything that its report compares it with; ``released`` is the plan without idle instances."""

    problem: Problem
    solution: Solution
    selected: Selection
    goal: Goal
    comparison: Comparison
    points: Sequence[DeadlinePoint]
    released: SimulatedPlan

    @property
    def plan(self) -> SimulatedPlan:
        """The selected plan, simulated."""
        return self.selected.plan

    @property
    def gap_percent(self) -> float | None:
        """How much more the plan may cost than the cheapest one, if the lower bound covers it."""
        bound_usd = self.comparison.lower_bound_usd
        # the bound is on plans on demand
        if self.solution.thrifty is not None or not math.isfinite(bound_usd):
            return None
        return max(0.0, (self.plan.mean_cost_usd / bound_usd - 1) * 100) if bound_usd > 0 else 0.0


def report_plan(problem: Problem, solution: Solution) -> Report:
    """Report the plan, or why there is none."""
    report = _report_solution(problem, solution)
    machines = problem.machines
    return replace(
        report,
        subtitle=_describe_problem(problem),
        lines=(*report.lines, *_describe_sources(problem, solution)),
        provenance={
            **report.provenance,
            "prices": {f"{machine.name} {machine.market}": machine.price_source for machine in machines},
        },
    )


def _report_solution(problem: Problem, solution: Solution) -> Report:
    """Report the plan, or why there is none, without the sources of the problem."""
    if solution.selected is None or solution.goal is None or solution.is_over_budget:
        return report_infeasible(problem, solution)
    return _report_feasible(problem, solution, solution.selected, solution.goal)


def _report_feasible(problem: Problem, solution: Solution, selected: Selection, goal: Goal) -> Report:
    analysis = PlanAnalysis(
        problem=problem,
        solution=solution,
        selected=selected,
        goal=goal,
        comparison=compare_with_baselines(solution, selected, goal),
        points=sweep_deadlines(solution.candidates, goal, problem.seed),
        released=_release_idle(solution, selected),
    )
    plan = selected.plan
    headline = sentences.write_plan_headline(
        plan.mean_cost_usd,
        selected.machine,
        [allocation.instances for allocation in plan.plan],
        goal.deadline_s,
        plan.estimate_on_time_probability(goal.deadline_s),
    )
    return Report(
        kind="tuning",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES,
        question=sentences.ask_for_plan(problem.deadline_s, problem.budget_usd, problem.confidence),
        headline=headline,
        metrics=label_metrics(_build_metrics(analysis), METRIC_LABELS),
        tables=(_build_stage_table(analysis), _build_plan_table(analysis)),
        figures=(
            draw_cluster(plan, goal),
            *draw_trials(plan, problem.stages, goal),
            draw_frontier(solution.candidates, selected, goal, analysis.points),
        ),
        lines=tuple(_build_lines(analysis)),
        next=_suggest_command(problem),
        decision=encode_decision(problem, selected.machine, plan),
    )


def _suggest_command(problem: Problem) -> str:
    """Return the command that carries the plan out, or writes it where nothing can be trained or started."""
    if problem.trainable is None or problem.starts_on == "elsewhere":
        return "unfold plan SPEC --out plan.yaml"
    code = " --allow-code" if problem.trainable.function is not None else ""
    ray = " --engine ray --ray-address HOST:6379" if problem.starts_on == "ray" else ""
    return f"unfold train SPEC{code}{ray}"


def _release_idle(solution: Solution, selected: Selection) -> SimulatedPlan:
    """Simulate the plan with idle instances released; on the thrifty market it is judged without that."""
    if solution.thrifty is not None:
        return selected.plan
    return simulate_early_release(selected.candidate.model, selected.plan.plan)


def _describe_problem(problem: Problem) -> tuple[str, ...]:
    work = sum(stage.trial_iterations for stage in problem.stages)
    goal = sentences.describe_goal(problem.deadline_s, problem.budget_usd, problem.confidence)
    return (format_count(len(problem.stages), "stage"), f"{work:,} trial-iterations", goal)


def _describe_sources(problem: Problem, solution: Solution) -> Iterator[tuple[str, str]]:
    if problem.record:
        yield "record", problem.record
    if problem.samples < problem.requested_samples:
        yield "samples", sentences.describe_reduced_samples(problem.samples)
    if problem.paces is not None and solution.paces is not None:
        measured, jobs = problem.paces, solution.paces.prior.jobs
        yield (
            "paces",
            sentences.describe_posterior(
                jobs,
                measured.profile.trials,
                measured.measured_on,
                is_recorded=measured.record_error is not None,
                unused_jobs=len(measured.history) - jobs,
            ),
        )
    for machine in {machine.name: machine for machine in problem.machines}.values():
        if sizes := problem.profile.list_unmeasured_spans(machine.accelerators):
            yield "not considered", sentences.describe_unmeasured_spans(sizes, machine.name)
    yield "prices", sentences.describe_prices(problem.machines)


def _build_metrics(analysis: PlanAnalysis) -> dict[str, Metric]:
    plan, problem, goal = analysis.plan, analysis.problem, analysis.goal
    cost_usd, baselines = plan.mean_cost_usd, analysis.comparison.baselines
    static, greedy = baselines.static.plan, baselines.greedy.plan
    target = f"≤ {problem.budget_usd:g}" if problem.budget_usd is not None else None
    return {
        "cost_usd": Metric(cost_usd, "$", target=target, ok=True if target else None),
        "on_time_probability": Metric(
            plan.estimate_on_time_probability(goal.deadline_s),
            target=f"≥ {problem.confidence:g}",
            ok=goal.is_met_by(plan),
        ),
        "static_ratio": Metric(divide_costs(static.mean_cost_usd, cost_usd) if static else None, "x"),
        "greedy_excess_percent": Metric(
            _compute_excess_percent(greedy.mean_cost_usd, cost_usd) if greedy else None, "%"
        ),
        "gap_percent": Metric(analysis.gap_percent, "%"),
        "mean_seconds": Metric(plan.mean_seconds, "s"),
        "promised_seconds": Metric(plan.compute_guaranteed_seconds(goal.confidence), "s"),
        "cost_usd_p95": Metric(plan.compute_cost_quantile_usd(CAP_LEVEL), "$"),
        "cost_usd_p90": Metric(plan.compute_cost_quantile_usd(0.9), "$"),
    }


def _build_stage_table(analysis: PlanAnalysis) -> Table:
    seconds = analysis.plan.mean_stage_seconds
    is_billed_by_instance = analysis.selected.machine.billing.per == "instance"
    rows: list[tuple[Cell, ...]] = []
    for index, (stage, allocation) in enumerate(zip(analysis.problem.stages, analysis.plan.plan, strict=True)):
        iters = " + ".join(str(group.iters) for group in stage.groups)
        trials = " + ".join(str(group.trials) for group in stage.groups)
        waves = allocation.count_waves(stage.trials)
        stage_s = float(seconds[index])
        cost_usd = _compute_stage_usd(analysis, index, stage_s) if is_billed_by_instance else None
        rows.append((index + 1, trials, iters, allocation.instances, allocation.workers, waves, stage_s, cost_usd))
    return Table("stages", STAGE_COLUMNS, tuple(rows))


def _compute_stage_usd(analysis: PlanAnalysis, index: int, stage_s: float) -> float:
    """Compute the bill of a stage; new instances are not billed while they are awaited."""
    plan, model = analysis.plan.plan, analysis.selected.candidate.model
    before = plan[index - 1].instances if index else 0
    new = max(0, plan[index].instances - before)
    unbilled_s = float(model.sample_provision_seconds(index).mean()) * new if new else 0.0
    return (plan[index].instances * stage_s - unbilled_s) * model.machine.usd_per_second


def _build_plan_table(analysis: PlanAnalysis) -> Table:
    baselines = analysis.comparison.baselines
    rows = [_build_plan_row("this plan", analysis.plan, analysis.goal, "")]
    for name, baseline in (
        ("greedy (RubberBand)", baselines.greedy),
        ("naive elastic", baselines.naive),
        ("best static", baselines.static),
    ):
        if baseline.plan is None:
            rows.append((name, None, None, None, None, "misses the deadline"))
        else:
            difference = _format_cost_difference(baseline.plan.mean_cost_usd, analysis.plan.mean_cost_usd)
            rows.append(_build_plan_row(name, baseline.plan, analysis.goal, difference))
    gap_percent = analysis.gap_percent
    if gap_percent is not None:
        bound_usd, gap = analysis.comparison.lower_bound_usd, sentences.describe_gap(gap_percent)
        rows.append(("lower bound", bound_usd, None, None, None, gap))
    return Table("plans", PLAN_COLUMNS, tuple(rows), accent=0)


def _build_plan_row(name: str, plan: SimulatedPlan, goal: Goal, difference: str) -> tuple[Cell, ...]:
    return (
        name,
        plan.mean_cost_usd,
        plan.mean_seconds,
        plan.compute_guaranteed_seconds(goal.confidence),
        format_percent(plan.estimate_on_time_probability(goal.deadline_s)),
        difference,
    )


def _build_lines(analysis: PlanAnalysis) -> Iterator[tuple[str, str]]:
    goal, plan, candidate = analysis.goal, analysis.plan, analysis.selected.candidate
    machine = analysis.selected.machine
    has_minimums = analysis.solution.thrifty is None
    cap_usd = plan.compute_cost_quantile_usd(CAP_LEVEL)
    yield "at most", sentences.describe_cap(cap_usd, analysis.problem.budget_usd, has_minimums=has_minimums)
    released_usd = analysis.released.mean_cost_usd
    if released_usd < (1 - MIN_RELEASED) * plan.mean_cost_usd:
        yield "idle instances", sentences.describe_released_cost(released_usd)
    slack_s = goal.deadline_s - plan.compute_guaranteed_seconds(goal.confidence)
    yield "slack", sentences.describe_slack(slack_s, goal.confidence)
    # the candidate's plans are on demand from the start
    on_demand = candidate.select_cheapest(goal.deadline_s) if analysis.solution.thrifty is not None else None
    if on_demand is not None and on_demand.mean_cost_usd * (1 - MIN_SPOT_SAVING) <= plan.mean_cost_usd:
        yield "on demand", sentences.describe_on_demand_plan(on_demand.mean_cost_usd)
    cheaper = _find_cheaper_plan(analysis) if analysis.solution.thrifty is None else None
    if cheaper is not None:
        # rounded down, so that a miss never reads as the guarantee
        probability = math.floor(cheaper.estimate_on_time_probability(goal.deadline_s) * 1000) / 1000
        guaranteed_s = cheaper.compute_guaranteed_seconds(goal.confidence)
        yield "next cheaper plan", sentences.describe_cheaper_plan(cheaper.mean_cost_usd, probability, guaranteed_s)
    candidates = analysis.solution.candidates
    earliest_s = min(float(item.guaranteed_s.min()) for item in candidates)
    fastest_s = min(item.mean_seconds for item in analysis.solution.all_plans)
    yield "earliest", sentences.describe_earliest(earliest_s, fastest_s)
    yield "frontier", sentences.describe_frontier(_summarize_frontier(analysis.points))
    model, seed = candidate.model, analysis.problem.seed
    yield from compare_with_asha(model, goal.deadline_s, goal.confidence, seed, analysis.released)
    if analysis.solution.thrifty is not None:
        yield from _describe_thrifty(machine, analysis.solution.thrifty)
    else:
        errors = simulate_profile_errors(candidate.model, plan.plan, goal)
        yield "sensitivity", sentences.describe_sensitivity(errors)
    if machine.interruptions_per_hour:
        yield "spot", sentences.describe_total_loss(simulate_total_loss(candidate, plan.plan, goal))
    gap_percent = analysis.gap_percent
    if machine.has_coarse_billing and gap_percent != 0:
        yield "optimality", sentences.describe_coarse_billing(machine.billing.increment)
    if len(candidates) > 1:
        yield "instance types", _describe_instance_types(analysis)
    if gap_percent is not None and gap_percent > MIN_GAP_PERCENT:
        yield "lower bound", sentences.describe_lower_bound(analysis.comparison.lower_bound_usd)


def _describe_thrifty(machine: Machine, runs: ThriftyRuns) -> Iterator[tuple[str, str]]:
    fraction = float(runs.on_demand_fraction.mean())
    yield "spot", sentences.describe_thrifty(fraction, float(np.quantile(runs.cost_usd, CAP_LEVEL)))
    if machine.spot is not None:
        log = machine.spot.log
        if log is None:
            yield "market", sentences.describe_unknown_market(machine.spot.interruptions_per_hour)
        else:
            recent = log.select_trailing()
            seconds = len(recent.states[0]) * recent.tick_s
            yield "market", sentences.describe_market(len(recent.zones), seconds, len(recent.gaps))


def _summarize_frontier(points: Sequence[DeadlinePoint]) -> dict[str, str]:
    """Map each cost to the shortest deadline for which it suffices."""
    steps: dict[str, str] = {}
    for point in points:
        if point.cost_usd:
            steps.setdefault(format_money(point.cost_usd), format_duration(point.deadline_s, round_up=True))
    return steps


def _find_cheaper_plan(analysis: PlanAnalysis) -> SimulatedPlan | None:
    """Find the cheaper plan on the same machine that is most likely to be on time."""
    max_cost_usd = analysis.plan.mean_cost_usd - COST_TOLERANCE_USD
    cheaper = [plan for plan in analysis.selected.candidate.plans if plan.mean_cost_usd < max_cost_usd]
    deadline_s = analysis.goal.deadline_s
    return max(cheaper, key=lambda plan: plan.estimate_on_time_probability(deadline_s), default=None)


def _describe_instance_types(analysis: PlanAnalysis) -> str:
    options = []
    for candidate in analysis.solution.candidates:
        is_selected = candidate is analysis.selected.candidate
        plan = analysis.plan if is_selected else candidate.select_cheapest(analysis.goal.deadline_s)
        machine = candidate.model.machine
        options.append(sentences.describe_instance_option(machine, plan.mean_cost_usd if plan else None))
    return " · ".join(options)


def _compute_excess_percent(baseline_usd: float, plan_usd: float) -> float | None:
    """Compute how much more a baseline costs than the plan; ``None`` if only the plan is free."""
    ratio = divide_costs(baseline_usd, plan_usd)
    return None if ratio is None else (ratio - 1) * 100


def _format_cost_difference(baseline_usd: float, plan_usd: float) -> str:
    """Format how much more a baseline costs than the plan: ``+12 %``, ``the same``."""
    percent = _compute_excess_percent(baseline_usd, plan_usd)
    if percent is None:
        return format_money(baseline_usd)
    if abs(percent) < 0.05:
        return "the same"
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"
