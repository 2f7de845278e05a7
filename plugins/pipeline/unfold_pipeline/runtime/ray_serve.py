"""The plan on Ray Serve: a deployment a stage, whose replica count is changed while it serves.

Ray Serve has no central queue: a query goes to a replica when it arrives, and waits there for the next batch. A replica
that dies fails its queries; they are asked again, one after the other, so that none that was taken in is lost but one
of which replicas die. One whose model does not come back ends itself, and the rows of its batch are asked again, each
by itself. Queries that cannot be in time are shed when they come to a stage, as what waits at a replica cannot be taken
back. Nodes are chosen by Ray Serve's own words for gangs and limits, see :mod:`unfold_pipeline.schema.placement`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.routing import Item
from unfold_pipeline.runtime.local import ENDS, Heard
from unfold_pipeline.runtime.model_loader import Source
from unfold_pipeline.runtime.ray_replica import Hung, Replica
from unfold_pipeline.runtime.stage import Query, clock
from unfold_pipeline.schema.placement import SHARE, Placing, whole, words
from unfoldkit.api import broken, fail
from unfoldkit.engines.ray import connected

PATIENCE_S = 60.0
PAUSE_S = 0.2
VERSION = "1"


@dataclass(slots=True)
class Deployed:
    """A stage on Ray Serve: its application and handle, replicas that should be and are there, and what was counted.

    ``gang`` is the number of replicas in the plan, which start together where ``placing`` says so. A replica is made
    for batches of ``planned``, and takes in twice as many queries; each comes with the largest ``batch`` of its time.
    It ends if it keeps a batch for longer than ``patience`` s. ``one`` is held by the one query that is asked again
    after its replica died.
    """

    name: str
    app: str
    source: Source
    batch: int
    wait: float
    wanted: int
    need: float = 0.0
    placing: Placing = field(default_factory=Placing)
    gang: int = 1
    planned: int = 0
    patience: float = math.inf
    handle: Any = None
    ready: int = 0
    open: int = 0
    served: int = 0
    failed: int = 0
    known: set[str] = field(default_factory=set)
    one: asyncio.Lock = field(default_factory=asyncio.Lock)


class RayRuntime:
    """Starts, feeds, scales and ends the deployments of a plan."""

    __slots__ = ("_address", "_changes", "_ended", "_nodes", "_ray", "_replaced", "_tasks", "_watch", "stages")

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[Source],
        plan: Plan,
        waits: Sequence[float],
        address: str | None,
        needs: Sequence[float] = (),
        placing: Placing | None = None,
        patience: Sequence[float] = (),
    ) -> None:
        policy = placing or Placing()
        prefix = f"unfold-{uuid.uuid4().hex[:8]}"
        self.stages = [
            Deployed(
                name,
                f"{prefix}-{name}",
                source,
                choice.batch,
                wait,
                choice.replicas,
                need,
                policy,
                gang=choice.replicas,
                planned=choice.batch,
                patience=most,
            )
            for name, source, choice, wait, need, most in zip(
                names,
                sources,
                plan,
                waits,
                needs or [0.0] * len(names),
                patience or [math.inf] * len(names),
                strict=True,
            )
        ]
        self._address = address
        self._ray: ModuleType | None = None
        self._changes = asyncio.Lock()
        self._ended = False
        self._nodes = 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._replaced = 0

    async def start(self) -> None:
        """Start all replicas and wait until they are ready.

        Raises:
            UnfoldError: Ray is not there, cannot place as the spec says, or a replica does not start.
        """
        self._ray = connected(self._address)
        from ray import serve

        self._check(self._ray, serve)

        try:
            await asyncio.to_thread(serve.start, proxy_location="Disabled")
            for stage in self.stages:
                await self._deploy(stage)
        except RuntimeError as error:
            await self.stop()
            raise broken(f"Ray Serve does not start the pipeline: {error}") from error
        await self._look()
        self._watch = asyncio.get_running_loop().create_task(self._keep_looking())

    async def stop(self) -> None:
        """End all replicas."""
        from ray import serve

        self._ended = True
        if self._watch is not None:
            self._watch.cancel()
        # a change under way would deploy again what is deleted here
        async with self._changes:
            for stage in self.stages:
                await asyncio.to_thread(serve.delete, stage.app)
        for task in self._tasks:
            task.cancel()

    def submit(self, query: Query) -> None:
        """Take a query in; ``finished`` is called with its answers, or with ``None`` if a stage cannot be served."""
        for item in query.routes.entries(query.number):
            self._send(query, item)
        if query.routes.left[query.number] == 0:
            query.finished({})

    def want(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have (whole gangs, where it has gangs), and its largest batch."""
        found = self.stages[stage]
        found.batch = min(batch or found.batch, 2 * found.planned)
        count = self._placed(found, whole(found.placing, found.gang, max(1, count)))
        if count != found.wanted:
            found.wanted = count
            self._keep(self._deploy(found))

    def batches(self) -> tuple[int, ...]:
        """Return the largest batch of each stage."""
        return tuple(stage.batch for stage in self.stages)

    def serving(self) -> tuple[int, ...]:
        """Return how many replicas of each stage served when they were last looked at, some tenths of a second ago."""
        return tuple(stage.ready for stage in self.stages)

    def replaced(self) -> int:
        """Return how many replicas were seen to have died and been replaced."""
        return self._replaced

    def status(self) -> list[dict[str, Any]]:
        """Return what each stage is doing."""
        return [
            {
                "name": s.name,
                "batch": s.batch,
                "served": s.served,
                "queue": s.open,
                "replicas": s.wanted,
                "ready": s.ready,
                "failed": s.failed,
            }
            for s in self.stages
        ]

    def listen(self, heard: Heard) -> None:
        """Do nothing: Ray Serve makes its batches itself, and tells of them in metrics of its own."""

    def _check(self, ray: ModuleType, serve: ModuleType) -> None:
        """Refuse what Ray Serve would wait for without end."""
        self._nodes = _alive(ray)
        for stage in self.stages:
            policy = stage.placing
            if policy.together and "gang_scheduling_config" not in inspect.signature(serve.deployment).parameters:
                raise fail("this version of Ray Serve has no gangs", key="placement.gang", hint="pip install -U ray")
            if stage.wanted > self._placed(stage, stage.wanted):
                fit = f"{policy.most} a node, do not fit on {self._nodes} nodes"
                told = f"{stage.wanted} replicas of {stage.name}, {fit}"
                raise fail(told, key="placement.spread.most", hint="a larger most, or more nodes in the cluster")

    def _placed(self, stage: Deployed, count: int) -> int:
        """Return how many of some replicas the nodes take: for more Ray Serve would wait, and do nothing else."""
        most = stage.placing.most
        return count if most is None else min(count, most * self._nodes)

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deploy(self, stage: Deployed) -> None:
        """Bring a stage to the wanted count; one change at a time, as the last one asked for must be the last made."""
        async with self._changes:
            if self._ended:
                return
            handle = await asyncio.to_thread(_deployed, stage)
            # a handle learns of new replicas by itself, and one that is new knows of none at first
            stage.handle = stage.handle or handle

    def _send(self, query: Query, item: Item) -> None:
        self._keep(self._served(query, item))

    async def _served(self, query: Query, item: Item) -> None:
        stage = self.stages[item[0]]
        if query.hopeless(stage.need):
            return
        stage.open += 1
        found = await self._asked(stage, query)
        stage.open -= 1
        if found is None:
            query.finished(None)
            return
        stage.served += 1
        query.answers[stage.name] = found
        for after in query.routes.after(item):
            self._send(query, after)
        if query.routes.finished(item):
            query.finished(query.answers)

    async def _asked(self, stage: Deployed, query: Query) -> Any:
        """Ask until a replica answers, as one that died is being replaced; a model that fails is not asked again.

        Nor is one that did not come back with this row alone, or of which two replicas died with it in their charge.
        """
        if self._ray is None:
            raise RuntimeError("start() comes first")
        from ray.serve.exceptions import RayServeException

        late, alone, died = clock() + PATIENCE_S, False, False
        while clock() < late and query.ended < ENDS:
            try:
                # whose fault a death was shows only where one that may be at fault is out at a time
                async with stage.one if died else contextlib.nullcontext():
                    found = await stage.handle.remote(query.row, stage.batch, alone)
            except self._ray.exceptions.RayTaskError:
                return _failed(stage, query)
            except self._ray.exceptions.ActorDiedError:
                query.ended += died
                late, alone, died = clock() + PATIENCE_S, True, True
                await asyncio.sleep(PAUSE_S)
                continue
            except (self._ray.exceptions.RayError, RayServeException):
                await asyncio.sleep(PAUSE_S)
                continue
            if not isinstance(found, Hung):
                return found
            if alone:
                return _failed(stage, query)
            late, alone = clock() + PATIENCE_S, True
        return _failed(stage, query) if query.ended >= ENDS else None

    async def _keep_looking(self) -> None:
        if self._ray is None:
            raise RuntimeError("start() comes first")
        while True:
            await asyncio.sleep(PAUSE_S)
            # a head that is away for a moment does not end the looking
            with contextlib.suppress(self._ray.exceptions.RayError, RuntimeError, OSError):
                await self._look()

    async def _look(self) -> None:
        """Read from Ray Serve which replicas run; one that is gone though as many are wanted has died."""
        found = await asyncio.to_thread(_running, [stage.app for stage in self.stages])
        self._nodes = await asyncio.to_thread(_alive, self._ray)
        for stage in self.stages:
            now = found.get(stage.app, set())
            gone = len(stage.known - now) - max(0, len(stage.known) - stage.wanted)
            self._replaced += max(0, gone)
            stage.known, stage.ready = now, len(now)


def _failed(stage: Deployed, query: Query) -> None:
    stage.failed += 1
    query.failed = stage.name


def _deployed(stage: Deployed) -> Any:
    """Deploy or change a stage; the same version makes Ray Serve keep the replicas that there are."""
    from ray import serve

    options = {"num_replicas": stage.wanted, "max_ongoing_requests": 2 * stage.planned, "version": VERSION}
    options |= words(stage.placing, stage.gang)
    share = SHARE if stage.placing.together else 0
    options |= {"ray_actor_options": {"num_cpus": share}, "graceful_shutdown_wait_loop_s": 0.1}
    # by default a death is noticed after 10 s only
    options |= {"health_check_period_s": 1.0, "health_check_timeout_s": 30.0}
    made = serve.deployment(Replica).options(name=stage.name, _internal=True, **options)
    return serve.run(
        made.bind(stage.source, stage.planned, stage.wait, stage.patience), name=stage.app, route_prefix=None
    )


def _alive(ray: Any) -> int:
    """Return how many nodes the cluster has."""
    return sum(node["Alive"] for node in ray.nodes())


def _running(apps: Sequence[str]) -> dict[str, set[str]]:
    """Return the names of the running replicas of each application."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]
    return {
        app: {
            replica["replica_id"]
            for deployment in details[app]["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }
        for app in apps
        if app in details
    }


def application(args: dict[str, Any]) -> Any:
    """Return the application that an exported config names, for ``serve deploy``.

    ``args`` hold ``name``, ``batch``, ``wait`` in s, and ``path`` or ``code`` of the model.
    """
    from ray import serve

    source = Source(path=str(args.get("path", "")), code=str(args.get("code", "")), folder=".")
    made = serve.deployment(Replica).options(name=str(args["name"]))
    return made.bind(source, int(args["batch"]), float(args["wait"]))
