"""Serving a family under deadlines on bursty traces, against every fixed subnet and a server that swaps models.

The heart-beat family is trained and profiled in the same run; rates are shares of what its nets were measured to take.
Calm is half of what the slowest net can take; a quarter, half or four fifths of all requests lie in a burst, as high as
nine tenths of what the quickest, a middle or the second slowest net can take, with gaps of CV² 2, 4 and 8 throughout.
Ramps rise from calm to what the quickest net can take, and fall again.
Played in simulated time by the measured latencies, and a grid of shorter traces of the same kind in real time on the
nets; all rules see the same arrivals and give up what cannot be in time. Goodput is measured apart, in ONNX Runtime, on
the busiest windows of two public traces at their own rate, and calibration on patients that training did not see.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks import record_goodput
from benchmarks.frame import load, need
from benchmarks.supernet_train import STRANGERS, loaded, show_row

SLO_S = 0.02
SECONDS, SHORT = 2.0, 0.8
"""Of a trace, simulated and in real time; each has one burst."""
SPREADS = (2.0, 4.0, 8.0)
SHARES = (0.25, 0.5, 0.8)
REAL_SHARES = (0.8,)
"""In real time a burst of so short a trace must still be longer than the time to live of a request."""
CALM, HIGH = 0.5, 0.9
"""Rates: of what the slowest net can take, and of what the net that the bursts are for can take."""
BELOW = 0.8
"""Confidence under which a small net's answer is asked again of the most accurate net; that of the config."""
CROWDED = "Not replayed in real time: more processes wanted a core than there are, so that no deadline could be kept."
SLOWED = (
    "goodput_*: other programs wanted the cores; slower members make a window's load higher than on a free machine."
)
ECE_NOTE = (
    "ece_points: of every net on 11 unseen patients, the worst of them in ece_points_max. Its temperature undoes label "
    "smoothing; three other patients change it only where that surely helps those it was not fitted on. "
    "ece_excess_beyond_chance: nets whose mean confidence is off by more than the draw of patients explains at 95 %. "
    "Eight of the 11 are routine records, on which confidences are too low; half of the training patients are."
)
NO_TRACES = "goodput_* was not measured: the shared data has no folder traces."
OWN = ("steady", "fitted", "slackfit", "steady, escalating")
KEYS = ("attainment", "accuracy", "gain", "ratio", "ratio_near", "gain_shedding", "ratio_shedding")
NEAR = 0.1
"""Points of accuracy by which a fixed net may be less accurate and still counts as equal, for ``ratio_near``."""


Row = dict[str, Any]
FIXED = ("only ", "shedding ")
"""How the names of rules with one net all the time begin."""
AIMS = {"attainment_ratio": "≥ 2.85, or 4.67 points"}
NEW_AIMS = {"goodput_ratio_max": "≥ 2", "goodput_ratio_median": "≥ 1.3", "ece_points_max": "≤ 3"}


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in s, their rates per s when calm and in bursts, and the latter against what the quickest net takes."""

    name: str
    arrivals: np.ndarray
    calm: float
    high: float
    load: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Nets, pairs of them, what answers for each of both, inputs to answer, seconds to load a net, and ONNX members."""

    nets: tuple[Any, ...]
    pairs: tuple[Any, ...]
    bound: tuple[Any, ...]
    x: Any
    extra: Any
    reload: float
    records: tuple[record_goodput.RecordMember, ...] = ()


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Train, profile, play.

    Args:
        quick: One epoch: shows that it runs; the accuracies mean nothing.
        seed: Of training and traces.
        data: Folder that holds ``mitbih``.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    need("torch", "torch")
    need("onnxruntime", "supernet")
    epochs = 1 if quick else None
    with tempfile.TemporaryDirectory() as folder:
        found = profiled(data, Path(folder), seed, epochs)
    traces = _traces(found.nets, seed)
    rows = [row for trace in traces for row in _played(found, trace)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crowded = (load() or 0.0) > cores
    live = [] if crowded else [row for trace in real(found, seed, quick=quick) for row in measured(found, trace)]
    summarized = summary(found, traces + real(found, seed), [*rows, *live], _notes(found) + [CROWDED] * crowded)
    with tempfile.TemporaryDirectory() as folder:
        calibration = calibrated(data, Path(folder), seed, epochs)
    return _joined(summarized, replayed(found, data, quick=quick), calibration, crowded=crowded)


def replayed(found: Profile, data: Path, *, quick: bool) -> list[Row]:
    """Return a row of goodput for each window of the public traces; none where they are not there."""
    folder = data / "traces"
    windows = record_goodput.load_windows(folder, quick=quick) if folder.is_dir() else []
    return [show_row(row) for row in record_goodput.measure_windows(found.records, windows)]


def calibrated(data: Path, folder: Path, seed: int, epochs: int | None) -> list[Row]:
    """Train between patients in ``folder``; return the calibration of every net on patients that it has not seen."""
    from unfold_supernet.training import latency
    from unfold_supernet.training.confidence_calibration import measure_calibration
    from unfold_supernet.training.evaluation import sort_by_macs
    from unfold_supernet.training.family import train_supernet

    setup = loaded(data, folder, seed, epochs, {"data": {"split": "inter-patient"}, "training": STRANGERS})
    beats = setup.problem.data
    net = train_supernet(setup.problem, setup.run.directory, setup.run.progress).supernet
    temperatures = {one.name: net.bound[one.name].temperature for one in sort_by_macs(net)}
    logits = {name: latency.compute_all_logits(net.bound[name], beats, beats.test) for name in temperatures}
    labels = beats.y[beats.test]
    return [
        {
            "net": name,
            "temperature": temperatures[name],
            "accuracy": float((logits[name].argmax(1) == labels).mean()) * 100,
            "ece_points_before": error.before,
            "ece_points": error.after,
            "excess_points": error.excess,
            "excess_half_width": error.half_width,
        }
        for name, error in measure_calibration(logits, temperatures, labels, beats.test_groups).items()
    ]


def _joined(
    summarized: dict[str, Any], goodput: Sequence[Row], calibration: Sequence[Row], *, crowded: bool
) -> dict[str, Any]:
    """Return the complete report, with goodput and calibration added."""
    metrics = {
        **summarized["metrics"],
        **record_goodput.summarize_windows(goodput),
        "ece_points_max": max(row["ece_points"] for row in calibration),
        "ece_points_max_before": max(row["ece_points_before"] for row in calibration),
        "ece_excess_beyond_chance": sum(abs(row["excess_points"]) > row["excess_half_width"] for row in calibration),
    }
    notes = [*summarized["notes"], *record_goodput.list_goodput_notes(), ECE_NOTE]
    notes += [SLOWED] * (crowded and bool(goodput)) + [NO_TRACES] * (not goodput)
    return {
        "metrics": metrics,
        "tables": {**summarized["tables"], "goodput": list(goodput), "calibration": list(calibration)},
        "aims": {**summarized["aims"], **NEW_AIMS},
        "notes": notes,
    }


def summary(found: Profile, traces: Sequence[Trace], rows: Sequence[Row], notes: list[str]) -> dict[str, Any]:
    """Return what was played as metrics and tables.

    Args:
        found: The nets.
        traces: All that were played, in simulated and in real time.
        rows: Of every rule on every trace.
        notes: What a reader must know.
    """
    simulated = [row for row in rows if row["how"] == "simulated"]
    own = [row for row in simulated if row["rule"] == OWN[0]]
    live = [row for row in rows if row["rule"] == OWN[0] and row["how"] == "measured"]
    foretold = [row for row in rows if row["rule"] == OWN[0] and row["how"] == "foretold"]
    metrics = {
        **_bests(own),
        "accuracy_gain_points_median": _middle(own, "gain"),
        "attainment_ratio_median": _middle(own, "ratio"),
        **{
            f"{metric}_{name.rpartition(' ')[2]}": _most([row for row in simulated if row["rule"] == name], key)
            for name in OWN[1:]
            for metric, key in (("accuracy_gain_points", "gain"), ("attainment_ratio", "ratio"))
        },
        **{f"{name}_measured": value for name, value in _bests(live).items()},
        "accuracy_gain_points_measured_median": _middle(live, "gain"),
        "attainment_ratio_measured_median": _middle(live, "ratio"),
        "attainment_ratio_measured_near_median": _middle(live, "ratio_near"),
        "attainment_ratio_foretold": _most(foretold, "ratio"),
        "attainment_ratio_foretold_median": _middle(foretold, "ratio"),
        "attainment_off": _off(rows),
        "attainment": min(row["attainment"] for row in own),
        "accuracy_served": min(row["accuracy"] for row in own),
        "attainment_measured": min((row["attainment"] for row in live), default=None),
        "swap_attainment": min(row["attainment"] for row in rows if row["rule"] == "swapping"),
    }
    aims = {f"{name}{how}": aim for how in ("", "_measured") for name, aim in AIMS.items()}
    profile = [
        {"net": net.name, "accuracy": net.accuracy, **{f"ms_{b}": t * 1e3 for b, t in net.seconds}}
        for net in (*found.nets, *found.pairs)
    ]
    points = [_point(trace, row) for trace in traces for row in (*own, *foretold, *live) if row["trace"] == trace.name]
    return {
        "metrics": metrics,
        "tables": {"points": points, "rules": rows, "profile": profile},
        "aims": aims,
        "notes": notes,
    }


def _notes(found: Profile) -> list[str]:
    reached = [net.accuracy for net in found.nets]
    apart = max(reached) - min(reached)
    return [
        "Without a suffix: the best of the traces with bursts and ramps, simulated by latencies of the same run.",
        "measured: the best of the grid in real time; foretold: the same traces simulated; median: of the same points.",
        "gain: points of accuracy over the best fixed net (Clipper+) that is in time as often (within 0.1 points).",
        "ratio: of attainment, against the best fixed net as accurate as what was served; near: or within 0.1 points.",
        "A ratio jumps where the accuracy served passes a net's: 0.01 points decide which net it is held against.",
        "In real time every rule, ours or fixed, stretches its profile by how its last batches went, as a server does.",
        "Clipper+ batches what fits the slack of the head; shedding: fixed nets that also give up heads for it.",
        "The best fixed net is chosen with hindsight at each point; attainment_off: measured less foretold, mean size.",
        "burst_load: the rate in bursts against what the quickest net was measured to take.",
        f"A gain in points is bounded by how far the family's accuracies are apart, which is {apart:.1f} points here.",
    ]


def _bests(own: Sequence[Row]) -> dict[str, float | None]:
    """Return the best points of a rule."""
    return {
        "accuracy_gain_points": _most(own, "gain"),
        "attainment_ratio": _most(own, "ratio"),
        "attainment_ratio_near": _most(own, "ratio_near"),
        "accuracy_gain_points_shedding": _most(own, "gain_shedding"),
        "attainment_ratio_shedding": _most(own, "ratio_shedding"),
    }


def _off(rows: Sequence[Row]) -> float | None:
    """Return how far attainment in real time is from what was foretold, in the mean over rules and traces."""
    foretold = {(row["trace"], row["rule"]): row["attainment"] for row in rows if row["how"] == "foretold"}
    found = [abs(row["attainment"] - foretold[row["trace"], row["rule"]]) for row in rows if row["how"] == "measured"]
    return fmean(found) if found else None


def _point(trace: Trace, row: Row) -> Row:
    rates = {"calm_rps": trace.calm, "burst_rps": trace.high, "burst_load": trace.load}
    return {"trace": trace.name, "how": row["how"], **rates, **{key: row[key] for key in KEYS}}


def _most(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    return max((row[key] for row in rows if row[key] is not None), default=None)


def _middle(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    found = [row[key] for row in rows if row[key] is not None]
    return median(found) if found else None


def profiled(data: Path, folder: Path, seed: int, epochs: int | None) -> Profile:
    """Return the nets of a family trained in ``folder`` with latencies, pairs of them, and the seconds to load one."""
    import torch

    from unfold_supernet.scheduling.escalation import build_pairs, get_small_subnet
    from unfold_supernet.scheduling.policies import build_profile
    from unfold_supernet.training import latency
    from unfold_supernet.training.evaluation import evaluate_subnets, predict_test_rows
    from unfold_supernet.training.family import train_supernet

    setup = loaded(data, folder, seed, epochs)
    beats = setup.problem.data
    net = train_supernet(setup.problem, setup.run.directory, setup.run.progress).supernet
    tested = predict_test_rows(net, beats)
    qualities = evaluate_subnets(tested, len(beats.names))
    nets = [
        build_profile(name, quality.accuracy, latency.measure_latencies(net.bound[name], beats))
        for name, quality in qualities.items()
    ]
    two = tuple(build_pairs(nets, tested, BELOW))
    bound = tuple(net.select(get_small_subnet(one), one.fallback, BELOW) for one in (*nets, *two))
    x, extra = (torch.from_numpy(part[beats.test]) for part in (beats.x, beats.extra))
    reload = latency.measure_switch_costs(net, 500).reload_s
    records = record_goodput.open_members(net, beats, {name: one.accuracy for name, one in qualities.items()})
    return Profile(tuple(nets), two, bound, x, extra, reload, records)


def _rules(found: Profile) -> dict[str, Any]:
    """Return every rule by name, with the nets that it chooses from."""
    from unfold_supernet.scheduling.policies import make_cheapest, make_fitted, make_slackfit, make_steady

    nets, every = found.nets, (*found.nets, *found.pairs)
    rules: dict[str, Any] = {OWN[1]: (make_fitted(nets), nets), OWN[2]: (make_slackfit(nets), nets)}
    rules |= {OWN[3]: (make_steady(every, SLO_S), every), "cheapest": (make_cheapest(nets), nets)}
    return {name: (make(nets), nets) for name, make in _makers(nets).items()} | rules


def _makers(nets: Sequence[Any]) -> dict[str, Any]:
    """Return what makes our rule and those of the fixed nets from latencies, by name."""
    from unfold_supernet.scheduling.policies import make_fixed, make_shedding, make_steady

    makers: dict[str, Any] = {OWN[0]: partial(make_steady, slo=SLO_S)}
    makers |= {f"only {net.name}": partial(make_fixed, index=at) for at, net in enumerate(nets)}
    return makers | {f"shedding {net.name}": partial(make_shedding, index=at, slo=SLO_S) for at, net in enumerate(nets)}


def _played(found: Profile, trace: Trace, how: str = "simulated") -> Iterator[Row]:
    """Yield a row for every rule on one trace, in simulated time."""
    from unfold_supernet.scheduling.simulator import simulate_trace

    rules = _rules(found)
    played = {name: (simulate_trace(trace.arrivals, SLO_S, nets, rule), nets) for name, (rule, nets) in rules.items()}
    rule, nets = rules[OWN[0]]
    played["swapping"] = simulate_trace(trace.arrivals, SLO_S, nets, rule, found.reload), nets
    yield from _rows(played, trace, how)


def measured(found: Profile, trace: Trace) -> Iterator[Row]:
    """Yield a row for ours and every fixed net on one trace in real time, by the nets themselves; and as foretold."""
    import torch

    from unfold_supernet.scheduling.simulator import measure_trace
    from unfold_supernet.scheduling.speed import Slowdown, adapt_to_slowdown

    count, most = len(found.x), max(net.max_batch for net in found.nets)
    rows = np.resize(np.arange(count), count + most)
    x, extra = found.x[rows], found.extra[rows]
    torch.set_num_threads(1)

    def work(at: int, first: int, last: int) -> None:
        began, part = time.perf_counter(), slice(first % count, first % count + last - first)
        found.bound[at](x[part], extra[part]).argmax(1)
        pace[-1].update(found.nets[at].estimate_latency(last - first), time.perf_counter() - began)

    pace, played = [Slowdown()], {}
    with torch.inference_mode():
        for at in range(len(found.nets)):
            for size in (1, 64, most, most):
                work(at, 0, size)
        for name, make in _makers(found.nets).items():
            # every rule learns the pace of the machine, as the server does, each anew
            pace.append(Slowdown())
            played[name] = (
                measure_trace(trace.arrivals, SLO_S, adapt_to_slowdown(make, found.nets, pace[-1]), work),
                found.nets,
            )
    yield from _rows(played, trace, "measured")
    yield from _played(found, trace, "foretold")


def _rows(played: dict[str, Any], trace: Trace, how: str) -> Iterator[Row]:
    from unfold_supernet.replay.baselines import PolicyResult, compare_with_fixed

    entries = {name: PolicyResult(name, one, one.compute_accuracy(nets)) for name, (one, nets) in played.items()}
    lone = [entry for name, entry in entries.items() if name.startswith("only ")]
    strong = [entry for name, entry in entries.items() if name.startswith(FIXED)]
    for name, entry in entries.items():
        found: tuple[float | None, ...] = (None,) * 5
        if name in OWN:
            near = compare_with_fixed(replace(entry, accuracy=entry.accuracy - NEAR), lone).attainment_ratio
            plain, shed = (compare_with_fixed(entry, others) for others in (lone, strong))
            found = (plain.gain_points, plain.attainment_ratio, near, shed.gain_points, shed.attainment_ratio)
        facts = zip(KEYS, (entry.outcome.attainment, entry.accuracy, *found), strict=True)
        yield {"trace": trace.name, "how": how, "rule": name, **dict(facts), "requests": len(trace.arrivals)}


def _traces(nets: Sequence[Any], seed: int) -> list[Trace]:
    """Return the traces that are simulated."""
    capacity, found = _capacity(nets), []
    for scv, (name, rate), share in itertools.product(SPREADS, _high(nets), SHARES):
        found.append(_bursts(name, (CALM * min(capacity), rate, max(capacity)), share, scv, seed))
    calm, high = CALM * min(capacity), HIGH * max(capacity)
    for scv in SPREADS:
        arrivals = _ramp(calm, high, scv, np.random.default_rng([seed, int(scv)]))
        found.append(Trace(f"ramp, CV² {scv:g}", arrivals, calm, high, HIGH))
    return found


def real(found: Profile, seed: int, *, quick: bool = False) -> list[Trace]:
    """Return the grid of traces that are played in real time: a second with one burst each."""
    capacity, traces = _capacity(found.nets), []
    for scv, (name, rate), share in itertools.product(SPREADS, _high(found.nets), REAL_SHARES):
        rates = CALM * min(capacity), rate, max(capacity)
        traces.append(_bursts(name, rates, share, scv, seed, SHORT))
    return [replace(trace, arrivals=trace.arrivals[:2_000]) for trace in traces[:1]] if quick else traces


def _capacity(nets: Sequence[Any]) -> list[float]:
    return [net.max_batch / net.estimate_latency(net.max_batch) for net in nets]


def _high(nets: Sequence[Any]) -> list[tuple[str, float]]:
    """Return the rates of bursts, by the net that they are for: the quickest, a middle and the second slowest one."""
    ordered = sorted(zip(_capacity(nets), nets, strict=True), key=lambda pair: -pair[0])
    places = (0, (len(nets) - 1) // 2, len(nets) - 2)
    return [(ordered[at][1].name, HIGH * ordered[at][0]) for at in places]


def _bursts(
    name: str,
    rates: tuple[float, float, float],
    share: float,
    scv: float,
    seed: int,
    seconds: float = SECONDS,
) -> Trace:
    """Return calm arrivals and a burst in them, so that ``share`` of all requests lie in the burst.

    ``rates`` are those of calm, of bursts, and of what the quickest net can take.
    """
    from unfoldkit.arrivals.processes import gamma_arrivals

    calm, high, most = rates
    rng = np.random.default_rng([seed, int(scv), int(high), int(share * 100), 1])
    length = share / (1 - share) * calm * seconds / high
    parts = [gamma_arrivals(calm, seconds, rng, scv=scv), 0.25 * seconds + gamma_arrivals(high, length, rng, scv=scv)]
    title = f"bursts for {name}, {share * 100:.0f} %, CV² {scv:g}" + (", short" if seconds == SHORT else "")
    return Trace(title, np.sort(np.concatenate(parts)), calm, high, high / most)


def _ramp(calm: float, high: float, scv: float, rng: np.random.Generator) -> np.ndarray:
    """Return arrivals at a rate that rises from calm to high within half a second, once, and falls again."""
    from unfoldkit.arrivals.processes import piecewise_arrivals

    up = np.linspace(calm, high, 50)
    rates = np.concatenate([np.full(150, calm), up, up[::-1], np.full(150, calm)])
    return piecewise_arrivals(rates, SECONDS / len(rates), rng, scv=scv)
