"""Read SkyPilot's ``vms.csv`` (catalogs v8): one row per type and zone."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unfoldkit.catalog.instances import Instance, PriceBook, find_implausibility, find_spot_implausibility
from unfoldkit.errors import user_error
from unfoldkit.io.tables import csv_rows

ZONE_ID = re.compile(r"-az\d+$")
COLUMNS = ("InstanceType", "vCPUs", "MemoryGiB", "Price", "Region")


def read_vms(path: Path, region: str, zones: Collection[str] = ()) -> PriceBook:
    """Read a region's types from a ``vms.csv``, with ``Price`` and the cheapest ``SpotPrice`` of their zones.

    If ``zones`` are named, spot prices of others do not count. The list has ids of AWS zones (``use1-az1``), and the
    names that an account gives them are unknown: then the most expensive zone counts.

    Raises:
        UnfoldError: A column is missing, a figure is not a number, a price is implausible, or the region is absent.
    """
    instances = _select_zones(_rows(path, region), zones)
    if not instances:
        raise user_error(f"no row for the region {region!r}", file=str(path))
    date = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    return PriceBook(path.name, date, instances)


def _rows(path: Path, region: str) -> Iterator[tuple[str, Instance]]:
    """Yield the zone and the instance of each row."""
    for row in csv_rows(path, COLUMNS, hint="expected SkyPilot's vms.csv"):
        if row["Region"] == region:
            try:
                yield row.get("AvailabilityZone") or "", replace(_instance(row.cells, region), source=path.name)
            except ValueError as error:
                raise row.wrong(str(error), row["InstanceType"], "correct the row or delete it") from error


def _instance(row: Mapping[str, str], region: str) -> Instance:
    on_demand, spot = _number(row["Price"]), _number(row.get("SpotPrice", ""))
    reason = (find_implausibility(on_demand) if on_demand is not None else "") or (
        find_spot_implausibility(spot, on_demand) if spot is not None else ""
    )
    if reason:
        raise ValueError(reason)
    return Instance(
        name=row["InstanceType"],
        vcpus=round(_number(row["vCPUs"]) or 0),
        memory_gib=_number(row["MemoryGiB"]) or 0.0,
        gpu=row.get("AcceleratorName", ""),
        gpus=round(_number(row.get("AcceleratorCount", "")) or 0),
        on_demand=on_demand,
        spot=spot,
        region=region,
    )


def _select_zones(rows: Iterable[tuple[str, Instance]], zones: Collection[str]) -> dict[str, Instance]:
    by_name: dict[str, list[tuple[str, Instance]]] = {}
    for zone, row in rows:
        by_name.setdefault(row.name, []).append((zone, row))
    return {name: _select_zone(offers, zones) for name, offers in by_name.items()}


def _select_zone(offers: Sequence[tuple[str, Instance]], zones: Collection[str]) -> Instance:
    """Return an offer with the spot price of the cheapest zone, or the most expensive if the named are unknown."""
    has_ids = any(ZONE_ID.search(zone) for zone, _ in offers)
    priced = [
        row for zone, row in offers if row.spot is not None and (not zones or not zone or has_ids or zone in zones)
    ]
    choose = max if zones and has_ids else min
    return choose(priced, key=lambda row: row.spot or 0.0) if priced else replace(offers[0][1], spot=None)


def _number(text: str) -> float | None:
    return float(text) if text and text.strip() else None
