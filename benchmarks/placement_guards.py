"""What a guard against starvation costs: a recorded cluster at full load, with and without reserved nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_placement.core.types import Node, Task
from unfold_placement.policies.registry import build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.simulation.simulator import simulate
from unfold_placement.workload.build import policy_rules
from unfold_placement.workload.tables import openb_nodes, openb_tasks

EVERY = 16
MAX_RUN_S = 86_400.0
POOL = "gpu pool"
POLICIES: dict[str, dict[str, Any]] = {
    "no policy": {},
    "fifo": {"fifo": {}},
    "fifo, strict": {"fifo": {"backfill": False}},
    "drf": {"drf": {}},
    "drf with backfill": {"drf": {"backfill": True}},
    "drf with backfill, no guard": {"drf": {"backfill": True, "guard": "none"}},
}


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Replay the recorded cluster at an offered load of one.

    Args:
        quick: Only the policies of the targets.
        seed: Unused: nothing is drawn.
        data: Folder that holds ``cluster``.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    del seed
    nodes = list(openb_nodes(data / "cluster" / "openb_nodes.csv.gz"))[::EVERY]
    tasks = full_load(nodes, list(openb_tasks(data / "cluster" / "openb_pods.csv.gz", "qos", 1.0)))
    pooled_nodes = [replace(node, capacity=_pool_devices(node.capacity)) for node in nodes]
    pooled_tasks = [replace(task, demand=_pool_devices(task.demand)) for task in tasks]
    names = ["no policy", "fifo", "drf with backfill"] if quick else list(POLICIES)
    rows = {name: {**_measure(pooled_nodes, pooled_tasks, name), "gpus": "one pool"} for name in names}
    by_device = {name: {**_measure(nodes, tasks, name), "gpus": "by device"} for name in names}
    metrics = {
        "longest_wait_s": rows["fifo"]["longest_wait_s"],
        "gpu_use": rows["fifo"]["used"],
        "longest_wait_none_s": rows["no policy"]["longest_wait_s"],
        "used_none": rows["no policy"]["used"],
        "longest_wait_drf_s": rows["drf with backfill"]["longest_wait_s"],
        "drf_backfill_gpu_use": rows["drf with backfill"]["used"],
        "longest_wait_by_device_s": by_device["fifo"]["longest_wait_s"],
        "used_by_device": by_device["fifo"]["used"],
        "longest_wait_none_by_device_s": by_device["no policy"]["longest_wait_s"],
        "used_none_by_device": by_device["no policy"]["used"],
        "used_drf_by_device": by_device["drf with backfill"]["used"],
        "tasks": len(tasks),
        "nodes": len(nodes),
    }
    aims = {"longest_wait_s": "<= 25,000", "gpu_use": ">= 0.660", "drf_backfill_gpu_use": ">= 0.64"}
    notes = [
        "openb: every 16th node, tasks of one day at most, arrivals squeezed to an offered GPU load of one.",
        "gpu_use, used: fraction of all GPUs in use until the last arrival; users are the classes of service.",
        "The longest wait is always that of a task of eight GPUs.",
        "The aims refer to a model in which the GPUs of a node are one pool.",
        "By device, as in every replay, a fraction is a share of one GPU: a task of eight waits for eight free ones.",
    ]
    tables = {"policies": [*rows.values(), *by_device.values()]}
    return {"metrics": metrics, "aims": aims, "tables": tables, "notes": notes}


def full_load(nodes: Sequence[Node], tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that some node can hold, with arrivals at which they demand all GPUs on average."""
    kept = [task for task in tasks if 0 < task.run <= MAX_RUN_S]
    gpus = sum(node.capacity.get("gpu", 0) for node in nodes)
    work = sum(task.demand.get("gpu", 0) * task.run for task in kept)
    first, last = min(task.arrival for task in kept), max(task.arrival for task in kept)
    faster = (last - first) * gpus / work
    return [replace(task, arrival=(task.arrival - first) / faster) for task in kept if _fits_some(nodes, task)]


def _pool_devices(amounts: Mapping[str, int]) -> dict[str, int]:
    """Return amounts in which GPUs are no devices but a pool that fractions fill at will."""
    return {POOL if kind == "gpu" else kind: amount for kind, amount in amounts.items()}


def _fits_some(nodes: Sequence[Node], task: Task) -> bool:
    return any(all(node.capacity.get(kind, 0) >= amount for kind, amount in task.demand.items()) for node in nodes)


def _measure(nodes: Sequence[Node], tasks: Sequence[Task], name: str) -> dict[str, Any]:
    rules = policy_rules(PolicySpec.model_validate(POLICIES[name], strict=False))
    began = time.process_time()
    result = simulate(nodes, tasks, build_policies(rules))
    cpu_s = time.process_time() - began
    waits_s = result.start_s - np.array([task.arrival for task in tasks])
    gpus = np.array([task.demand.get("gpu", task.demand.get(POOL, 0)) for task in tasks])
    last_s = max(task.arrival for task in tasks)
    busy = (gpus * (np.clip(result.end_s, 0, last_s) - np.clip(result.start_s, 0, last_s))).sum()
    total = sum(node.capacity.get("gpu", node.capacity.get(POOL, 0)) for node in nodes)
    return {
        "policy": name, "mean_wait_s": float(waits_s.mean()), "longest_wait_s": float(waits_s.max()),
        "mean_wait_8gpu_s": float(waits_s[gpus == gpus.max()].mean()), "used": float(busy / total / last_s),
        "cpu_s": cpu_s,
    }  # fmt: skip
