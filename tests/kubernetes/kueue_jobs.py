"""Jobs that Kueue admits and that never run: they end after their run time, by a patch of their status."""

from __future__ import annotations

import contextlib
import datetime as dt
import heapq
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, Body

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
JOBS = "/apis/batch/v1/jobs"
RESOURCE = "example.com/gpu"
ENDING_THREADS = 4


def build_job(name: str, namespace: str, pods: int, *, priority_class: str = "", **requests: str) -> Body:
    """Return a suspended Job of the LocalQueue ``main``; each of its pods requests one GPU unless stated otherwise."""
    labels = {QUEUE_LABEL: "main"} | ({PRIORITY_LABEL: priority_class} if priority_class else {})
    resources = {"requests": {RESOURCE: "1", **requests}, "limits": {RESOURCE: "1"}}
    container = {"name": "task", "image": "none", "resources": resources}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"suspend": True, "parallelism": pods, "completions": pods, "template": template},
    }


@dataclass(slots=True)
class JobRunner:
    """Follows Jobs, and ends each after it has been resumed for its run time; a Job that is suspended starts over.

    Attributes:
        api: The administrator's connection.
        runs_s: Run time by namespace and name.
        starts: When each Job was resumed, by the monotonic clock, once for every time.
        ended: When each Job ended.
        due: Ends to come: time, name and number of the start.
        news: Announces what is due earlier, and ends.
    """

    api: Api
    runs_s: Mapping[str, float]
    starts: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    due: list[tuple[float, str, int]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)
    resumed: set[str] = field(default_factory=set)
    is_closed: bool = False

    def follow(self, version: str) -> None:
        """Note which Jobs are resumed and suspended, until the connection is closed."""
        while not self.api.closed:
            with contextlib.suppress(UnfoldError, ApiError):
                for change in self.api.watch(JOBS, version):
                    version = change.body["metadata"]["resourceVersion"]
                    if change.kind in {"ADDED", "MODIFIED"}:
                        self._note(change.body)
            if not self.api.closed:
                listed = self.api.get(JOBS)
                version = listed["metadata"]["resourceVersion"]
                for body in listed["items"]:
                    self._note(body)

    def _note(self, body: Body) -> None:
        name, now = f"{body['metadata']['namespace']}/{body['metadata']['name']}", time.monotonic()
        with self.news:
            if name not in self.runs_s or name in self.ended:
                return
            is_resumed = not body["spec"].get("suspend")
            if is_resumed and name not in self.resumed:
                self.resumed.add(name)
                self.starts.setdefault(name, []).append(now)
                heapq.heappush(self.due, (now + self.runs_s[name], name, len(self.starts[name])))
                self.news.notify_all()
            elif not is_resumed:
                self.resumed.discard(name)

    def end_due(self) -> None:
        """End Jobs when they are due, until closed."""
        while True:
            with self.news:
                wait_s = self.due[0][0] - time.monotonic() if self.due else 60.0
                if wait_s > 0:
                    self.news.wait(min(wait_s, 1.0))
                if self.is_closed:
                    return
                if not self.due or self.due[0][0] > time.monotonic():
                    continue
                _, name, number = heapq.heappop(self.due)
                if name not in self.resumed or len(self.starts[name]) != number:
                    continue
            self._end(name)

    def _end(self, name: str) -> None:
        namespace, _, own = name.partition("/")
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{own}"
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = self.api.get(path)
        times = {"lastProbeTime": now, "lastTransitionTime": now, "status": "True", "reason": "CompletionsReached"}
        status = {
            "startTime": body.get("status", {}).get("startTime") or now,
            "completionTime": now,
            "succeeded": body["spec"]["completions"],
            "conditions": [{**times, "type": kind} for kind in ("SuccessCriteriaMet", "Complete")],
        }
        self.api.patch(f"{path}/status", {"status": status}, MERGE)
        with self.news:
            self.ended[name] = time.monotonic()
            self.news.notify_all()

    def wait(self, count: int, timeout_s: float) -> bool:
        """Wait until so many Jobs have ended; return whether they did."""
        with self.news:
            return self.news.wait_for(lambda: len(self.ended) >= count, timeout_s)


@contextlib.contextmanager
def run_jobs(api: Api, runs_s: Mapping[str, float]) -> Iterator[JobRunner]:
    """Run Jobs until the block ends.

    Args:
        api: The administrator's connection; an own one is made from it.
        runs_s: Run time in seconds by namespace and name.
    """
    runner = JobRunner(Api(api.client, api.namespace), runs_s)
    version = api.get(JOBS)["metadata"]["resourceVersion"]
    threads = [
        threading.Thread(target=runner.follow, args=(version,), daemon=True),
        *(threading.Thread(target=runner.end_due, daemon=True) for _ in range(ENDING_THREADS)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield runner
    finally:
        runner.api.close()
        with runner.news:
            runner.is_closed = True
            runner.news.notify_all()
        for thread in threads:
            thread.join(10)
