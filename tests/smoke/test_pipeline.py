"""One pipeline, from its spec to a plan that is checked and replayed."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Unfold

pytestmark = pytest.mark.smoke
SPEC = ROOT / "configs/pipeline/image-processing.yaml"


def test_plan_is_optimal_checked_and_replayed(unfold: Unfold) -> None:
    """The plan meets the SLO with a proof, passes its own check, and serves the trace in simulation."""
    planned = unfold("plan", SPEC, "--out", "plan.yaml")
    assert planned.code == 0, planned.err
    report = json.loads(unfold("plan", SPEC, "--format", "json").out)
    assert report["verdict"] == "yes"
    assert report["metrics"]["gap_percent"]["value"] == 0
    assert unfold("plan", SPEC, "--check", "plan.yaml").code == 0
    replayed = unfold("plan", SPEC, "--replay", ROOT / "configs/pipeline/burst.csv", "--format", "json")
    assert replayed.code == 0, replayed.err
    assert json.loads(replayed.out)["tables"]
