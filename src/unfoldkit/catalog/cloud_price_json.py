"""The price lists that clouds give out as JSON: AWS, Azure, and ec2instances.info. Prices are of Linux, in dollars."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from unfoldkit.catalog.instances import Instance

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LINUX = "Linux/UNIX"


def offers(document: Any, region: str) -> Iterator[Instance]:
    """Yield what a document offers in a region, a type as often as it is offered; nothing if its form is not known."""
    if isinstance(document, Mapping):
        yield from _spot(document.get("SpotPriceHistory") or (), region)
        yield from _azure(document.get("Items") or (), region)
        yield from _listed(document, region)
        products = (json.loads(item) if isinstance(item, str) else item for item in document.get("PriceList") or ())
        yield from (found for item in products if (found := _product(item, region)) is not None)
    elif isinstance(document, list):
        yield from _azure([item for item in document if "armSkuName" in item], region)
        yield from _spot([item for item in document if "SpotPrice" in item], region)
        yield from (found for item in document if (found := _compared(item, region)) is not None)


def _spot(rows: Any, region: str) -> Iterator[Instance]:
    """``aws ec2 describe-spot-price-history``: of each type and zone the newest price."""
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        if str(row["AvailabilityZone"]).startswith(region) and row.get("ProductDescription", _LINUX) == _LINUX:
            key = (row["InstanceType"], row["AvailabilityZone"])
            newest[key] = max(newest.get(key, row), row, key=lambda item: str(item.get("Timestamp", "")))
    for (name, _), row in newest.items():
        yield Instance(name, spot=float(row["SpotPrice"]), region=region)


def _azure(rows: Any, region: str) -> Iterator[Instance]:
    """Azure's retail prices: consumption by the hour, without Windows and low priority."""
    for row in rows:
        words = f"{row.get('productName', '')} {row.get('skuName', '')} {row.get('meterName', '')}"
        usual = row.get("type", "Consumption") == "Consumption" and row.get("unitOfMeasure", "1 Hour") == "1 Hour"
        here = row.get("armRegionName") == region and row.get("currencyCode", "USD") == "USD"
        if usual and here and row.get("armSkuName") and "Windows" not in words and "Low Priority" not in words:
            price, spot = float(row["retailPrice"]), "Spot" in words
            yield Instance(
                row["armSkuName"], on_demand=None if spot else price, spot=price if spot else None, region=region
            )


def _listed(document: Mapping[str, Any], region: str) -> Iterator[Instance]:
    """An offer file of AWS: products by their number, and the terms of each."""
    terms = document.get("terms", {}).get("OnDemand", {}) if isinstance(document.get("products"), Mapping) else {}
    for number, term in terms.items():
        product = document["products"].get(number, {})
        found = _product({"product": product, "terms": {"OnDemand": term}}, region)
        if found is not None:
            yield found


def _product(item: Mapping[str, Any], region: str) -> Instance | None:
    """One product of AWS's price list with its terms, for Linux on shared machines."""
    told = item.get("product", {}).get("attributes", {})
    wanted = {"regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA"}
    if "instanceType" not in told or any(told.get(key, value) != value for key, value in wanted.items()):
        return None
    if told.get("capacitystatus", "Used") != "Used":
        return None
    dimensions = [
        dimension
        for term in item["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension.get("unit") == "Hrs" and "USD" in dimension["pricePerUnit"]
    ]
    price = float(dimensions[0]["pricePerUnit"]["USD"]) if dimensions else None
    return Instance(
        told["instanceType"],
        round(_number(told.get("vcpu"))),
        _number(told.get("memory")),
        gpus=round(_number(told.get("gpu"))),
        on_demand=price,
        region=region,
    )


def _compared(item: Any, region: str) -> Instance | None:
    """A type of ec2instances.info."""
    paid = item.get("pricing", {}).get(region, {}).get("linux") if isinstance(item, Mapping) else None
    if not paid or "instance_type" not in item:
        return None
    spot = [paid[key] for key in ("spot_min", "spot") if key in paid]
    return Instance(
        item["instance_type"],
        round(_number(item.get("vCPU"))),
        _number(item.get("memory")),
        str(item.get("GPU_model") or ""),
        round(_number(item.get("GPU"))),
        on_demand=_number(paid.get("ondemand")) or None,
        spot=(_number(spot[0]) or None) if spot else None,
        region=region,
    )


def _number(value: Any) -> float:
    found = _NUMBER.search(str(value))
    return float(found[0]) if found else 0.0
