"""Placement groups of ephemeral resources, and their removal once nothing runs inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.live.state_store import ResourceKey

RAY_LAG_S = 3.0
"""How far (s) Ray's view of free resources may lag behind."""


@dataclass(slots=True)
class ResourceGroups:
    """The groups of ephemeral resources on nodes. Callers hold the coordinator's lock.

    Attributes:
        groups: Groups by resource.
        shared: Resources whose groups were passed to programs, so that tasks may run inside.
        terminating: Groups of deleted resources in which tasks may still run.
        unused_since: When (s) terminating groups were first seen unused.
    """

    groups: dict[ResourceKey, list[Any]] = field(default_factory=dict)
    shared: set[ResourceKey] = field(default_factory=set)
    terminating: list[Any] = field(default_factory=list)
    unused_since: dict[Any, float] = field(default_factory=dict)

    def add(self, key: ResourceKey, groups: Iterable[Any]) -> None:
        """Add groups to a resource."""
        self.groups.setdefault(key, []).extend(groups)

    def share(self, key: ResourceKey) -> Any:
        """Return the first group of a resource for use by a program."""
        self.shared.add(key)
        return self.groups[key][0]

    def take_deleted(self, existing: Container[ResourceKey], *, force: bool = False) -> list[Any]:
        """Remove and return the groups of resources that no longer exist.

        Groups in which tasks may run become terminating instead, unless ``force`` is set.
        """
        removable: list[Any] = []
        for key in [key for key in self.groups if key not in existing]:
            can_remove = force or key not in self.shared
            (removable if can_remove else self.terminating).extend(self.groups.pop(key))
            self.shared.discard(key)
        return removable

    def take_unused(self, find_unused: Callable[[Iterable[Any]], list[Any]]) -> list[Any]:
        """Remove and return the terminating groups that were unused for longer than Ray's view lags."""
        now, unused = time.monotonic(), set(find_unused(self.terminating))
        self.unused_since = {group: self.unused_since.get(group, now) for group in self.terminating if group in unused}
        removable = [group for group, since in self.unused_since.items() if now - since > RAY_LAG_S]
        self.terminating = [group for group in self.terminating if group not in removable]
        return removable
