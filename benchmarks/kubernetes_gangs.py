"""Jobs and JobSets on a real control plane: while controllers are killed, beside Kueue, and amid node churn."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gang_counts import GangLog, gang_of, leaked_gates, leaked_names
from tests.kubernetes.apply import apply
from tests.kubernetes.cluster import ControlPlane, control_plane
from tests.kubernetes.kubelet import add_node, add_nodes, kubelet
from tests.kubernetes.kueue import create, kueue_manager
from tests.kubernetes.kueue_jobs import QUEUE_LABEL
from tests.kubernetes.workloads import GPU, TASK, job, jobset, list_path, workload_controllers
from unfold_placement.kubernetes.backend import OWNER
from unfold_placement.kubernetes.manifests import build_roles
from unfold_placement.kubernetes.objects.codec import Scope
from unfold_placement.kubernetes.objects.workloads import POLICY
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, Body, call_all, connect_api
from unfoldkit.kubernetes.reflector import Reflector

PODS = "/api/v1/namespaces/unfold/pods"
NODES = "/api/v1/nodes"
NODE_COUNT = 16
RESOURCES = {"cpu": "64", "memory": "256Gi", GPU: "4"}
SCOPE = Scope("gangs", "unfold")
PART_LIMIT_S = 20.0
"""A gang may be in part for so long: the leader's lease (5 s), a pod's patience (10 s), and the repair."""
SETTLE_S = 30.0
"""Time after the last deletion in which gates and names may still go."""
WAIT_S = 180.0
IN_FLIGHT = 48
"""Gangs that are there at a time."""
WIDTH = 3
"""Pods of a Job, measured for latency."""
PARTS: Mapping[str, Any] = {"gang": {"by": "job"}, "anti-affinity": {"by": "job", "density": 4}}
"""The policies that are killed and meet churn: both keep resources on nodes."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        gangs: Jobs and JobSets that are placed while the controller is killed.
        kills: How often it is.
        rounds: Turns of ours, Kueue and kube-scheduler.
        jobs: Jobs of each in a turn.
        churn_s: Duration of the churn.
        drain_s: How long gangs may take to end afterwards.
    """

    gangs: int
    kills: int
    rounds: int
    jobs: int
    churn_s: float
    drain_s: float


@dataclass(slots=True)
class Fleet:
    """Two processes of ``unfold serve``, as the shipped Deployment runs: one leads, and one that is killed is replaced.

    Attributes:
        plane: The control plane.
        folder: Where the spec, the runs and the output are.
        api: The administrator's connection.
        processes: Those that live.
        starts: How many were started.
    """

    plane: ControlPlane
    folder: Path
    api: Api
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    starts: int = 0

    def start(self) -> None:
        """Start a further process."""
        words = [sys.executable, "-m", "unfoldkit", "serve", str(self.folder / "spec.yaml"), "--port", "0"]
        words += ["--run", str(self.folder / f"run{self.starts}")]
        with (self.folder / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(words, stdout=log, stderr=log))
        self.starts += 1

    def leader(self) -> subprocess.Popen[bytes]:
        """Wait until one of the processes leads, and return it."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/unfold/leases/{SCOPE.record}"
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            with contextlib.suppress(ApiError):
                holder = self.api.get(path)["spec"]["holderIdentity"]
                for process in self.processes:
                    if holder.endswith(f"-{process.pid}"):
                        return process
            ended = [process.returncode for process in self.processes if process.poll() is not None]
            if ended:
                raise RuntimeError(f"a controller ended with {ended}: {self.last_words()}")
            time.sleep(0.1)
        raise RuntimeError(f"no controller leads after {WAIT_S:.0f} s: {self.last_words()}")

    def kill_leader(self) -> None:
        """Kill the leader with SIGKILL, and start another process."""
        leader = self.leader()
        leader.kill()
        leader.wait()
        self.processes.remove(leader)
        self.start()

    def last_words(self) -> str:
        """Return what the processes printed last."""
        return (self.folder / "log").read_text("utf-8", errors="replace")[-3000:]

    def stop(self) -> None:
        """End all processes; the leader resigns."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


@contextlib.contextmanager
def fleet(plane: ControlPlane, folder: Path, policy: Mapping[str, Any], count: int = 2) -> Iterator[Fleet]:
    """Serve a policy until the block ends; one process leads when it begins."""
    folder.mkdir()
    cluster = {"context": "controller", "kubeconfig": str(plane.kubeconfig), "namespace": SCOPE.namespace}
    spec = {
        "version": 1, "kind": "placement", "name": SCOPE.name, "policy": dict(policy),
        "cluster": {"kubernetes": cluster},
    }  # fmt: skip
    (folder / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    made = Fleet(plane, folder, connect_api("admin", kubeconfig=str(plane.kubeconfig)))
    try:
        for _ in range(count):
            made.start()
        made.leader()
        yield made
    finally:
        made.stop()


@dataclass(slots=True)
class Watch:
    """What a watch of the pods shows of gangs; ``news`` guards the log and announces its changes."""

    api: Api
    log: GangLog = field(default_factory=lambda: GangLog(SCOPE.gate))
    news: threading.Condition = field(default_factory=threading.Condition)
    pods: dict[str, Body] = field(default_factory=dict)

    def handle(self, body: Body, *, is_gone: bool = False) -> None:
        """Record a pod."""
        with self.news:
            name = body["metadata"]["name"]
            if is_gone:
                self.pods.pop(name, None)
            else:
                self.pods[name] = body
            self.log.note(body, time.monotonic(), is_gone=is_gone)
            self.news.notify_all()

    def missing(self, there: set[tuple[str | None, str]]) -> list[Body]:
        """Return the pods that are not among those that exist."""
        with self.news:
            return [body for name, body in self.pods.items() if ("unfold", name) not in there]

    def is_placed(self, gang: str) -> bool:
        """Return whether all pods of a gang have been on nodes."""
        return gang in self.log.placed_s

    def is_gone(self, gang: str) -> bool:
        """Return whether no pod of a gang is left."""
        return not any(gang_of(pod) == gang for pod in self.pods.values())

    def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something about the pods holds; return whether it does."""
        with self.news:
            return self.news.wait_for(holds, timeout_s)


@contextlib.contextmanager
def watch(plane: ControlPlane) -> Iterator[Watch]:
    """Follow the pods of the namespace with a connection of its own."""
    made = Watch(connect_api("admin", kubeconfig=str(plane.kubeconfig)))
    thread = Reflector(made.api, PODS, made.handle, made.missing).start()
    try:
        yield made
    finally:
        made.api.close()
        thread.join(10)


@dataclass(slots=True)
class Feeder:
    """Creates gangs, Jobs and JobSets in turn, and deletes each once all its pods have succeeded.

    Attributes:
        api: The administrator's connection.
        seen: The watch.
        rng: Draws sizes and run times.
        stem: Beginning of the names.
        runs_s: Shortest and longest run time.
        kinds: Kind of each gang that is there.
        made: How many were created.
        ended: How many were deleted after their end.
    """

    api: Api
    seen: Watch
    rng: random.Random
    stem: str
    runs_s: tuple[float, float]
    kinds: dict[str, str] = field(default_factory=dict)
    made: int = 0
    ended: int = 0

    def work(self, want: int, in_flight: int) -> None:
        """Delete what has ended, and create gangs until ``want`` were made or ``in_flight`` are there."""
        with self.seen.news:
            over = [gang for gang in self.kinds if self.seen.log.has_ended(gang)]
        self.delete(over)
        self.ended += len(over)
        calls = []
        while self.made < want and len(self.kinds) < in_flight:
            kind, name = ("Job", "JobSet")[self.made % 2], f"{self.stem}{self.made}"
            size, run_s = self.rng.randint(2, 4), self.rng.uniform(*self.runs_s)
            body = (
                job(name, size, run_s, {POLICY: SCOPE.name})
                if kind == "Job"
                else jobset(name, size - 1, run_s, SCOPE.name)
            )
            with self.seen.news:
                self.seen.log.expect(name, size)
            self.kinds[name] = kind
            self.made += 1
            calls.append(partial(self.api.post, list_path(kind), body))
        _all(calls)

    def delete(self, gangs: Sequence[str]) -> None:
        """Delete gangs; the garbage collector deletes their pods."""
        with self.seen.news:
            for gang in gangs:
                self.seen.log.close(gang, time.monotonic())
        how = {"propagationPolicy": "Background"}
        _all([partial(self.api.delete, f"{list_path(self.kinds.pop(gang))}/{gang}", how) for gang in gangs])

    def drain(self, timeout_s: float) -> list[str]:
        """Wait until all gangs have ended, delete them, and return those that never did."""
        end = time.monotonic() + timeout_s
        while self.kinds and time.monotonic() < end:
            self.work(0, 0)
            time.sleep(0.2)
        stuck = sorted(self.kinds)
        self.delete(stuck)
        return stuck


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for refused in filter(lambda item: isinstance(item, ApiError), call_all(calls) if calls else ()):
        raise refused


def killed(served: Fleet, seen: Watch, gangs: int, kills: int, rng: random.Random) -> dict[str, float]:
    """Place gangs while the leader is killed with SIGKILL at random moments of the run.

    Returns:
        Gangs that were placed, those seen in part, the longest time (s) in part, kills, and gangs that never ended.
    """
    feeder = Feeder(served.api, seen, rng, "k", (0.5, 2.5))
    # between the first and the last gang, so that each kill meets some
    moments = sorted(rng.uniform(0.02, 0.98) * gangs for _ in range(kills))
    began_s, last_s, done = time.monotonic(), time.monotonic(), 0
    while feeder.ended < gangs and time.monotonic() < last_s + WAIT_S:
        ended = feeder.ended
        feeder.work(gangs, IN_FLIGHT)
        last_s = time.monotonic() if feeder.ended > ended else last_s
        if done < kills and feeder.ended >= moments[done]:
            time.sleep(rng.uniform(0.0, 1.0))
            served.kill_leader()
            done += 1
            print(f"kill {done} of {kills}, {feeder.ended} of {gangs} gangs have ended", file=sys.stderr)
        time.sleep(0.1)
    work_s = time.monotonic() - began_s
    stuck = feeder.drain(1.0)
    log = seen.log
    placed = sum(gang.startswith("k") for gang in log.placed_s)
    return {
        "job_gangs": placed, "partial_gangs": len(log.partial(PART_LIMIT_S)), "kills": done,
        "unfinished_gangs": len(stuck),
        "longest_part_s": max(log.longest_part_s.values(), default=0.0), "gangs_per_s": feeder.ended / work_s,
    }  # fmt: skip


def churn(served: Fleet, seen: Watch, nodes: Sequence[str], size: Size, rng: random.Random) -> dict[str, float]:
    """Remove, cordon and add nodes at random while gangs come and go; then open all nodes and let the gangs end.

    Returns:
        Events, gangs, those in part, and those that never ended.
    """
    seen.log = GangLog(SCOPE.gate)
    feeder = Feeder(served.api, seen, rng, "c", (1.0, 8.0))
    absent: set[str] = set()
    cordoned: set[str] = set()
    events = 0
    end = time.monotonic() + size.churn_s
    next_s = time.monotonic() + 1.0
    while time.monotonic() < end:
        feeder.work(1_000_000, IN_FLIGHT // 2)
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + rng.uniform(0.3, 2.0)
            _disturb(served.api, rng.choice(list(nodes)), len(nodes), absent, cordoned, rng)
            events += 1
        time.sleep(0.1)
    for name in list(absent):
        _add(served.api, name)
    for name in cordoned:
        _cordon(served.api, name, closed=False)
    stuck = feeder.drain(size.drain_s)
    return {
        "churn_events": events, "churn_gangs": feeder.made, "churn_partial_gangs": len(seen.log.partial(PART_LIMIT_S)),
        "churn_unfinished": len(stuck), "churn_longest_part_s": max(seen.log.longest_part_s.values(), default=0.0),
    }  # fmt: skip


def _disturb(api: Api, name: str, count: int, absent: set[str], cordoned: set[str], rng: random.Random) -> None:
    """Bring a node back if it is away or cordoned; otherwise delete or cordon it, while half of the nodes are left."""
    if name in absent:
        absent.discard(name)
        _add(api, name)
    elif name in cordoned:
        cordoned.discard(name)
        _cordon(api, name, closed=False)
    elif len(absent | cordoned) < count // 2:
        if rng.random() < 0.5:
            absent.add(name)
            api.delete(f"{NODES}/{name}")
        else:
            cordoned.add(name)
            _cordon(api, name, closed=True)


def _add(api: Api, name: str) -> None:
    add_node(api, name, RESOURCES, {})


def _cordon(api: Api, name: str, *, closed: bool) -> None:
    api.patch(f"{NODES}/{name}", {"spec": {"unschedulable": closed}}, MERGE)


def leaks(api: Api, timeout_s: float = SETTLE_S) -> tuple[list[str], list[str]]:
    """Return leaked gates and names after all gangs were deleted, once they are gone or the time is over."""
    end = time.monotonic() + timeout_s
    while True:
        pods = api.get(PODS)["items"]
        gates = leaked_gates(pods, SCOPE.gate, ())
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SCOPE.namespace}/leases"
        leases = api.get(path, labelSelector=f"{OWNER}={SCOPE.name}")["items"]
        # the controller itself is an owner that lives
        owners = [body for body in leases if body["spec"]["holderIdentity"] != SCOPE.name]
        config = api.get(f"/api/v1/namespaces/{SCOPE.namespace}/configmaps/{SCOPE.record}")
        tasks = {pod["metadata"]["name"] for pod in pods}
        names = leaked_names(SCOPE, api.get(NODES)["items"], config, owners, tasks)
        if not (gates or names or pods) or time.monotonic() > end:
            return gates, names
        time.sleep(0.5)


def bound_ms(seen: Watch, stem: str, count: int, labels: Mapping[str, str], *, suspend: bool) -> list[float]:
    """Return ms from the creation of a Job to the binding of its last pod, one Job at a time.

    Raises:
        RuntimeError: a Job is not bound, or its pods do not go, in time.
    """
    times = []
    for number in range(count):
        name = f"{stem}{number}"
        with seen.news:
            seen.log.expect(name, WIDTH)
        began_s = time.monotonic()
        seen.api.post(list_path("Job"), job(name, WIDTH, 1e6, labels, suspend=suspend))
        if not seen.until(partial(seen.is_placed, name), WAIT_S):
            raise RuntimeError(f"{name} is not bound after {WAIT_S:.0f} s")
        times.append(1e3 * (seen.log.placed_s[name] - began_s))
        with seen.news:
            seen.log.close(name, time.monotonic())
        seen.api.delete(f"{list_path('Job')}/{name}", {"propagationPolicy": "Background"})
        if not seen.until(partial(seen.is_gone, name), WAIT_S):
            raise RuntimeError(f"the pods of {name} are there after {WAIT_S:.0f} s")
    return times


def beside_kueue(
    plane: ControlPlane, seen: Watch, folder: Path, rounds: int, jobs: int, *, kueue: bool
) -> dict[str, list[float]]:
    """Measure the same Jobs under ours, Kueue and kube-scheduler alone, in turn; the others do not run meanwhile."""
    found: dict[str, list[float]] = {"ours": [], "kueue": [], "plain": []}
    mine, theirs = {POLICY: SCOPE.name}, {QUEUE_LABEL: "main"}
    for turn in range(rounds):
        with fleet(plane, folder / f"turn{turn}", {"gang": {"by": "job"}}, 1):
            # the first Job shows that it works, and warms it up
            found["ours"] += bound_ms(seen, f"o{turn}-", jobs + 1, mine, suspend=True)[1:]
        if kueue:
            with kueue_manager(plane) as manager:
                _make_queue(manager)
                found["kueue"] += bound_ms(seen, f"q{turn}-", jobs + 1, theirs, suspend=True)[1:]
        found["plain"] += bound_ms(seen, f"p{turn}-", jobs + 1, {}, suspend=False)[1:]
    return found


def _make_queue(api: Api) -> None:
    version = "kueue.x-k8s.io/v1beta2"
    quota = {"name": GPU, "nominalQuota": "1000"}
    group = {"coveredResources": [GPU], "flavors": [{"name": "default", "resources": [quota]}]}
    queue = {"namespaceSelector": {}, "resourceGroups": [group]}
    local = {"name": "main", "namespace": "unfold"}
    for body in (
        {"kind": "ResourceFlavor", "metadata": {"name": "default"}, "spec": {}},
        {"kind": "ClusterQueue", "metadata": {"name": "all"}, "spec": queue},
        {"kind": "LocalQueue", "metadata": local, "spec": {"clusterQueue": "all"}},
    ):
        try:
            create(api, {"apiVersion": version, **body})
        except ApiError as refused:
            if refused.reason != "AlreadyExists":
                raise


def run_seconds(pod: Body) -> float:
    """Return how long the stub of a kubelet runs a pod: as its annotation says, or until it is deleted."""
    text = pod["metadata"].get("annotations", {}).get(TASK)
    return float(json.loads(text)["run"]) if text else float("inf")


def measure(size: Size, seed: int, *, kueue: bool) -> tuple[dict[str, float | None], dict[str, dict[str, float]]]:
    """Measure all three on one control plane.

    Args:
        size: How much.
        seed: Seeds sizes, run times, moments and nodes.
        kueue: Whether Kueue can run here.

    Returns:
        Metrics, and those of the peers by name.
    """
    rng = random.Random(seed)  # noqa: S311 - of gangs and moments
    with (
        tempfile.TemporaryDirectory() as name,
        control_plane() as plane,
        workload_controllers(plane) as api,
        kubelet(connect_api("admin", kubeconfig=str(plane.kubeconfig)), run_seconds),
        watch(plane) as seen,
    ):
        apply(api, build_roles())
        nodes = add_nodes(api, NODE_COUNT, RESOURCES)
        times = beside_kueue(plane, seen, Path(name), size.rounds, size.jobs, kueue=kueue)
        with fleet(plane, Path(name) / "served", PARTS) as served:
            placed = killed(served, seen, size.gangs, size.kills, rng)
            left = [leaks(api)]
            churned = churn(served, seen, nodes, size, rng)
            left.append(leaks(api))
    for names in left:
        print(f"left: {names}", file=sys.stderr)
    metrics: dict[str, float | None] = {
        **placed, **churned,
        "leaked_gates": sum(len(gates) for gates, _ in left), "leaked_names": sum(len(names) for _, names in left),
        "job_bound_p50_ms": median(times["ours"]),
        "kueue_latency_ratio": median(times["ours"]) / median(times["kueue"]) if times["kueue"] else None,
    }  # fmt: skip
    peers = {"kube-scheduler, plain Jobs": {"job_bound_p50_ms": median(times["plain"])}}
    if times["kueue"]:
        peers["Kueue"] = {"job_bound_p50_ms": median(times["kueue"])}
    return metrics, peers
