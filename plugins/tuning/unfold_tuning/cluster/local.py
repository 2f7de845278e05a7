"""A cluster of this machine's processes: nodes come and go between stages, workers may be killed at any moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Protocol

from unfold_tuning.cluster.provider import Fleet
from unfold_tuning.trial.trainable import Work
from unfold_tuning.trial.worker import Job, Told, work_for
from unfoldkit.api import UnfoldError, broken

TICK = 0.1
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Event:
    """What happened on a node: a worker said something, or (``told`` is ``None``) the node is lost.

    ``own`` is false for a trial that was lost with another's process.
    """

    node: str
    trial: int
    told: Told | None
    own: bool = True


class Cluster(Protocol):
    """Where trials run, on nodes that a fleet gives and takes back."""

    def open(self) -> None:
        """Be there: before the clock starts, and before anything is rented."""

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """Grow or shrink to ``count`` nodes and wait until they are ready; only idle nodes are released.

        ``watch`` is called several times a second meanwhile; what it raises ends the wait.
        """

    def free(self, gang: int) -> str | None:
        """Return a node with room for a trial of ``gang`` accelerators, by the policy, or nothing."""

    def start(self, node: str, job: Job) -> None:
        """Start a trial on a node."""

    def finished(self, trial: int) -> None:
        """Free what a trial held."""

    def end(self, trial: int) -> None:
        """End the process of a trial, whatever it does; :meth:`events` tells of it as of any that ends."""

    def events(self, timeout: float) -> Iterator[Event]:
        """Yield what has happened, waiting at most ``timeout`` seconds for something."""

    def close(self) -> None:
        """Release every node, whatever runs on it."""


@dataclass(slots=True)
class Node:
    """A node: one process for each accelerator; a trial of several uses one process with as many threads."""

    name: str
    workers: list[tuple[SpawnProcess, Connection]]
    busy: dict[int, tuple[Connection, int]] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Accelerators that trials hold."""
        return sum(gang for _, gang in self.busy.values())


@dataclass(slots=True)
class LocalCluster:
    """Nodes as groups of local processes; trials go to the fullest node, or with ``spread`` to the emptiest."""

    work: Work
    accelerators: int
    fleet: Fleet
    spread: bool = False
    nodes: list[Node] = field(default_factory=list)

    def open(self) -> None:
        """See :class:`Cluster`."""

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """See :class:`Cluster`."""
        idle = [node for node in self.nodes if not node.busy]
        for node in idle[: max(0, len(self.nodes) - count)]:
            self._release(node)
        for _ in range(ATTEMPTS):
            fresh = [self._launch(name) for name in self.fleet.rent(count - len(self.nodes), watch)]
            for node in fresh:
                if not all(_ready(pipe, watch) for _, pipe in node.workers):
                    self._release(node)
            if len(self.nodes) >= count:
                return
        hint = "its message is above; out of memory?"
        raise broken(f"a worker ended {ATTEMPTS} times before it was ready", hint=hint)

    def free(self, gang: int) -> str | None:
        """See :class:`Cluster`."""
        room = [node for node in self.nodes if self.accelerators - node.used >= min(gang, self.accelerators)]
        if gang > self.accelerators:
            room = [node for node in room if not node.busy]
            return room[0].name if len(room) >= -(-gang // self.accelerators) else None
        return (min if self.spread else max)(room, key=lambda node: node.used).name if room else None

    def start(self, node: str, job: Job) -> None:
        """See :class:`Cluster`."""
        hosts = [self._node(node)]
        others = [item for item in self.nodes if item is not hosts[0] and not item.busy]
        hosts += others[: -(-job.gang // self.accelerators) - 1]
        taken = [pipe for pipe, _ in hosts[0].busy.values()]
        pipe = next(pipe for _, pipe in hosts[0].workers if pipe not in taken)
        for host in hosts:
            host.busy[job.trial] = (pipe, min(job.gang, self.accelerators))
        # a worker that died just now is met again as the end of its pipe, by events()
        with contextlib.suppress(BrokenPipeError):
            pipe.send(job)

    def finished(self, trial: int) -> None:
        """Free what a trial held."""
        for node in self.nodes:
            node.busy.pop(trial, None)

    def end(self, trial: int) -> None:
        """See :class:`Cluster`."""
        held = [node.busy[trial][0] for node in self.nodes if trial in node.busy]
        for process, pipe in (worker for node in self.nodes for worker in node.workers):
            if pipe in held:
                process.kill()

    def events(self, timeout: float) -> Iterator[Event]:
        """See :class:`Cluster`."""
        pipes = [(node, pipe) for node in self.nodes for _, pipe in node.workers]
        ready = connection.wait([pipe for _, pipe in pipes], timeout)
        for node, pipe in pipes:
            if pipe in ready and node in self.nodes:
                try:
                    told: Told = pipe.recv()
                    yield Event(node.name, told.trial, told)
                except (EOFError, ConnectionResetError):
                    yield from self._lost(node, pipe)

    def close(self) -> None:
        """See :class:`Cluster`."""
        try:
            for node in list(self.nodes):
                self._release(node)
        finally:
            self.fleet.close()

    def _lost(self, node: Node, ended: Connection) -> Iterator[Event]:
        trials = {trial: pipe is ended for trial, (pipe, _) in node.busy.items()}
        for trial in trials:
            self.finished(trial)
        self._release(node)
        for trial, own in (trials or {-1: True}).items():
            yield Event(node.name, trial, None, own=own)

    def _launch(self, name: str) -> Node:
        context = get_context("spawn")
        workers = []
        for _ in range(self.accelerators):
            here, there = context.Pipe()
            process = context.Process(target=work_for, args=(os.getpid(), there, self.work), daemon=True)
            process.start()
            there.close()
            workers.append((process, here))
        node = Node(name, workers)
        self.nodes.append(node)
        return node

    def _release(self, node: Node) -> None:
        for process, pipe in node.workers:
            pipe.close()
            process.kill()
            process.join()
        self.nodes.remove(node)
        self.fleet.release(node.name)

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


def _ready(pipe: Connection, watch: Callable[[], None]) -> bool:
    """Wait until a worker says that it is ready; false if it died before.

    Raises:
        UnfoldError: it has nothing to train with.
    """
    while not pipe.poll(TICK):
        watch()
    try:
        told: Told = pipe.recv()
    except EOFError:
        return False
    if told.faults:
        raise UnfoldError(*told.faults)
    return True
