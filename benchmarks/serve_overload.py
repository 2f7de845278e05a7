"""Five times more requests than the server can answer: goodput, the cost of rejections, and recovery.

A network (30 features; 17 million weights, which in full batches take less than half a millisecond a row) behind the
project's server on one core; open loop from another. First the peak: closed loop with few and with many connections,
the better of them. Then a minute at five times the peak, then at half of it. The pace of a machine changes by a tenth
and more from one minute to the next, so what is left of the peak is measured in rounds: some seconds of overload, each
against the peaks just before and after it; the median of the rounds counts. The same with two networks with slower
rows, since what a refusal costs is the same for all: the table ``networks``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bodies import BODY
from benchmarks.serve_load import INFER, OURS
from benchmarks.servers import Generator, cores, generator, memory_mib, processor_s, started, write_requests

WIDTH, CLASSES = 30, 2
HIDDEN = (4096, 6144, 8192)
TIMES = 5
AIM = 0.9
CONNECTIONS = 2048
CLOSED = (128, 1024)
CALM_MS = 1000.0
EDGE_S = 0.5
WARM_S = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Answers a second, and the share of a core that the server took for them."""

    per_s: float
    share: float

    @property
    def each(self) -> float:
        """The seconds of a core that an answer took."""
        return self.share / self.per_s


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long each part takes."""

    peak: float
    overload: float
    after: float
    rounds: int
    round: float


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the peak, then overload the same process, then let it recover.

    Args:
        quick: The first network only, with eight seconds of overload in place of sixty, and two rounds.
        seed: Seed of weights, rows and arrivals.
        data: Not used.
    """
    del data
    plan = Seconds(4.0, 8.0, 4.0, 2, 3.0) if quick else Seconds(6.0, 60.0, 10.0, 7, 5.0)
    found = [_network(hidden, plan, seed) for hidden in (HIDDEN[:1] if quick else HIDDEN)]
    rows = [{"hidden": size, **_of(one["metrics"])} for size, one in zip(HIDDEN, found, strict=False)]
    return found[0] | {"tables": found[0]["tables"] | {"networks": rows}}


def _of(metrics: dict[str, Any]) -> dict[str, Any]:
    names = ("row_us", "refusal_us", "goodput_ratio", "goodput_ratio_minute", "peak_per_s", "rejected_p99_ms",
             "recovery_s", "memory_growth_percent", "lost")  # fmt: skip
    return {name: metrics[name] for name in names}


def _network(hidden: int, plan: Seconds, seed: int) -> dict[str, Any]:
    sys.stderr.write(f"serve-overload: two hidden layers of {hidden:,}\n")
    server_core, driver_core = cores()
    with tempfile.TemporaryDirectory() as name, generator(driver_core) as driver:
        folder = Path(name)
        environment = prepare(folder, seed, hidden)
        with started(OURS, server_core, environment, folder / "log") as (port, process):
            return _measured(driver, port, process, folder / "requests", plan, seed)


def prepare(folder: Path, seed: int, hidden: int) -> dict[str, str]:
    """Write the network and rows for it; return where they are."""
    rng = np.random.default_rng(seed)
    (folder / "model.onnx").write_bytes(network(rng, (WIDTH, hidden, hidden, CLASSES)))
    rows = rng.normal(size=(256, WIDTH)).round(4).tolist()
    write_requests(folder / "requests", INFER, [json.dumps(BODY["v2"](row)).encode() for row in rows])
    return {"PEER_ONNX": str(folder / "model.onnx"), "WIDTH": str(WIDTH), "CLASSES": str(CLASSES)}


def network(rng: np.random.Generator, sizes: Sequence[int]) -> bytes:
    """Return a network of these layer sizes with random weights, as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, at = [], [], "x"
    for layer, (few, many) in enumerate(itertools.pairwise(sizes)):
        weight = rng.normal(size=(few, many), scale=few**-0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        last = layer == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [at, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"m{layer}"], ["p" if last else f"r{layer}"]))
        at = f"r{layer}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", sizes[0]), ("p", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(made.SerializeToString())


def _measured(driver: Generator, port: int, process: int, requests: Path, plan: Seconds, seed: int) -> dict[str, Any]:
    load = Load(driver, port, process, requests, seed)
    peaks = {count: load.peak(count, plan.peak) for count in CLOSED}
    count, peak = max(peaks.items(), key=lambda item: item[1].per_s)
    rates = ", ".join(f"{pace.per_s:,.0f} at {pace.share:.2f} of a core" for pace in peaks.values())
    sys.stderr.write(f"serve-overload: in a closed loop {rates}\n")
    # connections and buffers of the overload are there once, then it is held against itself
    driver.drive(port, requests, CONNECTIONS, [(TIMES * peak.per_s, 2.0)], seed)
    before = memory_mib(process)
    phases = [(peak.per_s / 2, 2.0), (TIMES * peak.per_s, plan.overload), (peak.per_s / 2, plan.after)]
    with ThreadPoolExecutor(1) as pool:
        share = pool.submit(_share, process, 2.0, plan.overload)
        found = driver.drive(port, requests, CONNECTIONS, phases, seed)
    grown = 100 * (memory_mib(process) / before - 1)
    loud = Pace(found["phases"][1]["ok"] / plan.overload, share.result())
    return _summary(found, load.rounds(count, plan), Minute(peak, loud, grown, before), plan)


@dataclass(frozen=True, slots=True)
class Minute:
    """The peak before the minute, what was answered in it, how much memory grew (percent), and from how many MiB."""

    peak: Pace
    loud: Pace
    grown: float
    memory: float


@dataclass(frozen=True, slots=True)
class Round:
    """Some seconds of overload, in which so many were ``refused`` a second, between two peaks, here their mean."""

    peak: Pace
    loud: Pace
    refused: float

    @property
    def ratio(self) -> float:
        """The share of the peak that is left."""
        return self.loud.per_s / self.peak.per_s

    @property
    def refusal_s(self) -> float:
        """How long the server ran for a refusal."""
        return (self.loud.share - self.loud.per_s * self.peak.each) / max(self.refused, 1e-9)


@dataclass(frozen=True, slots=True)
class Load:
    """A server under test and the generator of its load."""

    driver: Generator
    port: int
    process: int
    requests: Path
    seed: int

    def peak(self, count: int, seconds: float) -> Pace:
        """Return the answers a second in a closed loop of ``count`` connections, which no queue refuses."""
        return self._pace(count, 0.0, seconds)[0]

    def rounds(self, count: int, plan: Seconds) -> list[Round]:
        """Return rounds of overload between peaks of ``count`` connections."""
        peaks, louds = [self.peak(count, plan.round)], []
        for _ in range(plan.rounds):
            louds.append(self._pace(CONNECTIONS, TIMES * peaks[-1].per_s, plan.round))
            peaks.append(self.peak(count, plan.round))
        around = [mean(pair) for pair in itertools.pairwise(peaks)]
        return [Round(peak, *loud) for peak, loud in zip(around, louds, strict=True)]

    def _pace(self, count: int, rate: float, seconds: float) -> tuple[Pace, float]:
        with ThreadPoolExecutor(1) as pool:
            share = pool.submit(_share, self.process, WARM_S, seconds)
            phases = [(rate, WARM_S), (rate, seconds)]
            found = self.driver.drive(self.port, self.requests, count, phases, self.seed)["phases"][1]
        return Pace(found["ok"] / seconds, share.result()), found["refused"] / seconds


def mean(paces: Sequence[Pace]) -> Pace:
    """Return the pace in the middle of some that were taken for equally long."""
    return Pace(statistics.mean(pace.per_s for pace in paces), statistics.mean(pace.share for pace in paces))


def _share(process: int, begin: float, seconds: float) -> float:
    """Return the share of a core that a process takes from ``begin`` seconds on, the edges left out."""
    time.sleep(begin + EDGE_S)
    before, began = processor_s(process), time.perf_counter()
    time.sleep(seconds - 2 * EDGE_S)
    return (processor_s(process) - before) / (time.perf_counter() - began)


def _summary(found: dict[str, Any], rounds: list[Round], minute: Minute, plan: Seconds) -> dict[str, Any]:
    calm, loud, after = found["phases"]
    begin = round((2.0 + plan.overload) / found["window_s"])
    ratios = [item.ratio for item in rounds]
    row_s = statistics.median(item.peak.each for item in rounds)
    refusal_s = statistics.median(item.refusal_s for item in rounds)
    return {
        "metrics": {
            "goodput_ratio": statistics.median(ratios),
            "goodput_ratio_least": min(ratios),
            "goodput_ratio_most": max(ratios),
            "goodput_ratio_minute": minute.loud.per_s / minute.peak.per_s,
            "row_us": 1e6 * row_s,
            "refusal_us": 1e6 * refusal_s,
            "row_us_for_aim": 1e6 * refusal_s * (TIMES - AIM) / (1 - AIM),
            "rejected_p99_ms": loud["refused_p99_ms"],
            "recovery_s": recovered(found["windows"], begin, found["window_s"], plan.after),
            "memory_growth_percent": minute.grown,
            "peak_per_s": minute.peak.per_s,
            "peak_share": minute.peak.share,
            "overload_share": minute.loud.share,
            "offered_per_s": loud["sent"] / plan.overload,
            "goodput_per_s": minute.loud.per_s,
            "rejected_per_s": loud["refused"] / plan.overload,
            "rejected_max_ms": loud["refused_max_ms"],
            "answered_p99_ms": loud["ok_p99_ms"],
            "lost": sum(phase["broken"] + phase["other"] for phase in found["phases"]) + found["unanswered"],
            "memory_mib": minute.memory,
        },
        "tables": {
            "phases": [{"phase": name, **phase} for name, phase in zip(PHASES, found["phases"], strict=True)],
            "rounds": [
                {"peak_per_s": item.peak.per_s, "goodput_per_s": item.loud.per_s, "refused_per_s": item.refused,
                 "goodput_ratio": item.ratio} for item in rounds
            ],
        },
        "aims": {
            "goodput_ratio": "≥ 0.9", "rejected_p99_ms": "≤ 100", "recovery_s": "< 2", "memory_growth_percent": "≤ 5",
        },
        "notes": [
            f"at half of the peak: p99 {calm['ok_p99_ms']:.3g} ms before, {after['ok_p99_ms']:.3g} ms after it",
            f"{CONNECTIONS} connections, each with one request at a time; times count from when a request was due",
            f"recovered: from then on nothing is refused and every answer comes within {CALM_MS:g} ms",
            "goodput_ratio: the median of rounds, each of some seconds against the peaks before and after it",
            "goodput_ratio_least, _most: of those rounds; _minute: the whole minute against the peak before it",
            "peak_share, overload_share: of its core, what the server had; less than 1 where others ran on it",
            "row_us: how long the server ran for a row at the peak; refusal_us: how much longer for a refusal; medians",
            "alone on its core, it keeps (row_us - 5 refusal_us) / (row_us - refusal_us) of its peak",
            "row_us_for_aim: rows that take as long keep 0.9 of the peak, by that formula",
            "memory growth: resident memory after the overload against that after two seconds of it",
        ],
    }  # fmt: skip


PHASES = ("half", "five times", "half again")


def recovered(windows: Sequence[Sequence[float]], begin: int, window_s: float, after_s: float) -> float | None:
    """Return the seconds from window ``begin`` until all are answered in time; ``None`` if they never are."""
    end = min(len(windows), begin + round(after_s / window_s))
    bad = [at for at in range(begin, end) if windows[at][2] or windows[at][3] or windows[at][4] > CALM_MS]
    if bad and bad[-1] >= end - 1:
        return None
    return (bad[-1] + 1 - begin) * window_s if bad else 0.0
