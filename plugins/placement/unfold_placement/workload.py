"""Nodes and tasks from a spec: written, drawn by chance, or read from a trace."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unfold_placement.facts import MILLI, SEATS, Node, Task
from unfold_placement.spec import ClusterSpec, ManySpec, NodeSpec, TaskSpec, TraceSpec, WorkloadSpec
from unfoldkit.api import CsvRow, Run, csv_rows, fail

MIB = 1 << 20
RACK = 32
"""Nodes of a rack, for traces that do not say."""
TIMES = ("creation_time", "deletion_time", "scheduled_time")
POD = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", *TIMES)


def nodes_of(cluster: ClusterSpec, run: Run) -> list[Node]:
    """Return the nodes of a spec.

    Raises:
        UnfoldError: a file is missing or not what it should be.
    """
    if cluster.trace:
        found = list(openb_nodes(run.path(cluster.path or "", key="cluster.path")))
        return found[:: max(1, round(1 / cluster.part))]
    counts = Counter[str]()
    return [node for item in cluster.nodes for node in _nodes(item, counts)]


def tasks_of(workload: WorkloadSpec, run: Run) -> list[Task]:
    """Return the tasks of a spec, in the order of the file.

    Raises:
        UnfoldError: there are none, or a file is missing or not what it should be.
    """
    if workload.replay:
        return _replayed(workload.replay, run)
    if workload.made:
        return _made(workload.made, np.random.default_rng(run.seed))
    if not workload.tasks:
        raise fail("a plan needs tasks", key="workload", hint="write tasks: [{job: a, count: 8, cpu: 1, run: 10 min}]")
    return _written(workload.tasks)


def seated(nodes: Sequence[Node], tasks: Sequence[Task]) -> list[Task]:
    """Return tasks that take a pod each, where all nodes say how many pods they run; else the tasks as they are."""
    told = bool(nodes) and all(SEATS in node.capacity for node in nodes)
    return [replace(task, demand={SEATS: MILLI, **task.demand}) for task in tasks] if told else list(tasks)


def _nodes(item: NodeSpec, counts: Counter[str]) -> Iterator[Node]:
    stem = item.name or "node"
    labels = {**item.labels, **({"type": item.type} if item.type else {})}
    for _ in range(item.count):
        name = stem if item.name and item.count == 1 else f"{stem}-{counts[stem]}"
        counts[stem] += 1
        yield Node(name, _amounts(item), labels, frozenset(item.data))


def _amounts(item: NodeSpec | TaskSpec) -> dict[str, int]:
    plain = {"cpu": item.cpu, "gpu": item.gpu, "memory": item.memory / MIB, **item.resources}
    return {kind: math.ceil(amount * MILLI - 1e-6) for kind, amount in plain.items() if amount}


def _written(items: Iterable[TaskSpec]) -> list[Task]:
    listed = list(items)
    sizes = Counter[str]()
    for item in listed:
        sizes[item.job] += item.count
    numbers = Counter[str]()
    found = []
    for item in listed:
        for index in range(item.count):
            found.append(_task(item, item.at + index * item.every, numbers[item.job], sizes[item.job]))
            numbers[item.job] += 1
    return found


def _task(item: TaskSpec, arrival: float, number: int, size: int) -> Task:
    deadline = math.inf if item.deadline is None else arrival + item.deadline
    return Task(
        f"{item.job}-{number}", _amounts(item), item.run, arrival, item.job, item.user, item.role, size, item.priority,
        deadline, item.follows, item.avoids, item.after, item.data, item.run_on, item.types,
    )  # fmt: skip


def _made(item: ManySpec, rng: np.random.Generator) -> list[Task]:
    arrivals = np.cumsum(rng.exponential(1 / item.rate, item.random))
    runs = item.run * np.exp(item.spread * rng.standard_normal(item.random) - item.spread**2 / 2)
    users, demands = rng.integers(item.users, size=item.random), rng.integers(len(item.demands), size=item.random)
    amounts = [{kind: math.ceil(amount * MILLI) for kind, amount in demand.items()} for demand in item.demands]
    return [
        Task(f"t{row}", amounts[demands[row]], float(runs[row]), float(arrivals[row]), f"t{row}", f"u{users[row]}")
        for row in range(item.random)
    ]


def openb_nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of an openb file (sn, cpu_milli, memory_mib, gpu, model); racks are made of 32 in a row."""
    for row, line in enumerate(csv_rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"))):
        labels = {"type": line["model"], "rack": f"rack-{row // RACK}"}
        yield Node(line["sn"], _openb(line, line.number("gpu", least=0)), labels)


def _openb(line: CsvRow, gpus: float) -> dict[str, int]:
    amounts = {"cpu": line.number("cpu_milli", least=0), "memory": line.number("memory_mib", least=0) * MILLI}
    return {kind: round(amount) for kind, amount in amounts.items()} | ({"gpu": round(gpus * MILLI)} if gpus else {})


def openb_tasks(path: Path, user: str = "qos", faster: float = 1.0) -> Iterator[Task]:
    """Yield the pods of an openb file as tasks; those never scheduled run from creation to deletion.

    A part of a GPU counts as such; the GPUs of one node are one pool. A pod that was never deleted runs until the last
    time in the file. Its ``gpu_spec`` are types, which the policy ``types`` holds to. ``faster`` squeezes arrivals, not
    run times.
    """
    lines = list(csv_rows(path, (*POD, user)))
    last = max((line.number(name) for line in lines for name in TIMES if line[name]), default=0.0)
    for line in lines:
        arrival, end = line.number("creation_time", least=0), _time(line, "deletion_time", last)
        run = max(end - _time(line, "scheduled_time", arrival), 1.0)
        types = _types(line.get("gpu_spec"))
        yield Task(
            line["name"], _openb(line, _gpus(line)), run, arrival / faster, line["name"], line[user], types=types
        )


def _time(line: CsvRow, column: str, otherwise: float) -> float:
    return line.number(column) if line[column] else otherwise


def _types(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split("|") if item.strip())


def _gpus(line: CsvRow) -> float:
    whole = line.number("num_gpu", least=0)
    return whole * line.number("gpu_milli", least=0) / MILLI if whole else 0.0


def csv_tasks(path: Path, faster: float = 1.0) -> Iterator[Task]:
    """Yield the tasks of a CSV file with the columns task, arrival and run (s), cpu, gpu, memory (MiB), job, user.

    All but ``task``, ``arrival`` and ``run`` may be missing; ``priority``, ``deadline`` (s after arrival) and ``types``
    (of nodes, with ``|`` between them) too.
    """
    rows = list(csv_rows(path, ("task", "arrival", "run")))
    sizes = Counter(line.get("job") or line["task"] for line in rows)
    for line in rows:
        yield _csv_task(line, sizes, faster)


def _csv_task(line: CsvRow, sizes: Mapping[str, int], faster: float) -> Task:
    kinds = [kind for kind in ("cpu", "gpu", "memory") if line.get(kind)]
    demand = {kind: round(line.number(kind, least=0) * MILLI) for kind in kinds}
    job, arrival = line.get("job") or line["task"], line.number("arrival", least=0) / faster
    deadline = arrival + line.number("deadline", least=0) if line.get("deadline") else math.inf
    priority = round(line.number("priority")) if line.get("priority") else 0
    return Task(
        line["task"], {kind: amount for kind, amount in demand.items() if amount}, line.number("run", least=0), arrival,
        job, line.get("user"), line.get("role"), sizes[job], priority, deadline,
        types=_types(line.get("types")),
    )  # fmt: skip


def _replayed(item: TraceSpec, run: Run) -> list[Task]:
    path = run.path(item.path, key="workload.replay.path")
    found = list(openb_tasks(path, item.user, item.faster) if item.trace == "openb" else csv_tasks(path, item.faster))
    if not found:
        raise fail("no tasks", file=str(path), key="workload.replay.path")
    return found[: item.first]
