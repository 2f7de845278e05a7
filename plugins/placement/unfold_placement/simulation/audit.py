"""Audit of a replay: checks the event log against the policies' rules, without knowledge of ephemeral resources."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core import kernel
from unfold_placement.core.controller import LOGGED_KINDS
from unfold_placement.core.devices import has_shares, open_ledgers
from unfold_placement.core.policy import Policy, call_hook, policy_error
from unfold_placement.core.types import DOWN, MILLI, UP, Node, NodeChange, Task
from unfold_placement.policies.registry import CUSTOM, PolicyRule
from unfold_placement.simulation.metrics import START_CHANGE
from unfold_placement.simulation.simulator import SimulationResult

TIME_TOLERANCE_S = 1e-9
MAX_VIOLATIONS = 100_000
"""Violations that the audit of a policy may yield, besides one per event."""
ORDER_FIELDS: Mapping[str, str] = {
    "fifo": "", "priority": "priority", "drf": "user", "wfq": "user", "hierarchy": "user", "history": "user",
    "quota": "user", "edf": "",
}  # fmt: skip
"""Task field within which each queue policy keeps the order of tasks that are alike."""
AUDITED_APART = frozenset({"gang", "pack", *ORDER_FIELDS})
"""Policies with an audit over the whole replay instead of a check at every start."""
Options = Mapping[str, Any]
"""Options of a policy, as in a spec."""


@dataclass(slots=True)
class AuditState:
    """The cluster at one event of the log.

    Attributes:
        nodes: The nodes.
        now: Time in seconds.
        running: Running tasks by node and name.
        groups: Running tasks by task field, group and node.
        waiting: Waiting tasks by name.
        since_s: First submission of each task in seconds.
        ended: Ended tasks by job.
        closed: Names of the nodes that are down or cordoned.
        gang_key: Task field by which tasks start in gangs; empty without gangs.
    """

    nodes: Sequence[Node]
    now: float = 0.0
    running: dict[str, dict[str, Task]] = field(default_factory=lambda: defaultdict(dict))
    groups: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    waiting: dict[str, Task] = field(default_factory=dict)
    since_s: dict[str, float] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    closed: set[str] = field(default_factory=set)
    gang_key: str = ""

    def running_on(self, node: Node) -> list[Task]:
        """Return the tasks that run on a node."""
        return list(self.running[node.name].values())

    def all_running(self) -> list[Task]:
        """Return the running tasks of all nodes."""
        return [task for tasks in self.running.values() for task in tasks.values()]

    def gang_class(self, task: Task) -> int:
        """Return the highest class of a task's gang, which is queued as one; without gangs that of the task."""
        alive = [*self.all_running(), *self.waiting.values()] if self.gang_key else []
        mates = (other for other in alive if other.key(self.gang_key) == task.key(self.gang_key))
        return max((mate.priority for mate in mates), default=task.priority)


Check = Callable[[Options, AuditState, Task, Node], str]
"""Called after a task started on a node; returns the violation, or an empty text."""


def find_violations(result: SimulationResult, rules: Sequence[PolicyRule]) -> Iterator[str]:
    """Yield every violation of capacities and policies in a replay, as text."""
    checks = [(CHECKS[rule.name], rule.options) for rule in rules if rule.name in CHECKS]
    group_keys = {options["by"] for _, options in checks if "by" in options}
    gang_key = next((rule.options["by"] for rule in rules if rule.name == "gang"), "")
    state = AuditState(result.nodes, groups={key: defaultdict(Counter) for key in group_keys}, gang_key=gang_key)
    used = {node.name: Counter[str]() for node in result.nodes}
    # without shares the devices of a node are an amount like any other
    ledgers = open_ledgers(result.nodes) if any(map(has_shares, result.tasks)) else {}
    starts: dict[str, list[float]] = defaultdict(list)
    outages = Outages(deque(result.node_changes), state.closed)
    log = result.log
    for time, kind, row, node_row in zip(
        log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), log.nodes.tolist(), strict=True
    ):
        task, node = result.tasks[row], result.nodes[node_row]
        state.now = time
        _apply_event(state, kind, task, node)
        if kind == kernel.LOG_STARTED:
            starts[task.name].append(time)
            yield from outages.check_start(time, task, node)
            yield from _check_start(state, used[node.name], task, node, checks)
            if ledgers and not ledgers[node.name].take(task):
                yield f"{time:g} s: {task.name} on {node.name}: no device there has room for its share"
        elif kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            used[node.name].subtract(task.demand)
            if ledgers:
                ledgers[node.name].give_back(task)
            yield from outages.check_end(time, starts[task.name][-1], task, node)
    for rule in sorted(rules, key=lambda rule: rule.name != "gang"):
        if rule.name == "gang":
            yield from _check_gangs(result, starts, rule.options)
        if rule.name == "pack" and any(other.name == "gang" for other in rules):
            yield from _check_packing(result, rule.options)
        if rule.name in ORDER_FIELDS:
            yield from _check_order(result, starts, rule, is_alone=len(rules) == 1)


@dataclass(slots=True)
class Outages:
    """Checks that tasks start on nodes which take them, and that none outlives its node.

    Attributes:
        pending: Changes of nodes that are later than the last event.
        closed: Nodes that take no tasks.
        lost_s: When each node was last lost, in seconds.
    """

    pending: deque[NodeChange]
    closed: set[str]
    lost_s: dict[str, float] = field(default_factory=dict)

    def check_start(self, time: float, task: Task, node: Node) -> Iterator[str]:
        """Yield the violation of a start on a node that is down or cordoned."""
        self._advance(time)
        if node.name in self.closed:
            yield f"{time:g} s: {task.name} starts on {node.name}, which takes no tasks"

    def check_end(self, time: float, started_s: float, task: Task, node: Node) -> Iterator[str]:
        """Yield the violation of a task that ran on after its node was lost."""
        self._advance(time)
        lost_s = self.lost_s.get(node.name, time)
        if started_s < lost_s < time:
            yield f"{time:g} s: {task.name} runs on {node.name}, which was lost at {lost_s:g} s"

    def _advance(self, time: float) -> None:
        while self.pending and self.pending[0].at <= time:
            change = self.pending.popleft()
            if change.change == UP:
                self.closed.discard(change.node)
            else:
                self.closed.add(change.node)
            if change.change == DOWN:
                self.lost_s[change.node] = change.at


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event of a replay, for the ``audit`` of a policy.

    Attributes:
        time: Seconds.
        kind: ``submitted``, ``started``, ``ended``, ``preempted`` or ``refused``.
        task: The task.
        node: Its node; None where it has none.
    """

    time: float
    kind: str
    task: Task
    node: Node | None


def find_own_violations(result: SimulationResult, policies: Sequence[Policy]) -> Iterator[str]:
    """Yield the violations that policies with an ``audit`` of their own report.

    Raises:
        UnfoldError: An audit raised.
    """
    events: list[AuditEvent] = []
    for policy in policies:
        audit = getattr(policy, "audit", None)
        if audit is None:
            continue
        events = events or _list_events(result)
        violations = call_hook(policy, "audit", events, max_items=MAX_VIOLATIONS + len(events))
        for violation in violations:
            if not isinstance(violation, str) or not violation:
                hint = f"it yielded {str(violation)[:60]!r}"
                raise policy_error(policy, "audit", "audit must yield texts, one for each violation", hint=hint)
        yield from violations


def is_checked_at_starts(rules: Sequence[PolicyRule], policies: Sequence[Policy]) -> bool:
    """Return whether some policy has rules that can be checked before a replay has ended."""
    return any(rule.name in CHECKS for rule in rules) or any(hasattr(policy, "audit") for policy in policies)


def find_broken_rule(result: SimulationResult, rules: Sequence[PolicyRule], policies: Sequence[Policy]) -> str:
    """Return the first violation, of a replay that may go on, of a rule that holds at every start; empty if none.

    Raises:
        UnfoldError: An audit raised.
    """
    checked = [rule for rule in rules if rule.name in CHECKS]
    return next(itertools.chain(find_violations(result, checked), find_own_violations(result, policies)), "")


def list_unaudited(rules: Sequence[PolicyRule], policies: Sequence[Policy]) -> list[str]:
    """Return the names of the policies that no audit covers, as keys of the spec or as classes."""
    known = [rule.name.replace("_", "-") for rule in rules if rule.name not in {*CHECKS, *AUDITED_APART, CUSTOM}]
    package = __name__.partition(".")[0]
    custom = [policy for policy in policies if not type(policy).__module__.startswith(f"{package}.policies")]
    return [*known, *(type(policy).__name__ for policy in custom if not hasattr(policy, "audit"))]


def _list_events(result: SimulationResult) -> list[AuditEvent]:
    log = result.log
    columns = (log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), log.nodes.tolist())
    return [
        AuditEvent(time, LOGGED_KINDS[kind], result.tasks[row], result.nodes[node] if node >= 0 else None)
        for time, kind, row, node in zip(*columns, strict=True)
    ]


def _check_start(
    state: AuditState, used: Counter[str], task: Task, node: Node, checks: Sequence[tuple[Check, Options]]
) -> Iterator[str]:
    used.update(task.demand)
    for kind, amount in used.items():
        capacity = node.capacity.get(kind, 0)
        if amount > capacity:
            yield f"{state.now:g} s: {amount / MILLI:g} {kind} in use on {node.name}, which has {capacity / MILLI:g}"
    for check, options in checks:
        if violation := check(options, state, task, node):
            yield f"{state.now:g} s: {task.name} on {node.name}: {violation}"


def _apply_event(state: AuditState, kind: int, task: Task, node: Node) -> None:
    change = START_CHANGE.get(kind, 0)
    for key, groups in state.groups.items() if change else ():
        groups[task.key(key)][node.name] += change
    if kind in {kernel.LOG_SUBMITTED, kernel.LOG_PREEMPTED}:
        state.waiting[task.name] = task
        state.since_s.setdefault(task.name, state.now)
    if kind == kernel.LOG_STARTED:
        del state.waiting[task.name]
        state.running[node.name][task.name] = task
    if kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
        del state.running[node.name][task.name]
    if kind == kernel.LOG_ENDED:
        state.ended[task.job] += 1
    if kind == kernel.LOG_REFUSED:
        del state.waiting[task.name]


def _check_gangs(result: SimulationResult, starts: Mapping[str, list[float]], options: Options) -> Iterator[str]:
    """Check that gangs start at one instant; a preempted gang restarts as a whole, without its ended tasks."""
    gangs: dict[str, list[tuple[Task, float]]] = defaultdict(list)
    for task, end in zip(result.tasks, result.end_s.tolist(), strict=True):
        gangs[task.key(options["by"])].append((task, end))
    for gang, members in gangs.items():
        counts = Counter(time for task, _ in members for time in starts[task.name])
        for time, count in counts.items():
            is_first_start = any(starts[task.name][:1] == [time] for task, _ in members)
            expected = len(members) if is_first_start else sum(end > time for _, end in members)
            if count != expected:
                yield f"{time:g} s: {count} of the {expected} tasks of gang {gang} start"


def _check_packing(result: SimulationResult, options: Options) -> Iterator[str]:
    """Check that the tasks of a gang which was never preempted start within one group, or after a fallback's wait."""
    preempted = set(result.log.tasks[result.log.kinds == kernel.LOG_PREEMPTED].tolist())
    gangs: dict[str, list[int]] = defaultdict(list)
    for row, task in enumerate(result.tasks):
        gangs[task.job].append(row)
    for gang, rows in gangs.items():
        nodes = [result.nodes[result.node_rows[row]] for row in rows if result.node_rows[row] >= 0]
        if not nodes or preempted.intersection(rows):
            continue
        start_s = max(float(result.start_s[row]) for row in rows)
        waited_s = start_s - max(result.tasks[row].arrival for row in rows)
        wider = [level for level, after_s in options["fallback"].items() if waited_s >= after_s - TIME_TOLERANCE_S]
        levels = [options["level"], *wider]
        if not any(_is_one_group(nodes, level) for level in levels):
            yield f"{start_s:g} s: the tasks of gang {gang} start on more than one {levels[-1]}"


def _is_one_group(nodes: Sequence[Node], level: str) -> bool:
    return len({node.name if level == "node" else node.labels.get(level, "") for node in nodes}) == 1


def _check_order(
    result: SimulationResult, starts: Mapping[str, list[float]], rule: PolicyRule, *, is_alone: bool
) -> Iterator[str]:
    """Check that of single tasks that are alike, within a user, class or team, the older one starts first.

    Under ``edf`` the nearer deadline does. Tasks that were preempted, and those that wait for others, do not count.
    """
    by = str(rule.options.get("by", ORDER_FIELDS[rule.name]))
    alike: dict[tuple[object, ...], list[tuple[float, float, Task]]] = defaultdict(list)
    for task in result.tasks:
        if task.size > 1 or len(starts[task.name]) != 1 or task.follows or task.avoids or task.after or task.data:
            continue
        shape = (tuple(sorted(task.demand.items())), task.types, task.role, "" if is_alone else task.job)
        rank = task.deadline if rule.name == "edf" else 0.0
        alike[task.key(by) if by else "", *shape].append((rank, task.arrival, task))
    for members in alike.values():
        members.sort(key=lambda member: member[:2])
        for (rank, arrival, task), (later_rank, later_arrival, later) in itertools.pairwise(members):
            was_there = arrival < later_arrival or (rank < later_rank and arrival <= starts[later.name][0])
            if was_there and starts[later.name][0] < starts[task.name][0] and arrival <= starts[later.name][0]:
                yield f"{starts[later.name][0]:g} s: {later.name} starts before {task.name}, which is ahead of it"


def _check_spread(options: Options, state: AuditState, task: Task, node: Node) -> str:
    if options["soft"]:
        return ""
    counts = state.groups[options["by"]][task.key(options["by"])]
    others = [other.name for other in state.nodes if other.name not in state.closed]
    fewest = min((counts[name] - (name == node.name) for name in others), default=0)
    is_balanced = counts[node.name] <= fewest + options["skew"]
    return "" if is_balanced else f"{counts[node.name]} run here, {fewest} on the least loaded node"


def _check_anti_affinity(options: Options, state: AuditState, task: Task, node: Node) -> str:
    group, density = task.key(options["by"]), options["density"]
    count = sum(other.key(options["by"]) == group for other in state.running_on(node))
    return f"{count} tasks of {group} run here, {density} are allowed" if count > density else ""


def _check_affinity(_options: Options, state: AuditState, task: Task, node: Node) -> str:
    is_alone = task.follows and not any(other.job == task.follows for other in state.running_on(node))
    return f"no task of {task.follows} runs here" if is_alone else ""


def _check_avoid(_options: Options, state: AuditState, task: Task, node: Node) -> str:
    others = [other for other in state.running_on(node) if other is not task]
    has_met = task.avoids and any(other.job == task.avoids for other in others)
    return f"{task.avoids} runs here" if has_met else ""


def _check_types(options: Options, _state: AuditState, task: Task, node: Node) -> str:
    node_type = node.labels.get(options["label"], "")
    if not task.types or node_type in task.types:
        return ""
    return f"it can run on {' or '.join(task.types)}, not on {node_type!r}"


def _check_locality(options: Options, state: AuditState, task: Task, node: Node) -> str:
    if not task.data or node.data.intersection(task.data):
        return ""
    waited_s = state.now - state.since_s[task.name]
    racks = {other.labels.get("rack") for other in state.nodes if other.data.intersection(task.data)}
    required_s = options["rack_after"] if node.labels.get("rack") in racks else options["any_after"]
    if waited_s >= required_s - TIME_TOLERANCE_S:
        return ""
    return f"its data is elsewhere, and it waited only {waited_s:g} s"


def _check_limit(options: Options, state: AuditState, task: Task, _node: Node) -> str:
    by, jobs = options["by"], options["jobs"]
    group = task.key(by)
    count = sum(other.key(by) == group and (not jobs or other.job in jobs) for other in state.all_running())
    return f"{count} tasks run, {options['most']} are allowed" if count > options["most"] else ""


def _check_barrier(_options: Options, state: AuditState, task: Task, _node: Node) -> str:
    running = {other.job for other in state.all_running()} if task.after else set()
    early = [job for job in task.after if state.ended[job] == 0 or job in running]
    return f"{early[0]} has not ended" if early else ""


def _may_hold(node: Node, task: Task) -> bool:
    """Return whether an empty node has the capacity, and a label with the type, that a task needs."""
    has_type = not task.types or any(label in task.types for label in node.labels.values())
    return has_type and all(node.capacity.get(kind, 0) >= amount for kind, amount in task.demand.items())


def _check_priority(options: Options, state: AuditState, task: Task, node: Node) -> str:
    if options["backfill"]:
        return ""
    higher = [other for other in state.waiting.values() if other.priority > task.priority and other.size == 1]
    gang_class = state.gang_class(task) if higher else task.priority
    # a task that waits for other tasks to start or end, or that no node can hold now, blocks no lower class
    blocking = [
        other
        for other in higher
        if other.priority > gang_class
        and not (other.follows or other.avoids or other.role == "worker" or _check_barrier(options, state, other, node))
        and any(_may_hold(place, other) for place in state.nodes if place.name not in state.closed)
    ]
    return f"{blocking[0].name} of a higher class waits" if blocking else ""


def _check_quota(options: Options, state: AuditState, task: Task, _node: Node) -> str:
    if options["borrow"]:
        return ""
    by, resource = options["by"], options["resource"]
    user = task.key(by)
    used = sum(other.demand.get(resource, 0) for other in state.all_running() if other.key(by) == user) / MILLI
    quota = options["quotas"].get(user, 0)
    return f"{user} uses {used:g}, its quota is {quota:g}" if used > quota else ""


def _check_servers(options: Options, state: AuditState, task: Task, node: Node) -> str:
    servers = [other for other in state.running_on(node) if other.job == task.job and other.role == "server"]
    if task.role == "server":
        return "a second server runs here" if len(servers) > 1 else ""
    is_misplaced = task.role == "worker" and bool(servers) != options["near"]
    return ("no server runs here" if options["near"] else "a server runs here") if is_misplaced else ""


CHECKS: Mapping[str, Check] = {
    "spread": _check_spread,
    "anti_affinity": _check_anti_affinity,
    "affinity": _check_affinity,
    "avoid": _check_avoid,
    "types": _check_types,
    "locality": _check_locality,
    "limit": _check_limit,
    "barrier": _check_barrier,
    "priority": _check_priority,
    "quota": _check_quota,
    "servers": _check_servers,
}
"""Checks by the key of their policy."""
