"""Fakes of AWS: moto (a fake cloud in this process) for EC2, botocore's Stubber for the Price List that moto lacks."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import boto3
from botocore.stub import ANY, Stubber

KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


def product(name: str, price: str, unit: str = "Hrs") -> str:
    """Return an element of a fake Price List: JSON in a string, as AWS gives it."""
    dimension = {"unit": unit, "pricePerUnit": {"USD": price}}
    terms = {"OnDemand": {"SKU.TERM": {"priceDimensions": {"SKU.TERM.RATE": dimension}}}}
    return json.dumps({"product": {"attributes": {"instanceType": name}}, "terms": terms})


def pricing(*pages: list[str]) -> Any:
    """Return a stubbed ``pricing`` client that answers with these pages, one call each."""
    client = boto3.client("pricing", region_name="us-east-1", **KEYS)
    stub = Stubber(client)
    for index, page in enumerate(pages):
        asked = {"ServiceCode": "AmazonEC2", "Filters": ANY} | ({"NextToken": f"t{index}"} if index else {})
        more = {"NextToken": f"t{index + 1}"} if index + 1 < len(pages) else {}
        stub.add_response("get_products", {"PriceList": page, "FormatVersion": "aws_v1", **more}, asked)
    stub.activate()
    return client


def ec2_stub(types: list[list[dict[str, Any]]], spots: list[list[dict[str, Any]]]) -> Any:
    """Return a stubbed ``ec2`` client that answers with pages of types, then with pages of spot prices."""
    client = boto3.client("ec2", region_name="us-east-1", **KEYS)
    stub = Stubber(client)
    for index, page in enumerate(types):
        more = {"NextToken": f"t{index + 1}"} if index + 1 < len(types) else {}
        stub.add_response("describe_instance_types", {"InstanceTypes": page, **more})
    for index, page in enumerate(spots):
        more = {"NextToken": f"t{index + 1}"} if index + 1 < len(spots) else {}
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": page, **more})
    stub.activate()
    return client


def offer(name: str, zone: str, price: str, when: dt.datetime) -> dict[str, Any]:
    """Return an element of a fake spot price history."""
    return {"InstanceType": name, "AvailabilityZone": zone, "SpotPrice": price, "Timestamp": when}


def hardware(name: str, vcpus: int, mib: int, gpu: str = "", gpus: int = 0) -> dict[str, Any]:
    """Return an element of a fake list of instance types."""
    item: dict[str, Any] = {
        "InstanceType": name,
        "VCpuInfo": {"DefaultVCpus": vcpus},
        "MemoryInfo": {"SizeInMiB": mib},
    }
    cards = [{"Name": gpu, "Count": gpus, "MemoryInfo": {"SizeInMiB": 22888}}]
    return item | ({"GpuInfo": {"Gpus": cards}} if gpu else {})
