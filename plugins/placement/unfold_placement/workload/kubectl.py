"""Nodes and pods as ``kubectl get nodes -o json`` and ``kubectl get pods -A -o json`` write them, for a replay."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.kubernetes.codec import MIB, UNITS, parse_time
from unfold_placement.workload.json_stream import Body, ItemFormat, Span, Warn, build_tasks, parse_items, read_items
from unfoldkit.api import fail

S = TypeVar("S")
T = TypeVar("T")
"""When a pod was created, started and ended, in s since 1970; nothing where it has not yet."""
OURS = {theirs: ours for ours, theirs in UNITS.items()}
PASSED = frozenset({"ephemeral-storage"})
"""What nodes have and no policy places by."""
BOUND = frozenset({"DaemonSet", "Node"})
"""Whose pods are bound to their nodes, so that nobody places them."""
SIZES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3} | {
    mark + more: base ** (at + 1) for more, base in (("", 1000), ("i", 1024)) for at, mark in enumerate("KMGTPE")
}
_QUANTITY = re.compile(r"([\d.]+(?:[eE][-+]?\d+)?)([numk]?|[KMGTPE]i?)")


def kubectl_nodes(path: Path) -> list[Node]:
    """Return the nodes that are ready and take pods: what of them is allocatable, their labels and instance type.

    Raises:
        UnfoldError: it is no such file.
    """
    return _each(path, "Node", lambda item: _node(item) if _open(item) else None)


def kubectl_tasks(path: Path, faster: float = 1.0, first: int | None = None, tell: Warn = str) -> list[Task]:
    """Return the pods that ran as tasks: arrival is their creation, 0 s the earliest, run from start to end.

    The job is what owns a pod, the user its namespace. What still runs ends with the last time of the file; pods of
    daemons, and those that never started, are left out, and ``tell`` is told. Only the ``first`` so many are read.

    Raises:
        UnfoldError: it is no such file.
    """
    pods = _each(path, "Pod", lambda item: item)
    owners = _each_of(pods, path, lambda item: _owner(item, "kind"))
    placed = [item for item, kinds in zip(pods, owners, strict=True) if not BOUND.intersection(kinds)]
    form = ItemFormat("kubectl", "pods", "pods of daemons", _span, partial(_task, faster=faster))
    return build_tasks(pods, placed, path, form, first, tell)


def _each(path: Path, kind: str, read: Callable[[Body], T | None]) -> list[T]:
    command = f"kubectl get {kind.lower()}s -o json"
    mine = [item for item in read_items(path, command) if item.get("kind", kind) == kind]
    if not mine:
        raise fail(f"no {kind} in it", file=str(path), hint=command)
    return [made for made in _each_of(mine, path, read) if made is not None]


def _each_of(items: Sequence[S], path: Path, read: Callable[[S], T]) -> list[T]:
    return parse_items(items, path, "kubectl", read)


def _open(item: Body) -> bool:
    ready = [each["status"] for each in item["status"].get("conditions", ()) if each["type"] == "Ready"]
    hard = [each for each in item["spec"].get("taints", ()) if each["effect"] in {"NoSchedule", "NoExecute"}]
    own = any(each["key"].partition("/")[0] in {"node-role.kubernetes.io", "node.kubernetes.io"} for each in hard)
    return ready in (["True"], []) and not item["spec"].get("unschedulable") and not own


def _node(item: Body) -> Node:
    labels = item["metadata"].get("labels", {})
    kind = labels.get("type", labels.get("node.kubernetes.io/instance-type", ""))
    amounts = _amounts(item["status"]["allocatable"], math.floor)
    return Node(item["metadata"]["name"], amounts, {**labels, "type": kind})


def _task(
    item: Body, span: tuple[float, float | None, float | None], origin: float, last: float, faster: float
) -> Task:
    came, start, end = span
    space = item["metadata"].get("namespace", "default")
    run = (last if end is None else end) - (start or came)
    name = f"{space}/{item['metadata']['name']}"
    job = next(iter(_owner(item, "name")), name)
    return Task(
        name, _demand(item["spec"]), max(run, 0.0), (came - origin) / faster, job, space,
        priority=int(item["spec"].get("priority", 0)),
    )  # fmt: skip


def _owner(item: Body, key: str) -> list[str]:
    return [owner[key] for owner in item["metadata"].get("ownerReferences", ())]


def _span(item: Body) -> Span:
    status = item.get("status", {})
    over = [each["state"]["terminated"]["finishedAt"] for each in status.get("containerStatuses", ())
            if each.get("state", {}).get("terminated", {}).get("finishedAt")]  # fmt: skip
    ended = status.get("phase") in {"Succeeded", "Failed"} and over
    start = status.get("startTime")
    return (
        parse_time(item["metadata"]["creationTimestamp"]), parse_time(start) if start else None,
        max(map(parse_time, over)) if ended else None,
    )  # fmt: skip


def _demand(spec: Body) -> dict[str, int]:
    """Return what a pod takes: the sum of its containers, or what one that goes before them takes, if that is more."""
    total = Counter[str]()
    for container in spec["containers"]:
        total.update(_asked(container))
    for container in spec.get("initContainers", ()):
        total |= _asked(container)
    return {kind: much for kind, much in total.items() if much}


def _asked(container: Body) -> Counter[str]:
    resources = container.get("resources", {})
    return Counter(_amounts({**resources.get("limits", {}), **resources.get("requests", {})}, math.ceil))


def _amounts(found: Mapping[str, object], whole: Callable[[float], int]) -> dict[str, int]:
    return dict(_amount(theirs, str(text), whole) for theirs, text in found.items() if theirs not in PASSED)


def _amount(theirs: str, text: str, whole: Callable[[float], int]) -> tuple[str, int]:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no amount of {theirs}")
    exact = float(found[1]) * SIZES[found[2]] * MILLI / (MIB if theirs == "memory" else 1)
    return OURS.get(theirs, theirs), whole(round(exact, 6))
