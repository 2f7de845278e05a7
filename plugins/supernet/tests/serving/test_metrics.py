"""Counters and dashboard."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.serving.metrics import make_dashboard, register_counter

NETS = (SubnetProfile("small", 80.0, ((1, 0.001),)), SubnetProfile("large", 90.0, ((1, 0.004),)))


def test_dashboard_shows_counted_requests() -> None:
    """Attainment is the fraction in time, accuracy that of the requests in time, usage that of all."""
    registry = CollectorRegistry()
    count, more = register_counter(registry, NETS), make_dashboard(NETS, 0.9)
    assert more(registry).tiles[0].value == "–"
    count(0, [True, False, False])
    assert [tile.ok for tile in more(registry).tiles] == [False, None, None]
    count(1, [True] * 17)
    tiles = {tile.label: tile for tile in more(registry).tiles}
    assert (tiles["attainment"].value, tiles["attainment"].ok) == ("90.00 %", True)
    assert tiles["late"].value == "2"
    assert tiles["accuracy served"].value == "89.44 %"
    assert more(registry).shares[0].values == {"small": 3.0, "large": 17.0}
