"""Checks of what policies yield: operations that make no sense are reported before any of them takes effect."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from types import GeneratorType

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import ANYWHERE, MANY, Drop, Put, Refuse, Task, Wake
from unfoldkit.api import did_you_mean


def find_fault(operation: object, table: ResourceTable) -> str:
    """Return why an operation makes no sense on a cluster; empty if it does.

    What is no operation at all is reported elsewhere, with what a policy may yield.
    """
    if isinstance(operation, Put):
        return _find_amount_fault(operation, table) or _find_location_fault(operation.name, operation.node, table)
    if isinstance(operation, Drop):
        if not isinstance(operation.force, (bool, np.bool_, numbers.Integral)):
            return f"force is True or False, not {str(operation.force)[:60]!r}"
        return _find_location_fault(operation.name, operation.node, table)
    if isinstance(operation, Wake):
        is_time = isinstance(operation.at, numbers.Real) and math.isfinite(operation.at)
        return "" if is_time else f"a timer at {operation.at!r} s never fires"
    return _find_rejection_fault(operation, table) if isinstance(operation, Refuse) else ""


def are_sound(operations: Sequence[object], table: ResourceTable) -> bool:
    """Return whether operations set or delete one resource alike on nodes that exist; each makes sense if one does.

    A policy that changes a resource on every node is spared a check of every operation.
    """
    first, rows = operations[0], table.node_rows
    if isinstance(first, Put) and not find_fault(first, table):
        name, amount, until = first.name, first.amount, first.until
        return all(
            isinstance(item, Put)
            and (item.name, item.amount, item.until) == (name, amount, until)
            and isinstance(item.node, str)
            and item.node in rows
            for item in operations
        )
    if isinstance(first, Drop) and not find_fault(first, table):
        return all(
            isinstance(item, Drop) and item.name == first.name and isinstance(item.node, str) and item.node in rows
            for item in operations
        )
    return False


def is_amount(value: object) -> bool:
    """Return whether a value is an amount of an ephemeral resource: whole, not negative, and at most ``MANY``."""
    return isinstance(value, (int, numbers.Integral)) and not isinstance(value, bool) and 0 <= int(value) <= MANY


def current_line(transactions: object) -> int:
    """Return the line at which a generator stands, 0 where it is none or has ended."""
    frame = transactions.gi_frame if isinstance(transactions, GeneratorType) else None
    return frame.f_lineno if frame is not None else 0


def _find_amount_fault(operation: Put, table: ResourceTable) -> str:
    if not is_amount(operation.amount):
        return f"the amount of {str(operation.name)[:60]} is {operation.amount!r}, not a whole number from 0 to 2^30"
    if isinstance(operation.until, Task):
        return f"until takes the name of a task: write {operation.until.name!r}, as in until=task.name"
    if operation.until and (not isinstance(operation.until, str) or operation.until not in table.task_rows):
        return f"until names a task that does not exist: {str(operation.until)[:60]}"
    return ""


def _find_rejection_fault(operation: Refuse, table: ResourceTable) -> str:
    task = operation.task
    if isinstance(task, Task):
        return f"Refuse takes the name of a task: write {task.name!r}, as in Refuse(task.name, reason)"
    row = table.task_rows.get(task) if isinstance(task, str) else None
    if row is None:
        return f"there is no task {str(task)[:60]} to reject"
    if not isinstance(operation.reason, str):
        return f"the reason to reject {task} is a text, not {str(operation.reason)[:60]!r}"
    # two policies may reject the same task
    may_be_rejected = table.state.status[row] in {kernel.WAITING, kernel.REFUSED}
    return "" if may_be_rejected else f"{task} does not wait, so it cannot be rejected"


def _find_location_fault(name: object, node: object, table: ResourceTable) -> str:
    if not isinstance(name, str) or not name:
        return f"the name of a resource is a text, not {str(name)[:60]!r}"
    if not isinstance(node, str) or (node != ANYWHERE and node not in table.node_rows):
        hint = did_you_mean(node, table.node_rows) if isinstance(node, str) else ""
        return f"there is no node {str(node)[:60]}" + (f" ({hint})" if hint.startswith("did") else "")
    return ""
