"""Training: by default every subnet of a short list in every step, which closes the gap to nets trained alone.

The sandwich rule (largest, smallest, some drawn at random from (seed, epoch, batch, place)) is for spaces that are too
large for that; progressive shrinking opens one dimension after the other. Both count the steps that each subnet got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.family.datasets import Data
from unfold_supernet.networks.channel_sorting import order, sort
from unfold_supernet.networks.layers import Weights
from unfold_supernet.networks.space import Space, Subnet
from unfold_supernet.networks.supernet import Seen, alike, train_forward
from unfold_supernet.schema.models import TrainingSpec
from unfold_supernet.training.curriculum import Phase, drawn, epochs, phase_of, phases
from unfoldkit.api import fail

Examples = tuple[Tensor, Tensor, Tensor]
"""Inputs, numbers that join at the head, labels."""


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands: epochs done, weights, momentum, and steps that each subnet got.

    ``teacher`` holds the largest net as it was before it was shrunk, if the training shrinks it.
    """

    epoch: int
    weights: Weights
    momentum: Weights
    steps: dict[str, int]
    teacher: Weights = field(default_factory=dict)


Keep = Callable[[State], None]


def learn(
    space: Space, subnets: Sequence[Subnet], data: Data, given: TrainingSpec, seed: int, state: State, keep: Keep
) -> State:
    """Train to the end and return the state; ``keep`` is called after each epoch, and the same state resumes from it.

    SGD with Nesterov's momentum, linear warm-up times a cosine to zero in each phase, gradients of the subnets summed.

    Raises:
        UnfoldError: the weights are no numbers any more; what was kept is from before.
    """
    x, extra, y = (torch.from_numpy(part[data.train]) for part in (data.x, data.extra, data.y))
    found = phases(subnets, given)
    for epoch in range(state.epoch, epochs(found, given)):
        phase = phase_of(found, epoch)
        if epoch == phase.first and epoch:
            state = _entered(space, state, phase)
        state = _epoch(space, (x, extra, y), given, seed, state, phase)
        if not all(bool(tensor.isfinite().all()) for tensor in state.weights.values()):
            hint = "a lower rate, a smaller clip, or inputs of the order of 1"
            raise fail(
                f"training diverged: no weights are left after epoch {state.epoch}", key="training.rate", hint=hint
            )
        keep(state)
    return state


def _entered(space: Space, state: State, phase: Phase) -> State:
    """Return the state as a phase finds it: channels in order, the largest net kept as a teacher."""
    if phase.taught and not state.teacher:
        state = replace(state, teacher=dict(state.weights))
    if phase.taught:
        state = replace(state, momentum={})
    if not phase.sort:
        return state
    places = order(space, state.weights)
    weights, momentum = (sort(space, part, places) for part in (state.weights, state.momentum))
    return replace(state, weights=weights, momentum=momentum)


def _epoch(space: Space, examples: Examples, given: TrainingSpec, seed: int, state: State, phase: Phase) -> State:
    """Return the state after another epoch."""
    x, extra, y = examples
    weights = {name: tensor.clone().requires_grad_() for name, tensor in state.weights.items()}
    optimizer = torch.optim.SGD(
        list(weights.values()), lr=phase.rate, momentum=0.9, nesterov=True, weight_decay=given.decay
    )
    _restore(optimizer, weights, state.momentum)
    steps, batches, epoch = dict(state.steps), max(1, len(y) // given.batch), state.epoch
    rows = torch.from_numpy(np.random.default_rng([seed, epoch, 0xB0]).permutation(len(y)))
    for batch, part in enumerate(rows.split(given.batch)[:batches]):
        for group in optimizer.param_groups:
            group["lr"] = phase.rate * schedule((epoch - _start(phase, given)) * batches + batch, phase, given, batches)
        chosen = drawn(phase, seed, epoch, batch)
        inputs = augmented(x[part], given, seed, epoch, batch)
        teacher = _told(space, state, phase, inputs, extra[part])
        _step(space, chosen, weights, optimizer, given, (inputs, extra[part], y[part]), teacher)
        for subnet in chosen:
            steps[subnet.name] = steps.get(subnet.name, 0) + 1
    plain = {name: tensor.detach() for name, tensor in weights.items()}
    return State(epoch + 1, plain, _momentum(optimizer, weights), steps, state.teacher)


def schedule(step: int, phase: Phase, given: TrainingSpec, batches: int) -> float:
    """Return the share of a phase's learning rate at a step of it."""
    warm = min(1.0, (step + 1) / max(1, given.warmup * batches))
    return warm * 0.5 * (1 + math.cos(math.pi * step / (phase.epochs * batches)))


def _start(phase: Phase, given: TrainingSpec) -> int:
    """Return the epoch that a phase's schedule counts from; a delay shares the schedule of what comes before it."""
    return phase.first if given.rule == "progressive" else 0


def _told(space: Space, state: State, phase: Phase, x: Tensor, extra: Tensor) -> Tensor | None:
    if not phase.taught:
        return None
    with torch.no_grad():
        return functional.softmax(train_forward(space, state.teacher, space.largest, x, extra), 1)


def _step(
    space: Space,
    chosen: Sequence[Subnet],
    weights: Weights,
    optimizer: torch.optim.SGD,
    given: TrainingSpec,
    batch: Examples,
    told: Tensor | None,
) -> None:
    """Take one step by summed gradients; ``told`` is added to the labels (OFA), ``distill`` is a share (BigNAS)."""
    x, extra, y = batch
    optimizer.zero_grad(set_to_none=True)
    teacher: Tensor | None = None
    for group in alike(space, chosen):
        # backward group by group: the maps of one are still in the cache, those of all would not be
        losses, seen = [], Seen()
        for subnet in group:
            logits = train_forward(space, weights, subnet, x, extra, seen)
            losses.append(_loss(logits, y, given, told, teacher))
            teacher = functional.softmax(logits.detach(), 1) if teacher is None else teacher
        torch.stack(losses).sum().backward()
    # a subnet alone leaves weights that it does not use without a gradient
    torch.nn.utils.clip_grad_norm_([tensor for tensor in weights.values() if tensor.grad is not None], given.clip)
    optimizer.step()


def _loss(logits: Tensor, y: Tensor, given: TrainingSpec, told: Tensor | None, teacher: Tensor | None) -> Tensor:
    loss = functional.cross_entropy(logits, y, label_smoothing=given.smoothing)
    if told is not None:
        return loss + _soft(logits, told)
    if teacher is not None and given.distill > 0:
        return given.distill * _soft(logits, teacher) + (1 - given.distill) * loss
    return loss


def _soft(logits: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher * functional.log_softmax(logits, 1)).sum(1).mean()


def augmented(x: Tensor, given: TrainingSpec, seed: int, epoch: int, batch: int) -> Tensor:
    """Return a batch moved by up to ``shift`` places along each axis, zeros coming in, with noise; each row its own."""
    if not given.noise and not given.shift:
        return x
    rng = np.random.default_rng([seed, epoch, batch, 0xA6])
    for axis in range(2, x.ndim) if given.shift else ():
        x = _moved(x, torch.from_numpy(rng.integers(-given.shift, given.shift + 1, len(x))), given.shift, axis)
    return x + torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32)) * given.noise if given.noise else x


def _moved(x: Tensor, by: Tensor, most: int, axis: int) -> Tensor:
    size = x.shape[axis]
    wide = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [most, most])
    places = torch.arange(size)[None] + most + by[:, None]
    shape = [len(x), *([1] * (x.ndim - 1))]
    shape[axis] = size
    return wide.gather(axis, places.reshape(shape).expand(*x.shape))


def _momentum(optimizer: torch.optim.SGD, weights: Weights) -> Weights:
    found = {name: optimizer.state[tensor].get("momentum_buffer") for name, tensor in weights.items()}
    return {name: buffer.detach().clone() for name, buffer in found.items() if buffer is not None}


def _restore(optimizer: torch.optim.SGD, weights: Weights, momentum: Weights) -> None:
    for name, buffer in momentum.items():
        optimizer.state[weights[name]]["momentum_buffer"] = buffer.clone()
