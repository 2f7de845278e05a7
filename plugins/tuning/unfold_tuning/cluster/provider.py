"""Where nodes come from: the interface of node providers, and this machine as one.

:mod:`unfold_tuning.cluster.aws` rents nodes from EC2.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from unfold_tuning.trial.ledger import Ledger


class NodeProvider(Protocol):
    """Provides nodes by name, and records the start and the end of their bill in the ledger at once."""

    def can_rent(self) -> bool:
        """Return whether a request for a node may be granted now; false while every offer sleeps after a refusal."""

    def allow_on_demand(self) -> None:
        """Allow on-demand nodes from now on, where only spot instances were to be tried."""

    def rent(self, count: int, watch: Callable[[], None], *, is_required: bool = True) -> list[str]:
        """Start up to ``count`` nodes and return the names of those that run; refusals are no errors.

        Args:
            count: How many.
            watch: Called several times a second meanwhile; an exception from it ends the wait.
            is_required: Wait until at least one node runs.
        """

    def find_ended(self, names: Collection[str]) -> set[str]:
        """Find the nodes that their cloud has ended, which are still to be released; none where it is not known."""

    def release(self, name: str) -> None:
        """Release a node and end its bill."""

    def recover(self) -> None:
        """Release the nodes that an earlier attempt at the same run still holds."""

    def close(self) -> None:
        """Release all remaining nodes."""


@dataclass(frozen=True, slots=True)
class LocalProvider:
    """This machine: nodes are only names; both callbacks receive a name and the wall time."""

    on_start: Callable[[str, float], None]
    on_release: Callable[[str, float], None]
    wall: Callable[[], float] = time.time

    def can_rent(self) -> bool:
        """See :class:`NodeProvider`: processes can always be started."""
        return True

    def allow_on_demand(self) -> None:
        """See :class:`NodeProvider`: there is no market."""

    def rent(self, count: int, watch: Callable[[], None], *, is_required: bool = True) -> list[str]:  # noqa: ARG002 - nothing to wait for
        """See :class:`NodeProvider`."""
        names = [f"node-{uuid.uuid4().hex[:12]}" for _ in range(count)]
        for name in names:
            self.on_start(name, self.wall())
        return names

    def find_ended(self, names: Collection[str]) -> set[str]:  # noqa: ARG002 - no cloud
        """See :class:`NodeProvider`: no cloud ends them."""
        return set()

    def release(self, name: str) -> None:
        """See :class:`NodeProvider`."""
        self.on_release(name, self.wall())

    def recover(self) -> None:
        """See :class:`NodeProvider`: the processes ended with the driver."""

    def close(self) -> None:
        """See :class:`NodeProvider`: nodes end with their processes."""


def build_local_provider(ledger: Ledger, usd_per_hour: float) -> LocalProvider:
    """Build a provider of this machine's nodes at a price, recorded in a ledger."""
    return LocalProvider(lambda name, now: ledger.record_node_start(name, usd_per_hour, now), ledger.record_node_end)
