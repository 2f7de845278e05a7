"""A change of quota, predicted by a replay and then made on a real Kueue: order of admissions and start times.

Kueue's manager, etcd and kube-apiserver are real, on this machine; Jobs end after their run time by a patch of their
status, and no pod runs. Each instance is a random cohort: queues with both strategies, borrowing and lending limits,
preemption and reclaim, Jobs of several sizes and priorities. Some run and the others wait; then one quota grows or
shrinks. The replay reads what ``kubectl get`` shows at that instant, knows how long each Job really ran, and replays
the new quota.
Starts count from the change. Workloads that are preempted count with the start of the run that they complete.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.kubernetes import build
from tests.kubernetes.cluster import control_plane
from tests.kubernetes.kueue import API, PLURALS, create, kueue_manager, list_objects, why_not
from tests.kubernetes.kueue_jobs import RESOURCE, JobRunner, build_job, run_jobs
from unfold_placement.kueue.comparison import change_quotas
from unfold_placement.kueue.replay import Admission, replay_queues
from unfold_placement.workload.kueue_objects import read_queue_snapshot
from unfoldkit.kubernetes.api import MERGE, Api, Body

METRICS = (
    "order_equal_percent", "start_error_percent_median", "start_error_p90", "start_error_median_s", "preemptions_equal",
    "instances", "workloads", "never_agree", "unchanged_quota_error_median",
)  # fmt: skip
AIMS = {"order_equal_percent": "≥ 95", "start_error_percent_median": "≤ 10"}
KINDS = ("ResourceFlavor", "ClusterQueue", "LocalQueue", "Workload")
TIE_S = 1.0
"""Starts of real Kueue that differ by less have no order: conditions have a resolution of one second."""
PRIORITIES = {"low": 0, "mid": 10, "high": 20}
SETTLE_S = 3.0
LONGEST_WAIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Instance:
    """A random cohort of queues in namespaces of their own, its Jobs, and the quota that changes."""

    prefix: str
    queues: tuple[Body, ...]
    jobs: tuple[Body, ...]
    runs_s: Mapping[str, float]
    changed: str
    quota: int


@dataclass(slots=True)
class Outcome:
    """What Kueue and the replay did with an instance; times in seconds from the change."""

    real_s: dict[str, float] = field(default_factory=dict)
    replayed: dict[str, Admission] = field(default_factory=dict)
    unchanged: dict[str, Admission] = field(default_factory=dict)
    preemptions: dict[str, int] = field(default_factory=dict)


def run(quick: bool, seed: int, data: None = None) -> dict[str, Any]:
    """Compare Kueue with its replay.

    Args:
        quick: Fewer instances.
        seed: Seeds the instances.
        data: Not used.

    Returns:
        ``metrics``, ``aims``, ``tables``, ``versions`` and ``notes``; all metrics null where Kueue is not built.
    """
    del data
    reason = why_not()
    if importlib.util.find_spec("kubernetes") is None:
        reason = "not installed: the extra kubernetes"
    if reason:
        return {"metrics": dict.fromkeys(METRICS), "aims": AIMS, "notes": [reason]}
    rng = np.random.default_rng(seed)
    instances = [draw_instance(f"i{number}", rng) for number in range(2 if quick else 4)]
    with control_plane() as plane, kueue_manager(plane) as api:
        outcomes = measure(api, instances)
    notes = [
        "Kueue, etcd and kube-apiserver are real and share this machine; no pod runs, and Jobs end by their status",
        "the replay knows the run times as measured",
        "order counts pairs of workloads whose starts differ by more than 1 s in Kueue",
        "relative errors are of workloads that start more than 2 s after the change",
    ]
    versions = {"kubernetes": build.VERSION, "kueue": build.KUEUE_VERSION}
    return {
        "metrics": summarize(outcomes), "aims": AIMS, "notes": notes, "versions": versions,
        "tables": {"instances": [describe(*pair) for pair in zip(instances, outcomes, strict=True)]},
    }  # fmt: skip


def draw_instance(prefix: str, rng: np.random.Generator) -> Instance:
    """Draw queues, Jobs and a change of quota."""
    names = [f"{prefix}-{letter}" for letter in "abc"[: int(rng.integers(2, 4))]]
    queues = tuple(_draw_queue(name, f"{prefix}-cohort", rng) for name in names)
    jobs, runs_s = [], {}
    for number in range(int(rng.integers(14, 22))):
        queue, name = names[int(rng.integers(len(names)))], f"j{number}"
        priority = ["low", "mid", "high"][int(rng.choice(3, p=[0.6, 0.3, 0.1]))]
        jobs.append(build_job(name, queue, int(rng.choice([1, 1, 2, 2, 3, 4, 6])), priority_class=priority))
        runs_s[f"{queue}/{name}"] = round(float(rng.uniform(6, 30)), 1)
    quota = int(rng.choice([1, 2, 10, 14]))
    return Instance(prefix, queues, tuple(jobs), runs_s, names[int(rng.integers(len(names)))], quota)


def _draw_queue(name: str, cohort: str, rng: np.random.Generator) -> Body:
    quota: Body = {"name": RESOURCE, "nominalQuota": str(rng.integers(3, 9))}
    if rng.random() < 0.3:
        quota["borrowingLimit"] = str(rng.integers(1, 6))
    if rng.random() < 0.3:
        quota["lendingLimit"] = str(rng.integers(0, 4))
    preemption = {
        "withinClusterQueue": str(
            rng.choice(["Never", "LowerPriority", "LowerOrNewerEqualPriority"], p=[0.5, 0.3, 0.2])
        ),
        "reclaimWithinCohort": str(rng.choice(["Never", "LowerPriority", "Any"], p=[0.4, 0.2, 0.4])),
    }
    spec = {
        "cohortName": cohort,
        "namespaceSelector": {},
        "queueingStrategy": str(rng.choice(["StrictFIFO", "BestEffortFIFO"])),
        "preemption": preemption,
        "resourceGroups": [{"coveredResources": [RESOURCE], "flavors": [{"name": "default", "resources": [quota]}]}],
    }
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec}


def measure(api: Api, instances: Sequence[Instance]) -> list[Outcome]:
    """Run all instances at the same time, each in a cohort of its own."""
    create(
        api,
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "default"}, "spec": {}},
    )
    for name, value in PRIORITIES.items():
        priority = {"kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value, "description": name}
        create(api, {"apiVersion": "kueue.x-k8s.io/v1beta2", **priority})
    for body in (queue for instance in instances for queue in instance.queues):
        name = body["metadata"]["name"]
        create(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        create(api, body)
        meta = {"name": "main", "namespace": name}
        local = {"kind": "LocalQueue", "metadata": meta, "spec": {"clusterQueue": name}}
        create(api, {"apiVersion": "kueue.x-k8s.io/v1beta2", **local})
    time.sleep(SETTLE_S)
    runs_s = {name: run_s for instance in instances for name, run_s in instance.runs_s.items()}
    with run_jobs(api, runs_s) as runner:
        # one Job of each instance a second, so that few are created within the same second
        for round_jobs in itertools.zip_longest(*(instance.jobs for instance in instances)):
            began_s = time.monotonic()
            for body in filter(None, round_jobs):
                create(api, body)
            time.sleep(max(0.0, TIE_S - (time.monotonic() - began_s)))
        time.sleep(SETTLE_S)
        with tempfile.TemporaryDirectory() as folder:
            changed_s, snapshots = _change(api, instances, Path(folder))
            _wait_until_idle(runner, len(runs_s))
            return [
                _compare(instance, snapshot, runner, changed_s)
                for instance, snapshot in zip(instances, snapshots, strict=True)
            ]


def _change(api: Api, instances: Sequence[Instance], folder: Path) -> tuple[float, list[Path]]:
    """Write what Kueue shows, then change one quota of each instance; return when."""
    items = [body for kind in KINDS for body in list_objects(api, kind)]
    path = folder / "kueue.json"
    path.write_text(json.dumps({"kind": "List", "items": items}), encoding="utf-8")
    changed_s = time.monotonic()
    for instance in instances:
        body = next(queue for queue in instance.queues if queue["metadata"]["name"] == instance.changed)
        groups = json.loads(json.dumps(body["spec"]["resourceGroups"]))
        groups[0]["flavors"][0]["resources"][0]["nominalQuota"] = str(instance.quota)
        api.patch(f"{API}/{PLURALS['ClusterQueue']}/{instance.changed}", {"spec": {"resourceGroups": groups}}, MERGE)
    return changed_s, [path] * len(instances)


def _wait_until_idle(runner: JobRunner, count: int) -> None:
    """Wait until all Jobs have ended, or nothing has started or ended for a while: some never start."""
    end_s, seen = time.monotonic() + LONGEST_WAIT_S, (-1, -1)
    while not runner.wait(count, 45.0) and time.monotonic() < end_s:
        with runner.news:
            now = len(runner.ended), sum(map(len, runner.starts.values()))
        if now == seen:
            return
        seen = now


def _compare(instance: Instance, path: Path, runner: JobRunner, changed_s: float) -> Outcome:
    snapshot = read_queue_snapshot(path, 1.0)
    if snapshot is None:
        raise RuntimeError("Kueue shows no ClusterQueue")
    jobs = {name: _job_of(name) for name in (item.name for item in snapshot.workloads)}
    # the admission of the file has a resolution of one second; the runner saw it to the millisecond
    starts = {job: times for job, times in runner.starts.items() if job in instance.runs_s}
    workloads = tuple(
        replace(
            item,
            run_s=_measured_run(jobs[item.name], instance, runner),
            admitted_s=_admitted(item.admitted_s, starts[jobs[item.name]], changed_s)
            if item.admitted_s is not None
            else None,
        )
        for item in snapshot.workloads
        if jobs[item.name] in instance.runs_s
    )
    own = replace(
        snapshot,
        workloads=workloads,
        queues={body["metadata"]["name"]: snapshot.queues[body["metadata"]["name"]] for body in instance.queues},
    )
    changed = change_quotas(own, {instance.changed: instance.quota}, RESOURCE)
    outcome = Outcome()
    for target, source in ((outcome.replayed, changed), (outcome.unchanged, own)):
        target.update({jobs[item.workload.name]: item for item in replay_queues(source)})
    for job in outcome.replayed:
        times = [at_s - changed_s for at_s in starts.get(job, ())]
        outcome.real_s[job] = times[-1] if job in runner.ended else math.inf
        # one that waited at the change starts once without having been preempted
        is_waiting = outcome.replayed[job].workload.admitted_s is None
        outcome.preemptions[job] = max(0, sum(at_s > 0 for at_s in times) - is_waiting)
    return outcome


def _admitted(admitted_s: float, starts_s: Sequence[float], changed_s: float) -> float:
    earlier = [at_s - changed_s for at_s in starts_s if at_s <= changed_s]
    return earlier[-1] if earlier else min(admitted_s, 0.0)


def _measured_run(job: str, instance: Instance, runner: JobRunner) -> float:
    """Return how long a Job really ran: on a busy machine the patch that ends it comes late."""
    if job not in runner.ended or not runner.starts.get(job):
        return instance.runs_s[job]
    return runner.ended[job] - runner.starts[job][-1]


def _job_of(workload: str) -> str:
    namespace, _, name = workload.partition("/")
    return f"{namespace}/{name.removeprefix('job-').rpartition('-')[0]}"


def summarize(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the metrics over all instances."""
    pairs = [pair for outcome in outcomes for pair in _pairs(outcome.real_s, outcome.replayed)]
    errors = [error for outcome in outcomes for error in _errors(outcome.real_s, outcome.replayed)]
    stale = [error for outcome in outcomes for error in _errors(outcome.real_s, outcome.unchanged)]
    relative = [error_s / start_s for error_s, start_s in errors if start_s > 2]
    never = [
        math.isinf(outcome.real_s[job]) == math.isinf(item.end_s)
        for outcome in outcomes
        for job, item in outcome.replayed.items()
    ]
    preemptions = [
        outcome.preemptions[job] == item.preemptions for outcome in outcomes for job, item in outcome.replayed.items()
    ]
    return {
        "order_equal_percent": 100 * sum(pairs) / len(pairs) if pairs else 100.0,
        "start_error_percent_median": 100 * median(relative),
        "start_error_p90": float(np.quantile(relative, 0.9)),
        "start_error_median_s": median(error_s for error_s, _ in errors),
        "preemptions_equal": sum(preemptions) / len(preemptions),
        "instances": len(outcomes),
        "workloads": len(never),
        "never_agree": sum(never) / len(never),
        "unchanged_quota_error_median": median(error_s / start_s for error_s, start_s in stale if start_s > 2),
    }


def _pairs(real_s: Mapping[str, float], replayed: Mapping[str, Admission]) -> list[bool]:
    """Return, for each pair of waiting workloads with an order in Kueue, whether the replay has the same."""
    waiting = [job for job, start_s in real_s.items() if start_s > 0]
    return [
        (real_s[first] < real_s[second]) == (replayed[first].start_s < replayed[second].start_s)
        for first, second in itertools.combinations(waiting, 2)
        if real_s[first] != real_s[second] and abs(real_s[first] - real_s[second]) > TIE_S
    ]


def _errors(real_s: Mapping[str, float], replayed: Mapping[str, Admission]) -> list[tuple[float, float]]:
    """Return the error and the start (s) of each workload that starts after the change on both sides."""
    return [
        (abs(replayed[job].start_s - start_s), start_s)
        for job, start_s in real_s.items()
        if start_s > 0 and math.isfinite(start_s) and math.isfinite(replayed[job].start_s)
    ]


def describe(instance: Instance, outcome: Outcome) -> Body:
    """Return a row about an instance."""
    pairs, errors = _pairs(outcome.real_s, outcome.replayed), _errors(outcome.real_s, outcome.replayed)
    before = next(queue for queue in instance.queues if queue["metadata"]["name"] == instance.changed)
    quota = before["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"]
    return {
        "instance": instance.prefix,
        "queues": len(instance.queues),
        "change": f"{quota} -> {instance.quota}",
        "waiting": len(errors),
        "pairs": len(pairs),
        "pairs_unlike": len(pairs) - sum(pairs),
        "largest_error_s": round(max((error_s for error_s, _ in errors), default=0.0), 1),
    }
