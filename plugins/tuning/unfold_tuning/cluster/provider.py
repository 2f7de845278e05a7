"""Who gives nodes and takes them back: this machine here, a cloud in :mod:`unfold_tuning.cluster.aws`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from unfold_tuning.trial.ledger import Ledger


class Fleet(Protocol):
    """Gives nodes by name. What is billed is noted in the ledger at the moment when it begins and ends."""

    def rent(self, count: int, watch: Callable[[], None]) -> list[str]:
        """Return the names of ``count`` new nodes that run; ``watch`` is called several times a second meanwhile."""

    def release(self, name: str) -> None:
        """Give a node back; it is billed no longer."""

    def recover(self) -> None:
        """Give back whatever an earlier attempt at the same run still holds."""

    def close(self) -> None:
        """Give back whatever is left."""


@dataclass(frozen=True, slots=True)
class Own:
    """This machine: nodes are names, ``running`` and ``released`` are told them with the wall time."""

    running: Callable[[str, float], None]
    released: Callable[[str, float], None]
    wall: Callable[[], float] = time.time

    def rent(self, count: int, watch: Callable[[], None]) -> list[str]:  # noqa: ARG002 - nothing is waited for
        """See :class:`Fleet`."""
        names = [f"node-{uuid.uuid4().hex[:12]}" for _ in range(count)]
        for name in names:
            self.running(name, self.wall())
        return names

    def release(self, name: str) -> None:
        """See :class:`Fleet`."""
        self.released(name, self.wall())

    def recover(self) -> None:
        """See :class:`Fleet`: the processes died with the driver."""

    def close(self) -> None:
        """See :class:`Fleet`: nodes end with their processes."""


def own(ledger: Ledger, price: float) -> Own:
    """Return this machine's nodes at ``price`` dollars per hour, noted in a ledger."""
    return Own(lambda name, now: ledger.node_runs(name, price, now), ledger.node_ends)
