"""One accelerator, from its spec to the plan of its buffer."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Unfold

pytestmark = pytest.mark.smoke


def test_persistent_buffer_is_planned(unfold: Unfold) -> None:
    """The plan for the shipped network says whether a persistent buffer pays, with figures."""
    planned = unfold("plan", ROOT / "configs/supernet/fastswitch-resnet50.yaml", "--format", "json")
    assert planned.code == 0, planned.err
    report = json.loads(planned.out)
    assert report["verdict"] == "yes"
    assert report["tables"]
