"""All sentences of the kind's reports, in one place, so that their English can be edited in one sitting.

The sentences that a run logs while it runs are in :mod:`unfold_tuning.executor.messages`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from unfold_tuning.executor.messages import format_score, list_trials
from unfold_tuning.job.profile import Machine
from unfold_tuning.planner.pace_posterior import MIN_JOBS, PROFILE_ITERS
from unfoldkit.api import format_count, format_duration, format_money, format_names, format_percent

MAX_OFFERS = 3
MAX_CHANGES = 5
"""A headline lists up to this many numbers of instances."""


def name_machine(machine: Machine) -> str:
    """Name a machine, with its market unless that is on-demand."""
    return machine.name if machine.market == "on-demand" else f"{machine.name} {machine.market}"


# headlines


def write_plan_headline(
    cost_usd: float, machine: Machine, instances: Sequence[int], deadline_s: float, probability: float
) -> str:
    """State the cost of a plan, its instances by stage, and its guarantee."""
    changes = [count for count, _ in itertools.groupby(instances)]
    counts = " → ".join(map(str, changes)) if len(changes) <= MAX_CHANGES else f"up to {max(changes)}"
    return (
        f"{format_money(cost_usd)} on {counts} × {name_machine(machine)} meets the deadline of "
        f"{format_duration(deadline_s)} with probability {format_percent(probability)}"
    )


def write_missed_deadline_headline(deadline_s: float, confidence: float, earliest_s: float) -> str:
    """State that no plan meets the deadline."""
    return (
        f"no plan meets the deadline of {format_duration(deadline_s)} with probability {format_percent(confidence)}; "
        f"the earliest guaranteed end is {format_duration(earliest_s, round_up=True)}"
    )


def write_over_budget_headline(deadline_s: float, budget_usd: float, confidence: float) -> str:
    """State that no plan meets the deadline within the budget."""
    return (
        f"no plan meets the deadline of {format_duration(deadline_s)} within the budget of {format_money(budget_usd)}, "
        f"each with probability {format_percent(confidence)}"
    )


def write_small_budget_headline(budget_usd: float, confidence: float) -> str:
    """State that no plan fits into the budget."""
    return f"no plan costs at most {format_money(budget_usd)} with probability {format_percent(confidence)}"


def write_profile_headline(iteration_s: float) -> str:
    """State the measured iteration time."""
    return f"an iteration takes {format_duration(iteration_s)} on one accelerator · stored for unfold plan"


def write_stopped_headline(spent_usd: float, reason: str) -> str:
    """State that a run stopped before its end."""
    return f"stopped after {format_money(spent_usd)}: {reason}; a higher budget continues the run"


def write_no_winner_headline() -> str:
    """State that no trial has a valid metric."""
    return "no trial completed with a finite metric"


def write_winner_headline(
    metric_name: str, metric: float, trial: int, seconds: float, spent_usd: float, missed_deadline_s: float | None
) -> str:
    """State the best metric of a run, and the deadline if the run missed it."""
    cost = f"in {format_duration(seconds)} for {format_money(spent_usd)}"
    text = f"trial {trial} reaches {metric_name} {format_score(metric)} {cost}"
    if missed_deadline_s is None:
        return text
    return f"{text}, missing the deadline of {format_duration(missed_deadline_s)}"


# lines of a plan


def describe_cap(cap_usd: float, budget_usd: float | None, *, has_minimums: bool = True) -> str:
    """Describe the bill that 95 % of the simulated runs do not exceed, and whether a hard cap is set."""
    included = "minimum charges, disks, data and head node" if has_minimums else "disks, data and head node"
    cap = f"at most {format_money(cap_usd)} in 95 % of the simulated runs, with {included}"
    if budget_usd is None:
        return f"{cap}; budget makes it a hard cap"
    return f"{cap}; the run stops at {format_money(budget_usd)}"


def describe_slack(slack_s: float, confidence: float) -> str:
    """Describe the time between the guaranteed end and the deadline."""
    return f"{format_duration(max(0.0, slack_s))} at {format_percent(confidence)}"


def describe_cheaper_plan(cost_usd: float, probability: float, guaranteed_s: float) -> str:
    """Describe the next cheaper plan, which misses the guarantee."""
    end = format_duration(guaranteed_s, round_up=True)
    probability_text = format_percent(probability)
    return f"{format_money(cost_usd)}, but on time only with probability {probability_text}; it guarantees {end}"


def describe_earliest(guaranteed_s: float, fastest_mean_s: float) -> str:
    """Describe the earliest guaranteed end over all plans, and the fastest plan on average."""
    guaranteed = format_duration(guaranteed_s, round_up=True)
    return f"{guaranteed} can be guaranteed; the fastest plan takes {format_duration(fastest_mean_s)} on average"


def describe_frontier(steps: Mapping[str, str]) -> str:
    """Describe from which deadline on the cheapest plan costs less: ``dollars`` to ``deadline``."""
    return " · ".join(f"{deadline} {cost}" for cost, deadline in steps.items())


def describe_asha(
    instances: int,
    cost_usd: float,
    range_usd: tuple[float, float],
    end_s: float,
    confidence: float,
) -> str:
    """Describe ASHA on a fixed cluster that releases idle nodes."""
    cost = f"{format_money(cost_usd)} ({format_money(range_usd[0])} to {format_money(range_usd[1])} in 90 %)"
    end = f"ends within {format_duration(end_s, round_up=True)} in {format_percent(confidence)} of the simulated runs"
    return f"ASHA on {format_count(instances, 'instance')}: {cost}, {end}"


def describe_asha_saving(saved_usd: float | None) -> str:
    """Describe what ASHA saves, if anything."""
    return f"{'not' if saved_usd is None else format_money(saved_usd)} cheaper than this plan"


def describe_late_asha(instances: int, end_s: float, confidence: float) -> str:
    """Describe that ASHA would be late on any fixed cluster."""
    end = f"{format_duration(end_s, round_up=True)} in {format_percent(confidence)} of the simulated runs"
    return f"ASHA would be late on every cluster: {end} on {format_count(instances, 'instance')}"


def describe_sensitivity(probabilities: Sequence[tuple[str, float]]) -> str:
    """Describe P(on time) under errors of the profile."""
    return " · ".join(f"{name}: {format_percent(probability)}" for name, probability in probabilities)


def describe_thrifty(on_demand_fraction: float, cap_usd: float) -> str:
    """Describe how a thrifty plan ends on time, and its bill at the 95 % quantile."""
    return (
        f"waits for spot while there is slack, then on demand: {format_percent(on_demand_fraction)} of the time; "
        f"{format_money(cap_usd)} at 95 %"
    )


def describe_on_demand_plan(cost_usd: float) -> str:
    """Describe that waiting for spot instances saves next to nothing."""
    return f"{format_money(cost_usd)} from the start, also on time: spot saves less than 1 % of that in this market"


def describe_unknown_market(interruptions_per_hour: float) -> str:
    """Describe what is assumed of a spot market without a log."""
    return f"no log of availability: assumes {interruptions_per_hour:g} losses an hour, and capacity at any time"


def describe_market(zones: int, seconds: float, gaps: int) -> str:
    """Describe what the spot market was modelled from."""
    text = f"modelled from the last {format_duration(seconds)} of {format_count(zones, 'zone')}"
    text += ", starting in their current state, with some longer outages"
    return f"{text}; {format_count(gaps, 'tick')} without a probe keep the previous state" if gaps else text


def describe_released_cost(cost_usd: float) -> str:
    """Describe the cost of a plan if idle instances are released before a barrier."""
    return f"released before the end of a stage if the next one needs fewer; the cost is then {format_money(cost_usd)}"


def describe_total_loss(probability: float) -> str:
    """Describe P(on time) if all spot instances are lost."""
    return f"if all instances are lost at once, halfway between checkpoints: {format_percent(probability)} on time"


def describe_coarse_billing(increment_s: float) -> str:
    """Describe that the plan is not proven optimal, because bills round up."""
    return f"bills round up to {format_duration(increment_s)}; this is the cheapest plan found, not a proven optimum"


def describe_lower_bound(bound_usd: float) -> str:
    """Describe the lower bound on the cost of any plan."""
    return f"no plan with this guarantee costs less than {format_money(bound_usd)} (proven for the searched plans)"


def describe_gap(gap_percent: float) -> str:
    """Describe the gap between the plan and the lower bound."""
    return f"gap at most {gap_percent:.1f} %"


def describe_instance_option(machine: Machine, cost_usd: float | None) -> str:
    """Describe an instance type by the cost of its cheapest plan; ``None`` if it is too slow."""
    return f"{name_machine(machine)} {'too slow' if cost_usd is None else format_money(cost_usd)}"


def describe_prices(machines: Sequence[Machine]) -> str:
    """Describe the price of each machine and its source."""
    return " · ".join(f"{m.name} {m.market} ${m.usd_per_hour:g}/h ({m.price_source})" for m in machines)


def describe_reduced_samples(samples: int) -> str:
    """Describe that fewer runs were simulated than requested."""
    return f"{samples:,} simulated runs, because the largest stage has many trials"


def ask_for_plan(deadline_s: float | None, budget_usd: float | None, confidence: float) -> str:
    """Ask what a plan answers."""
    if deadline_s is None:
        return f"Can the search end for at most {format_money(budget_usd or 0)}, and how soon?"
    limit = f"within {format_duration(deadline_s)} with probability {format_percent(confidence)}"
    return f"Can the search end {limit}, and what does it cost?"


ASK_FOR_RUN = "Did a trial win, in time and within the budget?"


def describe_goal(deadline_s: float | None, budget_usd: float | None, confidence: float) -> str:
    """Describe the constraint of the search in the subtitle."""
    limit = format_duration(deadline_s) if deadline_s is not None else format_money(budget_usd or 0)
    return f"≤ {limit} with {format_percent(confidence)}"


# lines of an infeasible problem


def describe_longest_stage(stage: int, trials: int, iters: int, workers: int, stage_s: float, total_s: float) -> str:
    """Describe the stage that takes longest in the fastest plan: the binding constraint of the deadline."""
    work = f"{format_count(trials, 'trial')} of {format_count(iters, 'iteration')}"
    time = f"{format_duration(stage_s)} of {format_duration(total_s)}"
    return f"stage {stage}: {work} on {format_count(workers, 'accelerator')} each, {time}"


def describe_fastest(mean_s: float, cost_usd: float) -> str:
    """Describe the fastest plan."""
    return f"{format_duration(mean_s)} on average, for {format_money(cost_usd)}"


def describe_best_probability(probability: float) -> str:
    """Describe the highest probability of meeting the deadline."""
    return f"with probability {format_percent(probability)} at most"


def describe_relaxed_deadline(deadline_s: float, cost_usd: float, machine: Machine) -> str:
    """Describe the smallest deadline that can be met."""
    deadline = format_duration(deadline_s, round_up=True)
    return f"deadline {deadline} for {format_money(cost_usd)} on {machine.name}"


def describe_binding_budget(cost_usd: float, deadline_s: float) -> str:
    """Describe that the budget is the binding constraint."""
    return f"the budget: ending within {format_duration(deadline_s)} costs {format_money(cost_usd)} on average"


def describe_relaxed_budget(budget_usd: float, later_deadline_s: float | None, given_budget_usd: float) -> str:
    """Describe the smallest budget that suffices, and the deadline for which the given one suffices."""
    text = f"budget {format_money(budget_usd, round_up=True)}"
    if later_deadline_s is None:
        return text
    deadline = format_duration(later_deadline_s, round_up=True)
    return f"{text} · {format_money(given_budget_usd)} is enough for a deadline of {deadline}"


def describe_smallest_budget(budget_usd: float, mean_s: float) -> str:
    """Describe the smallest budget that pays for any plan."""
    return f"budget {format_money(budget_usd, round_up=True)}: {format_duration(mean_s)} on average"


# lines of a run or a profile


def describe_winner(trial: int, iters: int, config: Mapping[str, Any]) -> str:
    """Describe the best trial with its configuration."""
    parameters = ", ".join(f"{key} {_format_parameter(value)}" for key, value in config.items())
    return f"trial {trial}, {format_count(iters, 'iteration')}: {parameters}"


def describe_profile_cost(profile_usd: float, run_usd: float) -> str:
    """Describe how much of the cost measured the profile, which the predicted cost leaves out."""
    return f"its measurement cost {format_money(profile_usd)}; the run itself cost {format_money(run_usd)}"


def describe_minimized(metric_name: str) -> str:
    """Describe that trials are ranked by the smallest metric."""
    return f"the smallest {metric_name} wins"


def describe_target(target: float) -> str:
    """Describe that the search ended because a trial reached its target."""
    return f"a trial reached {target:g}, which ends the search"


def describe_early_stops(trials: Sequence[int], patience: int) -> str:
    """Describe the trials that ended without a better metric for some iterations."""
    return f"{list_trials(trials)} ended after {format_count(patience, 'iteration')} without a better metric"


def describe_diverged(trials: Sequence[int]) -> str:
    """Describe the trials with a metric that is not finite."""
    return f"{list_trials(trials)} returned nan or inf as a metric, which ranks last"


def describe_failed(trials: Sequence[int], error: str) -> str:
    """Describe the trials that were dropped."""
    return f"{list_trials(trials)} failed; the last error: {error}"


def describe_offers(offers: Mapping[str, bool]) -> str:
    """Describe which offers were granted, and which were refused each time; the subtitle names the planned one."""
    granted = [name for name, is_granted in offers.items() if is_granted]
    refused = [name for name, is_granted in offers.items() if not is_granted]
    rented = f"rented {format_names(granted, MAX_OFFERS)}" if granted else "nothing rented"
    return f"{rented}; refused: {format_names(refused, MAX_OFFERS)}"


def describe_lost_nodes(count: int) -> str:
    """Describe how many nodes were lost, and what became of their trials."""
    return f"{format_count(count, 'node')}; the trials continued from their checkpoints"


def describe_profiled_trials(trials: int, iters: int) -> str:
    """Describe the extent of a profile."""
    return f"the first {format_count(trials, 'trial')} of the search, {format_count(iters, 'iteration')} each"


def describe_warm_up(warm_up_s: float) -> str:
    """Describe the one-off time at the start of a trial."""
    return f"{format_duration(warm_up_s)} at the start of a trial, not counted as iterations"


def describe_posterior(
    jobs: int, trials: int, measured_on: str, *, is_recorded: bool = False, unused_jobs: int = 0
) -> str:
    """Describe what the posterior over paces was learnt from, and what its margin is worth."""
    end = "the margin is modelled, not proven"
    if unused_jobs:
        unused = format_count(unused_jobs, "earlier job")
        needed = f"{MIN_JOBS} are needed that ran beyond iteration {PROFILE_ITERS[0]} and drifted like this profile"
        end = f"{unused} not used: {needed}; {end}"
    if is_recorded and not jobs:
        return f"changes from iteration to iteration of {format_count(trials, 'recorded trial')}; {end}"
    where = f" on {measured_on}" if measured_on else ""
    measured = f"{format_count(trials, 'trial')} measured{where}"
    default = "default margins" if unused_jobs else "no earlier jobs, default margins"
    source = f"changes learnt from {format_count(jobs, 'earlier job')}" if jobs else default
    return f"{measured}; {source}; {end}"


def describe_unmeasured_spans(sizes: Sequence[int], machine_name: str) -> str:
    """Describe sizes of trials that would span instances at an unknown speed."""
    counts = " or ".join(map(str, sizes))
    return f"trials of {counts} accelerators over several {machine_name}; profile.across has no speed-up for them"


def describe_stored_measurements(count: int) -> str:
    """Describe what a profile that is stopped has stored."""
    return f"finished measurements: {count}"


def describe_resumed_measurements(count: int) -> str:
    """Describe that a profile continues one that was stopped."""
    return f"the profile continues after {format_count(count, 'finished measurement')}"


def describe_other_measurements(count: int) -> str:
    """Describe that the measurements of a profile that was stopped are of no use."""
    measurements = f"{format_count(count, 'finished measurement')} {'belongs' if count == 1 else 'belong'}"
    return f"the profile starts over: {measurements} to another spec, seed or machine"


def describe_failed_configs(count: int, error: str) -> str:
    """Describe the configurations that failed while the function was profiled."""
    return f"{format_count(count, 'configuration')} failed; the last error: {error}"


def _format_parameter(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_stage(number: int, trials: int, workers: int) -> str:
    """Describe a stage for the legend of a figure: its trials, and the accelerators of each."""
    accelerators = f" × {workers} accel. each" if workers > 1 else ""
    return f"stage {number}: {format_count(trials, 'trial')}{accelerators}"
