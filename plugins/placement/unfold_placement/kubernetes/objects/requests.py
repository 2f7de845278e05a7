"""What a pod requests of its node, as kube-scheduler adds it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unfold_placement.core.types import MILLI, PODS
from unfold_placement.kubernetes.objects.codec import DOMAIN, Body, Scope, parse_amount

ALWAYS = "Always"
"""Restart policy of a sidecar: an init container that keeps running."""


def pod_demand(pod: Body, scope: Scope) -> dict[str, int]:
    """Return what a pod occupies of a node, in thousandths, without ephemeral resources."""
    total = sum_pod_requests(pod["spec"], lambda texts: _amounts(texts, scope), pod.get("status"))
    return {kind: amount for kind, amount in total.items() if amount} | {PODS: MILLI}


def sum_pod_requests(
    spec: Body, parse: Callable[[Mapping[str, Any]], dict[str, int]], status: Body | None = None
) -> dict[str, int]:
    """Return what a pod requests.

    The sum of containers and sidecars, or an init container with the sidecars before it where that is more, plus the
    pod's overhead; requests of the pod itself replace the sum (KEP-753, KEP-688, KEP-2837). While a container is
    resized, what it still holds counts where that is more (KEP-1287).

    Args:
        spec: The pod's spec.
        parse: Returns the amounts of a list of resources.
        status: The pod's status, which has what its containers hold; None counts the spec alone.
    """
    held = _held_requests(status or {}, parse)
    is_infeasible = _is_resize_infeasible(status or {})

    def resized(container: Mapping[str, Any]) -> dict[str, int]:
        stated, current = _requests(container, parse), held.get(container.get("name", ""))
        return current if current and is_infeasible else _maximum(stated, current or {})

    running: dict[str, int] = {}
    for container in spec.get("containers") or ():
        running = _add(running, resized(container))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == ALWAYS:
            sidecars = _add(sidecars, resized(container))
            peak = _maximum(peak, sidecars)
        else:
            peak = _maximum(peak, _add(sidecars, _requests(container, parse)))
    total = _maximum(_add(running, sidecars), peak)
    total |= _requests(spec, parse)
    return _add(total, parse(spec.get("overhead") or {}))


def _held_requests(status: Body, parse: Callable[[Mapping[str, Any]], dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return what each container was granted and uses, by its name; nothing where the kubelet has not said so."""
    items = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return {
        item["name"]: _maximum(
            parse(item.get("allocatedResources") or {}), parse((item.get("resources") or {}).get("requests") or {})
        )
        for item in items
    }


def _is_resize_infeasible(status: Body) -> bool:
    """Return whether the node can never grant what the containers request by now."""
    pending = [item for item in status.get("conditions") or () if item.get("type") == "PodResizePending"]
    return any(item.get("status") == "True" and item.get("reason") == "Infeasible" for item in pending)


def _requests(container: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], dict[str, int]]) -> dict[str, int]:
    resources = container.get("resources") or {}
    # the server copies limits to missing requests, except in manifests that it has not seen
    return parse({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(texts: Mapping[str, Any], scope: Scope) -> dict[str, int]:
    own_names = {cluster_name: name for name, cluster_name in scope.units.items()}
    return {
        own_names.get(name, name): parse_amount(name, text, is_demand=True)
        for name, text in texts.items()
        if not name.partition("/")[0].endswith(DOMAIN)
    }


def _add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {kind: left.get(kind, 0) + right.get(kind, 0) for kind in {**left, **right}}


def _maximum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {kind: max(left.get(kind, 0), right.get(kind, 0)) for kind in {**left, **right}}
