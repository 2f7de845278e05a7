"""Sentences that a run logs and notes while it runs; they end up in its report."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_tuning.job.allocation import Plan
from unfoldkit.api import format_count, format_duration, format_money, format_names, format_percent

MAX_LISTED_TRIALS = 8
MAX_LISTED_INSTANCES = 20


def describe_late_finish(seconds: float, cost_usd: float | None = None) -> str:
    """Describe the option to finish late, guaranteed if a cost is given."""
    duration = format_duration(seconds, round_up=cost_usd is not None)
    if cost_usd is None:
        return f"finish late: {duration} from now"
    return f"finish late: {duration} from now is guaranteed, for {format_money(cost_usd)} more"


def list_trials(trials: Sequence[int]) -> str:
    """List trials by number, the first few of many."""
    listed = ", ".join(str(trial) for trial in trials[:MAX_LISTED_TRIALS])
    more = ", ..." if len(trials) > MAX_LISTED_TRIALS else ""
    return f"{format_count(len(trials), 'trial')} ({listed}{more})"


def describe_stragglers(trials: Sequence[int]) -> str:
    """Describe the trials that their stages did not wait for."""
    return f"{list_trials(trials)} ended: waiting for them would have made the run late"


def describe_straggler_option(trials: Sequence[int]) -> str:
    """Describe the option to go on without the last trials of a stage."""
    return f"go on without {list_trials(trials)}: --set trainable.early_stop.stragglers=true"


def describe_growth(max_instances: int | None, cost_usd: float) -> str:
    """Describe the option to rent more instances than the limit; ``None`` if no number suffices."""
    if max_instances is None:
        return "grow: no number of instances meets the deadline"
    return f"grow: --set cloud.limit={max_instances} meets the deadline, for {format_money(cost_usd)} more"


def describe_trim(fraction: float | None, last_iters: int, cost_usd: float) -> str:
    """Describe the option to run a fraction of the remaining iterations; ``None`` if even the smallest is late."""
    if fraction is None:
        return "trim: even a tenth of the remaining iterations would be late"
    iters = format_count(last_iters, "iteration")
    trimmed = f"{format_percent(fraction)} of the remaining iterations ({iters} in the last stage)"
    return f"trim: run {trimmed}, for {format_money(cost_usd)} more"


def describe_stop(trial: int | None, metric: float | None) -> str:
    """Describe the option to stop with the best trial so far."""
    return "stop" if trial is None or metric is None else f"stop: trial {trial} has {format_score(metric)}"


def format_score(metric: float) -> str:
    """Format a metric with four decimals, or a small or huge one, such as a loss, with three significant digits."""
    return f"{metric:.4f}" if metric == 0 or 0.01 <= abs(metric) < 1e9 else f"{metric:.3g}"


def describe_lost_guarantee(time_left_s: float, on_time_probability: float) -> str:
    """Describe that the deadline can no longer be guaranteed."""
    time_left = format_duration(max(0.0, time_left_s))
    probability = format_percent(on_time_probability)
    return f"the deadline cannot be guaranteed any more: {time_left} left, P(on time) {probability}"


def describe_missed_deadline() -> str:
    """Describe that no number of instances can meet the deadline."""
    return "the deadline cannot be met any more"


def describe_slowdown(stage: int, factor: float) -> str:
    """Describe when all trials became slower."""
    return f"in stage {stage}, iterations take {factor:.1f} times as long as before"


def describe_replan(occasion: str, plan: Plan) -> str:
    """Describe a changed plan by the instances of its remaining stages."""
    return (
        f"{occasion}: {', '.join(str(allocation.instances) for allocation in plan)} instances in the remaining stages"
    )


def describe_early_release(count: int, stage: int, kept: int) -> str:
    """Describe instances that were released before the end of a stage."""
    return f"{format_count(count, 'idle instance')} released before the end of stage {stage}; {kept} kept"


def describe_budget_stop(budget_usd: float) -> str:
    """Describe that the run stops before it exceeds its budget."""
    return f"the next step would exceed the budget of {format_money(budget_usd)}"


def describe_fallback(slack_s: float) -> str:
    """Describe that the run rents on demand from now on."""
    return f"on demand from now on: {format_duration(max(0.0, slack_s))} of slack are left"


def describe_timeout(timeout_s: float) -> str:
    """Describe why a hanging trial was killed."""
    return f"no checkpoint in {format_duration(timeout_s)}"


def describe_silence(trial: int, silence_s: float, expected_s: float) -> str:
    """Warn about a trial that takes much longer than expected."""
    durations = f"{format_duration(silence_s)} (expected: {format_duration(expected_s)})"
    return f"trial {trial} has reached no checkpoint for {durations}; trainable.timeout ends such trials"


def describe_progress(
    stage: int, stages: int, remaining_s: float | None, spent_usd: float, budget_usd: float | None
) -> str:
    """Describe the state of a run in the line of the live table."""
    eta = "starting" if remaining_s is None else f"ends in {format_duration(max(0.0, remaining_s))}"
    return f"stage {stage} of {stages} · {eta} · {describe_spend(spent_usd, budget_usd)}"


def describe_spend(spent_usd: float, budget_usd: float | None) -> str:
    """Describe what was spent, and the budget that it was taken from."""
    cap = "" if budget_usd is None else f" of {format_money(budget_usd)}"
    return f"{format_money(spent_usd)}{cap} spent"


def describe_leftovers(instances: Sequence[str]) -> str:
    """Describe what stays rented if the process ends before it has released its instances."""
    rented = [format_names(instances, MAX_LISTED_INSTANCES)] if instances else []
    return f"may still be billed: {' and '.join([*rented, 'what was requested last'])} (the same command ends it)"
