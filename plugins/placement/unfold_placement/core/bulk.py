"""One name on many nodes at a time, as policies put it: what a book does node by node, over arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel, state_arrays
from unfold_placement.core.types import ANYWHERE, MILLI, Drop, Op, Put
from unfoldkit.api import fail

if TYPE_CHECKING:
    from unfold_placement.core.resources import Book

FEW = 8
"""Below so many, one by one is as quick."""


def alike(ops: Sequence[Op]) -> TypeGuard[Sequence[Put | Drop]]:
    """Return whether all are one name put with one amount, or deleted, on nodes of which there is each once."""
    if len(ops) < FEW:
        return False
    first, nodes = ops[0], {getattr(op, "node", ANYWHERE) for op in ops}
    if len(nodes) < len(ops) or ANYWHERE in nodes:
        return False
    if isinstance(first, Put):
        name, amount = first.name, first.amount
        return all(isinstance(op, Put) and op.name == name and op.amount == amount and not op.until for op in ops)
    return isinstance(first, Drop) and all(
        isinstance(op, Drop) and op.name == first.name and not op.force for op in ops
    )


def put(book: Book, name: str, nodes: Sequence[str], amount: int) -> None:
    """Set the amounts of a name on nodes where they are others."""
    unknown = next((node for node in nodes if node not in book.place), None)
    if unknown is not None:
        raise fail(f"there is no node {unknown}")
    number = book.name_id(name)
    if book.arena.column[number] < 0:
        state_arrays.new_column(book, name)
        book.wake(number, "")
    a, rows = book.arena, _rows(book, nodes)
    column, there = a.column[number], book.entries.get(name, {})
    cap, dying = a.cap[rows, column], a.dying[rows, column] > 0
    before = np.fromiter((node in there for node in nodes), np.bool_, len(nodes))
    grown = amount * MILLI - np.where(before | dying, cap, 0)
    # what holders of the deleted name still hold counts against the new one
    a.left[rows, column] = np.where(dying, amount * MILLI - cap, a.left[rows, column] + grown)
    a.dying[rows, column] = 0
    a.cap[rows, column] += grown
    _touch(book, rows)


def erase(book: Book, name: str, nodes: Sequence[str]) -> None:
    """Take what is not held of a name from nodes on which it is; what is held goes with its holders."""
    a, rows = book.arena, _rows(book, nodes)
    column = a.column[book.ids[name]]
    a.cap[rows, column] -= a.left[rows, column]
    a.left[rows, column] = 0
    a.dying[rows, column] = a.cap[rows, column] > 0


def _rows(book: Book, nodes: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter((book.place[node] for node in nodes), np.int64, len(nodes))


def _touch(book: Book, rows: NDArray[np.int64]) -> None:
    a = book.arena
    new = rows[a.dirty[rows] == 0]
    at = int(a.mark[kernel.DIRTY])
    a.dirty[new] = 1
    a.touched[at : at + new.size] = new
    a.mark[kernel.DIRTY] = at + new.size
