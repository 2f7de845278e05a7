"""A book as bytes, for a cache file that remembers when it was asked for."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from unfoldkit.catalog.instances import Book, Instance
from unfoldkit.errors import UnfoldError, user_error
from unfoldkit.safe_io.files import DAMAGED, parse_object, read_bytes

SCHEMA = "unfoldkit.catalog/1"


def to_bytes(book: Book) -> bytes:
    """Return a live book as JSON; who stores it owns the file and its atomic replacement."""
    rows = [asdict(row) for _, row in sorted(book.rows.items())]
    return (json.dumps({"schema": SCHEMA, "date": book.date, "rows": rows}, indent=1) + "\n").encode()


def from_bytes(data: bytes, file: str = "") -> Book:
    """Return the book that ``to_bytes`` wrote, now called ``cached``.

    Raises:
        UnfoldError: the file is damaged; the hint says how to make it new.
    """
    with suppress(UnfoldError, *DAMAGED):
        content = parse_object(data)
        if content["schema"] == SCHEMA:
            rows = [replace(Instance(**row), source="cached") for row in content["rows"]]
            return Book("cached", str(content["date"]), {row.name: row for row in rows})
    raise user_error("the price cache is damaged", file=file, hint="delete it, or unfold catalog refresh")


def cached(folder: Path, region: str) -> Book | None:
    """Return the cached book of a region, or nothing if none was stored."""
    path = cache_file(folder, region)
    return from_bytes(read_bytes(path), str(path)) if path.is_file() else None


def cache_file(folder: Path, region: str) -> Path:
    """Return where the cached book of a region lies."""
    return folder / f"catalog-aws-{region}.json"
