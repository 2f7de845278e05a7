"""What a controller does at this moment, as plain data for the live page and for ``/status``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unfold_placement.core.controller import Controller
from unfold_placement.core.explain import History, Reason, explain
from unfold_placement.core.types import Task
from unfold_placement.live.control_loop import Live
from unfoldkit.serving.observability.dashboard import Board, Grid, Lines, Tile, Watch

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Waits:
    """A task that waits: since when (s ago), and what it lacks."""

    task: Task
    since: float
    reasons: tuple[Reason, ...]

    @property
    def lacks(self) -> str:
        """What it lacks first, in words."""
        missing = next((reason for reason in self.reasons if not reason.where), None)
        if missing is None:
            return "everything at one place" if self.reasons else ""
        return f"{missing.need} ({missing.by})"


@dataclass(frozen=True, slots=True)
class Status:
    """Whether this one leads; the first of those that wait, all that run, and the names on the cluster."""

    leads: bool
    waiting: int = 0
    waits: tuple[Waits, ...] = ()
    runs: tuple[tuple[str, str, float], ...] = ()
    names: tuple[tuple[str, str, int, str], ...] = ()
    nodes: tuple[str, ...] = ()


def status(live: Live) -> Status:
    """Return what a controller does now; nothing but that it waits, where another leads."""
    with live.lock:
        if live.hands is None or not live.leads:
            return Status(leads=False)
        loop, history = live.hands.loop, live.history
        waiting = list(loop.view.waiting())
        waits = tuple(_waits(loop, task, history) for task in waiting[:SHOWN])
        runs = tuple((task.name, node, loop.book.now - began) for task, node, began in loop.view.running())
        names = tuple((item.name, item.node, item.amount, item.owner) for item in loop.book.snapshot())
        return Status(True, len(waiting), waits, runs, names, tuple(node.name for node in loop.view.nodes))


def _waits(loop: Controller, task: Task, history: History) -> Waits:
    return Waits(task, loop.book.now - task.arrival, tuple(explain(loop, task, history)))


def plain(found: Status) -> dict[str, Any]:
    """Return a status as JSON takes it."""
    waits = [
        {"task": item.task.name, "since_s": round(item.since, 3), "lacks": item.lacks, "needs": [
            {"need": r.need, "where": r.where, "missing": r.missing, "by": r.by} for r in item.reasons]}
        for item in found.waits
    ]  # fmt: skip
    runs = [{"task": task, "node": node, "since_s": round(since, 3)} for task, node, since in found.runs]
    names = [{"name": name, "node": node, "amount": amount, "by": by} for name, node, amount, by in found.names]
    return {
        "leads": found.leads, "nodes": list(found.nodes), "waiting": found.waiting, "waits": waits, "runs": runs,
        "names": names,
    }  # fmt: skip


def watch(name: str, live: Live) -> Watch:
    """Return what the live page shows: who waits and why, what runs where, and the names."""

    def look() -> Board:
        found = status(live)
        waits = tuple((item.task.name, item.task.user, f"{item.since:.1f} s", item.lacks) for item in found.waits)
        runs = tuple((task, node, f"{since:.1f} s") for task, node, since in found.runs[:SHOWN])
        names = tuple((name, node or "the cluster", str(amount), by) for name, node, amount, by in found.names[:SHOWN])
        tiles = (
            Tile("leads", "yes" if found.leads else "no", "" if found.leads else "another does", found.leads or None),
            Tile("wait", f"{found.waiting:,}"), Tile("run", f"{len(found.runs):,}"),
            Tile("names", f"{len(found.names):,}"), Tile("nodes", f"{len(found.nodes):,}"),
        )  # fmt: skip
        counts = {"wait": float(found.waiting), "run": float(len(found.runs))}
        grids = (
            Grid("who waits, and for what", ("task", "user", "since", "lacks"), waits),
            Grid("what runs where", ("task", "node", "since"), runs),
            Grid("names", ("name", "node", "amount", "put by"), names),
        )
        return Board(name, "placement", tiles, (Lines("tasks", "", counts),), grids=grids)

    return look
