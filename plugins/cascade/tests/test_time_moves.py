"""Laws of trajectories: what happens to a case hour after hour, and what is paid for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data.features import Purchase
from unfold_cascade.temporal.simulation import online_step
from unfold_cascade.temporal.simulation.cost import Rates, bill, totals
from unfold_cascade.temporal.simulation.policy import Step, ladder
from unfold_cascade.temporal.simulation.trajectories import Clock, Ladder, Walk, Zoo, walk, walk_plain

SEEDS = range(60)


def _clock(rng: np.random.Generator, patients: int = 12, longest: int = 14) -> Clock:
    """Return the hours of patients, some hours left out."""
    sizes = rng.integers(1, longest, patients)
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    steps = rng.integers(1, 3, int(sizes.sum())).astype(np.float64)
    hour = np.concatenate([np.cumsum(steps[a:b]) for a, b in pairwise(starts)])
    return Clock(starts, hour)


def _zoo(rng: np.random.Generator, hours: int, models: int = 5, groups: int = 3) -> Zoo:
    """Return random probabilities, needs and prices."""
    needs = rng.integers(1, 1 << groups, models).astype(np.int64)
    names = tuple(f"g{g}" for g in range(groups))
    valid = rng.choice([0.0, 1.0, 2.0, 5.0], groups)
    bought = Purchase(names, rng.integers(1, 9, groups).astype(np.float64), valid)
    return Zoo(rng.random((models, hours)).astype(np.float32), needs, bought)


def _rungs(rng: np.random.Generator, models: int = 5, stages: int = 3) -> Ladder:
    """Return a random policy of a few stages, some in parallel."""
    steps = tuple(_step(rng, models) for _ in range(stages))
    return ladder(steps, rng.random(stages) < 0.4)


def _step(rng: np.random.Generator, models: int) -> Step:
    chain = tuple(int(model) for model in rng.permutation(models)[: rng.integers(1, 4)])
    spans, owned = (
        tuple((float(a), float(b)) for a, b in np.sort(rng.random((len(chain) - 1, 2)), axis=1)) for _ in range(2)
    )
    return Step(chain, spans, float(rng.random()), owned if rng.random() < 0.5 else ())


def _moves(rng: np.random.Generator) -> Moves:
    """Return random rules of moving."""
    return Moves(
        entry="sticky" if rng.random() < 0.5 else "reset",
        confirm=int(rng.integers(1, 4)),
        advance="same-step" if rng.random() < 0.5 else "next-step",
        alarm="latched" if rng.random() < 0.5 else "hourly",
    )


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> tuple[Clock, Zoo, Ladder, Moves]:
    """Return a made-up hospital, a policy and rules of moving."""
    rng = np.random.default_rng(request.param)
    clock = _clock(rng)
    return clock, _zoo(rng, len(clock.hour)), _rungs(rng), _moves(rng)


@dataclass
class _Case:
    """What a case remembers in the plain twin."""

    clock: Clock
    zoo: Zoo
    rungs: Ladder
    moves: Moves
    calls: list[int]
    buys: list[int]
    reached: set[int] = field(default_factory=set)
    pointer: dict[int, int] = field(default_factory=dict)
    yeses: dict[int, int] = field(default_factory=dict)
    bought: dict[int, float] = field(default_factory=dict)

    def chain(self, stage: int) -> list[int]:
        return [int(model) for model in self.rungs.chain[stage] if model >= 0]

    def lacks(self, model: int, now: float) -> list[int]:
        needed = [g for g in range(len(self.buys)) if int(self.zoo.needs[model]) & (1 << g)]
        until = {g: at + self.zoo.purchase.valid_h[g] for g, at in self.bought.items()}
        return [g for g in needed if g not in until or (self.bought[g] != now and now >= until[g])]

    def buy(self, model: int, now: float) -> None:
        for group in self.lacks(model, now):
            self.buys[group] += 1
            self.bought[group] = now

    def verdict(self, stage: int, place: int, row: int) -> str:
        p, after = self.zoo.p[self.chain(stage)[place], row], self.chain(stage)[place + 1 :]
        free = bool(after) and not any(self.zoo.purchase.price[self.lacks(after[0], self.clock.hour[row])])
        lo, hi = (
            self.rungs.owned[:, stage, place] if free else (self.rungs.lo[stage, place], self.rungs.hi[stage, place])
        )
        if p >= hi:
            return "ICK1"
        return "ICK0" if p < lo else "IDK"

    def ask(self, stage: int, row: int) -> bool:
        """Ask the models of a stage until one is sure; returns whether the case moves on."""
        place, said = self.pointer.get(stage, 0), "IDK"
        while said == "IDK":
            model = self.chain(stage)[place]
            self.calls[model] += 1
            self.buy(model, self.clock.hour[row])
            said = self.verdict(stage, place, row)
            place += 1
        if self.moves.entry == "sticky":
            self.pointer[stage] = place - 1 if said == "ICK1" else max(0, place - 2)
        self.yeses[stage] = self.yeses.get(stage, 0) + 1 if said == "ICK1" else 0
        return self.yeses[stage] >= self.moves.confirm

    def hour(self, row: int) -> int:
        """Live through one hour; returns the stage that is answered."""
        last, waiting, alarm = len(self.rungs.chain) - 1, False, False
        for stage in range(last + 1):
            in_turn = bool(self.rungs.parallel[stage]) or not waiting
            if last in self.reached or stage in self.reached or not in_turn:
                continue
            moved = self.ask(stage, row)
            alarm = moved if stage == last else alarm
            if moved and (stage < last or self.moves.alarm == "latched"):
                self.reached.add(stage)
            if not self.rungs.parallel[stage]:
                waiting = not (moved and self.moves.advance == "same-step")
        return last + 1 if alarm else max((s + 1 for s in self.reached), default=0)


def _twin(clock: Clock, zoo: Zoo, rungs: Ladder, moves: Moves) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Tell the same story case by case, as section 1.8 of the reference does."""
    cases = [_Case(clock, zoo, rungs, moves, [0] * len(zoo.p), [0] * len(zoo.purchase.price)) for _ in clock.starts[1:]]
    answers = [
        case.hour(row)
        for case, (begin, end) in zip(cases, pairwise(clock.starts.tolist()), strict=True)
        for row in range(begin, end)
    ]
    return answers, [case.calls for case in cases], [case.buys for case in cases]


def test_the_simulation_equals_a_plain_twin(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """The compiled walk gives the answers, calls and purchases of a case-by-case telling in plain Python."""
    went = walk(*world)
    answers, calls, buys = _twin(*world)
    assert went.answer.tolist() == answers
    assert went.calls.tolist() == calls
    assert went.buys.tolist() == buys


def test_compiling_changes_nothing(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """The compiled kernel and the same kernel run by Python agree in every array."""
    for compiled, plain in zip(_arrays(walk(*world)), _arrays(walk_plain(*world)), strict=True):
        assert np.array_equal(compiled, plain)


def test_hours_are_conserved(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """Every hour has one answer, and the calls are the models asked at the hours where they were asked."""
    clock, _, rungs, _ = world
    went = walk(*world)
    assert len(went.answer) == len(clock.hour) == clock.starts[-1]
    assert ((went.answer >= 0) & (went.answer <= len(rungs.chain))).all()
    if world[3].entry == "reset":
        assert went.calls.sum() == went.asked.sum()
    assert (went.asked <= (rungs.chain >= 0).sum(axis=1)).all()


def test_a_stage_that_was_entered_is_never_left(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """Stages below the last never decrease within a case (happens-before); a latched alarm ends the case."""
    clock, _, rungs, moves = world
    answer = walk(*world).answer
    quiet = np.where(answer == len(rungs.chain), -1, answer)
    for begin, end in zip(clock.starts[:-1], clock.starts[1:], strict=True):
        seen = [stage for stage in quiet[begin:end] if stage >= 0]
        assert seen == sorted(seen)
        if moves.alarm == "latched" and -1 in quiet[begin:end]:
            first = begin + int(np.flatnonzero(quiet[begin:end] == -1)[0])
            assert (quiet[first:end] == -1).all()


def test_a_valid_purchase_is_not_paid_again() -> None:
    """A group valid for v hours is bought once in v hours by a model that is asked at every hour, and v = 0 hourly."""
    hours = 24
    clock = Clock(np.array([0, hours]), np.arange(hours, dtype=np.float64))
    for valid, bought in ((0.0, 24), (1.0, 24), (6.0, 4), (7.0, 4), (24.0, 1), (100.0, 1)):
        zoo = Zoo(np.zeros((1, hours), dtype=np.float32), np.array([1]), _one_group(valid))
        assert walk(clock, zoo, ladder((Step((0,), (), 0.5),), np.array([True])), Moves()).buys.sum() == bought


def test_models_share_a_purchase_of_the_same_hour() -> None:
    """Two models that need one group pay for it once an hour, even where it is valid for that hour only."""
    clock = Clock(np.array([0, 5]), np.arange(5, dtype=np.float64))
    zoo = Zoo(np.full((2, 5), 0.5, dtype=np.float32), np.array([1, 1]), _one_group(0.0))
    both = ladder((Step((0, 1), ((0.4, 0.6),), 0.9),), np.array([True]))
    went = walk(clock, zoo, both, Moves())
    assert went.calls.tolist() == [[5, 5]]
    assert went.buys.tolist() == [[5]]


def test_cuts_for_what_is_owned_change_no_purchase() -> None:
    """In a stage watched at every hour, models asked as their features are owned buy nothing more."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        clock = _clock(rng)
        bought = Purchase(("monitor", "labs"), np.array([1.0, 4.0]), np.array([0.0, float(rng.integers(1, 9))]))
        zoo = Zoo(rng.random((2, len(clock.hour))).astype(np.float32), np.array([1, 3]), bought)
        plain, both = (Step((0, 1), ((0.4, 0.6),), 0.5, owned) for owned in ((), ((0.0, 1.1),)))
        seen, more = (walk(clock, zoo, ladder((step,), np.array([True])), Moves()) for step in (plain, both))
        assert (seen.buys == more.buys).all()
        assert (seen.calls <= more.calls).all()


def test_what_costs_nothing_is_owned() -> None:
    """Where the next model reads only free features, the cuts for what is owned count from the first hour on."""
    clock = Clock(np.array([0, 3]), np.arange(3, dtype=np.float64))
    free = Purchase(("a", "b"), np.array([1.0, 0.0]), np.array([0.0, 5.0]))
    zoo = Zoo(np.full((2, 3), 0.5, dtype=np.float32), np.array([1, 3]), free)
    step = Step((0, 1), ((0.6, 0.7),), 0.4, ((0.4, 0.7),))
    assert walk(clock, zoo, ladder((step,), np.array([True])), Moves()).calls.tolist() == [[3, 3]]


def test_asking_more_hours_never_buys_less() -> None:
    """Watching from the first hour on costs at least what a stage that begins later costs."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        clock = _clock(rng)
        zoo = _zoo(rng, len(clock.hour), models=2)
        steps = (Step((0,), (), 0.6), Step((1,), (), 0.5))
        later, always = (walk(clock, zoo, ladder(steps, np.array([False, flag])), Moves()) for flag in (False, True))
        assert (later.calls <= always.calls).all()


def test_cost_is_calls_and_purchases_times_their_prices(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """The bill is linear: the sum over patients of calls by rate and purchases by price, an hour's mean of it."""
    zoo, went = world[1], walk(*world)
    rates = Rates(*(np.random.default_rng(k).random(len(zoo.p)) for k in range(4)))
    paid = sum(rates.price[m] * went.calls[:, m].sum() for m in range(len(zoo.p)))
    paid += sum(zoo.purchase.price[g] * went.buys[:, g].sum() for g in range(len(zoo.purchase.price)))
    assert totals(went, zoo, rates, "price").sum() == pytest.approx(paid)
    assert bill(went, zoo, rates)["price"] * len(went.answer) == pytest.approx(paid)
    assert bill(went, zoo, rates)["flops"] * len(went.answer) == pytest.approx(
        float(went.calls.sum(axis=0) @ rates.flops)
    )


def test_confirmation_only_delays() -> None:
    """Asking for more hours in a row never raises the stage of an hour, nor the number of alarms."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        clock = _clock(rng)
        zoo = _zoo(rng, len(clock.hour), models=1)
        rungs = ladder((Step((0,), (), 0.4),), np.array([True]))
        answers = [walk(clock, zoo, rungs, Moves(confirm=k)).answer for k in (1, 2, 3)]
        assert (answers[0] >= answers[1]).all()
        assert (answers[1] >= answers[2]).all()


def _one_group(valid: float) -> Purchase:
    return Purchase(("labs",), np.array([4.0]), np.array([valid]))


def _arrays(went: Walk) -> tuple[np.ndarray, ...]:
    return went.answer, went.asked, went.calls, went.buys


def test_hours_that_come_one_at_a_time_make_the_same_trajectory(world: tuple[Clock, Zoo, Ladder, Moves]) -> None:
    """Stepped hour by hour, all cases side by side, stages, calls and purchases are those of the simulation."""
    clock, zoo, rungs, moves = world
    expected, ladder_ = walk_plain(clock, zoo, rungs, moves), online_step.rungs(rungs)
    trails = [online_step.start(len(ladder_)) for _ in clock.starts[:-1]]
    since = [online_step.never(zoo.purchase) for _ in trails]
    calls, buys = np.zeros_like(expected.calls), np.zeros_like(expected.buys)
    for late in range(int(np.diff(clock.starts).max())):
        here = np.flatnonzero(clock.starts[:-1] + late < clock.starts[1:])
        rows = clock.starts[here] + late
        now = [trails[case] for case in here]
        stages, heard = online_step.step(
            ladder_,
            moves,
            now,
            lambda m, who, _, rows=rows: zoo.p[m, rows[list(who)]].tolist(),
            lambda i, m, asked, here=here, rows=rows: online_step.owns(
                zoo.needs, m, asked, float(clock.hour[rows[i]]), zoo.purchase, since[here[i]]
            ),
        )
        assert stages == expected.answer[rows].tolist()
        for case, row, said in zip(here, rows, heard, strict=True):
            for item in said:
                calls[case, item.model] += 1
                new = online_step.bought(int(zoo.needs[item.model]), float(clock.hour[row]), zoo.purchase, since[case])
                buys[case, new] += 1
    np.testing.assert_array_equal(calls, expected.calls)
    np.testing.assert_array_equal(buys, expected.buys)
