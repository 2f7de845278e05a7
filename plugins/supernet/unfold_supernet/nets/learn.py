"""Training: by default every subnet of a short list in every step, which closes the gap to nets trained alone.

The sandwich rule (largest, smallest, some drawn at random from (seed, epoch, batch, place)) is for spaces that are too
large for that; it counts the steps that each subnet got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.nets.data import Data
from unfold_supernet.nets.net import Weights, train_forward
from unfold_supernet.nets.space import Space, Subnet
from unfold_supernet.spec import TrainingSpec

Keep = Callable[[int, Weights, Weights, dict[str, int]], None]


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands: epochs done, weights, momentum, and steps that each subnet got."""

    epoch: int
    weights: Weights
    momentum: Weights
    steps: dict[str, int]


def learn(
    space: Space, subnets: Sequence[Subnet], data: Data, given: TrainingSpec, seed: int, state: State, keep: Keep
) -> State:
    """Train to the end and return the state; ``keep`` is called after each epoch, and the same state resumes from it.

    SGD with Nesterov's momentum, linear warm-up times a cosine to zero, gradients of the subnets summed.
    """
    x, extra, y = (torch.from_numpy(part[data.train]) for part in (data.x, data.extra, data.y))
    weights = {name: tensor.clone().requires_grad_() for name, tensor in state.weights.items()}
    optimizer = torch.optim.SGD(
        list(weights.values()), lr=given.rate, momentum=0.9, nesterov=True, weight_decay=given.decay
    )
    _restore(optimizer, weights, state.momentum)
    steps, batches = dict(state.steps), max(1, len(y) // given.batch)
    for epoch in range(state.epoch, given.epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch, 0xB0]).permutation(len(y)))
        for batch in range(batches):
            rows = order[batch * given.batch : (batch + 1) * given.batch]
            for group in optimizer.param_groups:
                group["lr"] = given.rate * schedule(epoch * batches + batch, given, batches)
            chosen = drawn(subnets, given, seed, epoch, batch)
            inputs = _augmented(x[rows], given, seed, epoch, batch)
            _step(space, chosen, weights, optimizer, given, (inputs, extra[rows], y[rows]))
            for subnet in chosen:
                steps[subnet.name] = steps.get(subnet.name, 0) + 1
        plain = {name: tensor.detach().clone() for name, tensor in weights.items()}
        keep(epoch + 1, plain, _momentum(optimizer, weights), steps)
    plain = {name: tensor.detach().clone() for name, tensor in weights.items()}
    return State(given.epochs, plain, _momentum(optimizer, weights), steps)


def schedule(step: int, given: TrainingSpec, batches: int) -> float:
    """Return the share of the learning rate at a step."""
    warm = min(1.0, (step + 1) / max(1, given.warmup * batches))
    return warm * 0.5 * (1 + math.cos(math.pi * step / (given.epochs * batches)))


def drawn(subnets: Sequence[Subnet], given: TrainingSpec, seed: int, epoch: int, batch: int) -> list[Subnet]:
    """Return the subnets of a step, largest first; a pure function of its arguments."""
    ordered = sorted(subnets, key=lambda one: (one.expand, one.depth, one.kernel), reverse=True)
    if epoch < given.delay:
        return ordered[:1]
    if given.rule == "all" or len(ordered) <= given.samples + 2:
        return ordered
    middle = ordered[1:-1]
    places = [int(np.random.default_rng([seed, epoch, batch, i]).integers(len(middle))) for i in range(given.samples)]
    return [ordered[0], *(middle[place] for place in places), ordered[-1]]


def _step(
    space: Space,
    chosen: Sequence[Subnet],
    weights: Weights,
    optimizer: torch.optim.SGD,
    given: TrainingSpec,
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, extra, y = batch
    optimizer.zero_grad(set_to_none=True)
    teacher: Tensor | None = None
    for subnet in chosen:
        logits = train_forward(space, weights, subnet, x, extra)
        loss = functional.cross_entropy(logits, y, label_smoothing=given.smoothing)
        if teacher is not None and given.distill > 0:
            soft = -(teacher * functional.log_softmax(logits, 1)).sum(1).mean()
            loss = given.distill * soft + (1 - given.distill) * loss
        loss.backward()
        teacher = functional.softmax(logits.detach(), 1) if teacher is None else teacher
    # a subnet alone leaves weights that it does not use without a gradient
    torch.nn.utils.clip_grad_norm_([tensor for tensor in weights.values() if tensor.grad is not None], given.clip)
    optimizer.step()


def _augmented(x: Tensor, given: TrainingSpec, seed: int, epoch: int, batch: int) -> Tensor:
    if not given.noise and not given.shift:
        return x
    rng = np.random.default_rng([seed, epoch, batch, 0xA6])
    if given.shift:
        x = torch.roll(x, int(rng.integers(-given.shift, given.shift + 1)), -1)
    return x + torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32)) * given.noise


def _momentum(optimizer: torch.optim.SGD, weights: Weights) -> Weights:
    found = {name: optimizer.state[tensor].get("momentum_buffer") for name, tensor in weights.items()}
    return {name: buffer.detach().clone() for name, buffer in found.items() if buffer is not None}


def _restore(optimizer: torch.optim.SGD, weights: Weights, momentum: Weights) -> None:
    for name, buffer in momentum.items():
        optimizer.state[weights[name]]["momentum_buffer"] = buffer.clone()
