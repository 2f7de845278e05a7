"""Every sentence that a pipeline report shows, so that one reader can edit the English in one sitting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from unfoldkit.api import format_count, format_duration

PLOT_HINT = "plot: --out plan.html"
LIVE_REPLICAS = "with the replicas and batch sizes that served at each moment"
PLANNED_REPLICAS = "with the replicas of the plan"
NO_WINDOW_EXCEEDED = "the new traffic stays within the envelope of the plan"
LATENCY_TITLE = "Queries answered within a time, and the target"
GRAPH_TITLE = "The plan: load of each stage, and where the slowest queries spend most of their time"
BOTTLENECK = "p99 bottleneck"
EDGE_WEIGHT = "share of queries"
MAY_BE_FEWER = "; fresh traffic may keep it less often"
NO_SAVING = "no replica can be removed: every stage has one"


def format_latency(seconds: float) -> str:
    """Return seconds as text, in ms below ten seconds, with as many digits as matter."""
    return format_duration(seconds, style="latency")


def format_slo(slo_s: float) -> str:
    """Return the target as text."""
    return f"p99 ≤ {format_latency(slo_s)}"


def join_names(names: Iterable[str]) -> str:
    """Return names separated by commas."""
    return ", ".join(names)


USUAL_CONFIDENCE = 0.95
"""Below this share of fresh samples, a headline says that a plan was fitted to its sample."""
MIN_PERCENT_DRAWS = 20
"""Fewer draws than this are counted: 4 of 4 do not show 100 %."""
ASK_FOR_MEASUREMENT = "Are real queries answered in time?"


def ask_for_plan(targets: str) -> str:
    """Ask what a plan answers."""
    return f"Is there a plan that keeps {targets}, and what does the cheapest cost?"


def ask_for_replay(targets: str) -> str:
    """Ask what the replay of a trace answers."""
    return f"Is {targets} kept on this trace, and at what price?"


# the plan


def describe_plan(hourly_cost: float, slo_s: float) -> str:
    """Return the headline of a plan."""
    return f"${hourly_cost:,.2f}/h meets {format_slo(slo_s)}"


def describe_plan_on_samples(
    hourly_cost: float, slo_s: float, kept: int, draws: int, *, limit: float = 1.0, confidence: float | None = None
) -> str:
    """Return the headline of a plan with the share of fresh samples on which it meets the target, at most ``limit``."""
    plan = describe_plan(hourly_cost, slo_s)
    share = f"{kept} of {draws}" if draws < MIN_PERCENT_DRAWS else f"{_format_share(min(kept / draws, limit))} of"
    if confidence is None:
        also = "and" if kept / draws >= USUAL_CONFIDENCE else "but only"
        return f"{plan} on this sample, {also} on {share} fresh samples"
    return f"{plan} on {share} fresh samples; {confidence * 100:.4g} % required"


def _format_share(share: float) -> str:
    """Return a share in percent; 99.6 % is not all."""
    is_nearly_all = share < 1 and round(share * 100) == 100
    return f"{share * 100:.1f} %" if is_nearly_all else f"{share * 100:.0f} %"


def describe_expected_share(kept: int, draws: int, lower_bound: float) -> str:
    """Return on how many fresh samples a plan for one sample meets the target, and how to plan for more."""
    observed = (
        f"the plan meets the target on {kept} of {draws} fresh samples, at least {lower_bound * 100:.0f} % of all"
    )
    return f"{observed} with 90 % certainty; slo.confidence plans for more"


def describe_confident_share(kept: int, draws: int, lower_bound: float, extra_cost: float, *, is_reached: bool) -> str:
    """Return on how many fresh samples a plan meets the target, and what that costs beside the plan for one sample."""
    observed = f"{kept} of {draws} fresh samples, at least {lower_bound * 100:.0f} % of all with 90 % certainty"
    if is_reached:
        return f"{observed}; ${extra_cost:,.2f}/h more than the plan for this sample alone"
    return f"only {observed}; no plan found within the quotas and search.limit is certain to meet more"


def describe_wandering(blocks: int) -> str:
    """Return the share that a trace of a wandering rate supports, as few of its stretches are independent."""
    return f"the rate of the trace wanders: a trace of this length {_support_share(blocks)}"


def describe_rare_bursts(count: int) -> str:
    """Return the share that a trace with few bursts supports, as fresh traffic may have more or larger ones."""
    bursts = format_count(count, "burst")
    return f"the trace shows {bursts} far above its usual rate; fresh ones may be larger: it {_support_share(count)}"


def _support_share(parts: int) -> str:
    return f"supports a share of at most {parts / (parts + 1) * 100:.0f} %"


def describe_drift(hurst: float) -> str:
    """Return that a trace is too short to show how its rate varies."""
    evidence = f"the rate of the trace drifts or has long memory (Hurst parameter {hurst:.2f})"
    return f"{evidence}; fresh traffic may have another mean rate, which lowers the share"


def describe_heavy_tail(index: float) -> str:
    """Return that a trace is too short to show its largest bursts."""
    evidence = f"the bursts of the trace have a heavy tail (index {index:.1f})"
    return f"{evidence}; fresh traffic may have larger ones, which lowers the share"


def describe_configuration(hardware: str, batch: int, usd_per_hour: float) -> str:
    """Describe the configuration of a stage for its box in the graph: hardware, maximum batch size and price."""
    return f"{hardware} · batch {batch} · ${usd_per_hour:.2f}/h"


def describe_stages(count: int) -> str:
    """Return the number of stages."""
    return format_count(count, "stage")


def describe_slack(slack_s: float, stage: str, share: float) -> str:
    """Return the slack at the percentile and the stage that is critical for ``share`` of the slowest queries."""
    return f"{format_latency(slack_s)} at p99; {stage} is critical for {share * 100:.0f} % of the slowest 1 %"


def describe_overload(loads: Sequence[tuple[str, float]]) -> str:
    """Return the stages that receive more than they can serve, with their load."""
    stages = join_names(f"{stage} receives {load * 100:,.0f} % of its capacity" for stage, load in loads)
    return f"{stages}; queues grow with the traffic, and the SLO is met only because the sample ends"


def describe_rejected_saving(hardware: str, stage: str, tail_s: float, slo_s: float, *, after_loss: bool) -> str:
    """Return by how much the largest saving misses the SLO, by itself or after a loss that it must survive."""
    change = f"one fewer {hardware} replica at {stage}"
    if math.isinf(tail_s):
        return f"{change}: none is left after a loss"
    event = " after a loss" if after_loss else ""
    return f"{change}: p99 {format_latency(tail_s)}{event}, {format_latency(tail_s - slo_s)} over the SLO"


def describe_replica_loss(hardware: str, stage: str, tail_s: float, slo_s: float) -> str:
    """Return the percentile after the loss of a replica at the stage where it hurts most."""
    outcome = "still within the SLO" if tail_s <= slo_s else "over the SLO"
    return f"without one {hardware} replica at {stage}: p99 {format_latency(tail_s)}, {outcome}"


def describe_survival(hardware: str, stage: str, tail_s: float, slo_s: float) -> str:
    """Return the percentile of a plan that survives any lost replica, after the loss that hurts most."""
    worst = f"p99 {format_latency(tail_s)} at worst, without one {hardware} replica at {stage}"
    return f"any replica may be lost within {format_slo(slo_s)}: {worst}"


def describe_survival_goal() -> str:
    """Return what makes a plan with a spare replica harder to find."""
    return "every stage must meet the SLO with one replica lost (slo.survive: 1)"


def describe_failed_survival(stage: str, tail_s: float, slo_s: float) -> str:
    """Return that a committed plan does not survive a loss."""
    if math.isinf(tail_s):
        return f"a loss at {stage} leaves it without a replica"
    return f"after a loss at {stage}, p99 is {format_latency(tail_s)}; the target is {format_slo(slo_s)}"


def describe_outage(stages: Sequence[str]) -> str:
    """Return the stages that stop when they lose their only replica."""
    return f"outage at {join_names(stages)} (single replica)"


def describe_interval(low_s: float, high_s: float, sample: int, samples: int) -> str:
    """Return the confidence interval of the percentile; ``sample`` (from 1) is the worst of ``samples``."""
    origin = f"sample {sample} of {samples}, the worst" if samples > 1 else "this sample"
    return f"95 % CI {format_latency(low_s)} – {format_latency(high_s)} (block bootstrap over {origin})"


def describe_jitter(tail_s: float, slo_s: float) -> str:
    """Return the percentile with measured service-time variability."""
    sentence = f"p99 is {format_latency(tail_s)} with the measured service-time variability"
    if tail_s <= slo_s:
        return sentence
    return f"{sentence}, {format_latency(tail_s - slo_s)} over the SLO; plan with a lower slo.p99"


def describe_optimality(gap: float, *, is_optimal: bool, is_search_complete: bool) -> str:
    """Return what is proven about cheaper plans; ``gap`` is a fraction."""
    if is_optimal:
        return "proven optimal"
    if is_search_complete:
        return f"optimal within the per-stage bounds; proven gap at most {gap * 100:.1f} %"
    return f"search budget exhausted; gap at most {gap * 100:.1f} %"


def describe_frontier(points: Sequence[tuple[float, float | None, bool]]) -> str:
    """Return target, $/h and exactness of each point; ``≤`` where the search was stopped, so less may suffice."""
    parts = [f"{format_latency(slo_s)} {_format_frontier_cost(cost, is_exact)}" for slo_s, cost, is_exact in points]
    return f"{' · '.join(parts)}   {PLOT_HINT}"


def _format_frontier_cost(cost: float | None, is_exact: bool) -> str:
    if cost is None:
        return "none" if is_exact else "none found"
    return f"{'' if is_exact else '≤ '}${cost:,.2f}"


def describe_greedy_steps(count: int, last_steps: Sequence[tuple[str, str, float]]) -> str:
    """Return the number of greedy steps, and stage, kind and $/h of the last ones."""
    steps = " · ".join(f"{stage}: {move} → ${cost:,.2f}" for stage, move, cost in last_steps)
    return f"{format_count(count, 'step')}; last: {steps}"


def describe_prices(prices: Sequence[tuple[str, float, str]]) -> str:
    """Return hardware, $/h and source of each price."""
    return " · ".join(f"{name} ${price:.4g}/h ({source})" for name, price, source in prices)


def describe_instances(instances: Sequence[tuple[int, str, int, int]]) -> str:
    """Return the instances to rent: their number, hardware, replicas, and replicas per instance."""
    return " · ".join(
        f"{count} {name} for {format_count(replicas, 'replica')}, {size} per instance"
        for count, name, replicas, size in instances
    )


def describe_relative_cost(cost: float, plan_cost: float, *, misses_slo: bool) -> str:
    """Return the cost of another plan relative to this one."""
    if not plan_cost:
        return "not free" if cost else "free too"
    change = (cost / plan_cost - 1) * 100
    difference = "the same price" if abs(change) < 0.05 else f"{change:+.0f} %"
    return f"misses the SLO ({difference})" if misses_slo else difference


def describe_bound(gap: float, *, is_optimal: bool) -> str:
    """Return how far the plan is from the lower bound."""
    return "reached: no plan is cheaper" if is_optimal else f"gap at most {gap * 100:.1f} %"


# where latencies and stages come from


def describe_measured(stages: Sequence[str], hardware: str, processor: str) -> str:
    """Return the stages that are planned by their profile, and the machine that measured them."""
    machine = processor or "an unknown machine"
    return f"{join_names(stages)}: profiled on {machine} ({hardware} in the spec)"


def describe_overridden(stages: Sequence[str], hardware: str) -> str:
    """Return the stages with a profile that the spec overrides."""
    return f"{join_names(stages)}: the latency of the spec on {hardware} overrides the measured one"


def describe_routes(cases: int, unit: str, run: str) -> str:
    """Return the origin of recorded routes."""
    return f"execution paths of {cases:,} {unit} that the gates were not tuned on, from {run}"


def describe_idle(share: float, unit: str) -> str:
    """Return the fraction of cases that no model evaluates."""
    return f"{share * 100:.0f} % of the {unit} need no model and are answered at once"


def describe_cascade_latency(stages: Sequence[str], total: int, rows_per_call: int) -> str:
    """Return which stages have the latency that the cascade measured."""
    names = "all stages" if len(stages) == total else join_names(stages)
    return f"{names}: measured by the cascade at {rows_per_call:,} rows per call; unfold profile measures small batches"


def describe_unused_models(models: Sequence[str], unit: str) -> str:
    """Return the models of a cascade that no case reaches."""
    return f"{join_names(models)}: reached by no {unit.removesuffix('s')}"


# no plan


def describe_no_plan(slo_s: float, *, is_proven: bool) -> str:
    """Return the headline of an infeasible problem."""
    start = "no plan meets" if is_proven else "no plan found within search.limit for"
    return f"{start} {format_slo(slo_s)}"


def describe_binding_quotas(quotas: Sequence[tuple[str, int]]) -> str:
    """Return the quotas that prevent a plan, and the replicas that would be required."""
    noun = "quotas" if len(quotas) > 1 else "quota"
    names = " and ".join(name for name, _ in quotas)
    counts = " and ".join(str(count) for _, count in quotas)
    return f"{noun} of {names}: {counts} required"


def describe_binding_stage(stage: str, hardware: str, stage_s: float, others_s: float) -> str:
    """Return the stage that takes most of the unavoidable time."""
    duration, remainder = format_latency(stage_s), format_latency(others_s)
    return f"{stage}: {duration} for one query on its fastest hardware ({hardware}); the other stages need {remainder}"


def describe_relaxation(
    relaxed: tuple[float, float] | None, quotas: Sequence[tuple[str, int]], stage: str, room_s: float
) -> str:
    """Return what would admit a plan.

    Args:
        relaxed: A target in seconds and the $/h of its plan, if one is known.
        quotas: Quotas that would suffice.
        stage: The slowest stage.
        room_s: The time that the target leaves for it.
    """
    parts = []
    if relaxed is not None:
        parts.append(f"{format_slo(relaxed[0])} for ${relaxed[1]:,.2f}/h")
    if quotas:
        parts.append(" and ".join(f"a {name} quota of {count}" for name, count in quotas))
    else:
        parts.append(f"{stage} faster than {format_latency(room_s)}" if room_s > 0 else "every stage faster")
    return ", or ".join(parts)


def describe_stopped_search(queries: float) -> str:
    """Return that the search was stopped by its limit."""
    return f"stopped after {queries:,.0f} simulated queries; a higher search.limit may find a plan"


def describe_known_plan(slo_s: float, hourly_cost: float) -> str:
    """Return a relaxed target with a known plan."""
    return f"for {format_slo(slo_s)}: ${hourly_cost:,.2f}/h"


# check of a committed plan


def describe_recheck(
    slo_s: float, tail_s: float, *, misses_slo: bool, violations: str, excess: str, failed_loss: str = ""
) -> str:
    """Return the headline of a check: the first reason for a no, or that the target is met."""
    target = f"{format_slo(slo_s)}: {format_latency(tail_s)}"
    if misses_slo:
        return f"on the new traffic the committed plan misses {target}"
    if violations:
        return f"the committed plan exceeds a quota: {violations}"
    if failed_loss:
        return f"on the new traffic {failed_loss}"
    if excess:
        return f"the envelope of the committed plan is {excess}"
    return f"on the new traffic the committed plan meets {target}"


def describe_quota_violations(violations: Sequence[tuple[str, int, int]]) -> str:
    """Return hardware, used replicas and quota of each violation."""
    return " · ".join(f"{used} {name} used, the quota is {quota}" for name, used, quota in violations)


def describe_excess(start_s: float, queries: int, window_s: float, planned: int) -> str:
    """Return the first window in which more queries arrive than planned."""
    window = format_latency(window_s)
    return f"first exceeded at {start_s:.3f} s: {queries} queries in {window}, planned for {planned}"


def describe_price_change(cost: float, committed_cost: float) -> str:
    """Return the cost of a committed plan at current prices."""
    return f"${cost:,.2f}/h at current prices, ${committed_cost:,.2f}/h when planned; another plan may be cheaper now"


# simulated replay


def describe_attainment(
    attainment: float, slo_s: float, hourly_cost: float, rule: str, replicas: tuple[int, int]
) -> str:
    """Return the headline of a simulated replay; ``replicas`` are the fewest and the most of all stages together."""
    low, high = replicas
    counts = f"{low:,} to {high:,} replicas" if low < high else format_count(high, "replica")
    served = f"{attainment * 100:.2f} % within {format_latency(slo_s)}"
    return f"{served} at ${hourly_cost:,.2f}/h, with {counts} (rule: {rule})"


def describe_activation(delay_s: float, source: str) -> str:
    """Return how soon an ordered replica serves; ``source`` is that of ``TunerSettings``."""
    origin = {"measured": " (measured)", "default": " (assumed; unfold serve measures it)"}.get(source, "")
    return f"replicas serve {delay_s:.3g} s after the order{origin}"


def describe_shedding() -> str:
    """Return that late queries are shed."""
    return "queries that cannot meet their deadline are shed"


def describe_settings(margin: float, hold_s: float, *, has_floor: bool) -> str:
    """Return the settings of the table rule."""
    return f"margin {margin:g}, hold {hold_s:g} s, {describe_floor(has_floor=has_floor)}"


def describe_floor(*, has_floor: bool) -> str:
    """Return whether replicas never fall below the plan."""
    return "floor" if has_floor else "no floor"


def describe_unit_settings(batch: int, headroom: float, window_s: float, hold_s: float) -> str:
    """Return the settings of AutoScale's rule on coarse-grained units."""
    return f"batch {batch}, headroom {headroom:.2f}, window {window_s:g} s, hold {hold_s:g} s"


def describe_ray_serve_settings(target: float, upscale_s: float, downscale_s: float) -> str:
    """Return the settings of Ray Serve's policy."""
    return f"target {target:g}, up after {upscale_s:g} s, down after {downscale_s:g} s"


def describe_knative_settings(utilization: float, window_s: float) -> str:
    """Return the settings of Knative's policy."""
    return f"target utilization {utilization:g}, window {window_s:g} s"


def describe_shared_quotas(quotas: Sequence[tuple[str, int]]) -> str:
    """Return the quotas that limit every rule."""
    return f"{' · '.join(f'{name}: {quota}' for name, quota in quotas)} over all stages, shared in proportion to demand"


def describe_refusals(refused: float, bound_s: float) -> str:
    """Return the fraction of queries that a service refuses because they would wait beyond the bound."""
    share = f"{refused * 100:.3g} % of the queries are refused (429)"
    return f"{share}: their answers would come after {format_latency(bound_s)}, four times the target"


def describe_comparison(miss_rate: float, other_miss_rate: float, cost_ratio: float) -> str:
    """Return misses and cost relative to another rule, because a ratio of misses alone is meaningless."""
    return f"misses {miss_rate * 100:.3f} % against {other_miss_rate * 100:.3f} %, at {cost_ratio:.2f} times its price"


# measured replay and profile


def describe_measured_replay(queries: int, engine: str, attainment: float, slo_s: float, lost: int) -> str:
    """Return the headline of a replay on running replicas."""
    within = f"{attainment * 100:.2f} % within {format_latency(slo_s)}"
    return f"{queries:,} queries replayed on {engine}, {within}, {lost} lost"


def describe_replicas(counts: Sequence[tuple[str, int, int]]) -> str:
    """Return planned and final replicas of each stage."""
    return " · ".join(f"{stage} {planned} planned, {final} at the end" for stage, planned, final in counts)


def describe_speed(factors: Sequence[tuple[str, float]]) -> str:
    """Return the measured batch time of each stage over that in the plan."""
    return f"measured over planned batch time: {' · '.join(f'{stage} {factor:.2f}' for stage, factor in factors)}"


def describe_branch(stage: str, planned: float, measured: float) -> str:
    """Return that a condition lets through another fraction of the queries than a plan assumes."""
    return (
        f"{stage}: its condition lets through {measured * 100:.3g} % of the queries, but the plan assumes "
        f"{planned * 100:.3g} %; the fractions in after are those of the plan"
    )


def describe_core_shortage(busy: float, cores: int) -> str:
    """Return that replicas shared cores, although a plan assumes a core for each."""
    return f"replicas can keep {busy:.3g} cores busy, and this machine has {cores}; the plan assumes a core for each"


def describe_drawn_routes(stages: Sequence[str]) -> str:
    """Return that a replay on running replicas follows the plan's fractions, where a service tests conditions."""
    return f"drawn with the fractions in after; the conditions of {', '.join(stages)} are tested by unfold serve only"


def describe_other_hardware(planned: str, place: str) -> str:
    """Return that a stage is served elsewhere than on the hardware that the plan pays for."""
    return f"the plan places it on {planned}, and it runs on {place}: latencies and prices differ from the plan"


def describe_profile(fresh: int, stages: int, hardware: str, folder: str) -> str:
    """Return the headline of a profile."""
    return f"measured {fresh} of {stages} stages on this machine ({hardware} in the spec) · saved in {folder}"


def describe_faster_batch(stage: str, batch: int) -> str:
    """Return that a batch was faster than a smaller one."""
    return f"{stage}: a batch of {batch} was faster than a smaller one, because of noise or caching"


def describe_spec_latency(stages: Sequence[str], hardware: str) -> str:
    """Return which profiles the planner ignores, and how to use them."""
    return f"{join_names(stages)}: plans use the latency of the spec on {hardware}; remove it to use the profile"


def describe_replay_figure(rule: str) -> str:
    """Title the figure of a replay: the scaling rule that it shows."""
    return f"Arrivals, replicas and misses over time: the rule {rule}, and tuned baselines"


# an existing deployment


def describe_proposal(rate: float, age_s: float, changes: int) -> str:
    """Return the headline of a dry run: the demand, and how many stages would change."""
    demand = f"{rate:.3g} queries/s as of {format_duration(age_s)} ago"
    if not changes:
        return f"{demand}: no replica count would change"
    return f"{demand}: {format_count(changes, 'stage')} would change now"


def describe_limits(add: int, remove: int, every_s: float) -> str:
    """Return the bounds of one decision."""
    return f"every {format_duration(every_s)}, at most {add:,} added and {remove:,} removed per stage"


def describe_paused(stages: Sequence[str]) -> str:
    """Return that workloads with zero replicas stay as they are."""
    return f"zero replicas are left alone: {join_names(stages)}"
