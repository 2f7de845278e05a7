"""The client of a served policy on Ray: submits functions, and runs each where and when it is told."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
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
from unfold_placement.ray.backend import call_coordinator
from unfold_placement.ray.coordinator import Ended, Offer
from unfold_placement.ray.placement_groups import task_options
from unfoldkit.api import UnfoldError, fail

POLL = 2.0


@dataclass(slots=True)
class Job:
    """A function that waits for its turn, and where its result goes."""

    task: Task
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Future[Any]
    attempt: int = 0


@dataclass(slots=True)
class Client:
    """A process's connection to one steward: one thread tells it what is new and what ended, one hears what to run.

    ``deaths`` counts how often it was found dead, by whichever thread asked first.
    """

    coordinator: Any
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: dict[str, Job] = field(default_factory=dict)
    outbox: queue.SimpleQueue[Task | Ended | None] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    deaths: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, task: Task, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call of a function; a cancelled future takes it back, whether it runs or not.

        Raises:
            UnfoldError: this client has a task of that name already.
        """
        if task.name in self.jobs:
            raise fail(f"task {task.name} is there already", hint="every task has a name of its own")
        job = self.jobs[task.name] = Job(task, _remote(function), args, kwargs, Future())
        job.result.add_done_callback(lambda done: self._cancelled(task.name) if done.cancelled() else None)
        self.outbox.put(task)
        return job.result

    def sleep(self, task: Task) -> None:
        """Submit a task that sleeps for its run time, and wait until it is in the queue."""
        self.queue(task, sleep_function(), task.run)

    def queue(self, task: Task, function: Any, *args: Any) -> None:
        """Submit a call of a function, and wait until it is in the queue.

        Raises:
            UnfoldError: there is a task of that name.
        """
        job = self.jobs[task.name] = Job(task, _remote(function), args, {}, Future())
        if refused := call_coordinator(self.coordinator, "tell", self.name, [task], []):
            del self.jobs[task.name]
            job.result.cancel()
            raise fail(refused[task.name])

    def start(self) -> None:
        """Begin to tell and to hear."""
        for action in (self._tell, self._hear):
            self.threads.append(threading.Thread(target=action, daemon=True))
            self.threads[-1].start()

    def close(self) -> None:
        """Submit and hear nothing any more; the cluster takes back what has not ended some seconds later."""
        import ray

        self.stopped.set()
        self.outbox.put(None)
        if ray.is_initialized():
            self.coordinator.leave.remote(self.name)
        for thread in self.threads:
            thread.join()

    def _tell(self) -> None:
        while not self.stopped.is_set():
            items = [self.outbox.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    items.append(self.outbox.get_nowait())
            # a steward that died twice before it was told of a task is to be told once
            tasks = list({item.name: item for item in items if isinstance(item, Task)}.values())
            ended = [item for item in items if isinstance(item, Ended)]
            for name, reason in (self._again("tell", self.name, tasks, ended) or {}).items():
                self.jobs.pop(name).result.set_exception(fail(reason))

    def _hear(self) -> None:
        while not self.stopped.is_set():
            told = self._again("offers", self.name, POLL) or ((), ())
            for offer in told[0]:
                self._run(offer)
            for record in told[1]:
                self._closed(record)

    def _again(self, name: str, *args: Any) -> Any:
        import ray

        while ray.is_initialized() and not self.stopped.is_set():
            deaths = self.deaths
            try:
                return call_coordinator(self.coordinator, name, *args)
            except UnfoldError:
                time.sleep(0.5)
                self._anew(deaths)
                args = (self.name, [], []) if name == "tell" else args
        self.stopped.set()
        return None

    def _anew(self, deaths: int) -> None:
        """Submit all that is not over once more, as a steward that was started again knows nothing.

        Both threads may find the same death; ``deaths`` were known when the call that failed began.
        """
        with self.lock:
            if deaths != self.deaths:
                return
            self.deaths += 1
            for job in list(self.jobs.values()):
                job.attempt = 0
                self.outbox.put(job.task)

    def _run(self, offer: Offer) -> None:
        job = self.jobs.get(offer.task)
        if job is None or job.result.cancelled():
            self.outbox.put(Ended(offer.task, offer.attempt, "cancelled"))
            return
        job.attempt = offer.attempt
        options = task_options(offer.slot.shape, offer.slot.group)
        running = job.function.options(**options).remote(*job.args, **job.kwargs).future()
        running.add_done_callback(functools.partial(self._done, job, offer.attempt))

    def _done(self, job: Job, attempt: int, running: Future[Any]) -> None:
        error = running.exception()
        if job.attempt != attempt or job.result.done():
            return
        if error is not None and is_worker_death(error):
            self.outbox.put(Ended(job.task.name, attempt, type(error).__name__, died=True))
            return
        self.jobs.pop(job.task.name, None)
        with contextlib.suppress(InvalidStateError):
            # cancelled at this very moment
            job.result.set_result(running.result()) if error is None else job.result.set_exception(error)
        self.outbox.put(Ended(job.task.name, attempt, "" if error is None else type(error).__name__))

    def _closed(self, record: Record) -> None:
        job = self.jobs.pop(record.task.name, None)
        if job is not None and not job.result.done():
            job.result.set_exception(fail(f"task {record.task.name} is {record.state}: {record.outcome}"))

    def _cancelled(self, task: str) -> None:
        if self.jobs.pop(task, None) is not None:
            self.coordinator.withdraw.remote(task, "cancelled")


def is_worker_death(error: BaseException) -> bool:
    """Return whether a task's worker went, by preemption or by itself, rather than its function failing."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


@functools.cache
def get_client(steward: Any) -> Client:
    """Return this process's client of a steward."""
    made = Client(steward)
    made.start()
    # Ray ends a process whose threads still ask for something once it has shut down, which it does at exit
    atexit.register(made.close)
    return made


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    if hasattr(function, "remote"):
        return function
    return ray.remote(function if inspect.isfunction(function) else _wrapped(function))


@functools.cache
def sleep_function() -> Any:
    """Return the remote function of tasks that only sleep, for so many seconds."""
    import ray

    # Ray starts a process anew for every task with a GPU, for the sake of its memory; who sleeps leaves none behind
    return ray.remote(max_calls=0)(_sleep)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    # Ray takes functions that are written in Python only
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call
