"""Leases (coordination.k8s.io/v1): who leads, and until when an owner's names live."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from unfold_placement.kubernetes.api import MERGE, Api, ApiError
from unfold_placement.kubernetes.codec import Body, Scope, annotation_key, format_time, parse_time, shorten_name

API = "coordination.k8s.io/v1"
PRECISE = annotation_key("seconds")
OWNER = annotation_key("owner")


@dataclass(slots=True)
class LeaderElection:
    """Election by one Lease. A lease that changed was renewed when we saw it: clocks of machines are not compared."""

    api: Api
    name: str
    who: str = ""
    seen: str = ""
    seen_at: float = -math.inf
    until: float = -math.inf

    @property
    def is_leader(self) -> bool:
        """Whether we lead, by our own clock."""
        return time.monotonic() < self.until

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader."""
        asked = time.monotonic()
        self.who = who
        found = self._found()
        try:
            if found is None:
                self.api.post(leases_path(self.api), self._body(who, ttl, 0))
            elif self._taken(found, who):
                self.until = -math.inf
                return False
            else:
                self.api.put(f"{leases_path(self.api)}/{self.name}", self._next(found, who, ttl))
        except ApiError as refused:
            if not refused.is_conflict:
                raise
            # another was faster
            self.until = -math.inf
            return False
        self.until = asked + ttl
        return True

    def resign(self) -> None:
        """Let another lead at once."""
        found = self._found()
        self.until = -math.inf
        if found is not None and found["spec"].get("holderIdentity") == self.who:
            found["spec"]["holderIdentity"] = ""
            self.api.put(f"{leases_path(self.api)}/{self.name}", found)

    def _found(self) -> Body | None:
        try:
            return self.api.get(f"{leases_path(self.api)}/{self.name}")
        except ApiError as refused:
            if refused.is_absent:
                return None
            raise

    def _taken(self, found: Body, who: str) -> bool:
        holder = found["spec"].get("holderIdentity")
        version = found["metadata"]["resourceVersion"]
        if version != self.seen:
            self.seen, self.seen_at = version, time.monotonic()
        return bool(holder) and holder != who and time.monotonic() < self.seen_at + _duration(found)

    def _next(self, found: Body, who: str, ttl: float) -> Body:
        changes = int(found["spec"].get("leaseTransitions", 0)) + (found["spec"].get("holderIdentity") != who)
        made = self._body(who, ttl, changes)
        made["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return made

    def _body(self, who: str, ttl: float, changes: int) -> Body:
        return lease_body(self.name, self.api.namespace, who, ttl, {"leaseTransitions": changes})


def lease_body(name: str, namespace: str, holder: str, ttl: float, more: Body) -> Body:
    """Return a Lease that was renewed now; it counts whole seconds, so the precise ones are an annotation."""
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": max(1, math.ceil(ttl)),
        "renewTime": format_time(time.time()),
    }
    meta = {"name": name, "namespace": namespace, "annotations": {PRECISE: repr(ttl)}}
    return {"apiVersion": API, "kind": "Lease", "metadata": meta, "spec": spec | more}


def renew_owner(api: Api, scope: Scope, owner: str, ttl: float) -> None:
    """Let an owner's names live ``ttl`` seconds from now."""
    name = shorten_name(f"{scope.name}.{owner}", 60).lower()
    made = lease_body(name, api.namespace, owner, ttl, {})
    made["metadata"]["labels"] = {OWNER: scope.name}
    try:
        api.patch(f"{leases_path(api)}/{name}", made, MERGE)
    except ApiError as refused:
        if not refused.is_absent:
            raise
        api.post(leases_path(api), made)


def read_owners(api: Api, scope: Scope) -> dict[str, float]:
    """Return until when (seconds of the day's clock) the names of each owner live."""
    found = api.get(leases_path(api), labelSelector=f"{OWNER}={scope.name}")["items"]
    return {item["spec"]["holderIdentity"]: parse_time(item["spec"]["renewTime"]) + _duration(item) for item in found}


def leases_path(api: Api) -> str:
    """Return the path of the leases of our namespace."""
    return f"/apis/{API}/namespaces/{api.namespace}/leases"


def _duration(found: Body) -> float:
    precise = found["metadata"].get("annotations", {}).get(PRECISE)
    return float(precise or found["spec"].get("leaseDurationSeconds") or 15)
