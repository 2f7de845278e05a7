"""A cluster of local processes: nodes come and go between stages, and workers may be killed at any moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from unfold_tuning.cluster.interface import MAX_START_ATTEMPTS, ClusterEvent
from unfold_tuning.cluster.provider import NodeProvider
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, serve_jobs
from unfoldkit.api import UnfoldError, internal_error

POLL_S = 0.1


@dataclass(slots=True)
class Node:
    """A node with one process per accelerator; a trial of several uses one process with as many threads.

    Attributes:
        name: Name of the node.
        processes: Worker processes with their pipes.
        busy: The pipe and the accelerators of each running trial.
    """

    name: str
    processes: list[tuple[SpawnProcess, Connection]]
    busy: dict[int, tuple[Connection, int]] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Accelerators that trials hold."""
        return sum(workers for _, workers in self.busy.values())


@dataclass(slots=True)
class LocalCluster:
    """Nodes as groups of local processes; see :class:`~unfold_tuning.cluster.interface.Cluster`.

    Trials go to the fullest node with room, or with ``is_spread`` to the emptiest.
    """

    setup: WorkerSetup
    accelerators: int
    provider: NodeProvider
    is_spread: bool = False
    nodes: list[Node] = field(default_factory=list)

    def open(self) -> None:
        """Do nothing: processes need no connection."""

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        idle = [node for node in self.nodes if not node.busy]
        for node in idle[: max(0, len(self.nodes) - count)]:
            self._release(node)
        for _ in range(MAX_START_ATTEMPTS):
            started = [self._launch(name) for name in self._rent(count, watch)]
            for node in started:
                if not all(_wait_until_ready(pipe, watch) for _, pipe in node.processes):
                    self._release(node)
            if len(self.nodes) >= count or (self.nodes and not self.provider.can_rent()):
                return
        if self.nodes:
            return
        hint = "its error is above; out of memory?"
        raise internal_error(f"a worker ended {MAX_START_ATTEMPTS} times before it was ready", hint=hint)

    def _rent(self, count: int, watch: Callable[[], None]) -> list[str]:
        return self.provider.rent(count - len(self.nodes), watch, is_required=not self.nodes)

    def can_grow(self, count: int) -> bool:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        return len(self.nodes) < count and self.provider.can_rent()

    def allow_on_demand(self) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.provider.allow_on_demand()

    def find_node(self, workers: int) -> str | None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        if workers > self.accelerators:
            empty = [node for node in self.nodes if not node.busy]
            return empty[0].name if len(empty) >= -(-workers // self.accelerators) else None
        fitting = [node for node in self.nodes if self.accelerators - node.used >= workers]
        select = min if self.is_spread else max
        return select(fitting, key=lambda node: node.used).name if fitting else None

    def start(self, node: str, job: TrialJob) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        hosts = [next(host for host in self.nodes if host.name == node)]
        empty = [host for host in self.nodes if host is not hosts[0] and not host.busy]
        hosts += empty[: -(-job.workers // self.accelerators) - 1]
        busy_pipes = [pipe for pipe, _ in hosts[0].busy.values()]
        pipe = next(pipe for _, pipe in hosts[0].processes if pipe not in busy_pipes)
        for host in hosts:
            host.busy[job.trial] = (pipe, min(job.workers, self.accelerators))
        # poll_events() detects a worker that died just now by the end of its pipe
        with contextlib.suppress(BrokenPipeError):
            pipe.send(job)

    def free(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        for node in self.nodes:
            node.busy.pop(trial, None)

    def kill(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        trial_pipes = [node.busy[trial][0] for node in self.nodes if trial in node.busy]
        for process, pipe in (worker for node in self.nodes for worker in node.processes):
            if pipe in trial_pipes:
                process.kill()

    def poll_events(self, timeout_s: float) -> Iterator[ClusterEvent]:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        pipes = [(node, pipe) for node in self.nodes for _, pipe in node.processes]
        ready = connection.wait([pipe for _, pipe in pipes], timeout_s)
        for node, pipe in pipes:
            if pipe in ready and node in self.nodes:
                try:
                    message: WorkerMessage = pipe.recv()
                    yield ClusterEvent(node.name, message.trial, message)
                except (EOFError, ConnectionResetError):
                    yield from self._drop_node(node, pipe)

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        try:
            for node in list(self.nodes):
                self._release(node)
        finally:
            self.provider.close()

    def _drop_node(self, node: Node, ended_pipe: Connection) -> Iterator[ClusterEvent]:
        trials = {trial: pipe is ended_pipe for trial, (pipe, _) in node.busy.items()}
        for trial in trials:
            self.free(trial)
        self._release(node)
        for trial, is_own_process in (trials or {-1: True}).items():
            yield ClusterEvent(node.name, trial, None, is_own_process=is_own_process)

    def _launch(self, name: str) -> Node:
        context = get_context("spawn")
        processes = []
        for _ in range(self.accelerators):
            driver_pipe, worker_pipe = context.Pipe()
            process = context.Process(target=serve_jobs, args=(os.getpid(), worker_pipe, self.setup), daemon=True)
            process.start()
            worker_pipe.close()
            processes.append((process, driver_pipe))
        node = Node(name, processes)
        self.nodes.append(node)
        return node

    def _release(self, node: Node) -> None:
        for process, pipe in node.processes:
            pipe.close()
            process.kill()
            process.join()
        self.nodes.remove(node)
        self.provider.release(node.name)


def _wait_until_ready(pipe: Connection, watch: Callable[[], None]) -> bool:
    """Wait for a worker's first message and return whether it is alive.

    Raises:
        UnfoldError: The worker cannot train.
    """
    while not pipe.poll(POLL_S):
        watch()
    try:
        message: WorkerMessage = pipe.recv()
    except EOFError:
        return False
    if message.diagnostics:
        raise UnfoldError(*message.diagnostics)
    return True
