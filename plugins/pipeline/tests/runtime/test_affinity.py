"""Local replicas that are pinned to cores."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.runtime.affinity import CoreAllocator, assign_cores, list_local_cores
from unfold_pipeline.runtime.local import LocalRuntime

LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process keep to a core")


def test_cores_are_assigned_evenly() -> None:
    """Each replica has its own core while there are enough; no core has two replicas more than another."""
    assert assign_cores([1, 2], 4) == [(0,), (1, 2)]
    counts = [core for stage in assign_cores([2, 3, 2], 3) for core in stage]
    assert sorted(counts.count(core) for core in range(3)) == [2, 2, 3]


def test_released_core_is_reused() -> None:
    """A new replica gets the core that another one released."""
    cores = CoreAllocator([4, 7])
    assert [cores.take_core(), cores.take_core()] == [4, 7]
    cores.release_core(7)
    assert cores.take_core() == 7


@LINUX
def test_running_replicas_are_pinned(tmp_path: Path) -> None:
    """Each replica may run on one core only, and a later one on the core with the fewest replicas."""
    (tmp_path / "kept.py").write_text("def same(rows):\n    return rows.sum(axis=1)\n")
    sources = [ModelSource(code="kept:same", folder=str(tmp_path))] * 2
    numbers = list_local_cores().cores

    async def scene() -> list[set[int]]:
        running = LocalRuntime(
            plan_stages(["a", "b"], sources, (StageConfig(0, 1, 1), StageConfig(0, 1, 1))),
            cores=CoreAllocator(numbers),
        )
        await running.start()
        running.set_target(0, 2)
        found = [
            os.sched_getaffinity(worker.replica.process.pid or 0)
            for stage in running.stages
            for worker in stage.workers
        ]
        await running.stop()
        return found

    expected = [numbers[place % len(numbers)] for place in (0, 2, 1)]
    assert asyncio.run(asyncio.wait_for(scene(), 120)) == [{core} for core in expected]
