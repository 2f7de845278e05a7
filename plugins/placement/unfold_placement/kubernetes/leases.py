"""Leases (coordination.k8s.io/v1) that bound the lifetime of each owner's ephemeral resources."""

from __future__ import annotations

from unfold_placement.kubernetes.codec import Scope, annotation_key, parse_time, shorten_name
from unfoldkit.kubernetes.api import MERGE, Api, ApiError
from unfoldkit.kubernetes.leader_election import lease_body, leases_path, read_duration_s

OWNER = annotation_key("owner")


def renew_owner(api: Api, scope: Scope, owner: str, ttl: float) -> None:
    """Extend the lifetime of an owner's resources to ``ttl`` seconds from now."""
    name = shorten_name(f"{scope.name}.{owner}", 60).lower()
    lease = lease_body(name, api.namespace, owner, ttl, {})
    lease["metadata"]["labels"] = {OWNER: scope.name}
    try:
        api.patch(f"{leases_path(api)}/{name}", lease, MERGE)
    except ApiError as error:
        if not error.is_absent:
            raise
        api.post(leases_path(api), lease)


def read_owners(api: Api, scope: Scope) -> dict[str, float]:
    """Return until when (Unix seconds) the resources of each owner live."""
    leases = api.get(leases_path(api), labelSelector=f"{OWNER}={scope.name}")["items"]
    return {
        lease["spec"]["holderIdentity"]: parse_time(lease["spec"]["renewTime"]) + read_duration_s(lease)
        for lease in leases
    }
