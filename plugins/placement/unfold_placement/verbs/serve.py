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

from unfold_placement.core.types import Policy, Task
from unfold_placement.live.backend import Backend
from unfold_placement.live.control_loop import Live, run
from unfold_placement.live.local import Local
from unfold_placement.live.state_store import register
from unfold_placement.live.status import plain, status, watch
from unfold_placement.schema.models import PlacementSpec
from unfold_placement.schema.policies import build
from unfold_placement.workload.build import nodes_of, tasks_of
from unfoldkit.api import Run, Service, UnfoldError
from unfoldkit.serving.service import ASGIApp


@dataclass(slots=True)
class Worker:
    """The thread in which a controller runs; ``comes`` are tasks that it submits itself, for a rehearsal."""

    live: Live
    comes: Sequence[Task] = ()
    stopped: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    failed: str = ""

    def start(self) -> None:
        """Start to control."""
        self.thread = threading.Thread(target=self._control, daemon=True)
        self.thread.start()
        if self.comes:
            threading.Thread(target=self._submit, daemon=True).start()

    def stop(self) -> None:
        """Take no further decision, and let another lead; what runs goes on."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(10)

    @property
    def well(self) -> bool:
        """Whether the thread is there and has not failed."""
        return self.thread is not None and self.thread.is_alive() and (not self.failed or self.live.hands is not None)

    def _control(self) -> None:
        # a cluster that does not answer may answer again; until then nobody is told that all is well
        while not self.stopped.is_set():
            try:
                run(self.live, self.stopped.is_set, self.stopped.wait)
            except UnfoldError as error:
                self.failed = str(error)
                self.stopped.wait(1.0)

    def _submit(self) -> None:
        began = time.monotonic()
        for task in sorted(self.comes, key=lambda task: task.arrival):
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
    worker = Worker(Live(backend, make, who, spec.name, lease / 3, lease), comes)
    lines = (("cluster", where), ("policy", ", ".join(name for name, _, _ in spec.policy.parts()) or "none"))
    paths = ("/v2/health/ready", "/status")
    return Service(spec.name, application(spec.name, worker), paths, lines=lines, watch=watch(spec.name, worker.live))


def policies(spec: PlacementSpec, run: Run) -> Callable[[], Sequence[Policy]]:
    """Return what makes a spec's policies, new ones each time."""
    return lambda: build(spec.policy, allow_code=run.allow_code)


def backend_of(spec: PlacementSpec, run: Run) -> tuple[Backend, Sequence[Task], str]:
    """Return the spec's backend, the tasks that are submitted from here, and where it is in words."""
    nodes = nodes_of(spec.cluster, run)
    if spec.cluster.kubernetes is not None:
        from unfold_placement.kubernetes.from_spec import backend

        return backend(spec.name, spec.cluster.kubernetes, spec.policy, allow_code=run.allow_code)
    if spec.cluster.ray:
        from unfold_placement.ray.backend import connect

        return connect(spec.cluster.ray, spec.name, nodes), (), f"Ray at {spec.cluster.ray}"
    made = register(time.monotonic, nodes)
    text = f"{len(nodes)} nodes of the spec, in this process: its tasks take time and do nothing"
    return Local(made), tasks_of(spec.workload, run) if spec.workload.given else (), text


def application(name: str, worker: Worker) -> ASGIApp:
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
        return JSONResponse({"ready": worker.well, "error": worker.failed}, 200 if worker.well else 503)

    async def told(_request: Request) -> JSONResponse:
        return JSONResponse({"name": name, **plain(await asyncio.to_thread(status, worker.live))})

    routes = [Route("/v2/health/live", live), Route("/v2/health/ready", ready), Route("/status", told)]
    return Starlette(lifespan=lifespan, routes=routes)
