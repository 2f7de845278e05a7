"""Placement on Kubernetes: a real etcd, kube-apiserver and kube-scheduler on this machine, with 100 stub nodes.

The nodes and the kubelet are stubs (no container runs), everything else is real, and the clients of the measurement
share the processors with all of it. Throughput counts from the first pod that is made to the last that is bound, by a
watch: pods that ask for one name that is on every node and, as a peer, pods that ask for nothing, in turn, medians of
rounds; kube-scheduler alone either way. ``claimed`` pods ask for one name of the whole cluster, each by a claim that is
made with it (``counters: dra``). ``controlled`` pods go through the controller too (``unfold serve``): made
gated, decided on, opened, bound. ``bound_ms`` is from the patch that creates a name on a node to the binding of a pod
that waits for it.

Jobs and JobSets have their real controllers. They are measured one at a time under the controller, Kueue and
kube-scheduler alone, then placed as gangs while the leader of two controllers is killed, then while nodes come and go.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from benchmarks import kubernetes_gangs as job_gangs
from tests.kubernetes import build
from tests.kubernetes.bench import DEFAULT, Bindings, Controlled, Native, bindings, claiming, controlled, native, pod
from tests.kubernetes.cluster import ControlPlane, control_plane
from tests.kubernetes.kubelet import add_nodes, kubelet
from tests.kubernetes.kueue import why_not as kueue_missing
from tests.kubernetes.workloads import why_not as workloads_missing
from unfold_placement.kubernetes.backend import KubernetesBackend, open_backend
from unfold_placement.kubernetes.objects.codec import DRA, Body, Scope
from unfoldkit.kubernetes.api import Api, call_all, connect_api

NODES = 100
GANG = 8
NATIVE = "GenericWorkload=true,GangScheduling=true"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
ALPHA = "scheduling.k8s.io/v1alpha2=true"
METRICS = (
    "bound_p95_ms", "bound_p50_ms", "bound_max_ms", "pods_per_s", "plain_pods_per_s", "claimed_pods_per_s",
    "controlled_pods_per_s", "partial_gangs", "gang_trials", "gang_p50_ms", "gang_p95_ms",
)  # fmt: skip
JOB_METRICS = (
    "job_gangs", "kills", "unfinished_gangs", "longest_part_s", "gangs_per_s", "job_bound_p50_ms",
    "kueue_latency_ratio", "churn_events", "churn_gangs", "churn_unfinished", "churn_partial_gangs",
    "churn_longest_part_s", "leaked_gates", "leaked_names",
)  # fmt: skip
AIMS = {
    "bound_p95_ms": "≤ 1,500", "pods_per_s": "≥ 150", "partial_gangs": "0", "job_gangs": "1,000",
    "kueue_latency_ratio": "≤ 1.2", "leaked_gates": "0", "leaked_names": "0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    pods: int
    rounds: int
    trials: int
    gangs: int


def run(quick: bool, seed: int, data: None = None) -> dict[str, Any]:
    """Measure the mechanism and the controller.

    Args:
        quick: Fewer pods and trials.
        seed: Seeds the gangs, the moments of kills, and the churn.
        data: Not used.

    Returns:
        ``metrics``, ``peers``, ``aims``, ``versions`` and ``notes``; all metrics null where the programs are not built.
    """
    del data
    size = Size(100, 1, 20, 5) if quick else Size(600, 3, 200, 40)
    lacking = build.missing()
    if lacking or importlib.util.find_spec("kubernetes") is None:
        what = f"not built: {', '.join(lacking)}" if lacking else "not installed: the extra kubernetes"
        names = (*METRICS, *JOB_METRICS)
        return {"metrics": dict.fromkeys(names), "aims": AIMS, "notes": [f"{what} (nox -s kubernetes)"]}
    with control_plane(claims=True) as plane:
        named, plain = mechanism(plane, size)
        metrics = {**named, **policies(plane, size)}
    with control_plane(gates=NATIVE, runtime=ALPHA) as plane:
        peer = pod_groups(plane, size)
    jobs, job_peers, job_notes = workloads(quick=quick, seed=seed)
    metrics |= {**jobs, "partial_gangs": metrics["partial_gangs"] + (jobs["partial_gangs"] or 0)}
    notes = [
        "the nodes and the kubelet are stubs; etcd, kube-apiserver and kube-scheduler are real, on this machine",
        f"kube-scheduler at a client QPS of 1,000; {size.pods} pods a round (rounds: {size.rounds}), {NODES} nodes",
        "gang times of both sides are from the first pod's creation to the last binding, one gang at a time waiting",
        *job_notes,
    ]
    return {
        "metrics": metrics, "aims": AIMS, "notes": notes, "versions": {"kubernetes": build.VERSION},
        "peers": {"kube-scheduler, plain pods": plain, "kube-scheduler PodGroup (v1alpha2)": peer, **job_peers},
    }  # fmt: skip


def workloads(*, quick: bool, seed: int) -> tuple[dict[str, Any], dict[str, dict[str, float]], list[str]]:
    """Measure Jobs and JobSets; return metrics, peers and notes. Without their controllers, all metrics are null."""
    if reason := workloads_missing():
        return dict.fromkeys([*JOB_METRICS, "partial_gangs"]), {}, [f"Jobs and JobSets were not measured: {reason}"]
    size = job_gangs.Size(12, 1, 1, 5, 5.0, 5.0) if quick else job_gangs.Size(1000, 20, 10, 20, 1800.0, 660.0)
    no_kueue = kueue_missing()
    metrics, peers = job_gangs.measure(size, seed, kueue=not no_kueue)
    half = f"more than {job_gangs.PART_LIMIT_S:.0f} s"
    notes = [
        f"{size.gangs} gangs: Jobs and JobSets in turn, suspended with the policy's label, 2 to 4 pods of one GPU each",
        f"{job_gangs.NODE_COUNT} nodes of 4 GPUs, at most {job_gangs.IN_FLIGHT} gangs at a time",
        "the controllers of Jobs, JobSets and garbage are real",
        f"of two processes of unfold serve, one leads; it is killed {size.kills} times at random (SIGKILL)",
        f"partial gang: some pods are past the gate or have ended and others are not, for {half} or at the end",
        "partial_gangs adds those of the competing pairs; the churn has figures of its own",
        "latency: from the creation of a Job of three pods to its last binding, median, one Job at a time",
        f"ours, Kueue and kube-scheduler alone run in turn (rounds: {size.rounds}), the others stopped",
        f"churn: {size.churn_s:.0f} s; a node is deleted, cordoned or restored every 0.3 to 2 s, at most half are away",
        f"gangs may end for {size.drain_s:.0f} s after it: the controller of Jobs waits up to 600 s before a new pod",
        "leaked gate: a pod behind the gate whose gang was deleted",
        "leaked name: an extended resource, a record or a Lease of no living task or owner",
        f"leaks are counted {job_gangs.SETTLE_S:.0f} s after the last gang was deleted, if they are still there",
    ]
    if no_kueue:
        notes.append(f"Kueue was not measured: {no_kueue}")
    return metrics, peers, notes


def mechanism(plane: ControlPlane, size: Size) -> tuple[dict[str, float], dict[str, float]]:
    """Measure kube-scheduler with and without a name, and how soon a new name binds who waits for it."""
    speeds: dict[str, list[float]] = {"plain": [], "named": [], "claimed": []}
    api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    add_nodes(api, NODES, {"cpu": "64", "memory": "256Gi"})
    with _backend(plane, "bench") as backend, bindings(api) as seen:
        for node in [item.name for item in backend.snapshot().nodes]:
            backend.create("slot", node, size.pods)
        # with no more than pods, kube-scheduler 1.36.3 left one pod of 600 unbound for two minutes, in two runs of five
        backend.create("licence", amount=2 * size.pods)
        for turn, kind in product(range(size.rounds), speeds):
            bodies = [_pod(f"{kind}-{turn}-{index}", kind, backend.scope) for index in range(size.pods)]
            speeds[kind].append(_throughput(api, seen, bodies))
        waits = _bound(api, backend, seen, size.trials)
    named = {"bound_p95_ms": _percentile(waits, 95), "bound_p50_ms": _percentile(waits, 50), "bound_max_ms": max(waits)}
    found = {f"{kind}_pods_per_s": median(values) for kind, values in speeds.items()}
    named |= {"pods_per_s": found["named_pods_per_s"], "claimed_pods_per_s": found["claimed_pods_per_s"]}
    named |= {"plain_pods_per_s": found["plain_pods_per_s"]}
    return named, {"pods_per_s": found["plain_pods_per_s"]}


def policies(plane: ControlPlane, size: Size) -> dict[str, float]:
    """Measure pods through the controller, and gangs that compete for room for one of them."""
    kubelet_api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    with kubelet(kubelet_api, lambda _pod: float("inf")):
        with controlled(plane, "spread", {"spread": {"skew": size.pods}}) as world:
            seconds = world.throughput(size.pods)
        api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
        add_nodes(api, 3, {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "4"}, lambda _: {}, "g")
        with controlled(plane, "gangs", {"gang": {"patience": "1 h"}}) as world:
            times, partial_gangs = gangs(world, size.gangs)
    return {
        "controlled_pods_per_s": size.pods / seconds, "partial_gangs": partial_gangs, "gang_trials": size.gangs,
        "gang_p50_ms": 1e3 * median(times), "gang_p95_ms": _percentile([1e3 * item for item in times], 95),
    }  # fmt: skip


def pod_groups(plane: ControlPlane, size: Size) -> dict[str, float]:
    """Measure the gangs of this version of Kubernetes, off by default: the same trials."""
    api = connect_api("admin", kubeconfig=str(plane.kubeconfig))
    add_nodes(api, NODES, {"cpu": "64", "memory": "256Gi"})
    add_nodes(api, 3, {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "4"}, lambda _: {}, "g")
    with (
        kubelet(connect_api("admin", kubeconfig=str(plane.kubeconfig)), lambda _pod: float("inf")),
        native(api) as world,
    ):
        times, partial_gangs = gangs(world, size.gangs)
    return {
        "gang_p50_ms": 1e3 * median(times), "gang_p95_ms": _percentile([1e3 * item for item in times], 95),
        "partial_gangs": partial_gangs, "gang_trials": size.gangs,
    }  # fmt: skip


def gangs(world: Controlled | Native, trials: int) -> tuple[list[float], int]:
    """Let two gangs of 8 compete for 12 places, again and again.

    Returns:
        Seconds from the first pod made to the last bound of the gang that won, by trial; and gangs seen in part.
    """
    times, partly = [], 0
    for trial in range(trials):
        names = [f"t{trial}-{side}" for side in "ab"]
        began = time.monotonic()
        world.submit(names, GANG)
        won = world.first_whole(names, GANG)
        times.append(time.monotonic() - began)
        partly += sum(0 < world.placed(name) < GANG for name in names if name != won)
        world.clear(names, GANG)
    return times, partly


def _pod(name: str, kind: str, scope: Scope) -> list[tuple[str, Body]]:
    """Return what is made for a pod, with the paths: its claim, where it has one, and the pod."""
    made = pod(name, {scope.resource("slot"): "1"} if kind == "named" else {})
    claims = [(CLAIMS, claiming(made, "licence", scope))] if kind == "claimed" else []
    return [*claims, (DEFAULT, made)]


def _throughput(api: Api, seen: Bindings, bodies: Sequence[Sequence[tuple[str, Body]]]) -> float:
    """Return pods a second, from the first made to the last bound; all is deleted afterwards, pods first."""
    names = [body["metadata"]["name"] for *_, (_, body) in bodies]
    began = time.monotonic()
    for refused in filter(None, call_all([partial(_make, api, made) for made in bodies])):
        raise refused
    last = max(seen.until(name) for name in names)
    there = [f"{path}/{body['metadata']['name']}" for made in bodies for path, body in made]
    for path in (DEFAULT, CLAIMS):
        call_all([partial(api.delete, name, {"gracePeriodSeconds": 0}) for name in there if name.startswith(path)])
    return len(names) / (last - began)


def _make(api: Api, made: Sequence[tuple[str, Body]]) -> None:
    for path, body in made:
        api.post(path, body)


def _bound(api: Api, backend: KubernetesBackend, seen: Bindings, trials: int) -> list[float]:
    """Return ms from the patch that creates a name to the binding of the pod that waits for it, ten nodes at a time."""
    waits = []
    nodes = [node.name for node in backend.snapshot().nodes]
    for first in range(0, trials, 10):
        names = [f"wait-{index}" for index in range(first, min(first + 10, trials))]
        call_all([partial(api.post, seen.path, pod(name, {backend.scope.resource(name): "1"})) for name in names])
        for name in names:
            seen.unschedulable(name)
        calls: list[Callable[[], float]] = []
        for place, name in enumerate(names):
            calls.append(partial(_create, backend, name, nodes[(first + place) % len(nodes)]))
        began = [call() for call in calls]
        waits += [1e3 * (seen.until(name) - at) for name, at in zip(names, began, strict=True)]
    return waits


def _create(backend: KubernetesBackend, name: str, node: str) -> float:
    began = time.monotonic()
    backend.create(name, node, 1)
    return began


@contextlib.contextmanager
def _backend(plane: ControlPlane, name: str) -> Iterator[KubernetesBackend]:
    made = open_backend(connect_api("admin", kubeconfig=str(plane.kubeconfig)), name, counters=DRA)
    try:
        yield made
    finally:
        made.close()


def _percentile(values: Sequence[float], part: float) -> float:
    return float(np.percentile(values, part))
