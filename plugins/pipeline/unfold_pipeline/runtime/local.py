"""The running pipeline: one central queue a stage, one process a replica, on one event loop.

The rules are those of the queueing model: first in, first out, a batch as soon as a replica is idle and the batch is
full or was held back long enough, all that happens at one turn of the loop before anything is started. A replica that
dies, or does not come back, is replaced. The batch that it had, or on which the model's code raised an error, is tried
again row by row, so that one bad row fails no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.runtime.affinity import Cores, keep_to
from unfold_pipeline.runtime.model_loader import Rows, Source
from unfold_pipeline.runtime.replica import READY, Failed, Replica, launch, unread
from unfold_pipeline.runtime.scheduler_priority import prompt
from unfold_pipeline.runtime.stage import Batch, Query, StageRuntime, Work, Worker, clock, status, taken
from unfoldkit.api import UnfoldError, fail

TRIES = 3
# so many processes may a row end that has one for itself: what kills a process may come from outside, once
ENDS = 2
QUIET_S = 60.0
PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
# what a pipe surely takes in though nobody reads
AT_ONCE_BYTES = 1 << 16


Heard = Callable[[Batch], object]
"""Is told of each batch that was answered."""


class Running(Protocol):
    """What every engine promises of a pipeline that runs on it."""

    async def start(self) -> None:
        """Start all replicas and wait until they are ready."""

    async def stop(self) -> None:
        """End all replicas."""

    def submit(self, query: Query) -> None:
        """Take a query in; ``finished`` is called with its answers, or with ``None`` if it has none."""

    def want(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have, and its largest batch (0: as it is)."""

    def batches(self) -> tuple[int, ...]:
        """Return the largest batch of each stage."""

    def serving(self) -> tuple[int, ...]:
        """Return how many replicas of each stage are ready and stay."""

    def replaced(self) -> int:
        """Return how many replicas died and were replaced."""

    def status(self) -> list[dict[str, Any]]:
        """Return what each stage is doing, for people."""

    def listen(self, heard: Heard) -> None:
        """Have somebody told of each batch from now on, where this engine makes the batches."""


class Runtime:
    """Starts, feeds, replaces and ends the replicas of a plan; with ``cores`` each keeps to one of them."""

    __slots__ = ("_asked", "_cores", "_hears", "_loop", "_started", "stages")

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[Source],
        plan: Plan,
        needs: Sequence[float] = (),
        cores: Cores | None = None,
        waits: Sequence[float] = (),
        patience: Sequence[float] = (),
        rooms: Sequence[float] = (),
    ) -> None:
        none, ever = [0.0] * len(names), [math.inf] * len(names)
        given = zip(names, sources, plan, needs or none, waits or none, patience or ever, rooms or none, strict=True)
        self.stages = [
            StageRuntime(name, source, choice.batch, choice.replicas, need, wait=wait, patience=most, room=room)
            for name, source, choice, need, wait, most, room in given
        ]
        self._cores = cores
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._hears: Heard | None = None
        self._started: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start all replicas and wait until they are ready.

        Raises:
            UnfoldError: one cannot load its model, or not in time.
        """
        self._loop = asyncio.get_running_loop()
        prompt()
        self._started = self._loop.create_future()
        for stage in self.stages:
            self._balance(stage)
        try:
            await asyncio.wait_for(asyncio.shield(self._started), max(stage.source.start for stage in self.stages))
        except TimeoutError as error:
            slow = (stage for stage in self.stages if not all(worker.ready for worker in stage.workers))
            late = next(slow, self.stages[0])
            await self.stop()
            raise _late(late) from error
        except (UnfoldError, asyncio.CancelledError):
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all replicas."""
        workers = [worker for stage in self.stages for worker in stage.workers]
        # none of them is heard any more before the first is ended, or its death would be made good
        for worker in workers:
            self._forget(worker)
        for stage in self.stages:
            stage.workers.clear()
            if stage.pause is not None:
                stage.pause.cancel()
        await asyncio.gather(*(asyncio.to_thread(worker.replica.stop) for worker in workers))

    def submit(self, query: Query) -> None:
        """Take a query in; ``finished`` is called with its answers, or with ``None`` if a stage cannot be served."""
        for item in query.routes.entries(query.number):
            self.stages[item[0]].queue.append((query, item, clock()))
        if query.routes.left[query.number] == 0:
            query.finished({})
        self._look()

    def want(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have, and its largest batch (0: as it is)."""
        found = self.stages[stage]
        found.wanted, found.batch = max(1, count), batch or found.batch
        self._balance(found)
        self._look()

    def batches(self) -> tuple[int, ...]:
        """Return the largest batch of each stage."""
        return tuple(stage.batch for stage in self.stages)

    def serving(self) -> tuple[int, ...]:
        """Return how many replicas of each stage are ready and stay."""
        return tuple(sum(item.ready and not item.leaving for item in stage.workers) for stage in self.stages)

    def replaced(self) -> int:
        """Return how many replicas died and were replaced."""
        return sum(stage.replaced for stage in self.stages)

    def status(self) -> list[dict[str, Any]]:
        """Return what each stage is doing."""
        return [status(stage) for stage in self.stages]

    def listen(self, heard: Heard) -> None:
        """Have somebody told of each batch that is answered from now on."""
        self._hears = heard

    def _balance(self, stage: StageRuntime) -> None:
        if stage.pause is not None:
            return
        staying = [worker for worker in stage.workers if not worker.leaving]
        for _ in range(stage.wanted - len(staying)):
            try:
                self._launch(stage)
            except OSError as error:
                self._no_process(stage, error)
                break
        surplus = len(staying) - stage.wanted
        # those on their way go first, then idle ones, then the busy ones when their batch is done
        for worker in sorted(staying, key=lambda item: (item.ready, bool(item.batch)))[: max(0, surplus)]:
            worker.leaving = True
            if not worker.batch:
                self._end(stage, worker)

    def _launch(self, stage: StageRuntime) -> None:
        worker = Worker(launch(stage.source))
        if self._cores is not None:
            worker.core = self._cores.take()
            keep_to(worker.replica.process.pid, worker.core)
        stage.workers.append(worker)
        self._events().add_reader(worker.replica.pipe.fileno(), self._heard, stage, worker)

    def _no_process(self, stage: StageRuntime, error: OSError) -> None:
        """Try again after a pause where the system starts no process now; a start is given up."""
        stage.failures += 1
        why = f"no process can be started: {error.strerror}"
        if self._has_started():
            self._pause(stage, why)
        else:
            self._give_up(stage, why)

    def _heard(self, stage: StageRuntime, worker: Worker) -> None:
        try:
            told = worker.replica.pipe.recv()
        except (EOFError, OSError):
            self._died(stage, worker, "" if self._has_started() else worker.replica.end())
        except Exception as error:  # noqa: BLE001  # reading runs what pickled classes say
            self._told(stage, worker, unread(error))
        else:
            self._told(stage, worker, told)
        self._look()

    def _told(self, stage: StageRuntime, worker: Worker, told: Any) -> None:
        if worker.ready and isinstance(told, Failed):
            self._failed(stage, worker, told)
        elif worker.ready:
            self._answered(stage, worker, *told)
        elif told == READY:
            worker.ready = True
            self._tell_started()
        elif self._has_started():
            self._died(stage, worker, str(told))
        else:
            # another would say the same
            self._give_up(stage, str(told))

    def _answered(
        self, stage: StageRuntime, worker: Worker, outputs: Any, seconds: float, worked: float, waited: float
    ) -> None:
        batch = worker.hand_over()
        stage.seconds, stage.worked = stage.seconds + seconds, stage.worked + worked
        stage.served += len(batch)
        if self._hears is not None:
            self._hears(Batch(stage.name, len(batch), worker.since, clock() - worker.since, seconds, waited))
        stage.failures = 0
        for (query, item, _), output in zip(batch, outputs, strict=True):
            query.answers[stage.name] = np.asarray(output).tolist()
            for after in query.routes.after(item):
                self.stages[after[0]].queue.append((query, after, clock()))
            if query.routes.finished(item):
                query.answered()
        if worker.leaving:
            self._end(stage, worker)

    def _failed(self, stage: StageRuntime, worker: Worker, told: Failed) -> None:
        """Try the rows of a batch on which the model raised an error one by one; one that was alone has failed."""
        batch = worker.hand_over()
        _log(stage, f"it failed on a batch of {len(batch)}", told)
        self._again(stage, batch, told.line, ENDS)
        if worker.leaving:
            self._end(stage, worker)

    def _again(self, stage: StageRuntime, batch: list[Work], why: str, weight: int) -> None:
        """Have a batch on which the model failed tried again row by row; a row that fails alone fails for good."""
        stage.problem = why
        query = batch[0][0]
        query.ended += weight if len(batch) == 1 else 0
        if query.ended < ENDS:
            stage.alone.extend(batch)
            return
        stage.failed += 1
        query.fail(stage.name)

    def _has_started(self) -> bool:
        return self._started is not None and self._started.done()

    def _died(self, stage: StageRuntime, worker: Worker, why: str = "", weight: int = 1) -> None:
        """Start another in its place, and have what it was serving served again."""
        batch = worker.hand_over()
        told = why or worker.replica.end(0.05)
        self._end(stage, worker)
        stage.replaced += 1
        if batch:
            _log(stage, f"a replica was lost with a batch of {len(batch)}", Failed(told, ""))
            self._again(stage, batch, told, weight)
        else:
            stage.failures += 1
        if stage.failures > TRIES:
            self._give_up(stage, told)
            self._pause(stage, told)
        self._balance(stage)

    def _hung(self, stage: StageRuntime, worker: Worker) -> None:
        """End a replica that does not come back."""
        worker.replica.process.kill()
        self._died(stage, worker, f"it did not come back within {stage.patience:.0f} s", ENDS)
        self._look()

    def _pause(self, stage: StageRuntime, why: str) -> None:
        """Start no replica for a while, the longer the more have ended."""
        seconds = min(PAUSE_S * 2.0 ** min(stage.failures - TRIES - 1, 9), LONGEST_PAUSE_S)
        if self._has_started() and stage.pause is None:
            _log(
                stage, f"its replicas end one after the other; the next is started in {seconds:.0f} s", Failed(why, "")
            )
            stage.pause = self._events().call_later(seconds, self._rested, stage)

    def _rested(self, stage: StageRuntime) -> None:
        stage.pause = None
        self._balance(stage)

    def _give_up(self, stage: StageRuntime, why: str) -> None:
        if self._started is not None and not self._started.done():
            message, key = f"replicas of {stage.name} do not start: {why}", f"stages.{stage.name}.model"
            self._started.set_exception(fail(message, key=key, hint="unfold profile SPEC tries the model alone"))
        for query, *_ in stage.empty():
            query.finished(None)

    def _end(self, stage: StageRuntime, worker: Worker) -> None:
        self._forget(worker)
        stage.workers.remove(worker)
        if self._cores is not None and worker.core is not None:
            self._cores.give_back(worker.core)
        self._events().run_in_executor(None, worker.replica.stop)

    def _forget(self, worker: Worker) -> None:
        worker.hand_over()
        if not worker.replica.pipe.closed:
            self._events().remove_reader(worker.replica.pipe.fileno())

    def _tell_started(self) -> None:
        everyone = all(worker.ready for stage in self.stages for worker in stage.workers)
        if self._started is not None and not self._started.done() and everyone:
            self._started.set_result(None)

    def _look(self) -> None:
        if not self._asked:
            self._asked = True
            self._events().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._asked = False
        for stage in self.stages:
            if stage.failures > TRIES and not stage.workers:
                self._give_up(stage, "")
            for worker in list(stage.workers):
                if stage.due() > 0.0:
                    break
                if worker.ready and not worker.batch and not worker.leaving:
                    self._give(stage, worker)
            self._set_alarm(stage)

    def _set_alarm(self, stage: StageRuntime) -> None:
        """Look again when the oldest query has waited as long as a batch that is not full is held back."""
        seconds = stage.due()
        if stage.alarm is None and 0.0 < seconds < math.inf:
            stage.alarm = self._events().call_later(seconds, self._woken, stage)

    def _woken(self, stage: StageRuntime) -> None:
        stage.alarm = None
        self._look()

    def _give(self, stage: StageRuntime, worker: Worker) -> None:
        worker.batch = taken(stage)
        if not worker.batch:
            return
        stage.batches, worker.since = stage.batches + 1, clock()
        if stage.patience < math.inf:
            worker.late = self._events().call_later(stage.patience, self._hung, stage, worker)
        rows = np.stack([query.row for query, *_ in worker.batch])
        if rows.nbytes > AT_ONCE_BYTES:
            # a replica that reads nothing would hold up the loop, and with it the alarm that ends the replica
            self._events().run_in_executor(None, _send, worker.replica, rows)
            return
        try:
            worker.replica.pipe.send(rows)
        except OSError:
            self._died(stage, worker)

    def _events(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("start() comes first")
        return self._loop


def _send(replica: Replica, rows: Rows) -> None:
    """Send a batch from a thread; of a replica that dies meanwhile the end of its pipe is heard, not this."""
    # what was closed while it was written to has no handle any more, which is a TypeError
    with contextlib.suppress(OSError, TypeError):
        replica.pipe.send(rows)


def _late(stage: StageRuntime) -> UnfoldError:
    message, key = f"replicas of {stage.name} did not load their model in time", f"stages.{stage.name}.model"
    return fail(message, key=key, hint="start: 10 min gives them longer; fewer replicas load sooner")


def _log(stage: StageRuntime, what: str, told: Failed) -> None:
    """Say once a minute on what a model failed: clients can send bad rows as fast as they like."""
    if clock() - stage.logged < QUIET_S:
        return
    stage.logged = clock()
    message = "stages.%s.model: %s: %s (next said in %.0f s at the earliest)%s"
    trace = f"\n{told.trace}" if told.trace else ""
    logging.getLogger("unfoldkit").error(message, stage.name, what, told.line, QUIET_S, trace)
