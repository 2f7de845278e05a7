"""Serving a family under deadlines on bursty traces, against every fixed net, the cheapest, and a server that swaps.

The heart-beat family is trained and profiled in the same run; traces are scaled to what its nets can take. Calm is half
of what the largest net can take; a quarter, half or four fifths of all requests come in two bursts, as high as nine
tenths of what the smallest, a middle or the second largest net can take, with gaps of CV² 2, 4 and 8 throughout. Ramps
rise from calm to what the smallest net can take, and fall again.
Played in simulated time by the measured latencies, and one trace in real time on the nets; all rules see the same
arrivals and give up what cannot be in time.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.frame import load, need
from benchmarks.supernet_train import loaded

SLO_S = 0.02
SECONDS = 4
SPREADS = (2.0, 4.0, 8.0)
SHARES = (0.25, 0.5, 0.8)
BURSTS = 2
BELOW = 0.8
"""Confidence under which a small net's answer is asked again of the most accurate net; that of the config."""
CROWDED = "Not replayed in real time: more processes wanted a core than there are, so that no deadline could be kept."
OWN = ("steady", "fitted", "slackfit", "steady, escalating")
KEYS = ("attainment", "accuracy", "gain", "ratio", "ratio_near", "gain_shedding", "ratio_shedding")
NEAR = 0.1
"""Points of accuracy by which a fixed net may be less accurate and still counts as equal, for ``ratio_near``."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Nets, pairs of them, what answers for each of both, inputs to answer, and seconds to load a net."""

    nets: tuple[Any, ...]
    pairs: tuple[Any, ...]
    bound: tuple[Any, ...]
    x: Any
    extra: Any
    reload: float


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
    found = _profiled(data, seed, 1 if quick else None)
    traces = _traces(found.nets, seed)
    rows = [row for name, arrivals in traces.items() for row in _played(found, name, arrivals)]
    chosen = next(reversed([name for name in traces if "CV² 4" in name and "ramp" not in name]))
    notes, cores = _notes(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (load() or 0.0) > cores:
        notes.append(CROWDED)
    else:
        rows += _measured(found, chosen, traces[chosen][: 2_000 if quick else None])
    own = [row for row in rows if row["rule"] == OWN[0] and row["how"] == "simulated"]
    every = [row for row in rows if row["rule"] in OWN and row["how"] == "simulated"]
    live = [row for row in rows if row["rule"] == OWN[0] and row["how"] == "measured"]
    metrics = {
        "accuracy_gain_points": _most(own, "gain"),
        "attainment_ratio": _most(own, "ratio"),
        "attainment_ratio_near": _most(own, "ratio_near"),
        "accuracy_gain_points_median": _middle(own, "gain"),
        "attainment_ratio_median": _middle(own, "ratio"),
        "accuracy_gain_points_shedding": _most(own, "gain_shedding"),
        "attainment_ratio_shedding": _most(own, "ratio_shedding"),
        **{
            f"{metric}_{name.rpartition(' ')[2]}": _most([row for row in every if row["rule"] == name], key)
            for name in OWN[1:]
            for metric, key in (("accuracy_gain_points", "gain"), ("attainment_ratio", "ratio"))
        },
        "accuracy_gain_points_measured": _most(live, "gain"),
        "attainment_ratio_measured": _most(live, "ratio"),
        "attainment": min(row["attainment"] for row in own),
        "accuracy_served": min(row["accuracy"] for row in own),
        "swap_attainment": min(row["attainment"] for row in rows if row["rule"] == "swapping"),
    }
    aims = {"accuracy_gain_points": "≥ 4.67, or", "attainment_ratio": "≥ 2.85"}
    profile = [
        {"net": net.name, "accuracy": net.accuracy, **{f"ms_{b}": t * 1e3 for b, t in net.seconds}}
        for net in (*found.nets, *found.pairs)
    ]
    return {"metrics": metrics, "tables": {"rules": rows, "profile": profile}, "aims": aims, "notes": notes}


def _notes() -> list[str]:
    return [
        "Without a suffix: the best of the traces with bursts and ramps, simulated by latencies of the same run.",
        "gain: points of accuracy over the best fixed net (Clipper+) that is in time as often (within 0.1 points).",
        "ratio: of attainment, against the best fixed net as accurate as what was served; near: or within 0.1 points.",
        "Clipper+ batches what fits the slack of the head; shedding: fixed nets that also give up heads for it.",
        "A gain in points is bounded by how far the family's accuracies are apart, which is about seven points here.",
    ]


def _most(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    return max((row[key] for row in rows if row[key] is not None), default=None)


def _middle(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    found = [row[key] for row in rows if row[key] is not None]
    return median(found) if found else None


def _profiled(data: Path, seed: int, epochs: int | None) -> Profile:
    """Return the nets of a family trained here with their latencies, pairs of them, and the seconds to load one."""
    import torch

    from unfold_supernet.nets import family, measure
    from unfold_supernet.serving import pairs
    from unfold_supernet.serving.policies import Served

    with tempfile.TemporaryDirectory() as folder:
        spec, beats, run_ = loaded(data, Path(folder), seed, epochs)
        net = family.train_family(spec, beats, run_).net
        said = family.answered(net, beats)
        nets = []
        for name, one in family.qualities(net, beats, said).items():
            times = sorted(measure.latencies(net.bound[name], beats).items())
            rising = [(batch, max(time for _, time in times[: at + 1])) for at, (batch, _) in enumerate(times)]
            nets.append(Served(name, one.accuracy, tuple(rising)))
        two = tuple(pairs.pairs(nets, said, BELOW))
        bound = tuple(net.ready(pairs.first(one), one.then, BELOW) for one in (*nets, *two))
        x, extra = (torch.from_numpy(part[beats.test]) for part in (beats.x, beats.extra))
        return Profile(tuple(nets), two, bound, x, extra, measure.switching(net, 500).reload)


def _rules(found: Profile) -> dict[str, Any]:
    """Return every rule by name, with the nets that it chooses from."""
    from unfold_supernet.serving.policies import cheapest, fitted, fixed, shedding, slackfit, steady

    nets, every = found.nets, (*found.nets, *found.pairs)
    rules: dict[str, Any] = {OWN[0]: (steady(nets, SLO_S), nets), OWN[1]: (fitted(nets), nets)}
    rules |= {OWN[2]: (slackfit(nets), nets), OWN[3]: (steady(every, SLO_S), every)}
    rules |= {f"only {net.name}": (fixed(nets, at), nets) for at, net in enumerate(nets)}
    rules |= {f"shedding {net.name}": (shedding(nets, at, SLO_S), nets) for at, net in enumerate(nets)}
    return rules | {"cheapest": (cheapest(nets), nets)}


def _played(found: Profile, trace: str, arrivals: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield a row for every rule on one trace, in simulated time."""
    from unfold_supernet.serving.play import simulate

    rules = _rules(found)
    played = {name: (simulate(arrivals, SLO_S, nets, rule), nets) for name, (rule, nets) in rules.items()}
    rule, nets = rules[OWN[0]]
    played["swapping"] = simulate(arrivals, SLO_S, nets, rule, found.reload), nets
    yield from _rows(played, trace, "simulated", len(arrivals))


def _measured(found: Profile, trace: str, arrivals: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield a row for every rule on one trace in real time, each request answered by the net chosen for it."""
    import torch

    from unfold_supernet.serving.play import measure

    rows = np.resize(np.arange(len(found.x)), len(arrivals))
    x, extra = found.x[rows], found.extra[rows]
    torch.set_num_threads(1)

    def work(at: int, first: int, last: int) -> None:
        found.bound[at](x[first:last], extra[first:last]).argmax(1)

    with torch.inference_mode():
        for at in range(len(found.bound)):
            for count in (1, 64, min(512, len(rows)), min(512, len(rows))):
                work(at, 0, count)
        played = {name: (measure(arrivals, SLO_S, rule, work), nets) for name, (rule, nets) in _rules(found).items()}
    yield from _rows(played, trace, "measured", len(arrivals))


def _rows(played: dict[str, Any], trace: str, how: str, requests: int) -> Iterator[dict[str, Any]]:
    from unfold_supernet.replay import Entry, against

    entries = {name: Entry(name, one, one.accuracy(nets)) for name, (one, nets) in played.items()}
    lone = [entry for name, entry in entries.items() if name.startswith("only ")]
    strong = [entry for name, entry in entries.items() if name.startswith(("only ", "shedding "))]
    for name, entry in entries.items():
        found: tuple[float | None, ...] = (None,) * 5
        if name in OWN:
            _, near = against(replace(entry, accuracy=entry.accuracy - NEAR), lone)
            found = (*against(entry, lone), near, *against(entry, strong))
        facts = zip(KEYS, (entry.played.attainment, entry.accuracy, *found), strict=True)
        yield {"trace": trace, "how": how, "rule": name, **dict(facts), "requests": requests}


def _traces(nets: Sequence[Any], seed: int) -> dict[str, np.ndarray]:
    """Return the arrivals by the name of the trace."""
    capacity = [net.most / net.takes(net.most) for net in nets]
    calm = 0.5 * min(capacity)
    found = {}
    for scv, at, share in itertools.product(SPREADS, (0, (len(nets) - 1) // 2, len(nets) - 2), SHARES):
        rng = np.random.default_rng([seed, int(scv), at, int(share * 100)])
        name = f"bursts for {nets[at].name}, {share * 100:.0f} %, CV² {scv:g}"
        found[name] = _bursts(calm, 0.9 * capacity[at], share, scv, rng)
    for scv in SPREADS:
        found[f"ramp, CV² {scv:g}"] = _ramp(calm, 0.9 * capacity[0], scv, np.random.default_rng([seed, int(scv)]))
    return found


def _bursts(calm: float, high: float, share: float, scv: float, rng: np.random.Generator) -> np.ndarray:
    """Return calm arrivals and bursts evenly over it, so that ``share`` of all requests lie in bursts."""
    from unfoldkit.arrivals.processes import gamma

    length = share / (1 - share) * calm * SECONDS / (BURSTS * high)
    every = SECONDS / BURSTS
    parts = [gamma(calm, SECONDS, rng, scv=scv)]
    parts += [(at + 0.25) * every + gamma(high, length, rng, scv=scv) for at in range(BURSTS)]
    return np.sort(np.concatenate(parts))


def _ramp(calm: float, high: float, scv: float, rng: np.random.Generator) -> np.ndarray:
    """Return arrivals whose rate rises from calm to high within a second, once, and falls again."""
    from unfoldkit.arrivals.processes import pieces

    up = np.linspace(calm, high, 50)
    rates = np.concatenate([np.full(150, calm), up, up[::-1], np.full(150, calm)])
    return pieces(rates, SECONDS / len(rates), rng, scv=scv)
