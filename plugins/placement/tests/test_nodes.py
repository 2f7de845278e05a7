"""Nodes that go and come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, places, policy, starts
from unfold_placement.laws import audit
from unfold_placement.options import build
from unfold_placement.simulate import outcome, play, prepare


@pytest.mark.parametrize("parts", [{}, {"drf": {}}, {"gang": {}}, {"anti-affinity": {}, "drf": {}}, {"spread": {}}])
def test_what_ran_on_a_lost_node_runs_elsewhere(parts: dict[str, Any]) -> None:
    """Tasks of a node that goes wait again and run on others, under every law; a node that is back is used again."""
    spec = policy(**parts)
    loop = prepare(cluster(), [*job("a", 3, run=20), *job("b", 4, run=20, at=50)], build(spec))
    play(loop, until=5.0)
    assert "n0" in places(outcome(loop)).values()
    loop.turn("n0", up=False)
    play(loop, until=40.0)
    assert "n0" not in places(outcome(loop)).values()
    loop.turn("n0", up=True)
    found = outcome(play(loop))
    assert list(audit(found, spec)) == []
    assert np.isfinite(found.end).all()
    assert max(at for name, at in starts(found).items() if name.startswith("a")) == 5.0
    assert "n0" in {place for name, place in places(found).items() if name.startswith("b")}
