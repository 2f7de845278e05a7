"""One tuning job, planned, then carried out on local processes."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Unfold

pytestmark = pytest.mark.smoke


def test_job_is_planned_within_its_deadline(unfold: Unfold) -> None:
    """The cheapest plan of the shipped job is on time with the promised probability."""
    report = json.loads(unfold("plan", ROOT / "configs/tuning/small.yaml", "--format", "json").out)
    assert report["verdict"] == "yes"
