"""How a policy warns: alerts among hours without the event as it was tuned, and lead time at exactly one rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.evaluation.bootstrap import Interval, alert_interval
from unfold_cascade.temporal.models.study import Part


@dataclass(frozen=True, slots=True)
class Warned:
    """The warnings of one policy on the test patients; ``hours`` (J,) of lead are at exactly the rate of all others.

    The interval is by patient bootstrap; ``caught`` is the share of the J patients who were warned at all.
    """

    alerts: float
    alerts_interval: Interval
    hours: FloatArray
    lead: float
    caught: float


def warned(part: Part, alert: BoolArray, exact: BoolArray, seed: int) -> Warned:
    """Return how a policy warns.

    Args:
        part: the patients.
        alert: (n,) its alarms with the cut from the tuning patients.
        exact: (n,) its alarms with the cut that gives the rate on these patients.
        seed: of the bootstrap.
    """
    hours = warning_metrics.lead_hours(exact, part.events, part.clock.starts)
    return Warned(
        warning_metrics.alerts_per_100h(alert, part.events),
        alert_interval(part, alert, seed),
        hours,
        _mean(hours),
        _mean((hours > 0).astype(np.float64)),
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")
