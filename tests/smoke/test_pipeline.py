"""One pipeline, from its spec to a plan that is checked and replayed."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Process

pytestmark = pytest.mark.smoke
SPEC = ROOT / "configs/pipeline/image-processing.yaml"


def test_plan_is_optimal_checked_and_replayed(unfold_process: Process) -> None:
    """The plan meets the SLO with a proof, passes its own check, and serves the trace in simulation."""
    planned = unfold_process("plan", SPEC, "--out", "plan.yaml")
    assert planned.returncode == 0, planned.stderr
    report = json.loads(unfold_process("plan", SPEC, "--format", "json").stdout)
    assert report["verdict"] == "yes"
    assert report["metrics"]["gap_percent"]["value"] == 0
    assert unfold_process("plan", SPEC, "--check", "plan.yaml").returncode == 0
    replayed = unfold_process("plan", SPEC, "--replay", ROOT / "configs/pipeline/burst.csv", "--format", "json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["tables"]
