"""The bundled table of about sixty current types of AWS, with the date and source of each price."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.resources import files

from unfoldkit.catalog.instances import Catalog, Instance, PriceBook

REGION = "us-east-1"


def load_bundled_book(region: str = REGION) -> PriceBook:
    """Load the bundled book; for other regions it has the hardware, not the price."""
    text = files("unfoldkit.catalog").joinpath("aws_us_east_1.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [_instance(row, region) for row in csv.DictReader(lines)]
    return PriceBook("bundled", max(row.date for row in rows), {row.name: row for row in rows})


def load_catalog(region: str = REGION, *books: PriceBook) -> Catalog:
    """Load the catalog of a region: ``books`` first (live, cached), then the bundled one."""
    return Catalog((*books, load_bundled_book(region)))


def _instance(row: Mapping[str, str], region: str) -> Instance:
    has_prices = region == REGION
    on_demand = float(row["usd_per_hour"])
    spot = on_demand * (1 - float(row["saving_pct"]) / 100) if row["saving_pct"] and has_prices else None
    return Instance(
        name=row["type"],
        vcpus=int(row["vcpus"]),
        memory_gib=float(row["memory_gib"]),
        gpu=row["gpu"],
        gpus=int(row["gpus"]),
        gpu_memory_gib=float(row["gpu_memory_gib"]),
        on_demand=on_demand if has_prices else None,
        spot=None if spot is None else round(spot, 6),
        spot_derived=spot is not None,
        band=int(row["band"]) if row["band"] else None,
        source="bundled",
        date=row["date"],
        region=region,
    )
