"""One accelerator, from its spec to the plan of its buffer."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Process

pytestmark = pytest.mark.smoke


def test_persistent_buffer_is_planned(unfold_process: Process) -> None:
    """The plan for the shipped network says whether a persistent buffer pays, with figures."""
    planned = unfold_process("plan", ROOT / "configs/supernet/fastswitch-resnet50.yaml", "--format", "json")
    assert planned.returncode == 0, planned.stderr
    report = json.loads(planned.stdout)
    assert report["verdict"] == "yes"
    assert report["tables"]
