"""The ``hardware`` section of a spec: what replicas may run on, and at what price."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from unfoldkit.api import Bandwidth, Bytes, Model, Price, Problem


class GpuSheet(Model):
    """The data sheet of a GPU that is not known by name."""

    memory: Annotated[Bytes, Field(gt=0)]
    bandwidth: Annotated[Bandwidth, Field(gt=0)] = Field(description="of the memory")
    bf16_tflops: Annotated[float, Field(gt=0)] = Field(description="dense peak rate in 16 bits")
    fp8_tflops: Annotated[float, Field(gt=0)] | None = Field(default=None, description="dense peak rate in 8 bits")


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
        default=None, description="GPU of an engine: a known name or its data sheet; default: the name of the hardware"
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
        yield Problem(("hardware", name, key), "has no meaning beside a price", hint="leave one of them out")
