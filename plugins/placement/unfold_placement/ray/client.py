"""The client of a served policy on Ray: submits functions, and runs each where and when the coordinator offers."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.types import Task
from unfold_placement.live.backend import Record
from unfold_placement.ray.connection import CoordinatorDiedError, CoordinatorTimeoutError, call_coordinator
from unfold_placement.ray.placement_groups import task_options
from unfold_placement.ray.sessions import Ended, Offer
from unfoldkit.api import UnfoldError, user_error

POLL_S = 2.0
RETRY_S = 0.5
STOP_TIMEOUT_S = 10.0
MAX_UNREACHABLE_S = 300.0
"""How long the coordinator may be out of reach before unfinished tasks fail; Ray restarts one that died."""


@dataclass(slots=True)
class Job:
    """A function call that waits or runs, and the future of its result.

    Attributes:
        task: The task.
        function: The remote function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        result: The future.
        attempt: Number of the attempt that runs.
    """

    task: Task
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Future[Any]
    attempt: int = 0


@dataclass(slots=True)
class Client:
    """A process's connection to one coordinator: one thread reports tasks and ends, another receives offers.

    Attributes:
        coordinator: The actor.
        name: Unique name of this client.
        jobs: Unfinished jobs by task.
        outbox: New tasks and ended attempts to report; None wakes the thread up.
        threads: The two threads.
        stopped: Set when the client closes.
        deaths: How often the coordinator was found dead.
        last_answer_s: When it answered last, by the monotonic clock.
        lock: Guards ``deaths``.
    """

    coordinator: Any
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: dict[str, Job] = field(default_factory=dict)
    outbox: queue.SimpleQueue[Task | Ended | None] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    deaths: int = 0
    last_answer_s: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, task: Task, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a function call; cancelling the future withdraws it, waiting or running.

        Raises:
            UnfoldError: This client has a task of that name, or is closed.
        """
        if self.stopped.is_set():
            raise user_error(f"task {task.name} cannot be submitted: the client is closed", hint="connect again")
        if task.name in self.jobs:
            raise user_error(f"task {task.name} already exists", hint="task names must be unique")
        job = self.jobs[task.name] = Job(task, _as_remote(function), args, kwargs, Future())
        job.result.add_done_callback(lambda future: self._withdraw(task.name) if future.cancelled() else None)
        self.outbox.put(task)
        return job.result

    def sleep(self, task: Task) -> None:
        """Submit a task that sleeps for its run time, and wait until it is enqueued."""
        self.enqueue(task, sleep_function(), task.run)

    def enqueue(self, task: Task, function: Any, *args: Any) -> None:
        """Submit a function call, and wait until it is enqueued.

        Raises:
            UnfoldError: A task of that name exists.
        """
        job = self.jobs[task.name] = Job(task, _as_remote(function), args, {}, Future())
        if failures := call_coordinator(self.coordinator, "report", self.name, [task], []):
            del self.jobs[task.name]
            job.result.cancel()
            raise user_error(failures[task.name])

    def start(self) -> None:
        """Start the two daemon threads that send reports to the coordinator and receive its offers."""
        for target in (self._send_reports, self._receive_offers):
            self.threads.append(threading.Thread(target=self._run_to_end, args=(target,), daemon=True))
            self.threads[-1].start()

    def close(self) -> None:
        """Stop the threads, and fail unfinished tasks; the coordinator withdraws them some seconds later."""
        import ray

        self.stopped.set()
        self.outbox.put(None)
        if ray.is_initialized():
            self.coordinator.leave.remote(self.name)
        for thread in self.threads:
            # a thread may wait for a call that is never answered; it is a daemon
            thread.join(STOP_TIMEOUT_S)
        self._fail_all("its client was closed")

    def _run_to_end(self, target: Callable[[], None]) -> None:
        """Run a thread's work; an unexpected error fails all jobs, since no thread would complete them."""
        try:
            target()
        except Exception as error:
            logging.getLogger("unfoldkit").exception("the client of a policy on Ray failed")
            self.stopped.set()
            self._fail_all(f"its client failed: {error!r}")

    def _send_reports(self) -> None:
        while not self.stopped.is_set():
            messages = [self.outbox.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    messages.append(self.outbox.get_nowait())
            # after two deaths of the coordinator a task may be in the outbox twice
            tasks = list({message.name: message for message in messages if isinstance(message, Task)}.values())
            ended = [message for message in messages if isinstance(message, Ended)]
            for name, reason in (self._call_with_retry("report", self.name, tasks, ended) or {}).items():
                self._fail_job(name, user_error(reason))

    def _receive_offers(self) -> None:
        received = 0
        while not self.stopped.is_set():
            for number, message in self._call_with_retry("wait_for_offers", self.name, received, POLL_S) or ():
                if number <= received:
                    continue
                received = number
                if isinstance(message, Offer):
                    self._accept_offer(message)
                else:
                    self._close_job(message)

    def _accept_offer(self, offer: Offer) -> None:
        """Run an offer; where Ray refuses, its future fails, and the place is given back."""
        try:
            self._run_offer(offer)
        except Exception as error:  # noqa: BLE001 - this thread receives all further offers
            self._fail_job(offer.task, user_error(f"task {offer.task} could not be started: {error}"))
            self.outbox.put(Ended(offer.task, offer.attempt, type(error).__name__))

    def _fail_job(self, name: str, error: Exception) -> None:
        """Fail a job, if it was not cancelled meanwhile."""
        job = self.jobs.pop(name, None)
        if job is not None:
            with contextlib.suppress(InvalidStateError):
                job.result.set_exception(error)

    def _fail_all(self, reason: str) -> None:
        """Fail all unfinished jobs: nothing would ever complete their futures."""
        for name in list(self.jobs):
            self._fail_job(name, user_error(f"task {name} was not completed: {reason}"))

    def _check_reach(self, error: UnfoldError) -> None:
        """Fail the jobs if the coordinator has been out of reach for too long; it is called again anyway."""
        elapsed_s = time.monotonic() - self.last_answer_s
        if elapsed_s > MAX_UNREACHABLE_S:
            self._fail_all(f"{error.diagnostics[0].message}, for {elapsed_s:.0f} s")

    def _call(self, method: str, *args: Any) -> Any:
        answer = call_coordinator(self.coordinator, method, *args)
        self.last_answer_s = time.monotonic()
        return answer

    def _call_with_retry(self, method: str, *args: Any) -> Any:
        import ray

        while ray.is_initialized() and not self.stopped.is_set():
            deaths = self.deaths
            try:
                return self._call(method, *args)
            except CoordinatorTimeoutError as error:
                self._check_reach(error)
                if method == "report":
                    # an end that is reported twice counts once; one that is lost would occupy its place for ever
                    for ended in args[2]:
                        self.outbox.put(ended)
                    # the tasks may have been enqueued: submitted again they would exist twice
                    return {task.name: error.diagnostics[0].message for task in args[1] if task.name in self.jobs}
            except CoordinatorDiedError as error:
                time.sleep(RETRY_S)
                self._check_reach(error)
                self._resubmit_all(deaths)
                # the outbox now holds what the failed report contained
                args = (self.name, [], []) if method == "report" else args
            except UnfoldError as error:
                logging.getLogger("unfoldkit").warning("%s", error)
                self._check_reach(error)
                if method == "report":
                    return {task.name: error.diagnostics[0].message for task in args[1]}
                time.sleep(RETRY_S)
        if not self.stopped.is_set():
            self.stopped.set()
            self._fail_all("this process is no longer connected to Ray")
        return None

    def _resubmit_all(self, known_deaths: int) -> None:
        """Submit all unfinished jobs again, since a restarted coordinator has no records.

        Both threads may observe the same death: only the first one that does resubmits.

        Args:
            known_deaths: Value of ``deaths`` when the failed call began.
        """
        with self.lock:
            if known_deaths != self.deaths:
                return
            self.deaths += 1
            for job in list(self.jobs.values()):
                job.attempt = 0
                self.outbox.put(job.task)

    def _run_offer(self, offer: Offer) -> None:
        job = self.jobs.get(offer.task)
        if job is None or job.result.cancelled():
            self.outbox.put(Ended(offer.task, offer.attempt, "cancelled"))
            return
        job.attempt = offer.attempt
        options = task_options(offer.slot.shape, offer.slot.group)
        running = job.function.options(**options).remote(*job.args, **job.kwargs).future()
        running.add_done_callback(functools.partial(self._finish_attempt, job, offer.attempt))

    def _finish_attempt(self, job: Job, attempt: int, running: Future[Any]) -> None:
        error = running.exception()
        if job.attempt != attempt or job.result.done():
            return
        name = job.task.name
        if error is not None and is_worker_death(error):
            self.outbox.put(Ended(name, attempt, type(error).__name__, died=True))
            return
        self.jobs.pop(name, None)
        with contextlib.suppress(InvalidStateError):
            # the future may be cancelled at this moment
            job.result.set_result(running.result()) if error is None else job.result.set_exception(error)
        self.outbox.put(Ended(name, attempt, "" if error is None else type(error).__name__))

    def _close_job(self, record: Record) -> None:
        name = record.task.name
        self._fail_job(name, user_error(f"task {name} is {record.state}: {record.outcome}"))

    def _withdraw(self, task: str) -> None:
        if self.jobs.pop(task, None) is not None:
            self.coordinator.withdraw.remote(task, "cancelled")


def is_worker_death(error: BaseException) -> bool:
    """Return whether a task's worker died or was preempted, rather than its function failing."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


@functools.cache
def get_client(coordinator: Any) -> Client:
    """Return this process's client of a coordinator, started at the first call."""
    client = Client(coordinator)
    client.start()
    # at exit Ray shuts down, and ends a process if its threads still wait for a call
    atexit.register(client.close)
    return client


@functools.cache
def sleep_function() -> Any:
    """Return the remote function of tasks that only sleep, for a number of seconds."""
    import ray

    # by default Ray starts a new process for every GPU task to free memory, which sleeping tasks do not need
    return ray.remote(max_calls=0)(_sleep)


@functools.cache
def _as_remote(function: Callable[..., Any]) -> Any:
    import ray

    if hasattr(function, "remote"):
        return function
    return ray.remote(function if inspect.isfunction(function) else _wrap(function))


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    # Ray accepts Python functions only, not builtins or bound methods
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call
