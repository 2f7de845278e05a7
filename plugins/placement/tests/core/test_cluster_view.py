"""What a policy may read of a cluster, and the operations that the view writes for it."""

from __future__ import annotations

from plugins.placement.tests.cases import cluster
from unfold_placement.core.controller import build_controller
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import ANYWHERE, Drop, Put


def test_puts_and_drops_cover_the_nodes_of_a_resource() -> None:
    """By default a resource comes to every node that is up; it goes from where it exists, except from what is kept."""
    controller = build_controller(build_resource_table(cluster(3)), [])
    table, view = controller.table, controller.view
    controller.set_node_up("n1", is_up=False)
    assert view.puts("slot", 2) == [Put("slot", "n0", 2), Put("slot", "n2", 2)]
    assert view.puts("slot", nodes=["n1"], until="a-0") == [Put("slot", "n1", 1, "a-0")]
    assert view.drops("slot") == []
    for node in ("n0", "n2", ANYWHERE):
        table.create("slot", node)
    assert view.drops("slot", keep={"n2"}) == [Drop("slot", "n0"), Drop("slot", ANYWHERE)]
