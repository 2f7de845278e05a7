"""Traffic of a spec as arrays: arrival times of a process, profile or trace, and recorded visits of the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.problem.pipeline import Stage
from unfold_pipeline.schema.arrivals import DEFAULT_DURATION_S, Arrivals
from unfoldkit.api import CsvRow, Diagnostic, Run, UnfoldError, csv_rows, user_error
from unfoldkit.arrivals import processes, rate_profiles, traces
from unfoldkit.arrivals.readers.timestamps import TimeNotation


def ignore_order(*_order: CountArray) -> None:
    """Do nothing: times alone have no other columns to put in their order."""


def load_arrivals(
    traffic: Arrivals,
    run: Run,
    rng: np.random.Generator,
    key: str = "arrivals",
    likely: Arrivals | None = None,
    on_newest_first: Callable[[], None] | None = ignore_order,
    *,
    allows_batch: bool = False,
    on_unsorted: Callable[[CountArray], None] | None = ignore_order,
) -> FloatArray:
    """Return the arrival times in seconds that a traffic description asks for.

    Args:
        traffic: A process, a rate profile or a trace.
        run: Resolves the path of a trace.
        rng: Source of random arrivals.
        key: Where the description stands in the spec, for errors.
        likely: Columns to prefer in a trace if it has them.
        on_newest_first: Called if the rows of a table were reversed, because the newest came first; without it, such
            a table is an error.
        allows_batch: Whether all queries may arrive at one instant.
        on_unsorted: Called with the order of the rows if their stamps are in another one; without it, an error.

    Raises:
        UnfoldError: The trace cannot be read, nothing arrives, or all queries arrive at one instant.
    """
    if traffic.trace is not None:
        path = run.path(traffic.trace, key=f"{key}.trace" if key.startswith("arrivals") else key)
        times = _read_trace(traffic, path, likely or Arrivals(), run, on_newest_first, on_unsorted)
        times = traces.compress_time(times, traffic.compress)
        times = traces.scale_rate(times, traffic.scale, rng) if traffic.scale != 1 else times
    else:
        times = _draw_arrivals(traffic, rng, key)
    if traffic.share < 1 and times.size:
        times = traces.cut_window(times, 0.0, float(times[-1]) * traffic.share)
    if times.size == 0:
        raise user_error("no query arrives in the sample", key=key, hint="a longer duration or a larger share")
    if times[-1] <= times[0] and not (allows_batch and times.size > 1):
        count = "one query is" if times.size == 1 else f"{times.size:,} queries at one instant are"
        raise user_error(f"{count} no traffic: there is no rate", key=key, hint="a sample that lasts")
    return times


def read_visits(path: Path, stages: Sequence[Stage]) -> CountArray:
    """Return the visits of recorded queries, shape (queries, stages).

    Raises:
        UnfoldError: A stage has no column, a cell is not a count, or a visit contradicts the edges of the pipeline.
    """
    rows = list(csv_rows(path, [stage.name for stage in stages]))
    if not rows:
        raise UnfoldError(Diagnostic("the file records no query", str(path), 1, 1))
    return np.array([_read_route(row, stages) for row in rows])


def _read_trace(
    traffic: Arrivals,
    path: Path,
    likely: Arrivals,
    run: Run,
    on_newest_first: Callable[[], None] | None,
    on_unsorted: Callable[[CountArray], None] | None,
) -> FloatArray:
    return traces.read_trace(
        path,
        column=traffic.column,
        likely=likely.column,
        counts=traffic.counts,
        likely_counts=likely.counts,
        match=traffic.match or "",
        rates=traffic.rates,
        likely_rates=likely.rates,
        notation=TimeNotation(traffic.time_format, traffic.unit, likely_unit=likely.unit),
        warn=run.log.warning,
        on_newest_first=on_newest_first,
        on_unsorted=on_unsorted,
    )


def _draw_arrivals(traffic: Arrivals, rng: np.random.Generator, key: str) -> FloatArray:
    scv = _squared_cv(traffic)
    if traffic.shape is not None:
        profile = rate_profiles.rate_profile(traffic.shape) * traffic.scale
        _check_size(float(profile.sum()) * rate_profiles.PIECE_S, key)
        return processes.piecewise_arrivals(profile, rate_profiles.PIECE_S, rng, scv=scv or 1.0)
    rate = (traffic.rate or 0.0) * traffic.scale
    duration_s = traffic.duration if traffic.duration is not None else DEFAULT_DURATION_S
    _check_size(rate * duration_s, key)
    return processes.gamma_arrivals(rate, duration_s, rng, scv=scv)


def _check_size(expected: float, key: str) -> None:
    if expected > traces.MAX_SCALED:
        message = f"the sample would have {expected:,.0f} arrivals"
        raise user_error(message, key=key, hint=f"at most {traces.MAX_SCALED:,}: a shorter duration or a lower rate")


def _squared_cv(traffic: Arrivals) -> float:
    """Return the squared coefficient of variation of the inter-arrival times."""
    if traffic.process == "constant":
        return 0.0
    return traffic.scv if traffic.scv is not None else (traffic.cv if traffic.cv is not None else 1.0) ** 2


def _read_route(row: CsvRow, stages: Sequence[Stage]) -> list[int]:
    counts = [_read_count(row, stage.name) for stage in stages]
    for stage, count in zip(stages, counts, strict=True):
        parents = [edge.parent for edge in stage.parents]
        if count and parents and not any(counts[parent] for parent in parents):
            names = " or ".join(stages[parent].name for parent in parents)
            raise row.wrong(f"visited without {names} before it", stage.name, "see after in the spec")
        if count > 1 and len(parents) > 1:
            raise row.wrong(f"{count} visits where flows join", stage.name, "a query visits a join once")
    return counts


def _read_count(row: CsvRow, name: str) -> int:
    if not row[name].isdecimal():
        raise row.wrong(f"{row[name][:40]!r} is not a count of visits", name)
    return int(row[name])
