"""How soon the audit of a gateway revokes a broken promise, and how often it revokes one that is kept.

Differences are drawn from known distributions with a limit of 2 points: at the limit (false alarms), and after 1,000
good audits at 0.5 points from a broken endpoint (30 points) or a drop to 7 points. Two judges are simulated:
disagreement, the default of the gateway (a difference is 0 or 1), and labels, where 3 % of answers are better than the
reference's. The peer is the same e-process without restarts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.language_models.gateway.audit import ALPHA, RESTART_EVERY, WAGERS

LIMIT, GOOD = 0.02, 0.005
BEFORE, LENGTH = 1000, 4000
RUNS, QUICK_RUNS = 400, 60


def run(quick: bool, seed: int, data: None = None) -> dict[str, Any]:
    """Simulate audits and measure false alarms and delays.

    Args:
        quick: 60 runs instead of 400.
        seed: of the differences.
        data: not needed.
    """
    del data
    rng, runs = np.random.default_rng(seed), QUICK_RUNS if quick else RUNS
    metrics = _measure(rng, runs, RESTART_EVERY, 0.0)
    metrics |= {f"labels_{name}": value for name, value in _measure(rng, runs, RESTART_EVERY, 0.03).items()}
    peer = _measure(rng, runs, LENGTH + BEFORE + 1, 0.0)
    aims = {"false_alarm_percent": "≤ 5", "delay_broken": "≤ 70", "delay_seven_points": "≤ 640"}
    return {"metrics": metrics | {"runs": runs}, "peers": {"without restarts": peer}, "aims": aims}


def _measure(rng: np.random.Generator, runs: int, every: int, better: float) -> dict[str, float]:
    """Measure false alarms and median delays, with a start every so many audits."""
    at_limit = _draw(rng, LIMIT, better, (runs, LENGTH))
    figures = {"false_alarm_percent": 100 * float(np.mean(_first_alarm(at_limit, every) < LENGTH))}
    for name, loss in (("delay_broken", 0.30), ("delay_seven_points", 0.07)):
        before = _draw(rng, GOOD, better, (runs, BEFORE))
        d = np.concatenate([before, _draw(rng, loss, better, (runs, LENGTH))], axis=1)
        figures[name] = float(np.median(np.maximum(_first_alarm(d, every) - BEFORE + 1, 0)))
    return figures


def _draw(rng: np.random.Generator, loss: float, better: float, shape: tuple[int, int]) -> FloatArray:
    """Draw differences with a mean of ``loss``, of which a share ``better`` is -1."""
    return rng.choice([1.0, -1.0, 0.0], size=shape, p=[loss + better, better, 1 - loss - 2 * better])


def _first_alarm(d: FloatArray, every: int) -> FloatArray:
    """Find the number of audits before the alarm of each run; the length of the run where there is none."""
    runs, length = d.shape
    wagers = np.array(WAGERS) / (1.0 + LIMIT)
    wealth = np.zeros((runs, 0, len(WAGERS)))
    first = np.full(runs, length)
    for step in range(length):
        if step % every == 0:
            wealth = np.concatenate([wealth, np.zeros((runs, 1, len(WAGERS)))], axis=1)
        wealth += np.log1p(wagers * (d[:, step, None] - LIMIT))[:, None, :]
        starts = wealth.shape[1]
        weight = 1.0 / (np.arange(1, starts + 1) * np.arange(2, starts + 2))
        evidence = np.exp(np.minimum(wealth, 700)).mean(axis=2) @ weight + 1.0 / (starts + 1)
        first = np.where((evidence >= 1.0 / ALPHA) & (first == length), step, first)
    return first.astype(np.float64)
