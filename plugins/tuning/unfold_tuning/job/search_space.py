"""Dimensions of a search space, and how a trial's configuration is drawn from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Dimension(Protocol):
    """One hyper-parameter."""

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value."""


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Log-uniform between two positive bounds."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        return float(np.exp(rng.uniform(math.log(self.low), math.log(self.high))))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform between two bounds."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True, slots=True)
class IntegerRange:
    """An integer between two bounds, both included."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator) -> int:
        """Draw one value."""
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of several values, each equally likely."""

    values: tuple[float | int | str | bool, ...]

    def sample(self, rng: np.random.Generator) -> float | int | str | bool:
        """Draw one value."""
        return self.values[int(rng.integers(len(self.values)))]


def sample_config(space: Mapping[str, Dimension], rng: np.random.Generator) -> dict[str, Any]:
    """Draw one configuration, dimension by dimension in the order of the space."""
    return {name: dimension.sample(rng) for name, dimension in space.items()}


def sample_bracket_configs(space: Mapping[str, Dimension], seed: int, bracket: int, count: int) -> list[dict[str, Any]]:
    """Draw the configurations of a bracket's trials; a larger count begins with those of a smaller one."""
    rng = np.random.default_rng([seed, 1000 + bracket])
    return [sample_config(space, rng) for _ in range(count)]
