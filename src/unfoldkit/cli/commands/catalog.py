"""``unfold catalog``: instance types and prices, with the source of each price."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

from unfoldkit.catalog.aws import AwsClients, RefreshResult, connect_clients, request_prices
from unfoldkit.catalog.instances import (
    Catalog,
    Instance,
    InstanceFilter,
    PriceBook,
    is_same_gpu,
    price_of,
    unknown_gpu_error,
)
from unfoldkit.catalog.price_books import cache_file, cache_folder, load_cached_book, load_catalog, to_bytes
from unfoldkit.catalog.price_lists import read_prices
from unfoldkit.cli import console, output
from unfoldkit.errors import ExitCode, user_error
from unfoldkit.registry import open_registry
from unfoldkit.report import Cell, Column, Metric, Report, Table, Verdict
from unfoldkit.run_directory import write_atomically
from unfoldkit.spec.units import UNIT_FAMILIES

PRICE = UNIT_FAMILIES["price"]
COLUMNS = (
    Column("type"),
    Column("vCPU"),
    Column("memory", "GiB", 0),
    Column("GPUs"),
    Column("GPU memory", "GiB", 0),
    Column("on demand", "$/h", 3),
    Column("spot", "$/h", 3),
    Column("price from"),
)


def list_instances(
    wanted: InstanceFilter, region: str, prices: Path | None, form: str | None, out: Path | None
) -> ExitCode:
    """Print the types that match a filter, cheapest first; the answer is no if there is none.

    Raises:
        UnfoldError: No type has the GPU, or the price list is at fault.
    """
    catalog = open_catalog(region, prices)
    if wanted.gpu and not any(is_same_gpu(wanted.gpu, catalog.find(name).gpu) for name in catalog.names()):
        raise unknown_gpu_error(wanted.gpu, (catalog.find(name) for name in catalog.names()))
    report = report_instances(catalog, wanted, region)
    output.deliver(report, output.select_renderer(open_registry(builtin_only=True), form, out), out)
    return ExitCode.YES if report.verdict is Verdict.YES else ExitCode.NO


def open_catalog(region: str, prices: Path | None = None) -> Catalog:
    """Open the catalog of a region: a price list of the user first, then the cache, then the bundled table.

    Raises:
        UnfoldError: The price list is missing or invalid.
    """
    if prices is not None and not prices.is_file():
        raise user_error("no such file", file=str(prices), hint="--prices takes a price list: CSV, or JSON of a cloud")
    stated = [read_prices(prices, region)] if prices else []
    cached = load_cached_book(cache_folder(), region)
    return load_catalog(region, *stated, *([cached] if cached else []))


def report_instances(catalog: Catalog, wanted: InstanceFilter, region: str) -> Report:
    """Make the report of the types that match a filter."""
    matches = catalog.choose(wanted)
    market = "spot" if wanted.spot else "on demand"
    dates = {book.source: book.date for book in catalog.books}
    metrics = {"types": Metric(len(matches)), "known": Metric(len(catalog.names()))}
    has_price = bool(matches) and price_of(matches[0], spot=wanted.spot) < float("inf")
    if has_price:
        best = f"{matches[0].name} at {_format_price_of(matches[0], wanted)}"
        headline = f"{len(matches)} of {len(catalog.names())} types; the cheapest is {best}"
        metrics["cheapest_usd_per_hour"] = Metric(price_of(matches[0], spot=wanted.spot), "$/h")
    elif matches:
        headline = f"no {market} price is known in {region}; unfold catalog refresh --region {region} requests it"
    else:
        headline = f"no type meets all conditions{_describe_cheapest(catalog, wanted)}"
    return Report(
        kind="catalog",
        verb="list",
        name=region,
        verdict=Verdict.YES if has_price else Verdict.NO,
        headline=headline,
        subtitle=("Linux", market, *(f"{source} {date}" for source, date in dates.items())),
        metrics=metrics,
        tables=(Table("types", COLUMNS, tuple(_row(item, dates) for item in matches)),) if matches else (),
        lines=_caveats(matches),
        next="unfold catalog refresh" if len(catalog.books) == 1 and has_price else "",
    )


def refresh_prices(region: str, now: dt.datetime, clients: AwsClients | None = None) -> ExitCode:
    """Request the prices of the known types from AWS, cache them with their date, and print the rejected ones.

    Raises:
        UnfoldError: AWS cannot be reached, or returned no usable price.
    """
    bundled = load_catalog(region).books[0]
    result = request_prices(clients or connect_clients(region), region, sorted(bundled.rows), now, bundled)
    path = cache_file(cache_folder(), region)
    write_atomically(path, to_bytes(result.book))
    console.write_report(_describe_refresh(result, bundled))
    console.print_written(path)
    return ExitCode.YES


def parse_max_price(text: str | None) -> float | None:
    """Parse ``--max-price`` to dollars per hour.

    Raises:
        UnfoldError: The text is not a price.
    """
    from pydantic_core import PydanticCustomError

    try:
        return None if text is None else PRICE.parse(text)
    except PydanticCustomError as error:
        raise user_error(f"--max-price {error.message()}", hint='write "$5/h"') from error


def _describe_refresh(result: RefreshResult, bundled: PriceBook) -> str:
    changed = [
        f"  {name:<16} {_format_or_unknown(bundled.rows[name].on_demand)} -> {_format_or_unknown(row.on_demand)}"
        for name, row in result.book.rows.items()
        if name in bundled.rows and row.on_demand not in (None, bundled.rows[name].on_demand)
    ]
    rejected = [f"  {item.name:<16} {item.market}: {item.reason}" for item in result.rejected]
    lines = [f"{len(result.book.rows)} types priced, {result.book.date}"]
    lines += ["changed since the bundled table:", *changed] if changed else []
    lines += ["rejected:", *rejected] if rejected else []
    return "\n".join(lines) + "\n"


def _row(item: Instance, dates: Mapping[str, str]) -> tuple[Cell, ...]:
    """Return the cells of a type; a date only where the head of the report does not state it for the source."""
    gpus = f"{item.gpus} x {item.gpu}" if item.gpus else None
    source = item.source if item.date == dates.get(item.source) else f"{item.source} {item.date}".strip()
    memory = item.gpu_memory_gib or None
    return (item.name, item.vcpus, item.memory_gib, gpus, memory, item.on_demand, item.spot, source)


def _caveats(rows: list[Instance]) -> tuple[tuple[str, str], ...]:
    if any(row.spot_derived for row in rows):
        text = "derived from the on-demand price and the saving in the Spot Advisor of 2025; not a quote"
        return (("spot", text),)
    return ()


def _describe_cheapest(catalog: Catalog, wanted: InstanceFilter) -> str:
    """Name the cheapest type that misses only the price bound."""
    unbounded = InstanceFilter(wanted.gpu, wanted.min_gpus, wanted.min_vcpus, wanted.min_memory_gib, None, wanted.spot)
    priced = [item for item in catalog.choose(unbounded) if price_of(item, spot=wanted.spot) < float("inf")]
    if wanted.max_price is None or not priced:
        return ""
    cheapest = f"{priced[0].name} at {_format_price_of(priced[0], wanted)}"
    return f" for {PRICE.render(wanted.max_price)}; the cheapest is {cheapest}"


def _format_price_of(item: Instance, wanted: InstanceFilter) -> str:
    price = price_of(item, spot=wanted.spot)
    return PRICE.render(price) if price < float("inf") else "an unknown price"


def _format_or_unknown(price: float | None) -> str:
    return "unknown" if price is None else PRICE.render(price)
