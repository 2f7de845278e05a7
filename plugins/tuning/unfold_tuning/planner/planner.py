"""The plan: the cheapest one on the exact curve that keeps the promise, over machines and markets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.baselines import Found, Goal, cheapest, greedy, improved, naive_scores, static_scores
from unfold_tuning.planner.frontier import Curve, Grid, grid
from unfold_tuning.planner.local_search import refined
from unfold_tuning.planner.lower_bound import lower_bound
from unfold_tuning.planner.minimum_charge import exact_curve
from unfold_tuning.simulator.execution_model import Floats, Model, model
from unfold_tuning.simulator.plan_cost import Score, scores

MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine's whole curve: plans fastest first, each scored; ``promised`` [plans] is the time that can be promised.

    Fixed and naive clusters are among the plans, as the curve is that of means and a promise is not. Where lives are
    billed by steps, what lies beside the cheapest is looked at too: ``share`` is the promise, ``improved`` keeps what
    was found by deadline.
    """

    model: Model
    table: Grid
    exact: Curve
    scores: tuple[Score, ...]
    promised: Floats
    share: float = 0.95
    improved: dict[float, Score] = field(default_factory=dict, compare=False, repr=False)

    def pick(self, deadline: float) -> Score | None:
        """Return the cheapest plan whose promised time is within the deadline."""
        kept = [item for item, time in zip(self.scores, self.promised, strict=True) if time <= deadline + 1e-6]
        found = min(kept, key=lambda item: item.cost, default=None)
        if found is None or not self.model.machine.by_steps:
            return found
        if deadline not in self.improved:
            self.improved[deadline] = improved(self.model, found, Goal(deadline, self.share))
        return self.improved[deadline]

    def within(self, budget: float, share: float) -> Score | None:
        """Return the plan with the earliest promised end that costs no more than the budget, with the same promise."""
        kept = [index for index, item in enumerate(self.scores) if item.within(budget) >= share - 1e-9]
        return self.scores[min(kept, key=lambda index: self.promised[index])] if kept else None

    @property
    def soonest(self) -> int:
        """The index of the plan that can be promised soonest."""
        return int(np.argmin(self.promised))


@dataclass(frozen=True, slots=True)
class Rivals:
    """The plans of the others under the same promise."""

    static: Found
    naive: Found
    greedy: Found


def offers(
    stages: Sequence[Stage], profile: Profile, machines: Sequence[Machine], share: float, samples: int, seed: int,
    progress: Callable[[str, int, int], None] = lambda _step, _done, _total: None,
) -> list[Offer]:  # fmt: skip
    """Return every machine's curve, on the same luck; ``progress`` is told each stage on each machine."""
    drawn, total, done = model(stages, profile, machines[0], samples, seed), len(stages) * len(machines), count(1)
    progress("curve", 0, total)
    models = drawn.among(machines)
    return [offer(item, share, lambda: progress("curve", next(done), total)) for item in models]


def offer(drawn: Model, share: float, tell: Callable[[], None] = lambda: None) -> Offer:
    """Return a machine's curve with the time that each of its plans can promise; ``tell`` is called a stage."""
    table = grid(drawn, tell)
    exact = exact_curve(drawn, table)
    chosen = thin(len(exact.plans), MOST_POINTS)
    played = [*scores(drawn, [exact.plans[index] for index in chosen]), *static_scores(drawn), *naive_scores(drawn)]
    promised = np.array([item.promise(share) for item in played])
    return Offer(drawn, table, exact, tuple(played), promised, share)


def best(found: Sequence[Offer], deadline: float) -> tuple[Offer, Score] | None:
    """Return the cheapest plan over all machines that keeps the promise."""
    picked = [(item, item.pick(deadline)) for item in found]
    kept = [(item, plan) for item, plan in picked if plan is not None]
    return min(kept, key=lambda pair: pair[1].cost, default=None)


def finest(found: Sequence[Offer], deadline: float) -> tuple[Offer, Score] | None:
    """Return the cheapest plan that keeps the promise, over all machines and then beside their curves."""
    picked = best(found, deadline)
    if picked is None:
        return None
    return picked[0], refined(picked[0].model, picked[1], Goal(deadline, picked[0].share))


def soonest(found: Sequence[Offer]) -> tuple[Offer, Score, float]:
    """Return the plan that can be promised soonest over all machines, and the time that it promises."""
    pairs = [(item, item.soonest) for item in found]
    item, index = min(pairs, key=lambda pair: pair[0].promised[pair[1]])
    return item, item.scores[index], float(item.promised[index])


def affordable(found: Sequence[Offer], budget: float, share: float) -> tuple[Offer, Score] | None:
    """Return the earliest promised end under a budget over all machines."""
    picked = [(item, item.within(budget, share)) for item in found]
    kept = [(item, plan) for item, plan in picked if plan is not None]
    return min(kept, key=lambda pair: pair[1].promise(share), default=None)


def rivals(item: Offer, goal: Goal) -> Rivals:
    """Return what the others plan on the same machine."""
    static = cheapest(static_scores(item.model), goal)
    naive = cheapest(naive_scores(item.model), goal)
    return Rivals(static, naive, greedy(item.model, goal, static.best))


def cheapest_conceivable(found: Sequence[Offer], goal: Goal) -> float:
    """Return the proven lower bound over all machines."""
    return min(lower_bound(item.model, item.table, goal.deadline, goal.share) for item in found)


def thin(count: int, most: int) -> list[int]:
    """Return at most ``most`` indices of ``count``, both ends kept, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
