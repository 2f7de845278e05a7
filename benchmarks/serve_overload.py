"""Five times more requests than the server can answer: what is still answered, how the rest is refused, and after.

A network (30 features; 17 million weights, which in full batches take less than half a millisecond a row) behind the
project's server on one core; open loop from another. Peak: closed loop with few and with many connections, the better
of them, as the mean of before and after, for a machine may change its pace meanwhile. Between them a minute at five
times the peak, then at half of it. The same with two networks whose rows take longer, since what a refusal costs is the
same for all: the table ``networks``.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_load import BODY, INFER, OURS
from benchmarks.servers import Generator, cores, generator, memory_mib, processor_s, started, write_requests

WIDTH, CLASSES = 30, 2
HIDDEN = (4096, 6144, 8192)
TIMES = 5
AIM = 0.9
CONNECTIONS = 2048
CLOSED = (128, 1024)
CALM_MS = 1000.0
EDGE_S = 0.5


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


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the peak, then overload the same process, then let it recover.

    Args:
        quick: The first network only, and ten seconds of overload in place of sixty.
        seed: Seed of weights, rows and arrivals.
        data: Not used.
    """
    del data
    plan = Seconds(4.0, 10.0, 5.0) if quick else Seconds(10.0, 60.0, 10.0)
    found = [_network(hidden, plan, seed) for hidden in (HIDDEN[:1] if quick else HIDDEN)]
    rows = [{"hidden": size, **_of(one["metrics"])} for size, one in zip(HIDDEN, found, strict=False)]
    return found[0] | {"tables": found[0]["tables"] | {"networks": rows}}


def _of(metrics: dict[str, Any]) -> dict[str, Any]:
    names = ("row_us", "refusal_us", "goodput_ratio", "peak_per_s", "rejected_p99_ms", "recovery_s",
             "memory_growth_percent", "lost")  # fmt: skip
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
    before_it = _peaks(driver, port, process, requests, plan.peak)
    peak = best(before_it)
    # connections and buffers of the overload are there once, then it is held against itself
    driver.drive(port, requests, CONNECTIONS, [(TIMES * peak.per_s, 2.0)], seed)
    before = memory_mib(process)
    phases = [(peak.per_s / 2, 2.0), (TIMES * peak.per_s, plan.overload), (peak.per_s / 2, plan.after)]
    with ThreadPoolExecutor(1) as pool:
        share = pool.submit(_share, process, 2.0, plan.overload)
        found = driver.drive(port, requests, CONNECTIONS, phases, seed)
    grown = 100 * (memory_mib(process) / before - 1)
    after_it = _peaks(driver, port, process, requests, plan.peak)
    around = best([mean(few) for few in zip(before_it, after_it, strict=True)])
    loud = Pace(found["phases"][1]["ok"] / plan.overload, share.result())
    return _summary(found, around, loud, grown, before, plan)


def best(paces: Sequence[Pace]) -> Pace:
    """Return the pace with most answers a second."""
    return max(paces, key=lambda pace: pace.per_s)


def mean(paces: Sequence[Pace]) -> Pace:
    """Return the pace in the middle of some that were taken for equally long."""
    count = len(paces)
    return Pace(sum(pace.per_s for pace in paces) / count, sum(pace.share for pace in paces) / count)


def _peaks(driver: Generator, port: int, process: int, requests: Path, seconds: float) -> list[Pace]:
    """Return the answers a second in closed loops of few and of many connections, which no queue refuses."""
    paces = []
    for count in CLOSED:
        with ThreadPoolExecutor(1) as pool:
            share = pool.submit(_share, process, 1.0, seconds)
            found = driver.drive(port, requests, count, [(0.0, 1.0), (0.0, seconds)])["phases"][1]
        paces.append(Pace(found["ok"] / seconds, share.result()))
    told = ", ".join(f"{pace.per_s:,.0f} at {pace.share:.2f} of a core" for pace in paces)
    sys.stderr.write(f"serve-overload: in a closed loop {told}\n")
    return paces


def _share(process: int, begin: float, seconds: float) -> float:
    """Return the share of a core that a process takes from ``begin`` seconds on, the edges left out."""
    time.sleep(begin + EDGE_S)
    before, began = processor_s(process), time.perf_counter()
    time.sleep(seconds - 2 * EDGE_S)
    return (processor_s(process) - before) / (time.perf_counter() - began)


def _summary(
    found: dict[str, Any], peak: Pace, busy: Pace, grown: float, before: float, plan: Seconds
) -> dict[str, Any]:
    calm, loud, after = found["phases"]
    begin = round((2.0 + plan.overload) / found["window_s"])
    recovery = recovered(found["windows"], begin, found["window_s"], plan.after)
    lost = sum(phase["broken"] + phase["other"] for phase in found["phases"]) + found["unanswered"]
    refused = loud["refused"] / plan.overload
    refusal_s = (busy.share - busy.per_s * peak.each) / max(refused, 1e-9)
    return {
        "metrics": {
            "goodput_ratio": busy.per_s / peak.per_s,
            "goodput_ratio_by_processor": peak.each / busy.each,
            "row_us": 1e6 * peak.each,
            "refusal_us": 1e6 * refusal_s,
            "row_us_for_aim": 1e6 * refusal_s * (TIMES - AIM) / (1 - AIM),
            "rejected_p99_ms": loud["refused_p99_ms"],
            "recovery_s": recovery,
            "memory_growth_percent": grown,
            "peak_per_s": peak.per_s,
            "peak_share": peak.share,
            "overload_share": busy.share,
            "offered_per_s": loud["sent"] / plan.overload,
            "goodput_per_s": busy.per_s,
            "rejected_per_s": refused,
            "rejected_max_ms": loud["refused_max_ms"],
            "answered_p99_ms": loud["ok_p99_ms"],
            "lost": lost,
            "memory_mib": before,
        },
        "tables": {"phases": [{"phase": name, **phase} for name, phase in zip(PHASES, found["phases"], strict=True)]},
        "aims": {
            "goodput_ratio": "≥ 0.9", "rejected_p99_ms": "≤ 100", "recovery_s": "< 2", "memory_growth_percent": "≤ 5",
        },
        "notes": [
            f"at half of the peak: p99 {calm['ok_p99_ms']:.3g} ms before, {after['ok_p99_ms']:.3g} ms after it",
            f"{CONNECTIONS} connections, each with one request at a time; times count from when a request was due",
            f"recovered: from then on nothing is refused and every answer comes within {CALM_MS:g} ms",
            "peak_share, overload_share: of its core, what the server had; less than 1 where others ran on it",
            "goodput_ratio_by_processor: answers for each second that the server ran, against those at the peak",
            "row_us: how long the server ran for a row at the peak; refusal_us: how much longer for a refusal",
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
