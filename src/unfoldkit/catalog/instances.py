"""Instance types, their prices and sources, and which prices are plausible.

Fakes and parsing errors must not end up in a plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfoldkit.errors import UnfoldError, did_you_mean, user_error

MIN_USD_PER_HOUR = 0.001
MAX_USD_PER_HOUR = 1000.0
MAX_CHANGE = 8.0
SPOT_RANGE = (0.02, 3.0)
UNKNOWN_HINT = "unfold catalog lists the known types; state the price of another, such as price: $1/h"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance type in one region.

    Prices are US dollars per hour; ``on_demand`` is ``None`` if only the hardware is known. ``spot`` is the price on
    the spot market, and ``spot_derived`` whether it was computed from an older saving. ``band`` is AWS's class of
    monthly interruptions, from 0 (under 5 %) to 4 (over 20 %). ``source`` and ``date`` describe the price;
    ``spot_source`` and ``spot_date`` describe the spot price if it has another source.
    """

    name: str
    vcpus: int = 0
    memory_gib: float = 0.0
    gpu: str = ""
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    on_demand: float | None = None
    spot: float | None = None
    spot_derived: bool = False
    band: int | None = None
    source: str = "bundled"
    date: str = ""
    region: str = "us-east-1"
    spot_source: str | None = None
    spot_date: str = ""

    @property
    def accelerators(self) -> int:
        """Devices for single-device workers: GPUs, or vCPUs of a type without GPUs."""
        return self.gpus or self.vcpus

    def origin(self, *, spot: bool) -> tuple[str, str]:
        """Return source and date of the price of a market."""
        has_other_source = spot and self.spot_source is not None
        return (self.spot_source or "", self.spot_date) if has_other_source else (self.source, self.date)


@dataclass(frozen=True, slots=True)
class InstanceFilter:
    """Conditions on an instance type, all of which must hold; ``max_price`` is in US dollars per hour."""

    gpu: str = ""
    min_gpus: int = 0
    min_vcpus: int = 0
    min_memory_gib: float = 0.0
    max_price: float | None = None
    spot: bool = False

    def matches(self, item: Instance) -> bool:
        """Whether an instance meets all conditions; an unknown price is never within a bound."""
        price = item.spot if self.spot else item.on_demand
        return (
            (not self.gpu or is_same_gpu(self.gpu, item.gpu))
            and item.gpus >= self.min_gpus
            and item.vcpus >= self.min_vcpus
            and item.memory_gib >= self.min_memory_gib
            and (self.max_price is None or (price is not None and price <= self.max_price))
            and (not self.spot or price is not None)
        )


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Instance types from one source (``live``, ``cached``, ``bundled`` or a file), with its date."""

    source: str
    date: str
    rows: Mapping[str, Instance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Price books in order of precedence: each figure comes from the first that has it."""

    books: tuple[PriceBook, ...]

    def names(self) -> list[str]:
        """Return the names of all types, sorted."""
        return sorted({name for book in self.books for name in book.rows})

    def find(self, name: str, *, price: float | None = None) -> Instance:
        """Return the type, priced by ``price`` (source ``spec``) or by the first book that has a price.

        Raises:
            UnfoldError: No book has the type.
        """
        rows = [book.rows[name] for book in self.books if name in book.rows]
        if not rows:
            alike = did_you_mean(name, self.names())
            hint = f"{alike} {UNKNOWN_HINT}" if alike else UNKNOWN_HINT
            raise user_error(f"no such instance type: {name!r}", hint=hint)
        merged = _merge(rows)
        return merged if price is None else replace(merged, on_demand=price, source="spec", date="")

    def choose(self, wanted: InstanceFilter) -> list[Instance]:
        """Return the types that match a filter, cheapest first."""
        matches = [item for item in map(self.find, self.names()) if wanted.matches(item)]
        return sorted(matches, key=lambda item: (price_of(item, spot=wanted.spot), item.name))


def price_of(item: Instance, *, spot: bool = False) -> float:
    """Return the price in US dollars per hour; infinite if it is unknown."""
    price = item.spot if spot else item.on_demand
    return float("inf") if price is None else price


def is_same_gpu(first: str, name: str) -> bool:
    """Whether two names of a GPU are equal apart from case, blanks and punctuation."""
    return _plain(first) == _plain(name)


def gpu_names(rows: Iterable[Instance]) -> list[str]:
    """Return the names of all GPUs, sorted."""
    return sorted({item.gpu for item in rows if item.gpu})


def unknown_gpu_error(name: str, rows: Iterable[Instance]) -> UnfoldError:
    """Make the error for a GPU that no type has."""
    known = gpu_names(rows)
    return user_error(
        f"no instance type has the GPU {name!r}", hint=did_you_mean(name, known) or f"known: {', '.join(known)}"
    )


def _merge(rows: Sequence[Instance]) -> Instance:
    first = next((row for row in rows if row.on_demand is not None), rows[0])
    spot = next((row for row in rows if row.spot is not None), first)
    hardware = next((row for row in rows if row.vcpus), first)
    return replace(
        first,
        vcpus=hardware.vcpus,
        memory_gib=hardware.memory_gib,
        gpu=hardware.gpu,
        gpus=hardware.gpus,
        gpu_memory_gib=hardware.gpu_memory_gib,
        spot=spot.spot,
        spot_derived=spot.spot_derived,
        spot_source=spot.source,
        spot_date=spot.date,
        band=next((row.band for row in rows if row.band is not None), None),
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def find_implausibility(price: float, *, known: float | None = None) -> str:
    """Return why a price is implausible; empty if it is plausible.

    Args:
        price: US dollars per hour.
        known: An earlier price of the same type; AWS has never changed one by a factor of eight.
    """
    if not math.isfinite(price) or price <= 0:
        return f"{price} is not a price"
    if not MIN_USD_PER_HOUR <= price <= MAX_USD_PER_HOUR:
        return f"${price:g}/h is outside ${MIN_USD_PER_HOUR:g}/h to ${MAX_USD_PER_HOUR:g}/h"
    if known is not None and not known / MAX_CHANGE <= price <= known * MAX_CHANGE:
        return f"${price:g}/h is more than {MAX_CHANGE:g} times away from the ${known:g}/h known before"
    return ""


def find_spot_implausibility(price: float, on_demand: float | None) -> str:
    """Return why a spot price is implausible; ``on_demand`` is the on-demand price of the same type."""
    reason = find_implausibility(price)
    if reason or on_demand is None:
        return reason
    low, high = SPOT_RANGE
    if not low * on_demand <= price <= high * on_demand:
        return f"${price:g}/h is not between {100 * low:.0f} and {100 * high:.0f} % of the on-demand price"
    return ""
