"""Spot instances that end on time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tuning_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_tuning.cluster.offers import OfferBook, list_offers
from unfold_tuning.job.availability import AvailabilityLog, read_availability
from unfold_tuning.job.build import build_machines
from unfold_tuning.job.profile import SpotTerms
from unfold_tuning.planner.planner import Candidate, evaluate_machine
from unfold_tuning.planner.spot_or_on_demand import run_thrifty, sample_market, select_thrifty
from unfold_tuning.schema.cloud import Cloud
from unfold_tuning.simulator.execution_model import build_execution_model
from unfold_tuning.simulator.spot_or_on_demand import (
    MAX_PATH_STEPS,
    STEP_S,
    add_unseen_outages,
    sample_availability,
)
from unfoldkit.api import Run, RunDir, UnfoldError
from unfoldkit.engines.local import LocalEngine

TERMS = SpotTerms(jobs.P3.usd_per_hour * 0.35, 0.2)
THRIFTY = replace(jobs.P3, market="thrifty", spot=TERMS)


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    """Return the on-demand frontier of a job on a thrifty machine."""
    stages = jobs.JOBS["J1"][0]
    return evaluate_machine(build_execution_model(stages, jobs.noisy_profile("J1"), THRIFTY, 500, 0), 0.95)


def build_market(is_available: bool, deadline_s: float) -> np.ndarray:
    """Return a market of one zone that never changes."""
    return np.full((1, 200, int(deadline_s / STEP_S) + 2), is_available)


def test_without_capacity_the_run_ends_on_time_on_demand(candidate: Candidate) -> None:
    """In a market without any spot instance the plan waits, moves on demand, and costs what it costs there."""
    deadline_s = 2 * float(candidate.guaranteed_s.min())
    plan = candidate.select_cheapest(deadline_s * 0.8)
    assert plan is not None
    runs = run_thrifty(candidate, plan, build_market(False, deadline_s), deadline_s)
    assert (runs.seconds <= deadline_s).mean() >= 0.97
    assert runs.on_demand_fraction.min() == pytest.approx(1.0)
    assert runs.cost_usd.mean() == pytest.approx(plan.mean_cost_usd, rel=0.1)


def test_a_deadline_in_years_samples_no_more_than_a_run_uses() -> None:
    """The market is sampled up to the last step of a simulated run, whatever the deadline."""
    assert sample_market(TERMS, 10 * 365 * 86400.0, 2, 0).shape == (1, 2, MAX_PATH_STEPS)


@pytest.mark.parametrize(("spot", "market"), [("$2/h", "thrifty"), ("$6/h", "on-demand")])
def test_spot_instances_that_save_nothing_are_not_rented(spot: str, market: str, tmp_path: Path) -> None:
    """An instance type with a spot price that is not below its price on demand is rented on demand."""
    instance = {"type": "p", "accelerators": 4, "price": "$6/h", "spot": spot}
    cloud = Cloud.model_validate({"instances": (instance,), "market": "thrifty"})
    (machine,) = build_machines(cloud, Run(directory=RunDir(tmp_path), engine=LocalEngine(1)))
    assert machine.market == market
    assert (machine.spot is None) == (market == "on-demand")


def test_with_capacity_all_of_it_is_spot(candidate: Candidate) -> None:
    """In a market that always has capacity nothing is rented on demand, at the price of spot."""
    deadline_s = 2 * float(candidate.guaranteed_s.min())
    plan = candidate.select_cheapest(deadline_s * 0.8)
    assert plan is not None
    runs = run_thrifty(candidate, plan, build_market(True, deadline_s), deadline_s)
    assert runs.on_demand_fraction.max() <= 0.05
    assert runs.cost_usd.mean() < 0.45 * plan.mean_cost_usd


def test_the_bill_holds_data_and_head_node(candidate: Candidate) -> None:
    """Data is copied to every instance that starts, and the head node is billed from start to end."""
    deadline_s = 2 * float(candidate.guaranteed_s.min())
    plan = candidate.select_cheapest(deadline_s * 0.8)
    assert plan is not None
    market = build_market(True, deadline_s)
    bare = run_thrifty(candidate, plan, market, deadline_s)
    priced = replace(THRIFTY, ingress_usd=5.0, head_usd_per_hour=3.6)
    runs = run_thrifty(replace(candidate, model=candidate.model.with_machine(priced)), plan, market, deadline_s)
    sizes = [0, *(allocation.instances for allocation in plan.plan)]
    started = sum(max(0, after - before) for before, after in itertools.pairwise(sizes))
    assert runs.cost_usd == pytest.approx(bare.cost_usd + 5.0 * started + 0.001 * runs.seconds)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.floats(1.0, 60.0), st.sampled_from([1.4, 2.0, 4.0]))
def test_every_market_ends_on_time(
    candidate: Candidate, seed: int, up_fraction: float, mean_ticks: float, factor: float
) -> None:
    """Whatever the market does, other than its log or not, the run ends on time: only its cost is the market's."""
    rng = np.random.default_rng(seed)
    deadline_s = factor * float(candidate.guaranteed_s.min())
    log = AvailabilityLog(("a",), 300.0, ("".join(str(int(value)) for value in rng.random(500) < 0.5),))
    model = candidate.model.with_machine(replace(THRIFTY, spot=replace(TERMS, log=log)))
    selected = select_thrifty([replace(candidate, model=model)], deadline_s, 0.95, seed)
    if selected is None:
        return
    steps = int(deadline_s / STEP_S) + 2
    toggles = rng.random((1, 200, steps)) < 1 / mean_ticks
    market = (np.cumsum(toggles, axis=2) % 2 == 0) & (rng.random((1, 200, steps)) < up_fraction + 0.5)
    runs = run_thrifty(candidate, selected.on_demand, market, deadline_s)
    assert (runs.seconds <= deadline_s).mean() >= 0.95


def test_too_little_slack_leaves_the_plan_on_demand(candidate: Candidate) -> None:
    """At a deadline that leaves no room for a change of place there is no thrifty plan."""
    assert select_thrifty([candidate], float(candidate.guaranteed_s.min()) + 1.0, 0.95, 0) is None


def test_replays_begin_in_the_present_state() -> None:
    """Every replay of a log begins in the state of its last tick, and zones are replayed together."""
    log = AvailabilityLog(("a", "b"), 300.0, ("1100110010", "0011001101"))
    path = sample_availability(log, 40, 300, np.random.default_rng(0))
    assert (path[0, :, 0] == 0).all()
    assert (path[1, :, 0] == 1).all()
    seen = {tuple(pair) for pair in path.reshape(2, -1).T.astype(int)}
    assert seen == {(1, 0), (0, 1)}
    assert path.mean() == pytest.approx(log.to_array().mean(), abs=0.15)


def test_a_short_log_hides_long_outages() -> None:
    """Of n + 1 similar outages the last one is the longest with probability 1 / (n + 1): that share is made longer."""
    rng = np.random.default_rng(0)
    # two outages of one and of three ticks, in a log of many short runs
    stormy = AvailabilityLog(("a", "b"), 300.0, ("1" * 300 + "0" + "1" * 300 + "000" + "1" * 300, "0" * 904))
    market = np.ones((2, 4000, 240), dtype=bool)
    market[1], market[0, :, 60:65] = False, False
    outages = (~add_unseen_outages(market, stormy, rng)).all(axis=0)
    assert (outages.sum(axis=1) == 30).mean() == pytest.approx(1 / 3, abs=0.03)
    assert (outages.sum(axis=1) == 5).mean() == pytest.approx(2 / 3, abs=0.03)


def test_the_bill_at_95_percent_holds_in_markets_that_are_known_for_three_days(candidate: Candidate) -> None:
    """Three days show few outages of a slow market: over many such logs, no more bills exceed theirs than stated."""
    deadline_s, kept, before = 3 * float(candidate.guaranteed_s.min()), list[float](), list[float]()
    plan = candidate.select_cheapest(deadline_s * 0.6)
    assert plan is not None
    steps = int(deadline_s / STEP_S) + 2
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lengths = rng.exponential(np.tile([8 * deadline_s, deadline_s], 60)) / STEP_S
        states = np.repeat(np.tile([True, False], 60), np.maximum(lengths, 1).astype(int))
        now = 12 * steps
        log = AvailabilityLog(("a",), STEP_S, ("".join("01"[int(up)] for up in states[: now + 1]),))
        replays = sample_availability(log, steps, 200, rng)
        future = np.broadcast_to(states[None, None, now : now + steps], (1, 60, steps))
        seen = run_thrifty(candidate, plan, future, deadline_s, begin=400).cost_usd
        for market, shares in (
            (replays, before),
            (add_unseen_outages(replays, log, rng), kept),
        ):
            cap_usd = float(np.quantile(run_thrifty(candidate, plan, market, deadline_s).cost_usd, 0.95))
            shares.append(float((seen <= cap_usd).mean()))
    assert np.mean(kept) >= 0.93
    assert np.mean(before) < np.mean(kept)


def test_on_demand_offers_wait_until_they_are_allowed() -> None:
    """A thrifty machine is offered on spot in all zones first; on demand only once slack has run out."""
    offers = list_offers(THRIFTY, [THRIFTY], ["a", "b"])
    assert [offer.machine.market for offer in offers] == ["spot", "spot", "on-demand", "on-demand"]
    assert offers[0].machine.usd_per_hour == TERMS.usd_per_hour
    book = OfferBook(offers, is_on_demand_allowed=False)
    for offer in offers[:2]:
        book.record_refusal(offer, 0.0)
    assert book.select(1.0) is None
    book.is_on_demand_allowed = True
    assert book.select(1.0) is offers[2]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,0\n1,1\n0,1\n0,1\n",
        "tick,a,b\n3,0,1\n2,0,1\n1,1,1\n0,1,0\n",
        "Time,a,b\n2026-05-01T12:15+02:00,0,1\n2026-05-01T10:10Z,0,1\n2026-05-01 10:05,1,1\n2026-05-01 10:00,1,0\n",
        "timestamp,a,b\n1700000000,1,0.0\n1700000301,True,True\n1700000599,false,yes\n1700000900,no,1\n",
        "timestamp,a,b\n1700000900000,0,1\n1700000000000,1,0\n1700000300000,1,1\n1700000600000,0,1\n",
        # a tick probed twice was available if both probes say so
        "date,a,b\n20260501T10,1,1\n20260501T1001,1,0\n20260501T1005,1,1\n20260501T1010,0,1\n20260501T1015,0,1\n",
        "tick,a,b\n0,1,0\n300,1,1\n600,0,1\n900,0,1\n",
        # times have any name, and the rows may be those of one zone each
        "probed (UTC),a,b\n2026-05-01 10:15,0,1\n2026-05-01 10:10,0,1\n2026-05-01 10:05,1,1\n2026-05-01 10:00,1,0\n",
        (
            "at,offer,granted\n2026-05-01T1010,b,1\n2026-05-01T1010,a,0\n2026-05-01T1005,b,1\n2026-05-01T1005,a,1\n"
            "2026-05-01T10,a,1\n2026-05-01T10,b,0\n2026-05-01T1015,a,0\n2026-05-01T1015,b,1\n"
        ),
    ],
)
def test_logs_in_any_order_and_zone_are_read(tmp_path: Path, text: str) -> None:
    """Times order the rows, newest first or last, of any time zone; states have the words of other tools."""
    path = tmp_path / "log.csv"
    path.write_text(text)
    log = read_availability(path, ["a", "b"], 300.0, "cloud.availability.zones")
    assert log == AvailabilityLog(("a", "b"), 300.0, ("1100", "0111"))


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("Minute,a,b\n15,0,1\n10,0,1\n5,1,1\n0,1,0\n", ("1100", "0111")),
        ("t,a,b\n0,1,0\n1,1,1\n2,0,1\n4,0,1\n", ("11000", "01111")),
        # the hour of the day, and a price that falls
        ("hour,a,b\n22,1,0\n23,1,1\n0,0,1\n1,0,1\n", ("1100", "0111")),
        ("price,a,b\n4,1,0\n3,1,1\n2,0,1\n1,0,1\n", ("1100", "0111")),
        # a date comes before a number
        ("step,at,a,b\n4,2026-05-01T00:00,1,0\n3,2026-05-01T00:05,1,1\n2,2026-05-01T00:15,0,1\n", ("1110", "0111")),
    ],
)
def test_counted_rows_are_ordered(tmp_path: Path, text: str, states: tuple[str, str]) -> None:
    """Numbers of minutes or steps that only rise or fall order the rows, so that the newest may come first."""
    path = tmp_path / "log.csv"
    path.write_text(text)
    assert read_availability(path, ["a", "b"], 300.0, "cloud.availability.zones").states == states


def test_ticks_without_a_probe_have_the_state_before(tmp_path: Path) -> None:
    """A logger that was down is no market that was down; the log counts such ticks, those of the last days apart."""
    path = tmp_path / "log.csv"
    path.write_text("time,a,b\n0,1,\n300,1,0\n1200,0,1\n1500,,1\n")
    log = read_availability(path, ["a", "b"], 300.0, "cloud.availability.zones")
    assert log.states == ("111100", "000011")
    assert log.gaps == (0, 2, 3, 5)
    assert log.select_trailing(900.0).gaps == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "time,a\n0,1\n600,1\n1200,1\n",
            r"log.csv:2:1: time: the rows are 10.0 min apart, not 5.0 min .*tick: 10.0 min",
        ),
        ("at,zone,a\n0,b,1\n0,c,0\n", r"log.csv:2:1: zone: the rows are those of several zones .*zones: \[b, c\]"),
        ("hours,a\n0,1\n1,1\n", r"log.csv:2:1: hours: the rows are 60.0 min apart, not 5.0 min .*write tick: 60.0 min"),
        ("time,a\nnoon,1\n600,1\n", r"log.csv:2:1: time: 'noon' is not a time"),
        ("time,a\n0,\n300,\n", "no probe of the zone 'a'"),
        ("time,a\n0,1\n0,1\n", "two ticks"),
        ("tick,a\n0,1\n1,2\n", "neither 0 nor 1"),
        ("tick,b\n0,1\n1,1\n", "no column 'a'"),
        ("tick,a\n0,1\n", "two ticks"),
    ],
)
def test_a_broken_log_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """A log with other cells, without the zone, or with one row only is rejected with its place."""
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(UnfoldError, match=message):
        read_availability(path, ["a"], 300.0, "cloud.availability.zones")


def test_a_history_of_prices_is_no_log_of_availability(tmp_path: Path) -> None:
    """It is refused by what it is, not as a table without commas."""
    path = tmp_path / "spot.json"
    path.write_text('{"SpotPriceHistory": []}')
    with pytest.raises(UnfoldError, match=r"spot\.json: cloud.availability.zones: a log .* write it as cloud.prices"):
        read_availability(path, ["a"], 300.0, "cloud.availability.zones")
