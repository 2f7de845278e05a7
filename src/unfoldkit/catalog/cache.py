"""The cache of prices that were requested from AWS, with their date."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from unfoldkit.catalog.instances import Instance, PriceBook
from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.safe_io.files import DAMAGED, parse_object, read_bytes

SCHEMA = "unfoldkit.catalog/1"


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
