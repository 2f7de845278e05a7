"""The nodes that a pod's volume claims allow, and what these wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from unfold_placement.core.types import ATTACHMENTS, MILLI
from unfold_placement.kubernetes.objects.codec import MAX_AMOUNT, REQUIRED, Body, parse_amount
from unfold_placement.kubernetes.objects.selectors import NodeTerms, parse_affinity, parse_selector
from unfold_placement.policies.affinity.node_filter import Requirement

CLAIMS, VOLUMES, CLASSES = (
    "/api/v1/{}/persistentvolumeclaims",
    "/api/v1/persistentvolumes",
    "/apis/storage.k8s.io/v1/storageclasses",
)
"""Paths of the lists that say where a pod's volumes are; that of the claims within a namespace."""
CSI_NODES, CSI_DRIVERS, CAPACITIES = (
    f"/apis/storage.k8s.io/v1/{name}" for name in ("csinodes", "csidrivers", "csistoragecapacities")
)
"""Paths of the lists that say how many volumes nodes may attach, and how large those may be that a driver creates."""
STORAGE_LISTS = (CLAIMS, VOLUMES, CLASSES, CSI_DRIVERS, CAPACITIES, CSI_NODES)
EXCLUSIVE = "ReadWriteOncePod"
"""Access mode of a claim that one pod uses at a time."""
BOUND, SELECTED_NODE = "pv.kubernetes.io/bind-completed", "volume.kubernetes.io/selected-node"
"""Annotations of a claim: it has its volume; the node for which kube-scheduler has one created."""
LATE_BINDING = "WaitForFirstConsumer"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


@dataclass(slots=True)
class Volumes:
    """Claims of a namespace, volumes, storage classes and CSI drivers, as last seen.

    Attributes:
        bodies: Objects by name, for each list by its path; a list that may not be read is missing.
        users: Open pods of the namespace that use each claim, by name.
        kept: The volume of each claim, by namespace and name.
        limits: How many volumes of each driver a node may attach, by node.
        limited: The drivers of which some node attaches a limited number.
    """

    bodies: dict[str, dict[str, Body]] = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)
    kept: dict[tuple[str, str], Body] = field(default_factory=dict)
    limits: dict[str, Mapping[str, int]] = field(default_factory=dict)
    limited: frozenset[str] = frozenset()

    def put(self, path: str, body: Body, *, is_gone: bool) -> set[str] | None:
        """Record the current state of an object of a list.

        Returns:
            The nodes that attach another number of volumes now; None for all.
        """
        known, name = self.bodies.setdefault(path, {}), body["metadata"]["name"]
        if is_gone:
            known.pop(name, None)
        else:
            known[name] = body
        if path == VOLUMES and (owner := body.get("spec", {}).get("claimRef")):
            self.kept[owner.get("namespace", ""), owner.get("name", "")] = {} if is_gone else body
        if path != CSI_NODES:
            return set()
        before, limited = self.limits.get(name, {}), self.limited
        self.limits[name] = {} if is_gone else _attach_limits(body)
        if before.keys() != self.limits[name].keys():
            self.limited = frozenset(driver for limits in self.limits.values() for driver in limits)
        if self.limited != limited:
            return None
        return {name} if before != self.limits[name] else set()

    def list_missing(self, path: str, names: set[str]) -> list[Body]:
        """Return the known objects of a list that has only some ``names``; an empty list is known, too."""
        return [body for name, body in self.bodies.setdefault(path, {}).items() if name not in names]

    def follow_user(self, pod: Body, *, is_open: bool) -> bool:
        """Record whether a pod uses its claims; return whether others of these may be affected."""
        has_changed = False
        for claim in list_claims(pod):
            users = self.users.setdefault(claim, set())
            name = pod["metadata"]["name"]
            has_changed |= (name in users) != is_open and self._is_exclusive(claim)
            users.add(name) if is_open else users.discard(name)
        return has_changed

    def attachments(self, pod: Body) -> dict[str, int]:
        """Return how many volumes a pod attaches to its node, by driver, as far as nodes limit it, in thousandths.

        A volume that several pods may share is not counted: only kube-scheduler knows which of them share a node.
        """
        namespace = pod["metadata"].get("namespace", "")
        drivers = [self._find_driver(namespace, name) for name in set(list_claims(pod))] if self.limited else []
        counts = Counter(driver for driver in drivers if driver in self.limited)
        return {f"{ATTACHMENTS}{driver}": count * MILLI for driver, count in counts.items()}

    def attachable(self, node: str, used: Mapping[str, int]) -> dict[str, int]:
        """Return how many further volumes a node may attach, by driver; without a limit as many as it likes.

        Args:
            node: Name of the node.
            used: What pods of other programs occupy there, in thousandths.
        """
        own = self.limits.get(node, {})
        limits = {
            f"{ATTACHMENTS}{driver}": own[driver] * MILLI if driver in own else MAX_AMOUNT
            for driver in sorted(self.limited)
        }
        return {kind: max(0, limit - used.get(kind, 0)) for kind, limit in limits.items()}

    def _find_driver(self, namespace: str, name: str) -> str:
        """Return the driver of a claim's volume, or the one that is to create it; empty where pods may share it.

        Claims of other namespaces are not read; those that have a volume are known by it.
        """
        volume = self.kept.get((namespace, name), {}).get("spec", {})
        claim = self.bodies.get(CLAIMS, {}).get(name, {})
        spec = claim.get("spec", {}) if claim.get("metadata", {}).get("namespace") == namespace else {}
        if any(mode.endswith("Many") for mode in (volume or spec).get("accessModes") or ()):
            return ""
        if volume:
            return str((volume.get("csi") or {}).get("driver", ""))
        return str(self.bodies.get(CLASSES, {}).get(spec.get("storageClassName") or "", {}).get("provisioner", ""))

    def _is_exclusive(self, claim: str) -> bool:
        body = self.bodies.get(CLAIMS, {}).get(claim) or {}
        return EXCLUSIVE in ((body.get("spec") or {}).get("accessModes") or ())

    def list_exclusive(self, pod: Body) -> tuple[str, ...]:
        """Return the claims of a pod that only one pod uses at a time."""
        return tuple(sorted(set(filter(self._is_exclusive, list_claims(pod)))))

    def restrict(self, pod: Body) -> tuple[str, tuple[NodeTerms, ...]]:
        """Return what a pod's claims wait for, or where their volumes are or may be created; nothing if unknown."""
        if not {CLAIMS, VOLUMES, CLASSES} <= self.bodies.keys():
            return "", ()
        own_name = pod["metadata"]["name"]
        for name in self.list_exclusive(pod):
            if others := sorted(self.users.get(name, set()) - {own_name}):
                return f"volume claim {name} ({EXCLUSIVE}), which pod {others[0]} uses", ()
        found = [self._find_terms(name) for name in list_claims(pod)]
        awaited = next((awaits for awaits, _ in found if awaits), "")
        return awaited, tuple(terms for _, terms in found if terms)

    def is_binding(self, pod: Body, node: str) -> bool:
        """Return whether kube-scheduler has chosen a node for a pod, and waits until its claims have their volumes."""
        claims = [self.bodies.get(CLAIMS, {}).get(name) for name in list_claims(pod)]
        volumes = list(self.bodies.get(VOLUMES, {}).values())
        notes = [(claim, claim["metadata"].get("annotations") or {}) for claim in claims if claim is not None]
        return any(
            item.get(SELECTED_NODE) == node or any(map(partial(_is_kept_for, claim), volumes))
            for claim, item in notes
            if BOUND not in item
        )

    def _find_terms(self, name: str) -> tuple[str, NodeTerms]:
        """Return what a claim waits for, or the terms of the nodes that reach its volume; none where all do."""
        claim = self.bodies[CLAIMS].get(name)
        if claim is None:
            return f"volume claim {name}, which does not exist", ()
        if claim["metadata"].get("deletionTimestamp"):
            return f"volume claim {name}, which is being deleted", ()
        volume = claim["spec"].get("volumeName")
        if not volume or BOUND not in (claim["metadata"].get("annotations") or {}):
            return self._find_places(claim)
        body = self.bodies[VOLUMES].get(volume)
        return ("", _volume_terms(body)) if body else (f"volume {volume} of claim {name}, which does not exist", ())

    def _find_places(self, claim: Body) -> tuple[str, NodeTerms]:
        """Return what a claim without a volume waits for, or the terms of the nodes where it can get one."""
        meta, spec = claim["metadata"], claim["spec"]
        storage_class = self.bodies[CLASSES].get(spec.get("storageClassName") or "") or {}
        if spec.get("volumeName") or storage_class.get("volumeBindingMode") != LATE_BINDING:
            return f"volume claim {meta['name']}, which has no volume yet", ()
        node = (meta.get("annotations") or {}).get(SELECTED_NODE)
        if node is not None:
            return "", ((Requirement("metadata.name", "In", (node,), is_field=True),),)
        places = [_volume_terms(body) for body in self.bodies[VOLUMES].values() if _may_bind(claim, body)]
        if storage_class.get("provisioner") not in {None, "", NO_PROVISIONER}:
            places += self._list_creating(claim, storage_class)
        if not places:
            return f"a volume of class {spec['storageClassName']} for claim {meta['name']}", ()
        return "", tuple(term for place in places for term in place) if all(places) else ()

    def _list_creating(self, claim: Body, storage_class: Body) -> Iterator[NodeTerms]:
        """Yield the terms of the nodes for which the driver of a class can create a claim's volume.

        A driver that reports capacities creates none where these are too small, or not known (KEP-1472).
        """
        allowed = _topology_terms(storage_class)
        driver = self.bodies.get(CSI_DRIVERS, {}).get(storage_class["provisioner"]) or {}
        if not (driver.get("spec") or {}).get("storageCapacity") or CAPACITIES not in self.bodies:
            yield allowed
            return
        needed = parse_amount("storage", claim["spec"]["resources"]["requests"]["storage"])
        for item in self.bodies[CAPACITIES].values():
            size = item.get("maximumVolumeSize") or item.get("capacity")
            is_own = item["storageClassName"] == storage_class["metadata"]["name"]
            if is_own and size is not None and item.get("nodeTopology") is not None:
                if parse_amount("storage", size) < needed:
                    continue
                reached = parse_selector(item["nodeTopology"])
                yield tuple((*term, *reached) for term in allowed or ((),)) if reached else allowed


def list_claims(pod: Body) -> list[str]:
    """Return the names of the volume claims of a pod; that of an ephemeral volume is made of pod and volume."""
    names = (
        (volume.get("persistentVolumeClaim") or {}).get("claimName")
        or ("ephemeral" in volume and f"{pod['metadata']['name']}-{volume['name']}")
        for volume in pod["spec"].get("volumes") or ()
    )
    return [name for name in names if name]


def _attach_limits(node: Body) -> dict[str, int]:
    """Return how many volumes of each driver a node may attach; one without a number has no limit."""
    counts = {driver["name"]: (driver.get("allocatable") or {}).get("count") for driver in node["spec"]["drivers"]}
    return {driver: int(count) for driver, count in counts.items() if count is not None}


def _may_bind(claim: Body, volume: Body) -> bool:
    """Return whether kube-scheduler may bind a volume that exists to a claim."""
    asked, spec, meta = claim["spec"], volume["spec"], volume["metadata"]
    size = (spec.get("capacity") or {}).get("storage", 0)
    needed = ((asked.get("resources") or {}).get("requests") or {}).get("storage", 0)
    if (
        meta.get("deletionTimestamp")
        or parse_amount("storage", size) < parse_amount("storage", needed)
        or asked.get("volumeMode", "Filesystem") != spec.get("volumeMode", "Filesystem")
    ):
        return False
    if spec.get("claimRef"):
        return _is_kept_for(claim, volume)
    selector = parse_selector(asked["selector"]) if asked.get("selector") else ()
    return (
        (volume.get("status") or {}).get("phase") == "Available"
        and (spec.get("storageClassName") or "") == asked.get("storageClassName")
        and set(asked.get("accessModes") or ()) <= set(spec.get("accessModes") or ())
        and all(item.matches(meta.get("labels") or {}) for item in selector)
    )


def _is_kept_for(claim: Body, volume: Body) -> bool:
    """Return whether a volume names a claim as its own."""
    owner, own = volume["spec"].get("claimRef") or {}, claim["metadata"]
    is_named = (owner.get("namespace"), owner.get("name")) == (own["namespace"], own["name"])
    return is_named and owner.get("uid") in {None, "", own.get("uid")}


def _volume_terms(volume: Body) -> NodeTerms:
    """Return the terms of the nodes that reach a volume; none where all do."""
    return parse_affinity({REQUIRED: (volume["spec"].get("nodeAffinity") or {}).get("required")})


def _topology_terms(storage_class: Body) -> NodeTerms:
    """Return the terms of the nodes for which a class creates volumes; none for all."""
    return tuple(
        tuple(Requirement(item["key"], "In", tuple(item["values"])) for item in term.get("matchLabelExpressions") or ())
        for term in storage_class.get("allowedTopologies") or ()
    )
