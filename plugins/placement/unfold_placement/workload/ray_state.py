"""Nodes and tasks as ``ray list nodes`` and ``ray list tasks --detail`` write them as JSON, for a replay."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.workload.json_stream import Body, ItemFormat, Span, Warn, build_tasks, parse_items, read_items
from unfold_placement.workload.timestamps import parse_datetime
from unfoldkit.api import fail

NODES, TASKS = "ray list nodes --format json", "ray list tasks --detail --format json --limit 10000"
"""When a task was submitted, started and ended, in s; nothing where it has not yet."""
MIB = 1 << 20
OURS = {"CPU": "cpu", "GPU": "gpu", "memory": "memory"}
PASSED = re.compile(r"object_store_memory|node:.*|accelerator_type:.*|bundle(_group_.*)?")
"""What Ray has and no policy places by."""
TYPE = "ray.io/accelerator-type"
METHOD, ACTOR, DRIVER = "ACTOR_TASK", "ACTOR_CREATION_TASK", "DRIVER_TASK"
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": 1 << 30}
_IN_GROUP = re.compile(r"(.+?)_group_(?:\d+_)?[0-9a-f]{16,}")
_SIZE = re.compile(r"([\d.]+) ([KMG]iB|B)")
_NOBODY = re.compile(r"f*")


def ray_nodes(path: Path) -> list[Node]:
    """Return the nodes that are alive: their resources, labels, and as type the kind of accelerator.

    Raises:
        UnfoldError: it is no such file.
    """
    alive = [item for item in _listed(path, "node_id", NODES) if item.get("state", "ALIVE") == "ALIVE"]
    names = Counter(item.get("node_name", "") for item in alive)
    return parse_items(alive, path, "ray list nodes", lambda item: _node(item, names))


def ray_tasks(path: Path, faster: float = 1.0, first: int | None = None, tell: Warn = str) -> list[Task]:
    """Return the tasks that ran: arrival is when they were submitted, 0 s the earliest, run from start to end.

    The job is the placement group, or the task by itself; the user the Ray job, the role the function. What still runs
    ends with the last time of the file; actors, which are listed without their end, drivers, and what never started are
    left out, and ``tell`` is told. Only the ``first`` so many are read.

    Raises:
        UnfoldError: it is no such file.
    """
    listed = _listed(path, "task_id", TASKS)
    plain = [item for item in listed if item.get("type") not in {METHOD, ACTOR, DRIVER}]
    form = ItemFormat(TASKS, "tasks", "tasks of actors and drivers", _span, partial(_task, faster=faster))
    return build_tasks(listed, plain, path, form, first, tell)


def _listed(path: Path, key: str, command: str) -> list[Body]:
    found = read_items(path, command)
    if not found or key not in found[0]:
        raise fail(f"nothing with a {key} in it", file=str(path), hint=command)
    return found


def _node(item: Body, names: Mapping[str, int]) -> Node:
    has, labels = item["resources_total"], item.get("labels") or {}
    named = item.get("node_name", "")
    kind = next((name.partition(":")[2] for name in has if name.startswith("accelerator_type:")), labels.get(TYPE, ""))
    name = named if names[named] == 1 and named else item["node_id"]
    return Node(name, _amounts(has, math.floor), {**labels, "type": labels.get("type", kind)})


def _task(item: Body, span: Span, origin: float, last: float, faster: float) -> Task:
    came, start, end = span
    again = item.get("attempt_number") or 0
    name = f"{item.get('name') or item['func_or_class_name']}/{item['task_id']}" + (f"-{again}" if again else "")
    group = item.get("placement_group_id") or ""
    run = (last if end is None else end) - (came if start is None else start)
    return Task(
        name, _amounts(item["required_resources"] or {}, math.ceil), max(run, 0.0), (came - origin) / faster,
        name if _NOBODY.fullmatch(group) else group, item.get("job_id") or "", item.get("func_or_class_name") or "",
    )  # fmt: skip


def _span(item: Body) -> Span:
    start, end = _time(item["start_time_ms"]), _time(item["end_time_ms"])
    came = _time(item["creation_time_ms"])
    if came is None:
        came = start
    return 0.0 if came is None else came, start, end


def _time(cell: object) -> float | None:
    """Return a time in s: of milliseconds since 1970, or as the command writes it, a local time without its zone."""
    if cell is None or (isinstance(cell, int | float) and cell <= 0):
        return None
    found = cell / 1000 if isinstance(cell, int | float) else parse_datetime(str(cell))
    if found is None:
        raise ValueError(f"{cell!r} is no time")
    return found


def _amounts(found: Mapping[str, object], whole: Callable[[float], int]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, cell in found.items():
        if PASSED.fullmatch(name):
            continue
        # a task in a placement group asks for the group's resources, once for the group and once for the bundle
        plain = grouped[1] if (grouped := _IN_GROUP.fullmatch(name)) else name
        ours = OURS.get(plain, plain)
        much = whole(round(_number(cell) * MILLI / (MIB if ours == "memory" else 1), 6))
        amounts[ours] = max(much, amounts.get(ours, 0))
    return {name: much for name, much in amounts.items() if much}


def _number(cell: object) -> float:
    size = _SIZE.fullmatch(cell) if isinstance(cell, str) else None
    return float(size[1]) * SIZES[size[2]] if size else float(str(cell))
