"""Runs a control loop in a thread and serves its health and status over HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core import kernel
from unfold_placement.core.policy import loading_error
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.shadow_agreement import Agreement
from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.core.watchdog import end_forked_processes, keep_recursion_limit
from unfold_placement.live.control_loop import ControlLoop, run_until_stopped
from unfold_placement.live.status import agreement_to_json, read_status, status_to_json
from unfoldkit.api import UnfoldError
from unfoldkit.serving.service import ASGIApp

STOP_TIMEOUT_S = 10.0
RETRY_S = 1.0
LOADING = "the matcher is being loaded; the first start on a machine compiles it, for up to two minutes"


@dataclass(slots=True)
class ControllerThread:
    """The thread of a control loop.

    Attributes:
        loop: The control loop.
        submitted_tasks: Tasks that this process submits itself, at their arrival times.
        stop_requested: Set when the loop must stop.
        thread: The thread, once started.
        last_error: Why a task was not submitted; empty for none.
        on_stop: Called when the service stops.
    """

    loop: ControlLoop
    submitted_tasks: Sequence[Task] = ()
    stop_requested: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    last_error: str = ""
    on_stop: Callable[[], object] | None = None

    def start(self) -> None:
        """Start the control loop, and submit this process's tasks."""
        self.thread = threading.Thread(target=self._run_loop, daemon=True)
        self.thread.start()
        if self.submitted_tasks:
            threading.Thread(target=self._submit_tasks, daemon=True).start()

    def stop(self) -> None:
        """Stop the control loop and give up leadership; running tasks continue."""
        self.stop_requested.set()
        if self.thread is not None:
            self.thread.join(STOP_TIMEOUT_S)
        if self.on_stop is not None:
            self.on_stop()

    @property
    def is_healthy(self) -> bool:
        """Whether the loop runs and has recovered from its last error."""
        if self.thread is None or not self.thread.is_alive():
            return False
        if self.loop.find_stall():
            return False
        return not (self.last_error or self.loop.last_error) or self.loop.actuator is not None

    def _run_loop(self) -> None:
        self.loop.last_error = LOADING
        load_matcher()
        self.loop.last_error = ""
        with end_forked_processes(), keep_recursion_limit():
            self._decide()

    def _decide(self) -> None:
        # an unreachable cluster may become reachable again; until then the service is not ready
        while not self.stop_requested.is_set():
            try:
                run_until_stopped(self.loop, self.stop_requested.is_set, self.stop_requested.wait)
            except BaseException as error:  # noqa: BLE001 - a thread that ends would decide nothing for ever
                if not isinstance(error, Exception):
                    # in a thread only a policy raises KeyboardInterrupt
                    self.loop.last_error = str(UnfoldError(loading_error(error)))
                # the loop clears its error as it decides again
                self.loop.last_error = self.loop.last_error or str(error)
                self.stop_requested.wait(RETRY_S)

    def _submit_tasks(self) -> None:
        began_s = time.monotonic()
        for task in sorted(self.submitted_tasks, key=lambda task: task.arrival):
            if self.stop_requested.wait(max(0.0, began_s + task.arrival - time.monotonic())):
                return
            try:
                self.loop.backend.submit(task)
            except Exception as error:  # noqa: BLE001 - the others must be submitted anyway
                self.last_error = f"task {task.name} was not submitted: {error}"
                logging.getLogger("unfoldkit").warning("%s", self.last_error)


def load_matcher() -> None:
    """Load the compiled matcher, which takes seconds: a process that did so as it took over would lose its lease.

    So would one that compiled a function at the first gang. A first start compiles all, for a minute on two cores.
    """
    kernel.compile_live_functions(build_resource_table([Node("node", {"cpu": MILLI})]).state)


def build_application(name: str, thread: ControllerThread, agreement: Agreement | None = None) -> ASGIApp:
    """Build the HTTP application with health and status; its lifespan runs the control loop."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.stop)

    async def get_live(_request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def get_ready(_request: Request) -> JSONResponse:
        is_ready = thread.is_healthy
        error = thread.loop.find_stall() or thread.loop.last_error or thread.last_error
        return JSONResponse({"ready": is_ready, "error": error}, 200 if is_ready else 503)

    async def get_status(_request: Request) -> JSONResponse:
        status = await asyncio.to_thread(read_status, thread.loop)
        shadow = {"shadow": agreement_to_json(agreement)} if agreement is not None else {}
        return JSONResponse({"name": name, **status_to_json(status), **shadow})

    routes = [
        Route("/v2/health/live", get_live),
        Route("/v2/health/ready", get_ready),
        Route("/status", get_status),
    ]
    return Starlette(lifespan=lifespan, routes=routes)
