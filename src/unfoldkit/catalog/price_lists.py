"""Reads price lists: a table of one's own, SkyPilot's ``vms.csv``, and JSON of AWS, Azure and ec2instances.info."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unfoldkit.catalog.cloud_price_json import offers
from unfoldkit.catalog.currency import Unit, dollars, unit
from unfoldkit.catalog.instances import Book, Instance
from unfoldkit.catalog.sanity import absurd, absurd_spot
from unfoldkit.catalog.skypilot import COLUMNS, read_vms
from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.io.csv import UNREADABLE, CsvRow, csv_lines, csv_rows, open_text
from unfoldkit.safe_io.files import DAMAGED

_NAMES = (
    *("instance", "instance_type", "instancetype", "api_name", "machine_type", "machine", "vm_size", "vm", "sku"),
    *("armskuname", "type", "name", "hardware", "size"),
)
_REGIONS = ("region", "region_code", "armregionname", "location")
_VCPUS, _GPUS = ("vcpus", "vcpu", "cpus"), ("gpus", "gpu_count", "gpucount", "acceleratorcount", "accelerators")
_MEMORY, _GPU = ("memory_gib", "memorygib", "memory", "ram"), ("gpu_name", "gpu_model", "acceleratorname", "gpu")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_APART = re.compile(r"[\s_().-]+")
_FORMS = "a CSV with columns instance and price, a vms.csv of SkyPilot, or JSON of AWS, Azure or ec2instances.info"


def read_prices(path: Path, region: str) -> Book:
    """Return the instance types of a price list in a region, in $ an hour; its form is told by its content.

    A table has a column of names (``instance``, ``type``, ...) and one of prices (``price``, ``usd_per_hour``,
    ``monthly cost``, ...), beside it at will a spot price, a ``region``, and vCPUs, memory and GPUs. JSON is that of
    ``aws ec2 describe-spot-price-history``, ``aws pricing get-products`` or an offer file, Azure's retail prices, or
    ec2instances.info; of these Linux counts, and of spot prices the newest of the cheapest zone.

    Raises:
        UnfoldError: it is no such list, a price is none or cannot be true, or the region is not in it.
    """
    first = _first(path)
    if first.startswith(("{", "[")):
        rows = _offered(path, region)
    elif set(COLUMNS) <= {name.strip() for name in _head(first)}:
        return read_vms(path, region)
    else:
        rows = _table(path, region)
    if not rows:
        raise user_error(f"no price for the region {region!r}", file=str(path), hint=f"set region, or give {_FORMS}")
    date = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    return Book(path.name, date, {name: replace(row, source=path.name) for name, row in rows.items()})


def _first(path: Path) -> str:
    try:
        with open_text(path) as stream:
            return next((line for line in stream if line.strip()), "").lstrip()
    except UNREADABLE as error:
        raise user_error(f"cannot read the price list: {error}", file=str(path), hint=_FORMS) from error


def _head(line: str) -> list[str]:
    return next(csv_lines([line]), (0, []))[1]


def _document(path: Path) -> object:
    try:
        with open_text(path) as stream:
            return json.load(stream)
    except (ValueError, RecursionError, *UNREADABLE) as error:
        raise user_error(f"cannot read the price list: {error}", file=str(path)) from error


def _offered(path: Path, region: str) -> dict[str, Instance]:
    document = _document(path)
    try:
        return _kept(offers(document, region))
    except DAMAGED as error:
        raise user_error(f"an entry of the price list is not as its form says: {error!r}", file=str(path)) from error


def _kept(rows: Iterable[Instance]) -> dict[str, Instance]:
    """Return the cheapest offer of each type, without prices that cannot be true."""
    found: dict[str, Instance] = {}
    for row in rows:
        before = found.get(row.name, row)
        found[row.name] = replace(
            before, on_demand=_lower(before.on_demand, row.on_demand), spot=_lower(before.spot, row.spot)
        )
    return found


def _lower(*prices: float | None) -> float | None:
    return min((price for price in prices if price is not None and not absurd(price)), default=None)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a table has what: names of columns, empty where it has none."""

    name: str
    price: str
    spot: str
    region: str
    currency: str
    units: dict[str, Unit]


def _table(path: Path, region: str) -> dict[str, Instance]:
    found: dict[str, Instance] = {}
    places: _Places | None = None
    for row in csv_rows(path):
        places = places or _places(list(row.cells), path)
        if places.region and row[places.region] != region:
            continue
        item = _instance(row, places, region)
        if item is None:
            continue
        if found.setdefault(item.name, item) != item:
            raise row.wrong("this type has another price above", item.name, "one row a type, or a column region")
    return found


def _places(head: Sequence[str], path: Path) -> _Places:
    units = {name: found for name in head if (found := unit(name)) is not None}
    hourly = sorted(units, key=lambda name: units[name].hours != 1)
    name = _named(head, _NAMES, units)
    price = next((item for item in hourly if not units[item].spot), "")
    spot = next((item for item in hourly if units[item].spot), "")
    if not name or not (price or spot):
        told = f"no column of {'prices' if name else 'instance types'}"
        raise UnfoldError(Diagnostic(told, str(path), 1, 1, hint=f"it has {', '.join(head[:12])}; wanted {_FORMS}"))
    currency = _named(head, ("currency", "currencycode"), ())
    return _Places(name, price, spot, _named(head, _REGIONS, units), currency, units)


def _named(head: Iterable[str], names: Sequence[str], apart: Iterable[str]) -> str:
    plain = {_plain(name): name for name in head if name not in apart}
    return next((plain[name] for name in names if name in plain), "")


def _plain(name: str) -> str:
    return _APART.sub("_", name.strip().lower()).strip("_")


def _instance(row: CsvRow, places: _Places, region: str) -> Instance | None:
    price, spot = (_price(row, column, places) for column in (places.price, places.spot))
    if not row[places.name] or price is spot is None:
        return None
    if spot is not None and (reason := absurd_spot(spot, price)):
        raise row.wrong(reason, places.spot)
    head = list(row.cells)
    vcpus, memory, gpus = (_number(row.get(_named(head, names, ()))) for names in (_VCPUS, _MEMORY, _GPUS))
    gpu = row.get(_named(head, _GPU, ()))
    return Instance(row[places.name], round(vcpus), memory, gpu, round(gpus), on_demand=price, spot=spot, region=region)


def _price(row: CsvRow, column: str, places: _Places) -> float | None:
    if not column:
        return None
    told = row.get(places.currency) if places.currency else ""
    try:
        price = dollars(f"{row[column]} {told}".strip() if row[column] else "", places.units[column])
    except ValueError as error:
        raise row.wrong(str(error), column, "convert the list to dollars, such as 0.526 or $0.526/h") from error
    if price is not None and (reason := absurd(price)):
        raise row.wrong(reason, column, "dollars an hour, or a name with its unit, such as usd_per_month")
    return price


def _number(text: str) -> float:
    found = _NUMBER.search(text)
    return float(found[0]) if found else 0.0
