"""Read AWS's offer files in CSV, such as ``offers/v1.0/aws/AmazonEC2/current/us-east-1/index.csv``, as products.

Five lines about the file come before the head. A row is one price of a product, with the attributes of the product in
columns that carry the names of the JSON in words: ``Instance Type`` is ``instanceType``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

from unfoldkit.errors import user_error
from unfoldkit.io.tables import UNREADABLE, csv_lines, open_text

HEAD_CELLS = ["SKU", "OfferTermCode"]
ATTRIBUTES = {
    "Instance Type": "instanceType",
    "Region Code": "regionCode",
    "Operating System": "operatingSystem",
    "Tenancy": "tenancy",
    "Pre Installed S/W": "preInstalledSw",
    "CapacityStatus": "capacitystatus",
    "vCPU": "vcpu",
    "Memory": "memory",
    "GPU": "gpu",
}
TERMS = {"TermType", "Unit", "PricePerUnit", "Currency"}
KIND = ("TermType", "Unit", "Currency", "Region Code", "Operating System")
ON_DEMAND = "OnDemand"


def has_offer_head(first_line: str) -> bool:
    """Return whether a file begins as an offer file does, with its version or, shortened, with its head."""
    cells = [cell.strip() for cell in first_line.replace('"', "").split(",")]
    return cells[0] == "FormatVersion" or cells[:2] == HEAD_CELLS


def read_offer_csv(path: Path) -> dict[str, list[Any]]:
    """Read an offer file as a document of ``aws pricing get-products``.

    Raises:
        UnfoldError: The file is damaged, or has no such columns.
    """
    try:
        with open_text(path) as stream:
            return {"PriceList": list(_iter_products(stream, path))}
    except UNREADABLE as error:
        raise user_error(f"cannot read the price list: {error}", file=str(path)) from error


def _iter_products(stream: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    lines = csv_lines(dropwhile(lambda line: not line.startswith(('"SKU"', "SKU")), stream))
    _, head = next(lines, (0, []))
    columns = {name: index for index, name in enumerate(head)}
    missing = sorted({*TERMS, "Instance Type"} - columns.keys())
    if missing:
        raise user_error(f"the offer file has no column {missing[0]}", file=str(path), hint="is it that of AmazonEC2?")
    kinds = set[tuple[str, ...]]()
    for _, cells in lines:
        row = {name: cells[index] for name, index in columns.items() if index < len(cells)}
        attributes = {key: row[name] for name, key in ATTRIBUTES.items() if row.get(name)}
        if "instanceType" not in attributes or not row.keys() >= TERMS:
            continue
        if row["TermType"] != ON_DEMAND:
            # nine rows of ten, none of which counts: one of a kind shows what the file holds
            kind = tuple(row.get(name, "") for name in KIND)
            if kind in kinds:
                continue
            kinds.add(kind)
        dimension = {"unit": row["Unit"], "pricePerUnit": {row["Currency"]: row["PricePerUnit"]}}
        terms = {row["TermType"]: {"": {"priceDimensions": {"": dimension}}}}
        yield {"product": {"attributes": attributes}, "terms": terms}
