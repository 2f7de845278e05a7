"""The current state of a controller, for the dashboard and ``/status``."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from unfold_placement.core.controller import Controller
from unfold_placement.core.explain import History, Reason, describe_wait, explain_wait, format_wait
from unfold_placement.core.policy import POLICY_FAILURES
from unfold_placement.core.shadow_agreement import Agreement, Placement, count_outcomes, median_waits_s
from unfold_placement.core.types import EphemeralResource, Task, Wait
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.report.sentences import missing_requirement
from unfoldkit.serving.observability.dashboard import Dashboard, DashboardSource, Grid, Tile, TimeSeries

LEADER, STANDBY, FAILING = "leader", "standby", "failing"
"""Roles of a process."""
LOCK_TIMEOUT_S = 2.0
"""How long a reader waits for a decision to end."""
MAX_ROWS = 20
"""Rows of a table on the dashboard, and explained tasks."""


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """A waiting task, for how long (s) it has waited, and why."""

    task: Task
    waited_s: float
    reasons: tuple[Reason, ...]
    wait: Wait

    @property
    def missing(self) -> str:
        """The first requirement that it lacks, with the policy that controls it."""
        reason = next((reason for reason in self.reasons if not reason.available_on), None)
        if reason is None:
            return missing_requirement(self.reasons) if self.reasons else ""
        return f"{reason.requirement} ({reason.set_by})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of a controller.

    Attributes:
        role: ``leader``, ``standby`` while another process leads, or ``failing`` after it gave up leadership because
            no decision succeeded. A standby knows nothing else.
        waiting_count: Number of waiting tasks.
        waiting_tasks: The first of them, explained.
        running_tasks: Task, node and elapsed seconds of every running task.
        resources: Name, node, amount and owner of every ephemeral resource.
        nodes: Names of the nodes that are up.
        error: Why no decision is made, and the rest is what the last one left; or what the cluster refuses of it.
        decided_s: Seconds since the last decision; None before the first.
    """

    role: str
    waiting_count: int = 0
    waiting_tasks: tuple[WaitingTask, ...] = ()
    running_tasks: tuple[tuple[str, str, float], ...] = ()
    resources: tuple[tuple[str, str, int, str], ...] = ()
    nodes: tuple[str, ...] = ()
    error: str = ""
    decided_s: float | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this process leads."""
        return self.role == LEADER


def read_status(loop: ControlLoop) -> Status:
    """Read the state of a controller."""
    if not loop.lock.acquire(timeout=LOCK_TIMEOUT_S):
        # a policy that does not return keeps the controller to itself
        return _read_last_decision(loop, loop.find_stall() or loop.last_error or "a decision takes long")
    try:
        stall = loop.find_stall()
        if stall or loop.actuator is None or not loop.is_leader:
            return _read_last_decision(loop, stall or loop.last_error)
        controller, view = loop.actuator.controller, loop.actuator.controller.view
        waiting = list(view.waiting())
        entries = controller.table.snapshot()
        return Status(
            role=LEADER,
            waiting_count=len(waiting),
            waiting_tasks=tuple(_explain(controller, task, loop.history) for task in waiting[:MAX_ROWS]),
            running_tasks=tuple((task.name, node, view.now - start) for task, node, start in view.running()),
            resources=tuple(_resource_row(entry) for entry in entries),
            nodes=tuple(node.name for node in view.nodes),
            error=loop.backend.describe_refusal(),
            decided_s=_age_s(loop),
        )
    finally:
        loop.lock.release()


def _read_last_decision(loop: ControlLoop, error: str) -> Status:
    """Return what the last decision left, while none is made."""
    last = loop.recorder.last
    if last is None:
        return Status(role=LEADER if loop.is_leader else STANDBY, error=error)
    now = loop.backend.now()
    wait = Wait(f"no decision is made: {error}" if error else "the controller starts over")
    return Status(
        role=LEADER if loop.is_leader else FAILING,
        waiting_count=last.waiting_count,
        waiting_tasks=tuple(WaitingTask(task, now - task.arrival, (), wait) for task in last.waiting),
        running_tasks=tuple((task, node, now - start_s) for task, node, start_s in last.running),
        resources=tuple(_resource_row(entry) for entry in last.resources),
        nodes=last.nodes,
        error=error,
        decided_s=_age_s(loop),
    )


def _resource_row(entry: EphemeralResource) -> tuple[str, str, int, str]:
    return entry.name, entry.node, entry.amount, entry.owner


def _age_s(loop: ControlLoop) -> float | None:
    decided_s = loop.recorder.decided_s
    return time.monotonic() - decided_s if decided_s is not None else None


def status_to_json(status: Status) -> dict[str, Any]:
    """Convert a status to what ``/status`` returns: tasks that wait or run, why and since when, resources and nodes."""
    waits = [
        {
            "task": waiting.task.name,
            "since_s": round(waiting.waited_s, 3),
            "why": format_wait(waiting.wait),
            "blocked_by": waiting.wait.blocker,
            "lacks": waiting.missing,
            "needs": [_reason_to_json(reason) for reason in waiting.reasons],
        }
        for waiting in status.waiting_tasks
    ]
    runs = [
        {"task": task, "node": node, "since_s": round(elapsed_s, 3)} for task, node, elapsed_s in status.running_tasks
    ]
    names = [
        {"name": name, "node": node, "amount": amount, "by": owner} for name, node, amount, owner in status.resources
    ]
    return {
        "leads": status.is_leader,
        "role": status.role,
        "nodes": list(status.nodes),
        "waiting": status.waiting_count,
        "error": status.error,
        "decided_s": round(status.decided_s, 3) if status.decided_s is not None else None,
        "waits": waits,
        "runs": runs,
        "names": names,
    }


def agreement_to_json(agreement: Agreement) -> dict[str, Any]:
    """Return the decisions next to those of kube-scheduler as JSON values: counts, waits and the latest tasks."""
    placements = agreement.list_placements()
    decided_s, bound_s = median_waits_s(placements)
    rows = [
        {
            "task": item.task,
            "outcome": item.outcome,
            "policy_node": item.decided_node,
            "policy_wait_s": _wait_s(item, item.decided_s),
            "scheduler_node": item.bound_node,
            "scheduler_wait_s": _wait_s(item, item.bound_s),
        }
        for item in placements[-MAX_ROWS:]
    ]
    waits = {"policy_wait_s": round(decided_s, 3), "scheduler_wait_s": round(bound_s, 3)}
    return {"tasks": len(placements), "outcomes": dict(count_outcomes(placements)), "median": waits, "latest": rows}


def _wait_s(placement: Placement, time_s: float) -> float | None:
    return round(time_s - placement.submitted_s, 3) if math.isfinite(time_s) else None


def build_dashboard(name: str, loop: ControlLoop) -> DashboardSource:
    """Return the function that draws the dashboard: waiting tasks and why, running tasks, ephemeral resources."""
    return lambda: _draw_board(name, read_status(loop))


def _explain(controller: Controller, task: Task, history: History) -> WaitingTask:
    waited_s = controller.table.now - task.arrival
    try:
        reasons = tuple(explain_wait(controller, task, history))
        return WaitingTask(task, waited_s, reasons, describe_wait(controller, task))
    except POLICY_FAILURES as error:
        # the status of the others must not depend on what one policy says about itself
        return WaitingTask(task, waited_s, (), Wait(f"cannot be explained: {error}"))


def _reason_to_json(reason: Reason) -> dict[str, str]:
    return {
        "need": reason.requirement,
        "where": reason.available_on,
        "missing": reason.missing_on,
        "by": reason.set_by,
    }


def _draw_board(name: str, status: Status) -> Dashboard:
    waiting = tuple(
        (entry.task.name, entry.task.user, f"{entry.waited_s:.1f} s", entry.missing) for entry in status.waiting_tasks
    )
    running = tuple((task, node, f"{elapsed_s:.1f} s") for task, node, elapsed_s in status.running_tasks[:MAX_ROWS])
    resources = tuple(
        (resource, node or "the cluster", str(amount), owner)
        for resource, node, amount, owner in status.resources[:MAX_ROWS]
    )
    leader_note = status.error or ("another process leads" if status.role == STANDBY else "")
    tiles = (
        Tile(
            "leader", "yes" if status.is_leader else "no", leader_note, (not status.error) if status.is_leader else None
        ),
        Tile("waiting", f"{status.waiting_count:,}"),
        Tile("running", f"{len(status.running_tasks):,}"),
        Tile("ephemeral resources", f"{len(status.resources):,}"),
        Tile("nodes", f"{len(status.nodes):,}"),
    )
    counts = {"waiting": float(status.waiting_count), "running": float(len(status.running_tasks))}
    grids = (
        Grid("waiting tasks and what they lack", ("task", "user", "waited", "lacks"), waiting),
        Grid("running tasks", ("task", "node", "elapsed"), running),
        Grid("ephemeral resources", ("name", "node", "amount", "set by"), resources),
    )
    return Dashboard(name, "placement", tiles, (TimeSeries("tasks", "", counts),), grids=grids)
