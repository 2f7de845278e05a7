"""Price of a replica: from the spec, or its fraction of an instance type of a price list or the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unfold_pipeline.schema.hardware import Hardware
from unfoldkit.api import Run, UnfoldError, user_error
from unfoldkit.catalog.instances import Catalog
from unfoldkit.catalog.price_books import load_cached_book, load_catalog
from unfoldkit.catalog.price_lists import read_prices


@dataclass(frozen=True, slots=True)
class ReplicaPrice:
    """The $/h of one replica, and the source of the price in words."""

    usd_per_hour: float
    source: str


def price_hardware(
    hardware: Mapping[str, Hardware], region: str, price_list: str | None, run: Run
) -> dict[str, ReplicaPrice]:
    """Return the price of a replica on each hardware.

    Prices in the spec go first, then those of ``price_list``, then downloaded and bundled prices of the catalog.

    Raises:
        UnfoldError: An instance type or its price is unknown.
    """
    if price_list is None and all(kind.price is not None for kind in hardware.values()):
        return {name: ReplicaPrice(kind.price or 0.0, "spec") for name, kind in hardware.items()}
    downloaded = load_cached_book(Path(run.options["cache"]), region) if "cache" in run.options else None
    listed = read_prices(run.path(price_list, key="prices"), region) if price_list else None
    instances = load_catalog(region, *(book for book in (listed, downloaded) if book is not None))
    return {name: _price_replica(name, kind, instances, region) for name, kind in hardware.items()}


def _price_replica(name: str, hardware: Hardware, instances: Catalog, region: str) -> ReplicaPrice:
    if hardware.price is not None:
        return ReplicaPrice(hardware.price, "spec")
    type_name = hardware.instance or name
    try:
        instance = instances.find(type_name)
    except UnfoldError as error:
        problem = error.diagnostics[0]
        raise user_error(problem.message, key=f"hardware.{name}", hint=problem.hint) from error
    price = instance.spot if hardware.spot else instance.on_demand
    if price is None:
        kind = "spot price" if hardware.spot else "price"
        message = f"the {kind} of {type_name} in {region} is not known"
        raise user_error(message, key=f"hardware.{name}", hint="price: $1/h")
    market = "spot" if hardware.spot else "on demand"
    fraction = f" for {hardware.per_instance} replicas" if hardware.per_instance > 1 else ""
    # a user's price list carries no date: its file date changes with every copy, and a committed plan would drift
    origin = " of ".join(part for part in instance.origin(spot=hardware.spot) if part)
    return ReplicaPrice(price / hardware.per_instance, f"{type_name} {market} ${price:g}/h{fraction}, {origin}")
