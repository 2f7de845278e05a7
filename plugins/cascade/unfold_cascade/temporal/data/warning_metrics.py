"""How good an early warning is: utility, alerts, lead time, ranking; each with patients as the unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.data.table import entity_of_row

EARLY, OPTIMAL, LATE = -12, -6, 3
AHEAD = 6
FREE = 12
LOOK_BACK = 48


@dataclass(frozen=True, slots=True)
class Utility:
    """The score of each hour if it is warned (``yes``) or not (``no``), and of the best possible warnings; (n,)."""

    yes: FloatArray
    no: FloatArray
    best: BoolArray

    def normalised(self, alert: BoolArray, weight: FloatArray | None = None) -> float:
        """Return (total - inaction) / (best - inaction): 1 is perfect, 0 is never to warn; NaN without an event.

        Args:
            alert: (n,) which hours are warned.
            weight: (n,) how often each hour counts; once by default.
        """
        gain = (self.yes - self.no) * (1.0 if weight is None else weight)
        possible = float(gain[self.best].sum())
        return float(gain[alert].sum()) / possible if possible else float("nan")


def utility(since: FloatArray) -> Utility:
    """Return the utility of the PhysioNet/CinC Challenge 2019 (reference section 5.1; evaluate_sepsis_score.py).

    The score is additive over hours, so two columns hold all of it. It goes by the time of a row, not by its number:
    with a row every hour, as in the challenge, that is the same.

    Args:
        since: (n,) hours since the label came on, six hours before clinical onset; minus infinity where it never does.
    """
    d, septic = since - AHEAD, np.isfinite(since)
    early = np.maximum((d - EARLY) / (OPTIMAL - EARLY), -0.05)
    yes = np.where(d <= OPTIMAL, early, (LATE - d) / (LATE - OPTIMAL))
    no = np.where(d <= OPTIMAL, 0.0, -2.0 * (d - OPTIMAL) / (LATE - OPTIMAL))
    counts = septic & (d <= LATE)
    yes = np.where(counts, yes, np.where(septic, 0.0, -0.05))
    return Utility(yes, np.where(counts, no, 0.0), counts & (d >= EARLY))


@dataclass(frozen=True, slots=True)
class Events:
    """When the event of each of P patients comes.

    ``free`` (n,) are the hours without one: of patients who never have it, or more than 12 hours before;
    ``until`` (n,) are the hours until the event, infinite for never; ``judged`` (P,) tells whether lead time can be
    told: the label begins late enough to be seen coming.
    """

    free: BoolArray
    until: FloatArray
    judged: BoolArray


def events(since: FloatArray, starts: IntArray) -> Events:
    """Return when the events come, from the hours ``since`` (n,) the label came on, as for ``utility``."""
    until, begins = AHEAD - since, np.diff(starts) > 0
    judged = np.zeros(len(begins), dtype=np.bool_)
    first = until[starts[:-1][begins]]
    judged[begins] = np.isfinite(first) & (first >= 2 * AHEAD)
    return Events(until > FREE, until, judged)


def alerts_per_100h(alert: BoolArray, happening: Events) -> float:
    """Return the warned hours among 100 hours without the event."""
    return 100.0 * float(alert[happening.free].mean()) if happening.free.any() else 0.0


def cut_at_rate(score: FloatArray, free: BoolArray, per_100h: float) -> float:
    """Return the lowest cut such that ``score >= cut`` warns at most ``per_100h`` of 100 hours without the event."""
    ranked = np.sort(score[free])[::-1]
    allowed = int(np.floor(len(ranked) * per_100h / 100.0))
    if allowed >= len(ranked):
        return -np.inf
    above = ranked[:allowed][ranked[:allowed] > ranked[allowed]]
    return float(above[-1]) if above.size else float(np.nextafter(ranked[0], np.inf))


def lead_hours(alert: BoolArray, happening: Events, starts: IntArray) -> FloatArray:
    """Return (J,) for each judged patient how many hours before the event the first warning came.

    Only the 48 hours up to the event count; a patient who was not warned has 0.
    """
    counts = alert & (happening.until > 0) & (happening.until <= LOOK_BACK)
    found = np.zeros(len(starts) - 1)
    np.maximum.at(found, entity_of_row(starts), np.where(counts, happening.until, 0.0))
    return found[happening.judged]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores sorted once, so that many weightings of the same rows are quick. ``order`` descends by score."""

    order: IntArray
    positive: BoolArray
    ends: IntArray

    def auprc(self, weight: FloatArray | None = None) -> float:
        """Return the average precision; ``weight`` (n,) counts each row so often."""
        hit, seen = self._sums(weight)
        gained = np.diff(hit, prepend=0.0)
        return float((gained * hit / np.maximum(seen, 1e-300)).sum() / hit[-1]) if hit[-1] else float("nan")

    def auroc(self, weight: FloatArray | None = None) -> float:
        """Return the area under the ROC curve, ties counted half."""
        hit, seen = self._sums(weight)
        missed = seen - hit
        if not hit[-1] or not missed[-1]:
            return float("nan")
        area = (np.diff(missed, prepend=0.0) * (hit + np.concatenate(([0.0], hit[:-1]))) / 2).sum()
        return float(area / (hit[-1] * missed[-1]))

    def _sums(self, weight: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        each = np.ones(len(self.order)) if weight is None else weight[self.order]
        return np.cumsum(each * self.positive)[self.ends], np.cumsum(each)[self.ends]


def ranking(score: FloatArray, positive: BoolArray) -> Ranking:
    """Return the ranking of (n,) scores, ties kept together."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    return Ranking(order, positive[order], ends)


def macro_f1(answer: IntArray, truth: IntArray, classes: int, weight: FloatArray | None = None) -> float:
    """Return the mean over classes of 2 TP / (2 TP + FP + FN); a class that never occurs counts 0.

    ``weight`` (n,) counts each row so often.
    """
    counted = np.bincount(truth * classes + answer, weight, minlength=classes * classes)
    table = counted.reshape(classes, classes)
    both = table.sum(axis=0) + table.sum(axis=1)
    return float((2 * np.diag(table) / np.maximum(both, 1)).mean())


def bootstrap_weights(patients: int, replicates: int, seed: int) -> IntArray:
    """Return (R, P) how often each patient is drawn when P patients are drawn with replacement."""
    generator = np.random.default_rng([seed, 0xB007])
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=replicates)
