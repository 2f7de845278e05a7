"""The sections ``hardware`` and ``placement`` of a spec: what replicas may run on at what price, and where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Bandwidth, Bytes, Model, Price, Problem


class GpuSheet(Model):
    """The data sheet of a GPU that is not known by name."""

    memory: Annotated[Bytes, Field(gt=0)]
    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(description="of the memory")
    bf16_tflops: Annotated[float, Field(gt=0)] = Field(description="dense peak rate in 16 bits")
    fp8_tflops: Annotated[float, Field(gt=0)] | None = Field(default=None, description="dense peak rate in 8 bits")
    fp4_tflops: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="dense peak rate in 4 bits, for nvfp4; default: computed in 16 bits"
    )


class Hardware(Model):
    """A kind of hardware for replicas; without a price, an instance type of the catalog."""

    price: Price | None = Field(default=None, description="of one replica; overrides the catalog price")
    instance: str | None = Field(default=None, description="catalog instance type; default: the name of the hardware")
    per_instance: Annotated[int, Field(ge=1)] = Field(
        default=1, description="replicas, of any stages, that share one instance; whole instances are billed"
    )
    spot: bool = Field(default=False, description="use the spot price of the catalog")
    quota: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="maximum replicas over all stages; GPUs for an engine"
    )
    gpu: str | GpuSheet | None = Field(
        default=None,
        description="GPU of an engine, or of a replica with a price: a known name or its data sheet; "
        "default: the name of the hardware",
    )


def validate_hardware(name: str, hardware: Hardware) -> Iterable[Problem]:
    """Yield a problem for each catalog option that contradicts an explicit price."""
    if hardware.price is None:
        return
    options = {
        "instance": hardware.instance is not None,
        "per_instance": hardware.per_instance != 1,
        "spot": hardware.spot,
    }
    for key in (key for key, is_set in options.items() if is_set):
        yield Problem(("hardware", name, key), "cannot be combined with a price", hint="leave one of them out")


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
        yield Problem(("placement",), "pack and spread exclude each other", hint="leave one of them out")
    if placement.gang is not None and placement.max_per_node is not None:
        message = "Ray Serve enforces no limit per node within a gang"
        yield Problem(("placement", "spread", "most"), message, hint="leave gang out, or write spread: node")
