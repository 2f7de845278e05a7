"""Price books: the bundled table of about sixty types of AWS, and the cache of prices that were requested from AWS.

Every price has a date and a source.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

from unfoldkit.catalog.instances import Catalog, Instance, PriceBook
from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.safe_io.files import DAMAGED, parse_object, read_bytes

REGION = "us-east-1"
SCHEMA = "unfoldkit.catalog/1"


def load_bundled_book(region: str = REGION) -> PriceBook:
    """Load the bundled book; for other regions it has the hardware, not the price."""
    text = files("unfoldkit.catalog").joinpath("aws_us_east_1.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [_instance(row, region) for row in csv.DictReader(lines)]
    return PriceBook("bundled", max(row.date for row in rows), {row.name: row for row in rows})


def load_catalog(region: str = REGION, *books: PriceBook) -> Catalog:
    """Load the catalog of a region: ``books`` first (live, cached), then the bundled one."""
    return Catalog((*books, load_bundled_book(region)))


def to_bytes(book: PriceBook) -> bytes:
    """Serialize a live book as JSON; the caller writes the file."""
    rows = [asdict(row) for _, row in sorted(book.rows.items())]
    return (json.dumps({"schema": SCHEMA, "date": book.date, "rows": rows}, indent=1) + "\n").encode()


def from_bytes(data: bytes, file: str = "") -> PriceBook:
    """Parse the book that ``to_bytes`` wrote; its source is now ``cached``.

    Raises:
        UnfoldError: The file is damaged; the hint says how to renew it.
    """
    with suppress(UnfoldError, *DAMAGED):
        content = parse_object(data)
        if content["schema"] == SCHEMA:
            rows = [replace(Instance(**row), source="cached") for row in content["rows"]]
            return PriceBook("cached", str(content["date"]), {row.name: row for row in rows})
    raise user_error("the price cache is damaged", file=file, hint="delete it, or unfold catalog refresh")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of cached prices, in the XDG cache folder of the user."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfoldkit"


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of records that outlive runs, in the XDG state folder of the user."""
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "unfoldkit"


def load_cached_book(folder: Path, region: str) -> PriceBook | None:
    """Load the cached book of a region; ``None`` if none was stored."""
    path = cache_file(folder, region)
    return from_bytes(read_bytes(path), str(path)) if path.is_file() else None


def cache_file(folder: Path, region: str) -> Path:
    """Return the path of the cached book of a region."""
    return folder / f"catalog-aws-{region}.json"


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
