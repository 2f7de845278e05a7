"""Read SkyPilot's ``vms.csv`` (catalogs v8): one row per type and zone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from unfoldkit.catalog.instances import Instance, PriceBook, find_implausibility, find_spot_implausibility
from unfoldkit.errors import user_error
from unfoldkit.io.tables import csv_rows

COLUMNS = ("InstanceType", "vCPUs", "MemoryGiB", "Price", "Region")


def read_vms(path: Path, region: str, zones: Collection[str] = ()) -> PriceBook:
    """Read a region's types from a ``vms.csv``, with ``Price`` and the cheapest ``SpotPrice`` of their zones.

    If ``zones`` are named, spot prices of others do not count. AWS zones have ids there (``use1-az1``), and which names
    an account gives them is unknown: no spot price is that of a named zone.

    Raises:
        UnfoldError: A column is missing, a figure is not a number, a price is implausible, or the region is absent.
    """
    instances = _cheapest_zone(_rows(path, region, zones))
    if not instances:
        raise user_error(f"no row for the region {region!r}", file=str(path))
    date = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    return PriceBook(path.name, date, instances)


def _rows(path: Path, region: str, zones: Collection[str]) -> Iterator[Instance]:
    for row in csv_rows(path, COLUMNS, hint="expected SkyPilot's vms.csv"):
        if row["Region"] == region:
            try:
                instance = replace(_instance(row.cells, region), source=path.name)
            except ValueError as error:
                raise row.wrong(str(error), row["InstanceType"], "correct the row or delete it") from error
            zone = row.get("AvailabilityZone")
            yield replace(instance, spot=None) if zones and zone and zone not in zones else instance


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


def _cheapest_zone(rows: Iterator[Instance]) -> dict[str, Instance]:
    cheapest: dict[str, Instance] = {}
    for row in rows:
        best = cheapest.get(row.name)
        if best is None or (row.spot is not None and (best.spot is None or row.spot < best.spot)):
            cheapest[row.name] = row
    return cheapest


def _number(text: str) -> float | None:
    return float(text) if text and text.strip() else None
