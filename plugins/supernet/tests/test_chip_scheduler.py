"""Laws of what is kept and of which net answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import random_family
from unfold_supernet._types import FloatArray
from unfold_supernet.accelerator import (
    cost_model,
    latency_table,
    reference_families,
    scheduler,
    stream_kernel,
    subgraph_cache,
)
from unfold_supernet.accelerator.hardware import Accelerator, get_presets
from unfold_supernet.accelerator.latency_table import LatencyTable
from unfold_supernet.accelerator.layers import Family, count_hits, count_weights
from unfold_supernet.accelerator.queries import draw_levels, draw_queries, scale_levels
from unfold_supernet.study import published, sweep

MACHINE = replace(get_presets()["zcu104"], bandwidth=1e9)


def known_of(
    family: Family, machine: Accelerator
) -> tuple[LatencyTable, list[subgraph_cache.CachedSubgraph], list[cost_model.SubnetWork]]:
    """Return the table of a family on a machine, its columns and works."""
    works = [cost_model.build_work(net, machine) for net in family.subnets]
    found = subgraph_cache.list_candidates(family, works, machine)
    return latency_table.build_latency_table(works, found, machine), found, works


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 400_000), st.sampled_from([1, 2, 4]))
def test_candidates_fit_and_hold_the_core_first(seed: int, room: int, weight: int) -> None:
    """Every candidate fits the buffer, and holds bytes outside the core only if it holds the whole core."""
    family = random_family(seed)
    machine = replace(MACHINE, persistent_bytes=room, weight_bytes=weight)
    _known, found, _works = known_of(family, machine)
    core = int(count_weights(family.core).sum())
    for column in found:
        held = int(count_weights(column.graph).sum())
        inside = int(count_hits(family.core, column.graph).sum())
        assert held * machine.weight_bytes <= room
        assert inside in {held, core}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1000, 400_000))
def test_refills_are_exact(seed: int, room: int) -> None:
    """A refill brings what the new column has and the old one lacks; in passing, less what the last net brought."""
    family = random_family(seed)
    _known, found, works = known_of(family, replace(MACHINE, persistent_bytes=room))
    plain, passing = subgraph_cache.count_refill_weights(found), subgraph_cache.count_refill_weights(found, works)
    net = _cells(works[0].subnet.graph)
    for i, old in enumerate(found[:3]):
        for j, new in enumerate(found[:3]):
            brought = _cells(new.graph) & ~_cells(old.graph)
            assert plain[i, j] == 9 * brought.sum()
            assert passing[0, i, j] == 9 * (brought & ~net).sum()


def _cells(graph: np.ndarray) -> np.ndarray:
    # layers x kernels x depth; all windows of these families are 3 x 3
    at = np.arange(200)
    return (at[None, :, None] < graph[:, 0, None, None]) & (at[None, None, :] < graph[:, 1, None, None])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(sorted(scheduler.POLICIES)),
    st.sampled_from(sorted(scheduler.CACHES)),
    st.integers(1, 9),
    st.booleans(),
)
def test_streams_are_played_by_the_rules(seed: int, policy: str, keep: str, every: int, passing: bool) -> None:
    """The compiled stream is the rules of the paper, query by query."""
    known, _found, _works = known_of(random_family(seed), replace(MACHINE, persistent_bytes=100_000))
    drawn = draw_queries(60, "random", seed).scale_targets(known, policy)
    wanted, others = drawn.enforced, drawn.other
    played = scheduler.run_queries(
        wanted, known, 1e9, policy=policy, cache=keep, column=1, every=every, passing=passing, other_targets=others
    )
    expected = by_the_rules(wanted, others, known, policy, keep, every, passing)
    found = (played.seconds, played.bytes, played.accuracy, played.in_time, played.accurate_enough, played.both)
    assert found == pytest.approx(expected)


def by_the_rules(
    wanted: FloatArray, others: FloatArray, known: LatencyTable, policy: str, keep: str, every: int, passing: bool
) -> tuple[float, ...]:
    """Return mean seconds, bytes and accuracy, and shares in time, accurate enough and both, written for reading."""
    now, served, time, moved, wait = 1, list[int](), 0.0, 0.0, 0.0
    met = list[tuple[bool, bool]]()
    nets = range(len(known.accuracy))
    for query, target in enumerate(wanted):
        late = {net: known.seconds[net, now] for net in nets}
        if policy == "strict-accuracy":
            good = [net for net in nets if known.accuracy[net] >= target]
            net = min(good, key=late.__getitem__) if good else max(nets, key=known.accuracy.__getitem__)
        else:
            good = [net for net in nets if late[net] <= target]
            net = max(good, key=known.accuracy.__getitem__) if good else min(nets, key=late.__getitem__)
        served.append(net)
        least, deadline = (target, others[query]) if policy == "strict-accuracy" else (others[query], target)
        met.append((known.seconds[net, now] + wait <= deadline, known.accuracy[net] >= least))
        wait = 0.0
        time += known.seconds[net, now]
        moved += known.bytes[net, now]
        if keep != "fixed" and (query + 1) % every == 0:
            last = served[-every:]
            columns = range(1, len(known.norm))
            if keep == "avgnet":
                # up to the squared length of AvgNet, which is the same for every column
                scores = [known.norm[c] - 2 * np.mean([known.near[n, c] for n in last]) for c in columns]
            else:
                scores = [float(np.mean([known.seconds[n, c] for n in last])) for c in columns]
            good = [1 + i for i, score in enumerate(scores) if score <= min(scores) + 1e-9 * abs(min(scores))]
            # a refill that gains nothing is not paid
            chosen = now if now in good else good[0]
            refill = known.passing[net, now, chosen] if passing else known.refill[now, chosen]
            wait = refill / 1e9
            time, moved, now = time + wait, moved + refill, chosen
    count = len(wanted)
    shares = np.mean([(*both, all(both)) for both in met], axis=0)
    return time / count, moved / count, float(np.mean([known.accuracy[net] for net in served])), *shares


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 200_000))
def test_either_policy_meets_both_targets_where_a_net_can(seed: int, room: int) -> None:
    """Under a fixed buffer both policies answer the same queries in time and accurately enough: all that a net can."""
    known, _found, _works = known_of(random_family(seed), replace(MACHINE, persistent_bytes=room))
    asked = draw_queries(80, "bursty", seed)
    targets = asked.scale_targets(known, "strict-accuracy")
    accuracies, deadlines = targets.enforced, targets.other
    for policy, (own, others) in {
        "strict-accuracy": (accuracies, deadlines),
        "strict-latency": (deadlines, accuracies),
    }.items():
        played = scheduler.run_queries(own, known, 1e9, policy=policy, column=1, other_targets=others)
        able = (known.accuracy[:, None] >= accuracies) & (known.seconds[:, 1][:, None] <= deadlines)
        assert played.both == pytest.approx(able.any(axis=0).mean())


@pytest.mark.parametrize("keep", ["avgnet", "least-latency"])
def test_what_is_as_good_stays(keep: str) -> None:
    """What is kept is not exchanged for what is as good, as a refill would be paid for nothing."""
    known, _found, _works = known_of(random_family(3), replace(MACHINE, persistent_bytes=100_000))
    last = known.norm.size - 1
    alike = replace(known, near=known.near * 0, norm=known.norm * 0 + 1, seconds=known.seconds[:, [last] * (last + 1)])
    wanted = scale_levels(draw_levels(500, "bursty", 5), alike, "strict-accuracy")
    played = scheduler.run_queries(wanted, alike, 1e9, cache=keep, column=last)
    assert (played.changes, played.refill) == (0, 0)


def test_python_and_compiled_streams_are_equal() -> None:
    """Plain Python gives the sums of the compiled stream."""
    known, _found, _works = known_of(random_family(3), replace(MACHINE, persistent_bytes=100_000))
    drawn = draw_queries(500, "bursty", 1).scale_targets(known, "strict-latency")
    wanted, others = drawn.enforced, drawn.other
    given_ = (
        wanted, others, known.seconds, known.bytes, known.hit, known.passing, known.near, known.norm, known.accuracy,
        1e9, stream_kernel.LATENCY, stream_kernel.AVGNET, 1, 7,
    )  # fmt: skip
    np.testing.assert_allclose(stream_kernel.run_stream(*given_), stream_kernel.run_stream_reference(*given_))


@pytest.mark.parametrize("name", sorted(reference_families.get_reference_spaces()))
def test_families_are_those_of_the_papers(name: str) -> None:
    """Seven nets grow in size, work and accuracy, each contains the smallest, and every map fits 1 MiB."""
    family = reference_families.build_reference_family(name)
    bytes_ = [int(net.weights.sum()) for net in family.subnets]
    assert bytes_ == sorted(bytes_)
    assert [net.accuracy for net in family.subnets] == sorted(net.accuracy for net in family.subnets)
    assert int(count_weights(family.core).sum()) == bytes_[0]
    assert max(int(net.outputs.max()) for net in family.subnets) <= 2**20


def test_spaces_have_the_sizes_of_ofa() -> None:
    """The smallest ResNet-50 of OFA has 6.52 MB and the largest 48.0; a compound space has 243 nets."""
    found = [int(net.weights.sum()) / 1e6 for net in reference_families.iterate_subnets("ofa-resnet50")]
    assert len(found) == 243
    assert min(found) == pytest.approx(6.52, abs=0.01)
    assert max(found) == pytest.approx(48.0, abs=0.05)


@pytest.mark.parametrize("name", sorted(reference_families.get_reference_spaces()))
def test_energy_saved_is_the_buffer_over_the_net(name: str) -> None:
    """A buffer smaller than the core saves its bytes over those of net, image and result: nothing else matters."""
    family = reference_families.build_reference_family(name)
    for bandwidth in (1e9, 19.2e9):
        found = sweep.build_setup(family, replace(MACHINE, persistent_bytes=2**20, bandwidth=bandwidth), ("stall",))
        held = int(count_weights(found.cached.graph).sum())
        assert held > 0.999 * 2**20
        for index, item in enumerate(found.works):
            whole = int(item.weights.sum() + item.activations.sum())
            assert 1 - found.layered.bytes[index, found.static_column] / whole == pytest.approx(held / whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1000, 400_000), st.sampled_from(sorted(scheduler.POLICIES)))
def test_what_is_kept_suits_the_stream(seed: int, room: int, policy: str) -> None:
    """Of all that may be kept, what is kept saves most traffic of the nets as the queries ask for them, up to 0.5 %."""
    asked = draw_queries(200, "bursty", seed)
    plain = sweep.build_setup(random_family(seed), replace(MACHINE, persistent_bytes=room), ("stall",))
    found = sweep.fit_to_stream(plain, asked, policy)
    wanted = asked.scale_targets(found.layered, policy).enforced
    # the nets that answer while nothing is kept, one query after the other
    none = [
        scheduler.run_queries(wanted[at : at + 1], found.layered, 1e9, policy=policy).accuracy
        for at in range(wanted.size)
    ]
    nets = np.searchsorted(found.layered.accuracy, none)
    kept = found.layered.hit * [[item.subnet.weights.sum()] for item in found.works]
    saved = kept[nets].sum(axis=0)
    assert saved[found.static_column] >= 0.995 * saved.max() - 1e-6
    assert saved[found.static_column] >= 0.995 * saved[plain.static_column] - 1e-6


def test_a_larger_buffer_saves_no_less() -> None:
    """Traffic saved grows with the buffer, and needs of a claim fall with the bandwidth."""
    family = reference_families.build_reference_family("ofa-mobilenetv3")
    asked = draw_queries(500, "random", 0)
    buffers = [2**18 * size for size in (1, 4, 8, 16)]
    points = list(sweep.sweep_buffers(family, MACHINE, buffers, [4e9, 1e9], asked, "strict-accuracy"))
    for bandwidth in (4e9, 1e9):
        saved = [point.traffic_best for point in points if point.bandwidth == bandwidth]
        assert saved == sorted(saved)
    lines = [line for line in published.check_claims(points, buffers[1]) if line.claim.quantity == "latency"]
    for claim in published.get_claims():
        if claim.quantity == "latency":
            wide, narrow = (line.needed_bytes for line in lines if line.claim == claim)
            assert narrow is not None
            assert wide is None or narrow <= wide


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(60, 62), st.integers(1, 3)), min_size=1, max_size=5),
    st.floats(59, 63),
    st.sampled_from(sorted(scheduler.POLICIES)),
)
def test_of_nets_that_are_alike_the_better_answers(nets: list[tuple[int, int]], target: float, policy: str) -> None:
    """Of nets of one accuracy the quickest answers, of one latency the most accurate, also where no net will do."""
    accuracy, seconds = (np.array(part, float) for part in zip(*nets, strict=True))
    wanted = target if policy == "strict-accuracy" else target - 60
    keys, best = np.empty(len(nets)), np.empty(len(nets) + 1, np.int64)
    stream_kernel.rank_subnets(seconds, accuracy, scheduler.POLICIES[policy], keys, best)
    net = stream_kernel.find_subnet(wanted, keys, best, scheduler.POLICIES[policy])
    by_accuracy = policy == "strict-accuracy"
    good = accuracy >= wanted if by_accuracy else seconds <= wanted
    able = [at for at in range(len(nets)) if good[at]]
    if by_accuracy == bool(able):
        expected = min(able or range(len(nets)), key=lambda at: (seconds[at], -accuracy[at]))
    else:
        expected = min(able or range(len(nets)), key=lambda at: (-accuracy[at], seconds[at]))
    assert (accuracy[net], seconds[net]) == (accuracy[expected], seconds[expected])
