"""Simulated trajectories equal a case-by-case reference, and purchases follow their validity."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from plugins.cascade.tests.temporal.simulation.worlds import (
    SEEDS,
    World,
    draw_scores,
    draw_timeline,
    draw_world,
)
from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.policy import StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import (
    ModelScores,
    PolicyArrays,
    Trajectories,
    simulate,
)

RULES = Transitions()


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return draw_world(request.param)


@dataclass
class ReferenceCase:
    """One entity, simulated case by case in plain Python: independent of the kernel."""

    timeline: Timeline
    scores: ModelScores
    policy: PolicyArrays
    transitions: Transitions
    calls: list[int]
    buys: list[int]
    reached: set[int] = field(default_factory=set)
    pointer: dict[int, int] = field(default_factory=dict)
    yeses: dict[int, int] = field(default_factory=dict)
    bought: dict[int, float] = field(default_factory=dict)

    def chain(self, stage: int) -> list[int]:
        return [int(model) for model in self.policy.chain[stage] if model >= 0]

    def lacks(self, model: int, now: float) -> list[int]:
        needed = [g for g in range(len(self.buys)) if int(self.scores.needs[model]) & (1 << g)]
        until = {g: at + self.scores.purchase.valid_h[g] for g, at in self.bought.items()}
        return [g for g in needed if g not in until or (self.bought[g] != now and now >= until[g])]

    def buy(self, model: int, now: float) -> None:
        for group in self.lacks(model, now):
            self.buys[group] += 1
            self.bought[group] = now

    def verdict(self, stage: int, position: int, row: int) -> str:
        p, after = self.scores.p[self.chain(stage)[position], row], self.chain(stage)[position + 1 :]
        free = bool(after) and not any(self.scores.purchase.price[self.lacks(after[0], self.timeline.hour[row])])
        lo, hi = (
            self.policy.owned[:, stage, position]
            if free
            else (self.policy.lo[stage, position], self.policy.hi[stage, position])
        )
        if p >= hi:
            return "ICK1"
        return "ICK0" if p < lo else "IDK"

    def evaluate(self, stage: int, row: int) -> bool:
        """Ask the models of a stage until one is sure; returns whether the case transitions on."""
        position, verdict = self.pointer.get(stage, 0), "IDK"
        while verdict == "IDK":
            model = self.chain(stage)[position]
            self.calls[model] += 1
            self.buy(model, self.timeline.hour[row])
            verdict = self.verdict(stage, position, row)
            position += 1
        if self.transitions.entry == "sticky":
            self.pointer[stage] = position - 1 if verdict == "ICK1" else max(0, position - 2)
        self.yeses[stage] = self.yeses.get(stage, 0) + 1 if verdict == "ICK1" else 0
        return self.yeses[stage] >= self.transitions.confirm

    def hour(self, row: int) -> int:
        """Simulate one hour; returns the stage."""
        final, waiting, alarm = len(self.policy.chain) - 1, False, False
        for stage in range(final + 1):
            in_turn = bool(self.policy.parallel[stage]) or not waiting
            if final in self.reached or stage in self.reached or not in_turn:
                continue
            moves_on = self.evaluate(stage, row)
            alarm = moves_on if stage == final else alarm
            if moves_on and (stage < final or self.transitions.alarm == "latched"):
                self.reached.add(stage)
            if not self.policy.parallel[stage]:
                waiting = not (moves_on and self.transitions.advance == "same-step")
        return final + 1 if alarm else max((s + 1 for s in self.reached), default=0)


def simulate_by_case(world: World) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Simulate stages, calls and purchases entity by entity."""
    models, groups = len(world.scores.p), len(world.scores.purchase.price)
    cases = [
        ReferenceCase(world.timeline, world.scores, world.policy, world.transitions, [0] * models, [0] * groups)
        for _ in world.timeline.starts[1:]
    ]
    stages = [
        case.hour(row)
        for case, (begin, end) in zip(cases, pairwise(world.timeline.starts.tolist()), strict=True)
        for row in range(begin, end)
    ]
    return stages, [case.calls for case in cases], [case.buys for case in cases]


def test_simulation_equals_a_case_by_case_reference(world: World) -> None:
    """The compiled kernel gives the stages, calls and purchases of an independent implementation in plain Python."""
    trajectories = world.simulate()
    stages, calls, purchases = simulate_by_case(world)
    assert trajectories.stage.tolist() == stages
    assert trajectories.calls.tolist() == calls
    assert trajectories.purchases.tolist() == purchases


def test_compiled_and_plain_kernel_are_equal(world: World) -> None:
    """The compiled kernel and the same kernel in Python agree in every array."""
    for compiled, plain in zip(_arrays(world.simulate()), _arrays(world.simulate_reference()), strict=True):
        assert np.array_equal(compiled, plain)


def test_calls_equal_evaluated_models(world: World) -> None:
    """Every hour has one stage, and the calls add up to the models evaluated at all hours."""
    timeline, policy, trajectories = world.timeline, world.policy, world.simulate()
    assert len(trajectories.stage) == len(timeline.hour) == timeline.starts[-1]
    assert ((trajectories.stage >= 0) & (trajectories.stage <= len(policy.chain))).all()
    if world.transitions.entry == "reset":
        assert trajectories.calls.sum() == trajectories.evaluated.sum()
    assert (trajectories.evaluated <= (policy.chain >= 0).sum(axis=1)).all()


def test_stages_never_decrease(world: World) -> None:
    """Stages below the last never decrease within a case (happens-before); a latched alarm ends the case."""
    timeline, policy, transitions = world.timeline, world.policy, world.transitions
    answer = world.simulate().stage
    quiet = np.where(answer == len(policy.chain), -1, answer)
    for begin, end in zip(timeline.starts[:-1], timeline.starts[1:], strict=True):
        stages = [stage for stage in quiet[begin:end] if stage >= 0]
        assert stages == sorted(stages)
        if transitions.alarm == "latched" and -1 in quiet[begin:end]:
            first = begin + int(np.flatnonzero(quiet[begin:end] == -1)[0])
            assert (quiet[first:end] == -1).all()


def test_valid_purchases_are_not_repeated() -> None:
    """A set that is valid for v hours is bought once in v hours, and every hour for v = 0."""
    hours = 24
    timeline = Timeline(np.array([0, hours]), np.arange(hours, dtype=np.float64))
    for valid, bought in ((0.0, 24), (1.0, 24), (6.0, 4), (7.0, 4), (24.0, 1), (100.0, 1)):
        scores = ModelScores(np.zeros((1, hours), dtype=np.float32), np.array([1]), _single_set(valid))
        assert (
            simulate(
                timeline, scores, build_policy_arrays((StagePolicy((0,), (), 0.5),), np.array([True])), Transitions()
            ).purchases.sum()
            == bought
        )


def test_models_share_purchases_within_an_hour() -> None:
    """Two models that need the same set buy it once per hour, even if it is valid for that hour only."""
    timeline = Timeline(np.array([0, 5]), np.arange(5, dtype=np.float64))
    scores = ModelScores(np.full((2, 5), 0.5, dtype=np.float32), np.array([1, 1]), _single_set(0.0))
    both = build_policy_arrays((StagePolicy((0, 1), ((0.4, 0.6),), 0.9),), np.array([True]))
    trajectories = simulate(timeline, scores, both, Transitions())
    assert trajectories.calls.tolist() == [[5, 5]]
    assert trajectories.purchases.tolist() == [[5]]


def test_owned_cuts_change_no_purchase() -> None:
    """In a parallel stage, calls made because features are owned buy nothing with_owned."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        timeline = draw_timeline(rng)
        bought = PurchaseTerms(("monitor", "labs"), np.array([1.0, 4.0]), np.array([0.0, float(rng.integers(1, 9))]))
        scores = ModelScores(rng.random((2, len(timeline.hour))).astype(np.float32), np.array([1, 3]), bought)
        plain, both = (StagePolicy((0, 1), ((0.4, 0.6),), 0.5, owned) for owned in ((), ((0.0, 1.1),)))
        without, with_owned = (_simulate(timeline, scores, step, parallel=True) for step in (plain, both))
        assert (without.purchases == with_owned.purchases).all()
        assert (without.calls <= with_owned.calls).all()


def test_free_features_count_as_owned() -> None:
    """If the next model reads only free features, owned cuts apply from the first hour on."""
    timeline = Timeline(np.array([0, 3]), np.arange(3, dtype=np.float64))
    free = PurchaseTerms(("a", "b"), np.array([1.0, 0.0]), np.array([0.0, 5.0]))
    scores = ModelScores(np.full((2, 3), 0.5, dtype=np.float32), np.array([1, 3]), free)
    step = StagePolicy((0, 1), ((0.6, 0.7),), 0.4, ((0.4, 0.7),))
    assert _simulate(timeline, scores, step, parallel=True).calls.tolist() == [[3, 3]]


def test_parallel_stages_make_no_fewer_calls() -> None:
    """A stage evaluated from the first hour on makes at least the calls of a gated one."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        timeline = draw_timeline(rng)
        scores = draw_scores(rng, len(timeline.hour), models=2)
        steps = (StagePolicy((0,), (), 0.6), StagePolicy((1,), (), 0.5))
        later, always = (
            simulate(timeline, scores, build_policy_arrays(steps, np.array([False, flag])), RULES)
            for flag in (False, True)
        )
        assert (later.calls <= always.calls).all()


def test_confirmation_never_raises_a_stage() -> None:
    """Requiring more consecutive positive hours never raises the stage of an hour."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        timeline = draw_timeline(rng)
        scores = draw_scores(rng, len(timeline.hour), models=1)
        policy = build_policy_arrays((StagePolicy((0,), (), 0.4),), np.array([True]))
        answers = [simulate(timeline, scores, policy, Transitions(confirm=k)).stage for k in (1, 2, 3)]
        assert (answers[0] >= answers[1]).all()
        assert (answers[1] >= answers[2]).all()


def _simulate(timeline: Timeline, scores: ModelScores, stage: StagePolicy, *, parallel: bool) -> Trajectories:
    return simulate(timeline, scores, build_policy_arrays((stage,), np.array([parallel])), RULES)


def _single_set(valid: float) -> PurchaseTerms:
    return PurchaseTerms(("labs",), np.array([4.0]), np.array([valid]))


def _arrays(trajectories: Trajectories) -> tuple[np.ndarray, ...]:
    return trajectories.stage, trajectories.evaluated, trajectories.calls, trajectories.purchases
