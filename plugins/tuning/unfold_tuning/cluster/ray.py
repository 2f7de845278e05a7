"""A Ray cluster: raylets come and go between stages, and each trial has its own placement group.

Trials are placed here, fullest node first, so that whole nodes become empty and can be released: a bundle requests the
node's own resource. A trial that fits into a node is one task, packed strictly. A larger one takes whole nodes, with a
bundle for each and a task per accelerator. A trial's state travels with each result, so nodes need no shared disk.

A node of a shared cluster is reserved by a placement group of its own, in which the tasks of all its trials run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unfold_tuning.cluster.interface import MAX_START_ATTEMPTS, ClusterEvent
from unfold_tuning.cluster.provider import NodeProvider
from unfold_tuning.cluster.ray_nodes import (
    RayNodes,
    Reservation,
    detect_device,
    import_ray,
    list_alive_nodes,
    name_node_resource,
    read_addresses,
    require_head,
)
from unfold_tuning.trial.process_group import build_ranks, find_free_port
from unfold_tuning.trial.trainable import WorkerSetup, build_train_function
from unfold_tuning.trial.worker import (
    TrialJob,
    WorkerMessage,
    describe_failure,
    load_state,
    prepare_training,
    run_job,
    save_state,
)
from unfoldkit.api import UnfoldError, internal_error

LIVENESS_PERIOD_S = 1.0
TASK_END_TIMEOUT_S = 2.0
SHOW_ALL_DEVICES = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
HOLD_WORKER = {"_generator_backpressure_num_objects": 1}
"""A task with this option keeps its worker until its result is read."""


@dataclass(slots=True)
class RunningTrial:
    """A trial on Ray: the stream of each of its processes, its placement group, and the nodes that it uses.

    The first stream has its results; the others only end, or report a failure. On reserved nodes it has no group.
    """

    job: TrialJob
    streams: list[Any]
    group: Any
    nodes: tuple[str, ...]


@dataclass(slots=True)
class RayCluster:
    """Nodes of a provider as raylets; see :class:`~unfold_tuning.cluster.interface.Cluster`.

    ``reservations`` are those of the provider, by node, if it takes nodes of a shared cluster.
    """

    setup: WorkerSetup
    accelerators: int
    provider: NodeProvider
    ray_nodes: RayNodes
    is_spread: bool = False
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    running: dict[int, RunningTrial] = field(default_factory=dict)
    checked_at: float = 0.0

    def open(self) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.ray_nodes.open()

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.release_idle(count)
        attempts = 0
        while attempts < MAX_START_ATTEMPTS:
            names = self._add_nodes(count - len(self.devices), watch)
            self.devices |= {name: self._detect_device(name) for name in names}
            for name in self._find_broken_nodes(names, watch):
                self._release(name)
            if len(self.devices) >= count or (self.devices and not self.provider.can_rent()):
                return
            # without a node, what the cloud ends while it boots is ordered again as long as the run may last
            attempts += bool(names or self.devices)
        if self.devices:
            return
        hint = "can its workers import the dependencies of the trainable?"
        raise internal_error(f"a node was not ready {MAX_START_ATTEMPTS} times", hint=hint)

    def release_idle(self, kept: int) -> int:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        idle = [name for name in self.devices if not self._count_used(name)]
        surplus = idle[: max(0, len(self.devices) - kept)]
        for name in surplus:
            self._release(name)
        return len(surplus)

    def can_grow(self, count: int) -> bool:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        return len(self.devices) < count and self.provider.can_rent()

    def allow_on_demand(self) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.provider.allow_on_demand()

    def find_node(self, workers: int) -> str | None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        if workers > self.accelerators:
            empty = [name for name in self.devices if not self._count_used(name)]
            return empty[0] if len(empty) >= -(-workers // self.accelerators) else None
        fitting = [name for name in self.devices if self.accelerators - self._count_used(name) >= workers]
        return (min if self.is_spread else max)(fitting, key=self._count_used) if fitting else None

    def start(self, node: str, job: TrialJob) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        require_head()
        empty = [name for name in self.devices if name != node and not self._count_used(name)]
        hosts = (node, *empty[: -(-job.workers // self.accelerators) - 1])
        bundles = [
            self._build_bundle(name, min(self.accelerators, job.workers - index * self.accelerators))
            for index, name in enumerate(hosts)
        ]
        group, strategies = self._place(hosts, bundles)
        if len(hosts) == 1:
            task = self._build_task(bundles[0], strategies[0], stream_job)
            streams = [task.remote(self.setup, job, load_state(job))]
        else:
            streams = self._start_ranks(job, hosts, strategies)
        self.running[job.trial] = RunningTrial(job, streams, group, hosts)

    def _place(self, hosts: Sequence[str], bundles: Sequence[dict[str, float]]) -> tuple[Any, list[Any]]:
        """Return a new placement group, if the nodes are not reserved, and the scheduling strategy for each node."""
        import_ray()
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if set(hosts) <= self.reservations.keys():
            return None, [self._find_strategy(name) for name in hosts]
        group = placement_group(list(bundles), strategy="STRICT_PACK" if len(hosts) == 1 else "PACK")
        return group, [PlacementGroupSchedulingStrategy(group, index) for index in range(len(hosts))]

    def _find_strategy(self, name: str) -> Any:
        """Return the scheduling strategy of a reserved node; ``None`` if tasks request the node's own resource."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        held = self.reservations.get(name)
        return None if held is None else PlacementGroupSchedulingStrategy(held.group, 0)

    def _detect_device(self, name: str) -> str:
        return self.reservations[name].device if name in self.reservations else detect_device(name)

    def _start_ranks(self, job: TrialJob, hosts: Sequence[str], strategies: Sequence[Any]) -> list[Any]:
        """Start a task per accelerator of a trial that spans nodes; its rendezvous is a free port of the first one."""
        ray, addresses = import_ray(), read_addresses(self.reservations)
        state = ray.put(load_state(job))
        # not waited for: the ranks receive the port when it is known, and fail if its node is lost before
        port = ray.remote(find_free_port).options(num_cpus=0, max_retries=0, scheduling_strategy=strategies[0]).remote()
        streams = []
        for rank in build_ranks(job.workers, self.accelerators, [addresses.get(name, "") for name in hosts], port=0):
            name = hosts[rank.host]
            # its process ends with it: a new process group must not meet the connections of an old one
            task = self._build_task(self._build_bundle(name, 1), strategies[rank.host], stream_rank, max_calls=1)
            if self.devices[name] == "GPU":
                # as with torchrun, a process sees all accelerators of its instance and uses that of its local rank
                task = task.options(runtime_env={"env_vars": {SHOW_ALL_DEVICES: "1"}})
            streams.append(task.remote(self.setup, replace(job, rank=rank), state, port))
        return streams

    def free(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        from ray.util.placement_group import remove_placement_group

        running = self.running.pop(trial, None)
        if running is None:
            return
        require_head()
        if len(running.nodes) == 1:
            # removing a group under its task would kill the worker process, and lose its imports
            import_ray().wait(running.streams, timeout=TASK_END_TIMEOUT_S, fetch_local=False)
        if running.group is None or len(running.nodes) > 1:
            # a rank may wait for others that are gone, and no group ends with a trial on a reserved node
            self._cancel(running)
        if running.group is not None:
            remove_placement_group(running.group)

    def stop(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        self.kill(trial)
        self.free(trial)

    def kill(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        if trial in self.running:
            self._cancel(self.running[trial])

    def _cancel(self, running: RunningTrial) -> None:
        for stream in running.streams:
            import_ray().cancel(stream, force=True)

    def poll_events(self, timeout_s: float) -> Iterator[ClusterEvent]:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        yield from self._drop_dead_nodes()
        if not self.running:
            time.sleep(timeout_s)
            return
        streams = [stream for running in self.running.values() for stream in running.streams]
        ready, _ = import_ray().wait(streams, num_returns=1, timeout=timeout_s, fetch_local=False)
        waiting = [(running, stream) for running in self.running.values() for stream in running.streams]
        for running, stream in [(running, stream) for running, stream in waiting if stream in ready]:
            message = self._receive(running, stream)
            if message is not None and running.job.trial in self.running:
                yield ClusterEvent(running.nodes[0], running.job.trial, message)

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.interface.Cluster`."""
        try:
            for name in list(self.devices):
                self._release(name)
        finally:
            self.provider.close()
            self.ray_nodes.close()

    def _receive(self, running: RunningTrial, stream: Any) -> WorkerMessage | None:
        """Receive a trial's next message and store its state; ``None`` if a process ended or a node is lost."""
        ray = import_ray()
        message: WorkerMessage
        try:
            message, state = ray.get(next(stream))
        except StopIteration:
            if len(running.streams) > 1:
                running.streams.remove(stream)
            return None
        except ray.exceptions.RayError as error:
            if not set(running.nodes) <= list_alive_nodes(self.reservations):
                return None
            reason = f"its worker is gone: {type(error).__name__}"
            return WorkerMessage(kind="failed", trial=running.job.trial, error=reason)
        if message.kind != "step":
            return message
        began = time.perf_counter()
        save_state(running.job, message.iters, state)
        return replace(message, save_s=time.perf_counter() - began)

    def _drop_dead_nodes(self) -> Iterator[ClusterEvent]:
        if time.monotonic() - self.checked_at < LIVENESS_PERIOD_S:
            return
        self.checked_at = time.monotonic()
        alive = list_alive_nodes(self.reservations)
        for name in [name for name in self.devices if name not in alive]:
            trials = [trial for trial, running in self.running.items() if name in running.nodes]
            for trial in trials:
                self.free(trial)
            self._release(name)
            for trial in trials or [-1]:
                yield ClusterEvent(name, trial, None)

    def _add_nodes(self, count: int, watch: Callable[[], None]) -> list[str]:
        """Rent nodes and add them to Ray; nodes that start one after another are rented in turn, as they are billed."""
        names: list[str] = []
        for size in [count] if self.ray_nodes.starts_together else [1] * count:
            rented = self.provider.rent(size, watch, is_required=not self.devices)
            self.devices |= dict.fromkeys(rented, "")
            joined = self.ray_nodes.start(rented, watch, self.provider.find_ended)
            for name in set(rented) - joined:
                self._release(name)
            names += [name for name in rented if name in joined]
        return names

    def _find_broken_nodes(self, names: list[str], watch: Callable[[], None]) -> list[str]:
        """Start a worker per accelerator of new nodes and return the nodes on which one ended before it was ready."""
        ray = import_ray()
        streams = [
            (name, self._build_task(self._build_bundle(name, 1), strategy, warm_up, **HOLD_WORKER).remote(self.setup))
            for name, strategy in [(name, self._find_strategy(name)) for name in names]
            for _ in range(self.accelerators)
        ]
        waiting = [stream for _, stream in streams]
        while waiting:
            require_head()
            _, waiting = ray.wait(waiting, num_returns=1, timeout=LIVENESS_PERIOD_S / 10, fetch_local=False)
            watch()
        # only now that all workers exist: a worker released earlier would have received the next task
        return sorted({name for name, stream in streams if not _is_ready(ray, stream)})

    def _build_task(
        self, bundle: dict[str, float], strategy: Any, function: Callable[..., Any], max_calls: int = 0, **options: Any
    ) -> Any:
        """Build a task that streams its results; its process ends after ``max_calls`` of them, if that is not 0."""
        resources = {key: units for key, units in bundle.items() if key not in ("CPU", "GPU")}
        return (
            import_ray()
            .remote(max_calls=max_calls)(function)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources=resources,
                scheduling_strategy=strategy,
                num_returns="streaming",
                max_retries=0,
                **options,
            )
        )

    def _build_bundle(self, name: str, accelerators: int) -> dict[str, float]:
        own = {} if name in self.reservations else {name_node_resource(name): float(accelerators)}
        return {self.devices[name] or "CPU": float(accelerators)} | own

    def _count_used(self, name: str) -> int:
        return sum(
            min(running.job.workers, self.accelerators) for running in self.running.values() if name in running.nodes
        )

    def _release(self, name: str) -> None:
        self.ray_nodes.stop(name)
        del self.devices[name]
        self.provider.release(name)


def stream_job(setup: WorkerSetup, job: TrialJob, state: bytes | None) -> Iterator[tuple[WorkerMessage, bytes]]:
    """Run a job on a Ray worker and stream each message with the state that it reports."""
    from unfoldkit.worker_process import limit_threads

    limit_threads()
    states: list[bytes] = []
    try:
        train = build_train_function(setup)
        for message in run_job(job, train, state, lambda _iters, new_state: states.append(new_state)):
            yield message, states.pop() if states else b""
    except (KeyboardInterrupt, GeneratorExit):
        # Ray cancels the job
        raise
    except BaseException as error:  # noqa: BLE001 - a user's function may raise anything; the driver decides
        yield describe_failure(job, error), b""


def stream_rank(
    setup: WorkerSetup, job: TrialJob, state: bytes | None, port: int
) -> Iterator[tuple[WorkerMessage, bytes]]:
    """Run one process of a trial that spans nodes; only the first streams results, the others only failures."""
    rank = None if job.rank is None else replace(job.rank, port=port)
    for message, new_state in stream_job(setup, replace(job, rank=rank), state):
        if job.is_reporting or message.kind == "failed":
            yield message, new_state


def warm_up(setup: WorkerSetup) -> Iterator[WorkerMessage]:
    """Import the dependencies of trials in a worker, report it, and hold the worker until the report is read."""
    from unfoldkit.worker_process import limit_threads

    limit_threads()
    yield prepare_training(setup)[1]


def _is_ready(ray: Any, stream: Any) -> bool:
    try:
        messages = [ray.get(ref) for ref in stream]  # reading to the end releases the worker
    except ray.exceptions.RayError:
        return False
    diagnostics = [diagnostic for message in messages for diagnostic in message.diagnostics]
    if diagnostics:
        raise UnfoldError(*diagnostics)
    return True
