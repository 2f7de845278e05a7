"""Placement on Ray, next to native placement groups: ephemeral resources, competing gangs and throughput.

Three nodes on this machine. ``create`` and ``delete`` are calls from outside through the steward, native ones are
Ray's own placement groups made and removed by this process, in turn. A cycle creates a name, runs a task inside and
deletes it. In a trial two gangs of eight compete for twelve places, under a controller that runs as ``unfold serve``;
``partial`` are starts of fewer than eight. Throughput is of empty tasks, twelve at once: plain ones that ask for
a processor, those that ask for a resource with which nodes were started (``light``), those that ask for a live name,
and those that are submitted to the controller (one decision, one reservation and one message each). The ratio is that
of tasks with a name to the faster of the two without. Every node keeps its worker processes, on both sides: what
starting one takes, a second or so on a machine like this, is Ray's alone and would hide everything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.frame import need
from unfold_placement.live import backend as kinds
from unfold_placement.ray.backend import RayBackend
from unfold_placement.ray.connection import start_coordinator

NODES, PLACES, GANG = 3, 4, 8
NODE = {"num_cpus": PLACES, "resources": {"eph": 100_000, "slot": PLACES}}
SPEC = {
    "version": 1, "kind": "placement", "name": "bench",
    "policy": {"gang": {"by": "job"}},
}  # fmt: skip
LATE = 300.0
KEPT = "16"
"""Worker processes that a node keeps. By itself Ray ends idle ones while groups hold the processors, anybody's."""
Row = dict[str, Any]


def run(quick: bool, seed: int, data: Path | None = None) -> dict[str, Any]:
    """Measure the Ray backend.

    Args:
        quick: Fewer of everything.
        seed: Not used: nothing here is drawn by chance.
        data: Not used.

    Returns:
        ``metrics``, ``peers``, ``tables``, ``aims`` and ``notes``.
    """
    del seed, data
    count = {"names": 60, "cycles": 60, "trials": 15, "tasks": 300} if quick else FULL
    with cluster() as address:
        names, native = latencies(count["names"])
        cycles = used(count["cycles"])
        speeds = throughput(count["tasks"], address)
        trials = compete(count["trials"], address)
        pairs = {"cycle_ms": native_cycles(count["cycles"] // 15), **native_pairs(5)}
        deaths = dead()
    metrics = {
        **names, "cycles": count["cycles"], "cycle_ms": cycles, "raylet_deaths": deaths,
        **trials, **speeds,
    }  # fmt: skip
    return {
        "metrics": metrics,
        "peers": {"native placement groups": {**native, **pairs}},
        "aims": {
            "create_p95_ms": "<= 10", "delete_p95_ms": "<= 5", "cycles": "1,000", "raylet_deaths": "0",
            "gang_trials": "1,000", "gang_deadlocks": "0", "gang_partial": "0", "throughput_ratio": ">= 0.8",
        },
        "notes": [
            f"every node keeps its worker processes (RAY_num_workers_soft_limit={KEPT}), for us and for the peer alike",
            "times of pairs of gangs are medians; each starts with all twelve places free",
        ],
        "versions": {"ray": _ray_version()},
    }  # fmt: skip


NODE_RETRIES = 5
STOP_S = 30
FULL = {"names": 300, "cycles": 1000, "trials": 1000, "tasks": 1200}


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Start three nodes and connect to them; yield the address."""
    need("ray", "ray")
    import ray
    from ray.cluster_utils import Cluster

    # Ray's workers are polite by default: beside other programs that would measure those
    os.environ.update(RAY_worker_niceness="0", RAY_num_workers_soft_limit=KEPT, RAY_USAGE_STATS_ENABLED="0")
    made = Cluster()
    try:
        _add_nodes(made)
        ray.init(address=made.address, namespace="unfold", log_to_driver=False, logging_level="error")
        yield str(made.address)
    finally:
        ray.shutdown()
        made.shutdown()


def _add_nodes(made: Any) -> None:
    """Add the nodes of a cluster; a busy machine may take longer than Ray waits for one.

    Raises:
        TimeoutError: a node did not start, again and again; the message names Ray's last error.
    """
    failure: Exception | None = None
    for _ in range(NODES + NODE_RETRIES):
        if len(made.list_all_nodes()) >= NODES:
            return
        try:
            made.add_node(**NODE, include_dashboard=False)
        except Exception as error:  # noqa: BLE001 - of any layer of Ray
            failure = error
    if len(made.list_all_nodes()) < NODES:
        message = f"{len(made.list_all_nodes())} of {NODES} Ray nodes started in {NODES + NODE_RETRIES} attempts"
        raise TimeoutError(f"{message}: {failure}") from failure


def latencies(count: int) -> tuple[Row, Row]:
    """Return milliseconds of creating and deleting a name, and of Ray's own groups, in turn."""
    from ray.util.placement_group import placement_group, remove_placement_group

    handle = RayBackend(start_coordinator("latency"))
    nodes = [node.name for node in handle.snapshot().nodes]
    spent: dict[str, list[float]] = {"create": [], "delete": [], "make": [], "remove": []}
    for index in range(count + 5):
        node = nodes[index % len(nodes)]
        spent["create"].append(_timed(partial(handle.create, f"x{index}", node, 2)))
        spent["delete"].append(_timed(partial(handle.delete, f"x{index}", node)))
        began = time.perf_counter()
        group = placement_group([{"eph": 2}])
        group.wait(30)
        spent["make"].append((time.perf_counter() - began) * 1e3)
        spent["remove"].append(_timed(partial(remove_placement_group, group)))
    p95 = {key: float(np.percentile(values[5:], 95)) for key, values in spent.items()}
    mid = {key: median(values[5:]) for key, values in spent.items()}
    ours = {"create_p95_ms": p95["create"], "delete_p95_ms": p95["delete"], "create_p50_ms": mid["create"],
            "delete_p50_ms": mid["delete"]}  # fmt: skip
    theirs = {"create_p95_ms": p95["make"], "delete_p95_ms": p95["remove"], "create_p50_ms": mid["make"],
              "delete_p50_ms": mid["remove"]}  # fmt: skip
    return ours, theirs


def used(count: int) -> float:
    """Return the median milliseconds of a cycle: create a name, run a task inside, delete the name."""
    import ray

    from unfold_placement.ray import api as unfold

    handle = RayBackend(start_coordinator("latency"))
    nodes = [node.name for node in handle.snapshot().nodes]
    empty = ray.remote(_nothing)

    def cycle(index: int) -> None:
        name, node = f"c{index}", nodes[index % len(nodes)]
        handle.create(name, node)
        _get(empty.options(**unfold.within(name, node, "latency")).remote())
        handle.delete(name, node, force=True)

    return median(_progress("cycles", count, cycle))


def _get(references: Any) -> Any:
    """Return results of Ray.

    Raises:
        TimeoutError: they did not come in time; the message names what was awaited.
    """
    import ray

    try:
        return ray.get(references, timeout=LATE)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"no result within {LATE} s: {str(references)[:200]}") from error


def native_cycles(count: int) -> float:
    """Return the median milliseconds of the same cycle with Ray's own placement groups."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes()]
    empty = ray.remote(_nothing)

    def cycle(index: int) -> None:
        pinned = {"ray.io/node-id": nodes[index % len(nodes)]}
        group = placement_group([{"eph": 1}], bundle_label_selector=[pinned])
        if not group.wait(LATE):
            raise TimeoutError(f"a placement group was not placed within {LATE} s")
        inside = PlacementGroupSchedulingStrategy(group, 0)
        _get(empty.options(num_cpus=0, resources={"eph": 1}, scheduling_strategy=inside).remote())
        remove_placement_group(group)

    return median(_progress("native cycles", count, cycle))


def throughput(count: int, address: str) -> Row:
    """Return empty tasks a second: plain, asking for a live name, and submitted to a controller; medians of rounds."""
    import ray

    from unfold_placement.ray import api as unfold

    handle = RayBackend(start_coordinator("latency"))
    nodes = [node.name for node in handle.snapshot().nodes]
    for node in nodes:
        handle.create("lane", node, PLACES)
    inside = [ray.remote(_nothing).options(**unfold.within("lane", node, "latency")) for node in nodes]
    plain = ray.remote(_nothing).options(num_cpus=1)
    light = ray.remote(_nothing).options(num_cpus=0, resources={"slot": 1})
    found: dict[str, list[float]] = {"plain": [], "light": [], "named": [], "submitted": []}
    with served(address, "flow", {}):
        _results([unfold.submit(_nothing, policy="flow")])
        _rate(count // 4, lambda _: plain.remote(), _get)
        for _ in range(3):
            found["plain"].append(_rate(count, lambda _: plain.remote(), _get))
            found["light"].append(_rate(count, lambda _: light.remote(), _get))
            found["named"].append(_rate(count, lambda index: inside[index % len(inside)].remote(), _get))
            found["submitted"].append(_rate(count // 3, lambda _: unfold.submit(_nothing, policy="flow"), _results))
    for node in nodes:
        handle.delete("lane", node, force=True)
    rounds = zip(found["named"], found["plain"], found["light"], strict=True)
    ratios = [named / max(bare, other) for named, bare, other in rounds]
    return {"throughput_ratio": median(ratios), **{f"{kind}_per_s": median(rates) for kind, rates in found.items()}}


def compete(count: int, address: str) -> Row:
    """Let two gangs of eight compete for twelve places, again and again; count what never ends or starts in part."""
    from unfold_placement.ray import api as unfold

    deadlocks, trials, sizes = 0, 0, Counter[int]()
    with served(address, "bench", SPEC["policy"]):
        handle = RayBackend(start_coordinator("bench"))
        _results([unfold.submit(_nothing, policy="bench")])
        after = handle.snapshot().after

        def trial(index: int) -> None:
            nonlocal deadlocks, after, trials
            if deadlocks:
                # each further one would wait as long again
                return
            trials += 1
            jobs = [f"{side}{index}" for side in "ab"]
            tasks = [(job, member) for member in range(GANG) for job in jobs]
            done = [
                unfold.submit(_nothing, policy="bench", name=f"{job}-{member}", job=job, size=GANG)
                for job, member in tasks
            ]
            if unfinished := wait(done, LATE).not_done:
                deadlocks += 1
                states = Counter(f"{record.state} {record.outcome}" for record in handle.snapshot().records)
                print(f"{len(unfinished)} tasks of {jobs} did not end within {LATE} s: {states}", file=sys.stderr)
            changes = handle.watch(after, 0.0) or ()
            after = changes[-1].number if changes else after
            starts = Counter(
                (change.record.task.job, change.record.started) for change in changes
                if change.kind == kinds.STARTED and change.record
            )  # fmt: skip
            sizes.update(starts.values())

        spent = _progress("gangs", count, trial)
    partial = sum(number for size, number in sizes.items() if size != GANG)
    times = {"gang_pair_ms": median(spent[:trials])}
    return {"gang_trials": trials, "gang_deadlocks": deadlocks, "gang_partial": partial, **times}


def native_pairs(count: int) -> Row:
    """Return the milliseconds of the same pair of gangs as Ray's own placement groups."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    empty = ray.remote(_nothing)

    def pair(_index: int) -> None:
        groups = {made.ready(): made for made in (placement_group([{"CPU": 1}] * GANG) for _ in range(2))}
        while groups:
            # Ray may place the second group first: waiting for the first one would then wait for ever
            ready, _ = ray.wait(list(groups), timeout=LATE)
            if not ready:
                raise TimeoutError(f"none of {len(groups)} placement groups of {GANG} was placed within {LATE} s")
            group = groups.pop(ready[0])
            inside = empty.options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
            _get([inside.remote() for _ in range(GANG)])
            remove_placement_group(group)

    return {"gang_pair_ms": median(_progress("native gangs", count, pair))}


@contextlib.contextmanager
def served(address: str, name: str, policy: Any) -> Iterator[None]:
    """Serve a policy by the command, until the block ends."""
    from unfold_placement.ray import api as unfold

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(json.dumps({**SPEC, "name": name, "policy": policy, "cluster": {"ray": address}}), "utf-8")
        words = [sys.executable, "-m", "unfoldkit", "serve", str(spec), "--port", "0", "--run", f"{folder}/run"]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                unfold.close(name)
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a served policy; one that does not stop is killed, since leaving its block would wait for it for ever."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        print(f"the served policy did not stop within {STOP_S} s of SIGTERM, and is killed", file=sys.stderr)
        process.kill()
        process.wait(STOP_S)


def dead() -> int:
    """Return how many nodes have died."""
    import ray

    return sum(not node["Alive"] for node in ray.nodes())


def _nothing() -> None:
    return None


def _results(futures: Sequence[Future[Any]]) -> None:
    """Await the results of submitted tasks, all by one deadline.

    Raises:
        TimeoutError: some did not come; the message names how many.
    """
    unfinished = wait(futures, LATE).not_done
    if unfinished:
        raise TimeoutError(f"{len(unfinished)} of {len(futures)} submitted tasks did not end within {LATE} s")
    for future in futures:
        future.result(0)


def _rate(count: int, begin: Callable[[int], Any], finish: Callable[[list[Any]], object]) -> float:
    began = time.perf_counter()
    finish([begin(index) for index in range(count)])
    return count / (time.perf_counter() - began)


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def _progress(title: str, count: int, action: Callable[[int], object]) -> list[float]:
    spent = []
    for index in range(count):
        spent.append(_timed(partial(action, index)))
        if index % 100 == 99:
            print(f"{title}: {index + 1} of {count}, median {median(spent):.1f} ms", file=sys.stderr)
    return spent


def _ray_version() -> str:
    import ray

    return str(ray.__version__)
