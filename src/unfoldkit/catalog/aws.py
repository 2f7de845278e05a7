"""Request prices from AWS: on-demand prices from Price List, hardware and current spot prices from EC2.

The caller connects the clients (:func:`connect_clients`), so that tests can pass stubs. Three peculiarities of the API:
an entry of the Price List is JSON in a string. ``describe_instance_types`` fails for all names if it does not know one,
so names go into a filter. The spot history lists changes per zone, and ``StartTime`` = now gives the current price.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from unfoldkit.catalog.instances import Instance, PriceBook, find_implausibility, find_spot_implausibility
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
class AwsClients:
    """The two boto3 clients: ``pricing`` (served in three regions for all) and ``ec2`` of the region itself."""

    pricing: Any
    ec2: Any


@dataclass(frozen=True, slots=True)
class RejectedPrice:
    """A price that was rejected, and why."""

    name: str
    market: str
    reason: str


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """The live book, and the prices that were rejected."""

    book: PriceBook
    rejected: tuple[RejectedPrice, ...]


def connect_clients(region: str) -> AwsClients:
    """Connect clients with the AWS credentials of the user."""
    import boto3

    pricing_region = region if region in PRICING_REGIONS else PRICING_REGIONS[0]
    return AwsClients(boto3.client("pricing", region_name=pricing_region), boto3.client("ec2", region_name=region))


def request_prices(
    clients: AwsClients,
    region: str,
    names: Sequence[str],
    now: dt.datetime,
    known: PriceBook,
    zones: Collection[str] = (),
) -> RefreshResult:
    """Request the current prices of instance types.

    Args:
        clients: The clients of AWS.
        region: The region.
        names: The instance types.
        now: The current time.
        known: An earlier book, against which prices are checked.
        zones: The zones of which spot prices count; all if empty.

    Raises:
        UnfoldError: AWS did not respond, or gave no plausible price.
    """
    hardware = _call(lambda: dict(_hardware(clients.ec2, names, region)), "ec2:DescribeInstanceTypes")
    prices = _call(lambda: dict(_on_demand(clients.pricing, region, set(names))), "pricing:GetProducts")
    spot = _call(lambda: _spot(clients.ec2, names, now, zones), "ec2:DescribeSpotPriceHistory")
    rows: dict[str, Instance] = {}
    rejected: list[RejectedPrice] = []
    for name in sorted({*hardware, *prices} & set(names)):
        before = known.rows[name].on_demand if name in known.rows else None
        on_demand, reason = _check_on_demand(prices.get(name), before)
        rejected += [RejectedPrice(name, "on-demand", reason)] if reason else []
        spot_price, reason = _check_spot(spot.get(name), now, on_demand or before)
        rejected += [RejectedPrice(name, "spot", reason)] if reason else []
        row = replace(hardware.get(name, Instance(name, region=region)), on_demand=on_demand, spot=spot_price)
        if row.on_demand is not None or row.spot is not None:
            rows[name] = replace(row, source="live", date=now.date().isoformat())
    if not rows:
        hint = "; ".join(f"{item.name} {item.market}: {item.reason}" for item in rejected[:3])
        raise user_error(f"AWS returned no usable price for {region}", hint=hint or "is the region's name right?")
    return RefreshResult(PriceBook("live", now.date().isoformat(), rows), tuple(rejected))


def _check_on_demand(price: float | None, before: float | None) -> tuple[float | None, str]:
    reason = find_implausibility(price, known=before) if price is not None else ""
    return (None if reason else price), reason


def _check_spot(
    offer: tuple[float, dt.datetime] | None, now: dt.datetime, on_demand: float | None
) -> tuple[float | None, str]:
    if offer is None:
        return None, ""
    reason = _find_spot_problem(*offer, now, on_demand)
    return (None if reason else offer[0]), reason


def _call(request: Callable[[], T], permission: str) -> T:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return request()
    except (BotoCoreError, ClientError) as error:
        hint = f"needs AWS credentials that may {permission}; the bundled and cached prices still work"
        raise user_error(f"AWS did not respond: {error}", hint=hint) from error


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
    terms = {**LINUX, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in terms.items()]
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


def _spot(
    ec2: Any, names: Sequence[str], now: dt.datetime, zones: Collection[str]
) -> dict[str, tuple[float, dt.datetime]]:
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(names), ProductDescriptions=["Linux/UNIX"], StartTime=now
    )
    newest: dict[tuple[str, str], tuple[dt.datetime, float]] = {}
    for page in pages:
        for item in page["SpotPriceHistory"]:
            if zones and item.get("AvailabilityZone") not in zones:
                continue
            key = (item["InstanceType"], item.get("AvailabilityZone", ""))
            change = (item["Timestamp"], float(item["SpotPrice"]))
            newest[key] = max(newest.get(key, change), change)
    cheapest: dict[str, tuple[float, dt.datetime]] = {}
    for (name, _zone), (when, price) in newest.items():
        cheapest[name] = min((price, when), cheapest.get(name, (price, when)))
    return cheapest


def _find_spot_problem(price: float, when: dt.datetime, now: dt.datetime, on_demand: float | None) -> str:
    # the history covers 90 days: an older change cannot come from AWS
    if now - when > SPOT_HISTORY:
        return f"dated {when.date().isoformat()}, older than the history of AWS"
    return find_spot_implausibility(price, on_demand)
