"""What the live page shows of a service: plain data, made anew each second while somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from unfoldkit.serving.observability.metrics import SECONDS, Metrics


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure in large type; ``ok`` tells whether it is within its target, ``None`` if it has none."""

    label: str
    value: str
    note: str = ""
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over time, by name. ``counts`` only grow: the page shows their growth a second. ``limit`` is a bound."""

    title: str
    unit: str
    values: Mapping[str, float]
    counts: bool = False
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are spread: ``counts[i]`` of them, ever, were at most ``bounds[i]`` and above the bound before.

    One count more than bounds: the last is of values above all. The page shows p50 and p99 of the last ten seconds.
    """

    title: str
    unit: str
    bounds: Sequence[float]
    counts: Sequence[float]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts by name, such as how many cases each model answered: of their sum, or of what ``wholes`` has by name."""

    title: str
    unit: str
    values: Mapping[str, float]
    wholes: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of short texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Board:
    """All that the page shows now, in the order of the fields."""

    name: str
    kind: str
    tiles: tuple[Tile, ...] = ()
    lines: tuple[Lines, ...] = ()
    spreads: tuple[Spread, ...] = ()
    shares: tuple[Shares, ...] = ()
    grids: tuple[Grid, ...] = ()


Watch = Callable[[], Board]


@dataclass(frozen=True, slots=True)
class More:
    """What a kind adds to the board of its requests."""

    tiles: tuple[Tile, ...] = ()
    lines: tuple[Lines, ...] = ()
    shares: tuple[Shares, ...] = ()
    grids: tuple[Grid, ...] = field(default=())


def of_requests(name: str, kind: str, found: Metrics, more: Callable[[], More] = More) -> Watch:
    """Return the board of the requests that a server counts, with what its kind adds."""

    def watch() -> Board:
        own = more()
        tiles = (*_tiles(found), *own.tiles)
        return Board(name, kind, tiles, (*_lines(found), *own.lines), _spreads(found), own.shares, own.grids)

    return watch


def _tiles(found: Metrics) -> tuple[Tile, ...]:
    codes = _codes(found)
    total, failed = sum(codes.values()), sum(n for code, n in codes.items() if code >= 500)
    refused = codes.get(429, 0)
    return (
        Tile("requests", f"{total:,}"),
        Tile("failed", f"{failed:,}", "answered 5xx" if failed else "", failed == 0),
        Tile("refused", f"{refused:,}", "the queue was full: 429" if refused else "", refused == 0),
    )


def _lines(found: Metrics) -> tuple[Lines, ...]:
    answers = {str(code): float(n) for code, n in sorted(_codes(found).items())}
    waiting = {sample.labels["model"]: sample.value for family in found.queue.collect() for sample in family.samples}
    return (Lines("answers by status", "/s", answers, counts=True), Lines("rows that wait", "rows", waiting))


def _spreads(found: Metrics) -> tuple[Spread, ...]:
    tallies = found.requests.tallies
    counts = [float(sum(column)) for column in zip(*(tally.buckets for tally in tallies), strict=True)]
    return (Spread("time to answer", "s", SECONDS, counts),)


def _codes(found: Metrics) -> dict[int, int]:
    codes: dict[int, int] = {}
    for tally in found.requests.tallies:
        for code, number in tally.codes.items():
            codes[code] = codes.get(code, 0) + number
    return codes


def short(value: float) -> str:
    """Return a number in at most five characters and a suffix: 12.3 k, 4.56 M."""
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.4g}" if value != int(value) else f"{value:,.0f}"
