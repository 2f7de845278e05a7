"""Laws of what the page shows of a family, and of serving one without its extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from plugins.supernet.tests.helpers import make_run
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.serving.metrics import make_dashboard, register_counter
from unfold_supernet.verbs.serve import serve
from unfoldkit.api import UnfoldError

NETS = (SubnetProfile("small", 80.0, ((1, 0.001),)), SubnetProfile("large", 90.0, ((1, 0.004),)))


def test_the_page_tells_what_was_counted() -> None:
    """Attainment is the share in time, accuracy that of the nets of those in time, shares are of all answers."""
    registry = CollectorRegistry()
    count, more = register_counter(registry, NETS), make_dashboard(registry, NETS, 0.9)
    assert more().tiles[0].value == "–"
    count(0, [True, False, False])
    assert [tile.ok for tile in more().tiles] == [False, None, None]
    count(1, [True] * 17)
    tiles = {tile.label: tile for tile in more().tiles}
    assert (tiles["attainment"].value, tiles["attainment"].ok) == ("90.00%", True)
    assert tiles["late"].value == "2"
    assert tiles["accuracy served"].value == "89.44 %"
    assert more().shares[0].values == {"small": 3.0, "large": 17.0}


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, serving ends with 2 and names the extra."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    given = {"version": 1, "kind": "supernet", "name": "t", "family": "ofa-resnet50"}
    with pytest.raises(UnfoldError) as caught:
        serve(SupernetSpec.model_validate(given), make_run(tmp_path))
    assert caught.value.code == 2
    assert "pip install '.[torch]'" in str(caught.value)
