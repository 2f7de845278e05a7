"""An instance type, its price, and where the price comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfoldkit.errors import UnfoldError, did_you_mean, user_error


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance type in one region.

    Prices are US dollars per hour; ``on_demand`` is ``None`` where only the hardware is known. ``spot`` is what an
    hour costs on the spot market, ``spot_derived`` whether that was computed from an older saving, and ``band`` AWS's
    class of monthly interruptions, 0 (under 5 %) to 4 (over 20 %). ``source`` and ``date`` say where the price is from,
    ``spot_source`` and ``spot_date`` where that of the spot market is, if from elsewhere.
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
        """Places for one-device workers: GPUs, or vCPUs where there are none."""
        return self.gpus or self.vcpus

    def origin(self, *, spot: bool) -> tuple[str, str]:
        """Return source and date of the price of a market."""
        elsewhere = spot and self.spot_source is not None
        return (self.spot_source or "", self.spot_date) if elsewhere else (self.source, self.date)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter: every bound that is set must hold. ``max_price`` is in dollars per hour."""

    gpu: str = ""
    min_gpus: int = 0
    min_vcpus: int = 0
    min_memory_gib: float = 0.0
    max_price: float | None = None
    spot: bool = False

    def admits(self, item: Instance) -> bool:
        """Whether the instance has what is wanted; an unknown price is never within a bound."""
        price = item.spot if self.spot else item.on_demand
        return (
            (not self.gpu or same_gpu(self.gpu, item.gpu))
            and item.gpus >= self.min_gpus
            and item.vcpus >= self.min_vcpus
            and item.memory_gib >= self.min_memory_gib
            and (self.max_price is None or (price is not None and price <= self.max_price))
            and (not self.spot or price is not None)
        )


@dataclass(frozen=True, slots=True)
class Book:
    """A list of instance types from one source (``live``, ``cached`` or ``bundled``), with its date."""

    source: str
    date: str
    rows: Mapping[str, Instance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Books in order of precedence: the first that knows a figure gives it."""

    books: tuple[Book, ...]

    def names(self) -> list[str]:
        """Return every type that a book knows, sorted."""
        return sorted({name for book in self.books for name in book.rows})

    def find(self, name: str, *, price: float | None = None) -> Instance:
        """Return the type, priced by ``price`` (source ``spec``) or by the first book that has a price.

        Raises:
            UnfoldError: no book has the type.
        """
        rows = [book.rows[name] for book in self.books if name in book.rows]
        if not rows:
            hint = did_you_mean(name, self.names()) or "unfold catalog lists them; unfold catalog refresh asks AWS"
            raise user_error(f"no such instance type: {name!r}", hint=hint)
        found = _merged(rows)
        return found if price is None else replace(found, on_demand=price, source="spec", date="")

    def choose(self, wanted: Wanted) -> list[Instance]:
        """Return the types that a filter admits, cheapest first."""
        found = [item for item in map(self.find, self.names()) if wanted.admits(item)]
        return sorted(found, key=lambda item: (price_of(item, spot=wanted.spot), item.name))


def price_of(item: Instance, *, spot: bool = False) -> float:
    """Return dollars per hour, infinite where no price is known."""
    price = item.spot if spot else item.on_demand
    return float("inf") if price is None else price


def same_gpu(wanted: str, name: str) -> bool:
    """Whether two names of a GPU mean the same: case, blanks and dashes do not count."""
    return _plain(wanted) == _plain(name)


def gpu_names(rows: Iterable[Instance]) -> list[str]:
    """Return the GPUs that occur, sorted."""
    return sorted({item.gpu for item in rows if item.gpu})


def no_such_gpu(name: str, rows: Iterable[Instance]) -> UnfoldError:
    """Make the error for a GPU that no type has."""
    known = gpu_names(rows)
    return user_error(
        f"no instance type has the GPU {name!r}", hint=did_you_mean(name, known) or f"known: {', '.join(known)}"
    )


def _merged(rows: Sequence[Instance]) -> Instance:
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
