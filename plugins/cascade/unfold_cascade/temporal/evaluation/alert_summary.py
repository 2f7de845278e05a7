"""How a policy alerts: its alert rate with the tuned cut, and lead time and sensitivity at one exact alert rate.

Lead times of two policies are comparable only at the same alert rate. Their final cuts are therefore set once more on
the test cohort itself, for these two figures and for no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray
from unfold_cascade.temporal.early_warning_metrics import compute_alert_rate, compute_lead_hours
from unfold_cascade.temporal.evaluation.bootstrap import Interval, bootstrap_alert_rate
from unfold_cascade.temporal.models.study import Cohort


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSummary:
    """The alerts of one policy on the test cohort.

    Attributes:
        rate: Alerts per 100 event-free hours, with the cut from the tuning cohort.
        rate_interval: Its 95 % interval by patient bootstrap.
        lead_h: (J,) lead time of each patient that has one, at exactly the alert rate of all other policies.
        mean_lead_h: Its mean.
        sensitivity: Share of these J patients with an alert before the event.
    """

    rate: float
    rate_interval: Interval
    lead_h: FloatArray
    mean_lead_h: float
    sensitivity: float


def summarize_alerts(cohort: Cohort, alert: BoolArray, alert_at_rate: BoolArray, seed: int) -> AlertSummary:
    """Summarize the alerts of one policy.

    Args:
        cohort: The test cohort.
        alert: (n,) alerts with the cut from the tuning cohort.
        alert_at_rate: (n,) alerts with the cut that gives the exact rate on this cohort.
        seed: Seed of the bootstrap.
    """
    lead_h = compute_lead_hours(alert_at_rate, cohort.events, cohort.timeline.starts)
    return AlertSummary(
        rate=compute_alert_rate(alert, cohort.events),
        rate_interval=bootstrap_alert_rate(cohort, alert, seed),
        lead_h=lead_h,
        mean_lead_h=_mean(lead_h),
        sensitivity=_mean((lead_h > 0).astype(np.float64)),
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")
