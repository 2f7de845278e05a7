"""A cluster of local processes: nodes come and go between stages, and workers may be killed at any moment.

A trial that fits into a node is one process. One that spans nodes has a process per accelerator, and these end with it:
a new process group must not meet the connections of an old one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from unfold_tuning.cluster.interface import MAX_START_ATTEMPTS, ClusterEvent
from unfold_tuning.cluster.marked_processes import kill_marked, marking_processes
from unfold_tuning.cluster.provider import NodeProvider
from unfold_tuning.trial.process_group import build_ranks, find_free_port
from unfold_tuning.trial.trainable import WorkerSetup
from unfold_tuning.trial.worker import TrialJob, WorkerMessage, serve_jobs
from unfoldkit.api import UnfoldError, internal_error
from unfoldkit.worker_process import blocking_interrupts

POLL_S = 0.1
END_TIMEOUT_S = 1.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class TrialSlot:
    """What a trial holds of a node: the pipes of its processes, and accelerators."""

    pipes: tuple[Connection, ...]
    accelerators: int
    is_spanning: bool = False


@dataclass(slots=True)
class Node:
    """A node with one process per accelerator; a trial within it uses one process with a thread per accelerator.

    Attributes:
        name: Name of the node.
        processes: Worker processes with their pipes.
        busy: What each running trial holds.
    """

    name: str
    processes: list[tuple[SpawnProcess, Connection]]
    busy: dict[int, TrialSlot] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Accelerators that trials hold."""
        return sum(slot.accelerators for slot in self.busy.values())


@dataclass(slots=True)
class LocalCluster:
    """Nodes as groups of local processes; see :class:`~unfold_tuning.cluster.interface.Cluster`.

    Trials go to the fullest node with room, or with ``is_spread`` to the emptiest.

    Attributes:
        mark: Begins the marks of all processes. It is the same whenever the run continues, so that what outlived a
            driver that was killed ends then.
    """

    setup: WorkerSetup
    accelerators: int
    provider: NodeProvider
    is_spread: bool = False
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    nodes: list[Node] = field(default_factory=list)

    def open(self) -> None:
        """End the processes that trials of an earlier driver have left behind."""
        kill_marked(self.mark)

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.release_idle(count)
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

    def release_idle(self, kept: int) -> int:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        idle = [node for node in self.nodes if not node.busy]
        surplus = idle[: max(0, len(self.nodes) - kept)]
        for node in surplus:
            self._release(node)
        return len(surplus)

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
        first = next(host for host in self.nodes if host.name == node)
        if job.workers > self.accelerators:
            self._start_spanning(first, job)
            return
        busy_pipes = [pipe for slot in first.busy.values() for pipe in slot.pipes]
        pipe = next(pipe for _, pipe in first.processes if pipe not in busy_pipes)
        first.busy[job.trial] = TrialSlot((pipe,), job.workers)
        _send_job(pipe, job)

    def _start_spanning(self, first: Node, job: TrialJob) -> None:
        """Start every rank of a trial on empty nodes."""
        empty = [host for host in self.nodes if host is not first and not host.busy]
        hosts = [first, *empty[: -(-job.workers // self.accelerators) - 1]]
        port = find_free_port(LOOPBACK)
        ranks = build_ranks(job.workers, self.accelerators, [LOOPBACK] * len(hosts), port)
        for index, host in enumerate(hosts):
            local = [rank for rank in ranks if rank.host == index]
            pipes = tuple(host.processes[rank.local_rank][1] for rank in local)
            host.busy[job.trial] = TrialSlot(pipes, len(pipes), is_spanning=True)
            for rank, pipe in zip(local, pipes, strict=True):
                _send_job(pipe, replace(job, rank=rank))

    def free(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        for node in self.nodes:
            slot = node.busy.pop(trial, None)
            if slot is not None and slot.is_spanning:
                self._replace_processes(node, slot.pipes)
            elif slot is not None:
                # it may have ended before its target
                _send_job(slot.pipes[0], None)

    def stop(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        for node in self.nodes:
            slot = node.busy.pop(trial, None)
            if slot is not None:
                self._replace_processes(node, slot.pipes)

    def _replace_processes(self, node: Node, pipes: Sequence[Connection]) -> None:
        """Replace the processes of a trial; new ones need not be ready to receive a job."""
        for index, (process, pipe) in enumerate(node.processes):
            if pipe in pipes:
                _end_process(process, pipe)
                node.processes[index] = self._start_process()

    def kill(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        trial_pipes = [pipe for node in self.nodes if trial in node.busy for pipe in node.busy[trial].pipes]
        for process, pipe in (worker for node in self.nodes for worker in node.processes):
            if pipe in trial_pipes:
                _kill_group(process)

    def poll_events(self, timeout_s: float) -> Iterator[ClusterEvent]:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        workers = [(node, process, pipe) for node in self.nodes for process, pipe in node.processes]
        ready = connection.wait([pipe for *_, pipe in workers], timeout_s)
        for node, process, pipe in workers:
            is_due = pipe in ready or not process.is_alive()
            # a trial that an earlier event ended may have closed it
            if is_due and node in self.nodes and not pipe.closed:
                try:
                    message = _receive(pipe)
                    if message.diagnostics:
                        raise UnfoldError(*message.diagnostics)
                    if message.kind != "ready":
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
        trials = {trial: ended_pipe in slot.pipes for trial, slot in node.busy.items()}
        reason = _describe_end(next(process for process, pipe in node.processes if pipe is ended_pipe))
        self._release(node)
        for trial in trials:
            self.free(trial)
        for trial, is_own_process in (trials or {-1: True}).items():
            yield ClusterEvent(node.name, trial, None, is_own_process=is_own_process, reason=reason)

    def _launch(self, name: str) -> Node:
        node = Node(name, [self._start_process() for _ in range(self.accelerators)])
        self.nodes.append(node)
        return node

    def _start_process(self) -> tuple[SpawnProcess, Connection]:
        context = get_context("spawn")
        driver_pipe, worker_pipe = context.Pipe()
        mark = f"{self.mark}-{uuid.uuid4().hex}"
        arguments = (os.getpid(), worker_pipe, self.setup)
        process = context.Process(target=serve_jobs, name=mark, args=arguments, daemon=True)
        with blocking_interrupts(), marking_processes(mark):
            process.start()
        worker_pipe.close()
        return process, driver_pipe

    def _release(self, node: Node) -> None:
        for process, pipe in node.processes:
            _end_process(process, pipe)
        self.nodes.remove(node)
        self.provider.release(node.name)


def _receive(pipe: Connection) -> WorkerMessage:
    """Receive a message that has arrived.

    Raises:
        EOFError: There is none: the worker is dead, even if processes of its trial still hold the pipe.
    """
    if not pipe.poll():
        raise EOFError
    message: WorkerMessage = pipe.recv()
    return message


def _send_job(pipe: Connection, job: TrialJob | None) -> None:
    # poll_events() detects a worker that died just now by the end of its pipe
    with contextlib.suppress(BrokenPipeError):
        pipe.send(job)


def _describe_end(process: SpawnProcess) -> str:
    """Describe how a process ended that has closed its pipe."""
    process.join(END_TIMEOUT_S)
    code = process.exitcode
    if code is None:
        return "its process closed its pipe"
    if code >= 0:
        return f"its process ended with exit code {code}"
    names = {item.value: item.name for item in signal.Signals}
    name = names.get(-code, f"signal {-code}")
    return f"its process was ended by {name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


def _end_process(process: SpawnProcess, pipe: Connection) -> None:
    pipe.close()
    _kill_group(process)
    process.join()


def _kill_group(process: SpawnProcess) -> None:
    """Kill a worker and the processes that its trials have started."""
    process.kill()
    if process.pid is not None and hasattr(os, "killpg"):
        # there is no group before the worker has made it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    kill_marked(process.name)


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
