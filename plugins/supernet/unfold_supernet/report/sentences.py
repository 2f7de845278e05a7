"""Every sentence that a user of the kind ``supernet`` reads in a report, so that one reader can edit the English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfold_supernet.accelerator.hardware import Accelerator, EnergyModel
from unfold_supernet.study.strategies import Strategy
from unfold_supernet.units import format_bytes


def format_percent(fraction: float) -> str:
    """Format a fraction as a percentage; what rounds to zero has no sign."""
    return f"{round(fraction * 100, 1) + 0.0:.1f} %"


def format_bandwidth(bytes_per_second: float) -> str:
    """Format a bandwidth in GB/s."""
    return f"{bytes_per_second / 1e9:g} GB/s"


# The accelerator study.


def name_source(source: str) -> str:
    """Name what a cached subgraph was cut from."""
    if source == "core":
        return "the shared core"
    return f"what {' and '.join(source.split('∩'))} share" if "∩" in source else f"net {source}"


def name_strategy(strategy: Strategy, every: int, batch: int, core_bytes: int) -> str:
    """Name a strategy for the tables of a study."""
    names = {
        Strategy.EMPTY: "nothing kept",
        Strategy.STATIC: "core kept",
        Strategy.AVGNET: f"avgnet, every {every}",
        Strategy.LEAST_LATENCY: f"least-latency, every {every}",
        Strategy.AVGNET_ALL_ORDERS: "avgnet, of all cuts",
        Strategy.LEAST_LATENCY_PASSING: "least-latency, refilled in passing",
        Strategy.EMPTY_BATCHED: f"nothing kept, batches of {batch}",
        Strategy.STATIC_BATCHED: f"core kept, batches of {batch}",
        Strategy.ENTIRE_CORE: f"the whole core kept ({format_bytes(core_bytes)})",
    }
    return names[strategy]


def describe_static_cache(cached_bytes: int, source: str) -> str:
    """Describe the subgraph that is cached throughout; the start of a headline."""
    return f"{format_bytes(cached_bytes)} of {name_source(source)} kept on chip"


def describe_adaptive_cache(buffer_bytes: int, keep: str, every: int) -> str:
    """Describe a cache that follows the queries; the start of a headline."""
    interval = "after each query" if every == 1 else f"every {every} queries"
    return f"{format_bytes(buffer_bytes)} on chip, chosen by {keep} {interval},"


def state_latency_saving(cache: str, traffic: float, latency: float, latency_fair: float) -> str:
    """State what a cache saves of traffic and latency."""
    gain = f"{_state_gain(latency)} of the latency ({_state_gain(latency_fair)} if layers may prefetch ahead instead)"
    return f"{cache} save {format_percent(traffic)} of the traffic and {gain}"


def state_accuracy_gain(cache: str, traffic: float, points: float, points_fair: float) -> str:
    """State what accuracy a cache gains at equal deadlines, as saved time goes into larger subnets."""
    gain = f"give {points:+.2f} points of accuracy at the same deadlines ({points_fair:+.2f}"
    return f"{cache} {gain} if layers may prefetch ahead) and save {format_percent(traffic)} of the traffic"


def _state_gain(fraction: float) -> str:
    # what rounds to zero costs nothing
    return f"cost {format_percent(-fraction)}" if round(fraction * 100, 1) < 0 else format_percent(fraction)


def describe_queries(count: int, pattern: str, file: str) -> str:
    """Describe the query stream."""
    return f"queries of {file}" if file else f"{count:,} {pattern} queries"


def describe_cached_layers(cached_bytes: int, layers: int, source: str, order: str) -> str:
    """Describe the size and origin of the cached subgraph."""
    return f"{format_bytes(cached_bytes)} in {layers} layers, cut from {name_source(source)} by {order}"


def state_adaptive_gain(strategy: str, gain: float) -> str:
    """State what the best adaptive cache saves beyond the static one."""
    return f"{strategy}: {format_percent(gain)} of latency against the fixed core"


def state_energy_saving(traffic: float, total: float) -> str:
    """State the energy saved off chip and in total."""
    return f"off chip {format_percent(traffic)} less, as traffic; in all {format_percent(total)}"


def state_accuracy_points(points: float, points_fair: float) -> str:
    """State the accuracy gained at equal deadlines."""
    return f"{points:+.2f} points at equal deadlines ({points_fair:+.2f} fair)"


def describe_precision(machine: Accelerator) -> str:
    """Describe the bits of weights and activations, and a mismatch of the energy parameters."""
    bits = (
        f"{8 * machine.weight_bytes} bits a weight, {8 * machine.value_bytes} a map's value; partial sums stay on chip"
    )
    matches = machine.energy.mac != EnergyModel().mac or machine.weight_bytes == machine.value_bytes == 1
    return bits if matches else f"{bits}; energy.mac is still that of INT8"


def list_study_notes(max_buffer: int, *, is_reference: bool) -> tuple[str, ...]:
    """List what a reader must know before quoting a figure of a study."""
    scale = " The accuracies are a scale, not measured nets." if is_reference else ""
    return (
        f"Everything is computed by a model; no board was measured.{scale}",
        "Nothing kept: the same bytes are given to the dynamic buffer; fair lets transfers run ahead through layers.",
        f"Needs: the least buffer of the sweep, up to {format_bytes(max_buffer)}, that reaches it.",
    )


def state_deadline_missed(family: str, deadline_ms: float) -> str:
    """State that no subnet meets the deadline."""
    return f"no net of {family} answers within {deadline_ms:g} ms"


def state_fastest_subnet(name: str, latency_ms: float, bottleneck: str) -> str:
    """State the fastest subnet and what limits it."""
    return f"net {name}, the fastest, takes {latency_ms:.2f} ms: mostly {bottleneck}"


def state_compute_bound(compute_ms: float) -> str:
    """State the latency that no bandwidth can remove."""
    return f"{compute_ms:.2f} ms are computation at any bandwidth"


def propose_deadline(deadline_ms: float, accuracy: float) -> str:
    """Propose the smallest deadline that a subnet meets."""
    return f"deadline {deadline_ms:.2f} ms for {accuracy:.1f} %"


# Training.


def state_training(count: int, low: float, high: float, front: int, gap: str, switch_us: float) -> str:
    """State the result of a training; ``gap`` is empty without standalone models."""
    compared = f", {gap}" if gap else ""
    return (
        f"{count} nets in one set of weights, {low:.1f} to {high:.1f} %, "
        f"{front} surely different{compared}; a switch takes {switch_us:.1f} µs"
    )


def state_no_gap() -> str:
    """State that weight sharing costs no accuracy."""
    return "sharing costs no accuracy"


def state_gap(points: float) -> str:
    """State a significant weight-sharing gap."""
    return f"sharing costs {points:.2f} points at most"


def state_insignificant_gap(points: float, error: float) -> str:
    """State a weight-sharing gap that may be chance."""
    return f"no cost of sharing shown ({points:.2f} points, paired error {error:.2f})"


def rate_gap(*, is_significant: bool, points: float) -> str:
    """Rate a subnet against its standalone model."""
    if not is_significant:
        return "no difference shown"
    return "worse" if points > 0 else "better"


def describe_front(names: Sequence[str]) -> str:
    """Describe the accuracy front."""
    return f"{' < '.join(names)}: each surely more accurate than the one before it (95 %, paired)"


def describe_steps(steps: Mapping[str, int], max_listed: int) -> str:
    """Describe the training steps by subnet; for many subnets, their minimum, median and maximum."""
    if len(steps) <= max_listed:
        return " · ".join(f"{name} {count:,}" for name, count in steps.items())
    ordered = sorted(steps.values())
    return f"{ordered[0]:,} at least, {ordered[len(ordered) // 2]:,} in the middle, {ordered[-1]:,} at most a net"


def explain_switch() -> str:
    """Explain what a model switch is."""
    return "every subnet is bound to views of the shared weights once; a switch is to look it up"


def state_memory(shared_bytes: int, separate_bytes: int) -> str:
    """State the memory of the supernet against separate models."""
    return f"{shared_bytes / 1e3:.0f} kB with statistics against {separate_bytes / 1e3:.0f} kB of separate nets"


def list_files() -> str:
    """List the files that a training leaves."""
    return "family/ holds weights and statistics, subnets/ each net alone (safetensors, ONNX)"


def describe_search(count: int, measured: int, rank_correlation: float) -> str:
    """Describe a subnet search."""
    return f"{count:,} nets, {measured:,} measured on rows held back; the predictor's ranks: {rank_correlation:.2f}"


def state_missed_classes(names: Sequence[str], max_listed: int) -> str:
    """State which classes no subnet ever recognises."""
    remaining = len(names) - max_listed
    listed = ", ".join(names[:max_listed]) + (f" and {remaining} more" if remaining > 0 else "")
    return f"No net recognises any test row of class {listed}."


def title_classes(shown: int, total: int) -> str:
    """Title the table of sensitivities; of many classes, it shows the worst."""
    return f"classes, the {shown} of {total} that the largest net recognises worst" if total > shown else "classes"


# Replays.


def state_replay(attainment: float, accuracy: float, *, measured: bool) -> str:
    """State the result of a replay."""
    way = "measured" if measured else "simulated"
    return f"{_percent(attainment)} in time at {accuracy:.2f} % accuracy, {way}"


def describe_deadlines(low_ms: float, high_ms: float) -> str:
    """Describe the deadlines of the requests."""
    return f"≤ {low_ms:g} ms" if low_ms == high_ms else f"≤ {low_ms:g} to {high_ms:g} ms"


def state_gain_at_equal_attainment(points: float | None) -> str:
    """State the accuracy gained over the best fixed subnet with equal attainment."""
    if points is None:
        return "no fixed net is in time as often"
    return f"{points:+.2f} points against the best fixed net"


def state_ratio_at_equal_accuracy(ratio: float | None) -> str:
    """State the attainment against the best fixed subnet with equal accuracy."""
    return "no fixed net is as accurate" if ratio is None else f"{ratio:.2f}x the best fixed net"


def state_targets(satisfied: float, above_best: float, best_accuracy: float) -> str:
    """State how many requests meet both of their targets, and how many demand more than the best subnet."""
    both = f"{_percent(satisfied)} are answered in time and as accurately as they ask"
    return f"{both}; {_percent(above_best)} ask for more accuracy than the best net has, {best_accuracy * 100:.2f} %"


def state_load(factor: float, load: float, window_ms: float) -> str:
    """State how the trace was scaled."""
    busy = f"its busiest {window_ms:g} ms ask {load * 100:.0f} % of what the quickest net can answer"
    return f"the rate of the trace times {factor:.3g}, so that {busy}"


def state_needed_subnets(needed: Mapping[str, float], attainment: float) -> str:
    """State the subnets that a trace needs."""
    names = " · ".join(f"{name} {fraction:.0%}" for name, fraction in needed.items())
    return f"{names}: with these alone {attainment:.1%} in time"


def state_accelerator_energy(millijoules: float, cached_bytes: int, largest_bytes: int, machine: str) -> str:
    """State the energy of a request on the accelerator, and what its buffer caches."""
    return f"{millijoules:.3g} mJ a request; {cached_bytes:,} bytes of {largest_bytes:,} kept by {machine}"


def state_prediction(attainment: float, accuracy: float) -> str:
    """State what the simulation predicted for a measured replay."""
    return f"{_percent(attainment)} in time at {accuracy:.2f} %, by the latencies of training"


def state_slowdown(median: float, p99: float) -> str:
    """State the ratio of measured to profiled latency."""
    return f"a batch took {median:.2f}x its latency of training, of a hundred the slowest {p99:.1f}x"


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}".replace("%", " %")


# Serving.


def describe_served_subnet(name: str, accuracy: float, latency_ms: float) -> str:
    """Describe a served subnet."""
    return f"{name} {accuracy:.1f} % in {latency_ms:.2g} ms"


def explain_policy(policy: str, fallback: str) -> str:
    """Explain which subnet serves late requests."""
    return f"{policy}; who cannot be in time is answered by {fallback}"


def explain_min_accuracy() -> str:
    """Explain the request parameter for a minimum accuracy."""
    return "parameters.least_accuracy of a request, a share; none less accurate answers it"


def explain_deadline(slo_ms: float) -> str:
    """Explain the request parameter for a deadline."""
    return f"parameters.deadline_ms of a request, else {slo_ms:g} ms"
