"""The nodes that a pod's volume claims allow, and what these wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from unfold_placement.kubernetes.objects.codec import REQUIRED, Body, parse_amount
from unfold_placement.kubernetes.objects.selectors import NodeTerms, parse_affinity, parse_selector
from unfold_placement.policies.affinity.node_filter import Requirement

CLAIMS, VOLUMES, CLASSES = (
    "/api/v1/{}/persistentvolumeclaims",
    "/api/v1/persistentvolumes",
    "/apis/storage.k8s.io/v1/storageclasses",
)
"""Paths of the lists that say where a pod's volumes are; that of the claims within a namespace."""
BOUND, SELECTED_NODE = "pv.kubernetes.io/bind-completed", "volume.kubernetes.io/selected-node"
"""Annotations of a claim: it has its volume; the node for which kube-scheduler has one created."""
LATE_BINDING = "WaitForFirstConsumer"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


@dataclass(slots=True)
class Volumes:
    """Claims of a namespace, volumes and storage classes, as last seen.

    Attributes:
        bodies: Objects by name, for each list by its path; a list that may not be read is missing.
    """

    bodies: dict[str, dict[str, Body]] = field(default_factory=dict)

    def restrict(self, pod: Body) -> tuple[str, tuple[NodeTerms, ...]]:
        """Return what a pod's claims wait for, or where their volumes are or may be created; nothing if unknown."""
        if len(self.bodies) < len((CLAIMS, VOLUMES, CLASSES)):
            return "", ()
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
        """Return the same for a claim without a volume."""
        meta, spec = claim["metadata"], claim["spec"]
        storage_class = self.bodies[CLASSES].get(spec.get("storageClassName") or "") or {}
        if spec.get("volumeName") or storage_class.get("volumeBindingMode") != LATE_BINDING:
            return f"volume claim {meta['name']}, which has no volume yet", ()
        node = (meta.get("annotations") or {}).get(SELECTED_NODE)
        if node is not None:
            return "", ((Requirement("metadata.name", "In", (node,), is_field=True),),)
        places = [_volume_terms(body) for body in self.bodies[VOLUMES].values() if _may_bind(claim, body)]
        if storage_class.get("provisioner") not in {None, "", NO_PROVISIONER}:
            places.append(_topology_terms(storage_class))
        if not places:
            return f"a volume of class {spec['storageClassName']} for claim {meta['name']}", ()
        return "", tuple(term for place in places for term in place) if all(places) else ()


def list_claims(pod: Body) -> list[str]:
    """Return the names of the volume claims of a pod; that of an ephemeral volume is made of pod and volume."""
    names = (
        (volume.get("persistentVolumeClaim") or {}).get("claimName")
        or ("ephemeral" in volume and f"{pod['metadata']['name']}-{volume['name']}")
        for volume in pod["spec"].get("volumes") or ()
    )
    return [name for name in names if name]


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
