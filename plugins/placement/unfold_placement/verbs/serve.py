"""The verb ``serve``: the controller of a live cluster, with a page that tells who waits and why."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Task
from unfold_placement.live.backend import Backend
from unfold_placement.live.control_loop import ControlLoop, run_until_stopped
from unfold_placement.live.local import LocalBackend
from unfold_placement.live.state_store import build_state_store
from unfold_placement.live.status import build_dashboard, read_status, status_to_json
from unfold_placement.schema.models import PlacementSpec
from unfold_placement.schema.policies import build_policies
from unfold_placement.workload.build import build_nodes, build_tasks
from unfoldkit.api import Run, Service, UnfoldError
from unfoldkit.serving.service import ASGIApp


@dataclass(slots=True)
class ControllerThread:
    """The thread in which a controller runs; ``comes`` are tasks that it submits itself, for a rehearsal."""

    live: ControlLoop
    submitted_tasks: Sequence[Task] = ()
    stopped: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    failed: str = ""

    def start(self) -> None:
        """Start to control."""
        self.thread = threading.Thread(target=self._control, daemon=True)
        self.thread.start()
        if self.submitted_tasks:
            threading.Thread(target=self._submit, daemon=True).start()

    def stop(self) -> None:
        """Take no further decision, and let another lead; what runs goes on."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(10)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread is there and has not failed."""
        return (
            self.thread is not None and self.thread.is_alive() and (not self.failed or self.live.actuator is not None)
        )

    def _control(self) -> None:
        # a cluster that does not answer may answer again; until then nobody is told that all is well
        while not self.stopped.is_set():
            try:
                run_until_stopped(self.live, self.stopped.is_set, self.stopped.wait)
            except UnfoldError as error:
                self.failed = str(error)
                self.stopped.wait(1.0)

    def _submit(self) -> None:
        began = time.monotonic()
        for task in sorted(self.submitted_tasks, key=lambda task: task.arrival):
            if self.stopped.wait(max(0.0, began + task.arrival - time.monotonic())):
                return
            self.live.backend.submit(task)


def serve(spec: PlacementSpec, run: Run) -> Service:
    """Return the service: a controller on the spec's cluster.

    Raises:
        UnfoldError: the cluster does not answer, or a policy cannot be made.
    """
    make = policies(spec, run)
    make()
    backend, comes, where = backend_of(spec, run)
    who = f"{socket.gethostname()}-{os.getpid()}"
    lease = spec.cluster.lease
    worker = ControllerThread(ControlLoop(backend, make, who, spec.name, lease / 3, lease), comes)
    lines = (("cluster", where), ("policy", ", ".join(name for name, _, _ in spec.policy.parts()) or "none"))
    paths = ("/v2/health/ready", "/status")
    return Service(
        spec.name,
        build_application(spec.name, worker),
        paths,
        lines=lines,
        watch=build_dashboard(spec.name, worker.live),
    )


def policies(spec: PlacementSpec, run: Run) -> Callable[[], Sequence[Policy]]:
    """Return what makes a spec's policies, new ones each time."""
    return lambda: build_policies(spec.policy, allow_code=run.allow_code)


def backend_of(spec: PlacementSpec, run: Run) -> tuple[Backend, Sequence[Task], str]:
    """Return the spec's backend, the tasks that are submitted from here, and where it is in words."""
    nodes = build_nodes(spec.cluster, run)
    if spec.cluster.kubernetes is not None:
        from unfold_placement.kubernetes.from_spec import backend

        return backend(spec.name, spec.cluster.kubernetes, spec.policy, allow_code=run.allow_code)
    if spec.cluster.ray:
        from unfold_placement.ray.backend import connect_ray

        return connect_ray(spec.cluster.ray, spec.name, nodes), (), f"Ray at {spec.cluster.ray}"
    made = build_state_store(time.monotonic, nodes)
    text = f"{len(nodes)} nodes of the spec, in this process: its tasks take time and do nothing"
    return LocalBackend(made), build_tasks(spec.workload, run) if spec.workload.given else (), text


def build_application(name: str, worker: ControllerThread) -> ASGIApp:
    """Return the application: health and status; its lifespan is the controller's."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    async def live(_request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def ready(_request: Request) -> JSONResponse:
        return JSONResponse({"ready": worker.is_healthy, "error": worker.failed}, 200 if worker.is_healthy else 503)

    async def told(_request: Request) -> JSONResponse:
        return JSONResponse({"name": name, **status_to_json(await asyncio.to_thread(read_status, worker.live))})

    routes = [Route("/v2/health/live", live), Route("/v2/health/ready", ready), Route("/status", told)]
    return Starlette(lifespan=lifespan, routes=routes)
