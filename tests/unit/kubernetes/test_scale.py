"""Workloads by name, and the paths of their scale subresource."""

from __future__ import annotations

import pytest

from unfoldkit.kubernetes.scale import parse_workload


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("detect", "/apis/apps/v1/namespaces/ns/deployments/detect/scale"),
        ("deployment/detect", "/apis/apps/v1/namespaces/ns/deployments/detect/scale"),
        ("statefulsets/vllm-0", "/apis/apps/v1/namespaces/ns/statefulsets/vllm-0/scale"),
        ("rollouts.v1alpha1.argoproj.io/web", "/apis/argoproj.io/v1alpha1/namespaces/ns/rollouts/web/scale"),
    ],
)
def test_workload_names_its_scale(text: str, path: str) -> None:
    """The names are those that kubectl takes."""
    workload = parse_workload(text)
    assert workload is not None
    assert workload.scale_path("ns") == path
    assert parse_workload(str(workload)) == workload


@pytest.mark.parametrize(
    "text", ["", "/", "pod/x", "Deployment/x", "deployment/", "a/b/c", "deployment/../x", "x y", "deployment/X"]
)
def test_what_is_no_workload_is_none(text: str) -> None:
    """Nothing else becomes part of a path."""
    assert parse_workload(text) is None
