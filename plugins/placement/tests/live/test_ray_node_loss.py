"""A real raylet is killed: gangs stay whole or wait whole, and run again as soon as there is room."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from plugins.placement.tests.live.ray_world import QUIET
from tests.support import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
# Ray finds a dead node by its heartbeat: sooner than by default
HEARTBEAT = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
MOST_PARTIAL_S = 30.0


def test_a_killed_raylet_returns_its_gang_to_the_queue() -> None:
    """Of two gangs that fill four nodes the one on the lost node waits as a whole, and runs when a node joins."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra ray: nox -s ray")
    done = subprocess.run(
        [sys.executable, "-m", "plugins.placement.tests.live.ray_loss"],
        cwd=ROOT, env={**os.environ, **QUIET, **HEARTBEAT}, capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    # Ray may end the driver with its own status, or a signal, while its cluster shuts down after the result
    assert done.stdout.strip(), done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["before"] == {"a": 8, "b": 8}
    assert result["after"] == {"a": 8, "b": 8, result["gang"]: 0}
    assert not result["on_lost_node"]
    assert result["returned"] == {"a": 8, "b": 8}
    # what runs of a gang while Ray finds out that the node is dead is no start of a part
    assert result["longest_partial_s"] < MOST_PARTIAL_S
