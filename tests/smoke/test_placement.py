"""One cluster, from its spec to a replayed policy."""

from __future__ import annotations

import json

import pytest

from tests.support import ROOT, Unfold

pytestmark = pytest.mark.smoke


def test_gangs_start_whole(unfold: Unfold) -> None:
    """Every task of the shipped workload runs, no rule is violated, and every gang starts whole."""
    report = json.loads(unfold("plan", ROOT / "configs/placement/gangs.yaml", "--format", "json").out)
    assert report["verdict"] == "yes"
    assert report["metrics"]["violations"]["value"] == 0
