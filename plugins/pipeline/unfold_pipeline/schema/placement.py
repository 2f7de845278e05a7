"""The ``placement`` section of a spec: gangs, packing and spreading on Ray Serve; core pinning on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Model, Problem


class GangOptions(Model):
    """Start all replicas of a stage at once, or none."""

    by: Literal["stage"] = "stage"


class PackOptions(Model):
    """Place the replicas of a gang on one node if they fit, otherwise on as few as possible."""

    level: Literal["node"] = "node"


class SpreadOptions(Model):
    """Place the replicas of a stage on as many nodes as possible."""

    by: Literal["node"] = "node"
    most: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="maximum replicas of one stage on a node, enforced strictly; not for gangs"
    )


class Placement(Model):
    """Where replicas run: the nodes that Ray Serve chooses, or the cores of this machine."""

    gang: Literal["stage"] | GangOptions | None = Field(
        default=None, description="start the replicas of a stage together and change its count by whole gangs"
    )
    pack: Literal["node"] | PackOptions | None = Field(
        default=None, description="place gangs on as few nodes as possible; implies gang"
    )
    spread: Literal["node"] | SpreadOptions | None = Field(
        default=None, description="place the replicas of a stage on as many nodes as possible, Ray Serve's default"
    )
    pin: Literal["core"] | None = Field(
        default=None, description="pin each local replica to a core, exclusively while there are enough"
    )

    @property
    def has_gangs(self) -> bool:
        """Whether the replicas of a stage start together. Ray Serve packs gangs only."""
        return self.gang is not None or self.pack is not None

    @property
    def max_per_node(self) -> int | None:
        """The maximum replicas of one stage on a node."""
        return self.spread.most if isinstance(self.spread, SpreadOptions) else None


def validate_placement(placement: Placement) -> Iterable[Problem]:
    """Yield the contradictions of a placement policy."""
    if placement.pack is not None and placement.spread is not None:
        yield Problem(("placement",), "pack and spread together", hint="leave one of them out")
    if placement.gang is not None and placement.max_per_node is not None:
        message = "Ray Serve enforces no limit per node within a gang"
        yield Problem(("placement", "spread", "most"), message, hint="leave gang out, or write spread: node")
