"""Why a task waits: which requirement is missing, where, since when, and which policy controls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit
from unfold_placement.core.controller import Controller
from unfold_placement.core.policy import describe_policy_wait
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import ANYWHERE, MILLI, QUEUE, ROOM, Ask, EphemeralResource, Task, Wait, describe_lack
from unfoldkit.api import format_names

MAX_NAMES = 4
"""Names that a list shows before it is abbreviated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One requirement of a waiting task.

    Attributes:
        requirement: The demand or ephemeral resource.
        available_on: Nodes that meet it; empty for none.
        missing_on: Nodes that do not.
        since_s: Time of the last change of the resource, None where nothing is missing.
        set_by: Policy that controls it; ``task`` for the demand.
    """

    requirement: str
    available_on: str
    missing_on: str
    since_s: float | None
    set_by: str


@dataclass(slots=True)
class History:
    """Time (s) of the last change of every ephemeral resource, recorded by subscribing to a table."""

    last_change_s: dict[str, float] = field(default_factory=dict)
    controllers: list[Controller] = field(default_factory=list)

    def __call__(self, _change: str, entry: EphemeralResource) -> None:
        """Record a change."""
        self.last_change_s[entry.name] = self.controllers[0].table.now


def record_history(controller: Controller) -> History:
    """Record the changes of a controller's ephemeral resources from now on."""
    history = History(controllers=[controller])
    controller.table.subscribe(history)
    return history


def explain_wait(controller: Controller, task: Task, history: History) -> list[Reason]:
    """Explain why a task waits: one reason for its demand and one for each ephemeral resource that it requests."""
    table = controller.table
    fitting = _list_roomy(table, task)
    missing = [node.name for node in table.nodes if node.name not in set(fitting)]
    count = len(table.nodes)
    demand = Reason(
        requirement=" + ".join(f"{amount / MILLI:g} {kind}" for kind, amount in task.demand.items()) or "nothing",
        available_on=abbreviate_names(fitting, count),
        missing_on=abbreviate_names(missing, count),
        since_s=None,
        set_by="task",
    )
    requests = [(policy, ask) for policy in controller.policies for ask in policy.request(task)]
    return [demand, *(_explain_ask(controller, ask, task, type(policy).__name__, history) for policy, ask in requests)]


def describe_wait(controller: Controller, task: Task) -> Wait:
    """Describe the dominant reason for which a task waits, and the task that stands in its way.

    What no departure can change comes first: an impossible demand, an incomplete gang, a resource that does not exist.
    Then come the order of the queue and reservations, and the lack of room last.
    """
    view = controller.view
    unit = view.unit(task)
    if unit is None and view.gang_key:
        gang = task.key(view.gang_key)
        arrived = len(view.members.get(gang, {})) + view.finished[gang]
        if arrived < task.size:
            return Wait(f"waits for its gang: {arrived} of {task.size} tasks have arrived")
    members = unit or (task,)
    if reason := view.why_impossible(members):
        return Wait(f"set aside: {reason}")
    for policy in controller.policies:
        wait = describe_policy_wait(policy, task, view)
        if wait is not None and wait.reason != ROOM:
            return wait
    return _describe_room(controller, task, members)


def format_wait(wait: Wait) -> str:
    """Return a wait as one phrase: ``waits for its turn behind x-0, which is ahead and does not fit``."""
    return f"{wait.reason} behind {wait.blocker}, {wait.relation}" if wait.blocker else wait.reason


def _describe_room(controller: Controller, task: Task, members: Unit) -> Wait:
    view = controller.view
    if not view.nodes:
        return Wait("waits for a node: none is up")
    if (missing := view.missing_resource(members, QUEUE)) is not None:
        return describe_lack(view.resource_name(missing), "which exists nowhere yet")
    if short := view.short_resources(members, QUEUE):
        return describe_lack(view.resource_name(min(short)), "which is used up")
    if view.room(members, QUEUE) is not None:
        return _describe_undecided(controller, task)
    if view.reserved_unit and view.reserved_unit != members:
        return Wait("waits for its turn", view.reserved_unit[0].name, "for which nodes are kept free")
    return _describe_full(controller, task)


def _describe_full(controller: Controller, task: Task) -> Wait:
    """Name what a task lacks on the nodes with room for it, or a task that runs where it would fit."""
    if lacking := _find_lacking(controller, task):
        return describe_lack(lacking, "which no node with room for it has enough of")
    holder = _find_holder(controller, task)
    return Wait(ROOM, holder, "which runs where it would fit" if holder else "")


def _describe_undecided(controller: Controller, task: Task) -> Wait:
    """Name the policy that has not created what a task requests, although a node has room for it."""
    for policy in controller.policies:
        for ask in policy.request(task):
            if not controller.table.entries.get(ask.name):
                return Wait(f"waits for {type(policy).__name__} to create {ask.name}")
    return Wait("waits for a decision of its policies")


def _list_roomy(table: ResourceTable, task: Task) -> list[str]:
    """List the nodes that are up and have what a task demands, whatever ephemeral resources it requests."""
    state, row = table.state, table.task_rows[task.name]
    return [
        node.name
        for node_row, node in enumerate(table.nodes)
        if state.is_up[node_row] and kernel.fits_demand(state.demand, state.free, row, node_row)
    ]


def _find_lacking(controller: Controller, task: Task) -> str:
    """Return the standing resource that keeps a task from every node with room for it; empty for none."""
    nodes = _list_roomy(controller.table, task)
    for policy in controller.policies:
        for ask in policy.request(task) if nodes and policy.phase < QUEUE else ():
            entries = controller.table.entries.get(ask.name, {})
            if ANYWHERE not in entries:
                enough = _list_sufficient(controller.table, ask)
                nodes = [node for node in nodes if node in enough]
            if not nodes:
                return ask.name
    return ""


def _list_sufficient(table: ResourceTable, ask: Ask) -> list[str]:
    """List the nodes on which enough of an ephemeral resource is left for a request."""
    entries = table.entries.get(ask.name, {}).items()
    return [node for node, entry in entries if entry.amount - table.held_amount(ask.name, node) >= ask.amount]


def _find_holder(controller: Controller, task: Task) -> str:
    """Return the task that has run longest on a node with enough capacity for another; empty for none."""
    nodes = {
        node.name
        for node in controller.view.nodes
        if all(node.capacity.get(kind, 0) >= amount for kind, amount in task.demand.items())
    }
    kinds = [kind for kind, amount in task.demand.items() if amount]
    running = controller.view.running()
    return next((t.name for t, node, _ in running if node in nodes and any(t.demand.get(k) for k in kinds)), "")


def abbreviate_names(names: Sequence[str], total: int) -> str:
    """Join names, abbreviated to a few; ``total`` names are all nodes."""
    if len(names) == total:
        return f"all {total} nodes" if total > 1 else names[0]
    return format_names(names, MAX_NAMES)


def _explain_ask(controller: Controller, ask: Ask, task: Task, set_by: str, history: History) -> Reason:
    table = controller.table
    entries = table.entries.get(ask.name, {})
    since_s = history.last_change_s.get(ask.name, task.arrival)
    if ANYWHERE in entries or not entries:
        return _explain_cluster_ask(controller, ask, since_s, set_by)
    fitting = _list_sufficient(table, ask)
    missing = [node.name for node in table.nodes if node.name not in fitting]
    return Reason(
        requirement=ask.name,
        available_on=abbreviate_names(fitting, len(table.nodes)),
        missing_on=abbreviate_names(missing, len(table.nodes)),
        since_s=since_s if missing else None,
        set_by=set_by,
    )


def _explain_cluster_ask(controller: Controller, ask: Ask, since_s: float, set_by: str) -> Reason:
    table = controller.table
    entry = table.entries.get(ask.name, {}).get(ANYWHERE)
    remaining = entry.amount - table.held_amount(ask.name) if entry is not None else 0
    is_available = remaining >= ask.amount
    shortage = "everywhere" if entry is None else f"everywhere ({remaining} left)"
    return Reason(
        requirement=ask.name,
        available_on="everywhere" if is_available else "",
        missing_on="" if is_available else shortage,
        since_s=None if is_available else since_s,
        set_by=set_by,
    )
