"""The nodes that the fields of a pod allow, for itself and for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unfold_placement.kubernetes.objects import dra
from unfold_placement.kubernetes.objects.codec import DOMAIN, DRA, HOSTNAME, REQUIRED, Body, Scope, annotation_key
from unfold_placement.kubernetes.objects.requests import ALWAYS
from unfold_placement.kubernetes.objects.selectors import parse_affinity, parse_selector, parse_toleration
from unfold_placement.kubernetes.objects.volumes import Volumes
from unfold_placement.policies.affinity.node_filter import DomainLimit, HostPort, NodeFilter, Requirement, encode_filter

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - a pod's, and nothing is bound here
VOLATILE_LABELS = frozenset(
    {
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "controller-uid",
        "jobset.sigs.k8s.io/job-global-index",
        "jobset.sigs.k8s.io/job-index",
        "jobset.sigs.k8s.io/job-key",
        "statefulset.kubernetes.io/pod-name",
    }
)
"""Labels that differ between pods alike."""


def pod_filter(pod: Body, scope: Scope, volumes: Volumes | None = None) -> str:
    """Return the fields of a pod that restrict its nodes, encoded; a pod of this program's own pin is not one.

    Args:
        pod: The pod.
        scope: The policy's scope.
        volumes: Where its volumes are; None restricts nothing by them.
    """
    spec, labels = pod["spec"], pod["metadata"].get("labels") or {}
    affinity = spec.get("affinity") or {}
    selector = dict(spec.get("nodeSelector") or {})
    notes = pod["metadata"].get("annotations") or {}
    if annotation_key("started") in notes and annotation_key("pinned") not in notes:
        selector.pop(HOSTNAME, None)
    limits = [*_spread_limits(spec, labels), *_anti_affinity_limits(affinity, pod["metadata"].get("namespace", ""))]
    awaits, places = ("", ()) if volumes is None else volumes.restrict(pod)
    return encode_filter(
        NodeFilter(
            selector=selector,
            terms=parse_affinity(affinity.get("nodeAffinity") or {}),
            tolerations=tuple(map(parse_toleration, spec.get("tolerations") or ())),
            limits=tuple(limits),
            labels={
                key: value
                for key, value in labels.items()
                if key not in VOLATILE_LABELS and not key.startswith(f"{DOMAIN}/")
            },
            ports=_host_ports(spec),
            unsupported=_find_unsupported(spec, affinity, scope, pod["metadata"].get("namespace", "")),
            volumes=places,
            awaits=awaits,
            claims=() if volumes is None else volumes.list_exclusive(pod),
        )
    )


def repelling_filter(pod: Body, scope: Scope) -> str:
    """Return what of a pod keeps pods of the policy's namespace away, encoded: anti-affinity and host ports, or "".

    A selector of namespaces counts as one that selects the policy's.
    """
    terms = ((pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}).get(REQUIRED) or ()
    limits = [
        DomainLimit(term["topologyKey"], parse_selector(term.get("labelSelector")))
        for term in terms
        if term.get("namespaceSelector") is not None
        or scope.namespace in (term.get("namespaces") or (pod["metadata"].get("namespace"),))
    ]
    ports = _host_ports(pod["spec"])
    return encode_filter(NodeFilter(limits=tuple(limits), ports=ports)) if limits or ports else ""


def _find_unsupported(spec: Body, affinity: Mapping[str, Any], scope: Scope, namespace: str) -> str:
    own_claims = {dra.ENTRY} if scope.counters == DRA else set()
    claims = [
        claim.get("name", "") for claim in spec.get("resourceClaims") or () if claim.get("name") not in own_claims
    ]
    if claims:
        return f"it has the resource claim {claims[0]}, and no policy sees devices"
    if (affinity.get("podAffinity") or {}).get(REQUIRED):
        return "it requires affinity to other pods, which no policy sees"
    for term in (affinity.get("podAntiAffinity") or {}).get(REQUIRED) or ():
        if term.get("namespaceSelector") is not None or set(term.get("namespaces") or ()) - {namespace}:
            return "its anti-affinity covers other namespaces"
    if spec.get("schedulingGroup"):
        return "it belongs to a PodGroup, which kube-scheduler places itself"
    return ""


def _host_ports(spec: Mapping[str, Any]) -> tuple[HostPort, ...]:
    """Return the ports of the node that containers and sidecars take; the server adds those of the host's network."""
    sidecars = [item for item in spec.get("initContainers") or () if item.get("restartPolicy") == ALWAYS]
    ports = {
        HostPort(
            port.get("protocol") or "TCP", int(port["hostPort"]), (port.get("hostIP") or "").replace(ANY_ADDRESS, "")
        )
        for container in [*(spec.get("containers") or ()), *sidecars]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    }
    return tuple(sorted(ports, key=lambda port: (port.port, port.protocol, port.address)))


def _spread_limits(spec: Body, labels: Mapping[str, str]) -> Iterable[DomainLimit]:
    for item in spec.get("topologySpreadConstraints") or ():
        if item.get("whenUnsatisfiable") == "ScheduleAnyway":
            continue
        keys = [key for key in item.get("matchLabelKeys") or () if key in labels]
        yield DomainLimit(
            item["topologyKey"],
            (*parse_selector(item.get("labelSelector")), *(Requirement(key, "In", (labels[key],)) for key in keys)),
            int(item["maxSkew"]),
            int(item.get("minDomains") or 1),
            item.get("nodeAffinityPolicy", "Honor") == "Honor",
            item.get("nodeTaintsPolicy", "Ignore") == "Honor",
        )


def _anti_affinity_limits(affinity: Mapping[str, Any], namespace: str) -> Iterable[DomainLimit]:
    for term in (affinity.get("podAntiAffinity") or {}).get(REQUIRED) or ():
        if set(term.get("namespaces") or ()) <= {namespace}:
            yield DomainLimit(term["topologyKey"], parse_selector(term.get("labelSelector")))
