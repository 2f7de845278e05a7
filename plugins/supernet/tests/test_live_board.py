"""Laws of what the page shows of a family, and of serving one without its extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from unfold_supernet.scheduling.policies import Served
from unfold_supernet.schema.models import SupernetSpec
from unfold_supernet.serving.metrics import counted, of_counters
from unfold_supernet.verbs.serve import serve
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine

NETS = (Served("small", 80.0, ((1, 0.001),)), Served("large", 90.0, ((1, 0.004),)))


def test_the_page_tells_what_was_counted() -> None:
    """Attainment is the share in time, accuracy that of the nets of those in time, shares are of all answers."""
    registry = CollectorRegistry()
    count, more = counted(registry, NETS), of_counters(registry, NETS, 0.9)
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
        serve(SupernetSpec.model_validate(given), Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert caught.value.code == 2
    assert "unfoldkit[torch]" in str(caught.value)
