"""Nodes without machines, and a stub of a kubelet: no container ever runs here.

The stub marks pods that kube-scheduler bound as running, later as succeeded, and lets deleted ones go.
"""

from __future__ import annotations

import contextlib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import MERGE, Api, ApiError, call_all
from unfoldkit.kubernetes.reflector import Reflector

PODS = "/api/v1/pods"
Body = dict[str, Any]


def add_nodes(
    api: Api,
    count: int,
    resources: Mapping[str, str],
    labels: Callable[[int], Mapping[str, str]] = lambda _: {},
    stem: str = "n",
) -> list[str]:
    """Add nodes ``n0``, ``n1``, … that say they are ready; return their names."""
    names = [f"{stem}{index}" for index in range(count)]
    call_all([partial(add_node, api, name, resources, labels(at)) for at, name in enumerate(names)])
    return names


def add_node(
    api: Api, name: str, resources: Mapping[str, str], labels: Mapping[str, str], notes: Mapping[str, str] | None = None
) -> None:
    """Add one node."""
    meta = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}, "annotations": dict(notes or {})}
    api.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta})
    amounts = {"pods": "1000", **resources}
    ready = {"type": "Ready", "status": "True", "reason": "Stub", "message": "no machine stands behind this node"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
    api.patch(f"/api/v1/nodes/{name}/status", {"status": status}, MERGE)


@dataclass(slots=True)
class Kubelet:
    """The stub, for all nodes at once; ``seconds`` is how long a pod runs, infinite where it runs until deleted."""

    api: Api
    seconds: Callable[[Body], float]
    due: list[tuple[float, str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    inbox: queue.Queue[Body | None] = field(default_factory=queue.Queue)

    def take(self, body: Body, *, is_gone: bool = False) -> None:
        """Take note of a pod."""
        if not is_gone:
            self.inbox.put(body)

    def work(self) -> None:
        """Do what is to do, until nothing comes any more."""
        while True:
            batch = self._batch()
            now = time.monotonic()
            ended = []
            while self.due and self.due[0][0] <= now:
                ended.append(heapq.heappop(self.due)[1:])
            calls = [lambda pod=pod: self._end(*pod) for pod in ended]
            calls += [lambda pod=pod: self._see(pod) for pod in batch if pod is not None]
            if calls:
                call_all(calls)
            if None in batch:
                return

    def _batch(self) -> list[Body | None]:
        left = max(0.0, min(5.0, self.due[0][0] - time.monotonic())) if self.due else 5.0
        found: list[Body | None] = []
        with contextlib.suppress(queue.Empty):
            found.append(self.inbox.get(timeout=left))
            while True:
                found.append(self.inbox.get_nowait())
        return found

    def _see(self, pod: Body) -> None:
        meta, path = pod["metadata"], _path(pod["metadata"]["namespace"], pod["metadata"]["name"])
        has_ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        if not pod["spec"].get("nodeName") or (has_ended and not meta.get("deletionTimestamp")):
            return
        if meta.get("deletionTimestamp"):
            # the controller of Jobs waits for it before it replaces the pod
            if not has_ended:
                self._quietly(lambda: self.api.patch(f"{path}/status", {"status": {"phase": "Failed"}}, MERGE))
            self._quietly(lambda: self.api.delete(path, {"gracePeriodSeconds": 0}))
        elif meta["uid"] not in self.seen:
            self.seen.add(meta["uid"])
            self._quietly(lambda: self.api.patch(f"{path}/status", {"status": {"phase": "Running"}}, MERGE))
            seconds = self.seconds(pod)
            if seconds < float("inf"):
                heapq.heappush(self.due, (time.monotonic() + seconds, path, meta["uid"]))

    def _end(self, path: str, uid: str) -> None:
        # the version of another pod of that name is not ours to end
        patch = {"metadata": {"uid": uid}, "status": {"phase": "Succeeded"}}
        self._quietly(lambda: self.api.patch(f"{path}/status", patch, MERGE))

    def _quietly(self, call: Callable[[], object]) -> None:
        """Make a call on an object that may be gone by now, of a server that may be down for a while."""
        while not self.api.closed:
            with contextlib.suppress(UnfoldError):
                if not _fails_for_now(call):
                    return
            time.sleep(0.2)


@contextlib.contextmanager
def kubelet(api: Api, seconds: Callable[[Body], float]) -> Iterator[Kubelet]:
    """Run the stub until the end of the block; ``api`` is its own, and is closed."""
    made = Kubelet(api, seconds)
    threads = [
        Reflector(api, PODS, made.take, lambda _: ()).start(),
        threading.Thread(target=made.work, daemon=True),
    ]
    threads[1].start()
    try:
        yield made
    finally:
        api.close()
        made.inbox.put(None)
        for thread in threads:
            thread.join(20)


def _fails_for_now(call: Callable[[], object]) -> bool:
    """Make a call; return whether the server may answer it otherwise later."""
    try:
        call()
    except ApiError as error:
        return error.is_temporary
    return False


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


__all__: Sequence[str] = ("Kubelet", "add_node", "add_nodes", "kubelet")
