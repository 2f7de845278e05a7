"""Which node a replica is given on Ray Serve, in the words of the kind ``placement``; which core on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from unfoldkit.api import Model, Problem

# a placement group must reserve something; replicas need no core of their own, as their node's are shared
SHARE = 0.001


class GangWords(Model):
    """All replicas that the plan gives a stage start at once, or none does."""

    by: Literal["stage"] = "stage"


class PackWords(Model):
    """The replicas of a gang within one node where they fit, else on as few as can be."""

    level: Literal["node"] = "node"


class SpreadWords(Model):
    """The replicas of a stage on as many nodes as can be."""

    by: Literal["node"] = "node"
    most: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="replicas of one stage on a node, kept strictly; not for gangs"
    )


class Placing(Model):
    """The policy by which Ray Serve gives replicas their nodes; on this machine, which is one node, their cores."""

    gang: Literal["stage"] | GangWords | None = Field(
        default=None, description="a stage's replicas start together, and its count changes by whole gangs"
    )
    pack: Literal["node"] | PackWords | None = Field(
        default=None, description="gangs on as few nodes as can be; what is packed is a gang"
    )
    spread: Literal["node"] | SpreadWords | None = Field(
        default=None, description="a stage's replicas on as many nodes as can be, which is Ray Serve's own way"
    )

    pin: Literal["core"] | None = Field(
        default=None, description="a local replica keeps to one core, its own while there are enough"
    )

    @property
    def pinned(self) -> bool:
        """Whether each local replica keeps to one core."""
        return self.pin is not None

    @property
    def together(self) -> bool:
        """Whether the replicas of a stage are a gang: Ray Serve packs only what starts together."""
        return self.gang is not None or self.pack is not None

    @property
    def most(self) -> int | None:
        """The most replicas of one stage on a node."""
        return self.spread.most if isinstance(self.spread, SpreadWords) else None


def placing_problems(placing: Placing) -> Iterable[Problem]:
    """Say what does not fit together."""
    if placing.pack is not None and placing.spread is not None:
        yield Problem(("placement",), "pack and spread together", hint="leave one of them out")
    if placing.gang is not None and placing.most is not None:
        message = "Ray Serve keeps no limit a node within a gang"
        yield Problem(("placement", "spread", "most"), message, hint="leave gang out, or write spread: node")


def whole(placing: Placing, gang: int, count: int) -> int:
    """Return the least count of replicas that is at least ``count`` and can be placed; a gang has ``gang`` replicas."""
    return -(-count // gang) * gang if placing.together else count


def words(placing: Placing, replicas: int) -> dict[str, Any]:
    """Return the policy as options of a Ray Serve deployment with ``replicas`` in its plan; empty for Ray Serve's own.

    Source: Ray Serve's ``gang_scheduling_config`` and ``max_replicas_per_node``.
    """
    if placing.together:
        strategy = "PACK" if placing.spread is None else "SPREAD"
        return {"gang_scheduling_config": {"gang_size": replicas, "gang_placement_strategy": strategy}}
    return {} if placing.most is None else {"max_replicas_per_node": placing.most}
