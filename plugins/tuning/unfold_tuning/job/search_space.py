"""Dimensions of a search space, and how a trial's configuration is drawn from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Dimension(Protocol):
    """One hyperparameter."""

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
class LogIntegerRange:
    """A log-uniform integer between two positive bounds, both included."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator) -> int:
        """Draw one value: the logarithm is uniform over half a unit beyond both bounds, as in Optuna."""
        drawn = np.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return int(min(max(round(float(drawn)), self.low), self.high))


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of several values, each equally likely; the only one of a constant. A value may be a tuple."""

    values: tuple[Any, ...]

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value, a tuple as a list; a constant leaves the generator as it is."""
        value = self.values[int(rng.integers(len(self.values)))] if len(self.values) > 1 else self.values[0]
        return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Conditional:
    """A dimension that exists only where others have certain values.

    Attributes:
        dimension: The dimension.
        conditions: The admissible values of each dimension on which it depends.
    """

    dimension: Dimension
    conditions: tuple[tuple[str, tuple[Any, ...]], ...]

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value, whether or not the conditions hold."""
        return self.dimension.sample(rng)

    def is_active(self, config: Mapping[str, Any]) -> bool:
        """Return whether a configuration has what the conditions demand."""
        return all(
            name in config and any(_is_equal(config[name], value) for value in values)
            for name, values in self.conditions
        )


def _is_equal(drawn: Any, value: Any) -> bool:
    """Compare a drawn value with that of a condition; a truth value equals no number."""
    if isinstance(value, tuple):
        return bool(drawn == list(value))
    return bool(drawn == value) and isinstance(drawn, bool) == isinstance(value, bool)


def sample_config(space: Mapping[str, Dimension], rng: np.random.Generator) -> dict[str, Any]:
    """Draw one configuration, dimension by dimension in the order of the space.

    A dimension with a condition that does not hold is drawn too and then left out, and so is what depends on it:
    conditions change no draw of the others.
    """
    config = {name: dimension.sample(rng) for name, dimension in space.items()}
    while inactive := [
        name for name in config if isinstance(item := space[name], Conditional) and not item.is_active(config)
    ]:
        config = {name: value for name, value in config.items() if name not in inactive}
    return config


def sample_bracket_configs(space: Mapping[str, Dimension], seed: int, bracket: int, count: int) -> list[dict[str, Any]]:
    """Draw the configurations of a bracket's trials; a larger count begins with those of a smaller one."""
    rng = np.random.default_rng([seed, 1000 + bracket])
    return [sample_config(space, rng) for _ in range(count)]
