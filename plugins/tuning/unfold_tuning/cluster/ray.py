"""A cluster of Ray: raylets come and go between stages, and each trial has a placement group of its own.

Which node a trial goes to is decided here, fullest first, so that whole nodes fall empty and can be released: a bundle
asks for the node's own resource. A trial that fits into a node is packed strictly, a larger one takes whole nodes. What
a trial has learnt travels with each of its results, so that nodes need no disk in common.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from unfold_tuning.cluster.local import ATTEMPTS, Event
from unfold_tuning.cluster.provider import Fleet
from unfold_tuning.cluster.ray_nodes import Raylets, alive, devices, imported, place
from unfold_tuning.trial.trainable import Work, make
from unfold_tuning.trial.worker import Job, Told, keep, made, perform, state_of
from unfoldkit.api import UnfoldError, broken

CHECK_EVERY = 1.0
ENDING = 2.0
HELD = {"_generator_backpressure_num_objects": 1}


@dataclass(slots=True)
class Running:
    """A trial on Ray: the stream of its results, its placement group, and the nodes that it holds."""

    job: Job
    stream: Any
    group: Any
    nodes: tuple[str, ...]


@dataclass(slots=True)
class RayCluster:
    """Nodes of a fleet as raylets; see :class:`~unfold_tuning.cluster.local.Cluster`."""

    work: Work
    accelerators: int
    fleet: Fleet
    raylets: Raylets
    spread: bool = False
    nodes: dict[str, str] = field(default_factory=dict)
    running: dict[int, Running] = field(default_factory=dict)
    checked: float = 0.0

    def open(self) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        self.raylets.open()

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        idle = [name for name in self.nodes if not self._used(name)]
        for name in idle[: max(0, len(self.nodes) - count)]:
            self._release(name)
        for _ in range(ATTEMPTS):
            fresh = self._joined(count - len(self.nodes), watch)
            self.nodes |= {name: devices(name) for name in fresh}
            for name in self._not_ready(fresh, watch):
                self._release(name)
            if len(self.nodes) >= count:
                return
        raise broken(f"a node was not ready {ATTEMPTS} times", hint="can its workers import what the trainable needs?")

    def free(self, gang: int) -> str | None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        if gang > self.accelerators:
            empty = [name for name in self.nodes if not self._used(name)]
            return empty[0] if len(empty) >= -(-gang // self.accelerators) else None
        room = [name for name in self.nodes if self.accelerators - self._used(name) >= gang]
        return (min if self.spread else max)(room, key=self._used) if room else None

    def start(self, node: str, job: Job) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        imported()
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        others = [name for name in self.nodes if name != node and not self._used(name)]
        hosts = (node, *others[: -(-job.gang // self.accelerators) - 1])
        bundles = [self._bundle(name, job.gang) for name in hosts]
        group = placement_group(bundles, strategy="STRICT_PACK" if len(hosts) == 1 else "PACK")
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        stream = self._task(bundles[0], where, "streaming", work_on).remote(self.work, job, state_of(job))
        self.running[job.trial] = Running(job, stream, group, hosts)

    def finished(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        from ray.util.placement_group import remove_placement_group

        held = self.running.pop(trial, None)
        if held is None:
            return
        # a group that is removed under its task takes the worker process with it, and its imports
        imported().wait([held.stream], timeout=ENDING, fetch_local=False)
        remove_placement_group(held.group)

    def end(self, trial: int) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        if trial in self.running:
            imported().cancel(self.running[trial].stream, force=True)

    def events(self, timeout: float) -> Iterator[Event]:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        yield from self._losses()
        if not self.running:
            time.sleep(timeout)
            return
        streams = [held.stream for held in self.running.values()]
        ready, _ = imported().wait(streams, num_returns=1, timeout=timeout, fetch_local=False)
        for held in [item for item in self.running.values() if item.stream in ready]:
            told = self._next(held)
            if told is not None:
                yield Event(held.nodes[0], held.job.trial, told)

    def close(self) -> None:
        """See :class:`~unfold_tuning.cluster.local.Cluster`."""
        try:
            for name in list(self.nodes):
                self._release(name)
        finally:
            self.fleet.close()
            self.raylets.close()

    def _next(self, held: Running) -> Told | None:
        ray = imported()
        try:
            told, state = ray.get(next(held.stream))
        except StopIteration:
            return None
        except ray.exceptions.RayError as error:
            if held.nodes[0] not in alive():
                return None
            return Told("failed", held.job.trial, error=f"its worker is gone: {type(error).__name__}")
        if told.what != "step":
            return told  # type: ignore[no-any-return]
        began = time.perf_counter()
        keep(held.job, told.iters, state)
        return replace(told, saved=time.perf_counter() - began)  # type: ignore[no-any-return]

    def _losses(self) -> Iterator[Event]:
        if time.monotonic() - self.checked < CHECK_EVERY:
            return
        self.checked = time.monotonic()
        there = alive()
        for name in [name for name in self.nodes if name not in there]:
            trials = [trial for trial, held in self.running.items() if name in held.nodes]
            for trial in trials:
                self.finished(trial)
            self._release(name)
            for trial in trials or [-1]:
                yield Event(name, trial, None)

    def _joined(self, count: int, watch: Callable[[], None]) -> list[str]:
        """Rent nodes and have them join: each when its turn comes, where one starts after the other, as it is paid."""
        names: list[str] = []
        for size in [count] if self.raylets.together else [1] * count:
            fresh = self.fleet.rent(size, watch)
            self.nodes |= dict.fromkeys(fresh, "")
            self.raylets.start(fresh, watch)
            names += fresh
        return names

    def _not_ready(self, names: list[str], watch: Callable[[], None]) -> list[str]:
        """Start a worker for each accelerator of new nodes and return the nodes where one ended before it was ready."""
        ray = imported()
        asked = [
            (name, self._task(self._bundle(name, 1), None, "streaming", warm, **HELD).remote(self.work))
            for name in names
            for _ in range(self.accelerators)
        ]
        waiting = [stream for _, stream in asked]
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=1, timeout=CHECK_EVERY / 10, fetch_local=False)
            watch()
        # all are there now: a worker let go before would have been given the next one's task
        return sorted({name for name, stream in asked if not _succeeded(ray, stream)})

    def _task(
        self, bundle: dict[str, float], where: Any, returns: Any, function: Callable[..., Any], **more: Any
    ) -> Any:
        own = {key: value for key, value in bundle.items() if key not in ("CPU", "GPU")}
        return (
            imported()
            .remote(function)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources=own,
                scheduling_strategy=where,
                num_returns=returns,
                max_retries=0,
                **more,
            )
        )

    def _bundle(self, name: str, gang: int) -> dict[str, float]:
        units = float(min(gang, self.accelerators))
        return {self.nodes[name] or "CPU": units, place(name): units}

    def _used(self, name: str) -> int:
        return sum(min(held.job.gang, self.accelerators) for held in self.running.values() if name in held.nodes)

    def _release(self, name: str) -> None:
        self.raylets.stop(name)
        del self.nodes[name]
        self.fleet.release(name)


def work_on(work: Work, job: Job, state: bytes | None) -> Iterator[tuple[Told, bytes]]:
    """Run a job on a worker of Ray and stream each checkpoint with what is told of it."""
    from unfoldkit.engines.local import one_thread

    one_thread()
    states: list[bytes] = []
    try:
        for told in perform(job, make(work), state, lambda _iters, new: states.append(new)):
            yield told, states.pop()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's function may raise anything; the driver decides
        yield Told("failed", job.trial, error=f"{type(error).__name__}: {error}"), b""


def warm(work: Work) -> Iterator[Told]:
    """Import in a worker whatever a trial needs, say so, and keep the worker until that is heard."""
    from unfoldkit.engines.local import one_thread

    one_thread()
    yield made(work)[1]


def _succeeded(ray: Any, stream: Any) -> bool:
    try:
        said = [ray.get(item) for item in stream]  # to the end, where the worker is free
    except ray.exceptions.RayError:
        return False
    faults = [fault for told in said for fault in told.faults]
    if faults:
        raise UnfoldError(*faults)
    return True
