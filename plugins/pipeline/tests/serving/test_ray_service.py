"""A pipeline served on Ray: a killed replica is replaced, what was admitted is answered, and SIGTERM drains."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.pipeline.tests.live_load import Response, read_status, send_trace, step_trace, write_pipeline
from tests.served import rest, serving, unfold

PATIENCE_S = 240


def find_replica() -> int | None:
    """Return the process of the replica, which Ray names after its deployment."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if b"ray::ServeReplica" in line and b"only_stage" in line:
                return int(path.parent.name)
    return None


@contextlib.contextmanager
def serve_replica(folder: Path, tuner: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a stage with a single replica on Ray Serve; yield the process and its address."""
    pytest.importorskip("ray", reason="Ray is not installed")
    write_pipeline(folder, stage="only_stage_here", seconds=0.1, quota=1, tuner=tuner)
    assert unfold(folder, "plan", "steps.yaml", "-o", "plan.yaml").returncode == 0
    with serving(folder, "plan.yaml", "--allow-code", "--engine", "ray", patience=PATIENCE_S) as (process, address):
        assert read_status(address)["stages"][0]["ready"] == 1
        yield process, address


@pytest.mark.e2e
@pytest.mark.ray
def test_killed_replica_recovers_and_sigterm_drains(tmp_path: Path) -> None:
    """Each admitted query is answered once the replica has started again, and SIGTERM ends the service cleanly."""
    with serve_replica(tmp_path, "{hold: 10 s}") as (process, address):

        async def kill_under_load() -> tuple[list[Response], float]:
            load = asyncio.create_task(send_trace(address, "steps", step_trace([4.0], 4.0), [1.0, 2.0], PATIENCE_S))
            await asyncio.sleep(1.5)
            victim = find_replica()
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            killed_s = time.monotonic()
            responses = await load
            statuses = [0]
            while statuses[-1] != 200:
                answers = await send_trace(address, "steps", [0.2], [1.0, 2.0], PATIENCE_S)
                statuses.append(answers[0].status)
            return responses, time.monotonic() - killed_s

        responses, resumed_s = asyncio.run(kill_under_load())
        assert {response.status for response in responses} <= {200, 429, 503}
        # a query that was admitted gets no 503, which would come late
        assert all(response.seconds < 1.0 for response in responses if response.status == 503)
        assert sum(response.status == 200 for response in responses) >= 5
        # the restart itself is what Ray takes to start a process on this machine
        assert resumed_s < 120

        async def drain() -> list[Response]:
            load = asyncio.create_task(send_trace(address, "steps", [0.0, 0.05, 0.1], [1.0, 2.0]))
            await asyncio.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            return await load

        assert [response.status for response in asyncio.run(drain())] == [200, 200, 200]
        output = rest(process)
        assert process.returncode == 0, output
        assert "SystemExit" not in output
        assert "Traceback" not in output


@pytest.mark.e2e
@pytest.mark.ray
def test_overload_costs_no_capacity(tmp_path: Path) -> None:
    """Under several times what a replica serves, it is never idle; light load afterwards is answered at once."""
    with serve_replica(tmp_path, "{policy: fixed}") as (_, address):
        times_s = [*step_trace([40.0], 15.0), *(20.0 + 0.2 * number for number in range(50))]
        responses = asyncio.run(send_trace(address, "steps", times_s, [1.0, 2.0], PATIENCE_S))
        heavy, light = responses[:-50], responses[-50:]
        assert {response.status for response in heavy} == {200, 429}
        # 150 are possible
        assert sum(response.status == 200 for response in heavy) > 100
        assert max(response.seconds for response in heavy) < 4 * 0.7
        assert {response.status for response in light} == {200}
        assert max(response.seconds for response in light) < 0.7
