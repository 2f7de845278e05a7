"""Nodes and tasks as ``ray list nodes`` and ``ray list tasks --detail`` print them in JSON."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.workload.json_stream import (
    Body,
    ItemFormat,
    Span,
    Timeline,
    Warn,
    build_tasks,
    parse_items,
    read_items,
)
from unfold_placement.workload.timestamps import parse_datetime
from unfoldkit.api import user_error

NODES_COMMAND = "ray list nodes --format json"
TASKS_COMMAND = "ray list tasks --detail --format json --limit 10000"
MIB = 1 << 20
OWN_NAMES = {"CPU": "cpu", "GPU": "gpu", "memory": "memory"}
IGNORED_KINDS = re.compile(r"object_store_memory|node:.*|accelerator_type:.*|bundle(_group_.*)?")
"""Ray resources by which no policy places."""
TYPE_LABEL = "ray.io/accelerator-type"
NO_TASKS = frozenset({"ACTOR_TASK", "ACTOR_CREATION_TASK", "DRIVER_TASK"})
"""Types of entries that are no tasks."""
MEMORY_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
_GROUP_RESOURCE = re.compile(r"(.+?)_group_(?:\d+_)?[0-9a-f]{16,}")
_MEMORY = re.compile(r"([\d.]+) ([KMG]iB|B)")
_NO_GROUP = re.compile(r"f*")


def ray_nodes(path: Path) -> list[Node]:
    """Return the nodes that are alive: their resources, labels, and the accelerator as type.

    Raises:
        UnfoldError: The file does not have this form.
    """
    alive = [body for body in _read_list(path, "node_id", NODES_COMMAND) if body.get("state", "ALIVE") == "ALIVE"]
    name_counts = Counter(body.get("node_name", "") for body in alive)
    return parse_items(alive, path, "ray list nodes", lambda body: _build_node(body, name_counts))


def ray_tasks(path: Path, speedup: float = 1.0, max_tasks: int | None = None, warn: Warn = str) -> list[Task]:
    """Return the tasks that ran.

    A task arrives when it was submitted, counted from the earliest, and runs from start to end. The job is the
    placement group, or the task itself; the user is the Ray job, the role the function. Running tasks end with the last
    time of the file. Actors (which are listed without an end), drivers, and tasks that never started are left out.

    Args:
        path: The file.
        speedup: Factor that accelerates arrivals.
        max_tasks: Use only so many tasks.
        warn: Receives how many entries are left out.

    Raises:
        UnfoldError: The file does not have this form.
    """
    entries = _read_list(path, "task_id", TASKS_COMMAND)
    task_items = [body for body in entries if str(body.get("type")) not in NO_TASKS]
    form = ItemFormat(TASKS_COMMAND, "tasks", "tasks of actors and drivers", _read_span, _build_task)
    skipped = len(entries) - len(task_items)
    return build_tasks(task_items, path, form, skipped=skipped, max_tasks=max_tasks, speedup=speedup, warn=warn)


def _read_list(path: Path, key: str, command: str) -> list[Body]:
    bodies = read_items(path, command)
    if not bodies or key not in bodies[0]:
        raise user_error(f"no entry has a {key}", file=str(path), hint=command)
    return bodies


def _build_node(body: Body, name_counts: Mapping[str, int]) -> Node:
    resources, labels = body["resources_total"], body.get("labels") or {}
    accelerators = (name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    node_type = next(accelerators, labels.get(TYPE_LABEL, ""))
    node_name = body.get("node_name", "")
    name = node_name if name_counts[node_name] == 1 and node_name else body["node_id"]
    return Node(name, _parse_amounts(resources, math.floor), {**labels, "type": labels.get("type", node_type)})


def _build_task(body: Body, span: Span, timeline: Timeline) -> Task:
    attempt = body.get("attempt_number") or 0
    function = body.get("name") or body["func_or_class_name"]
    name = f"{function}/{body['task_id']}" + (f"-{attempt}" if attempt else "")
    group = body.get("placement_group_id") or ""
    return Task(
        name=name,
        demand=_parse_amounts(body["required_resources"] or {}, math.ceil),
        run=span.run_s(timeline.end_s),
        arrival=timeline.arrival_s(span),
        job=name if _NO_GROUP.fullmatch(group) else group,
        user=body.get("job_id") or "",
        role=body.get("func_or_class_name") or "",
    )


def _read_span(body: Body) -> Span:
    start_s, end_s = _parse_time(body["start_time_ms"]), _parse_time(body["end_time_ms"])
    submitted_s = _parse_time(body["creation_time_ms"])
    if submitted_s is None:
        submitted_s = start_s
    return Span(0.0 if submitted_s is None else submitted_s, start_s, end_s)


def _parse_time(cell: object) -> float | None:
    """Return a time (s) from Unix milliseconds or from the command's local time without a zone."""
    if cell is None or (isinstance(cell, int | float) and cell <= 0):
        return None
    time_s = cell / 1000 if isinstance(cell, int | float) else parse_datetime(str(cell))
    if time_s is None:
        raise ValueError(f"{cell!r} is not a time")
    return time_s


def _parse_amounts(resources: Mapping[str, object], round_to: Callable[[float], int]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, cell in resources.items():
        if IGNORED_KINDS.fullmatch(name):
            continue
        # a task in a placement group requests each resource twice: once of the group and once of the bundle
        base_name = match[1] if (match := _GROUP_RESOURCE.fullmatch(name)) else name
        kind = OWN_NAMES.get(base_name, base_name)
        amount = round_to(round(_parse_number(cell) * MILLI / (MIB if kind == "memory" else 1), 6))
        amounts[kind] = max(amount, amounts.get(kind, 0))
    return {kind: amount for kind, amount in amounts.items() if amount}


def _parse_number(cell: object) -> float:
    match = _MEMORY.fullmatch(cell) if isinstance(cell, str) else None
    return float(match[1]) * MEMORY_UNITS[match[2]] if match else float(str(cell))
