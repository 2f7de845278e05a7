"""The protocol of a placement policy (see docs/how-to/write-a-policy.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from unfold_placement.core.types import Ask, Event, Task, Transactions
from unfold_placement.core.view import View


class Policy(Protocol):
    """Decides which ephemeral resources tasks request, and where and when these exist.

    ``request`` depends on the task alone. ``react`` yields transactions: the operations of one take effect together,
    and tasks that can start then do so before the next transaction is computed.
    """

    @property
    def phase(self) -> int:
        """``STATIC``, ``QUEUE``, ``PACK`` or ``GANG``."""

    @property
    def watches(self) -> frozenset[str]:
        """Kinds of events that ``react`` receives."""

    def request(self, task: Task) -> Iterable[Ask]:
        """Return the ephemeral resources that a task requests."""

    def react(self, event: Event, view: View) -> Transactions:
        """Yield the transactions with which the policy responds to an event."""
