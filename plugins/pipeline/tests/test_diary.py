"""What the page of a pipeline tells of the times of answers."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime.stage import Query
from unfold_pipeline.serving.dashboard import ServiceRecord, build_latency_buckets


def nobody(_answer: object) -> None:
    """Wait for no answer."""


def kept(times: list[float], limit: float) -> ServiceRecord:
    """Return the diary of queries that were answered within these seconds."""
    nothing = Pipeline(())
    query = Query(
        np.zeros(1), build_routes(nothing, draw_sample(nothing, np.zeros(1), np.random.default_rng(0))), 0, nobody
    )
    diary = ServiceRecord(0.0, build_latency_buckets(limit))
    for seconds in times:
        diary.record_outcome(query, seconds, limit, is_answered=True)
    return diary


def shown(diary: ServiceRecord, share: float) -> float:
    """Return a quantile as the page works it out: even between two bounds."""
    total, below = share * sum(diary.answers), 0.0
    for low, high, count in zip((0.0, *diary.bucket_bounds_s), diary.bucket_bounds_s, diary.answers, strict=False):
        if below + count >= total:
            return low + (high - low) * (total - below) / count
        below += count
    return diary.bucket_bounds_s[-1]


@pytest.mark.parametrize("limit", [0.003, 0.3, 5.0])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_times_are_shown_to_a_tenth(limit: float, share: float) -> None:
    """Quantiles of the page lie within a tenth of those of the answers, whatever the target."""
    times = np.random.default_rng(0).lognormal(np.log(0.6 * limit), 0.3, 4000)
    found = shown(kept(times.tolist(), limit), share)
    assert found == pytest.approx(float(np.quantile(times, share)), rel=0.1)


def test_the_page_agrees_with_the_attainment() -> None:
    """As many answers are shown within the target as the attainment says: p99 is above it only if it is missed."""
    diary = kept([0.25] * 995 + [0.35] * 5, 0.3)
    within = list(accumulate(diary.answers))[diary.bucket_bounds_s.index(0.3)]
    assert within / sum(diary.answers) == diary.attainment == 0.995
    assert shown(diary, 0.99) < 0.3
