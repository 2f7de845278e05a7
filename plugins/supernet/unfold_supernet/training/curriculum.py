"""What is trained when: the whole list from the start, or one dimension after the other (progressive shrinking)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.networks.space import Subnet
from unfold_supernet.schema.models import TrainingSpec

LARGEST_EPOCHS = 180
KERNEL = (("kernel", 0, 125, 1.0, 1),)
DEPTH = (("depth", 1, 25, 1 / 12, 2), ("depth", 0, 125, 1 / 4, 2))
EXPAND = (("expand", 1, 25, 1 / 12, 4), ("expand", 0, 125, 1 / 4, 4))
STEPS = (*KERNEL, *DEPTH, *EXPAND)
"""Of OFA's script: dimension, smallest entries still left out, epochs, rate against the first phase, nets a step."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Some epochs with one list of subnets: ``first`` is the epoch that it starts with, ``rate`` its learning rate.

    ``samples`` of the list are drawn for each step, 0 takes all; ``ends`` has the largest and the smallest in each step
    as well; ``sort`` orders the channels before it; ``taught`` adds the answer of the largest net as it was before.
    """

    first: int
    epochs: int
    rate: float
    subnets: tuple[Subnet, ...]
    samples: int = 0
    ends: bool = False
    sort: bool = False
    taught: bool = False

    @property
    def last(self) -> int:
        """The epoch after its last one."""
        return self.first + self.epochs


def phases(subnets: Sequence[Subnet], given: TrainingSpec) -> tuple[Phase, ...]:
    """Return the phases of a training, in order; a single net has one."""
    ordered = tuple(sorted(subnets, key=_size, reverse=True))
    if given.rule == "progressive" and len(ordered) > 1:
        return tuple(_shrinking(ordered, given))
    samples = given.samples if given.rule == "sandwich" and len(ordered) > given.samples + 2 else 0
    delay = min(given.delay, given.epochs) if len(ordered) > 1 else 0
    whole = Phase(0, given.epochs, given.rate, ordered, samples, ends=samples > 0)
    if not delay:
        return (whole,)
    # one schedule over both, so that the small nets meet the rate that the large one has by then
    return (replace(whole, subnets=ordered[:1], samples=0, ends=False), replace(whole, first=delay, sort=given.sort))


def phase_of(found: Sequence[Phase], epoch: int) -> Phase:
    """Return the phase that an epoch lies in: the last that has begun."""
    return [one for one in found if one.first <= epoch][-1]


def epochs(found: Sequence[Phase], given: TrainingSpec) -> int:
    """Return the epochs of all phases together."""
    return given.epochs if given.rule != "progressive" or len(found) == 1 else found[-1].last


def drawn(phase: Phase, seed: int, epoch: int, batch: int) -> list[Subnet]:
    """Return the subnets of a step, largest first; a pure function of its arguments (OFA)."""
    ordered = phase.subnets
    if not phase.samples or len(ordered) == 1:
        return list(ordered)
    pool = ordered[1:-1] if phase.ends else ordered
    places = [int(np.random.default_rng([seed, epoch, batch, i]).integers(len(pool))) for i in range(phase.samples)]
    chosen = [pool[place] for place in places]
    return [ordered[0], *chosen, ordered[-1]] if phase.ends else chosen


def _size(one: Subnet) -> tuple[object, ...]:
    return one.expand, one.depth, one.kernel, one.resolution


def _shrinking(ordered: tuple[Subnet, ...], given: TrainingSpec) -> Iterator[Phase]:
    """Yield the largest net's phase and those of OFA's script for the dimensions that are elastic, scaled alike."""
    largest, begun = ordered[0], given.epochs
    yield Phase(0, given.epochs, given.rate, (largest,))
    values = {key: sorted({v for one in ordered for v in getattr(one, key)}) for key in ("kernel", "depth", "expand")}
    least = {key: found[-1] for key, found in values.items()}
    sorted_ = False
    for key, left, length, rate, samples in STEPS:
        if len(values[key]) < 2 + left:
            continue
        least[key] = values[key][left]
        open_ = tuple(one for one in ordered if all(min(getattr(one, k)) >= low for k, low in least.items()))
        count = max(1, math.ceil(given.epochs * length / LARGEST_EPOCHS))
        sort = given.sort and key == "expand" and not sorted_
        sorted_ = sorted_ or sort
        yield Phase(begun, count, given.rate * rate, open_, samples, sort=sort, taught=True)
        begun += count
    if begun == given.epochs:
        # only the resolution is elastic, which OFA has so from its first phase after the largest net on
        _key, _left, length, rate, samples = KERNEL[0]
        count = max(1, math.ceil(given.epochs * length / LARGEST_EPOCHS))
        yield Phase(begun, count, given.rate * rate, ordered, samples, taught=True)
