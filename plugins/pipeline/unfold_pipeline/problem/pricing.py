"""What a replica costs an hour: what the spec says, or its share of an instance type of the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unfold_pipeline.schema.models import Hardware, PipelineSpec
from unfoldkit.api import Run, UnfoldError, fail
from unfoldkit.catalog.bundled import catalog
from unfoldkit.catalog.cache import cached
from unfoldkit.catalog.instances import Catalog
from unfoldkit.catalog.price_lists import read_prices


@dataclass(frozen=True, slots=True)
class Priced:
    """The $ an hour of one replica, and where that is from."""

    price: float
    source: str


def prices(spec: PipelineSpec, run: Run) -> dict[str, Priced]:
    """Return the price of a replica on each kind of hardware; a price in the spec wins.

    Raises:
        UnfoldError: an instance type, or its price, is not known.
    """
    if spec.prices is None and all(item.price is not None for item in spec.hardware.values()):
        return {name: Priced(item.price or 0.0, "spec") for name, item in spec.hardware.items()}
    kept = cached(Path(run.options["cache"]), spec.region) if "cache" in run.options else None
    own = read_prices(run.path(spec.prices, key="prices"), spec.region) if spec.prices else None
    found = catalog(spec.region, *(book for book in (own, kept) if book is not None))
    return {name: _priced(name, item, found, spec.region) for name, item in spec.hardware.items()}


def _priced(name: str, item: Hardware, found: Catalog, region: str) -> Priced:
    if item.price is not None:
        return Priced(item.price, "spec")
    kind = item.instance or name
    try:
        known = found.find(kind)
    except UnfoldError as error:
        problem = error.diagnostics[0]
        raise fail(problem.message, key=f"hardware.{name}", hint=problem.hint) from error
    price = known.spot if item.spot else known.on_demand
    if price is None:
        what = "spot price" if item.spot else "price"
        raise fail(f"the {what} of {kind} in {region} is not known", key=f"hardware.{name}", hint="price: $1/h")
    market = "spot" if item.spot else "on demand"
    part = f" for {item.per_instance} replicas" if item.per_instance > 1 else ""
    # a list of the user's has no date: that of its file changes with every copy, and a committed plan would drift
    source = " of ".join(part for part in known.origin(spot=item.spot) if part)
    return Priced(price / item.per_instance, f"{kind} {market} ${price:g}/h{part}, {source}")


def line(found: dict[str, Priced]) -> str:
    """Return where the prices are from, for the report."""
    return " · ".join(f"{name} ${item.price:.4g}/h ({item.source})" for name, item in found.items())
