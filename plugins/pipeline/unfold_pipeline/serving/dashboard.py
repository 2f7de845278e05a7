"""What the live page shows of a running pipeline: attainment, spend, queues, replicas, its traffic against the plan."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem.pipeline import Option, Plan, hourly
from unfold_pipeline.report.plan_file import planned_envelope
from unfold_pipeline.runtime.local import Running
from unfold_pipeline.runtime.stage import Query, clock
from unfoldkit.arrivals.envelope import envelope
from unfoldkit.serving.observability.dashboard import Board, Grid, Lines, Spread, Tile, Watch
from unfoldkit.serving.observability.metrics import SECONDS, Tally

MOST_ARRIVALS = 1 << 17
SHOWN = 7
# how much further each bound of times is than the one before, and how many there are below and above the target
STEP, BELOW, ABOVE = 1.1, 80, 40
OUTCOMES = ("in time", "late", "shed", "failed", "lost")


@dataclass(frozen=True, slots=True)
class Promise:
    """What the plan promises: ``limit`` in s for the share ``quantile`` of queries.

    It was made for at most ``queries`` in any window of each of the lengths ``windows``, in s.

    ``options`` are what the stages run on.
    """

    limit: float
    quantile: float
    options: tuple[Option, ...]
    windows: NDArray[np.float64]
    queries: NDArray[np.int64]


def promise(judge: Judge, plan: Plan) -> Promise:
    """Return what a plan promises."""
    windows, queries = planned_envelope(judge, plan)
    return Promise(judge.limit, judge.estimators[0].percentile, judge.pipeline.options(plan), windows, queries)


def bounds(limit: float) -> tuple[float, ...]:
    """Return bounds in s by which answers are counted: p99 is told to a tenth, and ``limit`` is one of them."""
    return tuple(limit * STEP**place for place in range(-BELOW, ABOVE + 1))


@dataclass(slots=True)
class Diary:
    """What happened since ``began``: the last arrivals in s, queries by outcome, and $ spent so far.

    ``answers[i]`` were answered within ``bounds[i]`` s, and not within the bound before; the last, beyond all.
    """

    began: float
    bounds: tuple[float, ...] = SECONDS
    answers: list[int] = field(init=False)
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ARRIVALS))
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    spent: float = 0.0
    paid_until: float = field(default_factory=clock)

    def __post_init__(self) -> None:
        self.answers = [0] * (len(self.bounds) + 1)

    def note(self) -> None:
        """Note that a query arrives now."""
        self.arrivals.append(clock() - self.began)

    @property
    def attainment(self) -> float | None:
        """The share of queries that were answered in time; ``None`` before the first has ended."""
        total = sum(self.outcomes.values())
        return self.outcomes["in time"] / total if total else None

    def ended(self, query: Query, seconds: float, limit: float, *, answered: bool) -> None:
        """Note how a query ended."""
        told = ("in time" if seconds <= limit else "late") if answered else "lost"
        outcome = "shed" if query.shed else "failed" if query.failed else told
        self.outcomes[outcome] += 1
        if answered:
            self.answers[bisect_left(self.bounds, seconds)] += 1

    def pay(self, replicas: Sequence[int], options: Sequence[Option]) -> None:
        """Pay for the replicas that are there, up to now."""
        now = clock()
        self.spent += hourly(options, replicas) * (now - self.paid_until) / 3600.0
        self.paid_until = now


def watch(name: str, runtime: Running, diary: Diary, given: Promise, requests: Tally) -> Watch:
    """Return the board of a running pipeline; ``requests`` are those of the server, bad ones among them."""

    def board() -> Board:
        stages = runtime.status()
        queues = {str(stage["name"]): float(stage["queue"]) for stage in stages}
        paid = {str(stage["name"]): float(stage["replicas"]) for stage in stages}
        replicas = {str(stage["name"]): float(stage["ready"]) for stage in stages}
        codes = {str(code): float(number) for code, number in sorted(requests.codes.items()) if number or code == 200}
        lines = (
            Lines("answers by status", "/s", codes, counts=True),
            Lines("items that wait", "items", queues),
            Lines("replicas that are paid", "replicas", paid),
            Lines("replicas that serve", "replicas", replicas),
        )
        spread = Spread("time to answer", "s", diary.bounds, list(map(float, diary.answers)), given.limit)
        above, grid = _traffic(diary, given)
        tiles = (*_tiles(diary, given, stages, requests), above)
        return Board(name, "pipeline", tiles, lines, (spread,), (), (_stages(stages), grid))

    return board


def _tiles(diary: Diary, given: Promise, stages: Sequence[dict[str, object]], requests: Tally) -> tuple[Tile, ...]:
    share, ends = diary.attainment, diary.outcomes
    lost = ends["lost"] + ends["shed"]
    bad = sum(number for code, number in requests.codes.items() if 400 <= code < 500)
    held = "–" if share is None else f"{share:.2%}"
    rate = hourly(given.options, [int(str(stage["replicas"])) for stage in stages])
    wanted = f"within {given.limit * 1e3:,.0f} ms, target {given.quantile:.0%}"
    return (
        Tile("attainment", held, wanted, None if share is None else share >= given.quantile),
        Tile("queries", f"{sum(ends.values()):,}"),
        Tile("lost", f"{lost:,}", f"{ends['shed']:,} of them shed" if lost else "", not lost),
        Tile("failed", f"{ends['failed']:,}", "a model raised an error" if ends["failed"] else "", not ends["failed"]),
        Tile("refused", f"{bad:,}", "requests answered 4xx" if bad else "", not bad),
        Tile("spent", f"${diary.spent:,.4f}", f"now ${rate:,.2f} an hour"),
    )


def _stages(stages: Sequence[dict[str, object]]) -> Grid:
    """Return what each stage does: of many stages a table tells it sooner than lines that cross."""
    columns = {"stage": "name", "wait": "queue", "serve": "ready", "paid": "replicas", "batch": "batch"}
    columns |= {"answered": "served", "failed": "failed"}
    rows = tuple(tuple(_told(stage[key]) for key in columns.values()) for stage in stages)
    return Grid("stages", tuple(columns), rows)


def _told(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _traffic(diary: Diary, given: Promise) -> tuple[Tile, Grid]:
    """Return the most queries in any window of the last minutes beside those that the plan was made for."""
    arrivals = np.array(diary.arrivals)
    recent = arrivals[arrivals >= clock() - diary.began - 300.0]
    seen = envelope(recent, given.windows)
    above = int((seen > given.queries).sum())
    # a few of the windows, from the shortest to the longest, tell what all do
    places = np.unique(np.linspace(0, len(seen) - 1, min(len(seen), SHOWN)).round().astype(int))
    rows = tuple(
        (_span(length), f"{most:,}", f"{now:,}", "above the plan" if now > most else "within")
        for length, most, now in zip(
            given.windows[places].tolist(), given.queries[places].tolist(), seen[places].tolist(), strict=True
        )
    )
    columns = ("window", "planned", "seen", "against the plan")
    told = ("above the plan", f"{above} of {len(seen)} windows") if above else ("as planned", "")
    return Tile("traffic", *told, not above), Grid("most queries in a window, of the last five minutes", columns, rows)


def _span(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:,.3g} s"
