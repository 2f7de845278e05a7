"""Training phases: all subnets from the start, or one dimension after the other (OFA's progressive shrinking)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.networks.space import Subnet
from unfold_supernet.training.problem import TrainingOptions

OFA_LARGEST_EPOCHS = 180
"""Epochs of the largest subnet in OFA's script; other phases are scaled by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkStep:
    """A step of OFA's script.

    Attributes:
        dimension: The list that it opens.
        omitted: Smallest entries still left out.
        epochs: Length.
        rate: Learning rate relative to the first phase.
        samples: Subnets in a training step.
    """

    dimension: str
    omitted: int
    epochs: int
    rate: float
    samples: int


KERNEL_STEP = ShrinkStep(dimension="kernel", omitted=0, epochs=125, rate=1.0, samples=1)
SHRINK_STEPS = (
    KERNEL_STEP,
    ShrinkStep(dimension="depth", omitted=1, epochs=25, rate=1 / 12, samples=2),
    ShrinkStep(dimension="depth", omitted=0, epochs=125, rate=1 / 4, samples=2),
    ShrinkStep(dimension="expand", omitted=1, epochs=25, rate=1 / 12, samples=4),
    ShrinkStep(dimension="expand", omitted=0, epochs=125, rate=1 / 4, samples=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Some epochs with one list of subnets.

    Attributes:
        start_epoch: First epoch.
        epochs: Number of epochs.
        rate: Learning rate.
        subnets: Subnets to train, largest first.
        samples: Subnets drawn for each step; 0 trains all.
        includes_extremes: Whether each step also trains the largest and the smallest subnet (sandwich rule).
        sorts_channels: Whether channels are sorted before the phase.
        has_teacher: Whether the loss distils from the largest subnet as it was before shrinking.
    """

    start_epoch: int
    epochs: int
    rate: float
    subnets: tuple[Subnet, ...]
    samples: int = 0
    includes_extremes: bool = False
    sorts_channels: bool = False
    has_teacher: bool = False

    @property
    def end_epoch(self) -> int:
        """The epoch after the last one."""
        return self.start_epoch + self.epochs


def build_phases(subnets: Sequence[Subnet], options: TrainingOptions) -> tuple[Phase, ...]:
    """Build the phases of a training, in order; a single subnet has one."""
    ordered = tuple(sorted(subnets, key=_size_key, reverse=True))
    if options.rule == "progressive" and len(ordered) > 1:
        return tuple(_iterate_shrinking_phases(ordered, options))
    samples = options.samples if options.rule == "sandwich" and len(ordered) > options.samples + 2 else 0
    delay = min(options.delay, options.epochs) if len(ordered) > 1 else 0
    full = Phase(
        start_epoch=0,
        epochs=options.epochs,
        rate=options.rate,
        subnets=ordered,
        samples=samples,
        includes_extremes=samples > 0,
    )
    if not delay:
        return (full,)
    # one schedule for both: small subnets join at the rate that the largest has reached
    largest_only = replace(full, subnets=ordered[:1], samples=0, includes_extremes=False)
    return (largest_only, replace(full, start_epoch=delay, sorts_channels=options.sort))


def find_phase(phases: Sequence[Phase], epoch: int) -> Phase:
    """Find the phase of an epoch: the last one that has started."""
    return [phase for phase in phases if phase.start_epoch <= epoch][-1]


def count_epochs(phases: Sequence[Phase], options: TrainingOptions) -> int:
    """Count the epochs of all phases together."""
    return options.epochs if options.rule != "progressive" or len(phases) == 1 else phases[-1].end_epoch


def draw_subnets(phase: Phase, seed: int, epoch: int, batch: int) -> list[Subnet]:
    """Draw the subnets of a step, largest first; a pure function of its arguments (OFA)."""
    ordered = phase.subnets
    if not phase.samples or len(ordered) == 1:
        return list(ordered)
    pool = ordered[1:-1] if phase.includes_extremes else ordered
    indices = [int(np.random.default_rng([seed, epoch, batch, i]).integers(len(pool))) for i in range(phase.samples)]
    sample = [pool[index] for index in indices]
    return [ordered[0], *sample, ordered[-1]] if phase.includes_extremes else sample


def _size_key(subnet: Subnet) -> tuple[object, ...]:
    return subnet.expand, subnet.depth, subnet.kernel, subnet.resolution


def _iterate_shrinking_phases(ordered: tuple[Subnet, ...], options: TrainingOptions) -> Iterator[Phase]:
    """Yield the largest subnet's phase, then OFA's steps for the elastic dimensions, scaled to ``options.epochs``."""
    start_epoch = options.epochs
    yield Phase(start_epoch=0, epochs=options.epochs, rate=options.rate, subnets=ordered[:1])
    dimensions = ("kernel", "depth", "expand")
    values = {key: sorted({v for subnet in ordered for v in getattr(subnet, key)}) for key in dimensions}
    minimum = {key: entries[-1] for key, entries in values.items()}
    is_sorted = False
    for step in SHRINK_STEPS:
        if len(values[step.dimension]) < 2 + step.omitted:
            continue
        minimum[step.dimension] = values[step.dimension][step.omitted]
        enabled = tuple(
            subnet for subnet in ordered if all(min(getattr(subnet, key)) >= low for key, low in minimum.items())
        )
        sorts_channels = options.sort and step.dimension == "expand" and not is_sorted
        is_sorted = is_sorted or sorts_channels
        phase = _scale_step(step, enabled, start_epoch, options)
        yield replace(phase, sorts_channels=sorts_channels)
        start_epoch = phase.end_epoch
    if start_epoch == options.epochs:
        # only the resolution is elastic; OFA enables it with its first step
        yield _scale_step(KERNEL_STEP, ordered, start_epoch, options)


def _scale_step(step: ShrinkStep, subnets: tuple[Subnet, ...], start_epoch: int, options: TrainingOptions) -> Phase:
    return Phase(
        start_epoch=start_epoch,
        epochs=max(1, math.ceil(options.epochs * step.epochs / OFA_LARGEST_EPOCHS)),
        rate=options.rate * step.rate,
        subnets=subnets,
        samples=step.samples,
        has_teacher=True,
    )
