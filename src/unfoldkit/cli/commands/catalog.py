"""`unfold catalog`: instance types and prices, and where each price comes from."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from pathlib import Path

from unfoldkit.catalog.aws import Clients, Refreshed, clients, refresh
from unfoldkit.catalog.bundled import catalog
from unfoldkit.catalog.cache import cache_file, cached, to_bytes
from unfoldkit.catalog.instances import Book, Catalog, Instance, Wanted, no_such_gpu, price_of, same_gpu
from unfoldkit.catalog.price_lists import read_prices
from unfoldkit.cli import console, output, plugin_registry
from unfoldkit.errors import ExitCode, user_error
from unfoldkit.report import Cell, Column, Metric, Report, Table, Verdict
from unfoldkit.run_directory import write_atomically
from unfoldkit.spec.units import format_price, parse_price

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


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where prices that were asked for are kept: the XDG cache folder of the user."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unfoldkit"


def listing(wanted: Wanted, region: str, prices: Path | None, form: str | None, out: Path | None) -> ExitCode:
    """Print the types that ``wanted`` admits, cheapest first; the answer is no when there is none."""
    found = known(region, prices)
    if wanted.gpu and not any(same_gpu(wanted.gpu, found.find(name).gpu) for name in found.names()):
        raise no_such_gpu(wanted.gpu, (found.find(name) for name in found.names()))
    report = listed(found, wanted, region)
    output.deliver(report, output.choose(plugin_registry.registry(builtin_only=True), form, out), out)
    return ExitCode.YES if report.verdict is Verdict.YES else ExitCode.NO


def known(region: str, prices: Path | None = None) -> Catalog:
    """Return the catalog of a region: a file of the user's, then the cache, then the bundled table."""
    if prices is not None and not prices.is_file():
        raise user_error("no such file", file=str(prices), hint="--prices takes a price list: CSV, or JSON of a cloud")
    given = [read_prices(prices, region)] if prices else []
    stored = cached(cache_folder(), region)
    return catalog(region, *given, *([stored] if stored else []))


def listed(found: Catalog, wanted: Wanted, region: str) -> Report:
    """Return the report of a listing."""
    chosen = found.choose(wanted)
    market = "spot" if wanted.spot else "on demand"
    metrics = {"types": Metric(len(chosen)), "known": Metric(len(found.names()))}
    priced = bool(chosen) and price_of(chosen[0], spot=wanted.spot) < float("inf")
    if priced:
        best = f"{chosen[0].name} at {_price(chosen[0], wanted)}"
        headline = f"{len(chosen)} of {len(found.names())} types; the cheapest is {best}"
        metrics["cheapest_usd_per_hour"] = Metric(price_of(chosen[0], spot=wanted.spot), "$/h")
    elif chosen:
        headline = f"no {market} price is known in {region}; unfold catalog refresh --region {region} asks AWS"
    else:
        headline = f"no type has all of that{_nearest(found, wanted)}"
    return Report(
        kind="catalog",
        verb="list",
        name=region,
        verdict=Verdict.YES if priced else Verdict.NO,
        headline=headline,
        subtitle=("Linux", market, *(f"{book.source} {book.date}" for book in found.books)),
        metrics=metrics,
        tables=(Table("types", COLUMNS, tuple(_row(item) for item in chosen)),) if chosen else (),
        lines=_cautions(chosen),
        next="unfold catalog refresh" if len(found.books) == 1 and priced else "",
    )


def renew(region: str, now: dt.datetime, made: Clients | None = None) -> ExitCode:
    """Ask AWS for the prices of the known types, keep them with their date, and tell what was refused."""
    before = catalog(region).books[0]
    result = refresh(made or clients(region), region, sorted(before.rows), now, before)
    path = cache_file(cache_folder(), region)
    write_atomically(path, to_bytes(result.book))
    console.write_report(_told(result, before))
    console.say(f"wrote {path}")
    return ExitCode.YES


def _told(result: Refreshed, before: Book) -> str:
    changed = [
        f"  {name:<16} {_shown(before.rows[name].on_demand)} -> {_shown(row.on_demand)}"
        for name, row in result.book.rows.items()
        if name in before.rows and row.on_demand not in (None, before.rows[name].on_demand)
    ]
    refused = [f"  {item.name:<16} {item.market}: {item.reason}" for item in result.refused]
    lines = [f"{len(result.book.rows)} types priced, {result.book.date}"]
    lines += ["changed since the bundled table:", *changed] if changed else []
    lines += ["refused:", *refused] if refused else []
    return "\n".join(lines) + "\n"


def _row(item: Instance) -> tuple[Cell, ...]:
    gpus = f"{item.gpus} x {item.gpu}" if item.gpus else None
    source = f"{item.source} {item.date}".strip()
    memory = item.gpu_memory_gib or None
    return (item.name, item.vcpus, item.memory_gib, gpus, memory, item.on_demand, item.spot, source)


def _cautions(rows: list[Instance]) -> tuple[tuple[str, str], ...]:
    if any(row.spot_derived for row in rows):
        return (("spot", "derived: the on-demand price less the saving of the Spot Advisor of 2025; not a quote"),)
    return ()


def _nearest(found: Catalog, wanted: Wanted) -> str:
    free = Wanted(wanted.gpu, wanted.min_gpus, wanted.min_vcpus, wanted.min_memory_gib, None, wanted.spot)
    rest = [item for item in found.choose(free) if price_of(item, spot=wanted.spot) < float("inf")]
    if wanted.max_price is None or not rest:
        return ""
    return f" for {format_price(wanted.max_price)}; the cheapest is {rest[0].name} at {_price(rest[0], wanted)}"


def _price(item: Instance, wanted: Wanted) -> str:
    price = price_of(item, spot=wanted.spot)
    return format_price(price) if price < float("inf") else "an unknown price"


def _shown(price: float | None) -> str:
    return "unknown" if price is None else format_price(price)


def price_option(text: str | None) -> float | None:
    """Return dollars per hour from ``--max-price``.

    Raises:
        UnfoldError: the text is not a price.
    """
    from pydantic_core import PydanticCustomError

    try:
        return None if text is None else parse_price(text)
    except PydanticCustomError as error:
        raise user_error(f"--max-price {error.message()}", hint='write "$5/h"') from error
