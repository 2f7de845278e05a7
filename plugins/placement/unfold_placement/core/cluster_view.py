"""The view: what a policy may read of the cluster, including whether tasks would fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import Int32Array, Int64Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.feasibility import EmptyCluster
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import QUEUE, Drop, Node, Put, Task

Unit = tuple[Task, ...]
"""Tasks that are admitted and started together: a single task or a gang (a pod group in Kubernetes)."""
DEMAND_TOLERANCE = 1e-6


@dataclass(slots=True)
class View:
    """The state of the cluster as policies see it.

    Attributes:
        table: Nodes, tasks and ephemeral resources.
        gang_key: Task field by which gangs are grouped; empty without gangs.
        members: Waiting and running tasks of each gang, by name.
        totals: Cached capacity of the cluster by kind.
        finished: Number of finished tasks of each gang.
        label_groups: [nodes] cached group number of each node, by label.
        patience_s: How long (s) a gang may be passed before nodes are reserved for it; policy ``gang`` sets it.
        reserved_unit: The unit for which nodes are kept free; empty for none.
        reserved_under: Version of the rules and nodes under which they were chosen.
        released_nodes: Rows of the nodes of every ended reservation, in order.
        releases: Number of ended reservations.
        empty_cluster: The cluster as if nothing ran; None until it is needed.
        never_preempt: Names of tasks for which no other is preempted.
    """

    table: ResourceTable
    gang_key: str = ""
    members: dict[str, dict[str, Task]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    finished: Counter[str] = field(default_factory=Counter)
    label_groups: dict[str, Int64Array] = field(default_factory=dict)
    patience_s: float = 0.0
    reserved_unit: Unit = ()
    reserved_under: int = 0
    released_nodes: list[int] = field(default_factory=list)
    releases: int = 0
    never_preempt: frozenset[str] = frozenset()
    empty_cluster: EmptyCluster = field(init=False)

    def __post_init__(self) -> None:
        self.empty_cluster = EmptyCluster(self.table)

    @property
    def now(self) -> float:
        """The current time in seconds."""
        return self.table.now

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that tasks may run on now: those that are lost or cordoned are left out."""
        is_up = self.table.state.is_up
        if is_up.all():
            return self.table.nodes
        return tuple(node for node, flag in zip(self.table.nodes, is_up, strict=True) if flag)

    def total_capacity(self, kind: str) -> int:
        """Return the capacity of the nodes that are up (of all nodes while none is), in thousandths."""
        if not self.totals:
            nodes = self.nodes or self.table.nodes
            kinds = self.table.resource_kinds
            self.totals.update({name: sum(node.capacity.get(name, 0) for node in nodes) for name in kinds})
        return self.totals.get(kind, 0)

    def add_member(self, task: Task) -> None:
        """Add a submitted task to its gang."""
        if self.gang_key:
            self.members.setdefault(task.key(self.gang_key), {})[task.name] = task

    def requeue_gang(self, task: Task) -> None:
        """Restore the original queue order of a preempted gang, since nodes are assigned in that order."""
        state = self.table.state
        members = self.members.get(task.key(self.gang_key), {}) if self.gang_key else {}
        rows = [self.table.task_rows[name] for name, member in members.items() if self.is_waiting(member)]
        queue = state.queue[: state.counters[kernel.QUEUED]]
        positions = np.flatnonzero(np.isin(queue, rows))
        if positions.size == len(rows):
            queue[positions] = rows

    def remove_member(self, task: Task, *, has_finished: bool) -> None:
        """Remove a task from its gang; a gang that restarts does so without its finished tasks.

        With its last task the gang is over if all have finished or that one was withdrawn: its name is free again.
        """
        key = task.key(self.gang_key)
        if not self.gang_key or self.members.get(key, {}).pop(task.name, None) is None:
            return
        self.finished[key] += has_finished
        if not self.members[key] and (self.finished[key] >= task.size or not has_finished):
            del self.members[key], self.finished[key]

    def forget_gangs(self, alive: Container[str]) -> None:
        """Forget the finished tasks of gangs that are not alive; some of their records may be gone.

        Args:
            alive: Names of the gangs with waiting or running tasks.
        """
        for key in [key for key, members in self.members.items() if not members and key not in alive]:
            del self.members[key], self.finished[key]

    def remaining_unit(self, unit: Unit) -> Unit | None:
        """Return the waiting tasks of a unit as a unit; None while it is incomplete or none waits."""
        waiting = next((task for task in unit if self.is_waiting(task)), None)
        return self.unit(waiting) if waiting is not None else None

    def unit(self, task: Task) -> Unit | None:
        """Return the tasks that must start together with this one; None while some of them do not wait."""
        if not self.gang_key:
            return (task,)
        key = task.key(self.gang_key)
        members = self.members.get(key, {})
        if len(members) + self.finished[key] < task.size:
            return None
        status, rows = self.table.state.status, self.table.task_rows
        for name in members:
            if status[rows[name]] != kernel.WAITING:
                return None
        return tuple(members.values())

    def is_waiting(self, task: Task) -> bool:
        """Return whether a task waits."""
        return bool(self.table.state.status[self.table.task_rows[task.name]] == kernel.WAITING)

    def is_running(self, task: Task) -> bool:
        """Return whether a task runs."""
        return bool(self.table.state.status[self.table.task_rows[task.name]] == kernel.RUNNING)

    def change_counters(self) -> tuple[int, int]:
        """Return counters of freed or created capacity and of starts: while equal, nothing else fits."""
        counters = self.table.state.counters
        return int(counters[kernel.FREED]), int(counters[kernel.STARTS])

    def shortest_run_s(self, task: Task) -> float:
        """Return a task's run time (s) on its fastest node type."""
        return float(self.table.state.run_s[self.table.task_rows[task.name]].min())

    def lost_s(self, task: Task) -> float:
        """Return the run time (s) that a running task would lose by a preemption now."""
        elapsed_s = self.now - float(self.table.state.start_s[self.table.task_rows[task.name]])
        return elapsed_s - task.kept_seconds(elapsed_s)

    def waiting(self) -> Iterator[Task]:
        """Yield the waiting tasks in queue order."""
        for row in self.queue_rows():
            if self.table.state.status[row] == kernel.WAITING:
                yield self.table.tasks[row]

    def queue_rows(self) -> Int32Array:
        """Return the task rows of the queue in order; tasks that just started may still be in it."""
        state = self.table.state
        return state.queue[: state.counters[kernel.QUEUED]].copy()

    def running(self) -> list[tuple[Task, str, float]]:
        """Return the running tasks with node and start time (s), ordered by start."""
        state, table = self.table.state, self.table
        rows = (state.status[: len(table.tasks)] == kernel.RUNNING).nonzero()[0]
        rows = rows[state.start_s[rows].argsort(kind="stable")]
        placed = zip(rows.tolist(), state.task_node[rows].tolist(), state.start_s[rows].tolist(), strict=True)
        return [(table.tasks[row], table.nodes[node].name, start_s) for row, node, start_s in placed]

    def room(
        self, unit: Sequence[Task], phase: int, within: Iterable[str] | MaskArray | None = None
    ) -> list[str] | None:
        """Return nodes on which the tasks fit together, or None.

        Args:
            unit: The tasks.
            phase: Requests of policies in earlier phases must be available; later ones do not count.
            within: Names or mask of the allowed nodes; None allows all.
        """
        state, table = self.table.state, self.table
        allowed = self._allowed_mask(within)
        if len(unit) == 1:
            node = kernel.call_first_fit(state, table.task_rows[unit[0].name], phase, allowed)
            return None if node < 0 else [table.nodes[node].name]
        rows = np.array([table.task_rows[task.name] for task in unit], np.int32)
        assigned = np.empty(len(unit), np.int32)
        if not kernel.call_assign_unit(state, rows, phase, allowed, assigned):
            return None
        return [table.nodes[node].name for node in assigned]

    def why_impossible(self, unit: Unit) -> str:
        """Return why a unit cannot run even on the empty cluster under the present standing rules; empty if it can."""
        return self.empty_cluster.why_impossible(unit)

    def reserve(self, unit: Unit) -> bool:
        """Keep nodes free for a unit that does not fit now: no other unit starts there until it has started.

        The nodes stay the same until ``release_reservation``. Only one unit has a reservation.

        Returns:
            Whether some nodes suffice for the unit when they are empty.
        """
        if unit == self.reserved_unit:
            return True
        self.release_reservation()
        mask = self.empty_cluster.choose_nodes(unit)
        if mask is None:
            return False
        state = self.table.state
        state.is_reserved[:] = mask
        state.is_owner[[self.table.task_rows[task.name] for task in unit]] = 1
        self.reserved_unit, self.reserved_under = unit, self.empty_cluster.rules_version
        return True

    def release_reservation(self) -> None:
        """Let every unit use the reserved nodes again."""
        if not self.reserved_unit:
            return
        state = self.table.state
        nodes = np.flatnonzero(state.is_reserved).tolist()
        for node in nodes:
            kernel.call_mark_dirty(state, node)
        self.released_nodes += nodes
        self.releases += 1
        state.is_reserved[:] = 0
        for task in self.reserved_unit:
            state.is_owner[self.table.task_rows[task.name]] = task.completes
        state.counters[kernel.FREED] += 1
        self.reserved_unit = ()

    def check_reservation(self) -> None:
        """Release the reservation if its unit no longer waits as a whole, or if it does not suffice any more."""
        unit = self.reserved_unit
        if unit and not (all(self.is_waiting(task) for task in unit) and self._is_reservation_up()):
            self.release_reservation()

    def fits(self, task: Task, phase: int) -> list[str]:
        """Return every node on which a task fits."""
        return [self.table.nodes[row].name for row in np.flatnonzero(self.fit_mask(task, phase))]

    def fit_mask(self, task: Task, phase: int) -> MaskArray:
        """Return the [nodes] mask of the nodes on which a task fits."""
        marks = np.empty(len(self.table.nodes), np.uint8)
        kernel.call_mark_fitting(self.table.state, self.table.task_rows[task.name], phase, marks)
        return marks

    def iter_tightest_groups(self, task: Task, phase: int, label: str, kinds: Sequence[str]) -> Iterator[MaskArray]:
        """Yield masks of the node groups that fit a task, tightest group first (best fit).

        Args:
            task: The task.
            phase: Requests of earlier phases must be available.
            label: Label that groups nodes; ``node`` makes every node its own group.
            kinds: Kinds by which free capacity is compared, the most important first, as fractions of the cluster's.
        """
        table, groups = self.table, self._group_by_label(label)
        rows = np.flatnonzero(self.fit_mask(task, phase))
        fitting, first_index, group_index = np.unique(groups[rows], return_index=True, return_inverse=True)
        columns = [table.resource_kinds.index(kind) for kind in reversed(kinds)]
        free = [
            np.bincount(group_index, table.state.free[rows, column], fitting.size)
            / (self.total_capacity(table.resource_kinds[column]) or 1)
            for column in columns
        ]
        for group in fitting[np.lexsort((first_index, *free))]:
            yield np.asarray(groups == group, np.uint8)

    def has_cluster_resources(self, unit: Unit, phase: int) -> bool:
        """Return whether the cluster-scoped resources that the tasks request are available: they are admitted."""
        state, table = self.table.state, self.table
        if len(unit) == 1:
            return bool(kernel.call_has_cluster_resources(state, table.task_rows[unit[0].name], phase))
        rows = np.array([table.task_rows[task.name] for task in unit], np.int32)
        return bool(kernel.call_has_unit_resources(state, rows, phase))

    def admitted_tasks(self, tasks: Iterable[Task], phase: int) -> list[bool]:
        """Return for each task whether it no longer waits, or has the cluster-scoped resources of earlier phases."""
        rows = np.array([self.table.task_rows[task.name] for task in tasks], np.int32)
        marks = np.empty(rows.size, np.uint8)
        kernel.call_mark_admitted(self.table.state, rows, phase, marks)
        return marks.astype(bool).tolist()

    def missing_resource(self, unit: Unit, phase: int) -> int | None:
        """Return the id of a resource that a unit requests in an earlier phase and that exists nowhere, or None."""
        if self.has_cluster_resources(unit, phase):
            return None
        state, table = self.table.state, self.table
        for row in [table.task_rows[task.name] for task in unit]:
            phases = state.request_phase[row].tolist()
            for resource, request_phase in zip(state.requested[row].tolist(), phases, strict=True):
                if resource < 0:
                    break
                if request_phase < phase and not self.exists(resource):
                    return int(resource)
        return None

    def cluster_requests(self, unit: Unit, phase: int) -> set[int]:
        """Return the ids of the shared cluster-scoped resources that a unit requests in an earlier phase."""
        return set(self._cluster_amounts(unit, phase))

    def short_resources(self, unit: Unit, phase: int) -> set[int]:
        """Return the ids of the shared cluster-scoped resources that have less left than a unit requests."""
        pool = self.table.state.pool
        return {resource for resource, amount in self._cluster_amounts(unit, phase).items() if pool[resource] < amount}

    def scarce_resource(self, unit: Unit) -> int | None:
        """Return the id of a node-scoped resource that keeps a unit waiting, rather than room; None for none.

        Of such a rule, as anti-affinity, no node has enough left: the unit would not fit if nothing ran.
        """
        state = self.table.state
        rows = [self.table.task_rows[task.name] for task in unit]
        requested = state.requested[rows]
        is_standing = (requested >= 0) & (state.request_phase[rows] < QUEUE)
        if not is_standing.any():
            return None
        asked = zip(requested[is_standing].tolist(), state.requested_amount[rows][is_standing].tolist(), strict=True)
        amounts: dict[int, int] = {resource: amount for resource, amount in asked if state.scope[resource] == 0}
        if not amounts or self.empty_cluster.fits_drained(unit):
            return None
        # of several the one that the fewest nodes have
        return min(amounts, key=lambda resource: self._count_nodes_with(resource, amounts[resource]))

    def _count_nodes_with(self, resource: int, amount: int) -> int:
        state = self.table.state
        column = state.column[resource]
        return int((state.available[:, column] >= amount).sum()) if column >= 0 else 0

    def _cluster_amounts(self, unit: Unit, phase: int) -> dict[int, int]:
        state = self.table.state
        amounts: dict[int, int] = {}
        # most units are a task or a few, for which masks cost more than loops
        for row in [self.table.task_rows[task.name] for task in unit]:
            requests = (state.requested[row], state.request_phase[row], state.requested_amount[row])
            for resource, request_phase, amount in zip(*(column.tolist() for column in requests), strict=True):
                if resource >= 0 and request_phase < phase and state.scope[resource] == kernel.SHARED:
                    amounts[resource] = amounts.get(resource, 0) + amount
        return amounts

    def resource_name(self, resource: int) -> str:
        """Return the name of the resource with an id."""
        return next(name for name, number in self.table.name_ids.items() if number == resource)

    def exists(self, resource: int) -> bool:
        """Return whether the resource with an id exists anywhere."""
        state = self.table.state
        return bool(state.scope[resource] > 0 or state.column[resource] >= 0)

    def free_amounts(self, node: str) -> dict[str, int]:
        """Return the free capacity of a node by kind, in thousandths."""
        row = self.table.state.free[self.table.node_rows[node]]
        return dict(zip(self.table.resource_kinds, row.tolist(), strict=False))

    def node_of(self, task: Task) -> str:
        """Return the name of the node on which a task runs or ran last."""
        row: int = self.table.state.task_node[self.table.task_rows[task.name]]
        return self.table.nodes[row].name

    def node(self, name: str) -> Node:
        """Return a node by name."""
        return self.table.nodes[self.table.node_rows[name]]

    def puts(self, name: str, amount: int = 1, nodes: Iterable[str] | None = None, *, until: str = "") -> list[Put]:
        """Return the operations that set an ephemeral resource on nodes, by default on all that are up.

        Args:
            name: The resource.
            amount: Amount on each node, in whole units.
            nodes: Names of the nodes.
            until: Task that the resource ends with; empty for none.
        """
        names = [node.name for node in self.nodes] if nodes is None else nodes
        return [Put(name, node, amount, until) for node in names]

    def drops(self, name: str, keep: Collection[str] = ()) -> list[Drop]:
        """Return the operations that delete an ephemeral resource on every node that has it, except on ``keep``."""
        return [Drop(name, node) for node in self.table.entries.get(name, {}) if node not in keep]

    def count_running(self, tasks: Iterable[Task]) -> dict[str, int]:
        """Count how many of the tasks run on each node that is up."""
        counts = dict.fromkeys((node.name for node in self.nodes), 0)
        state, table = self.table.state, self.table
        for task in tasks:
            row = table.task_rows[task.name]
            name = table.nodes[state.task_node[row]].name
            if state.status[row] == kernel.RUNNING and name in counts:
                # on a cordoned node tasks go on, but it is not up
                counts[name] += 1
        return counts

    def first_overload_s(self, tasks: Sequence[Task]) -> float:
        """Return the first deadline (s) by which running tasks and some waiting ones cannot all end, or 0.

        This is the processor demand test (Baruah, Rosier and Howell, 1990). The work due by a deadline is
        amount x time on the fastest node type. It is compared with the cluster's capacity, kind by kind.
        """
        state, table = self.table.state, self.table
        waiting = np.fromiter((table.task_rows[task.name] for task in tasks), np.int64, len(tasks))
        deadlines = np.fromiter((task.deadline for task in tasks), np.float64, len(tasks))
        waiting, deadlines = waiting[np.argsort(deadlines, kind="stable")], np.sort(deadlines)
        running = np.flatnonzero(state.status[: len(table.tasks)] == kernel.RUNNING)
        node_types = state.node_type[state.task_node[running]]
        remaining_s = state.run_s[running, node_types] + state.start_s[running] - self.now
        demand = table.demand_by_kind
        work = (demand[running] * remaining_s[:, None]).sum(axis=0) + np.cumsum(
            demand[waiting] * state.run_s[waiting].min(axis=1)[:, None], 0
        )
        totals = np.array([self.total_capacity(kind) for kind in table.resource_kinds])
        supply = totals * (deadlines - self.now)[:, None]
        is_late = ((work > supply + DEMAND_TOLERANCE) & (demand[waiting] > 0)).any(axis=1)
        return float(deadlines[is_late.argmax()]) if is_late.any() else 0.0

    def running_mates(self, task: Task) -> list[Task]:
        """Return the running members of a task's gang, which are preempted together; without gangs the task itself."""
        mates = self.members.get(task.key(self.gang_key), {}).values() if self.gang_key else ()
        return [mate for mate in mates or (task,) if self.is_running(mate)]

    def victims(self, unit: Unit, candidates: Iterable[Task]) -> list[Task] | None:
        """Choose tasks to preempt so that ``unit`` fits, or None where it cannot, or where one of it preempts nothing.

        Candidates are taken in order, each with the gang that runs with it. Of these, tasks that turn out not to be
        in the way are spared, the last candidates first. Tasks beside which the unit must run are never victims:
        without them it would have no node.
        """
        if not all(task.preempts and task.name not in self.never_preempt for task in unit):
            return None
        removed: dict[str, list[Task]] = {}
        try:
            for candidate in candidates:
                if self.room(unit, QUEUE) is not None:
                    break
                mates = self.running_mates(candidate)
                if mates and mates[0].name not in removed and not any(_runs_beside(unit, mate) for mate in mates):
                    self._change_allocation(mates, kernel.call_release)
                    removed[mates[0].name] = mates
            return self._spare_unneeded(unit, removed) if self.room(unit, QUEUE) is not None else None
        finally:
            for mates in removed.values():
                self._change_allocation(mates, kernel.call_allocate)

    def _is_reservation_up(self) -> bool:
        state = self.table.state
        if self.reserved_under == self.empty_cluster.rules_version:
            return True
        self.reserved_under = self.empty_cluster.rules_version
        return bool((state.is_up[state.is_reserved > 0] > 0).all())

    def _spare_unneeded(self, unit: Unit, removed: dict[str, list[Task]]) -> list[Task]:
        for name in reversed(list(removed)):
            mates = removed.pop(name)
            self._change_allocation(mates, kernel.call_allocate)
            if self.room(unit, QUEUE) is None:
                self._change_allocation(mates, kernel.call_release)
                removed[name] = mates
        return [task for mates in reversed(removed.values()) for task in mates]

    def _change_allocation(self, tasks: Iterable[Task], change: Callable[..., None]) -> None:
        for task in tasks:
            row = self.table.task_rows[task.name]
            change(self.table.state, row, self.table.state.task_node[row], QUEUE)

    def _group_by_label(self, label: str) -> Int64Array:
        if label not in self.label_groups:
            nodes = self.table.nodes
            values = [node.name if label == "node" else node.labels.get(label, "") for node in nodes]
            numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
            self.label_groups[label] = np.array([numbers[value] for value in values])
        return self.label_groups[label]

    def _allowed_mask(self, within: Iterable[str] | MaskArray | None) -> MaskArray:
        if within is None:
            return self.table.state.is_up
        if isinstance(within, np.ndarray):
            return within
        mask = np.zeros(len(self.table.nodes), np.uint8)
        mask[[self.table.node_rows[name] for name in within]] = 1
        return mask


def _runs_beside(unit: Unit, other: Task) -> bool:
    """Return whether a task of the unit must run beside another: a task that it follows, or its job's server."""
    return any(
        task.follows == other.job or (task.role == "worker" and (task.job, "server") == (other.job, other.role))
        for task in unit
    )
