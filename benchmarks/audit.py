"""How soon the audit of a gateway revokes a broken promise, and how often it revokes one that is kept.

Differences are drawn from known distributions with a limit of 2 points: at the limit (false alarms), and after 1,000
good audits at 0.5 points from a broken endpoint (30 points) or a drop to 7 points. Two judges are simulated:
disagreement, the default of the gateway (a difference is 0 or 1), and labels, where 3 % of answers are better than the
reference's. The peers are the same e-process without restarts, and with restarts every 50 audits of weights
``1 / ((j + 1) (j + 2))`` and seven wagers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.language_models.gateway.audit import ALPHA, MAX_WEALTH, WAGERS, remaining_weight

LIMIT, GOOD = 0.02, 0.005
BEFORE, LENGTH = 1000, 4000
RUNS, QUICK_RUNS = 400, 60
EARLIER_WAGERS, EARLIER_SPACING = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 0.9), 50
Remaining = Callable[[int], float]
"""Gives the weight of the starts that come after so many audits."""


def run(quick: bool, seed: int, data: None = None) -> dict[str, Any]:
    """Simulate audits and measure false alarms and delays.

    Args:
        quick: 60 runs instead of 400.
        seed: of the differences.
        data: not needed.
    """
    del data
    rng, runs = np.random.default_rng(seed), QUICK_RUNS if quick else RUNS
    processes: dict[str, tuple[tuple[float, ...], Remaining]] = {
        "": (WAGERS, remaining_weight),
        "without restarts": (WAGERS, lambda audits: float(audits == 0)),
        "restarts every 50 audits": (EARLIER_WAGERS, lambda audits: 1.0 / (math.ceil(audits / EARLIER_SPACING) + 1)),
    }
    figures: dict[str, dict[str, float]] = {name: {} for name in processes}
    for prefix, better in (("", 0.0), ("labels_", 0.03)):
        for name, measured in _measure(rng, runs, better, processes).items():
            figures[name] |= {prefix + key: value for key, value in measured.items()}
    aims = {
        f"{prefix}{name}": aim
        for prefix in ("", "labels_")
        for name, aim in (("false_alarm_percent", "≤ 5"), ("delay_broken", "≤ 70"), ("delay_seven_points", "≤ 640"))
    }
    return {"metrics": figures.pop("") | {"runs": runs}, "peers": figures, "aims": aims}


def _measure(
    rng: np.random.Generator, runs: int, better: float, processes: Mapping[str, tuple[tuple[float, ...], Remaining]]
) -> dict[str, dict[str, float]]:
    """Measure false alarms and median delays of several processes on the same draws."""
    at_limit = _draw(rng, LIMIT, better, (runs, LENGTH))
    figures = {
        name: {"false_alarm_percent": 100 * float(np.mean(_first_alarm(at_limit, *process) < LENGTH))}
        for name, process in processes.items()
    }
    for name, loss in (("delay_broken", 0.30), ("delay_seven_points", 0.07)):
        before = _draw(rng, GOOD, better, (runs, BEFORE))
        d = np.concatenate([before, _draw(rng, loss, better, (runs, LENGTH))], axis=1)
        for process, parts in processes.items():
            figures[process][name] = float(np.median(np.maximum(_first_alarm(d, *parts) - BEFORE + 1, 0)))
    return figures


def _draw(rng: np.random.Generator, loss: float, better: float, shape: tuple[int, int]) -> FloatArray:
    """Draw differences with a mean of ``loss``, of which a share ``better`` is -1."""
    return rng.choice([1.0, -1.0, 0.0], size=shape, p=[loss + better, better, 1 - loss - 2 * better])


def _first_alarm(d: FloatArray, wagers: tuple[float, ...], remaining: Remaining) -> FloatArray:
    """Find the number of audits before the alarm of each run; the length of the run where there is none."""
    runs, length = d.shape
    largest = np.array(wagers) / (1.0 + LIMIT)
    wealth = np.zeros((runs, len(wagers)))
    first = np.full(runs, length)
    for step in range(length):
        factor = 1.0 + largest * (d[:, step, None] - LIMIT)
        wealth = np.minimum((wealth + remaining(step) - remaining(step + 1)) * factor, MAX_WEALTH)
        evidence = wealth.mean(axis=1) + remaining(step + 1)
        first = np.where((evidence >= 1.0 / ALPHA) & (first == length), step, first)
    return first.astype(np.float64)
