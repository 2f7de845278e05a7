"""The data that the live page receives."""

from __future__ import annotations

import pytest

from unfoldkit.serving.observability.dashboard import DashboardExtras, Tile, format_short, request_dashboard
from unfoldkit.serving.observability.metrics import LATENCY_BUCKETS_S, create_metrics, model_metrics


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (9999, "9,999"),
        (12_345, "12.3 k"),
        (37_398_100, "37.4 M"),
        (2.5e9, "2.5 G"),
        (0.125, "0.125"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    """Large numbers keep three digits and a suffix, small ones are as they are."""
    assert format_short(value) == text


def test_the_board_adds_up_all_models_and_what_the_kind_adds() -> None:
    """Requests of all models are counted together by status, a refusal is marked, and the kind's own tile follows."""
    found = create_metrics()
    for name in ("a", "b"):
        tally = model_metrics(found, name).requests
        tally.count(200, 0.0015)
        tally.count(429, 0.0)
    board = request_dashboard("both", "toy", lambda: found.registry, lambda _: DashboardExtras((Tile("own", "1"),)))()
    assert [(tile.label, tile.value, tile.ok) for tile in board.tiles] == [
        ("requests", "4", None), ("failed", "0", True), ("rejected", "2", False), ("own", "1", None),
    ]  # fmt: skip
    assert board.lines[0].values == {"200": 2.0, "429": 2.0}
    assert sum(board.spreads[0].counts) == 4
    assert len(board.spreads[0].counts) == len(LATENCY_BUCKETS_S) + 1
    assert board.lines[1].values == {"a": 0.0, "b": 0.0}


def test_buckets_hold_requests_up_to_their_bound() -> None:
    """A response time counts in the first bucket that reaches it and in all later ones; the slowest count too."""
    found = create_metrics()
    tally = model_metrics(found, "a").requests
    for seconds in (0.0004, 0.0015, 0.002, 7.0):
        tally.count(200, seconds)
    text = found.text().decode()
    for bound, count in (("0.0005", 1), ("0.001", 1), ("0.002", 3), ("5.0", 3), ("+Inf", 4)):
        assert f'unfold_request_duration_seconds_bucket{{le="{bound}",model="a"}} {count}.0' in text
    assert 'unfold_request_duration_seconds_count{model="a"} 4.0' in text


def test_refusals_make_answers_look_no_quicker() -> None:
    """Requests that are refused unread are counted by status, and not among the times to answer."""
    found = create_metrics()
    tally = model_metrics(found, "a").requests
    tally.count(200, 0.3)
    for _ in range(1000):
        tally.refuse()
    board = request_dashboard("a", "toy", lambda: found.registry)()
    assert board.lines[0].values == {"200": 1.0, "429": 1000.0}
    assert sum(board.spreads[0].counts) == 1
    assert b'unfold_request_duration_seconds_count{model="a"} 1.0' in found.text()
