"""The live page of a running pipeline: attainment, spend, queues, replicas, and its traffic against the plan."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.branches import MeasuredBranch, measure_branches
from unfold_pipeline.problem.pipeline import HardwareOption, Plan, compute_hourly_cost
from unfold_pipeline.report.plan_file import PlannedEnvelope, compute_planned_envelope
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.query_admission import ArrivalLog
from unfold_pipeline.runtime.stage import Query, read_clock
from unfoldkit.arrivals.envelope import compute_envelope
from unfoldkit.format import format_percent
from unfoldkit.serving.observability.dashboard import Dashboard, DashboardSource, Distribution, Grid, Tile, TimeSeries
from unfoldkit.serving.observability.metrics import LATENCY_BUCKETS_S, Tally

WINDOWS_SHOWN = 7
RECENT_S = 300.0
# ratio of neighbouring latency buckets, and the number of buckets below and above the SLO
BUCKET_RATIO, BUCKETS_BELOW, BUCKETS_ABOVE = 1.1, 80, 40
OUTCOMES = ("in time", "late", "refused", "shed", "failed", "lost")


def ignore_branches(_served: Sequence[float]) -> tuple[MeasuredBranch, ...]:
    """Return nothing: a service without a plan has no fractions to compare with."""
    return ()


@dataclass(frozen=True, slots=True)
class PlannedService:
    """What the plan guarantees.

    Attributes:
        slo_s: Target in seconds.
        percentile: Fraction of the queries that meet it.
        options: Hardware of the stages.
        envelope: Traffic that the plan was made for.
        branches: Compares conditions, by the items that each stage has served, with the fractions of the plan.
    """

    slo_s: float
    percentile: float
    options: tuple[HardwareOption, ...]
    envelope: PlannedEnvelope
    branches: Callable[[Sequence[float]], tuple[MeasuredBranch, ...]] = ignore_branches


def describe_planned_service(checker: SloChecker, plan: Plan) -> PlannedService:
    """Return what a plan guarantees."""
    stages = range(len(checker.pipeline.stages))
    shares = [float(np.mean([sample.share(stage) for sample in checker.samples])) for stage in stages]
    return PlannedService(
        checker.slo_s,
        checker.estimators[0].percentile,
        checker.pipeline.chosen_options(plan),
        compute_planned_envelope(checker, plan),
        functools.partial(measure_branches, checker.pipeline, shares),
    )


def build_latency_buckets(slo_s: float) -> tuple[float, ...]:
    """Return the upper bounds of latency buckets in seconds: within a tenth of each other, one of them the SLO."""
    return tuple(slo_s * BUCKET_RATIO**power for power in range(-BUCKETS_BELOW, BUCKETS_ABOVE + 1))


@dataclass(slots=True)
class ServiceRecord:
    """What happened since the start of a service.

    Attributes:
        start_s: Start of the service, on :func:`read_clock`.
        bucket_bounds_s: Upper bounds of the latency buckets.
        answers: Answers per bucket; the last bucket has no upper bound.
        arrivals: All demand of the last minutes, refused queries included.
        outcomes: Number of queries by outcome.
        spent_usd: Cost so far.
        billed_until_s: Time up to which replicas are billed, on :func:`read_clock`.
    """

    start_s: float
    bucket_bounds_s: tuple[float, ...] = LATENCY_BUCKETS_S
    answers: list[int] = field(init=False)
    arrivals: ArrivalLog = field(init=False)
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    spent_usd: float = 0.0
    billed_until_s: float = field(default_factory=read_clock)

    def __post_init__(self) -> None:
        self.answers = [0] * (len(self.bucket_bounds_s) + 1)
        self.arrivals = ArrivalLog(self.start_s)

    @property
    def attainment(self) -> float | None:
        """Fraction of all queries, refused ones included, that were answered in time; ``None`` before the first."""
        total = sum(self.outcomes.values())
        return self.outcomes["in time"] / total if total else None

    def record_refusal(self, rows: int) -> None:
        """Record that admission control refused so many queries."""
        self.outcomes["refused"] += rows

    def record_outcome(self, query: Query, seconds: float, slo_s: float, *, is_answered: bool) -> None:
        """Record how a query ended."""
        if query.is_shed:
            outcome = "shed"
        elif query.failed_stage:
            outcome = "failed"
        elif not is_answered:
            outcome = "lost"
        else:
            outcome = "in time" if seconds <= slo_s else "late"
        self.outcomes[outcome] += 1
        if is_answered:
            self.answers[bisect_left(self.bucket_bounds_s, seconds)] += 1

    def bill_replicas(self, replicas: Sequence[int], options: Sequence[HardwareOption]) -> None:
        """Bill the existing replicas up to now."""
        now_s = read_clock()
        self.spent_usd += compute_hourly_cost(options, replicas) * (now_s - self.billed_until_s) / 3600.0
        self.billed_until_s = now_s


def build_watch(
    name: str, runtime: PipelineRuntime, record: ServiceRecord, planned: PlannedService, requests: Tally
) -> DashboardSource:
    """Return a function that builds the live page.

    Args:
        name: Name of the pipeline.
        runtime: Its replicas.
        record: What happened so far.
        planned: What the plan guarantees.
        requests: All requests of the server, rejected ones included.
    """
    build_charts = build_chart_source(name, runtime, record, planned, requests)

    def build_board() -> Dashboard:
        stages = runtime.list_status()
        traffic_tile, traffic_grid = _build_traffic(record, planned)
        tiles = (*_build_tiles(record, planned, stages, requests), traffic_tile)
        return replace(build_charts(), tiles=tiles, grids=(_build_stage_grid(stages), traffic_grid))

    return build_board


def build_chart_source(
    name: str, runtime: PipelineRuntime, record: ServiceRecord, planned: PlannedService, requests: Tally
) -> DashboardSource:
    """Return a function that builds the charts of the live page alone; the arguments are those of the page.

    The traffic of minutes takes long to compare with the plan, and is of interest only while a page is open.
    """

    def build_charts() -> Dashboard:
        stages = runtime.list_status()
        queues = {str(stage["name"]): float(stage["queue"]) for stage in stages}
        billed = {str(stage["name"]): float(stage["replicas"]) for stage in stages}
        serving = {str(stage["name"]): float(stage["ready"]) for stage in stages}
        codes = {str(code): float(count) for code, count in sorted(requests.codes.items()) if count or code == 200}
        lines = (
            TimeSeries("answers by status", "/s", codes, counts=True),
            TimeSeries("queued items", "items", queues),
            TimeSeries("billed replicas", "replicas", billed),
            TimeSeries("serving replicas", "replicas", serving),
        )
        latencies = Distribution(
            "time to answer", "s", record.bucket_bounds_s, list(map(float, record.answers)), planned.slo_s
        )
        return Dashboard(name, "pipeline", lines=lines, spreads=(latencies,))

    return build_charts


def _build_tiles(
    record: ServiceRecord, planned: PlannedService, stages: Sequence[dict[str, object]], requests: Tally
) -> tuple[Tile, ...]:
    attainment, outcomes = record.attainment, record.outcomes
    lost = outcomes["lost"] + outcomes["shed"]
    # status 429 is that of refused queries
    rejected = sum(count for code, count in requests.codes.items() if 400 <= code < 500 and code != 429)
    rate = compute_hourly_cost(planned.options, [int(str(stage["replicas"])) for stage in stages])
    target = f"within {planned.slo_s * 1e3:,.0f} ms, target {format_percent(planned.percentile)}"
    is_attained = None if attainment is None else attainment >= planned.percentile
    return (
        Tile("attainment", "–" if attainment is None else f"{100 * attainment:.2f} %", target, is_attained),
        Tile("queries", f"{sum(outcomes.values()):,}"),
        Tile(
            "refused",
            f"{outcomes['refused']:,}",
            "would be too late: status 429" if outcomes["refused"] else "",
            not outcomes["refused"],
        ),
        Tile("lost", f"{lost:,}", f"{outcomes['shed']:,} of them shed" if lost else "", not lost),
        Tile(
            "failed",
            f"{outcomes['failed']:,}",
            "a model raised an error" if outcomes["failed"] else "",
            not outcomes["failed"],
        ),
        Tile("rejected", f"{rejected:,}", "requests with an error: other 4xx" if rejected else "", not rejected),
        *(
            Tile("replicas", f"{stage['name']}: no more start", str(stage["start_error"]), False)
            for stage in stages
            if stage.get("start_error")
        ),
        Tile("spent", f"${record.spent_usd:,.4f}", f"now ${rate:,.2f} per hour"),
    )


def _build_stage_grid(stages: Sequence[dict[str, object]]) -> Grid:
    """Return the state of each stage: with many stages a table is easier to read than lines that cross."""
    columns = {"stage": "name", "queued": "queue", "serving": "ready", "billed": "replicas", "batch": "batch"}
    columns |= {"answered": "served", "failed": "failed"}
    rows = tuple(tuple(_format_cell(stage[key]) for key in columns.values()) for stage in stages)
    return Grid("stages", tuple(columns), rows)


def _format_cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _build_traffic(record: ServiceRecord, planned: PlannedService) -> tuple[Tile, Grid]:
    """Return the maximum queries in any window of the last minutes compared with those of the plan."""
    recent = record.arrivals.list_arrivals(read_clock() - record.start_s - RECENT_S)
    windows_s, limits = planned.envelope.windows_s, planned.envelope.queries
    counts = compute_envelope(recent, windows_s)
    exceeded = int((counts > limits).sum())
    # a few windows, from the shortest to the longest, represent all
    shown = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), WINDOWS_SHOWN)).round().astype(int))
    rows = tuple(
        (
            _format_window(window_s),
            f"{limit:,}",
            f"{count:,}",
            "above the plan" if count > limit else "within",
        )
        for window_s, limit, count in zip(
            windows_s[shown].tolist(), limits[shown].tolist(), counts[shown].tolist(), strict=True
        )
    )
    columns = ("window", "planned", "observed", "against the plan")
    status = ("above the plan", f"{exceeded} of {len(counts)} windows") if exceeded else ("as planned", "")
    grid = Grid("maximum queries per window, last five minutes", columns, rows)
    return Tile("traffic", *status, not exceeded), grid


def _format_window(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:,.3g} s"
