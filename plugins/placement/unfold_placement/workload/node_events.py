"""Losses, cordons and returns of nodes from a CSV file, as a monitoring system or a trace records them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from unfold_placement.core.types import CORDON, DOWN, UP, NodeChange
from unfold_placement.schema.columns import MIN_UNIX_S
from unfoldkit.api import CsvRow, csv_rows, did_you_mean, user_error

EVENT_COLUMNS = ("time", "node", "change")
CHANGES = {
    DOWN: DOWN, "lost": DOWN, "leave": DOWN, "left": DOWN, "remove": DOWN, "notready": DOWN, "fail": DOWN,
    CORDON: CORDON, "cordoned": CORDON, "unschedulable": CORDON, "drain": CORDON,
    UP: UP, "join": UP, "joined": UP, "add": UP, "ready": UP, "uncordon": UP, "repair": UP,
}  # fmt: skip
"""Words of logs for each change."""
MAX_EVENTS = 1_000_000


def read_node_changes(path: Path, nodes: Collection[str], *, skips: bool = False) -> list[NodeChange]:
    """Read the changes of nodes of a CSV file with the columns time (s), node and change, in any order.

    Args:
        path: The file.
        nodes: Names of the cluster's nodes.
        skips: Leave out the events of other nodes instead of rejecting them.

    Raises:
        UnfoldError: The file is malformed, a node does not exist, or times do not count from the first arrival.
    """
    known, changes = set(nodes), []
    for row in csv_rows(path, EVENT_COLUMNS):
        name = row["node"]
        if name not in known:
            if skips:
                continue
            raise row.wrong(f"no such node: {name[:60]}", "node", did_you_mean(name, nodes))
        changes.append(NodeChange(_read_time_s(row), name, _read_change(row)))
        if len(changes) > MAX_EVENTS:
            raise row.wrong(f"more than {MAX_EVENTS:,} events", "time")
    if not changes:
        raise user_error("no events of the cluster's nodes", file=str(path), key="cluster.churn")
    return changes


def _read_time_s(row: CsvRow) -> float:
    time_s = row.number("time", least=0)
    if time_s >= MIN_UNIX_S:
        hint = "subtract the arrival of the workload's first task"
        raise row.wrong(f"{row['time'][:40]} is a Unix time; times count from the first arrival", "time", hint)
    return time_s


def _read_change(row: CsvRow) -> str:
    word = row["change"].strip().lower().replace("-", "").replace("_", "")
    if word not in CHANGES:
        raise row.wrong(f"{row['change'][:40]!r} is not a change of a node", "change", did_you_mean(word, CHANGES))
    return CHANGES[word]
