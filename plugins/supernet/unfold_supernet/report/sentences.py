"""Every sentence that a user of the kind ``supernet`` reads in a report, so that one reader can edit the English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_supernet._types import Task
from unfold_supernet.accelerator.hardware import Accelerator, EnergyModel
from unfold_supernet.scheduling.engines import Engine
from unfold_supernet.study.strategies import Strategy
from unfoldkit.api import format_bytes, format_count, format_names

MAX_LISTED = 3
"""Subnets that a sentence names."""
MAX_RESIDENT = 8
"""Members of a list that a sentence names; the table has them all."""

ASK_FOR_TRAINING = "Is every size in this one set of weights worth having, and is the goal met?"
ASK_FOR_STUDY = "Does a cache of shared weights save time on this accelerator?"
ASK_FOR_REPLAY = "Are requests answered in time, and how accurately?"


def format_percent(fraction: float) -> str:
    """Format a fraction as a percentage; what rounds to zero has no sign."""
    return f"{round(fraction * 100, 1) + 0.0:.1f} %"


def format_bandwidth(bytes_per_second: float) -> str:
    """Format a bandwidth in GB/s."""
    return f"{bytes_per_second / 1e9:g} GB/s"


# The accelerator study.


def name_source(source: str) -> str:
    """Name what a cached subgraph was cut from: the weights of all subnets, a subnet, or those common to two."""
    if source == "core":
        return "the common weights"
    return f"the weights common to {' and '.join(source.split('∩'))}" if "∩" in source else f"subnet {source}"


def name_strategy(strategy: Strategy, every: int, batch: int, core_bytes: int) -> str:
    """Name a strategy for the tables of a study."""
    names = {
        Strategy.EMPTY: "no cache",
        Strategy.STATIC: "static cache",
        Strategy.AVGNET: f"avgnet, every {every}",
        Strategy.LEAST_LATENCY: f"least-latency, every {every}",
        Strategy.AVGNET_ALL_ORDERS: "avgnet, all fill orders",
        Strategy.LEAST_LATENCY_PASSING: "least-latency, refilled in passing",
        Strategy.EMPTY_BATCHED: f"no cache, batches of {batch}",
        Strategy.STATIC_BATCHED: f"static cache, batches of {batch}",
        Strategy.ENTIRE_CORE: f"all common weights cached ({format_bytes(core_bytes)})",
    }
    return names[strategy]


def describe_static_cache(cached_bytes: int, source: str) -> str:
    """Describe the subgraph that is cached throughout; the start of a headline."""
    return f"caching {format_bytes(cached_bytes)} of {name_source(source)}"


def describe_adaptive_cache(buffer_bytes: int, keep: str, every: int) -> str:
    """Describe a cache that follows the queries; the start of a headline."""
    interval = "after each query" if every == 1 else f"every {every} queries"
    return f"a {format_bytes(buffer_bytes)} cache chosen by {keep} {interval}"


def state_latency_saving(cache: str, traffic: float, latency: float, latency_fair: float) -> str:
    """State what a cache saves of traffic and latency."""
    saving = f"{cache} saves {format_percent(traffic)} of the traffic"
    if _is_loss(latency):
        return f"{saving} but adds {format_percent(-latency)} latency"
    return f"{saving} and {format_percent(latency)} of the latency ({_state_fair(latency_fair)} with deep prefetch)"


def _is_loss(fraction: float) -> bool:
    # what rounds to zero is no loss
    return round(fraction * 100, 1) < 0


def _state_fair(fraction: float) -> str:
    return f"adds {format_percent(-fraction)}" if _is_loss(fraction) else format_percent(fraction)


def state_accuracy_gain(cache: str, traffic: float, points: float, points_fair: float) -> str:
    """State the accuracy that a cache gains at equal deadlines, because saved time goes into larger subnets."""
    gain = f"{points:+.2f} accuracy points at equal deadlines ({points_fair:+.2f} with deep prefetch)"
    return f"{cache} gives {gain} and saves {format_percent(traffic)} of the traffic"


def describe_queries(count: int, pattern: str, file: str) -> str:
    """Describe the query stream."""
    return f"queries of {file}" if file else f"{count:,} {pattern} queries"


def describe_cached_layers(cached_bytes: int, layers: int, source: str, order: str) -> str:
    """Describe the size and origin of the cached subgraph."""
    criteria = {
        "stall": "most stall per byte first",
        "reuse": "least reuse per byte first",
        "front": "first layers first",
        "back": "last layers first",
    }
    size = f"{format_bytes(cached_bytes)} in {format_count(layers, 'layer')}"
    return f"{size}, cut from {name_source(source)}, {criteria[order]}"


def state_adaptive_gain(strategy: str, gain: float) -> str:
    """State what the best adaptive cache saves beyond the static one."""
    effect = f"adds {format_percent(-gain)} to" if _is_loss(gain) else f"saves {format_percent(gain)} of"
    return f"{strategy}: {effect} the latency of the static cache"


def state_energy_saving(traffic: float, total: float) -> str:
    """State the energy saved off chip and in total."""
    return f"saves {format_percent(traffic)} off chip (as traffic), {format_percent(total)} in total"


def state_accuracy_points(points: float, points_fair: float) -> str:
    """State the accuracy gained at equal deadlines."""
    return f"{points:+.2f} points at equal deadlines ({points_fair:+.2f} with deep prefetch)"


def describe_precision(machine: Accelerator) -> str:
    """Describe the bits of weights and activations, and a mismatch of the energy parameters."""
    bits = (
        f"{8 * machine.weight_bytes}-bit weights, {8 * machine.value_bytes}-bit activations; partial sums stay on chip"
    )
    matches = machine.energy.mac != EnergyModel().mac or machine.weight_bytes == machine.value_bytes == 1
    return bits if matches else f"{bits}; energy.mac is still that of INT8"


def list_study_notes(max_buffer: int | None, *, is_reference: bool) -> tuple[str, ...]:
    """List what a reader must know before quoting a figure of a study."""
    scale = " The accuracies are a scale, not measurements." if is_reference else ""
    return (
        f"All figures come from a model; no board was measured.{scale}",
        "Best: the subnet that gains most. Deep: with prefetching across layers.",
        "Without a cache, the dynamic buffer gets the bytes of the persistent buffer.",
        *(() if max_buffer is None else (explain_claim_buffer(max_buffer),)),
    )


def explain_claim_buffer(max_buffer: int) -> str:
    """Explain which buffer a published claim needs."""
    return f"Buffer of a claim: the smallest one of the sweep (up to {format_bytes(max_buffer)}) that reaches it."


def state_deadline_missed(family: str, deadline_ms: float) -> str:
    """State that no subnet meets the deadline."""
    return f"no subnet of {family} meets the deadline of {deadline_ms:g} ms"


def state_fastest_subnet(name: str, latency_ms: float, bottleneck: str) -> str:
    """State the fastest subnet and what limits it."""
    return f"the fastest subnet, {name}, takes {latency_ms:.2f} ms, mostly for {bottleneck}"


def state_compute_bound(compute_ms: float) -> str:
    """State the latency that no bandwidth can remove."""
    return f"computation takes {compute_ms:.2f} ms at any bandwidth"


def propose_deadline(deadline_ms: float, accuracy: float) -> str:
    """Propose the smallest deadline that a subnet meets."""
    return f"deadline {deadline_ms:.2f} ms for {accuracy:.1f} % accuracy"


# Training.


def name_score(task: Task) -> str:
    """Name the score by which members of a task are compared."""
    names: dict[Task, str] = {"classes": "accuracy", "labels": "macro AUROC", "values": "R²"}
    return names[task]


def name_constant(task: Task) -> str:
    """Name the constant that every member of a task must beat."""
    names: dict[Task, str] = {
        "classes": "always predicting the most common class of the test rows",
        "labels": "a constant probability for every label",
        "values": "always predicting the mean of the test rows",
    }
    return names[task]


def state_training(task: Task, count: int, low: float, high: float, front: int, gap: str) -> str:
    """State the result of a training; ``gap`` is empty without standalone models."""
    compared = f", {gap}" if gap else ""
    score = f"{high:.1f} % accurate" if task == "classes" else f"{high:.1f} % {name_score(task)}"
    return f"{count} subnets in one set of weights, {low:.1f} to {score}, {front} on the front by operations{compared}"


def state_useless_subnets(task: Task, names: Sequence[str], constant: float) -> str:
    """State which subnets do not beat the constant of their task."""
    verb = "does" if len(names) == 1 else "do"
    return f"{format_names(names, MAX_LISTED)} {verb} not significantly beat {name_constant(task)} ({constant:.1f} %)"


def state_no_growth(task: Task) -> str:
    """State that larger subnets are not significantly better than the smallest."""
    if task == "classes":
        return "no larger subnet is significantly more accurate than the smallest"
    return f"no larger subnet has a significantly higher {name_score(task)} than the smallest"


def state_missed_score(task: Task, bound: float, goal: float) -> str:
    """State by how much the family misses the goal of its score."""
    score = "accurate" if task == "classes" else name_score(task)
    return f"at least {bound:.1f} % {score} (95 %), {goal:g} % required"


def state_missed_sharing(bound: float, goal: float) -> str:
    """State by how much the weight-sharing gap may exceed its limit."""
    return f"sharing weights may cost {bound:.2f} points (95 %), {goal:g} allowed"


def advise_training(reason: str) -> str:
    """Advise which change most likely turns a no into a yes."""
    advice = {
        "useless": "raise training.epochs, lower training.rate, remove the smallest members, or use more test rows",
        "growth": "serve the smallest subnet alone, widen the network, or use more test rows (data.test)",
        "score": "raise training.epochs, widen the network, or lower the goal",
        "sharing": "raise training.epochs, remove the smallest members, or use more test rows (data.test)",
    }
    return advice[reason]


def state_constant(task: Task, constant: float) -> str:
    """State the score of the constant that every subnet must beat."""
    if task == "classes":
        return f"{name_constant(task)} is {constant:.1f} % accurate"
    article = "an" if task == "values" else "a"
    return f"{name_constant(task)} has {article} {name_score(task)} of {constant:.1f} %"


def state_view_cost(ratio: float) -> str:
    """State the cost of views of shared weights against contiguous copies."""
    return f"a batch of 32 takes up to {ratio:.2f}x the time of contiguous copies"


def state_no_gap() -> str:
    """State that weight sharing costs no accuracy."""
    return "no weight-sharing gap"


def state_gap(points: float) -> str:
    """State a significant weight-sharing gap."""
    return f"weight-sharing gap of at most {points:.2f} points"


def state_insignificant_gap(points: float, error: float) -> str:
    """State a weight-sharing gap that may be chance."""
    return f"no significant weight-sharing gap ({points:.2f} points, paired error {error:.2f})"


def rate_gap(*, is_significant: bool, points: float) -> str:
    """Rate a subnet against its standalone model."""
    if not is_significant:
        return "not significant"
    return "worse" if points > 0 else "better"


def describe_front(task: Task, names: Sequence[str]) -> str:
    """Describe the front of a family."""
    if len(names) == 1:
        return f"{names[0]}: no larger one is significantly better (95 %, paired)"
    better = "more accurate than" if task == "classes" else f"above the {name_score(task)} of"
    return f"{' < '.join(names)}: each significantly {better} the previous one (95 %, paired)"


MEMBERS_TITLE = "Which member answers when"
OTHER_MEMBERS, TOO_LATE = "other members", "late or dropped, by any member"
WAITS_FOR_MEMORY, WAITS_FOR_ARRAY = "layers that wait for memory", "layers that wait for the array"


def title_roofline(subnet: str) -> str:
    """Name the picture of a subnet's layers below the bounds of an accelerator."""
    return f"Layers of {subnet}: how fast they compute, and what bounds them"


def title_front(task: Task, *, shown: int, total: int) -> str:
    """Title the picture of the front."""
    score = name_score(task)
    title = f"{score[0].upper()}{score[1:]} by latency, 95 % intervals"
    return title if shown == total else f"{title}: the front and the compared members, {shown} of {total}"


def name_front_group(*, is_front: bool) -> str:
    """Name the group of a member in the picture of the front."""
    return "on the front by operations" if is_front else "other members"


def name_standalone_group() -> str:
    """Name the group of the standalone networks."""
    return "standalone networks"


def name_standalone(name: str) -> str:
    """Name the standalone network in the shape of a member."""
    return f"{name}, standalone"


def describe_steps(steps: Mapping[str, int], max_listed: int) -> str:
    """Describe the training steps by subnet; for many subnets, their minimum, median and maximum."""
    if len(steps) <= max_listed:
        return " · ".join(f"{name} {count:,}" for name, count in steps.items())
    ordered = sorted(steps.values())
    return f"{ordered[0]:,} to {ordered[-1]:,} a subnet, median {ordered[len(ordered) // 2]:,}"


def explain_switch(penalty_us: float) -> str:
    """Explain what a model switch costs: the first inference against the next one of the same subnet."""
    return f"the first inference after a switch takes {penalty_us:.1f} µs longer than the next one, under load"


def state_memory(shared_bytes: int, separate_bytes: int) -> str:
    """State the memory of the supernet against separate models."""
    return f"{shared_bytes / 1e3:.0f} kB with norm statistics, against {separate_bytes / 1e3:.0f} kB as separate models"


def list_files() -> str:
    """List the files that a training leaves."""
    return "family/ holds weights and norm statistics; subnets/ holds standalone models (safetensors, ONNX)"


def describe_search(count: int, measured: int, rank_correlation: float) -> str:
    """Describe a subnet search."""
    return f"{count:,} subnets, {measured:,} measured on held-out rows; rank correlation {rank_correlation:.2f}"


def describe_module(source: str, groups: int, attentions: int, skippable: int) -> str:
    """Describe which dimensions of a user's module are elastic."""
    parts = [f"{format_count(groups, 'group')} of channels"]
    parts += [f"the heads of {format_count(attentions, 'attention layer')}"] if attentions else []
    blocks = f"; {format_count(skippable, 'residual block')} can be skipped" if skippable else ""
    return f"{source}: {' and '.join(parts)} can be narrowed{blocks}"


def list_shared_parts(parts: Sequence[tuple[str, str]], others: int) -> str:
    """List the parts of a module that every member shares in full, with the reason."""
    listed = "; ".join(f"{path or 'the module'} ({reason})" for path, reason in parts)
    return f"{listed}; {others} more" if others else listed


def describe_precision_choice(
    chosen: Sequence[str], speedup: float | None, loss_bound: float, max_loss: float, rows: int
) -> str:
    """Describe which members are served in int8; the figures are those of the member where int8 does best."""
    if chosen:
        return f"int8 serves {', '.join(chosen)}: at most {loss_bound:.2f} points lost at 95 %, {speedup:.2f}x as fast"
    if speedup is None:
        return "all members stay in float32: ONNX Runtime cannot quantize them, or there are no validation rows"
    if loss_bound > max_loss:
        return (
            f"all members stay in float32: {rows:,} validation rows bound the loss at {loss_bound:.2f} points, "
            f"{max_loss:g} allowed"
        )
    return f"all members stay in float32: int8 is {speedup:.2f}x as fast on this machine"


def describe_engines(copied: Sequence[str], views: Sequence[str], speedups: Mapping[str, float]) -> str:
    """Describe which engine runs which subnets; the figures are the smallest speedup of ONNX Runtime where it runs."""
    parts = []
    if copied:
        speedup = min(speedups[name] for name in copied)
        parts.append(f"ONNX Runtime: {format_names(copied, MAX_LISTED)} (at least {speedup:.2f}x as fast as views)")
    if views:
        speedup = max(speedups[name] for name in views)
        parts.append(f"views: {format_names(views, MAX_LISTED)} (ONNX Runtime up to {speedup:.2f}x as fast)")
    return "; ".join(parts)


def state_demanded_engine(engine: Engine, needed_bytes: int) -> str:
    """State the engine that the spec demands, and its memory."""
    name = "ONNX Runtime" if engine == "onnx" else "torch on views"
    return f"{name} runs all subnets, as the spec demands, in {needed_bytes / 1e6:,.1f} MB"


def state_engine_memory(needed_bytes: int, too_large: Sequence[str]) -> str:
    """State the memory of the chosen engines, and which copies it does not hold."""
    text = f"{needed_bytes / 1e6:,.1f} MB for weights and sessions"
    return f"{text}; there is no room for a copy of {format_names(too_large, MAX_LISTED)}" if too_large else text


def note_busy_machine() -> str:
    """Note that latencies were measured beside other programs."""
    return "Other programs delayed the measurement of latencies. unfold serve measures them again at its start."


def note_delayed_members(names: Sequence[str]) -> str:
    """Note that models of a list were measured beside other programs."""
    text = f"Other programs delayed the measurement of {format_names(names, MAX_LISTED)}"
    return f"{text}. Run unfold profile again on an idle machine; it measures these again."


def list_member_files(task: Task) -> str:
    """List the files that the training of a module leaves, and what the ONNX models return."""
    outputs: dict[Task, str] = {
        "classes": "calibrated ONNX models",
        "labels": "ONNX models that return calibrated logits",
        "values": "ONNX models that return values in the unit of the targets",
    }
    return f"family/module.safetensors holds the weights; subnets/ holds {outputs[task]}"


def note_undefined_outputs(names: Sequence[str], max_listed: int) -> str:
    """Note the labels or values that take one value only in the test rows, and so have no score."""
    return f"No score, because constant in the test rows: {format_names(names, max_listed)}."


def title_outputs(task: Task, shown: int, total: int) -> str:
    """Title the table of scores by label or value; of many, it shows the worst."""
    title = "AUROC by label" if task == "labels" else "R² by value"
    return title if total <= shown else f"{title}, the {shown} of {total} that the largest member predicts worst"


def title_errors(shown: int, total: int) -> str:
    """Title the table of errors of real values."""
    return "errors by value" if total <= shown else f"errors by value, {shown} of {total}"


def note_unused_numbers(count: int) -> str:
    """Note that the numbers beside the inputs do not reach a user's module."""
    return f"The module receives only x. To use the {count} numbers in extra, write forward(self, x, extra)."


def state_missed_classes(names: Sequence[str], max_listed: int) -> str:
    """State which classes no subnet ever recognizes."""
    return f"No subnet recognizes any test row of class {format_names(names, max_listed)}."


def note_unnamed_group(name: str) -> str:
    """Warn that rows of one person are on both sides of the split."""
    text = f"Rows of one {name} are on both sides of the split. New ones may fare worse than stated here"
    return f"{text} (data: {{split: inter-patient, group: {name}}} keeps them apart)."


def note_leak(task: Task, columns: Sequence[str], target: str, score: float) -> str:
    """Warn that columns alone predict a target, as a copy of it would."""
    known = {"classes": "The class", "labels": f"Label {target}", "values": f"Value {target}"}[task]
    result = f"R² of {score:.2f} % on" if task == "values" else f"right for {score:.1f} % of"
    text = f"{known} follows from {format_names(columns, MAX_LISTED)} by itself ({result} the test rows)"
    return f"{text}. Leave out what is a copy of it, or known only after it."


def title_classes(shown: int, total: int) -> str:
    """Title the table of sensitivities; of many classes, it shows the worst."""
    if total <= shown:
        return "sensitivity by class"
    return f"sensitivity by class, the {shown} of {total} that the largest subnet recognizes worst"


# Replays.


def state_replay(task: Task, attainment: float, score: float, *, measured: bool) -> str:
    """State the result of a replay."""
    method = "measured" if measured else "simulated"
    return f"{format_percent(attainment)} of the requests in time at {score:.2f} % {name_score(task)}, {method}"


def describe_rate(rate: float, factor: float | None) -> str:
    """Describe the rate of the requests; ``factor`` is that of a scaled trace."""
    return f"{rate:,.0f}/s" if factor is None else f"{rate:,.0f}/s, {factor:.3g}x the trace's rate"


def describe_deadlines(low_ms: float, high_ms: float) -> str:
    """Describe the deadlines of the requests."""
    return f"≤ {low_ms:g} ms" if low_ms == high_ms else f"≤ {low_ms:g} to {high_ms:g} ms"


def state_gain_at_equal_attainment(points: float | None) -> str:
    """State the accuracy gained over the best fixed subnet with equal attainment."""
    if points is None:
        return "no fixed subnet reaches this attainment"
    return f"{points:+.2f} points of accuracy over the best fixed subnet"


def state_ratio_at_equal_accuracy(ratio: float | None) -> str:
    """State the attainment against the best fixed subnet with equal accuracy."""
    if ratio is None:
        return "no fixed subnet reaches this accuracy"
    return f"{ratio:.2f}x the attainment of the best fixed subnet"


def state_targets(satisfied: float, above_best: float, best_accuracy: float) -> str:
    """State how many requests meet both of their targets, and how many demand more than the best subnet."""
    both = f"{format_percent(satisfied)} are in time and accurate enough"
    return f"{both}; {format_percent(above_best)} require more than the best subnet's {best_accuracy * 100:.2f} %"


def state_load(factor: float, load: float, window_ms: float) -> str:
    """State how the trace was scaled."""
    demand = f"the busiest {window_ms:g} ms demand {load * 100:.0f} % of the fastest subnet's capacity"
    return f"rate scaled by {factor:.3g}: {demand}"


def state_needed_subnets(needed: Mapping[str, float], attainment: float) -> str:
    """State the subnets that a trace needs."""
    names = " · ".join(f"{name} {fraction * 100:.0f} %" for name, fraction in needed.items())
    return f"{names}; with these alone, {format_percent(attainment)} are in time"


def state_accelerator_energy(millijoules: float, cached_bytes: int, largest_bytes: int, machine: str) -> str:
    """State the energy of a request on the accelerator, and what its buffer caches."""
    return f"{millijoules:.3g} mJ a request; {machine} caches {cached_bytes:,} of {largest_bytes:,} bytes"


def state_prediction(task: Task, attainment: float, score: float) -> str:
    """State what the simulation predicted for a measured replay."""
    figures = f"{format_percent(attainment)} in time at {score:.2f} % {name_score(task)}"
    return f"{figures}, from profiled latencies"


def state_slowdown(median: float, p99: float) -> str:
    """State the ratio of measured to profiled latency."""
    return f"batches took {median:.2f}x the profiled latency (p99 {p99:.1f}x)"


# Lists of members.


def state_members(count: int, front: int, fits: bool) -> str:
    """State how many members were measured, and whether they fit the memory."""
    memory = "all of them fit in memory" if fits else "not all of them fit in memory"
    return f"{count} members measured, {front} on the front of accuracy and latency; {memory}"


def state_memory_limit(needed_bytes: int, memory_bytes: int | None) -> str:
    """State the memory of all members against the limit."""
    if memory_bytes is None:
        return f"{needed_bytes / 1e6:,.1f} MB for all members; no limit"
    return f"{needed_bytes / 1e6:,.1f} MB for all members, {memory_bytes / 1e6:,.1f} MB allowed"


def state_residency(pinned: Sequence[str], unused: Sequence[str], loads: int) -> str:
    """State which members stay in memory and how often others are loaded."""
    verb = "stays" if len(pinned) == 1 else "stay"
    stays = (
        f"{format_names(pinned, MAX_RESIDENT)} {verb} in memory" if pinned else "no member stays in memory throughout"
    )
    left_out = f"; {format_names(unused, MAX_RESIDENT)} not used" if unused else ""
    return f"{stays}{left_out}; {loads:,} loads on this trace"


def explain_member_figures() -> str:
    """Explain where the figures of a list of members come from."""
    return "accuracies are those of the spec; latency, load time and memory are measured on one thread"


def list_dominated(names: Sequence[str]) -> str:
    """List the members that a faster one equals in accuracy."""
    return f"{format_names(names, MAX_RESIDENT)}: a faster member is at least as accurate"


def explain_no_residency_plan() -> str:
    """Explain which members stay in memory without a plan."""
    return "no plan in this run: members take turns in memory (unfold plan SPEC --replay TRACE)"


# Serving.


def describe_served_subnet(name: str, accuracy: float, latency_ms: float) -> str:
    """State the accuracy of a served subnet, and the latency of one request."""
    return f"{name} {accuracy:.1f} % in {latency_ms:.2g} ms"


def explain_policy(policy: str, fallback: str) -> str:
    """Explain which subnet serves late requests."""
    return f"{policy}; requests that cannot be in time run on {fallback}"


def explain_min_accuracy() -> str:
    """Explain the request parameter for a minimum accuracy."""
    return "parameters.least_accuracy of a request, from 0 to 1; less accurate subnets never serve it"


def explain_deadline(slo_ms: float) -> str:
    """Explain the request parameter for a deadline."""
    return f"parameters.deadline_ms of a request; {slo_ms:g} ms by default"


def note_attainment(min_attainment: float) -> str:
    """Note the target beside the dashboard's attainment."""
    return f"served in time, target {format_percent(min_attainment)}"


def note_accuracy() -> str:
    """Note what the dashboard's accuracy is a mean of."""
    return "expected, of the requests in time"
