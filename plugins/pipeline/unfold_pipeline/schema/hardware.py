"""The ``hardware`` section of a spec: what replicas may run on, and at what price."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from unfoldkit.api import Model, Price, Problem


class Hardware(Model):
    """A kind of hardware for replicas; without a price, an instance type of the catalog."""

    price: Price | None = Field(default=None, description="of one replica; overrides the catalog price")
    instance: str | None = Field(default=None, description="catalog instance type; default: the name of the hardware")
    per_instance: Annotated[int, Field(ge=1)] = Field(
        default=1, description="replicas, of any stages, that share one instance; whole instances are billed"
    )
    spot: bool = Field(default=False, description="use the spot price of the catalog")
    quota: Annotated[int, Field(ge=1)] | None = Field(default=None, description="maximum replicas over all stages")


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
