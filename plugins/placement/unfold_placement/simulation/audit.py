"""An audit that knows nothing of names: it walks through what happened and holds it against what was asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core import kernel
from unfold_placement.core.types import Node, Task
from unfold_placement.schema import policies
from unfold_placement.simulation.simulator import SimulationResult
from unfoldkit.api import Model


@dataclass(slots=True)
class AuditState:
    """What runs where, as the walk goes: tasks by node, jobs' ends, submissions."""

    nodes: Sequence[Node]
    now: float = 0.0
    running: dict[str, dict[str, Task]] = field(default_factory=lambda: defaultdict(dict))
    groups: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    waiting: dict[str, Task] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    total: Counter[tuple[str, str]] = field(default_factory=Counter)

    def on(self, node: Node) -> list[Task]:
        """Return the tasks that run on a node."""
        return list(self.running[node.name].values())

    def everywhere(self) -> list[Task]:
        """Return the tasks that run."""
        return [task for tasks in self.running.values() for task in tasks.values()]


Law = Callable[[Any, AuditState, Task, Node], str]
"""Asked as a task has just started: what is wrong, or the empty text."""


def find_violations(found: SimulationResult, policy: policies.PolicySpec) -> Iterator[str]:
    """Yield everything that is wrong with a replay, in words."""
    held = [(LAWS[name], part) for name, part, _ in policy.parts() if name in LAWS]
    world = AuditState(found.nodes, groups={part.by: defaultdict(Counter) for _, part in held if hasattr(part, "by")})
    capacity = {node.name: Counter[str]() for node in found.nodes}
    starts: dict[str, list[float]] = defaultdict(list)
    for time, kind, row, place in zip(
        found.log.times.tolist(),
        found.log.kinds.tolist(),
        found.log.tasks.tolist(),
        found.log.nodes.tolist(),
        strict=True,
    ):
        task, node = found.tasks[row], found.nodes[place]
        world.now = time
        _step(world, kind, task, node)
        if kind == kernel.LOG_STARTED:
            starts[task.name].append(time)
            yield from _start(world, capacity[node.name], task, node, held)
        elif kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            capacity[node.name].subtract(task.demand)
    for name, part, _ in policy.parts():
        if name == "gang":
            yield from _gangs(found, starts, part)


def _start(
    world: AuditState, used: Counter[str], task: Task, node: Node, held: Sequence[tuple[Law, Model]]
) -> Iterator[str]:
    used.update(task.demand)
    for kind, amount in used.items():
        if amount > node.capacity.get(kind, 0):
            has = node.capacity.get(kind, 0) / 1000
            yield f"{world.now:g} s: {node.name} gives {amount / 1000:g} {kind}, it has {has:g}"
    for law, part in held:
        if wrong := law(part, world, task, node):
            yield f"{world.now:g} s: {task.name} on {node.name}: {wrong}"


def _step(world: AuditState, kind: int, task: Task, node: Node) -> None:
    change = {kernel.LOG_STARTED: 1, kernel.LOG_ENDED: -1, kernel.LOG_PREEMPTED: -1}.get(kind, 0)
    for by, groups in world.groups.items() if change else ():
        groups[task.key(by)][node.name] += change
    if kind in {kernel.LOG_SUBMITTED, kernel.LOG_PREEMPTED}:
        world.waiting[task.name] = task
        world.since.setdefault(task.name, world.now)
    if kind == kernel.LOG_STARTED:
        del world.waiting[task.name]
        world.running[node.name][task.name] = task
    if kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
        del world.running[node.name][task.name]
    if kind == kernel.LOG_ENDED:
        world.ended[task.job] += 1
    if kind == kernel.LOG_REFUSED:
        del world.waiting[task.name]


def _gangs(found: SimulationResult, starts: dict[str, list[float]], part: Any) -> Iterator[str]:
    """All start at one instant; a gang that was stopped goes on, as a whole, without those that had ended."""
    groups: dict[str, list[tuple[Task, float]]] = defaultdict(list)
    for task, end in zip(found.tasks, found.end_s.tolist(), strict=True):
        groups[task.key(part.by)].append((task, end))
    for key, members in groups.items():
        times = Counter(time for task, _ in members for time in starts[task.name])
        for time, count in times.items():
            fresh = any(starts[task.name][:1] == [time] for task, _ in members)
            wanted = len(members) if fresh else sum(end > time for _, end in members)
            if count != wanted:
                yield f"{time:g} s: {count} of the {wanted} tasks of gang {key} start"


def _spread(part: Any, world: AuditState, task: Task, node: Node) -> str:
    if part.soft:
        return ""
    counts = world.groups[part.by][task.key(part.by)]
    others = [counts[name] - (name == node.name) for name in counts if counts[name]]
    before = min(others) if len(others) == len(world.nodes) else 0
    return "" if counts[node.name] <= before + part.skew else f"{counts[node.name]} here, {before} elsewhere"


def _apart(part: Any, world: AuditState, task: Task, node: Node) -> str:
    here = sum(other.key(part.by) == task.key(part.by) for other in world.on(node))
    return f"{here} of {task.key(part.by)}, {part.density} may be" if here > part.density else ""


def _beside(_part: Any, world: AuditState, task: Task, node: Node) -> str:
    alone = task.follows and not any(other.job == task.follows for other in world.on(node))
    return f"nothing of {task.follows} runs here" if alone else ""


def _clear(_part: Any, world: AuditState, task: Task, node: Node) -> str:
    met = task.avoids and any(other.job == task.avoids for other in world.on(node) if other is not task)
    return f"{task.avoids} runs here" if met else ""


def _typed(part: Any, _world: AuditState, task: Task, node: Node) -> str:
    found = node.labels.get(part.label, "")
    return "" if not task.types or found in task.types else f"it can run on {' or '.join(task.types)}, not on {found!r}"


def _near(part: Any, world: AuditState, task: Task, node: Node) -> str:
    if not task.data or node.data.intersection(task.data):
        return ""
    waited = world.now - world.since[task.name]
    racks = {n.labels.get("rack") for n in world.nodes if n.data.intersection(task.data)}
    after = part.rack_after if node.labels.get("rack") in racks else part.any_after
    return "" if waited >= after - 1e-9 else f"its data is elsewhere, after {waited:g} s"


def _few(part: Any, world: AuditState, task: Task, _node: Node) -> str:
    mine = [
        t for t in world.everywhere() if t.key(part.by) == task.key(part.by) and (not part.jobs or t.job in part.jobs)
    ]
    return f"{len(mine)} run, {part.most} may" if len(mine) > part.most else ""


def _after(_part: Any, world: AuditState, task: Task, _node: Node) -> str:
    early = [job for job in task.after if world.ended[job] == 0 or any(t.job == job for t in world.everywhere())]
    return f"{early[0]} has not ended" if early else ""


def _higher(part: Any, world: AuditState, task: Task, node: Node) -> str:
    if part.backfill:
        return ""
    higher = [other for other in world.waiting.values() if other.priority > task.priority and other.size == 1]
    # who waits for others to end, or to begin, holds nobody up
    above = [t for t in higher if not (t.follows or t.avoids or t.role == "worker" or _after(part, world, t, node))]
    return f"{above[0].name} of a higher class waits" if above else ""


def _within(part: Any, world: AuditState, task: Task, _node: Node) -> str:
    if part.borrow:
        return ""
    user = task.key(part.by)
    used = sum(other.demand.get(part.resource, 0) for other in world.everywhere() if other.key(part.by) == user) / 1000
    return f"{user} has {used:g}, its quota is {part.quotas.get(user, 0):g}" if used > part.quotas.get(user, 0) else ""


def _served(part: Any, world: AuditState, task: Task, node: Node) -> str:
    servers = [other for other in world.on(node) if other.job == task.job and other.role == "server"]
    if task.role == "server":
        return "a second server here" if len(servers) > 1 else ""
    wrong = task.role == "worker" and bool(servers) != part.near
    return ("no server here" if part.near else "a server here") if wrong else ""


LAWS: dict[str, Law] = {
    "spread": _spread, "anti_affinity": _apart, "affinity": _beside, "avoid": _clear, "types": _typed,
    "locality": _near, "limit": _few, "barrier": _after, "priority": _higher, "quota": _within, "servers": _served,
}  # fmt: skip
