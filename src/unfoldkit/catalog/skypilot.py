"""Reads SkyPilot's ``vms.csv`` (catalogs v8): one row per type and zone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from unfoldkit.catalog.instances import Book, Instance
from unfoldkit.catalog.sanity import absurd, absurd_spot
from unfoldkit.errors import user_error
from unfoldkit.io.csv import csv_rows

COLUMNS = ("InstanceType", "vCPUs", "MemoryGiB", "Price", "Region")


def read_vms(path: Path, region: str) -> Book:
    """Return a region's types from a ``vms.csv``, priced by its ``Price`` and the cheapest ``SpotPrice`` of its zones.

    Raises:
        UnfoldError: columns are missing, a figure is not a number, a price cannot be true, or the region is absent.
    """
    found = _cheapest_zone(_rows(path, region))
    if not found:
        raise user_error(f"no row for the region {region!r}", file=str(path))
    date = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).date().isoformat()
    return Book(path.name, date, found)


def _rows(path: Path, region: str) -> Iterator[Instance]:
    for row in csv_rows(path, COLUMNS, hint="expected SkyPilot's vms.csv"):
        if row["Region"] == region:
            try:
                yield replace(_instance(row.cells, region), source=path.name)
            except ValueError as error:
                raise row.wrong(
                    str(error), row["InstanceType"], "the row was not taken; correct it or delete it"
                ) from error


def _instance(row: Mapping[str, str], region: str) -> Instance:
    on_demand, spot = _number(row["Price"]), _number(row.get("SpotPrice", ""))
    reason = (absurd(on_demand) if on_demand is not None else "") or (
        absurd_spot(spot, on_demand) if spot is not None else ""
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
    found: dict[str, Instance] = {}
    for row in rows:
        best = found.get(row.name)
        if best is None or (row.spot is not None and (best.spot is None or row.spot < best.spot)):
            found[row.name] = row
    return found


def _number(text: str) -> float | None:
    return float(text) if text and text.strip() else None
