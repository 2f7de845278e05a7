"""The hourly price of the machine that a search runs on, for a budget without one.

The firmware of a machine names its maker: on EC2 together with the instance type, which the price lists have, in other
clouds without it. Any other machine counts as the user's own, which costs nothing by the hour.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unfoldkit.api import user_error
from unfoldkit.catalog.price_books import REGION, cache_folder, load_cached_book, load_catalog

FIRMWARE = Path("/sys/class/dmi/id")
CLOUDS = {
    "Google Compute Engine": "Google Cloud",
    "7783-7084-3265-9085-8269-3286-77": "Azure",
    "OracleCloud.com": "Oracle Cloud",
    "Alibaba Cloud": "Alibaba Cloud",
    "DigitalOcean": "DigitalOcean",
    "Hetzner": "Hetzner",
    "Scaleway": "Scaleway",
    "Vultr": "Vultr",
}
"""Clouds by what their firmware has in its maker, its product or its asset tag."""
HINT = 'write usd_per_hour=1.5 or usd_per_hour="$1.50/h"'
OWN = "the budget limits nothing: this machine has no known price; where it is rented, write usd_per_hour=1.5"


@dataclass(frozen=True, slots=True)
class MachinePrice:
    """The price of a whole machine.

    Attributes:
        usd_per_hour: The price; 0 if the machine is the user's own.
        note: What a budget counts.
    """

    usd_per_hour: float
    note: str


def find_machine_price(firmware: Path = FIRMWARE, environment: Mapping[str, str] = os.environ) -> MachinePrice:
    """Find the price of this machine: on demand on EC2, in the region that the environment names.

    Raises:
        UnfoldError: It is rented, and its price is unknown.
    """
    maker, kind, tag = (_read(firmware / name) for name in ("sys_vendor", "product_name", "chassis_asset_tag"))
    if maker == "Amazon EC2":
        return _find_aws_price(kind, environment)
    cloud = next((name for mark, name in CLOUDS.items() if mark in f"{maker} {kind} {tag}"), "")
    if cloud:
        raise user_error(f"a budget needs the price of a worker, and that of {cloud} is unknown", hint=HINT)
    return MachinePrice(0.0, OWN)


def _find_aws_price(kind: str, environment: Mapping[str, str]) -> MachinePrice:
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or REGION
    cached = load_cached_book(cache_folder(environment), region)
    catalog = load_catalog(region, *([cached] if cached else []))
    price = catalog.find(kind).on_demand if kind in catalog.names() else None
    if price is None:
        message = f"a budget needs the price of a worker, and that of {kind} in {region} is unknown"
        raise user_error(message, hint=f"{HINT}, or run unfold catalog refresh --region {region}")
    return MachinePrice(price, f"the budget counts {kind} at ${price:g}/h, on demand in {region}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
