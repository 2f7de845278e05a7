"""The running pipeline on Ray Serve: a deployment per stage, with a replica count that changes while it serves.

Ray Serve has no central queue: a query that it gets goes to a replica and waits there for the next batch. It gets two
batches for each replica; other queries wait in this process. Queries of a replica that died are sent again, one
after the other, so that only a query that kills replicas is lost. A replica exits if its model hangs, and the rows of
its batch are sent again one by one. Queries that cannot be in time are shed when they arrive at a stage, and when a
replica has room for them; those that end while they wait at a replica are withdrawn. Ray Serve chooses the nodes (see
:class:`unfold_pipeline.problem.problem.PlacementPolicy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import uuid
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from unfold_pipeline._types import Tensors
from unfold_pipeline.estimator.admission import BatchSpeed, StageLoad
from unfold_pipeline.flow_syntax import ConditionError
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.problem import PlacementPolicy
from unfold_pipeline.problem.routing import Item
from unfold_pipeline.runtime.local import MAX_PROCESS_FAILURES, BatchListener
from unfold_pipeline.runtime.models.data_flow import DataFlow, DataFlowError, format_output
from unfold_pipeline.runtime.ray_replica import ModelHung, RayReplica, check_deployment_name
from unfold_pipeline.runtime.ray_stage_queue import RequestSlots
from unfold_pipeline.runtime.ray_status import (
    DeploymentListing,
    list_deployments,
    list_orphans,
    name_applications,
)
from unfold_pipeline.runtime.stage import ActivationTime, PlannedStage, Query, build_start_error, read_clock
from unfoldkit.api import internal_error, user_error
from unfoldkit.engines.ray import connect_ray
from unfoldkit.serving.oip.errors import InvalidRequest

RETRY_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.2
START_POLL_INTERVAL_S = 1.0
DEPLOYMENT_VERSION = "1"
BATCHES_IN_FLIGHT = 2
"""Batches that a replica has at once: one in service, and the next one."""
# a placement group must reserve something; replicas share the cores of their node
GANG_CPU_FRACTION = 0.001


@dataclass(slots=True, kw_only=True)
class StageDeployment:
    """A stage on Ray Serve.

    Attributes:
        name: Of the stage.
        app: Name of its Ray Serve application, from the start on.
        source: Its model.
        max_batch: Maximum batch size at present, which each query carries.
        planned_batch: Maximum batch size at the start, which at most doubles.
        max_wait_s: How long a batch that is not full may be delayed.
        target_replicas: How many replicas there should be.
        gang_size: Replicas of the plan, which start together if ``placement`` has gangs.
        placement: Where replicas run.
        includes_request: Whether its input includes what a client has sent.
        min_remaining_s: Least seconds that a query still takes from here on.
        hang_timeout_s: A replica that keeps a batch for longer exits.
        handle: Ray Serve's handle of the deployment.
        ready, open, served, failed: Counters of replicas and queries.
        known_replicas: Replicas that ran when they were last listed.
        slots: Hold back the queries that the replicas cannot take yet.
        retry_lock: Held by the one query that is sent again after its replica died.
        speed: How long its batches take.
        activation: How long its replicas take to start.
        orders_s: When each replica was ordered that does not serve yet, on :func:`read_clock`, the oldest first.
        start_error: Why replicas do not start, as Ray Serve reports it; empty if all serve.
    """

    name: str
    app: str
    source: ModelSource
    max_batch: int
    planned_batch: int
    max_wait_s: float
    target_replicas: int
    gang_size: int
    placement: PlacementPolicy
    includes_request: bool = False
    min_remaining_s: float = 0.0
    hang_timeout_s: float = math.inf
    handle: Any = None
    ready: int = 0
    open: int = 0
    served: int = 0
    failed: int = 0
    known_replicas: set[str] = field(default_factory=set)
    slots: RequestSlots = field(default_factory=lambda: RequestSlots(1))
    retry_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    speed: BatchSpeed = field(default_factory=BatchSpeed)
    activation: ActivationTime = field(default_factory=ActivationTime)
    orders_s: deque[float] = field(default_factory=deque)
    start_error: str = ""

    def __post_init__(self) -> None:
        self.resize_slots()

    def resize_slots(self) -> None:
        """Admit as many queries to the replicas as these take; to the next replica, if none runs."""
        self.slots.set_limit(BATCHES_IN_FLIGHT * self.max_batch * max(1, self.ready))

    @property
    def activation_s(self) -> float:
        """The seconds from ordering a replica until it serves; 0 if unknown."""
        return self.activation.estimate(read_clock() - self.orders_s[0] if self.orders_s else 0.0)

    def measure_load(self) -> StageLoad:
        """Return what waits here and what serves it, as far as the listings show."""
        return StageLoad(
            items=self.open,
            replicas=self.ready,
            max_batch=self.max_batch,
            speed=self.speed,
            restart_s=self.activation.seconds,
        )

    def update_replicas(self, current: set[str]) -> int:
        """Take over a listing of the running replicas; return how many have died since the one before.

        The activation time of a replica counts from the oldest order that is open to the first listing with it.
        """
        previous, now_s = self.known_replicas, read_clock()
        died = len(previous - current) - max(0, len(previous) - self.target_replicas)
        for _ in range(min(len(current - previous), len(self.orders_s))):
            self.activation.observe(now_s - self.orders_s.popleft())
        self.known_replicas, self.ready = current, len(current)
        self.resize_slots()
        self.await_replicas(now_s)
        return max(0, died)

    def await_replicas(self, now_s: float) -> None:
        """Open an order for each replica that is wanted and awaited by none, or drop the latest ones."""
        missing = max(0, self.target_replicas - self.ready)
        while len(self.orders_s) > missing:
            self.orders_s.pop()
        self.orders_s.extend([now_s] * (missing - len(self.orders_s)))

    def report_fault(self, listing: DeploymentListing) -> None:
        """Take over why replicas do not start, and log it when it changes."""
        fault = listing.fault if len(listing.running) < self.target_replicas else ""
        if fault and fault != self.start_error:
            logging.getLogger("unfoldkit").error("stages.%s.model: replicas do not start: %s", self.name, fault)
        self.start_error = fault

    def record_failure(self, query: Query, cause: object = None) -> None:
        """Count a query on which the model failed, and keep why it does not take what the client sent."""
        self.failed += 1
        query.refused_input = str(cause) if self.includes_request and isinstance(cause, InvalidRequest) else ""
        query.failed_stage = self.name


class RayRuntime:
    """Starts, feeds, scales and ends the deployments of a plan."""

    __slots__ = (
        "_address",
        "_changes",
        "_flow",
        "_has_ended",
        "_monitor",
        "_nodes",
        "_owns_serve",
        "_ray",
        "_replaced",
        "_tasks",
        "stages",
    )

    def __init__(
        self,
        stages: Sequence[PlannedStage],
        address: str | None,
        *,
        placement: PlacementPolicy | None = None,
        flow: DataFlow | None = None,
    ) -> None:
        self._flow = flow or DataFlow((None,) * len(stages), (None,) * len(stages))
        self.stages = [
            StageDeployment(
                name=stage.name,
                app=stage.name,
                source=stage.source,
                max_batch=stage.config.batch,
                planned_batch=stage.config.batch,
                max_wait_s=stage.max_wait_s,
                target_replicas=stage.config.replicas,
                gang_size=stage.config.replicas,
                placement=placement or PlacementPolicy(),
                includes_request=self._flow.includes_request(index),
                min_remaining_s=stage.min_remaining_s,
                hang_timeout_s=stage.hang_timeout_s,
                speed=BatchSpeed(stage.latency_s),
            )
            for index, stage in enumerate(stages)
        ]
        self._address = address
        self._ray: ModuleType | None = None
        self._changes = asyncio.Lock()
        self._has_ended = False
        self._nodes = 1
        self._owns_serve = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._monitor: asyncio.Task[None] | None = None
        self._replaced = 0

    async def start(self) -> None:
        """Start all replicas and wait until they are ready.

        Raises:
            UnfoldError: Ray is not installed, cannot name or place replicas as the spec asks, or a replica does not
                start.
        """
        for stage in self.stages:
            check_deployment_name(stage.name)
        self._ray = connect_ray(self._address)
        from ray import serve

        self._check_placement(self._ray, serve)
        prefix = name_applications(self._ray.get_runtime_context().get_job_id(), uuid.uuid4().hex[:8])
        for stage in self.stages:
            stage.app = f"{prefix}-{stage.name}"

        try:
            # a cluster that lives on gets back what it lacked: proxies for the applications of others
            self._owns_serve = self._address is not None and not _has_serve()
            await asyncio.to_thread(serve.start, proxy_location="Disabled")
            await asyncio.to_thread(_delete_orphans)
            for stage in self.stages:
                start_s = read_clock()
                await self._start_stage(stage)
                stage.activation.observe(read_clock() - start_s)
        except RuntimeError as error:
            faults = [(stage.name, stage.start_error) for stage in self.stages if stage.start_error]
            await self.stop()
            if faults:
                raise build_start_error(*faults[0]) from error
            raise internal_error(f"Ray Serve does not start the pipeline: {error}") from error
        await self._update_replicas()
        self._monitor = asyncio.get_running_loop().create_task(self._monitor_replicas())

    async def stop(self) -> None:
        """End all replicas."""
        self._has_ended = True
        if self._ray is None:
            # Ray did not start, and its functions would start it again
            return
        from ray import serve
        from ray.serve.exceptions import RayServeException

        if self._monitor is not None:
            self._monitor.cancel()
        # a change in progress would deploy again what is deleted here
        async with self._changes:
            # without Ray Serve, as where it did not start, there is nothing to delete
            with contextlib.suppress(RayServeException):
                for stage in self.stages:
                    await asyncio.to_thread(serve.delete, stage.app)
                if self._owns_serve and not serve.status().applications:
                    await asyncio.to_thread(serve.shutdown)
        for task in self._tasks:
            task.cancel()

    def submit(self, query: Query) -> None:
        """Accept a query; ``on_finished`` is called with its answers, or with ``None`` if a stage cannot be served."""
        for item in query.routes.find_entries(query.number):
            self._send_item(query, item)
        if query.routes.open_items[query.number] == 0:
            query.on_finished({})

    def set_target(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have, rounded up to whole gangs, and its maximum batch size."""
        deployment = self.stages[stage]
        deployment.max_batch = min(batch or deployment.max_batch, 2 * deployment.planned_batch)
        deployment.resize_slots()
        gangs = deployment.placement.round_up_replicas(max(1, count), deployment.gang_size)
        target = self._limit_to_nodes(deployment, gangs)
        if target != deployment.target_replicas:
            deployment.target_replicas = target
            deployment.await_replicas(read_clock())
            self._start_task(self._deploy(deployment))

    def batch_sizes(self) -> tuple[int, ...]:
        """Return the maximum batch size of each stage."""
        return tuple(stage.max_batch for stage in self.stages)

    def serving_replicas(self) -> tuple[int, ...]:
        """Return how many replicas of each stage served when they were last listed, some tenths of a second ago."""
        return tuple(stage.ready for stage in self.stages)

    def count_replaced(self) -> int:
        """Return how many replicas died and were replaced, as far as the listings show."""
        return self._replaced

    def list_status(self) -> list[dict[str, Any]]:
        """Return the state of each stage."""
        return [
            {
                "name": stage.name,
                "batch": stage.max_batch,
                "served": stage.served,
                "queue": stage.open,
                "replicas": stage.target_replicas,
                "ready": stage.ready,
                "failed": stage.failed,
                "silent_s": round(stage.slots.silent_s, 3),
                "start_error": stage.start_error,
            }
            for stage in self.stages
        ]

    def measure_loads(self) -> list[StageLoad]:
        """Return what waits at each stage and what serves it, as far as the listings show."""
        return [stage.measure_load() for stage in self.stages]

    def activation_times(self) -> tuple[float, ...]:
        """Return the measured seconds from ordering a replica of each stage until it serves; 0 if unknown."""
        return tuple(stage.activation_s for stage in self.stages)

    def subscribe(self, listener: BatchListener) -> None:
        """Do nothing: Ray Serve forms its batches itself and reports them in its own metrics."""

    def _check_placement(self, ray: ModuleType, serve: ModuleType) -> None:
        """Reject a placement for which Ray Serve would wait forever."""
        self._nodes = _count_nodes(ray)
        for stage in self.stages:
            policy = stage.placement
            if policy.has_gangs and "gang_scheduling_config" not in inspect.signature(serve.deployment).parameters:
                message = "this version of Ray Serve does not support gangs"
                raise user_error(message, key="placement.gang", hint="pip install -U ray")
            if stage.target_replicas > self._limit_to_nodes(stage, stage.target_replicas):
                nodes = f"{policy.max_per_node} per node, do not fit on {self._nodes} nodes"
                message = f"{stage.target_replicas} replicas of {stage.name}, {nodes}"
                raise user_error(
                    message, key="placement.spread.most", hint="a larger most, or more nodes in the cluster"
                )

    def _limit_to_nodes(self, stage: StageDeployment, count: int) -> int:
        """Return how many of ``count`` replicas the nodes can hold: Ray Serve would block on more."""
        limit = stage.placement.max_per_node
        return count if limit is None else min(count, limit * self._nodes)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_stage(self, stage: StageDeployment) -> None:
        """Wait until the planned replicas serve; what keeps them from it is logged, as Ray may wait without end."""
        deploying = asyncio.get_running_loop().create_task(self._deploy(stage, waits=True))
        while not deploying.done():
            await asyncio.wait([deploying], timeout=START_POLL_INTERVAL_S)
            await self._list_deployments()
        await deploying

    async def _deploy(self, stage: StageDeployment, *, waits: bool = False) -> None:
        """Bring a stage to its target; one change at a time, so that the latest target is the last one applied.

        Unless it ``waits``, it returns before new replicas serve: an order must not wait for those before it.
        """
        async with self._changes:
            if self._has_ended:
                return
            handle = await asyncio.to_thread(_run_deployment, stage, waits=waits)
            # an existing handle learns of new replicas, while a new one knows none at first
            stage.handle = stage.handle or handle

    def _send_item(self, query: Query, item: Item) -> None:
        self._start_task(self._serve_item(query, item))

    async def _serve_item(self, query: Query, item: Item) -> None:
        stage = self.stages[item[0]]
        if query.drop_if_late(stage.min_remaining_s):
            return
        stage.open += 1
        try:
            tensors = self._flow.build_input(item[0], query.row, query.received.get(item, {}))
            async with stage.slots.take(query) as has_slot:
                is_over = not has_slot or query.drop_if_late(stage.min_remaining_s)
                output = None if is_over else await self._request_answer(stage, query, tensors)
            ready = [] if output is None else self._flow.pass_on(query.routes, item, output, query.received)
        except (ConditionError, DataFlowError) as error:
            logging.getLogger("unfoldkit").warning("stages.%s: its data cannot be passed on: %s", stage.name, error)
            output = None
            stage.record_failure(query)
        finally:
            stage.open -= 1
        if output is None:
            query.on_finished(None)
            return
        stage.served += 1
        query.answers[stage.name] = format_output(output)
        for child in ready:
            self._send_item(query, child)
        if query.routes.complete_item(item):
            query.on_finished(query.answers)

    async def _request_answer(self, stage: StageDeployment, query: Query, tensors: Tensors) -> Any:
        """Send a row until a replica answers.

        A row is not sent again if the model raised an error on it, hung on it alone, or if two replicas died with it.
        """
        if self._ray is None:
            raise RuntimeError("start() comes first")
        from ray.serve.exceptions import RayServeException

        deadline_s, is_alone, has_died = read_clock() + RETRY_TIMEOUT_S, False, False
        while read_clock() < deadline_s and query.process_failures < MAX_PROCESS_FAILURES:
            try:
                # only one suspect at a time shows which query causes the deaths
                async with stage.retry_lock if has_died else contextlib.nullcontext():
                    response = stage.handle.remote(tensors, stage.max_batch, is_alone)
                    if not is_alone:
                        # Ray would serve it before fresh queries, although nothing waits for its answer any more
                        query.on_shed.append(response.cancel)
                    answer = await response
            except self._ray.exceptions.RayTaskError as error:
                return None if query.is_shed else stage.record_failure(query, error.cause)
            except self._ray.exceptions.ActorDiedError:
                query.process_failures += has_died
                query.has_lost_replica = True
                # the next listing may take a second to show it
                stage.ready = stage.ready if stage.ready > 1 else 0
                deadline_s, is_alone, has_died = read_clock() + RETRY_TIMEOUT_S, True, True
                await asyncio.sleep(POLL_INTERVAL_S)
                continue
            except (self._ray.exceptions.RayError, RayServeException):
                if query.is_shed:
                    return None
                query.has_lost_replica = True
                await asyncio.sleep(POLL_INTERVAL_S)
                continue
            if not isinstance(answer, ModelHung):
                stage.speed.observe(answer.batch_rows, answer.batch_s)
                return answer.value
            if is_alone:
                return stage.record_failure(query)
            deadline_s, is_alone = read_clock() + RETRY_TIMEOUT_S, True
        return stage.record_failure(query) if query.process_failures >= MAX_PROCESS_FAILURES else None

    async def _list_deployments(self) -> list[DeploymentListing]:
        """List the deployment of each stage, and report those with replicas that do not start."""
        listings = await asyncio.to_thread(list_deployments, [stage.app for stage in self.stages])
        found = [listings.get(stage.app, DeploymentListing()) for stage in self.stages]
        for stage, listing in zip(self.stages, found, strict=True):
            stage.report_fault(listing)
        return found

    async def _monitor_replicas(self) -> None:
        if self._ray is None:
            raise RuntimeError("start() comes first")
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            # a head node that is unreachable for a moment does not end the monitoring
            with contextlib.suppress(self._ray.exceptions.RayError, RuntimeError, OSError):
                await self._update_replicas()

    async def _update_replicas(self) -> None:
        """List the running replicas; one that is gone although as many are wanted has died."""
        listings = await self._list_deployments()
        self._nodes = await asyncio.to_thread(_count_nodes, self._ray)
        for stage, listing in zip(self.stages, listings, strict=True):
            self._replaced += stage.update_replicas(set(listing.running))


def _run_deployment(stage: StageDeployment, *, waits: bool) -> Any:
    """Deploy or change a stage; an equal version makes Ray Serve keep the existing replicas."""
    from ray import serve

    options = {
        "num_replicas": stage.target_replicas,
        # batches may double, and Ray may send a replica twice its share of the slots
        "max_ongoing_requests": 4 * BATCHES_IN_FLIGHT * stage.planned_batch,
        "version": DEPLOYMENT_VERSION,
    }
    options |= stage.placement.build_ray_options(stage.gang_size)
    cpus = GANG_CPU_FRACTION if stage.placement.has_gangs else 0
    options |= {"ray_actor_options": {"num_cpus": cpus}, "graceful_shutdown_wait_loop_s": 0.1}
    # the default detects a death after 10 s only
    options |= {"health_check_period_s": 1.0, "health_check_timeout_s": 30.0}
    deployment = serve.deployment(RayReplica).options(name=stage.name, _internal=True, **options)
    app = deployment.bind(stage.source, stage.planned_batch, stage.max_wait_s, stage.hang_timeout_s)
    target = serve.RunTarget(target=app, name=stage.app, route_prefix=None)
    return serve.run_many([target], wait_for_applications_running=waits)[0]


def _has_serve() -> bool:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None


def _delete_orphans() -> None:
    """Delete what services have left on this cluster that were killed: their replicas would run on for nothing."""
    from ray import serve

    for app in list_orphans():
        logging.getLogger("unfoldkit").warning("%s: its service has ended; the application is deleted", app)
        serve.delete(app)


def _count_nodes(ray: Any) -> int:
    return sum(node["Alive"] for node in ray.nodes())
