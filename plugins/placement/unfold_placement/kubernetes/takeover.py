"""What a new leader repairs: units half opened, resources of tasks that no longer exist, and replaced pods."""

from __future__ import annotations

from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.gate_queue import GateQueue
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.writer import OpeningUnits, Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.state_store import ALIVE, StateStore


def find_half_opened(units: OpeningUnits, store: StateStore) -> list[str]:
    """Return the units of which some gate was not opened, by their first task."""
    half_opened = []
    for first_task, attempts in units.items():
        records = [store.records.get(task) for task in attempts]
        waiting = [record for record in records if record is not None and record.state == kinds.WAITING]
        if any(record.attempt < attempts[record.task.name] for record in waiting):
            half_opened.append(first_task)
    return half_opened


def delete_orphaned_resources(store: StateStore) -> None:
    """Delete the resources bound to tasks that neither wait nor run."""
    alive = {name for name, record in store.records.items() if record.state in ALIVE}
    with store.changed:
        for key, entry in list(store.resources.items()):
            if entry.until and entry.until not in alive:
                store.delete(*key)


def track_unbound_pods(gate_queue: GateQueue, store: StateStore) -> None:
    """Add running tasks to the gate queue if their pods have no node, each as a unit of its own."""
    tracked = {task for attempts in gate_queue.units.values() for task in attempts}
    for name, record in store.records.items():
        if record.state == kinds.RUNNING and name not in tracked and not gate_queue.informer.is_bound(name):
            gate_queue.units[name] = {name: record.attempt}


def delete_replaced_pods(informer: Informer, writer: Writer) -> None:
    """Delete the pods of attempts that a later attempt has replaced."""
    for name, body in list(informer.bodies.items()):
        if informer.current.get(pods.task_name(body)) != name and not pods.is_over(body):
            writer.delete_pod(name)
