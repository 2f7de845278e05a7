"""Ordinary networks in plain PyTorch: residual CNNs of any width for heartbeats and digits, and a usual training loop.

Nothing of the project is imported. The loop is the common one: AdamW, a short warm-up, a cosine to zero, and cross
entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

WARMUP, DECAY, CLIP = 0.05, 1e-4, 5.0
CHUNK = 1024
MIN_CHANNELS = 2
Build = Callable[[float], nn.Module]
"""From a fraction of the channels to a fresh network."""


class ResidualBlock(nn.Module):  # type: ignore[misc,unused-ignore]
    """Two convolutions beside a shortcut, in one or two dimensions."""

    def __init__(self, dims: int, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.first, self.norm1 = conv(narrow, wide, 3, stride, 1, bias=False), norm(wide)
        self.second, self.norm2 = conv(wide, wide, 3, 1, 1, bias=False), norm(wide)
        self.shortcut = nn.Sequential(conv(narrow, wide, 1, stride, bias=False), norm(wide))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's feature maps (n, wide, *size)."""
        inner = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(inner)) + self.shortcut(x))


def build_beat_network(width: float = 1.0, num_classes: int = 4) -> nn.Module:
    """Build a one-dimensional residual CNN for beats of 128 samples."""
    stem, middle, wide = (max(MIN_CHANNELS, round(channels * width)) for channels in (16, 32, 48))
    return nn.Sequential(
        nn.Conv1d(1, stem, 7, 2, 3, bias=False), nn.BatchNorm1d(stem), nn.ReLU(),
        ResidualBlock(1, stem, middle, 2), ResidualBlock(1, middle, wide, 2),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(wide, num_classes),
    )  # fmt: skip


def build_digit_network(width: float = 1.0, num_classes: int = 10) -> nn.Module:
    """Build a two-dimensional residual CNN for digits of 8 x 8 pixels."""
    stem, middle, wide = (max(MIN_CHANNELS, round(channels * width)) for channels in (16, 24, 32))
    return nn.Sequential(
        nn.Conv2d(1, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
        ResidualBlock(2, stem, middle, 2), ResidualBlock(2, middle, wide, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes),
    )  # fmt: skip


def count_macs(network: nn.Module, example: Tensor) -> float:
    """Count the multiply-accumulates of a network for one input; ``example`` holds at least one row."""
    counter = FlopCounterMode(display=False)
    network.eval()
    with counter:
        network(example[:1])
    return float(counter.get_total_flops()) / 2


def fit_width(build: Build, example: Tensor, macs: float) -> float:
    """Find the width with multiply-accumulates nearest to ``macs``, by bisection; a tie takes the wider."""
    low, high = 0.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        if count_macs(build(middle), example) <= macs:
            low = middle
        else:
            high = middle
    return min((high, low), key=lambda width: abs(count_macs(build(width), example) - macs))


def train_network(network: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train a network in place with AdamW, on batches in an order that depends on the seed."""
    rng, batches = np.random.default_rng(seed), max(1, len(x) // batch)
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=DECAY)
    steps = epochs * batches
    network.train()
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(len(x)))
        for index, rows in enumerate(order.split(batch)[:batches]):
            step = epoch * batches + index
            warmup = min(1.0, (step + 1) / max(1.0, WARMUP * steps))
            optimizer.param_groups[0]["lr"] = rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
    network.eval()


def compute_logits(network: nn.Module, x: Tensor) -> np.ndarray:
    """Compute the logits (n, classes) of inputs (n, *size)."""
    with torch.inference_mode():
        return np.concatenate([network(part).numpy() for part in x.split(CHUNK)])
