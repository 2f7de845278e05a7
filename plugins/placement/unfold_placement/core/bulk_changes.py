"""Bulk changes: one ephemeral resource on many nodes, over arrays instead of node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from unfold_placement._types import Int64Array
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import ANYWHERE, MILLI, Drop, EphemeralResource, Operation, Put
from unfoldkit.api import user_error

MIN_BULK = 8
"""Below this number of nodes, single changes are as fast."""


def is_uniform(operations: Sequence[Operation]) -> TypeGuard[Sequence[Put | Drop]]:
    """Return whether all operations set one resource to one amount, or delete it, each on a different node."""
    if len(operations) < MIN_BULK:
        return False
    first, nodes = operations[0], {getattr(operation, "node", ANYWHERE) for operation in operations}
    if len(nodes) < len(operations) or ANYWHERE in nodes:
        return False
    if isinstance(first, Put):
        name, amount = first.name, first.amount
        return all(
            isinstance(operation, Put) and operation.name == name and operation.amount == amount and not operation.until
            for operation in operations
        )
    return isinstance(first, Drop) and all(
        isinstance(operation, Drop) and operation.name == first.name and not operation.force for operation in operations
    )


def set_amounts(table: ResourceTable, name: str, nodes: Sequence[str], amount: int, *, owner: str = "") -> list[str]:
    """Create or resize a resource on several nodes.

    Returns:
        The nodes on which its amount changed.

    Raises:
        UnfoldError: A node does not exist.
    """
    entries, now = table.entries.get(name, {}), table.now
    changed = [node for node in nodes if node not in entries or entries[node].amount != amount]
    if not changed:
        return changed
    _write_amounts(table, name, changed, amount)
    entries = table.entries.setdefault(name, entries)
    for epoch, node in enumerate(changed, table.epoch + 1):
        before = entries.get(node)
        if before:
            entry = replace(before, amount=amount, epoch=epoch)
        else:
            entry = EphemeralResource(name, node, amount, owner, epoch, now)
        entries[node] = entry
        if table.listeners:
            table.notify("resized" if before else "created", entry)
    table.epoch += len(changed)
    return changed


def delete_resources(table: ResourceTable, name: str, nodes: Sequence[str]) -> list[str]:
    """Delete a resource on those of some nodes that have it, and return these nodes."""
    entries = table.entries.get(name, {})
    deleted = [node for node in nodes if node in entries]
    if deleted:
        _withdraw_amounts(table, name, deleted)
        removed = [entries.pop(node) for node in deleted]
        if not entries:
            del table.entries[name]
        table.free_column(name)
        for entry in removed if table.listeners else ():
            table.notify("deleted", entry)
    return deleted


def _write_amounts(table: ResourceTable, name: str, nodes: Sequence[str], amount: int) -> None:
    unknown = next((node for node in nodes if node not in table.node_rows), None)
    if unknown is not None:
        raise user_error(f"there is no node {unknown}")
    number = table.name_id(name)
    if table.state.column[number] < 0:
        table.assign_column(name)
    # only tasks that request it can start by it: of the others none needs to look at all these nodes again
    table.recheck_waiting(number, "")
    state, rows = table.state, _node_rows(table, nodes)
    column, entries = state.column[number], table.entries.get(name, {})
    capacity, terminating = state.capacity[rows, column], state.terminating[rows, column] > 0
    existed = np.fromiter((node in entries for node in nodes), np.bool_, len(nodes))
    added = amount * MILLI - np.where(existed | terminating, capacity, 0)
    # holders of the deleted resource still count against its successor
    available = state.available[rows, column]
    state.available[rows, column] = np.where(terminating, amount * MILLI - capacity, available + added)
    state.terminating[rows, column] = 0
    state.capacity[rows, column] += added


def _withdraw_amounts(table: ResourceTable, name: str, nodes: Sequence[str]) -> None:
    state, rows = table.state, _node_rows(table, nodes)
    column = state.column[table.name_ids[name]]
    state.capacity[rows, column] -= state.available[rows, column]
    state.available[rows, column] = 0
    state.terminating[rows, column] = state.capacity[rows, column] > 0


def _node_rows(table: ResourceTable, nodes: Sequence[str]) -> Int64Array:
    return np.fromiter((table.node_rows[node] for node in nodes), np.int64, len(nodes))
