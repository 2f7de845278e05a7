"""What a controller does at this moment, as plain data for the live page and for ``/status``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unfold_placement.core.controller import Controller
from unfold_placement.core.explain import History, Reason, explain_wait
from unfold_placement.core.types import Task
from unfold_placement.live.control_loop import ControlLoop
from unfoldkit.serving.observability.dashboard import Board, Grid, Lines, Tile, Watch

SHOWN = 20


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """A task that waits: since when (s ago), and what it lacks."""

    task: Task
    since: float
    reasons: tuple[Reason, ...]

    @property
    def lacks(self) -> str:
        """What it lacks first, in words."""
        missing = next((reason for reason in self.reasons if not reason.available_on), None)
        if missing is None:
            return "everything at one place" if self.reasons else ""
        return f"{missing.requirement} ({missing.set_by})"


@dataclass(frozen=True, slots=True)
class Status:
    """Whether this one leads; the first of those that wait, all that run, and the names on the cluster."""

    is_leader: bool
    waiting: int = 0
    waiting_tasks: tuple[WaitingTask, ...] = ()
    running_tasks: tuple[tuple[str, str, float], ...] = ()
    names: tuple[tuple[str, str, int, str], ...] = ()
    nodes: tuple[str, ...] = ()


def read_status(live: ControlLoop) -> Status:
    """Return what a controller does now; nothing but that it waits, where another leads."""
    with live.lock:
        if live.actuator is None or not live.is_leader:
            return Status(is_leader=False)
        loop, history = live.actuator.controller, live.history
        waiting = list(loop.view.waiting())
        waits = tuple(_waits(loop, task, history) for task in waiting[:SHOWN])
        runs = tuple((task.name, node, loop.table.now - began) for task, node, began in loop.view.running())
        names = tuple((item.name, item.node, item.amount, item.owner) for item in loop.table.snapshot())
        return Status(True, len(waiting), waits, runs, names, tuple(node.name for node in loop.view.nodes))


def _waits(loop: Controller, task: Task, history: History) -> WaitingTask:
    return WaitingTask(task, loop.table.now - task.arrival, tuple(explain_wait(loop, task, history)))


def status_to_json(found: Status) -> dict[str, Any]:
    """Return a status as JSON takes it."""
    waits = [
        {"task": item.task.name, "since_s": round(item.since, 3), "lacks": item.lacks, "needs": [
            {"need": r.requirement, "where": r.available_on, "missing": r.missing_on, "by": r.set_by}
            for r in item.reasons]}
        for item in found.waiting_tasks
    ]  # fmt: skip
    runs = [{"task": task, "node": node, "since_s": round(since, 3)} for task, node, since in found.running_tasks]
    names = [{"name": name, "node": node, "amount": amount, "by": by} for name, node, amount, by in found.names]
    return {
        "leads": found.is_leader, "nodes": list(found.nodes), "waiting": found.waiting, "waits": waits, "runs": runs,
        "names": names,
    }  # fmt: skip


def build_dashboard(name: str, live: ControlLoop) -> Watch:
    """Return what the live page shows: who waits and why, what runs where, and the names."""

    def look() -> Board:
        found = read_status(live)
        waits = tuple(
            (item.task.name, item.task.user, f"{item.since:.1f} s", item.lacks) for item in found.waiting_tasks
        )
        runs = tuple((task, node, f"{since:.1f} s") for task, node, since in found.running_tasks[:SHOWN])
        names = tuple((name, node or "the cluster", str(amount), by) for name, node, amount, by in found.names[:SHOWN])
        tiles = (
            Tile("leads", "yes" if found.is_leader else "no", "" if found.is_leader else "another does",
                 found.is_leader or None),
            Tile("wait", f"{found.waiting:,}"), Tile("run", f"{len(found.running_tasks):,}"),
            Tile("names", f"{len(found.names):,}"), Tile("nodes", f"{len(found.nodes):,}"),
        )  # fmt: skip
        counts = {"wait": float(found.waiting), "run": float(len(found.running_tasks))}
        grids = (
            Grid("who waits, and for what", ("task", "user", "since", "lacks"), waits),
            Grid("what runs where", ("task", "node", "since"), runs),
            Grid("names", ("name", "node", "amount", "put by"), names),
        )
        return Board(name, "placement", tiles, (Lines("tasks", "", counts),), grids=grids)

    return look
