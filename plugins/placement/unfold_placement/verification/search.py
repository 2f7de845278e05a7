"""Explicit-state search for stuck states, torn gangs, loops within an instant, and starvation as a fair loop."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit
from unfold_placement.core.controller import Controller
from unfold_placement.core.policy import Policy, describe_failure, describe_policy_wait, policy_error
from unfold_placement.core.types import QUEUE
from unfold_placement.policies.registry import PolicyRule
from unfold_placement.simulation.audit import find_broken_rule, is_checked_at_starts
from unfold_placement.simulation.simulator import collect_result
from unfold_placement.verification.model import (
    IS_SHIPPED,
    SLOT_MARK,
    Renaming,
    Running,
    canonical_form,
    canonical_key,
    copy_controller,
    list_running,
)
from unfold_placement.verification.scenario import (
    ARRIVE,
    END,
    NODE_CHANGES,
    TICK_S,
    Action,
    Jobs,
    Scenario,
    apply_action,
    build_initial,
    job_rows,
    list_actions,
    running_jobs,
)
from unfoldkit.api import UnfoldError

STUCK, TORN, LIVELOCK, STARVATION, PREEMPTION_LOOP, HEAD_OF_LINE, LOST_WORK, BROKEN_RULE = (
    "stuck", "torn gang", "livelock", "starvation", "preemption loop", "head of line", "lost work", "broken rule",
)  # fmt: skip
"""Properties that a search decides."""
PROPERTIES = (STARVATION, PREEMPTION_LOOP, STUCK, TORN, BROKEN_RULE, LOST_WORK, LIVELOCK, HEAD_OF_LINE)
"""All of them, in the order of reports."""
NEW_OBJECTS, MAX_NEW_OBJECTS = 400_000, 1_000_000
"""A search collects garbage after so many new objects: after more where a collection finds next to none."""
LITTLE_GARBAGE = 0.01
"""Fraction of new objects."""
REPEATED = 200
"""Transitions of a search that are made again where a policy is none of this package."""
DELAYS_S = (90.0, 5400.0, 900_000.0)
"""Delays before a repeated transition, in turn: minutes, hours or days pass that change nothing but the time."""
TICKS_APART = 1e6
"""Factor by which times before a delay are stretched: beside it, a tick would be lost."""
DECISIONS = slice(0, 7)
"""Part of a state that shows what was decided, without the policies, their timers and the nodes."""
GONE = -1
"""In an edge: the job has ended or was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A violated property and how to get there.

    Attributes:
        property_name: One of the properties above.
        victim: Kind of the job that suffers.
        prefix: Actions from the empty cluster.
        loop: Actions that may repeat forever; empty where the state itself is the violation.
        message: What a policy raised, or which rule is broken; empty otherwise.
        used: Fraction of the scarcest kind of capacity in use, on average over the loop or at the end.
    """

    property_name: str
    victim: str
    prefix: tuple[Action, ...]
    loop: tuple[Action, ...] = ()
    message: str = ""
    used: float = 0.0

    @property
    def length(self) -> int:
        """Number of actions."""
        return len(self.prefix) + len(self.loop)


@dataclass(slots=True)
class Edge:
    """A transition.

    Attributes:
        target: Number of the next state.
        action: The action.
        successors: Index in the next state's jobs that may end of each job that may, or ``GONE``.
    """

    target: int
    action: Action
    successors: tuple[int, ...]


@dataclass(slots=True)
class Graph:
    """The states that were reached.

    Attributes:
        edges: Transitions by state.
        parents: State and action from which each state was reached first.
        may_starve: Whether the victim is there and every node is up, by state: nodes are not lost for ever.
        running_count: Number of running jobs, by state.
        whole_count: Number of jobs that may end, by state.
        used: Fraction of capacity in use, by state.
        transitions: Number of transitions.
        is_complete: Every reachable state was expanded.
        depends_on_time: A policy from outside this package had set a timer, or decided otherwise at a later time; no
            time passes in a search.
    """

    edges: list[list[Edge]] = field(default_factory=list)
    parents: list[tuple[int, Action] | None] = field(default_factory=list)
    may_starve: list[bool] = field(default_factory=list)
    running_count: list[int] = field(default_factory=list)
    whole_count: list[int] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    transitions: int = 0
    is_complete: bool = True
    depends_on_time: bool = False

    def path(self, state: int) -> tuple[Action, ...]:
        """Return the actions from the empty cluster to a state."""
        actions: list[Action] = []
        while (parent := self.parents[state]) is not None:
            state, action = parent
            actions.append(action)
        return tuple(reversed(actions))


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The findings of one search, the shortest of each property, its extent, and whether decisions depend on time."""

    findings: tuple[Finding, ...]
    states: int
    transitions: int
    is_complete: bool
    depends_on_time: bool = False


def search(
    scenario: Scenario,
    policies: Sequence[Policy],
    max_states: int,
    rules: Sequence[PolicyRule] = (),
    *,
    is_coarse: bool = False,
) -> SearchResult:
    """Search all orders of arrivals and ends for violations.

    Args:
        scenario: Cluster and kinds of jobs.
        policies: New policies.
        max_states: States after which the search stops, incomplete.
        rules: The rules of the policies, which are checked at every start.
        is_coarse: States with numbers that rank alike count as equal. Findings are suspects then, and their absence
            means nothing.

    Raises:
        UnfoldError: A policy fails before any job arrives, or decides otherwise when it is asked again.
    """
    initial = build_initial(scenario, policies)
    checked = rules if is_checked_at_starts(rules, policies) else None
    with _rare_collections():
        # the states that the search keeps are freed before collections are frequent again
        graph, findings = _explore(Frontier(scenario, Graph(), is_coarse=is_coarse), initial, checked, max_states)
    loop = find_fair_loop(graph, scenario.victim) if _runs_alone(scenario, graph) else None
    if loop is not None:
        findings[loop.property_name] = loop
    is_complete = graph.is_complete and not is_coarse
    states, transitions = len(graph.parents), graph.transitions
    return SearchResult(tuple(findings.values()), states, transitions, is_complete, graph.depends_on_time)


def _explore(
    frontier: Frontier, initial: Controller, rules: Sequence[PolicyRule] | None, max_states: int
) -> tuple[Graph, dict[str, Finding]]:
    """Expand states until all are, or too many were reached; return them and the first finding of each property."""
    graph = frontier.graph
    frontier.add(initial, Jobs(), list_running(initial), None)
    findings: dict[str, Finding] = {}
    while frontier.queue:
        for finding in _expand(frontier, *frontier.queue.popleft(), rules):
            findings.setdefault(finding.property_name, finding)
        if len(graph.parents) > max_states:
            graph.is_complete = False
            break
    return graph, findings


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage more rarely: copies of controllers are many objects that live long, and a pass visits all.

    Only objects of a policy that refer to each other in circles are garbage for it.
    """
    before = gc.get_threshold()
    if not before[0]:
        yield
        return

    def adapt(phase: str, info: Mapping[str, int]) -> None:
        threshold, *older = gc.get_threshold()
        if phase == "stop" and info["collected"] < LITTLE_GARBAGE * threshold:
            gc.set_threshold(min(4 * threshold, MAX_NEW_OBJECTS), *older)

    gc.set_threshold(max(before[0], NEW_OBJECTS), *before[1:])
    gc.callbacks.append(adapt)
    try:
        yield
    finally:
        gc.callbacks.remove(adapt)
        gc.set_threshold(*before)


@dataclass(slots=True)
class Frontier:
    """The states that were reached but not expanded, and the numbers of all.

    Attributes:
        scenario: Cluster and kinds of jobs.
        graph: The states that were reached.
        is_coarse: States with numbers that rank alike count as equal.
        numbers: Numbers of states by canonical form.
        queue: States to expand, each with its number and its running tasks.
        renamings: Names of jobs in canonical forms, by the living jobs.
    """

    scenario: Scenario
    graph: Graph
    is_coarse: bool
    numbers: dict[Hashable, int] = field(default_factory=dict)
    queue: deque[tuple[int, Controller, Jobs, Running]] = field(default_factory=deque)
    renamings: dict[tuple[str, ...], Renaming] = field(default_factory=dict)

    def add(
        self, controller: Controller, jobs: Jobs, running: Running, parent: tuple[int, Action] | None
    ) -> tuple[int, bool]:
        """Return the number of a state, and whether it is new."""
        rename = self.renamings.get(jobs.arrived)
        if rename is None:
            rename = self.renamings[jobs.arrived] = jobs.renaming(self.scenario.kinds)
        form = canonical_key(controller, rename, running, is_coarse=self.is_coarse)
        key = form, tuple(rename.jobs.values()), jobs.victim_came
        known = self.numbers.setdefault(key, len(self.numbers))
        if known < len(self.graph.parents):
            return known, False
        graph, victim = self.graph, f"{self.scenario.victim}{SLOT_MARK}"
        graph.edges.append([])
        graph.parents.append(parent)
        has_all_nodes = all(controller.table.state.is_up.tolist())
        graph.may_starve.append(has_all_nodes and any(job.startswith(victim) for job in jobs.arrived))
        graph.running_count.append(len(running_jobs(running, only_whole=False)))
        graph.whole_count.append(len(running_jobs(running, only_whole=self.scenario.has_gangs)))
        graph.used.append(_used_fraction(controller))
        self.queue.append((known, controller, jobs, running))
        return known, True


def _expand(
    frontier: Frontier,
    number: int,
    controller: Controller,
    jobs: Jobs,
    running: Running,
    rules: Sequence[PolicyRule] | None,
) -> Iterator[Finding]:
    """Apply every action that is possible in a state; yield the violations on the way and in new states."""
    scenario, graph = frontier.scenario, frontier.graph
    actions = list(list_actions(scenario, controller, jobs, running))
    before = [action.target for action in actions if action.code == END]
    running_before = set(running_jobs(running, only_whole=False))
    for action in actions:
        if graph.transitions < REPEATED:
            _check_repeatable(frontier, controller, jobs, action)
        following = copy_controller(controller) if action is not actions[-1] else controller
        cursor = int(following.table.state.counters[kernel.LOGGED])
        graph.transitions += 1
        prefix = (number, action)
        try:
            new_jobs = apply_action(scenario, following, jobs, action)
        except UnfoldError as error:
            yield _finding_after(LIVELOCK, scenario.victim, graph, prefix, describe_failure(error))
            continue
        running = list_running(following)
        target, is_new = frontier.add(following, new_jobs, running, prefix)
        after = running_jobs(running, only_whole=scenario.has_gangs)
        stopped = _stopped_jobs(following, cursor)
        successors = tuple([after.index(job) if job in after and job not in stopped else GONE for job in before])
        graph.edges[number].append(Edge(target, action, successors))
        is_lost = stopped and running_before.issuperset(running_jobs(running, only_whole=False))
        if is_lost and action.code not in NODE_CHANGES:
            yield _finding_after(LOST_WORK, min(stopped).split(SLOT_MARK)[0], graph, prefix)
        if is_new:
            yield from _judge_state(scenario, following, new_jobs, running, graph, target)
            if rules is not None:
                yield from _judge_starts(scenario, following, rules, graph, prefix)


def _check_repeatable(frontier: Frontier, controller: Controller, jobs: Jobs, action: Action) -> None:
    """Check that policies from outside this package decide alike in equal states.

    Raises:
        UnfoldError: One of them draws random numbers, reads a clock or keeps its state elsewhere.
    """
    foreign = [index for index, policy in enumerate(controller.policies) if not IS_SHIPPED[type(policy)]]
    if not foreign:
        return
    outcomes: list[tuple[dict[int, Hashable], Any]] = []
    for delay_s in (0.0, 0.0, DELAYS_S[frontier.graph.transitions % len(DELAYS_S)]):
        following = copy_controller(controller)
        _let_time_pass(following, delay_s)
        try:
            rename = apply_action(frontier.scenario, following, jobs, action).renaming(frontier.scenario.kinds)
            frontier.graph.depends_on_time |= bool(following.timers)
            running = list_running(following)
            forms = {index: canonical_form(following.policies[index], rename) for index in foreign}
            outcomes.append((forms, canonical_key(following, rename, running, is_coarse=frontier.is_coarse)))
        except UnfoldError as error:
            outcomes.append(({}, str(error)))
    (first, first_key), (second, second_key), (_, later_key) = outcomes
    if first_key != second_key:
        differing = [index for index in foreign if first.get(index) != second.get(index)]
        message = "it decides differently when the same state is continued a second time, so a search proves nothing"
        hint = "no random numbers, clocks or globals; keep all state in its attributes, a random.Random included"
        policy = controller.policies[[*differing, *foreign][0]]
        if getattr(policy, "state", None) is not None:
            hint += "; state() must return equal values for equal states, so no generator"
        raise policy_error(policy, "react", message, hint=hint)
    if not isinstance(first_key, str):
        frontier.graph.depends_on_time |= first_key[DECISIONS] != later_key[DECISIONS]


def _let_time_pass(controller: Controller, delay_s: float) -> None:
    """Move the clock on, as if tasks had started that much later; their order of start remains."""
    if not delay_s:
        return
    state = controller.table.state
    rows = np.flatnonzero(state.status == kernel.RUNNING)
    moved_s = TICKS_APART * state.start_s[rows] + delay_s - state.start_s[rows]
    state.start_s[rows] += moved_s
    state.end_s[rows] += moved_s
    state.clock[0] = TICKS_APART * (state.clock[0] + TICK_S) + delay_s


def _judge_starts(
    scenario: Scenario, controller: Controller, rules: Sequence[PolicyRule], graph: Graph, parent: tuple[int, Action]
) -> Iterator[Finding]:
    """Yield the rule that the log of a new state breaks."""
    try:
        name, message = BROKEN_RULE, find_broken_rule(collect_result(controller), rules, controller.policies)
    except UnfoldError as error:
        name, message = LIVELOCK, describe_failure(error)
    if message:
        yield _finding_after(name, _kind_of(parent[1], scenario), graph, parent, message)


def _finding_after(name: str, victim: str, graph: Graph, parent: tuple[int, Action], message: str = "") -> Finding:
    number, action = parent
    return Finding(property_name=name, victim=victim, prefix=(*graph.path(number), action), message=message)


def _kind_of(action: Action, scenario: Scenario) -> str:
    """Return the kind of the job that an action is about; the victim if it is about a node."""
    return scenario.victim if action.code in NODE_CHANGES else action.target.split(",")[0].split(SLOT_MARK)[0]


def _runs_alone(scenario: Scenario, graph: Graph) -> bool:
    """Return whether the victim starts at once on the empty cluster: one that cannot run does not starve."""
    arrivals = [edge.target for edge in graph.edges[0] if edge.action == Action(ARRIVE, scenario.victim)]
    return bool(arrivals) and graph.running_count[arrivals[0]] > 0


def _used_fraction(controller: Controller) -> float:
    state, view = controller.table.state, controller.view
    free = np.dot(state.is_up, state.free).tolist()
    totals = map(view.total_capacity, controller.table.resource_kinds)
    return max((1 - amount / total for amount, total in zip(free, totals, strict=False) if total), default=0.0)


def _stopped_jobs(controller: Controller, cursor: int) -> set[str]:
    """Return the jobs with a task that was preempted since a log entry."""
    state, tasks = controller.table.state, controller.table.tasks
    entries = slice(cursor, int(state.counters[kernel.LOGGED]))
    kinds = state.log_kind[entries].tolist()
    if kernel.LOG_PREEMPTED not in kinds:
        return set()
    logged = zip(kinds, state.log_task[entries].tolist(), strict=True)
    return {tasks[row].job for kind, row in logged if kind == kernel.LOG_PREEMPTED}


def _judge_state(
    scenario: Scenario, controller: Controller, jobs: Jobs, running: Running, graph: Graph, number: int
) -> Iterator[Finding]:
    """Yield the properties that a state violates by itself."""
    status, view = controller.table.state.status.tolist(), controller.view
    waiting: list[tuple[str, Unit]] = []
    for job in jobs.arrived:
        rows = job_rows(controller, job)
        states = {status[row] for row in rows}
        kind = job.split(SLOT_MARK)[0]
        if scenario.has_gangs and states == {kernel.RUNNING, kernel.WAITING} and view.gang_key:
            yield _finding(TORN, kind, graph, number)
        if kernel.WAITING in states:
            tasks = [controller.table.tasks[row] for row in rows if status[row] == kernel.WAITING]
            unit = view.unit(tasks[0])
            waiting.append((kind, unit if unit is not None else tuple(tasks)))
    fitting = [(kind, unit) for kind, unit in waiting if _would_fit(controller, unit)]
    can_end = running_jobs(running, only_whole=scenario.has_gangs)
    if waiting and not can_end and graph.running_count[number]:
        yield _finding(TORN, waiting[0][0], graph, number)
    if not graph.running_count[number] and controller.table.state.is_up.any():
        # the cluster is empty: whatever can run at all must fit, whichever unit has a reservation
        possible = [kind for kind, unit in waiting if _is_possible(controller, unit)]
        stuck = possible or [kind for kind, unit in waiting if _is_withheld(controller, graph, kind, unit)]
        if stuck:
            yield _finding(STUCK, stuck[0], graph, number)
    elif fitting:
        running_kinds = {job.split(SLOT_MARK)[0] for job in running_jobs(running, only_whole=False)}
        for kind, _ in fitting:
            if kind not in running_kinds:
                yield _finding(HEAD_OF_LINE, kind, graph, number)


def _finding(name: str, victim: str, graph: Graph, number: int) -> Finding:
    return Finding(property_name=name, victim=victim, prefix=graph.path(number), used=graph.used[number])


def _would_fit(controller: Controller, unit: Unit) -> bool:
    """Return whether a waiting unit would fit now, and no policy has set it aside."""
    return controller.view.room(unit, QUEUE) is not None and not _is_set_aside(controller, unit)


def _is_possible(controller: Controller, unit: Unit) -> bool:
    """Return whether a waiting unit would fit on the empty cluster, and lacks nothing else."""
    view = controller.view
    lacks = view.missing_resource(unit, QUEUE) is not None or view.short_resources(unit, QUEUE)
    return not lacks and not view.why_impossible(unit) and not _is_set_aside(controller, unit)


def _is_withheld(controller: Controller, graph: Graph, kind: str, unit: Unit) -> bool:
    """Return whether policies withhold from a unit on the empty cluster what they gave its kind at the beginning.

    Nothing runs that could end, and no timer will fire.
    """
    began = [edge.target for edge in graph.edges[0] if edge.action == Action(ARRIVE, kind)]
    has_run = bool(began) and graph.running_count[began[0]] > 0
    is_whole = bool(controller.table.state.is_up.all()) and not controller.timers
    return has_run and is_whole and not _is_set_aside(controller, unit)


def _is_set_aside(controller: Controller, unit: Unit) -> bool:
    view = controller.view
    for policy in controller.policies:
        wait = describe_policy_wait(policy, unit[0], view)
        if wait is not None and wait.reason.startswith("set aside"):
            return True
    return False


def find_fair_loop(graph: Graph, victim: str) -> Finding | None:
    """Return the shortest loop in which the victim never ends and every job that runs ends or is stopped, or None.

    A loop is fair if all jobs that could end at its start end or are stopped within it; a torn gang could not. The
    search keeps the set of those that still run, inside a strongly connected component of the states with the victim.
    """
    best: Finding | None = None
    depth = [len(graph.path(state)) for state in range(len(graph.parents))]
    for component in strong_components(graph):
        members = set(component)
        shortest = min(depth[state] for state in component)
        for start in sorted(component, key=depth.__getitem__):
            if best is not None and depth[start] >= best.length:
                break
            if depth[start] > shortest + MAX_EXTRA_DEPTH:
                break
            found = _shortest_fair_loop(graph, members, start)
            if found is None:
                continue
            loop, states, is_stopped = found
            if best is None or depth[start] + len(loop) < best.length:
                used = float(np.mean([graph.used[state] for state in states]))
                name = PREEMPTION_LOOP if is_stopped else STARVATION
                best = Finding(property_name=name, victim=victim, prefix=graph.path(start), loop=loop, used=used)
    return best


MAX_EXTRA_DEPTH = 3
"""Starts of loops are tried up to so many actions beyond the first state of a component."""


def _shortest_fair_loop(
    graph: Graph, members: set[int], start: int
) -> tuple[tuple[Action, ...], list[int], bool] | None:
    origin = (start, tuple(range(graph.whole_count[start])))
    parents: dict[tuple[int, tuple[int, ...]], tuple[tuple[int, tuple[int, ...]], Edge] | None] = {origin: None}
    queue = deque([origin])
    while queue:
        node = queue.popleft()
        state, alive = node
        for edge in graph.edges[state]:
            if edge.target not in members:
                continue
            left = tuple(edge.successors[index] for index in alive if edge.successors[index] != GONE)
            following = (edge.target, left)
            if following == (start, ()):
                return _unwind(parents, node, edge)
            if following not in parents:
                parents[following] = (node, edge)
                queue.append(following)
    return None


def _unwind(
    parents: Mapping[tuple[int, tuple[int, ...]], tuple[tuple[int, tuple[int, ...]], Edge] | None],
    node: tuple[int, tuple[int, ...]],
    last: Edge,
) -> tuple[tuple[Action, ...], list[int], bool]:
    edges, states = [last], [node[0]]
    while (parent := parents[node]) is not None:
        node, edge = parent
        edges.append(edge)
        states.append(node[0])
    edges.reverse()
    has_stop = any(GONE in edge.successors and edge.action.code != "-" for edge in edges)
    return tuple(edge.action for edge in edges), states, has_stop


def strong_components(graph: Graph) -> list[list[int]]:
    """Return the strongly connected components with a cycle among the states with the victim (Tarjan, 1972)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    components: list[list[int]] = []
    for root in range(len(graph.parents)):
        if root in index or not graph.may_starve[root]:
            continue
        work = [(root, iter(graph.edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            state, edges = work[-1]
            edge = next((item for item in edges if graph.may_starve[item.target]), None)
            if edge is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[state])
                if low[state] == index[state]:
                    components.append(_pop_component(stack, on_stack, state))
            elif edge.target not in index:
                index[edge.target] = low[edge.target] = len(index)
                stack.append(edge.target)
                on_stack.add(edge.target)
                work.append((edge.target, iter(graph.edges[edge.target])))
            elif edge.target in on_stack:
                low[state] = min(low[state], index[edge.target])
    has_cycle = [
        component
        for component in components
        if len(component) > 1 or any(edge.target == component[0] for edge in graph.edges[component[0]])
    ]
    return sorted(has_cycle, key=min)


def _pop_component(stack: list[int], on_stack: set[int], state: int) -> list[int]:
    component: list[int] = []
    while not component or component[-1] != state:
        component.append(stack.pop())
        on_stack.discard(component[-1])
    return component
