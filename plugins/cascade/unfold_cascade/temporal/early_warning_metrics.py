"""Early-warning metrics: clinical utility, alert rates, lead time and ranking; patients are the unit of resampling.

The ranking metrics and macro F1 equal scikit-learn's. They are kept here because the bootstrap evaluates hundreds of
weightings of the same rows, and sorting once makes that affordable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.data.table import index_entities

# Hours relative to clinical onset, from evaluate_sepsis_score.py of the PhysioNet/CinC Challenge 2019.
EARLIEST_H, OPTIMAL_H, LATEST_H = -12, -6, 3
# The label comes on this many hours before clinical onset.
LABEL_LEAD_H = 6
# Hours further than this from the event count as event-free.
EVENT_FREE_H = 12
# An alert earlier than this before the event has no lead time.
MAX_LEAD_H = 48


@dataclass(frozen=True, slots=True)
class HourlyUtility:
    """Utility of every hour with an alert (``alert``) and without (``silence``), and the optimal alerts; each (n,)."""

    alert: FloatArray
    silence: FloatArray
    optimal: BoolArray

    def normalize(self, alerts: BoolArray, weight: FloatArray | None = None) -> float:
        """Compute (total - inaction) / (optimum - inaction): 1 is optimal, 0 is silence; NaN without an event.

        Args:
            alerts: (n,) hours with an alert.
            weight: (n,) multiplicity of each hour; 1 by default.
        """
        gain = (self.alert - self.silence) * (1.0 if weight is None else weight)
        possible = float(gain[self.optimal].sum())
        return float(gain[alerts].sum()) / possible if possible else float("nan")


def compute_utility(since: FloatArray) -> HourlyUtility:
    """Compute the utility of the PhysioNet/CinC Challenge 2019 (Reyna et al. 2020; evaluate_sepsis_score.py).

    The score is a sum over hours, so two columns contain all of it. It uses the time of a row rather than its number,
    which is the same for the hourly rows of the challenge.

    Args:
        since: (n,) hours since the label came on, minus infinity if it never does.
    """
    since_onset, septic = since - LABEL_LEAD_H, np.isfinite(since)
    rising = np.maximum((since_onset - EARLIEST_H) / (OPTIMAL_H - EARLIEST_H), -0.05)
    is_early = since_onset <= OPTIMAL_H
    alert = np.where(is_early, rising, (LATEST_H - since_onset) / (LATEST_H - OPTIMAL_H))
    silence = np.where(is_early, 0.0, -2.0 * (since_onset - OPTIMAL_H) / (LATEST_H - OPTIMAL_H))
    counts = septic & (since_onset <= LATEST_H)
    alert = np.where(counts, alert, np.where(septic, 0.0, -0.05))
    return HourlyUtility(alert, np.where(counts, silence, 0.0), counts & (since_onset >= EARLIEST_H))


@dataclass(frozen=True, slots=True)
class EventTimes:
    """When the event of each of P patients occurs.

    Attributes:
        event_free: (n,) hours more than 12 hours before the event, or of patients without one.
        hours_until: (n,) hours until the event, infinity for none.
        has_lead_time: (P,) whether the label comes on late enough for a lead time to be defined.
    """

    event_free: BoolArray
    hours_until: FloatArray
    has_lead_time: BoolArray


def locate_events(since: FloatArray, starts: IntArray) -> EventTimes:
    """Locate the events from (n,) hours ``since`` the label came on, as for ``compute_utility``."""
    until, is_present = LABEL_LEAD_H - since, np.diff(starts) > 0
    has_lead_time = np.zeros(len(is_present), dtype=np.bool_)
    initial = until[starts[:-1][is_present]]
    has_lead_time[is_present] = np.isfinite(initial) & (initial >= 2 * LABEL_LEAD_H)
    return EventTimes(until > EVENT_FREE_H, until, has_lead_time)


def compute_alert_rate(alerts: BoolArray, events: EventTimes) -> float:
    """Compute the alerts per 100 event-free hours."""
    return 100.0 * float(alerts[events.event_free].mean()) if events.event_free.any() else 0.0


def find_cut_at_rate(score: FloatArray, event_free: BoolArray, per_100h: float) -> float:
    """Find the lowest cut for which ``score >= cut`` alerts in at most ``per_100h`` of 100 event-free hours."""
    ranked = np.sort(score[event_free])[::-1]
    allowed = int(np.floor(len(ranked) * per_100h / 100.0))
    if allowed >= len(ranked):
        return -np.inf
    higher = ranked[:allowed][ranked[:allowed] > ranked[allowed]]
    return float(higher[-1]) if higher.size else float(np.nextafter(ranked[0], np.inf))


def compute_lead_hours(alerts: BoolArray, events: EventTimes, starts: IntArray) -> FloatArray:
    """Compute the lead time of each patient that has one: hours from the first alert to the event.

    Only the 48 hours before the event count. A patient without an alert has 0.
    """
    lead = np.zeros(len(starts) - 1)
    np.maximum.at(lead, index_entities(starts), np.where(mark_warnings(alerts, events), events.hours_until, 0.0))
    return lead[events.has_lead_time]


def mark_warnings(alerts: BoolArray, events: EventTimes) -> BoolArray:
    """Mark (n,) the alerts that count as warnings: those in the 48 hours before an event."""
    warnings: BoolArray = alerts & (events.hours_until > 0) & (events.hours_until <= MAX_LEAD_H)
    return warnings


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores sorted once for the weighted AUPRC and AUROC of many resamples.

    ``order`` is descending; ``ends`` closes each tie. ``sklearn.metrics`` sorts again for each resample, which takes
    more than twice as long; the values are the same.
    """

    order: IntArray
    positive: BoolArray
    ends: IntArray

    def auprc(self, weight: FloatArray | None = None) -> float:
        """Compute the average precision; ``weight`` (n,) is the multiplicity of each row."""
        positives, total = self._cumulate(weight)
        gained = np.diff(positives, prepend=0.0)
        area = (gained * positives / np.maximum(total, 1e-300)).sum()
        return float(area / positives[-1]) if positives[-1] else float("nan")

    def auroc(self, weight: FloatArray | None = None) -> float:
        """Compute the area under the ROC curve; a tie counts one half."""
        positives, total = self._cumulate(weight)
        negatives = total - positives
        if not positives[-1] or not negatives[-1]:
            return float("nan")
        mean_positives = (positives + np.concatenate(([0.0], positives[:-1]))) / 2
        area = (np.diff(negatives, prepend=0.0) * mean_positives).sum()
        return float(area / (positives[-1] * negatives[-1]))

    def _cumulate(self, weight: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        multiplicity = np.ones(len(self.order)) if weight is None else weight[self.order]
        return np.cumsum(multiplicity * self.positive)[self.ends], np.cumsum(multiplicity)[self.ends]


def rank_scores(score: FloatArray, positive: BoolArray) -> Ranking:
    """Sort (n,) scores; rows with equal scores form one step of the curves."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    return Ranking(order, positive[order], ends)


def compute_macro_f1(answer: IntArray, truth: IntArray, classes: int, weight: FloatArray | None = None) -> float:
    """Compute the mean over classes of 2 TP / (2 TP + FP + FN); a class without rows counts 0.

    ``weight`` (n,) is the multiplicity of each row.
    """
    counts = np.bincount(truth * classes + answer, weight, minlength=classes * classes)
    confusion = counts.reshape(classes, classes)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * np.diag(confusion) / np.maximum(total, 1)).mean())


def draw_bootstrap_weights(patients: int, replicates: int, seed: int) -> IntArray:
    """Draw (R, P) multiplicities: each replicate draws P patients with replacement."""
    generator = np.random.default_rng([seed, 0xB007])
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=replicates)
