"""Every sentence of a report on LLM engines, so that one reader can edit the English in one sitting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unfold_pipeline.engine.step_times.interval import StepInterval
from unfoldkit.api import format_count, format_duration

SOURCES = {
    "tables": "operator tables",
    "profile": "an operator profile of this GPU",
    "runs": "your own benchmark runs",
    "endpoint": "a profile of the running engine",
    "roofline": "the data sheet alone",
}
MEASURED_PRECISIONS = frozenset({"bf16", "fp8"})
"""Precisions of the weights in the runs that intervals rest on."""
MEASURES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "latency"}
NO_PREFIX = "none: the trace records no prompts that repeat"
UNPROVEN = "the search ended at search.limit: a cheaper plan may exist"
UNPREDICTED = "at low load, tails longer than simulated are normal: drift of host and client is not simulated"

PRICE_LOW, PRICE_HIGH = "price, if engines are faster than predicted", "price, if they are slower"
"""Labels of the prices of the plans at both ends of the prediction."""
LEFT_OUT = "left out of the trace"
"""Label of the requests that a trace has and a report has not."""
LATENCY_LABELS = {
    "ttft": "time to first token (TTFT), p99",
    "tpot": "time per output token (TPOT), p99",
    "latency": "whole answer, p99",
}


def format_seconds(seconds: float) -> str:
    """Return seconds as text."""
    return format_duration(seconds, style="latency") if math.isfinite(seconds) else "endless"


def describe_targets(ttft_s: float, tpot_s: float, latency_s: float) -> str:
    """Return the targets in words."""
    pairs = (("TTFT", ttft_s), ("TPOT", tpot_s), ("latency", latency_s))
    return ", ".join(f"p99 {name} ≤ {format_seconds(value)}" for name, value in pairs if math.isfinite(value))


def describe_plan(hourly_cost: float, replicas: int, gpus: int, hardware: str, stages: int = 0) -> str:
    """Return the headline of a plan."""
    around = f" and {format_count(stages, 'stage')} around them" if stages else ""
    engines = f"{format_count(replicas, 'engine')} on {format_count(gpus, 'GPU')} ({hardware}){around}"
    return f"${hourly_cost:,.2f}/h: {engines}"


def describe_fresh_share(kept: int, draws: int, lower_bound: float) -> str:
    """Return on how many fresh samples of a trace engines meet their targets."""
    more = "; tighter targets leave more room" if kept < draws else ""
    return (
        f"the targets are met on {kept} of {draws} fresh samples of this traffic, at least {lower_bound * 100:.0f} % "
        f"of all with 90 % certainty{more}"
    )


def describe_low_share(headline: str, kept: int, draws: int) -> str:
    """Return the headline of a plan that meets its targets on this sample rather than on others."""
    return f"{headline}; on this sample, but only on {kept / draws * 100:.0f} % of fresh samples"


def describe_unbounded_wait(ttft_s: float) -> str:
    """Return how long requests wait where no target bounds it."""
    return f"no target bounds the wait for the first token: p99 {format_seconds(ttft_s)}"


def describe_split(before_s: float, engine_s: float, after_s: float) -> str:
    """Return how much of the latency the stages around an engine take."""
    return (
        f"p99 {format_seconds(before_s)} before the engine, {format_seconds(engine_s)} inside to the first token, "
        f"{format_seconds(after_s)} after the last"
    )


def describe_pools(hourly_cost: float, prefill: int, decode: int, gpus: int) -> str:
    """Return the headline of a plan of two pools."""
    engines = f"{format_count(prefill, 'prefill engine')} and {format_count(decode, 'decode engine')}"
    return f"${hourly_cost:,.2f}/h: {engines}, {format_count(gpus, 'GPU')}"


def describe_pool_transfer(p99_s: float, bytes_per_s: float, latency_s: float, token_bytes: float) -> str:
    """Return what sending KV caches takes, and what that rests on."""
    link = f"{bytes_per_s / 1e9:,.4g} GB/s a GPU and {format_seconds(latency_s)} as stated"
    return f"p99 {format_seconds(p99_s)} from the prompt to decoding: {token_bytes / 1024:,.0f} KiB a token, {link}"


def describe_other_plan(hourly_cost: float, engines: str, ttft_s: float, tpot_s: float) -> str:
    """Return what the cheapest plan of the other kind costs and reaches."""
    latencies = f"p99 TTFT {format_seconds(ttft_s)}, TPOT {format_seconds(tpot_s)}"
    return f"not cheaper: ${hourly_cost:,.2f}/h for {engines}, {latencies}"


def describe_engines(replicas: int, hardware: str, tensor_parallel: int, role: str = "") -> str:
    """Return engines of one kind."""
    return f"{replicas} × {hardware} tp{tensor_parallel}{f' for {role}' if role else ''}"


def describe_no_pools(*, is_complete: bool) -> str:
    """Return that no two pools meet the targets."""
    if is_complete:
        return "no pools of prefill and decode engines meet the targets"
    return "the search for pools ended at its limit without a plan"


def describe_pool_replay(attainment: float, targets: str, cost: float) -> str:
    """Return the headline of a replay on two pools."""
    return f"{attainment * 100:.2f} % of the requests within {targets} at ${cost:,.2f}/h on pools of constant size"


def describe_pool_limits() -> str:
    """Return what the simulation of two pools leaves out."""
    return (
        "a prefill engine frees its blocks at the end of a prompt, not of the transfer; a transfer does not wait for "
        "room on the decode engine"
    )


def describe_no_plan(targets: str) -> str:
    """Return the headline of a problem without a plan."""
    return f"no choice of engines meets {targets}"


def describe_no_sure_plan(targets: str, confidence: float) -> str:
    """Return the headline of a problem without a plan at the upper end of the interval."""
    return f"no choice of engines meets {targets} at {confidence * 100:.4g} % confidence"


def describe_nodes(nodes: int, hardware: str, gpus: int, used: int, spare_engines: int) -> str:
    """Return the nodes to rent, and the GPUs that are left and what they would serve."""
    rented = f"{format_count(nodes, f'{hardware} node')} of {gpus} GPUs"
    spare = nodes * gpus - used
    if not spare:
        return f"{rented}, all in use"
    more = f", or for {format_count(spare_engines, 'more engine')} at the same price" if spare_engines else ""
    return f"{rented}, {format_count(spare, 'GPU')} left for other work{more}"


def describe_by_gpu(cost: float, hardware: str, replicas: int, tensor_parallel: int) -> str:
    """Return the cheapest plan if GPUs were rented one by one."""
    return f"${cost:,.2f}/h if GPUs were rented one by one: {replicas} × {hardware} tp{tensor_parallel}"


def describe_interval(source: str, groups: int, low: float, high: float, confidence: float, precision: str) -> str:
    """Return how wrong step times may be, and what that rests on."""
    origin = SOURCES[source]
    factor = f"× {low:.2f} to × {high:.2f} at {confidence * 100:.4g} %"
    if source in ("runs", "endpoint"):
        return f"{origin}: {factor} for this engine"
    if precision not in MEASURED_PRECISIONS:
        return f"{origin}: {factor}; none of the {groups} measured groups has {precision} weights"
    return f"{origin}, {groups} measured groups: {factor}; with so few groups, a rough guide only"


def describe_window(window: int, window_layers: int, layers: int, *, is_pool: bool = False) -> str:
    """Return how layers with a window are simulated."""
    attending = f"{window_layers:,} of {layers:,} layers attend to {window:,} tokens"
    kept = "keep their whole context, as vLLM does with a KV connector" if is_pool else "free the blocks before them"
    return f"{attending} and {kept}; their attention takes as long as that of a context with as many pairs of tokens"


def describe_left_out(left_out: int, used: int) -> str:
    """Return how many requests of a trace are not in the report, and why."""
    total = f"{left_out:,} of {format_count(used + left_out, 'request')}"
    return f"{total}: no generated tokens, so they failed or were not answered; their prompts are not simulated"


def describe_table_ends(interval: StepInterval, peak_tokens: int, peak_running: int) -> str:
    """Return at which sizes the steps of a plan are extrapolated; empty if the tables hold all of them.

    Args:
        interval: Where the tables end.
        peak_tokens: Most tokens in the KV cache of an engine.
        peak_running: Most requests that run on an engine.
    """
    ends = []
    for end in interval.ends:
        reached = peak_running if end.size == "requests" else end.needed
        if reached > end.measured:
            ends.append(f"{end.operator} at {end.size} {end.measured:,}, {reached:,} reached")
    if 0 < interval.decode_tokens < peak_tokens:
        ends.append(f"decodes at {interval.decode_tokens:,} tokens in a step, {peak_tokens:,} reached")
    return f"tables end: {'; '.join(ends)}; larger steps are extrapolated" if ends else ""


def describe_endpoint(stage: str, requests: int, fresh: int) -> str:
    """Return the headline of a profiled engine."""
    stored = f", {format_count(requests - fresh, 'other')} were stored" if fresh < requests else ""
    return f"step times of {stage} fitted to {format_count(fresh, 'request')} of a running engine{stored}"


def describe_endpoint_steps(step_s: float, context: float, budget: int, full_s: float) -> str:
    """Return the durations of the smallest and of the largest step."""
    small, large = format_seconds(step_s), format_seconds(full_s)
    return (
        f"a step of 1 token takes {small} with {context:,.0f} tokens before it, one of {budget:,} prompt tokens {large}"
    )


def describe_endpoint_front(front_s: float) -> str:
    """Return the measured part of TTFT that passes before the engine."""
    return f"client, HTTP and tokenizer take {format_seconds(front_s)} of each TTFT"


def describe_endpoint_fit(within: float) -> str:
    """Return how well the fitted step times describe the measurements."""
    return f"90 % of the measured TTFT and TPOT are simulated within {within * 100:.0f} %"


def describe_endpoint_range(longest_prompt: int, peak_streams: int) -> str:
    """Return up to which prompt length and number of streams a profile measured."""
    streams = format_count(peak_streams, "stream")
    return f"measured up to prompts of {longest_prompt:,} tokens and {streams}; beyond, steps are extrapolated"


def describe_contention(processes: int, decode: float, prefill: float) -> str:
    """Return how much slower steps are with all processes at once."""
    return (
        f"with {processes} processes at the same time, decodes take {decode:.2f} times and prompts {prefill:.2f} times "
        "as long; plans use the number of busy processes"
    )


def describe_price_range(low: float | None, high: float | None) -> str:
    """Return the price at both ends of the interval."""
    texts = ["no plan" if cost is None else f"${cost:,.2f}/h" for cost in (low, high)]
    return f"{texts[0]} if steps are as fast as the interval allows, {texts[1]} if as slow"


def describe_profile_value(low: float | None, high: float | None, *, is_measured: bool) -> str:
    """Return what measuring the engine, or measuring it for longer, would decide."""
    is_decided = low is not None and low == high
    if is_measured:
        if is_decided:
            return "both ends cost the same: more measurements would not change the price"
        return "the two ends differ: measurements of this engine closer to the planned load would decide"
    if is_decided:
        return "both ends cost the same: measuring the engine would not change the price"
    return "the two ends differ: benchmark runs of this engine (steps: runs) would decide between them"


def describe_kv(peak_share: float, preemptions: int, tokens: int, *, is_measured: bool) -> str:
    """Return the use of the KV cache."""
    origin = "measured" if is_measured else "estimated from memory"
    cache = f"{tokens:,} tokens an engine, {origin}"
    return f"{cache}; at most {peak_share * 100:.0f} % of one in use, {format_count(preemptions, 'preemption')}"


def describe_prefix(hit_share: float) -> str:
    """Return the prompt tokens that the prefix cache holds."""
    return f"{hit_share * 100:.0f} % of the prompt tokens, by the prefixes that the trace records"


def describe_steps(prefill_share: float, peak_running: int) -> str:
    """Return what the steps of the engines did."""
    return f"{prefill_share * 100:.0f} % of the steps hold prefill; at most {peak_running} requests run on an engine"


def describe_large_requests(
    count: int, total: int, tokens: int, token_share: float, prices: tuple[float | None, float]
) -> str:
    """Return that a few requests drive the price: of the plan with all requests and without those."""
    price, without = prices
    saved = f"without them, the plan costs ${without:,.2f}/h"
    saved += ", and with them there is none" if price is None else f" instead of ${price:,.2f}/h"
    size = f"{count:,} of {format_count(total, 'request')}, with {tokens:,} tokens or more each,"
    held = f"hold {token_share * 100:.0f} % of all tokens"
    return f"{size} {held}; {saved}: limit their size, or serve them with a separate pipeline"


def describe_refusal(
    hardware: str, tensor_parallel: int, replicas: int, obstacle: str, value_s: float, budget: int | None = None
) -> str:
    """Return why a cheaper candidate is refused, at the token budget with which it misses least."""
    engines = describe_engines(replicas, hardware, tensor_parallel)
    at = "" if budget is None else f" at best, with max_num_batched_tokens {budget:,}"
    return f"{engines}: p99 {MEASURES[obstacle]} {format_seconds(value_s)}{at}"


def describe_excluded(hardware: str, tensor_parallel: int, obstacle: str, value_s: float) -> str:
    """Return why no number of engines of an option is enough."""
    return f"{hardware} tp{tensor_parallel}: {MEASURES[obstacle]} of a single request is {format_seconds(value_s)}"


def describe_too_small(options: Sequence[tuple[str, int]]) -> str:
    """Return the options with memory that does not hold the model with the longest request."""
    names = ", ".join(f"{hardware} tp{parallel}" for hardware, parallel in options)
    return f"{names}: too little memory for the model and the longest request"


def describe_search(simulations: int, requests: int) -> str:
    """Return the effort of the search."""
    return f"{format_count(simulations, 'simulation')}, {requests:,} completed requests; no choice is cheaper"


def describe_front(front_s: float, tail: float) -> str:
    """Return what is added to the engine's own times."""
    tails = f"; tails × {tail:g} above the median" if tail > 1 else ""
    if not front_s:
        return f"client, HTTP and tokenizer are assumed to take no time; measure it and set engine.front{tails}"
    return f"{format_seconds(front_s)} of client, HTTP and tokenizer are added to every request{tails}"


def describe_recheck(targets: str, *, meets: bool, excess: str) -> str:
    """Return the headline of a check of a committed plan."""
    if not meets:
        return f"on the new traffic the committed plan misses {targets}"
    if excess:
        return f"the committed plan meets {targets}, but {excess}"
    return f"on the new traffic the committed plan meets {targets}"


def describe_token_excess(kind: str, window_s: float, tokens: int, planned: int) -> str:
    """Return the first window with more tokens than planned."""
    return f"{tokens:,} {kind} tokens in {format_seconds(window_s)} exceed the planned {planned:,}"


def describe_replay(attainment: float, targets: str, cost: float, rule: str) -> str:
    """Return the headline of a simulated replay."""
    return f"{attainment * 100:.2f} % of the requests within {targets} at ${cost:,.2f}/h (rule: {rule})"


def describe_routing(engines: int, replicas: int, routing: str) -> str:
    """Return what a service routes to."""
    planned = "" if replicas == engines else f"; the plan has {replicas:,}"
    return f"{format_count(engines, 'running engine')} by {routing.replace('_', ' ')}{planned}"


def describe_local_service(replicas: int, most: int, routing: str) -> str:
    """Return the processes that a service starts."""
    growth = f", up to {most:,} by the traffic" if most > replicas else ""
    return f"{format_count(replicas, 'llama.cpp process')}{growth}, by {routing.replace('_', ' ')}"


def describe_running_stages(names: Sequence[str], numbers: int) -> str:
    """Return what a request passes beside the engines, and what the stages read."""
    return f"every request passes {', '.join(names)}, which read its key x: a list of {format_count(numbers, 'number')}"


def describe_local_engines(replicas: int, start_s: float, replaced: int) -> str:
    """Return what happened to the processes of a replay."""
    deaths = f"; {format_count(replaced, 'process')} replaced after ending early" if replaced else ""
    started = format_count(replicas, "llama.cpp process")
    return f"{started} at the start, ready within {format_seconds(start_s)}{deaths}"


def describe_scaled_estimate() -> str:
    """Return what the estimate next to a measurement with a changing number of engines simulates."""
    return "the same requests simulated on the engines that took requests, with the tokens that were counted"


def describe_measured_replay(attainment: float, targets: str, engines: int, failures: int, prefill: int = 0) -> str:
    """Return the headline of a trace that was replayed on running engines; ``prefill`` of them compute prompts only."""
    failed = f", {failures:,} failed" if failures else ""
    names = f"{prefill:,} prefill and {format_count(engines, 'decode engine')}" if prefill else ""
    names = names or format_count(engines, "engine")
    return f"{attainment * 100:.2f} % of the requests within {targets} on {names}{failed}"


def describe_estimate(replicas: int, engines: int, hardware: str, tensor_parallel: int) -> str:
    """Return what the estimate next to a measurement simulates."""
    planned = "" if replicas == engines else f"; the plan has {replicas:,}"
    simulated = describe_engines(engines, hardware, tensor_parallel)
    return f"the same requests simulated on {simulated}, with the tokens that were counted{planned}"


def describe_pool_estimate(prefill: str, decode: str) -> str:
    """Return what the estimate next to a measurement of two pools simulates."""
    return f"the same requests simulated on {prefill} and {decode}, with the tokens that were counted"


def describe_hand_over(local_prompts: int, requests: int) -> str:
    """Return how many prompts a decode engine computed."""
    if not local_prompts:
        return f"all {format_count(requests, 'prompt')} were computed by prefill engines"
    prompts = f"{local_prompts:,} of {format_count(requests, 'prompt')}"
    return f"{prompts} were computed by decode engines, because no prefill engine computed them"


def describe_pool_routing(running: tuple[int, int], planned: tuple[int, int]) -> str:
    """Return what a service of two pools routes to; numbers are of prefill and of decode engines."""
    prefill, decode = running
    other = "" if running == planned else f"; the plan has {planned[0]:,} and {planned[1]:,}"
    names = f"{format_count(prefill, 'running prefill engine')}, then {format_count(decode, 'running decode engine')}"
    return f"{names}, in turn{other}"


def describe_measured_interval(low: float, high: float, within: int, statistics: int) -> str:
    """Return how many measured figures lie between both ends of the interval of the step times."""
    ends = f"step times × {low:.2f} to × {high:.2f}"
    return f"{within} of {statistics} measured figures lie between the estimates at both ends, {ends}"


def describe_prompts(lateness_s: float, cached_share: float) -> str:
    """Return how the trace was sent, and which prompt tokens the engines took from a cache anyway."""
    cached = f"; {cached_share * 100:.0f} % of their tokens came from a prefix cache" if cached_share >= 0.005 else ""
    return f"random words with the lengths of the trace, sent at most {format_seconds(lateness_s)} late{cached}"


def describe_calibration(margin: float | None, hold_s: float | None) -> str:
    """Return the settings of the rule in charge, or that the plan's engines are kept."""
    if margin is None or hold_s is None:
        return "on the traffic of the plan no envelope rule meets the targets for less: its engines are kept"
    return (
        f"margin {margin:g} and hold {format_seconds(hold_s)}, the cheapest that meet the targets on the plan's traffic"
    )


def describe_autoscaling(start_s: float) -> str:
    """Return how engines start and stop in a replay."""
    return f"engines take {format_seconds(start_s)} to start (engine.start), and finish their requests before they stop"


def describe_replayed_engines(replicas: int, hardware: str, tensor_parallel: int, budget: int, max_seqs: int) -> str:
    """Return the engines of the plan that a replay begins with."""
    limits = f"max_num_batched_tokens {budget:,}, max_num_seqs {max_seqs:,}"
    return f"{describe_engines(replicas, hardware, tensor_parallel)} of the plan at the start, {limits}"


def describe_no_fixed_peak(most: int, obstacle: str, value_s: float) -> str:
    """Return why no constant number of engines meets the targets of a trace."""
    if most:
        reason = f"with {most:,}, p99 {MEASURES[obstacle]} is {format_seconds(value_s)}"
    else:
        reason = f"{MEASURES[obstacle]} of a single request is already {format_seconds(value_s)}"
    return f"no number of these engines meets the targets: {reason}"


def describe_hindsight(cost: float, ruling_cost: float, engine_hours: float, slot_s: float) -> str:
    """Return the cost of a schedule with perfect knowledge at the attainment of the rule in charge."""
    excess = f"; the rule costs {(ruling_cost / cost - 1) * 100:,.0f} % more" if 0 < cost < ruling_cost else ""
    return (
        f"${cost:,.2f}/h and {engine_hours:,.2f} engine-hours miss no more requests if engines are ready in time and "
        f"their number changes every {format_seconds(slot_s)}{excess}"
    )
