"""Read price lists: a table of the user, SkyPilot's ``vms.csv``, and JSON of AWS, Azure and ec2instances.info."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unfoldkit.catalog.aws_offer_csv import has_offer_head, read_offer_csv
from unfoldkit.catalog.cloud_price_json import WrongSpotPriceError, has_component_prices, iter_offers
from unfoldkit.catalog.currency import PriceUnit, parse_price, parse_unit
from unfoldkit.catalog.instances import Instance, PriceBook, find_implausibility, find_spot_implausibility
from unfoldkit.catalog.list_contents import describe_contents
from unfoldkit.catalog.skypilot import COLUMNS, read_vms
from unfoldkit.errors import Diagnostic, UnfoldError, list_columns, user_error
from unfoldkit.io.tables import UNREADABLE, CsvRow, csv_lines, csv_rows, open_text
from unfoldkit.safe_io.files import DAMAGED

_NAMES = (
    *("instance", "instance_type", "instancetype", "api_name", "machine_type", "machine", "vm_size", "vm", "sku"),
    *("armskuname", "type", "name", "hardware", "size"),
)
_REGIONS = ("region", "region_code", "armregionname", "location")
_VCPUS, _GPUS = ("vcpus", "vcpu", "cpus"), ("gpus", "gpu_count", "gpucount", "acceleratorcount", "accelerators")
_MEMORY, _GPU = ("memory_gib", "memorygib", "memory", "ram"), ("gpu_name", "gpu_model", "acceleratorname", "gpu")
_SYSTEMS = ("os", "operating_system", "operatingsystem", "product_description", "productdescription", "platform")
_OTHER_SYSTEMS = re.compile(r"windows|rhel|red hat|suse|sql", re.IGNORECASE)
_SPOT_HISTORY = {"AvailabilityZone", "InstanceType", "SpotPrice"}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SEPARATORS = re.compile(r"[\s_().-]+")
_FORMS = (
    "a CSV with columns instance and price (of the instance, not of a GPU),"
    " a vms.csv of SkyPilot, or JSON of AWS, Azure or ec2instances.info"
)


def read_prices(path: Path, region: str, zones: Collection[str] = ()) -> PriceBook:
    """Read the instance types of a price list in a region, in US dollars per hour; its contents decide its format.

    A table has a column of names (``instance``, ``type``, ...) and one of prices (``price``, ``usd_per_hour``,
    ``monthly cost``, ...), and optionally a spot price, a ``region``, and vCPUs, memory and GPUs. JSON is that of
    ``aws ec2 describe-spot-price-history`` (also a table), ``aws pricing get-products`` or an offer file (also in
    CSV), Azure's retail prices, or ec2instances.info. Only Linux counts, and of spot prices the newest in the cheapest
    zone, or in the cheapest of ``zones``.

    Raises:
        UnfoldError: The file is not such a list, a price is invalid or implausible, or the region is missing.
    """
    first = _first_line(path)
    document: object = None
    if set(COLUMNS) <= {name.strip() for name in _head(first)}:
        return read_vms(path, region, zones)
    if first.startswith(("{", "[")) or has_offer_head(first):
        document = read_offer_csv(path) if has_offer_head(first) else _document(path)
        rows = _select_offers(document, path, region, zones)
    else:
        rows = _table(path, region, zones)
    if not rows:
        cells = [row.cells for row in csv_rows(path)] if document is None else document
        contents = describe_contents(cells, region)
        message = f"no price in US dollars for the region {region!r}{f'; the list has {contents}' if contents else ''}"
        raise user_error(message, file=str(path), hint=f"set region, or give {_FORMS}")
    date = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    return PriceBook(path.name, date, {name: replace(row, source=path.name) for name, row in rows.items()})


def _first_line(path: Path) -> str:
    try:
        with open_text(path) as stream:
            return next((line for line in stream if line.strip()), "").lstrip()
    except UNREADABLE as error:
        raise user_error(f"cannot read the price list: {error}", file=str(path), hint=_FORMS) from error


def _head(line: str) -> list[str]:
    return next(csv_lines([line]), (0, []))[1]


def _iter_documents(text: str) -> Iterator[object]:
    """Yield the documents of a text: one, one a line, or the answers to several requests one after another."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        yield document
        rest = rest[end:].lstrip()


def _document(path: Path) -> object:
    try:
        with open_text(path) as stream:
            documents = list(_iter_documents(stream.read()))
            return documents[0] if len(documents) == 1 else documents
    except (ValueError, RecursionError, *UNREADABLE) as error:
        raise user_error(f"cannot read the price list: {error}", file=str(path)) from error


def _select_offers(
    document: object, path: Path, region: str, zones: Collection[str], rows: Sequence[CsvRow] = ()
) -> dict[str, Instance]:
    """Return the cheapest offers of a document of a cloud, or of the rows of a table that stand for one."""
    if has_component_prices(document):
        hint = "give SkyPilot's vms.csv of gcp, or a CSV with columns instance and price"
        message = "Google's catalog has prices of cores, memory and GPUs, not of machine types"
        raise user_error(message, file=str(path), hint=hint)
    try:
        return _select_cheapest(iter_offers(document, region, zones))
    except WrongSpotPriceError as error:
        if rows:
            raise rows[error.index].wrong(error.reason, error.column) from error
        message = f"{error.reason}: row {error.index + 1} of the spot prices"
        raise user_error(message, file=str(path), key=error.column) from error
    except DAMAGED as error:
        raise user_error(f"an entry of the price list does not match its format: {error!r}", file=str(path)) from error


def _select_cheapest(rows: Iterable[Instance]) -> dict[str, Instance]:
    """Return the cheapest offer of each type that has one, without implausible prices."""
    cheapest: dict[str, Instance] = {}
    for row in rows:
        before = cheapest.get(row.name, row)
        cheapest[row.name] = replace(
            before, on_demand=_lower(before.on_demand, row.on_demand), spot=_lower(before.spot, row.spot)
        )
    return {name: row for name, row in cheapest.items() if row.on_demand is not None or row.spot is not None}


def _lower(*prices: float | None) -> float | None:
    return min((price for price in prices if price is not None and not find_implausibility(price)), default=None)


@dataclass(frozen=True, slots=True)
class _TableColumns:
    """The columns of a table by their contents; empty if it has none."""

    name: str
    price: str
    spot: str
    region: str
    currency: str
    system: str
    units: dict[str, PriceUnit]


def _table(path: Path, region: str, zones: Collection[str]) -> dict[str, Instance]:
    instances: dict[str, Instance] = {}
    columns: _TableColumns | None = None
    rows = list(csv_rows(path))
    if rows and set(rows[0].cells) >= _SPOT_HISTORY:
        return _select_offers([row.cells for row in rows], path, region, zones, rows)
    for row in rows:
        columns = columns or _find_columns(list(row.cells), path)
        if columns.region and row[columns.region] != region:
            continue
        if columns.system and _OTHER_SYSTEMS.search(row[columns.system]):
            continue
        item = _instance(row, columns, region)
        if item is None:
            continue
        if instances.setdefault(item.name, item) != item:
            raise row.wrong("this type has another price above", item.name, "one row per type, or a column region")
    return instances


def _find_columns(head: Sequence[str], path: Path) -> _TableColumns:
    units = {name: parsed for name in head if (parsed := parse_unit(name)) is not None}
    hourly = sorted(units, key=lambda name: units[name].hours != 1)
    name = _match_column(head, _NAMES, units)
    price = next((item for item in hourly if not units[item].spot), "")
    spot = next((item for item in hourly if units[item].spot), "")
    if not name or not (price or spot):
        message = f"no column of {'prices' if name else 'instance types'}"
        raise UnfoldError(Diagnostic(message, str(path), 1, 1, hint=f"it has {list_columns(head)}; expected {_FORMS}"))
    currency = _match_column(head, ("currency", "currencycode"), ())
    region, system = (_match_column(head, names, units) for names in (_REGIONS, _SYSTEMS))
    return _TableColumns(name, price, spot, region, currency, system, units)


def _match_column(head: Iterable[str], names: Sequence[str], excluded: Iterable[str]) -> str:
    plain = {_plain(name): name for name in head if name not in excluded}
    return next((plain[name] for name in names if name in plain), "")


def _plain(name: str) -> str:
    return _SEPARATORS.sub("_", name.strip().lower()).strip("_")


def _instance(row: CsvRow, columns: _TableColumns, region: str) -> Instance | None:
    price, spot = (_price(row, column, columns) for column in (columns.price, columns.spot))
    if not row[columns.name] or price is spot is None:
        return None
    if spot is not None and (reason := find_spot_implausibility(spot, price)):
        raise row.wrong(reason, columns.spot)
    head = list(row.cells)
    vcpus, memory, gpus = (_number(row.get(_match_column(head, names, ()))) for names in (_VCPUS, _MEMORY, _GPUS))
    gpu = row.get(_match_column(head, _GPU, ()))
    return Instance(
        row[columns.name], round(vcpus), memory, gpu, round(gpus), on_demand=price, spot=spot, region=region
    )


def _price(row: CsvRow, column: str, columns: _TableColumns) -> float | None:
    if not column:
        return None
    currency = row.get(columns.currency) if columns.currency else ""
    try:
        price = parse_price(f"{row[column]} {currency}".strip() if row[column] else "", columns.units[column])
    except ValueError as error:
        raise row.wrong(str(error), column, "convert the list to dollars, such as 0.526 or $0.526/h") from error
    if price is not None and (reason := find_implausibility(price)):
        raise row.wrong(reason, column, "dollars an hour, or a name with its unit, such as usd_per_month")
    return price


def _number(text: str) -> float:
    match = _NUMBER.search(text)
    return float(match[0]) if match else 0.0
