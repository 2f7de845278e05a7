"""One point of a growth curve, in a process of its own: `python -m benchmarks.scale_point CURVE SEED SIZE...`.

Prints one JSON object: seconds of the work alone, without making its input or compiling, and the peak memory in MiB.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

TUMOURS = Path(__file__).parents[1] / "plugins/cascade/unfold_cascade/examples/tumours.yaml"
Found = dict[str, Any]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of one call, and what it returned."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def estimator(seed: int, queries: int, stages: int) -> Found:
    """Simulate ``queries`` through a chain of batching stages, one stage in memory at a time."""
    from unfoldkit.arrivals import processes
    from unfoldkit.queueing.stage import Goal, Server, serve

    latency = np.concatenate([[0.0], 0.010 + 0.004 * np.arange(1, 9)])
    server, rate = Server(latency, 3), 300.0

    def chain(arrivals: np.ndarray, count: int) -> float:
        times, items = arrivals, np.arange(arrivals.size, dtype=np.int32)
        for _ in range(count):
            flow = serve(times, items, server, Goal(arrivals))
            times, items = flow.times, flow.items
        return float(times[-1])

    chain(processes.gamma_arrivals(rate, 1.0, np.random.default_rng(seed)), 1)
    arrivals = processes.gamma_arrivals(rate, queries / rate, np.random.default_rng(seed))
    seconds, _ = timed(lambda: chain(arrivals, stages))
    return {"seconds": seconds, "what": f"{arrivals.size / seconds:,.0f} queries a second"}


def placement(seed: int, nodes: int, tasks: int) -> Found:
    """Replay tasks under dominant resource fairness on nodes that are busy for nine tenths."""
    from unfold_placement.core.types import Node, Task
    from unfold_placement.policies.registry import build_policies
    from unfold_placement.schema.policies import PolicySpec
    from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation
    from unfold_placement.workload.build import policy_rules

    rng = np.random.default_rng(seed)
    rules = policy_rules(PolicySpec.model_validate({"drf": {"by": "user"}}, strict=False))
    run_simulation(prepare_simulation([Node("n", {"cpu": 1000})], [Task("warm", {}, 1.0)], build_policies(rules)))
    machines = [Node(f"n{i}", {"cpu": 16_000}) for i in range(nodes)]
    # ten tasks of 60 s fill a node of 16 cores, 1.6 each, to nine tenths
    arrivals = np.cumsum(rng.exponential(60.0 / (9 * nodes), tasks))
    runs, users = rng.exponential(60.0, tasks), rng.integers(0, 8, tasks)
    work = [
        Task(f"t{i}", {"cpu": 1600}, float(runs[i]), float(arrivals[i]), "work", f"u{users[i]}") for i in range(tasks)
    ]
    loop = prepare_simulation(machines, work, build_policies(rules))
    seconds, _ = timed(lambda: run_simulation(loop))
    waiting = int(np.isinf(collect_result(loop).start_s).sum())
    return {"seconds": seconds, "what": f"{tasks / seconds:,.0f} tasks a second, {waiting} waiting for ever"}


def tuning(seed: int, instances: int, stages: int) -> Found:
    """Compute the whole exact cost–deadline frontier of successive halving on up to that many instances."""
    from unfold_tuning.job.profile import LogNormal, Machine, Profile
    from unfold_tuning.job.schedule import build_successive_halving
    from unfold_tuning.planner.frontier import build_stage_costs, search_frontier
    from unfold_tuning.simulator.execution_model import build_execution_model
    from unfoldkit.catalog.billing import Billing

    def plan(limit: int, count: int) -> Any:
        trials = 2 ** (count - 1)
        profile = Profile(LogNormal(20.0), ((1, 1.0), (2, 1.87), (4, 3.42)), startup=LogNormal(60.0))
        machine = Machine("four", 4, 12.24, max_instances=limit, billing=Billing(0.0, 0.0))
        stages = build_successive_halving(trials, 1, trials, 2)
        return search_frontier(build_stage_costs(build_execution_model(stages, profile, machine, 1, seed)))

    plan(8, 3)
    seconds, _ = timed(lambda: plan(instances, stages))
    return {"seconds": seconds, "what": "all plans of the front"}


def gates(seed: int, rows: int) -> Found:
    """Search the gates of three models exactly, over 64 bins a gate."""
    from unfold_cascade.gates.exact_search import search_exact_front

    rng = np.random.default_rng(seed)

    def front(count: int) -> Any:
        score = rng.random((count, 2))
        loss = (rng.random((count, 3)) < np.array([0.2, 0.12, 0.08])).astype(float)
        return timed(lambda: search_exact_front(score, loss, np.array([1.0, 5.0, 25.0]), bins=64))

    front(1000)
    seconds, found = front(rows)
    return {"seconds": seconds, "what": f"{len(found.loss)} policies on the front"}


def server(seed: int, processes: int) -> Found:
    """Drive ``unfold serve --processes`` with single rows from as many generators, in a closed loop for two seconds."""
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "unfoldkit"]
        train = [*words, "train", str(TUMOURS), "--seed", str(seed), "--exit-zero"]
        subprocess.run(train, cwd=folder, check=True, capture_output=True)
        with _served([*words, "serve", "runs/tumours", "--processes", str(processes)], folder) as place:
            body = _body(place)
            file = Path(folder) / "bodies"
            file.write_text(body + "\n")
            with ThreadPoolExecutor(processes) as pool:
                found = list(pool.map(lambda _: _driven(f"{place}/infer", file), range(processes)))
    rate = sum(one["requests_per_s"] for one in found)
    return {"seconds": 1e4 / rate, "what": f"{rate:,.0f} requests a second"}


def _driven(url: str, bodies: Path) -> Mapping[str, Any]:
    words = [sys.executable, "-m", "benchmarks.load", url, str(bodies), "--connections", "16", "--seconds", "2"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _served(words: Sequence[str], folder: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*words, "--port", str(port)], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/v2/health/ready")
        yield f"http://127.0.0.1:{port}/v2/models/tumours"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - our own server
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _body(place: str) -> str:
    with urllib.request.urlopen(place) as reply:  # noqa: S310 - our own server
        width = json.load(reply)["inputs"][0]["shape"][-1]
    tensor = {"name": "x", "shape": [1, width], "datatype": "FP64", "data": [0.5] * width}
    return json.dumps({"inputs": [tensor]})


CURVES: Mapping[str, Callable[..., Found]] = {
    "estimator": estimator, "placement": placement, "tuning": tuning, "gates": gates, "server": server,
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure one point and print it."""
    name, *numbers = arguments
    found = CURVES[name](*map(int, numbers))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak_mib": round(peak)}))


if __name__ == "__main__":
    main(sys.argv[1:])
