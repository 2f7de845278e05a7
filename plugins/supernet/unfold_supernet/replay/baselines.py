"""Who is played on a trace: the adaptive rules over all nets, single nets, and the quickest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from unfold_supernet.scheduling.policies import (
    Choice,
    Rule,
    Served,
    cheapest,
    fitted,
    fixed,
    patient,
    shedding,
    slackfit,
    steady,
)
from unfold_supernet.scheduling.speed import Make

RULES: dict[str, Callable[[Sequence[Served], float], Rule]] = {
    "steady": steady,
    "fitted": lambda nets, _slo: fitted(nets),
    "slackfit": lambda nets, _slo: slackfit(nets),
}
"""From nets and the time to live of a request to a rule."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A rule by name: the places of the nets that it has, and what makes it from them."""

    name: str
    places: tuple[int, ...]
    make: Make

    def own(self, nets: Sequence[Served]) -> list[Served]:
        """Return the nets that it has."""
        return [nets[place] for place in self.places]

    def rule(self, nets: Sequence[Served]) -> Rule:
        """Return the rule, whose choices are places among all nets."""
        inner = self.make(self.own(nets))

        def choose(slack: float, waiting: int) -> Choice | None:
            choice = inner(slack, waiting)
            return choice and Choice(self.places[choice.net], choice.batch)

        return choose


def contenders(nets: Sequence[Served], policy: str, slo: float, *, apart: bool = False) -> list[Contender]:
    """Return the rule in charge first, the other adaptive ones, then the baselines; ``apart`` if deadlines differ."""
    every, adaptive = tuple(range(len(nets))), ruled if apart else _adaptive
    names = [policy, *(name for name in RULES if name != policy)]
    found = [Contender(name, every, partial(adaptive, name, slo)) for name in names]
    alone = [at for at in every if nets[at].then is None]
    found += [Contender(f"only {nets[at].name}", (at,), partial(fixed, at=0)) for at in alone]
    found += [Contender(f"shedding {nets[at].name}", (at,), partial(shedding, at=0, slo=slo)) for at in alone]
    return [*found, Contender("cheapest", every, cheapest)]


def ruled(name: str, slo: float, nets: Sequence[Served]) -> Rule:
    """Return a rule for requests whose deadlines differ: ``fitted`` is made to look past one batch."""
    rule = RULES[name](nets, slo)
    return patient(rule, max(net.most for net in nets)) if name == "fitted" else rule


def _adaptive(name: str, slo: float, nets: Sequence[Served]) -> Rule:
    return RULES[name](nets, slo)
