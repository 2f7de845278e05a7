"""The task of a pod of another program: needs no cluster."""

from __future__ import annotations

import pytest

from plugins.placement.tests.kubernetes.objects.test_requests import SCOPE, pod
from unfold_placement.kubernetes.objects.tasks import decode_task
from unfold_placement.kubernetes.objects.workloads import Group
from unfoldkit.api import UnfoldError


def test_a_foreign_pod_becomes_a_task_of_its_group() -> None:
    """Priority comes from its class, job and size from its owner, the arrival from the owner's creation."""
    body = pod(priority=500)
    body["metadata"]["annotations"] = {"placement.unfoldkit/size": "7"}
    assert (decode_task(body, SCOPE, 0.0).size, decode_task(body, SCOPE, 0.0).priority) == (7, 500)
    task = decode_task(body, SCOPE, 100.0, Group("job/j", 4, "worker", created_s=150.0))
    assert (task.job, task.size, task.role, task.arrival) == ("job/j", 4, "worker", 50.0)
    assert (task.preempts, decode_task(pod(preemptionPolicy="Never"), SCOPE, 0.0).preempts) == (True, False)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "yesterday"])
def test_an_arrival_that_is_no_time_is_named(text: str) -> None:
    """A queue with it could not be sorted, so that the order of all others in it was any."""
    body = pod()
    body["metadata"]["annotations"] = {"placement.unfoldkit/arrival": text}
    with pytest.raises(UnfoldError, match=f"placement.unfoldkit/arrival is '{text}', not a time"):
        decode_task(body, SCOPE, 0.0)
