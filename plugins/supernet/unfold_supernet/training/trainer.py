"""The training loop: gradients of several subnets summed in each step.

By default every subnet of a short list is trained in every step, which has the smallest weight-sharing gap. The
sandwich rule (BigNAS: largest, smallest, and random subnets) is for larger spaces; progressive shrinking (OFA) opens
one dimension after the other. Random subnets depend on (seed, epoch, batch, index) only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks.channel_sorting import rank_channels, sort_channels
from unfold_supernet.networks.layers import Weights
from unfold_supernet.networks.space import Space, Subnet
from unfold_supernet.networks.supernet import PrefixCache, group_by_first_layer, train_forward
from unfold_supernet.training.curriculum import Phase, build_phases, count_epochs, draw_subnets, find_phase
from unfold_supernet.training.problem import TrainingOptions
from unfoldkit.api import user_error

Examples = tuple[Tensor, Tensor, Tensor]
"""Inputs, numbers that join at the head, labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """State after some epochs; training resumes from it with the same result.

    Attributes:
        epoch: Completed epochs.
        weights: Shared weights.
        momentum: Momentum by weight.
        steps: Training steps by subnet.
        teacher: Weights of the largest subnet before shrinking, under progressive shrinking.
        earlier_s: Seconds of earlier commands.
    """

    epoch: int
    weights: Weights
    momentum: Weights
    steps: dict[str, int]
    teacher: Weights = field(default_factory=dict)
    earlier_s: float = 0.0


SaveState = Callable[[TrainingState], None]


def run_training(
    space: Space,
    subnets: Sequence[Subnet],
    data: Dataset,
    options: TrainingOptions,
    seed: int,
    state: TrainingState,
    save_state: SaveState,
) -> TrainingState:
    """Train until the last epoch.

    SGD with Nesterov momentum; linear warm-up, then a cosine to zero in each phase.

    Args:
        space: The search space.
        subnets: Subnets to train.
        data: Examples.
        options: Training options.
        seed: Of batches, random subnets and augmentation.
        state: Where to start.
        save_state: Called after each epoch.

    Raises:
        UnfoldError: The weights are no longer finite; the last saved state precedes that.
    """
    # inputs may be mapped from a file: only the rows of a batch are copied
    x, extra, y, train = (torch.from_numpy(array) for array in (data.x, data.extra, data.y, data.train))
    phases = build_phases(subnets, options)
    for epoch in range(state.epoch, count_epochs(phases, options)):
        phase = find_phase(phases, epoch)
        if epoch == phase.start_epoch and epoch:
            state = _enter_phase(space, state, phase)
        state = _train_epoch(space, (x, extra, y), train, options, seed, state, phase)
        if not all(bool(tensor.isfinite().all()) for tensor in state.weights.values()):
            message = f"training diverged: the weights are not finite after epoch {state.epoch}"
            hint = "lower rate or clip, or scale the inputs to the order of 1"
            raise user_error(message, key="training.rate", hint=hint)
        save_state(state)
    return state


def _enter_phase(space: Space, state: TrainingState, phase: Phase) -> TrainingState:
    """Prepare the state for a phase: store the teacher, reset momentum, sort channels."""
    if phase.has_teacher and not state.teacher:
        state = replace(state, teacher=dict(state.weights))
    if phase.has_teacher:
        state = replace(state, momentum={})
    if not phase.sorts_channels:
        return state
    order = rank_channels(space, state.weights)
    weights, momentum = (sort_channels(space, tensors, order) for tensors in (state.weights, state.momentum))
    return replace(state, weights=weights, momentum=momentum)


def _train_epoch(
    space: Space,
    examples: Examples,
    train: Tensor,
    options: TrainingOptions,
    seed: int,
    state: TrainingState,
    phase: Phase,
) -> TrainingState:
    x, extra, y = examples
    weights = {name: tensor.clone().requires_grad_() for name, tensor in state.weights.items()}
    optimizer = torch.optim.SGD(
        list(weights.values()), lr=phase.rate, momentum=0.9, nesterov=True, weight_decay=options.decay
    )
    _restore_momentum(optimizer, weights, state.momentum)
    steps, batches, epoch = dict(state.steps), max(1, len(train) // options.batch), state.epoch
    rows = train[torch.from_numpy(np.random.default_rng([seed, epoch, 0xB0]).permutation(len(train)))]
    for batch, indices in enumerate(rows.split(options.batch)[:batches]):
        step = (epoch - _get_schedule_start(phase, options)) * batches + batch
        for group in optimizer.param_groups:
            group["lr"] = phase.rate * compute_rate_factor(step, phase, options, batches)
        sample = draw_subnets(phase, seed, epoch, batch)
        inputs = augment_inputs(x[indices], options, seed, epoch, batch)
        teacher = _compute_teacher(space, state, phase, inputs, extra[indices])
        _take_step(space, sample, weights, optimizer, options, (inputs, extra[indices], y[indices]), teacher)
        for subnet in sample:
            steps[subnet.name] = steps.get(subnet.name, 0) + 1
    detached = {name: tensor.detach() for name, tensor in weights.items()}
    momentum = _read_momentum(optimizer, weights)
    return replace(state, epoch=epoch + 1, weights=detached, momentum=momentum, steps=steps)


def compute_rate_factor(step: int, phase: Phase, options: TrainingOptions, batches: int) -> float:
    """Compute the learning rate of a step relative to its phase: linear warm-up times a cosine."""
    warmup = min(1.0, (step + 1) / max(1, options.warmup * batches))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / (phase.epochs * batches)))


def _get_schedule_start(phase: Phase, options: TrainingOptions) -> int:
    """Get the epoch where a phase's schedule starts; a delayed phase continues the schedule before it."""
    return phase.start_epoch if options.rule == "progressive" else 0


def _compute_teacher(space: Space, state: TrainingState, phase: Phase, x: Tensor, extra: Tensor) -> Tensor | None:
    if not phase.has_teacher:
        return None
    with torch.no_grad():
        return functional.softmax(train_forward(space, state.teacher, space.largest, x, extra), 1)


def _take_step(
    space: Space,
    sample: Sequence[Subnet],
    weights: Weights,
    optimizer: torch.optim.SGD,
    options: TrainingOptions,
    batch: Examples,
    teacher: Tensor | None,
) -> None:
    """Take one step with summed gradients.

    A stored ``teacher`` is added to the labels (OFA). Otherwise ``options.distill`` weighs the first subnet's output
    against them (BigNAS).
    """
    x, extra, y = batch
    optimizer.zero_grad(set_to_none=True)
    largest: Tensor | None = None
    for group in group_by_first_layer(space, sample):
        # backward group by group: the maps of one group are still in the cache, those of all would not be
        losses, cache = [], PrefixCache()
        for subnet in group:
            logits = train_forward(space, weights, subnet, x, extra, cache)
            losses.append(_compute_loss(logits, y, options, teacher, largest))
            largest = functional.softmax(logits.detach(), 1) if largest is None else largest
        torch.stack(losses).sum().backward()
    # weights that no subnet of the step uses have no gradient
    torch.nn.utils.clip_grad_norm_([tensor for tensor in weights.values() if tensor.grad is not None], options.clip)
    optimizer.step()


def _compute_loss(
    logits: Tensor, y: Tensor, options: TrainingOptions, teacher: Tensor | None, largest: Tensor | None
) -> Tensor:
    loss = functional.cross_entropy(logits, y, label_smoothing=options.smoothing)
    if teacher is not None:
        return loss + _compute_soft_loss(logits, teacher)
    if largest is not None and options.distill > 0:
        return options.distill * _compute_soft_loss(logits, largest) + (1 - options.distill) * loss
    return loss


def _compute_soft_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher * functional.log_softmax(logits, 1)).sum(1).mean()


def augment_inputs(x: Tensor, options: TrainingOptions, seed: int, epoch: int, batch: int) -> Tensor:
    """Shift each row randomly by up to ``shift`` along each axis, zero-padded, and add noise."""
    if not options.noise and not options.shift:
        return x
    rng = np.random.default_rng([seed, epoch, batch, 0xA6])
    for axis in range(2, x.ndim) if options.shift else ():
        offsets = torch.from_numpy(rng.integers(-options.shift, options.shift + 1, len(x)))
        x = _shift_rows(x, offsets, options.shift, axis)
    if not options.noise:
        return x
    return x + torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32)) * options.noise


def _shift_rows(x: Tensor, offsets: Tensor, max_shift: int, axis: int) -> Tensor:
    size = x.shape[axis]
    padded = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [max_shift, max_shift])
    indices = torch.arange(size)[None] + max_shift + offsets[:, None]
    shape = [len(x), *([1] * (x.ndim - 1))]
    shape[axis] = size
    return padded.gather(axis, indices.reshape(shape).expand(*x.shape))


def _read_momentum(optimizer: torch.optim.SGD, weights: Weights) -> Weights:
    buffers = {name: optimizer.state[tensor].get("momentum_buffer") for name, tensor in weights.items()}
    return {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}


def _restore_momentum(optimizer: torch.optim.SGD, weights: Weights, momentum: Weights) -> None:
    for name, buffer in momentum.items():
        optimizer.state[weights[name]]["momentum_buffer"] = buffer.clone()
