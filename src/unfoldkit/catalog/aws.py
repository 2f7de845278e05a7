"""Asks AWS: Price List for on-demand prices, EC2 for hardware and for the spot price in force.

Clients are made by the caller (:func:`clients`), so that a test hands in stubs. Three traps are met here: a Price List
entry is JSON in a string; ``describe_instance_types`` with explicit names fails as a whole when it does not know one,
so names go through a filter; the spot history lists changes per zone, newest first, and ``StartTime`` = now gives
the price in force.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from unfoldkit.catalog.instances import Book, Instance
from unfoldkit.catalog.sanity import absurd, absurd_spot
from unfoldkit.errors import user_error

PRICING_REGIONS = ("us-east-1", "eu-central-1", "ap-south-1")
SPOT_HISTORY = dt.timedelta(days=90)
FILTER_VALUES = 200
T = TypeVar("T")
LINUX = {
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "licenseModel": "No License required",
    "tenancy": "Shared",
    "capacitystatus": "Used",
}


@dataclass(frozen=True, slots=True)
class Clients:
    """The two boto3 clients: ``pricing`` (served in three regions for all) and ``ec2`` of the region itself."""

    pricing: Any
    ec2: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A price that was not taken, and why."""

    name: str
    market: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The live book, and what was left out of it."""

    book: Book
    refused: tuple[Refused, ...]


def clients(region: str) -> Clients:
    """Return clients with the caller's own AWS credentials."""
    import boto3

    near = region if region in PRICING_REGIONS else PRICING_REGIONS[0]
    return Clients(boto3.client("pricing", region_name=near), boto3.client("ec2", region_name=region))


def refresh(made: Clients, region: str, names: Sequence[str], now: dt.datetime, known: Book) -> Refreshed:
    """Return the live book of ``names`` in ``region``; ``known`` is an earlier book, against which prices are judged.

    Raises:
        UnfoldError: AWS could not be asked, or gave no price that can be true.
    """
    hardware = _asked(lambda: dict(_hardware(made.ec2, names, region)), "ec2:DescribeInstanceTypes")
    prices = _asked(lambda: dict(_on_demand(made.pricing, region, set(names))), "pricing:GetProducts")
    spot = _asked(lambda: _spot(made.ec2, names, now), "ec2:DescribeSpotPriceHistory")
    rows: dict[str, Instance] = {}
    refused: list[Refused] = []
    for name in sorted({*hardware, *prices} & set(names)):
        before = known.rows[name].on_demand if name in known.rows else None
        on_demand, why = _on_demand_or_not(prices.get(name), before)
        refused += [Refused(name, "on-demand", why)] if why else []
        offer, why = _spot_or_not(spot.get(name), now, on_demand or before)
        refused += [Refused(name, "spot", why)] if why else []
        row = replace(hardware.get(name, Instance(name, region=region)), on_demand=on_demand, spot=offer)
        if row.on_demand is not None or row.spot is not None:
            rows[name] = replace(row, source="live", date=now.date().isoformat())
    if not rows:
        hint = "; ".join(f"{item.name} {item.market}: {item.reason}" for item in refused[:3])
        raise user_error(f"AWS gave no usable price for {region}", hint=hint or "is the region's name right?")
    return Refreshed(Book("live", now.date().isoformat(), rows), tuple(refused))


def _on_demand_or_not(price: float | None, before: float | None) -> tuple[float | None, str]:
    reason = absurd(price, known=before) if price is not None else ""
    return (None if reason else price), reason


def _spot_or_not(
    offer: tuple[float, dt.datetime] | None, now: dt.datetime, on_demand: float | None
) -> tuple[float | None, str]:
    if offer is None:
        return None, ""
    reason = _doubtful_spot(*offer, now, on_demand)
    return (None if reason else offer[0]), reason


def _asked(ask: Callable[[], T], permission: str) -> T:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask()
    except (BotoCoreError, ClientError) as error:
        hint = f"needs AWS credentials that may {permission}; the bundled and cached prices still work"
        raise user_error(f"AWS did not answer: {error}", hint=hint) from error


def _hardware(ec2: Any, names: Sequence[str], region: str) -> Iterator[tuple[str, Instance]]:
    for start in range(0, len(names), FILTER_VALUES):
        filters = [{"Name": "instance-type", "Values": list(names[start : start + FILTER_VALUES])}]
        for page in ec2.get_paginator("describe_instance_types").paginate(Filters=filters):
            for item in page["InstanceTypes"]:
                yield item["InstanceType"], _instance(item, region)


def _instance(item: Mapping[str, Any], region: str) -> Instance:
    gpus = item.get("GpuInfo", {}).get("Gpus", [])
    first = gpus[0] if gpus else {}
    return Instance(
        name=item["InstanceType"],
        vcpus=int(item["VCpuInfo"]["DefaultVCpus"]),
        memory_gib=item["MemoryInfo"]["SizeInMiB"] / 1024,
        gpu=str(first.get("Name", "")),
        gpus=sum(int(gpu.get("Count", 0)) for gpu in gpus),
        gpu_memory_gib=first.get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024,
        region=region,
    )


def _on_demand(pricing: Any, region: str, names: set[str]) -> Iterator[tuple[str, float]]:
    wanted = {**LINUX, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
    for page in pages:
        for text in page["PriceList"]:
            product = json.loads(text)
            name = product["product"]["attributes"].get("instanceType")
            if name in names:
                yield from ((name, price) for price in _hourly(product))


def _hourly(product: Mapping[str, Any]) -> Iterator[float]:
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension.get("unit") == "Hrs":
                yield float(dimension["pricePerUnit"]["USD"])


def _spot(ec2: Any, names: Sequence[str], now: dt.datetime) -> dict[str, tuple[float, dt.datetime]]:
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(names), ProductDescriptions=["Linux/UNIX"], StartTime=now
    )
    newest: dict[tuple[str, str], tuple[dt.datetime, float]] = {}
    for page in pages:
        for item in page["SpotPriceHistory"]:
            key = (item["InstanceType"], item.get("AvailabilityZone", ""))
            found = (item["Timestamp"], float(item["SpotPrice"]))
            newest[key] = max(newest.get(key, found), found)
    cheapest: dict[str, tuple[float, dt.datetime]] = {}
    for (name, _zone), (when, price) in newest.items():
        cheapest[name] = min((price, when), cheapest.get(name, (price, when)))
    return cheapest


def _doubtful_spot(price: float, when: dt.datetime, now: dt.datetime, on_demand: float | None) -> str:
    # the history reaches 90 days back: an older change cannot come from AWS
    if now - when > SPOT_HISTORY:
        return f"dated {when.date().isoformat()}, older than the history that AWS keeps"
    return absurd_spot(price, on_demand)
