"""Faults that Ray Serve reports in the status of a deployment, without a cluster."""

from __future__ import annotations

import logging

import pytest

from plugins.pipeline.tests.runtime.test_ray_orders import build_stage
from unfold_pipeline.runtime.ray_status import DeploymentListing, summarize_fault

TRACEBACK = """A replica failed to start with exception. Retrying. Error:
\x1b[36mray::ServeReplica:app:a.initialize_and_get_metadata()\x1b[39m (pid=9425, ip=192.0.2.2)
  File "/lib/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/srv/served.py", line 3, in <module>
    {source}
    ^^^^^^^^
{error}
"""
PENDING = "Deployment 'a' in application 'x' has 2 replicas that have taken more than 30s to be scheduled."
DEAD = "A replica failed to start with exception. Retrying. Error:\nThe actor died: out of memory\n\tclass_name: Any"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("", ""),
        ("Upscaling from 1 to 3 replicas.", ""),
        (TRACEBACK.format(source="load()", error="ValueError: 3 != 4\nmore of it"), "ValueError: 3 != 4"),
        (
            TRACEBACK.format(source="load()", error="unfoldkit.errors.UnfoldError: a.onnx: changed (start again)"),
            "a.onnx: changed (start again)",
        ),
        (PENDING, PENDING),
        (DEAD, "The actor died: out of memory"),
    ],
)
def test_the_fault_of_a_status_message_is_one_line(message: str, fault: str) -> None:
    """A traceback is reported by its exception, and a change of the number of replicas is no fault."""
    assert summarize_fault(message) == fault


def test_a_fault_is_logged_once_and_ends_with_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Each listing repeats a fault; the log has it once, and the status until as many replicas run as are wanted."""
    stage = build_stage(1)
    stage.target_replicas = 2
    with caplog.at_level(logging.ERROR, "unfoldkit"):
        for _ in range(3):
            stage.report_fault(DeploymentListing(frozenset({"r0"}), "ValueError: 3 != 4"))
    assert stage.start_error == "ValueError: 3 != 4"
    assert [record.getMessage() for record in caplog.records] == [
        "stages.a.model: replicas do not start: ValueError: 3 != 4"
    ]
    stage.report_fault(DeploymentListing(frozenset({"r0", "r1"}), "ValueError: 3 != 4"))
    assert not stage.start_error
