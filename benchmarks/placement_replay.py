"""Placement in the simulator: replay of a recorded cluster, decisions per second, fairness and deadlines.

Seconds are CPU seconds of one core, of the replay alone (reading the trace and the check before a plan are not in
it). A decision is one look at one waiting task that ends in a start or in waiting on; tasks that a name of the cluster
blocks are not looked at and not counted. Lines are those of code: no imports, docstrings, comments or blank lines.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from plugins.placement.tests.fairness import compute_fairness_error
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.policies.registry import CLASSES, PolicyRule, build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import SimulationResult, collect_result, prepare_simulation, run_simulation
from unfold_placement.workload.build import policy_rules
from unfold_placement.workload.tables import openb_nodes, openb_tasks

FASTER = (1.0, 10_000.0)
PART = 4
FIVE: dict[str, Any] = {
    "anti-affinity": {"by": "user", "density": 14},
    "limit": {"most": 1_000_000, "by": "user"},
    "all": [
        {"anti-affinity": {"by": "role", "density": 15}},
        {"anti-affinity": {"by": "job", "density": 16}},
        {"limit": {"most": 1_000_000, "by": "", "name": "licence"}},
    ],
}


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Measure the simulator.

    Args:
        quick: Fewer random cases.
        seed: Seed of the random cases.
        data: Folder that holds ``cluster``.

    Returns:
        ``metrics``, ``peers``, ``tables``, ``aims`` and ``notes``.
    """
    nodes = list(openb_nodes(data / "cluster" / "openb_nodes.csv.gz"))
    rows = [
        _openb(nodes, data / "cluster" / "openb_pods.csv.gz", faster, name) for faster in FASTER for name in POLICIES
    ]
    whole = [row for row in rows if row["policy"] == "drf"]
    five = five_names(20_000 if quick else 100_000, seed)
    rng = np.random.default_rng(seed)
    errors = [_fairness(rng) for _ in range(20 if quick else 200)]
    cases = [_deadlines(rng) for _ in range(50 if quick else 500)]
    lines = list(policy_lines())
    rounds = 1 if quick else 3
    growth = {
        (name, load): measure_growth(name, load, seed, rounds=rounds) for name in GROWING for load in (STEADY, OVERLOAD)
    }
    metrics = {
        "openb_seconds": max(row["cpu_s"] for row in whole),
        "openb_pods": whole[0]["tasks"],
        "openb_nodes": max(row["nodes"] for row in whole),
        "decisions_per_s": five["decisions"] / five["cpu_s"],
        "starts_per_s": five["tasks"] / five["cpu_s"],
        "live_names": five["names"],
        "violations": sum(row["violations"] for row in rows),
        "fairness_error_tasks": max(max(pair) for pair in errors),
        "wfq_error_tasks": max(pair[0] for pair in errors),
        "drf_error_tasks": max(pair[1] for pair in errors),
        "edf_unlike_brute_force": sum(cases),
        "edf_cases": len(cases),
        **{f"{name}_growth": _grow(growth[name, STEADY]) for name in GROWING},
        **{f"{name}_growth_overloaded": _grow(growth[name, OVERLOAD]) for name in GROWING},
        "policy_lines_median": median(row["lines"] for row in lines),
        "policy_lines_max": max(row["lines"] for row in lines),
    }
    aims = {"openb_seconds": "< 2", "decisions_per_s": "≥ 300,000", "violations": "0", "fairness_error_tasks": "≤ 1"}
    aims |= {"edf_unlike_brute_force": "0", "policy_lines_median": "≤ 25"}
    aims |= {"limit_growth": "≤ 4.4", "gang_growth": "≤ 4.4"}
    tables = {"openb": rows, "lines": lines, "growth": [row for pair in growth.values() for row in pair]}
    return {"metrics": metrics, "aims": aims, "tables": tables, "notes": _notes()}


POLICIES: dict[str, dict[str, Any]] = {"none": {}, "drf": {"drf": {"backfill": True}}, "wfq": {"wfq": {}}}


def _openb(nodes: Sequence[Node], path: Path, faster: float, name: str) -> dict[str, Any]:
    """Replay openb; where arrivals are squeezed, on a quarter of the nodes, so that there is a queue."""
    tasks = list(openb_tasks(path, "qos", faster))
    machines = nodes if faster == 1.0 else nodes[::PART]
    rules = policy_rules(PolicySpec.model_validate(POLICIES[name], strict=False))
    found, seconds = timed(machines, tasks, lambda: build_policies(rules))
    waits = found.start_s - np.array([task.arrival for task in tasks])
    return {
        "policy": name, "faster": faster, "nodes": len(machines), "tasks": len(tasks), "cpu_s": seconds,
        "mean_wait_s": float(waits.mean()), "decisions": found.decisions, "stuck": len(found.stuck),
        "violations": sum(1 for _ in find_violations(found, rules)),
    }  # fmt: skip


def five_names(count: int, seed: int) -> dict[str, Any]:
    """Replay many short tasks that ask for five names each, more than the nodes can run, so that there is a queue."""
    rng = np.random.default_rng(seed)
    machines = [Node(f"n{i}", {"cpu": 16_000}) for i in range(256)]
    arrivals, runs = np.cumsum(rng.exponential(1 / 210, count)), rng.exponential(10.0, count)
    demands = rng.integers(1, 4, count)
    tasks = [
        Task(f"t{i}", {"cpu": int(demands[i]) * 1000}, float(runs[i]), float(arrivals[i]), "work", "u", "work")
        for i in range(count)
    ]
    rules = policy_rules(PolicySpec.model_validate(FIVE, strict=False))
    found, seconds = timed(machines, tasks, lambda: build_policies(rules))
    names = len(found.table.name_ids)
    return {"decisions": found.decisions, "cpu_s": seconds, "tasks": count, "names": names, "stuck": len(found.stuck)}


GROWING: dict[str, dict[str, Any]] = {"limit": {"limit": {"most": 20, "by": "user"}}, "gang": {"gang": {}}}
GROWTH_TASKS = 3000, 12_000
GROWTH_TRACES = 5
"""Traces of each size: how long the queue of a single one becomes is chance."""
SLOTS, GANG, RUN_S = 200, 4, 100.0
STEADY, OVERLOAD = 0.9, 1.1
"""Offered loads: at one the queue keeps its length, at the other it grows with the number of tasks."""


def measure_growth(name: str, load: float, seed: int, *, rounds: int) -> list[dict[str, Any]]:
    """Replay 3,000 and 12,000 tasks of ten users, on several traces each; CPU seconds are the sum.

    Args:
        name: The policy.
        load: Offered load.
        seed: Seed of the first trace.
        rounds: How often each trace is replayed; the shortest counts.
    """
    rules = policy_rules(PolicySpec.model_validate(GROWING[name], strict=False))
    machines = [Node(f"n{i}", {"gpu": 8000}) for i in range(SLOTS // 8)]
    rows = []
    for count in GROWTH_TASKS:
        cpu_s, waits_s = 0.0, []
        for trace in range(seed, seed + GROWTH_TRACES):
            tasks = list(_growing_tasks(count, GANG if name == "gang" else 1, load, np.random.default_rng(trace)))
            found = [timed(machines, tasks, lambda: build_policies(rules)) for _ in range(rounds)]
            cpu_s += min(seconds for _, seconds in found)
            waits_s.append(float((found[0][0].start_s - np.array([task.arrival for task in tasks])).mean()))
        row = {"policy": name, "load": load, "tasks": count, "cpu_s": cpu_s, "mean_wait_s": float(np.mean(waits_s))}
        rows.append(row)
    return rows


def _grow(rows: Sequence[dict[str, Any]]) -> float:
    """Return the CPU seconds of the larger replay over those of the smaller one."""
    return float(rows[1]["cpu_s"] / rows[0]["cpu_s"])


def _growing_tasks(count: int, size: int, load: float, rng: np.random.Generator) -> Iterator[Task]:
    """Yield tasks of one GPU in jobs of ``size``; as many run at a time as a limit of 20 a user allows."""
    jobs = count // size
    arrivals = np.cumsum(rng.exponential(RUN_S * size / (load * SLOTS), jobs))
    for job in range(jobs):
        length = float(rng.exponential(RUN_S))
        for member in range(size):
            name, user = f"j{job}-{member}", f"u{job % 10}"
            yield Task(name, {"gpu": 1000}, length, float(arrivals[job]), f"j{job}", user, size=size)


def timed(
    nodes: Sequence[Node], tasks: Sequence[Task], make: Callable[[], list[Policy]]
) -> tuple[SimulationResult, float]:
    """Return a replay and its CPU seconds; the first call of all compiles, so a tiny one goes before."""
    run_simulation(prepare_simulation(nodes[:1], [Task("warm", {}, 1.0)], make()))
    loop = prepare_simulation(nodes, tasks, make())
    began = time.process_time()
    run_simulation(loop)
    return collect_result(loop), time.process_time() - began


def _fairness(rng: np.random.Generator) -> tuple[float, float]:
    users = [f"u{i}" for i in range(int(rng.integers(2, 6)))]
    weights = {user: float(rng.integers(1, 6)) for user in users}
    cpu, gpu = rng.integers(1, 5, len(users)), rng.integers(0, 4, len(users))
    node = Node("n", {"cpu": 40_000, "gpu": 24_000})

    def tasks(unlike: bool) -> list[Task]:
        demands = [
            {"cpu": 1000 * int(c), "gpu": 1000 * int(g)} if unlike else {"cpu": 2000}
            for c, g in zip(cpu, gpu, strict=True)
        ]
        return [
            Task(f"{user}-{i}", demands[row], 5.0, job=user, user=user)
            for row, user in enumerate(users)
            for i in range(60)
        ]

    fair = collect_result(
        run_simulation(prepare_simulation([node], tasks(False), build_policies(_rules(wfq={"weights": weights}))))
    )
    even = collect_result(run_simulation(prepare_simulation([node], tasks(True), build_policies(_rules(drf={})))))
    return compute_fairness_error(fair, weights, dominant=False), compute_fairness_error(even, {}, dominant=True)


def _deadlines(rng: np.random.Generator) -> bool:
    jobs = [(int(rng.integers(1, 9)), int(rng.integers(1, 28))) for _ in range(int(rng.integers(1, 7)))]
    tasks = [
        Task(f"t{i}", {"cpu": 1000}, float(run), job=f"t{i}", deadline=float(due)) for i, (run, due) in enumerate(jobs)
    ]
    found = collect_result(
        run_simulation(
            prepare_simulation([Node("n", {"cpu": 1000})], tasks, build_policies(_rules(edf={"admit": False})))
        )
    )
    late = any(end > task.deadline for task, end in zip(found.tasks, found.end_s, strict=True))
    return late != (not any(_kept(order) for order in itertools.permutations(jobs)))


def _kept(order: Sequence[tuple[int, int]]) -> bool:
    return all(end <= due for end, (_, due) in zip(itertools.accumulate(run for run, _ in order), order, strict=True))


def _rules(**parts: Any) -> tuple[PolicyRule, ...]:
    return policy_rules(PolicySpec.model_validate(parts, strict=False))


def policy_lines() -> Iterator[dict[str, Any]]:
    """Yield the lines of code of each policy's class; the parts that policies share come last."""
    shared = {
        "fair queue (shared by five)": "shared.fair_queue:FairQueuePolicy",
        "admission queue (shared by seven)": "shared.admission_queue:AdmissionQueue",
    }
    for name, target in {**CLASSES, **shared}.items():
        policy = pkgutil.resolve_name(f"unfold_placement.policies.{target}")
        yield {"policy": name.replace("_", "-"), "lines": code_lines(inspect.getsource(policy))}


def code_lines(text: str) -> int:
    """Return the lines of a module or class that hold code, without imports and docstrings."""
    tree = ast.parse(text)
    away: set[int] = set()
    for item in ast.walk(tree):
        doc = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
        if isinstance(item, ast.stmt) and (doc or isinstance(item, (ast.Import, ast.ImportFrom))):
            away.update(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in away)


def _notes() -> list[str]:
    return [
        "openb: Alibaba's cluster-trace-gpu-v2023; users are its classes of service; fractions are shares of one GPU.",
        "At its own pace nothing waits; squeezed 10,000 times it runs on a quarter of the nodes.",
        "openb_seconds is the slower of the two replays under DRF, which is asked at every arrival and end.",
        "starts_per_s counts starts alone: there five policies in Python are told of every arrival.",
        "fairness_error_tasks: random users, weights and demands on one node, while all have tasks waiting.",
        "edf_unlike_brute_force: cases on one machine in which EDF is late although some order is not, or the reverse.",
    ]
