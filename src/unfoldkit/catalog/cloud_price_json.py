"""Read price lists of clouds in JSON: AWS, Azure and ec2instances.info. Prices are for Linux, in US dollars."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from unfoldkit.catalog.instances import Instance, find_implausibility

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")
_PAGED = ("SpotPriceHistory", "Items", "PriceList")
"""Keys of the rows in an answer of AWS or Azure, which may have several pages."""
_OTHER_AZURE = ("Windows", "Low Priority", "Cloud Services", "CloudServices")
"""Words of meters of Azure that bill the same types of machines, but no virtual machine with Linux."""
_DIRECTIONS = {"northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw"}


class WrongSpotPriceError(Exception):
    """A row of a history of spot prices cannot be read.

    Attributes:
        index: The row, from 0.
        column: Its key.
        reason: What is wrong.
    """

    def __init__(self, index: int, column: str, reason: str) -> None:
        super().__init__(reason)
        self.index, self.column, self.reason = index, column, reason


def iter_offers(document: Any, region: str, zones: Collection[str] = ()) -> Iterator[Instance]:
    """Yield the offers of a document in a region, several per type if it has them; none if its format is unknown.

    If ``zones`` are named, spot prices of others do not count.

    Raises:
        WrongSpotPriceError: A spot price that counts, or its time, is none.
    """
    if isinstance(document, Mapping):
        yield from _spot(document.get("SpotPriceHistory") or (), region, zones)
        yield from _azure(document.get("Items") or (), region)
        yield from _offer_file(document, region)
        products = (json.loads(item) if isinstance(item, str) else item for item in document.get("PriceList") or ())
        yield from (offer for item in products if (offer := _product(item, region)) is not None)
    elif isinstance(document, list) and (pages := _merge_pages(document)):
        yield from iter_offers(pages, region, zones)
    elif isinstance(document, list):
        yield from _azure([item for item in document if "armSkuName" in item], region)
        yield from _spot([item for item in document if "SpotPrice" in item], region, zones)
        yield from (offer for item in document if (offer := _ec2instances(item, region)) is not None)


def has_component_prices(document: Any) -> bool:
    """Return whether a document is Google's catalog, which prices cores, memory and GPUs apart."""
    pages = document if isinstance(document, list) else [document]
    return any(isinstance(page, Mapping) and (page.get("skus") or "pricingInfo" in page) for page in pages)


def _merge_pages(documents: list[Any]) -> dict[str, list[Any]]:
    """Merge the pages of an answer: the newest of all prices counts, not that of each page."""
    pages = [item for item in documents if isinstance(item, Mapping)]
    return {key: rows for key in _PAGED if (rows := [row for page in pages for row in page.get(key) or ()])}


def _spot(rows: Any, region: str, zones: Collection[str]) -> Iterator[Instance]:
    """``aws ec2 describe-spot-price-history``: of each type and zone the newest price.

    Rows may have only the ids of zones (``use1-az1``). The names that an account gives them are unknown: if ``zones``
    are named, the most expensive zone then counts.
    """
    newest: dict[tuple[str, str], tuple[float, float]] = {}
    highest: dict[str, float] = {}
    for index, row in enumerate(rows):
        # a local zone such as us-east-1-bos-1a is another place
        zone, place = str(row.get("AvailabilityZone") or row["AvailabilityZoneId"]), re.escape(_abbreviate(region))
        is_id = re.fullmatch(rf"{place}-az\d+", zone) is not None
        is_here = is_id or (zone in zones if zones else re.fullmatch(rf"{re.escape(region)}[a-z]", zone))
        if is_here and row.get("ProductDescription", _LINUX[0]) in _LINUX:
            key, price = (str(row["InstanceType"]), zone), _read_spot_price(index, row)
            # of two prices at one time, the higher one
            newest[key] = max(newest.get(key, price), price)
    for (name, zone), (_, usd) in newest.items():
        if zones and zone not in zones:
            highest[name] = max(highest.get(name, usd), usd)
        else:
            yield Instance(name, spot=usd, region=region)
    for name, usd in highest.items():
        yield Instance(name, spot=usd, region=region)


def _read_spot_price(index: int, row: Mapping[str, Any]) -> tuple[float, float]:
    """Read the time of a spot price, and the price."""
    try:
        price = float(row["SpotPrice"])
    except (TypeError, ValueError) as error:
        raise WrongSpotPriceError(index, "SpotPrice", f"{row['SpotPrice']!r} is not a price") from error
    if reason := find_implausibility(price):
        raise WrongSpotPriceError(index, "SpotPrice", reason)
    try:
        return _parse_time(row), price
    except (TypeError, ValueError) as error:
        raise WrongSpotPriceError(index, "Timestamp", f"{row['Timestamp']!r} is not a time") from error


def _abbreviate(region: str) -> str:
    """Abbreviate a region of AWS like the ids of its zones: ``us-east-1`` to ``use1``, ``ap-south-1`` to ``aps1``."""
    return "".join(
        part if index == 0 or part.isdigit() else "g" if part == "gov" else _DIRECTIONS.get(part, part[:1])
        for index, part in enumerate(region.split("-"))
    )


def _parse_time(row: Mapping[str, Any], key: str = "Timestamp") -> float:
    """Parse the time of a price: a date, in UTC unless it has a zone, or seconds since 1970."""
    stamp = row.get(key) or 0.0
    if not isinstance(stamp, str):
        return float(stamp)
    date = dt.datetime.fromisoformat(stamp)
    return (date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp()


def _azure(rows: Any, region: str) -> Iterator[Instance]:
    """Azure's retail prices: consumption by the hour of machines with Linux; of each meter the present price."""
    now = dt.datetime.now(dt.UTC).timestamp()
    latest: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in rows:
        names = tuple(str(row.get(key, "")) for key in ("armSkuName", "productName", "skuName", "meterName"))
        is_other = any(word in " ".join(names) for word in _OTHER_AZURE) or bool(row.get("tierMinimumUnits"))
        is_hourly = row.get("type", "Consumption") == "Consumption" and row.get("unitOfMeasure", "1 Hour") == "1 Hour"
        is_here = row.get("armRegionName") == region and row.get("currencyCode", "USD") == "USD"
        if not names[0] or is_other or not (is_hourly and is_here):
            continue
        age_s, price = now - _parse_time(row, "effectiveStartDate"), float(row["retailPrice"])
        if age_s >= 0:
            latest[names] = min(latest.get(names, (age_s, price)), (age_s, price))
    for names, (_, price) in latest.items():
        is_spot = "Spot" in " ".join(names)
        yield Instance(names[0], on_demand=None if is_spot else price, spot=price if is_spot else None, region=region)


def _offer_file(document: Mapping[str, Any], region: str) -> Iterator[Instance]:
    """An offer file of AWS: products by their number, and the terms of each."""
    terms = document.get("terms", {}).get("OnDemand", {}) if isinstance(document.get("products"), Mapping) else {}
    for number, term in terms.items():
        product = document["products"].get(number, {})
        offer = _product({"product": product, "terms": {"OnDemand": term}}, region)
        if offer is not None:
            yield offer


def _product(item: Mapping[str, Any], region: str) -> Instance | None:
    """One product of AWS's price list with its terms, for Linux on shared machines."""
    attributes = item.get("product", {}).get("attributes", {})
    expected = {"regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA"}
    if "instanceType" not in attributes or any(attributes.get(key, value) != value for key, value in expected.items()):
        return None
    if attributes.get("capacitystatus", "Used") != "Used":
        return None
    dimensions = [
        dimension
        for term in item["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension.get("unit") == "Hrs" and "USD" in dimension["pricePerUnit"]
    ]
    price = float(dimensions[0]["pricePerUnit"]["USD"]) if dimensions else None
    return Instance(
        attributes["instanceType"],
        round(_number(attributes.get("vcpu"))),
        _number(attributes.get("memory")),
        gpus=round(_number(attributes.get("gpu"))),
        on_demand=price,
        region=region,
    )


def _ec2instances(item: Any, region: str) -> Instance | None:
    """A type of ec2instances.info."""
    prices = item.get("pricing", {}).get(region, {}).get("linux") if isinstance(item, Mapping) else None
    if not prices or "instance_type" not in item:
        return None
    spot = [prices[key] for key in ("spot_min", "spot") if key in prices]
    return Instance(
        item["instance_type"],
        round(_number(item.get("vCPU"))),
        _number(item.get("memory")),
        str(item.get("GPU_model") or ""),
        round(_number(item.get("GPU"))),
        on_demand=_number(prices.get("ondemand")) or None,
        spot=(_number(spot[0]) or None) if spot else None,
        region=region,
    )


def _number(value: Any) -> float:
    match = _NUMBER.search(str(value))
    return float(match[0]) if match else 0.0
