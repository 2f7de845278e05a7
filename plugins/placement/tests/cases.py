"""Clusters, tasks and a policy that puts names once, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_placement.core.cluster_view import View
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import BEGAN, STATIC, Ask, Event, Node, Put, Task, Transactions
from unfold_placement.policies.registry import PolicyRule, build_policies
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import SimulationResult, simulate
from unfold_placement.workload.build import policy_rules


@dataclass(frozen=True)
class Names:
    """Puts names once, and asks for those that are written down for a task."""

    names: Mapping[tuple[str, str], int]
    asks: Mapping[str, Sequence[Ask]]
    phase: int = STATIC
    watches: frozenset[str] = frozenset({BEGAN})

    def request(self, task: Task) -> Iterable[Ask]:
        return self.asks.get(task.name, ())

    def react(self, event: Event, view: View) -> Transactions:
        yield [Put(name, node, amount) for (name, node), amount in self.names.items()]


def cluster(count: int = 4, gpu: int = 4, racks: int = 2) -> list[Node]:
    """Return nodes with ``gpu`` GPUs and 16 cores, spread over racks."""
    return [Node(f"n{i}", {"gpu": gpu * 1000, "cpu": 16_000}, {"rack": f"r{i % racks}"}) for i in range(count)]


def job(name: str, count: int, run: float = 10.0, at: float = 0.0, **more: Any) -> list[Task]:
    """Return ``count`` tasks of one job that ask for a GPU."""
    task = Task("", {"gpu": 1000}, run, at, name, more.pop("user", name), size=count)
    return [replace(task, name=f"{name}-{i}", **more) for i in range(count)]


def policy(**parts: Any) -> tuple[PolicyRule, ...]:
    """Return the policies that a spec configures under ``policy``."""
    return policy_rules(PolicySpec.model_validate(parts, strict=False))


def run(nodes: Sequence[Node], tasks: Sequence[Task], **parts: Any) -> SimulationResult:
    """Replay under policies, and hold the audit's laws."""
    spec = policy(**parts)
    found = simulate(nodes, tasks, build_policies(spec))
    assert list(find_violations(found, spec)) == []
    return found


def write_csv(folder: Path, text: str) -> Path:
    """Write a table of tasks and return its path."""
    path = folder / "pods.csv"
    path.write_text(text, encoding="utf-8")
    return path


def starts(found: SimulationResult) -> dict[str, float]:
    """Return when each task started last."""
    return dict(zip((task.name for task in found.tasks), found.start_s.tolist(), strict=True))


def places(found: SimulationResult) -> dict[str, str]:
    """Return where each task that started ran last."""
    pairs = zip(found.tasks, found.node_rows.tolist(), strict=True)
    return {task.name: found.nodes[place].name for task, place in pairs if place >= 0}


def some_tasks(seed: int, jobs: int = 8, most: int = 4, **more: Any) -> list[Task]:
    """Return random jobs of some tasks each, with random run times and arrivals."""
    rng = np.random.default_rng(seed)
    found: list[Task] = []
    for index in range(jobs):
        at, run = float(rng.integers(0, 40)), float(rng.integers(1, 30))
        found += job(f"j{index}", int(rng.integers(1, most + 1)), run, at, user=f"u{index % 3}", **more)
    return found


__all__: Sequence[str] = (
    "Names",
    "Policy",
    "cluster",
    "job",
    "places",
    "policy",
    "run",
    "some_tasks",
    "starts",
    "write_csv",
)
