"""The compiled queue equals the plain one, SimPy and the formulas of the textbooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import poisson

from unfoldkit.arrivals import processes
from unfoldkit.queueing import reference, stage

Case = tuple[list[float], list[float], int, float, list[tuple[float, int, int]], list[float], float, float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A small trace on a coarse grid (many ties), served in every way that a stage knows."""
    grid = st.integers(0, 40).map(lambda tick: tick / 8)
    times = sorted(draw(st.lists(grid, min_size=1, max_size=30)))
    latency = [0.0, *draw(st.lists(st.integers(1, 24).map(lambda tick: tick / 8), min_size=1, max_size=5))]
    replicas = draw(st.integers(1, 4))
    count, changes = replicas, []
    for when in sorted(draw(st.lists(grid, max_size=6))):
        change = draw(st.integers(1 - count, 3))
        count += change
        changes.append((when, change, draw(st.integers(0, len(latency) - 1))))
    factor = draw(st.sampled_from([[1.0], [1.0, 2.0], [0.5, 1.0, 4.0, 1.5]]))
    wait, wake = draw(st.sampled_from([0.0, 0.25, 1.0])), draw(st.sampled_from([0.0, 0.125, 2.0]))
    patience = draw(st.sampled_from([np.inf, np.inf, 0.0, 0.5, 2.0]))
    return times, latency, replicas, wait, changes, factor, wake, patience


def fast(case: Case, slices: int = 1) -> tuple[list[tuple[float, int]], float]:
    """Serve a case by the kernel, in one go or a slice of time after another."""
    times, latency, replicas, wait, changes, factor, wake, patience = case
    server = stage.Server(np.array(latency), replicas, wait, np.array(factor), wake, patience)
    numbers = np.array(changes, dtype=np.float64).reshape(-1, 3)
    schedule = stage.Schedule(numbers[:, 0], numbers[:, 1].astype(np.int64), numbers[:, 2].astype(np.int64))
    arrivals, items = np.array(times), np.arange(len(times), dtype=np.int32)
    state = stage.start(server, len(times), schedule)
    drained = 0.0
    for until in [*np.linspace(0.3, 9.0, slices - 1), np.inf]:
        known = int(np.searchsorted(arrivals, until))
        drained += state.advance(arrivals, items, known, stage.Goal(arrivals), schedule, float(until))
    return list(zip(state.times[: state.done].tolist(), state.items[: state.done].tolist(), strict=True)), drained


@pytest.mark.e2e
@given(cases())
@settings(max_examples=300, deadline=None)
def test_kernel_equals_the_plain_queue(case: Case) -> None:
    """Completions, their order and drained seconds are those of the event heap: ties, changes, shedding."""
    times, latency, replicas, wait, changes, factor, wake, patience = case
    done, drained = reference.serve(
        times,
        range(len(times)),
        latency,
        replicas,
        factor=factor,
        wait=wait,
        wake=wake,
        patience=patience,
        changes=[(time, change) for time, change, _ in changes],
        largest=[(time, size) for time, _, size in changes if size],
    )
    found, found_drained = fast(case)
    assert [time for time, _ in found] == [time for time, _ in done]
    assert sorted(found) == sorted(done)
    assert found_drained == pytest.approx(drained)


@pytest.mark.slow
@given(cases(), st.integers(2, 12))
@settings(max_examples=200, deadline=None)
def test_slices_equal_the_whole(case: Case, slices: int) -> None:
    """A trace that is served slice by slice ends as the trace that is served in one go."""
    assert fast(case, slices)[0] == fast(case)[0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_many_replicas_are_served_as_few_are(seed: int) -> None:
    """Hundreds of replicas, which have a kernel of their own, serve as the ring and the event heap say, ties too."""
    rng = np.random.default_rng(seed)
    size, replicas = int(rng.integers(1, 1500)), stage.MANY + int(rng.integers(1, 80))
    grid = rng.choice([0.0, 1 / 8])
    times = np.sort(rng.random(size) * rng.choice([4.0, 20.0]))
    times = np.floor(times / grid) * grid if grid else times
    latency = np.array([0.0, *rng.integers(1, 30, int(rng.integers(1, 9))) / 8])
    factor = np.array([[1.0, 1.0], [0.5, 1.25]][int(rng.integers(2))])
    server = stage.Server(latency, replicas, rng.choice([0.0, 0.5]), factor, rng.choice([0.0, 0.125]))
    items = np.arange(size, dtype=np.int32)
    goal = stage.Goal(times, *((rng.choice([1.0, 3.0]), int(size * rng.choice([0.01, 0.5]))) if seed % 2 else ()))
    found, ring = (stage.serve(times, items, server, goal, how) for how in (None, stage.Schedule()))
    assert (found.late, found.ok, found.batches, found.short) == (ring.late, ring.ok, ring.batches, ring.short)
    assert (found.times == ring.times).all()
    assert (found.items == ring.items).all()
    if found.ok:
        how = {"factor": factor.tolist(), "wait": server.wait, "wake": server.wake}
        done, _ = reference.serve(times.tolist(), range(size), latency.tolist(), replicas, **how)
        assert found.times.tolist() == [time for time, _ in done]


def test_more_replicas_than_items_take_no_memory() -> None:
    """A stage with 10^15 replicas serves as one with a replica for each item."""
    times, items = np.linspace(0.0, 1.0, 70), np.arange(70, dtype=np.int32)
    latency, goal = np.array([0.0, 2.0, 3.0]), stage.Goal(times)
    few, many = (stage.serve(times, items, stage.Server(latency, count), goal) for count in (70, 10**15))
    assert few.times.tolist() == many.times.tolist()
    assert (few.batches, few.short) == (many.batches, many.short)


def chain(  # noqa: C901
    env: simpy.Environment, arrivals: list[float], tables: list[list[float]], counts: list[int]
) -> list[float]:
    """Build the same pipeline of SimPy processes; return the list that completions are written to."""
    done = [0.0] * len(arrivals)
    queues: list[list[int]] = [[] for _ in tables]
    idle = list(counts)
    asked: list[simpy.Event | None] = [None] * len(tables)

    def look(position: int) -> None:
        # all events of an instant come first: a timeout of 0 is put behind them
        if asked[position] is None:
            asked[position] = env.timeout(0)
            asked[position].callbacks.append(lambda _event: start(position))

    def start(position: int) -> None:
        asked[position] = None
        while idle[position] and queues[position]:
            size = min(len(tables[position]) - 1, len(queues[position]))
            batch = [queues[position].pop(0) for _ in range(size)]
            idle[position] -= 1
            env.process(work(position, batch))

    def work(position: int, batch: list[int]) -> simpy.events.ProcessGenerator:
        yield env.timeout(tables[position][len(batch)])
        idle[position] += 1
        look(position)
        for query in batch:
            give(position + 1, query)

    def give(position: int, query: int) -> None:
        if position == len(tables):
            done[query] = env.now
            return
        queues[position].append(query)
        look(position)

    def source() -> simpy.events.ProcessGenerator:
        for query, arrival in enumerate(arrivals):
            yield env.timeout(arrival - env.now) if arrival > env.now else env.timeout(0)
            give(0, query)

    env.process(source())
    return done


def test_equals_simpy_query_by_query() -> None:
    """Each of 20,000 queries through three stages ends within a rounding of time where SimPy ends it."""
    arrivals = np.round(processes.gamma_arrivals(300.0, 67.0, np.random.default_rng(3)) * 2**20) / 2**20
    tables = [[0.0, 0.00390625], [0.0, *(0.0078125 + 0.00390625 * b for b in range(1, 9))]]
    tables.append([0.0, *(0.0078125 + 0.005859375 * b for b in range(1, 17))])
    counts = [3, 3, 4]
    env = simpy.Environment()
    done = chain(env, arrivals.tolist(), tables, counts)
    env.run()
    times, items = arrivals, np.arange(arrivals.size, dtype=np.int32)
    for table, count in zip(tables, counts, strict=True):
        flow = stage.serve(times, items, stage.Server(np.array(table), count), stage.Goal(arrivals))
        times, items = flow.times, flow.items
    found = np.empty(arrivals.size)
    found[items] = times
    # all times are multiples of 2**-20 s, which both add without rounding: the difference must be exactly 0
    assert np.abs(found - np.array(done)).max() == 0.0


def waits(rate: float, replicas: int, factor: NDArray[np.float64]) -> float:
    """Return the mean wait of 600,000 single servings of mean 1 s."""
    arrivals = processes.gamma_arrivals(rate, 600_000 / rate, np.random.default_rng(11))
    items = np.arange(arrivals.size, dtype=np.int32)
    server = stage.Server(np.array([0.0, 1.0]), replicas, factor=factor)
    flow = stage.serve(arrivals, items, server, stage.Goal(arrivals))
    return float((flow.times - arrivals[flow.items]).mean()) - float(factor.mean())


def test_mm1_wait() -> None:
    """With one replica and exponential service the mean wait is rho / (1 - rho) services."""
    factor = np.random.default_rng(7).exponential(1.0, 1 << 20)
    assert waits(0.7, 1, factor) == pytest.approx(0.7 / 0.3, rel=0.03)


def test_md1_wait() -> None:
    """With one replica and constant service the mean wait is rho / (2 (1 - rho)) services (Pollaczek and Khinchine)."""
    assert waits(0.8, 1, np.ones(1)) == pytest.approx(0.8 / (2 * 0.2), rel=0.03)


@pytest.mark.parametrize("replicas", [2, 4, 9])
def test_mdk_wait(replicas: int) -> None:
    """With k replicas at 80 % the mean wait is that of M/D/k (Crommelin's series)."""
    assert waits(0.8 * replicas, replicas, np.ones(1)) == pytest.approx(crommelin(0.8 * replicas, replicas), rel=0.03)


def crommelin(rate: float, replicas: int) -> float:
    """Return the mean wait of M/D/k with service 1 (Crommelin 1932): a sum over Poisson tails."""
    total = 0.0
    for batch in range(1, 400):
        mean, first = batch * rate, batch * replicas
        total += poisson.sf(first - 1, mean) - (replicas / rate) * poisson.sf(first, mean)
    return float(total)


def test_little() -> None:
    """The mean number in the stage is the arrival rate times the mean time in it."""
    arrivals = processes.gamma_arrivals(50.0, 400.0, np.random.default_rng(2), scv=4.0)
    items = np.arange(arrivals.size, dtype=np.int32)
    table = np.concatenate([[0.0], 0.02 + 0.01 * np.arange(1, 9)])
    flow = stage.serve(arrivals, items, stage.Server(table, 2), stage.Goal(arrivals))
    end = float(flow.times[-1])
    instants = np.linspace(0.0, end, 400_001)
    inside = np.searchsorted(arrivals, instants, "right") - np.searchsorted(flow.times, instants, "right")
    stay = float((flow.times - arrivals[flow.items]).mean())
    assert inside.mean() == pytest.approx(arrivals.size / end * stay, rel=1e-3)


def test_early_end_is_exact() -> None:
    """A pass ends early exactly when more items than allowed are late."""
    arrivals = processes.gamma_arrivals(80.0, 60.0, np.random.default_rng(5), scv=4.0)
    items = np.arange(arrivals.size, dtype=np.int32)
    server = stage.Server(np.array([0.0, 0.02]), 2)
    whole = stage.serve(arrivals, items, server, stage.Goal(arrivals, 0.1))
    assert whole.late > 10
    assert not stage.serve(arrivals, items, server, stage.Goal(arrivals, 0.1, whole.late - 1)).ok
    assert stage.serve(arrivals, items, server, stage.Goal(arrivals, 0.1, whole.late)).ok


def test_a_batch_without_a_latency_is_refused() -> None:
    """Largest batches beyond the table of latencies are an error, at first and later on, not a read past its end."""
    server = stage.Server(np.array([0.0, 1.0]), 1)
    later = stage.Schedule(np.ones(1), np.zeros(1, np.int64), np.array([2]))
    for how, schedule in ((replace(server, full=2), None), (server, later)):
        with pytest.raises(ValueError, match="no latency"):
            stage.start(how, 1, schedule)
