"""The latencies on the live page of a pipeline."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.stage import Query
from unfold_pipeline.serving.dashboard import PlannedService, ServiceRecord, _build_tiles, build_latency_buckets
from unfoldkit.serving.observability.metrics import Tally


def ignore_answer(_answer: object) -> None:
    """Drop the answer."""


def build_record(times: list[float], limit: float) -> ServiceRecord:
    """The record of queries with these latencies in seconds."""
    nothing = Pipeline(())
    query = Query(
        np.zeros(1),
        build_routes(nothing, draw_sample(nothing, np.zeros(1), np.random.default_rng(0))),
        0,
        ignore_answer,
    )
    record = ServiceRecord(0.0, build_latency_buckets(limit))
    for seconds in times:
        record.record_outcome(query, seconds, limit, is_answered=True)
    return record


def page_quantile(record: ServiceRecord, share: float) -> float:
    """A quantile as the page computes it: linear between two bounds."""
    total, below = share * sum(record.answers), 0.0
    for low, high, count in zip((0.0, *record.bucket_bounds_s), record.bucket_bounds_s, record.answers, strict=False):
        if below + count >= total:
            return low + (high - low) * (total - below) / count
        below += count
    return record.bucket_bounds_s[-1]


@pytest.mark.parametrize("limit", [0.003, 0.3, 5.0])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_page_quantiles_are_within_a_tenth(limit: float, share: float) -> None:
    """Quantiles of the page lie within a tenth of those of the answers, for every target."""
    times = np.random.default_rng(0).lognormal(np.log(0.6 * limit), 0.3, 4000)
    found = page_quantile(build_record(times.tolist(), limit), share)
    assert found == pytest.approx(float(np.quantile(times, share)), rel=0.1)


def test_page_agrees_with_attainment() -> None:
    """The page counts as many answers within the target as the attainment states."""
    record = build_record([0.25] * 995 + [0.35] * 5, 0.3)
    within = list(accumulate(record.answers))[record.bucket_bounds_s.index(0.3)]
    assert within / sum(record.answers) == record.attainment == 0.995
    assert page_quantile(record, 0.99) < 0.3


def test_a_refused_query_is_no_faulty_request_too() -> None:
    """Refusals have a tile of their own, which names their status; other errors of clients have another."""
    record, requests = build_record([0.1], 0.3), Tally("p")
    record.record_refusal(5)
    requests.codes.update({200: 1, 429: 5, 400: 2})
    planned = PlannedService(0.3, 0.99, (), PlannedEnvelope(np.ones(1), np.ones(1, np.int64)))
    tiles = {tile.label: tile for tile in _build_tiles(record, planned, [], requests)}
    assert (tiles["refused"].value, tiles["rejected"].value) == ("5", "2")
    assert "429" in tiles["refused"].note
