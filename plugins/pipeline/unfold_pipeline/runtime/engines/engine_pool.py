"""A pool of engine processes behind a balancer: the states of the simulated fleet, applied to real processes.

An engine takes requests once its process printed its address. One that is no longer wanted takes none, finishes its
streams and ends. A process that dies is replaced; its requests go to other engines where no byte was sent yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import CountArray
from unfold_pipeline.engine.autoscaling.autoscalers import Observation, ScalingRule
from unfold_pipeline.engine.autoscaling.fleet import ACTIVE, DRAINING, OFF, STARTING, STATE_NAMES, Fleet
from unfold_pipeline.engine.autoscaling.token_envelope import TokenLog
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint
from unfold_pipeline.engine.simulation.cluster import EngineLoad
from unfold_pipeline.runtime.engines.engine_process import EngineProcess, StartError, launch_engine
from unfoldkit.api import user_error

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
DRAIN_CHECK_S = 0.05
MAX_CHANGES = 10_000


@dataclass(slots=True)
class EnginePool:
    """Engine processes in slots; the balancer uses those that are active.

    Attributes:
        arguments: The command line of an engine.
        balancer: Distributes requests to the slots.
        timeout_s: How long an engine may take to start.
        key: Of the spec, for errors.
        endpoints: (slots,) where each engine serves; of an empty slot without an address.
        changes: Seconds of the clock and the active engines from then on.
        start_s: The longest start so far.
        replaced: Processes that died and were replaced.
    """

    arguments: tuple[str, ...]
    balancer: EngineBalancer
    timeout_s: float
    key: str
    endpoints: list[Endpoint] = field(init=False)
    fleet: Fleet = field(init=False)
    processes: list[EngineProcess | None] = field(init=False)
    changes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_CHANGES))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    start_s: float = 0.0
    replaced: int = 0
    is_stopped: bool = False

    def __post_init__(self) -> None:
        slots = len(self.balancer.urls)
        self.fleet = Fleet(slots, 0, math.inf)
        self.processes = [None] * slots
        self.endpoints = [Endpoint(url="") for _ in range(slots)]
        self.balancer.active = [False] * slots

    async def start(self, count: int) -> None:
        """Start engines and wait until all of them serve.

        Raises:
            UnfoldError: An engine does not start.
        """
        self.fleet.states[:count] = STARTING
        results = await asyncio.gather(*(self._launch(slot) for slot in range(count)), return_exceptions=True)
        for error in (result for result in results if isinstance(result, BaseException)):
            await self.stop()
            if isinstance(error, StartError | OSError):
                raise user_error(f"an engine did not start: {error}", key=self.key) from error
            raise error
        self.reconcile()

    def scale(self, wanted: int) -> None:
        """Order engines or drain some, as in the simulated fleet."""
        if not self.is_stopped:
            self.fleet.scale(min(wanted, len(self.processes)), time.perf_counter(), self.count_unfinished())
            self.reconcile()

    def count_unfinished(self) -> CountArray:
        """Return the requests that each engine holds."""
        return np.array(self.balancer.requests, dtype=np.int64)

    def reconcile(self) -> None:
        """Launch and end processes as their states require, and let the balancer use the active ones."""
        self.fleet.update(time.perf_counter(), self.count_unfinished())
        for slot, process in enumerate(self.processes):
            state = self.fleet.states[slot]
            if state == OFF and process is not None:
                self.processes[slot] = None
                self._spawn(process.stop())
            self.balancer.active[slot] = bool(state == ACTIVE)
        active = sum(self.balancer.active)
        if not self.changes or self.changes[-1][1] != active:
            self.changes.append((time.perf_counter(), active))

    async def run(self, decide: Callable[[], int], tick_s: float) -> None:
        """Apply a rule until cancelled: scale each tick, launch what was ordered, and end what has drained."""
        next_s = time.perf_counter() + tick_s
        while True:
            await asyncio.sleep(DRAIN_CHECK_S)
            if time.perf_counter() >= next_s:
                next_s += tick_s
                try:
                    self.scale(decide())
                except Exception:
                    # the rule may succeed at the next tick; ending here would freeze the engines
                    logging.getLogger("unfoldkit").exception("the scaling rule failed; the engines stay unchanged")
            self.reconcile()
            for slot in np.flatnonzero(self.fleet.states == STARTING).tolist():
                if self.processes[slot] is None and math.isinf(self.fleet.ready_s[slot]):
                    self.fleet.ready_s[slot] = math.nan  # being launched
                    self._spawn(self._launch_until_it_serves(slot))

    async def stop(self) -> None:
        """Let no engine take a request, and end every process; requests end before."""
        self.is_stopped = True
        self.balancer.active = [False] * len(self.processes)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.fleet.states[:] = OFF
        running = [process for process in self.processes if process is not None]
        self.processes = [None] * len(self.processes)
        await asyncio.gather(*(process.stop() for process in running))

    def list_states(self) -> list[str]:
        """Return the state of each slot in words."""
        return [STATE_NAMES[state] for state in self.fleet.states.tolist()]

    async def _launch(self, slot: int) -> None:
        """Start the process of a slot and let it take requests, unless it is no longer wanted.

        Raises:
            StartError: It does not serve.
        """
        process = await launch_engine(self.arguments, self.timeout_s)
        is_wanted = self.fleet.states[slot] == STARTING and self.processes[slot] is None
        if self.is_stopped or not is_wanted:
            await process.stop()
            return
        self.processes[slot] = process
        self.endpoints[slot] = Endpoint(url=process.url)
        self.start_s = max(self.start_s, process.start_s)
        self.balancer.mark_up(slot)
        self.fleet.ready_s[slot] = time.perf_counter()
        process.watch_end(lambda: self._replace(slot, process))

    async def _launch_until_it_serves(self, slot: int) -> None:
        pause_s = FIRST_RETRY_S
        while self.fleet.states[slot] == STARTING:
            try:
                await self._launch(slot)
            except (StartError, OSError) as error:
                logging.getLogger("unfoldkit").warning("an engine did not start, retried in %g s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            else:
                break
        self.reconcile()

    def _replace(self, slot: int, process: EngineProcess) -> None:
        """Order another process in the slot of one that died; one that drained is not replaced."""
        if process.is_stopping or self.processes[slot] is not process:
            return
        logging.getLogger("unfoldkit").warning("engine %d: %s; it is replaced", slot + 1, process.describe_end())
        self.processes[slot] = None
        is_wanted = self.fleet.states[slot] != DRAINING
        self.fleet.states[slot], self.fleet.ready_s[slot] = STARTING if is_wanted else OFF, math.inf
        self.replaced += is_wanted
        self.reconcile()
        self._spawn(process.stop())

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def build_decision(rule: ScalingRule, pool: EnginePool, log: TokenLog) -> Callable[[], int]:
    """Return a function that applies a rule of the simulation to what a running pool holds."""

    def decide() -> int:
        unfinished = pool.count_unfinished()
        slots = np.minimum(unfinished, 0)
        load = EngineLoad(running=unfinished, waiting=slots, blocks=slots, unfinished=unfinished)
        seen = Observation(now_s=time.perf_counter(), arrived=log.total, load=load, replicas=pool.fleet.count_ordered())
        return rule(seen)

    return decide


def count_engines_over_time(changes: Sequence[tuple[float, int]], start_s: float) -> Callable[[float], int]:
    """Return a function from seconds after a start to the engines that were active then."""
    moments = np.array([moment - start_s for moment, _ in changes])
    counts = [count for _, count in changes]
    return lambda now_s: counts[max(0, int(np.searchsorted(moments, now_s, side="right")) - 1)]
