"""The running pipeline on this machine: a central queue per stage, a process per replica, on one event loop.

The rules are those of the queueing model: first in, first out; a batch starts as soon as a replica is idle and the
batch is full or was delayed long enough; all events of one turn of the loop precede the next batches. A replica that
dies or hangs is replaced. Its batch, or one on which the model raised an error, is tried again row by row, so that a
bad row fails no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from unfold_pipeline._types import Tensors
from unfold_pipeline.estimator.admission import BatchSpeed, StageLoad
from unfold_pipeline.flow_syntax import ConditionError
from unfold_pipeline.problem.routing import Item
from unfold_pipeline.runtime.affinity import CoreAllocator, pin_process, shorten_time_slice
from unfold_pipeline.runtime.models.data_flow import (
    DataFlow,
    DataFlowError,
    count_bytes,
    format_output,
    stack_inputs,
    take_row,
)
from unfold_pipeline.runtime.replica import (
    READY,
    BatchAnswer,
    BatchFailure,
    Replica,
    describe_unreadable_outputs,
    launch_replica,
)
from unfold_pipeline.runtime.stage import (
    CompletedBatch,
    PlannedStage,
    Query,
    QueuedItem,
    StageRuntime,
    Worker,
    build_start_error,
    read_clock,
)
from unfoldkit.api import UnfoldError, user_error

MAX_CONSECUTIVE_FAILURES = 3
# a row may end so many processes that serve nothing else: one end may have an external cause
MAX_PROCESS_FAILURES = 2
LOG_INTERVAL_S = 60.0
# messages may hold what a client sent, so that there is no end of kinds
MAX_LOGGED_KINDS = 16
RESTART_DELAY_S = 1.0
MAX_RESTART_DELAY_S = 30.0
# a pipe buffers at least this much without a reader
MAX_BUFFERED_BYTES = 1 << 16


BatchListener = Callable[[CompletedBatch], object]
"""Is called with each batch that was answered."""


class PipelineRuntime(Protocol):
    """What every engine offers for a pipeline that runs on it."""

    async def start(self) -> None:
        """Start all replicas and wait until they are ready."""

    async def stop(self) -> None:
        """End all replicas."""

    def submit(self, query: Query) -> None:
        """Accept a query; ``on_finished`` is called with its answers, or with ``None`` if it has none."""

    def set_target(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have, and its maximum batch size (0: unchanged)."""

    def batch_sizes(self) -> tuple[int, ...]:
        """Return the maximum batch size of each stage."""

    def serving_replicas(self) -> tuple[int, ...]:
        """Return how many replicas of each stage are ready and stay."""

    def count_replaced(self) -> int:
        """Return how many replicas died and were replaced."""

    def list_status(self) -> list[dict[str, Any]]:
        """Return the state of each stage."""

    def subscribe(self, listener: BatchListener) -> None:
        """Report each batch from now on, if this engine forms the batches."""

    def measure_loads(self) -> list[StageLoad]:
        """Return what waits at each stage and what serves it."""

    def activation_times(self) -> tuple[float, ...]:
        """Return the measured seconds from ordering a replica of each stage until it serves; 0 if unknown."""


class LocalRuntime:
    """Starts, feeds, replaces and ends the replicas of a plan; with ``cores`` each replica is pinned to one of them."""

    __slots__ = ("_cores", "_flow", "_is_dispatch_scheduled", "_listener", "_loop", "_started", "stages")

    def __init__(
        self, stages: Sequence[PlannedStage], *, cores: CoreAllocator | None = None, flow: DataFlow | None = None
    ) -> None:
        self.stages = [
            StageRuntime(
                name=stage.name,
                source=stage.source,
                max_batch=stage.config.batch,
                target_replicas=stage.config.replicas,
                min_remaining_s=stage.min_remaining_s,
                max_wait_s=stage.max_wait_s,
                hang_timeout_s=stage.hang_timeout_s,
                max_slack_s=stage.max_slack_s,
                speed=BatchSpeed(stage.latency_s),
            )
            for stage in stages
        ]
        self._cores = cores
        self._flow = flow or DataFlow((None,) * len(stages), (None,) * len(stages))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_dispatch_scheduled = False
        self._listener: BatchListener | None = None
        self._started: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start all replicas and wait until they are ready.

        Raises:
            UnfoldError: A replica cannot load its model, or not in time.
        """
        self._loop = asyncio.get_running_loop()
        shorten_time_slice()
        self._started = self._loop.create_future()
        for stage in self.stages:
            self._adjust_replicas(stage)
        try:
            timeout_s = max(stage.source.start_s for stage in self.stages)
            await asyncio.wait_for(asyncio.shield(self._started), timeout_s)
        except TimeoutError as error:
            unready = (stage for stage in self.stages if not all(worker.is_ready for worker in stage.workers))
            slow_stage = next(unready, self.stages[0])
            await self.stop()
            raise _report_slow_start(slow_stage) from error
        except (UnfoldError, asyncio.CancelledError):
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all replicas."""
        workers = [worker for stage in self.stages for worker in stage.workers]
        # stop reading from all replicas before ending the first, or its death would start another one
        for worker in workers:
            self._disconnect(worker)
        for stage in self.stages:
            stage.workers.clear()
            if stage.restart_timer is not None:
                stage.restart_timer.cancel()
        await asyncio.gather(*(asyncio.to_thread(worker.replica.stop) for worker in workers))

    def submit(self, query: Query) -> None:
        """Accept a query; ``on_finished`` is called with its answers, or with ``None`` if a stage cannot be served."""
        for item in query.routes.find_entries(query.number):
            self.stages[item[0]].queue.append(QueuedItem(query, item, read_clock()))
        if query.routes.open_items[query.number] == 0:
            query.on_finished({})
        self._schedule_dispatch()

    def set_target(self, stage: int, count: int, batch: int = 0) -> None:
        """Set how many replicas a stage should have, and its maximum batch size (0: unchanged)."""
        runtime = self.stages[stage]
        runtime.target_replicas, runtime.max_batch = max(1, count), batch or runtime.max_batch
        self._adjust_replicas(runtime)
        self._schedule_dispatch()

    def batch_sizes(self) -> tuple[int, ...]:
        """Return the maximum batch size of each stage."""
        return tuple(stage.max_batch for stage in self.stages)

    def serving_replicas(self) -> tuple[int, ...]:
        """Return how many replicas of each stage are ready and stay."""
        return tuple(stage.ready_replicas for stage in self.stages)

    def count_replaced(self) -> int:
        """Return how many replicas died and were replaced."""
        return sum(stage.replaced for stage in self.stages)

    def list_status(self) -> list[dict[str, Any]]:
        """Return the state of each stage."""
        return [stage.build_status() for stage in self.stages]

    def subscribe(self, listener: BatchListener) -> None:
        """Call ``listener`` with each batch that is answered from now on."""
        self._listener = listener

    def measure_loads(self) -> list[StageLoad]:
        """Return what waits at each stage and what serves it."""
        return [stage.measure_load() for stage in self.stages]

    def activation_times(self) -> tuple[float, ...]:
        """Return the measured seconds from ordering a replica of each stage until it serves; 0 if unknown."""
        return tuple(stage.activation_s for stage in self.stages)

    def _adjust_replicas(self, stage: StageRuntime) -> None:
        if stage.restart_timer is not None:
            return
        staying = [worker for worker in stage.workers if not worker.is_leaving]
        for _ in range(stage.target_replicas - len(staying)):
            try:
                self._launch_worker(stage)
            except OSError as error:
                self._handle_launch_error(stage, error)
                break
        surplus = len(staying) - stage.target_replicas
        # remove starting replicas first, then idle ones, then busy ones when their batch is done
        for worker in sorted(staying, key=lambda item: (item.is_ready, bool(item.batch)))[: max(0, surplus)]:
            worker.is_leaving = True
            if not worker.batch:
                self._remove_worker(stage, worker)

    def _launch_worker(self, stage: StageRuntime) -> None:
        worker = Worker(launch_replica(stage.source))
        if self._cores is not None:
            worker.core = self._cores.take_core()
            pin_process(worker.replica.process.pid, worker.core)
        stage.workers.append(worker)
        self._event_loop().add_reader(worker.replica.pipe.fileno(), self._read_pipe, stage, worker)
        # uvloop makes it non-blocking: a message larger than its buffer would be cut off
        os.set_blocking(worker.replica.pipe.fileno(), True)

    def _handle_launch_error(self, stage: StageRuntime, error: OSError) -> None:
        """Try again after a delay if the system cannot start a process now; give up while the pipeline starts."""
        stage.consecutive_failures += 1
        reason = f"no process can be started: {error.strerror}"
        if self._has_started():
            self._delay_restart(stage, reason)
        else:
            self._give_up(stage, reason)

    def _read_pipe(self, stage: StageRuntime, worker: Worker) -> None:
        try:
            message = worker.replica.pipe.recv()
        except (EOFError, OSError):
            self._handle_death(stage, worker, "" if self._has_started() else worker.replica.describe_end())
        except Exception as error:  # noqa: BLE001  # unpickling runs code of the pickled classes
            self._handle_message(stage, worker, describe_unreadable_outputs(error))
        else:
            self._handle_message(stage, worker, message)
        self._schedule_dispatch()

    def _handle_message(self, stage: StageRuntime, worker: Worker, message: Any) -> None:
        if worker.is_ready and isinstance(message, BatchFailure):
            self._handle_failure(stage, worker, message)
        elif worker.is_ready:
            self._handle_answer(stage, worker, message)
        elif message == READY:
            worker.is_ready, stage.start_error = True, ""
            stage.activation.observe(read_clock() - worker.launched_s)
            self._check_started()
        elif self._has_started():
            self._handle_death(stage, worker, str(message))
        else:
            # another replica would fail in the same way
            self._give_up(stage, str(message))

    def _handle_answer(self, stage: StageRuntime, worker: Worker, answer: BatchAnswer) -> None:
        batch = worker.release_batch()
        stage.model_s += answer.model_s
        stage.cpu_s += answer.cpu_s
        stage.served += len(batch)
        if batch:
            stage.speed.observe(len(batch), read_clock() - worker.batch_start_s)
        if self._listener is not None:
            self._listener(
                CompletedBatch(
                    stage=stage.name,
                    rows=len(batch),
                    start_s=worker.batch_start_s,
                    total_s=read_clock() - worker.batch_start_s,
                    model_s=answer.model_s,
                    waited_s=answer.waited_s,
                    cpu_s=answer.cpu_s,
                )
            )
        # a replica from before the failures does not show that another one can start
        if worker.launched_s > stage.failed_s:
            stage.consecutive_failures = 0
        for index, (query, item, _) in enumerate(batch):
            self._pass_on(stage, query, item, take_row(answer.outputs, index))
        if worker.is_leaving:
            self._remove_worker(stage, worker)

    def _pass_on(self, stage: StageRuntime, query: Query, item: Item, output: Tensors) -> None:
        """Queue the items that the output of a stage makes ready; complete the query with its last item."""
        query.answers[stage.name] = format_output(output)
        try:
            ready = self._flow.pass_on(query.routes, item, output, query.received)
        except (ConditionError, DataFlowError) as error:
            self._fail_query(stage, query, error)
            return
        for child in ready:
            self.stages[child[0]].queue.append(QueuedItem(query, child, read_clock()))
        if query.routes.complete_item(item):
            query.complete()

    def _fail_query(self, stage: StageRuntime, query: Query, error: Exception) -> None:
        """End a query with an output that nothing downstream can read."""
        stage.failed, stage.last_error = stage.failed + 1, str(error)
        _log_failure(stage, "its data cannot be passed on", BatchFailure(str(error)))
        query.fail_at(stage.name)

    def _handle_failure(self, stage: StageRuntime, worker: Worker, failure: BatchFailure) -> None:
        """Try the rows of a batch on which the model raised an error one by one; a row that was alone has failed."""
        batch = worker.release_batch()
        if failure.refused_input and self._flow.includes_request(batch[0].item[0]):
            batch[0].query.refused_input = failure.refused_input if len(batch) == 1 else ""
        else:
            _log_failure(stage, f"it failed on a batch of {len(batch)}", failure)
        self._retry_rows(stage, batch, failure.message, MAX_PROCESS_FAILURES)
        if worker.is_leaving:
            self._remove_worker(stage, worker)

    def _retry_rows(self, stage: StageRuntime, batch: list[QueuedItem], reason: str, weight: int) -> None:
        """Retry the rows of a failed batch one by one; a row that fails alone fails for good.

        ``weight`` is how much the failure of a single row counts towards ``MAX_PROCESS_FAILURES``.
        """
        stage.last_error = reason
        query = batch[0].query
        query.process_failures += weight if len(batch) == 1 else 0
        if query.process_failures < MAX_PROCESS_FAILURES:
            stage.retry_queue.extend(batch)
            return
        stage.failed += 1
        query.fail_at(stage.name)

    def _has_started(self) -> bool:
        return self._started is not None and self._started.done()

    def _handle_death(self, stage: StageRuntime, worker: Worker, reason: str = "", weight: int = 1) -> None:
        """Start another replica, and retry the batch of the dead one."""
        batch = worker.release_batch()
        reason = reason or worker.replica.describe_end(0.05)
        self._remove_worker(stage, worker)
        stage.replaced += 1
        for queued in batch if stage.ready_replicas else (*batch, *stage.queue, *stage.retry_queue):
            queued.query.has_lost_replica = True
        if batch:
            _log_failure(stage, f"a replica was lost with a batch of {len(batch)}", BatchFailure(reason))
            self._retry_rows(stage, batch, reason, weight)
        else:
            stage.consecutive_failures += 1
            stage.failed_s = read_clock()
        if stage.consecutive_failures > MAX_CONSECUTIVE_FAILURES:
            self._give_up(stage, reason)
            self._delay_restart(stage, reason)
        self._adjust_replicas(stage)

    def _end_hung_worker(self, stage: StageRuntime, worker: Worker) -> None:
        worker.replica.process.kill()
        reason = f"it did not answer within {stage.hang_timeout_s:.0f} s"
        self._handle_death(stage, worker, reason, MAX_PROCESS_FAILURES)
        self._schedule_dispatch()

    def _delay_restart(self, stage: StageRuntime, reason: str) -> None:
        """Start no replica for a while, the longer the more have ended."""
        stage.start_error = reason
        exponent = min(stage.consecutive_failures - MAX_CONSECUTIVE_FAILURES - 1, 9)
        seconds = min(RESTART_DELAY_S * 2.0**exponent, MAX_RESTART_DELAY_S)
        if self._has_started() and stage.restart_timer is None:
            message = f"its replicas end one after the other; the next one starts in {seconds:.0f} s"
            _log_failure(stage, message, BatchFailure(reason))
            stage.restart_timer = self._event_loop().call_later(seconds, self._restart, stage)

    def _restart(self, stage: StageRuntime) -> None:
        stage.restart_timer = None
        self._adjust_replicas(stage)

    def _give_up(self, stage: StageRuntime, reason: str) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(build_start_error(stage.name, reason))
        for queued in () if stage.ready_replicas else stage.drain_queues():
            queued.query.on_finished(None)

    def _remove_worker(self, stage: StageRuntime, worker: Worker) -> None:
        self._disconnect(worker)
        stage.workers.remove(worker)
        if self._cores is not None and worker.core is not None:
            self._cores.release_core(worker.core)
        self._event_loop().run_in_executor(None, worker.replica.stop)

    def _disconnect(self, worker: Worker) -> None:
        worker.release_batch()
        if not worker.replica.pipe.closed:
            self._event_loop().remove_reader(worker.replica.pipe.fileno())

    def _check_started(self) -> None:
        is_ready = all(worker.is_ready for stage in self.stages for worker in stage.workers)
        if self._started is not None and not self._started.done() and is_ready:
            self._started.set_result(None)
            for stage in self.stages:
                stage.activation.expect_single_starts()

    def _schedule_dispatch(self) -> None:
        if not self._is_dispatch_scheduled:
            self._is_dispatch_scheduled = True
            self._event_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_dispatch_scheduled = False
        for stage in self.stages:
            if stage.consecutive_failures > MAX_CONSECUTIVE_FAILURES and not stage.workers:
                self._give_up(stage, "")
            # a batch that is due neither now nor by the timer would never start, so one reading decides on both
            delay_s = stage.next_batch_delay()
            for worker in list(stage.workers):
                if delay_s > 0.0:
                    break
                if worker.is_ready and not worker.batch and not worker.is_leaving:
                    self._assign_batch(stage, worker)
                    delay_s = stage.next_batch_delay()
            self._set_wait_timer(stage, delay_s)

    def _set_wait_timer(self, stage: StageRuntime, seconds: float) -> None:
        """Dispatch again when the oldest query has waited as long as a batch that is not full may be delayed."""
        if stage.wait_timer is None and 0.0 < seconds < math.inf:
            stage.wait_timer = self._event_loop().call_later(seconds, self._end_wait, stage)

    def _end_wait(self, stage: StageRuntime) -> None:
        stage.wait_timer = None
        self._schedule_dispatch()

    def _assign_batch(self, stage: StageRuntime, worker: Worker) -> None:
        worker.batch = stage.take_batch()
        inputs = [(queued, self._build_input(stage, queued)) for queued in worker.batch]
        worker.batch = [queued for queued, tensors in inputs if tensors is not None]
        if not worker.batch:
            return
        try:
            rows = stack_inputs([tensors for _, tensors in inputs if tensors is not None])
        except ValueError as error:
            # tensors of different shapes form no batch
            _log_failure(stage, "its queries are served one by one", BatchFailure(str(error)))
            stage.retry_queue.extend(worker.release_batch())
            self._assign_batch(stage, worker)
            return
        stage.batches, worker.batch_start_s = stage.batches + 1, read_clock()
        if stage.hang_timeout_s < math.inf:
            worker.hang_timer = self._event_loop().call_later(
                stage.hang_timeout_s, self._end_hung_worker, stage, worker
            )
        if count_bytes(rows) > MAX_BUFFERED_BYTES:
            # a replica that does not read would block the loop, and with it the timer that ends the replica
            self._event_loop().run_in_executor(None, _send_rows, worker.replica, rows)
            return
        try:
            worker.replica.pipe.send(rows)
        except OSError:
            self._handle_death(stage, worker)

    def _build_input(self, stage: StageRuntime, queued: QueuedItem) -> Tensors | None:
        """Return what the model reads for an item; ``None`` if the query ends because nothing can be built."""
        query, (index, _) = queued.query, queued.item
        try:
            return self._flow.build_input(index, query.row, query.received.get(queued.item, {}))
        except (ConditionError, DataFlowError) as error:
            self._fail_query(stage, query, error)
            return None

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("start() comes first")
        return self._loop


def _send_rows(replica: Replica, rows: Tensors) -> None:
    """Send a batch from a thread; if the replica dies meanwhile, the closed pipe reports it."""
    # a pipe that is closed during the write has no handle any more, which raises TypeError
    with contextlib.suppress(OSError, TypeError):
        replica.pipe.send(rows)


def _report_slow_start(stage: StageRuntime) -> UnfoldError:
    message, key = f"replicas of {stage.name} did not load their model in time", f"stages.{stage.name}.model"
    return user_error(message, key=key, hint="start: 10 min allows more time; fewer replicas load sooner")


def _log_failure(stage: StageRuntime, event: str, failure: BatchFailure) -> None:
    """Log a failure of a model, each kind at most once a minute: clients can send bad rows at any rate."""
    kind = f"{event.rstrip('0123456789')}: {failure.message.partition(':')[0]}"
    if kind not in stage.logged_s and len(stage.logged_s) >= MAX_LOGGED_KINDS:
        kind = ""
    if read_clock() - stage.logged_s.get(kind, -math.inf) < LOG_INTERVAL_S:
        return
    stage.logged_s[kind] = read_clock()
    message = "stages.%s.model: %s: %s (no further report of this kind within %.0f s)%s"
    trace = f"\n{failure.trace}" if failure.trace else ""
    logging.getLogger("unfoldkit").error(message, stage.name, event, failure.message, LOG_INTERVAL_S, trace)
