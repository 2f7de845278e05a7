"""One tuning job, planned, then carried out on local processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import ROOT, Process

pytestmark = pytest.mark.smoke


def test_job_is_planned_within_its_deadline(unfold_process: Process) -> None:
    """The cheapest plan of the shipped job is on time with the promised probability."""
    report = json.loads(unfold_process("plan", ROOT / "configs/tuning/small.yaml", "--format", "json").stdout)
    assert report["verdict"] == "yes"
