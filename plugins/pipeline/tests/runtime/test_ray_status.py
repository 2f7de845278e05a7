"""Faults that Ray Serve reports in the status of a deployment, without a cluster."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from plugins.pipeline.tests.runtime.test_ray_orders import SOURCE, build_stage
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.runtime.profiler import SINGLE_STAGE
from unfold_pipeline.runtime.ray_serve import RayRuntime
from unfold_pipeline.runtime.ray_status import DeploymentListing, find_orphans, name_applications, summarize_fault
from unfold_pipeline.runtime.stage import PlannedStage, Query

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


def test_a_stage_that_does_not_answer_is_named() -> None:
    """The status has for how long the replicas have kept their oldest query."""
    config = StageConfig(0, 1, 1)
    runtime = RayRuntime([PlannedStage(name=name, source=SOURCE, config=config) for name in ("a", "b")], None)
    slots = runtime.stages[1].slots

    async def keep(query: Query) -> None:
        async with slots.take(query) as has_slot:
            await asyncio.sleep(0.3 if has_slot else 0.0)

    async def scene() -> list[float]:
        slots.set_limit(1)
        routes = RouteDrawer(SINGLE_STAGE, np.random.default_rng(0))
        queries = [Query(np.zeros(1), *routes.draw_next(), lambda _: None) for _ in range(3)]
        tasks = [asyncio.create_task(keep(query)) for query in queries]
        await asyncio.sleep(0.25)
        silent_s = [float(stage["silent_s"]) for stage in runtime.list_status()]
        queries[2].shed()
        await asyncio.gather(*tasks)
        return [*silent_s, slots.silent_s, float(slots.taken)]

    idle_s, silent_s, after_s, taken = asyncio.run(scene())
    assert (idle_s, after_s, taken) == (0.0, 0.0, 0.0)
    assert silent_s > 0.2


def test_applications_of_ended_services_are_orphans() -> None:
    """What a killed process has deployed is found by its job; applications of others and of live services are not."""
    dead, live = name_applications("08000000", "7a3ff0a7"), name_applications("09000000", "2b096de2")
    apps = [f"{dead}-detect/1.v", f"{dead}-face", f"{live}-face", "unfold-shop", "unfold-08000000", "08000000"]
    assert find_orphans(apps, {"08000000"}) == apps[:2]
    assert find_orphans(apps, set()) == []
