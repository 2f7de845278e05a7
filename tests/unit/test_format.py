"""Formatting of durations, money, ratios, byte counts and numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfoldkit.api import format_bytes, format_count, format_duration, format_money, format_names, format_percent
from unfoldkit.format import divide_costs, format_amount, format_number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (2e-5, "20 µs"),
        (0.001, "1.0 ms"),
        (0.01, "0.01 s"),
        (9.994, "9.99 s"),
        (42.0, "42 s"),
        (119.9, "120 s"),
        (582.0, "9.7 min"),
        (11_520.0, "3.2 h"),
        (172_800.0, "2.0 d"),
    ],
)
def test_elapsed_durations_use_the_largest_fitting_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"),
        (35e-6, "35 µs"),
        (0.0042, "4.2 ms"),
        (0.18, "180 ms"),
        (9.999, "9,999 ms"),
        (12.5, "12.5 s"),
        (1234.56, "1,234.6 s"),
    ],
)
def test_latencies_use_milliseconds_below_ten_seconds(seconds: float, text: str) -> None:
    assert format_duration(seconds, style="latency") == text


@given(st.floats(0, 1e7))
def test_a_rounded_up_duration_is_never_shorter(seconds: float) -> None:
    number, unit = format_duration(seconds, round_up=True).split(" ")
    shown_s = float(number) * {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400}[unit]
    assert shown_s >= seconds - 1e-4
    assert format_duration(9.7 * 60, round_up=True) == "9.7 min"


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0.00"),
        (0.0123, "$0.0123"),
        (0.1, "$0.10"),
        (1234.5, "$1,234.50"),
        (4e-5, "$0.000040"),
        (1.26e-7, "$0.00000013"),
    ],
)
def test_small_amounts_of_money_show_two_digits(usd: float, text: str) -> None:
    assert format_money(usd) == text


@given(st.floats(0, 1e6))
def test_a_rounded_up_amount_is_never_smaller(usd: float) -> None:
    shown_usd = float(format_money(usd, round_up=True).removeprefix("$").replace(",", ""))
    assert usd - 1e-9 <= shown_usd <= usd + 0.0101


def test_costs_that_are_both_zero_are_equal() -> None:
    assert divide_costs(7, 2) == 3.5
    assert divide_costs(0, 0) == 1.0
    assert divide_costs(7, 0) is None


def test_a_percentage_below_certainty_never_reads_100() -> None:
    assert format_percent(0.99996) == "> 99.9 %"
    assert format_percent(1.0) == "100 %"
    assert format_percent(0.5) == "50 %"
    assert format_percent(0.123) == "12.3 %"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (2**20 - 1, "1 MiB"),
        (2**20, "1 MiB"),
        (345 * 2**20, "345 MiB"),
        (3 * 2**30 // 2, "1.5 GiB"),
    ],
)
def test_byte_counts_use_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_names_beyond_those_shown_are_counted() -> None:
    assert format_names(["a"], 2) == "a"
    assert format_names(["a", "b"], 2) == "a, b"
    assert format_names(["a", "b", "c"], 2) == "a, b and 1 other"
    assert format_names(list("abcde"), 1) == "a and 4 others"


def test_nouns_of_counts_have_their_plural() -> None:
    assert format_count(1, "trial") == "1 trial"
    assert format_count(3200, "trial") == "3,200 trials"
    assert format_count(2, "process") == "2 processes"
    assert format_count(0, "batch") == "0 batches"
    assert format_count(5, "query") == "5 queries"
    assert format_count(5, "key") == "5 keys"


def test_numbers_have_three_significant_digits() -> None:
    assert format_number(0.01234) == "0.0123"
    assert format_number(12_345) == "12,345"
    assert format_number(-0.0001, 1) == "0.0"
    assert format_number(math.inf) == "∞"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.8121, "0.8121"), (51.533, "51.53"), (9999.4, "9,999"), (54_137.2, "54,137")]
)
def test_amounts_have_no_exponent(value: float, text: str) -> None:
    assert format_amount(value) == text
