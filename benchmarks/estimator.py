"""How fast the estimator is next to SimPy, Ciw and a bare C loop on the same three stages, with equal results.

SimPy and Ciw run on the first part of the trace, as they are slow; rates are by processor time. Ciw has
no service in batches, so it is compared on single servings.
"""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ciw
import numpy as np
import simpy
from numpy.typing import NDArray

from unfoldkit.arrivals import processes
from unfoldkit.queueing.stage import Goal, Server, serve

Times = NDArray[np.float64]
RATE = 300.0
GRID = 2.0**20
C_LOOP = """
#include <math.h>
#include <stdint.h>
int64_t stage(const double *times, const int32_t *items, int64_t n, const double *latency, int64_t batch, int64_t k,
              double *free_at, int64_t *low, int64_t *high, double *out, int32_t *ids) {
  int64_t mask = 1, head = 0, at = 0, w = 0;
  while (mask <= k) mask <<= 1;
  mask -= 1;
  for (int64_t i = 0; i < k; i++) { free_at[i] = -INFINITY; low[i] = high[i] = 0; }
  while (at < n) {
    int64_t s = head & mask;
    double end = free_at[s], start = end > times[at] ? end : times[at];
    for (int64_t i = low[s]; i < high[s]; i++) { out[w] = end; ids[w++] = items[i]; }
    int64_t first = at, limit = at + batch < n ? at + batch : n;
    at++;
    while (at < limit && times[at] <= start) at++;
    double done = start + latency[at - first];
    head++;
    int64_t p = head + k - 1;
    while (p > head && free_at[(p - 1) & mask] > done) {
      free_at[p & mask] = free_at[(p - 1) & mask]; low[p & mask] = low[(p - 1) & mask];
      high[p & mask] = high[(p - 1) & mask]; p--;
    }
    free_at[p & mask] = done; low[p & mask] = first; high[p & mask] = at;
  }
  for (int64_t q = head; q < head + k; q++) {
    int64_t s = q & mask;
    for (int64_t i = low[s]; i < high[s]; i++) { out[w] = free_at[s]; ids[w++] = items[i]; }
  }
  return w;
}
"""


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the estimator beside its peers; times are medians of five."""
    del data
    count = 200_000 if quick else 1_000_000
    arrivals = processes.gamma_arrivals(RATE, count / RATE, np.random.default_rng(seed))
    arrivals = np.round(arrivals * GRID) / GRID
    servers = stages()
    serve_all(arrivals[:1000], servers)
    seconds, finish = timed(lambda: serve_all(arrivals, servers))
    part = arrivals[: 5_000 if quick else 50_000]
    simpy_rate, simpy_finish = simpy_run(part, servers)
    difference = float(np.abs(serve_all(part, servers) - simpy_finish).max())
    c_seconds, c_finish = c_run(arrivals, servers)
    ours = arrivals.size / seconds
    singles = [Server(server.latency[:2], 8) for server in servers]
    ciw_rate, ciw_difference = ciw_run(arrivals[: 2_000 if quick else 20_000], singles)
    single_seconds, _ = timed(lambda: serve_all(arrivals, singles))
    if c_finish is not None:
        difference = max(difference, float(np.abs(finish - c_finish).max()))
    metrics = {
        "queries_per_s": ours,
        "query_stages_per_s": ours * 3,
        "simpy_ratio": ours / simpy_rate,
        "ciw_ratio": arrivals.size / single_seconds / ciw_rate,
        "c_loop_ratio": c_seconds / seconds if c_seconds else None,
        "max_difference_s": difference,
        "queries": arrivals.size,
    }
    peers = {
        "simpy": {"queries_per_s": simpy_rate, "version": simpy.__version__, "queries": part.size},
        "ciw": {"queries_per_s": ciw_rate, "version": ciw.__version__, "max_difference_s": ciw_difference},
        "c": {"queries_per_s": arrivals.size / c_seconds if c_seconds else None},
    }
    notes = [] if c_seconds else ["no C compiler here: c_loop_ratio was not measured"]
    return {"metrics": metrics, "peers": peers, "tables": [], "notes": [*notes, "ciw: single servings, see the module"]}


def stages() -> list[Server]:
    """Return the pipeline of the reference study, on a grid on which sums are exact."""

    def line(base: float, slope: float, batch: int) -> Times:
        table = np.round((base + slope * np.arange(batch + 1)) * GRID) / GRID
        table[0] = 0.0
        return table

    return [Server(line(0.0, 0.004, 1), 3), Server(line(0.010, 0.004, 8), 3), Server(line(0.008, 0.006, 16), 4)]


def serve_all(arrivals: Times, servers: list[Server]) -> Times:
    """Return when each query has left the last stage."""
    times, items = arrivals, np.arange(arrivals.size, dtype=np.int32)
    goal = Goal(arrivals)
    for server in servers:
        flow = serve(times, items, server, goal)
        times, items = flow.times, flow.items
    finish = np.empty(arrivals.size)
    finish[items] = times
    return finish


def timed(action: Callable[[], Times]) -> tuple[float, Times]:
    """Return the median seconds of five calls, and the last result."""
    seconds = []
    for _ in range(5):
        began = time.process_time()
        result = action()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), result


def simpy_run(arrivals: Times, servers: list[Server]) -> tuple[float, Times]:
    """Return queries a second of SimPy, and when each query has left."""
    env = simpy.Environment()
    finish = np.zeros(arrivals.size)
    line = SimpyLine(env, servers, finish)
    env.process(line.source(arrivals.tolist()))
    began = time.process_time()
    env.run()
    return arrivals.size / (time.process_time() - began), finish


class SimpyLine:
    """The pipeline of SimPy processes; what happens at one instant is taken in before anything starts."""

    def __init__(self, env: simpy.Environment, servers: list[Server], finish: Times) -> None:
        self.env, self.finish = env, finish
        self.latency = [server.latency.tolist() for server in servers]
        self.idle = [server.replicas for server in servers]
        self.queues: list[list[int]] = [[] for _ in servers]
        self.asked = [False] * len(servers)

    def source(self, arrivals: list[float]) -> simpy.events.ProcessGenerator:
        """Bring the queries in."""
        for query, arrival in enumerate(arrivals):
            if arrival > self.env.now:
                yield self.env.timeout(arrival - self.env.now)
            self.give(0, query)

    def give(self, stage: int, query: int) -> None:
        """Put a query into the queue of a stage, or note that it has left."""
        if stage == len(self.queues):
            self.finish[query] = self.env.now
            return
        self.queues[stage].append(query)
        self.look(stage)

    def look(self, stage: int) -> None:
        """Start batches at the end of this instant."""
        if not self.asked[stage]:
            self.asked[stage] = True
            event = self.env.timeout(0)
            event.callbacks.append(lambda _event: self.start(stage))

    def start(self, stage: int) -> None:
        """Start batches while there are queries and idle replicas."""
        self.asked[stage] = False
        queue, full = self.queues[stage], len(self.latency[stage]) - 1
        while self.idle[stage] and queue:
            batch, self.queues[stage] = queue[:full], queue[full:]
            queue = self.queues[stage]
            self.idle[stage] -= 1
            self.env.process(self.work(stage, batch))

    def work(self, stage: int, batch: list[int]) -> simpy.events.ProcessGenerator:
        """Serve a batch."""
        yield self.env.timeout(self.latency[stage][len(batch)])
        self.idle[stage] += 1
        self.look(stage)
        for query in batch:
            self.give(stage + 1, query)


def ciw_run(arrivals: Times, servers: list[Server]) -> tuple[float, float]:
    """Return queries a second of Ciw on single servings, and the largest difference to the estimator in s."""
    gaps = np.diff(arrivals, prepend=0.0).tolist()
    count = len(servers)
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([*gaps, 1e12]), *[None] * (count - 1)],
        service_distributions=[ciw.dists.Deterministic(float(server.latency[1])) for server in servers],
        number_of_servers=[server.replicas for server in servers],
        routing=[[1.0 if column == row + 1 else 0.0 for column in range(count)] for row in range(count)],
    )
    simulation = ciw.Simulation(network)
    began = time.process_time()
    simulation.simulate_until_max_time(float(arrivals[-1]) + 1e4)
    seconds = time.process_time() - began
    ends = {r.id_number: r.exit_date for r in simulation.get_all_records() if r.node == count}
    found = np.array([ends[number] for number in sorted(ends)])
    return arrivals.size / seconds, float(np.abs(found - serve_all(arrivals, servers)).max())


def c_run(arrivals: Times, servers: list[Server]) -> tuple[float | None, Times | None]:
    """Return the median seconds of the same kernel in C and its result, or nothing without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None, None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "loop.c", Path(folder) / "loop.so"
        source.write_text(C_LOOP)
        subprocess.run([compiler, "-O2", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        stage = ctypes.CDLL(str(library)).stage
        return timed(lambda: _c_all(stage, arrivals, servers))


def _c_all(stage: Any, arrivals: Times, servers: list[Server]) -> Times:
    times, items = arrivals, np.arange(arrivals.size, dtype=np.int32)
    for server in servers:
        out, ids = np.empty(times.size), np.empty(times.size, dtype=np.int32)
        free, low, high = np.empty(256), np.empty(256, dtype=np.int64), np.empty(256, dtype=np.int64)
        latency = np.ascontiguousarray(server.latency)
        stage(
            times.ctypes, items.ctypes, ctypes.c_int64(times.size), latency.ctypes,
            ctypes.c_int64(latency.size - 1), ctypes.c_int64(server.replicas),
            free.ctypes, low.ctypes, high.ctypes, out.ctypes, ids.ctypes,
        )  # fmt: skip
        times, items = out, ids
    finish = np.empty(arrivals.size)
    finish[items] = times
    return finish
