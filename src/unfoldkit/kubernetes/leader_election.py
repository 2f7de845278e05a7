"""Leader election by a Lease (coordination.k8s.io/v1): of several controllers, one acts."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from unfoldkit.errors import UnfoldError
from unfoldkit.kubernetes.api import Api, ApiError, Body

API = "coordination.k8s.io/v1"
PRECISE_DURATION = "unfoldkit/seconds"
DEFAULT_DURATION_S = 15
RENEWALS_PER_TERM = 4
MAX_KEPT_S = 120.0
"""Longest time that leadership is kept for a single block: what takes longer may never end."""


@dataclass(slots=True)
class LeaderElection:
    """Election by one Lease.

    A changed Lease counts as renewed when this process sees it, so that clocks of machines are not compared.

    Attributes:
        api: The server.
        name: Name of the Lease.
        holder: Name of this process once it stood for election.
        seen_version: Resource version of the Lease last seen.
        seen_at_s: When that version was first seen, by the monotonic clock.
        leads_until_s: End of this process's leadership, by the monotonic clock.
        ttl_s: Length of a term.
        lock: Held during an attempt: another thread may keep the leadership.
    """

    api: Api
    name: str
    holder: str = ""
    seen_version: str = ""
    seen_at_s: float = -math.inf
    leads_until_s: float = -math.inf
    ttl_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_leader(self) -> bool:
        """Whether this process leads, by its own clock."""
        return time.monotonic() < self.leads_until_s

    @property
    def has_lost(self) -> bool:
        """Whether another process leads, or this one has resigned, rather than that its time ran out."""
        return self.leads_until_s == -math.inf

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay leader for ``ttl`` seconds; return whether it succeeded."""
        with self.lock:
            return self._lead(holder, ttl)

    @contextlib.contextmanager
    def keep(self) -> Iterator[None]:
        """Stay leader during a block that may wait for the server for longer than a term."""
        done = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()

    def _renew_until(self, done: threading.Event) -> None:
        end_s = time.monotonic() + MAX_KEPT_S
        while not done.wait(self.ttl_s / RENEWALS_PER_TERM) and time.monotonic() < end_s:
            # without an answer, the next attempt may get one before the term ends
            with self.lock, contextlib.suppress(ApiError, UnfoldError):
                if done.is_set() or not self.is_leader:
                    return
                self._lead(self.holder, self.ttl_s)

    def _lead(self, holder: str, ttl: float) -> bool:
        began_s = time.monotonic()
        self.holder, self.ttl_s = holder, ttl
        lease = self._read_lease()
        try:
            if lease is None:
                self.api.post(leases_path(self.api), self._lease(holder, ttl, 0))
            elif self._is_held_by_other(lease, holder):
                self.leads_until_s = -math.inf
                return False
            else:
                self.api.put(f"{leases_path(self.api)}/{self.name}", self._next_lease(lease, holder, ttl))
        except ApiError as error:
            if not error.is_conflict:
                raise
            # another process was faster
            self.leads_until_s = -math.inf
            return False
        self.leads_until_s = began_s + ttl
        return True

    def observe(self, holder: str) -> None:
        """Note when the Lease was last renewed, so that a later attempt need not wait for its duration again."""
        lease = self._read_lease()
        if lease is not None:
            self._is_held_by_other(lease, holder)

    def exists(self) -> bool:
        """Return whether the server has the Lease."""
        return self._read_lease() is not None

    def resign(self) -> None:
        """Give up leadership at once."""
        with self.lock:
            lease = self._read_lease()
            self.leads_until_s = -math.inf
            if lease is not None and read_spec(lease).get("holderIdentity") == self.holder:
                lease["spec"]["holderIdentity"] = ""
                self.api.put(f"{leases_path(self.api)}/{self.name}", lease)

    def _read_lease(self) -> Body | None:
        try:
            return self.api.get(f"{leases_path(self.api)}/{self.name}")
        except ApiError as error:
            if error.is_absent:
                return None
            raise

    def _is_held_by_other(self, lease: Body, holder: str) -> bool:
        current = read_spec(lease).get("holderIdentity")
        version = lease["metadata"]["resourceVersion"]
        if version != self.seen_version:
            self.seen_version, self.seen_at_s = version, time.monotonic()
        return bool(current) and current != holder and time.monotonic() < self.seen_at_s + read_duration_s(lease)

    def _next_lease(self, lease: Body, holder: str, ttl: float) -> Body:
        has_changed = read_spec(lease).get("holderIdentity") != holder
        renewed = self._lease(holder, ttl, int(read_spec(lease).get("leaseTransitions", 0)) + has_changed)
        renewed["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return renewed

    def _lease(self, holder: str, ttl: float, transitions: int) -> Body:
        return lease_body(self.api, self.name, holder, ttl, {"leaseTransitions": transitions})


def lease_body(api: Api, name: str, holder: str, ttl: float, extra_spec: Body) -> Body:
    """Return a Lease renewed now, by the server's clock.

    Its duration is in whole seconds; an annotation holds the precise one.
    """
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": max(1, math.ceil(ttl)),
        "renewTime": datetime.fromtimestamp(api.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    meta = {"name": name, "namespace": api.namespace, "annotations": {PRECISE_DURATION: repr(ttl)}}
    return {"apiVersion": API, "kind": "Lease", "metadata": meta, "spec": spec | extra_spec}


def leases_path(api: Api) -> str:
    """Return the path of the namespace's Leases."""
    return f"/apis/{API}/namespaces/{api.namespace}/leases"


def read_spec(lease: Body) -> Body:
    """Return the spec of a Lease; one without a spec has no holder."""
    return lease.get("spec") or {}


def read_duration_s(lease: Body) -> float:
    """Return for how long a Lease holds after its last renewal, in seconds; an annotation that contradicts is void."""
    stated_s = read_spec(lease).get("leaseDurationSeconds") or DEFAULT_DURATION_S
    try:
        precise_s = float((lease["metadata"].get("annotations") or {})[PRECISE_DURATION])
    except (KeyError, ValueError):
        return float(stated_s)
    return precise_s if 0 <= stated_s - precise_s < 1 else float(stated_s)
