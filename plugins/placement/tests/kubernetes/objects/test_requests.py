"""What a pod requests of its node, as kube-scheduler would add it up: needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from unfold_placement.kubernetes.objects.codec import Body, Scope
from unfold_placement.kubernetes.objects.requests import pod_demand

SCOPE = Scope("mine", "unfold")


def pod(**spec: Any) -> Body:
    """Return a pod of another program."""
    meta = {"name": "p", "namespace": "unfold", "labels": {"app": "x"}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "spec": {"containers": [{"name": "c"}], **spec}}


def asks(cpu: str, **more: Any) -> Body:
    """Return a container that requests so many cores."""
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [asks("1"), asks("500m")]}, 1500),
        ({"containers": [asks("1")], "initContainers": [asks("3")]}, 3000),
        ({"containers": [asks("1")], "initContainers": [asks("3", restartPolicy="Always")]}, 4000),
        ({"containers": [asks("1")], "initContainers": [asks("1", restartPolicy="Always"), asks("3")]}, 4000),
        ({"containers": [asks("1")], "initContainers": [asks("3"), asks("1", restartPolicy="Always")]}, 3000),
        ({"containers": [asks("1")], "overhead": {"cpu": "250m"}}, 1250),
        ({"containers": [asks("1")], "resources": {"requests": {"cpu": "2"}}, "overhead": {"cpu": "1"}}, 3000),
        ({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]}, 2000),
        ({"containers": [asks("1n")]}, 1),
    ],
)
def test_demand_counts_init_containers_sidecars_and_overhead(spec: Body, cpu: int) -> None:
    """An init container runs beside the sidecars before it, sidecars beside the containers; overhead comes on top."""
    assert pod_demand(pod(**spec), SCOPE)["cpu"] == cpu


def sizes(allocated: str, actual: str, reason: str = "") -> Body:
    """Return the status of a pod of which the container ``c`` is being resized."""
    container = {"name": "c", "allocatedResources": {"cpu": allocated}, "resources": {"requests": {"cpu": actual}}}
    pending = {"type": "PodResizePending", "status": "True", "reason": reason}
    return {"containerStatuses": [container], "conditions": [pending] if reason else []}


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("status", "cpu"),
    [
        ({}, 2000), (sizes("2", "2"), 2000), (sizes("2", "5"), 5000), (sizes("4", "1"), 4000),
        (sizes("1", "1", "Deferred"), 2000), (sizes("1", "1", "Infeasible"), 1000), ({"containerStatuses": None}, 2000),
    ],
    ids=["new", "done", "shrinking", "granted", "growing", "impossible", "null"],
)  # fmt: skip
def test_demand_counts_what_a_resized_container_still_holds(status: Body, cpu: int) -> None:
    """A smaller request counted at once, so that gates opened for room which kube-scheduler still counts as used."""
    assert pod_demand({**pod(containers=[asks("2")]), "status": status}, SCOPE)["cpu"] == cpu
