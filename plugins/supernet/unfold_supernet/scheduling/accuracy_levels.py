"""What requests ask for beside a deadline: of the nets, those that are accurate enough may answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from unfold_supernet.scheduling.policies import Rule, Served
from unfold_supernet.scheduling.speed import Make, Pace, paced
from unfoldkit.serving.batching.request_queue import Ways
from unfoldkit.serving.model import Call


def ways(nets: Sequence[Served], make: Make, pace: Pace) -> Ways:
    """Return the nets as the line asks for them, a rule for each accuracy that a request can insist on.

    Level 0 is every net, the highest one the most accurate alone, which also answers who asks for more than it has
    (SUSHI: where no net will do, the nearest). Who cannot be in time is answered by the first net, or by the quickest
    that is accurate enough.
    """
    steps = sorted({net.share for net in nets})
    serves = tuple(steps.index(net.share) for net in nets)
    places = [[way for way, top in enumerate(serves) if top >= level] for level in range(len(steps))]
    rules: list[Rule] = [paced(make, [nets[way] for way in able], pace) for able in places]
    quick = [0, *(min(able, key=lambda way: nets[way].takes(1)) for able in places[1:])]

    def pick(slack: float, rows: int, level: int) -> tuple[int, int] | None:
        choice = rules[level](slack, rows)
        return None if choice is None else (places[level][choice.net], choice.batch)

    return Ways(pick, serves, tuple(quick), _level(steps))


def _level(steps: Sequence[float]) -> Callable[[Call], int]:
    last = len(steps) - 1
    return lambda call: min(bisect_left(steps, call.least_accuracy), last)
