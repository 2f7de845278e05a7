"""What losing spot instances costs: how often a trial is hit, what it does again, and what its bill grows by.

A trial is pieces of work with a checkpoint after each. Losses come as a Poisson process, also while a piece is done
again, so that the hits of a piece are geometric and those of a trial negative binomial: any number of them. Each costs
what was done of the piece, and a new instance, which may be lost before the trial runs on it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.simulator.kernels import hits

Floats = npt.NDArray[np.float64]

MOST_RISK = 50.0
"""Expected losses in one piece beyond which a trial ends in no time that matters."""
MANY = 50.0
"""Expected hits from which on they are drawn from the gamma distribution with the same mean and spread."""


def delay(uniform: Floats, seconds: Floats, pieces: Floats, rate: float, profile: Profile) -> Floats:
    """Return the seconds [samples, trials] by which losses at ``rate`` per second delay trials, one uniform each.

    ``seconds`` [samples, trials] are their times without any loss, ``pieces`` [trials] how many checkpoints they write.
    """
    piece = seconds / pieces
    risk = np.minimum(rate * piece, MOST_RISK)
    count, within = struck(uniform, risk, pieces)
    mean, std = redone(risk)
    # where a uniform lies within its step of the distribution is a uniform again: it tells how much is done again
    again = count * mean + np.sqrt(12 * count) * std * (within - 0.5)
    return np.asarray(again * piece + count * recovery(profile, rate))


def struck(uniform: Floats, risk: Floats, pieces: Floats) -> tuple[Floats, Floats]:
    """Return the hits of trials whose pieces expect ``risk`` losses each, and a fresh uniform; more risk, more hits."""
    pieces = np.broadcast_to(pieces, risk.shape)
    many = pieces * np.expm1(risk) > MANY
    count, within = hits(uniform, np.where(many, 0.0, risk), pieces)
    if many.any():
        drawn = gammaincinv(-pieces[many] * np.expm1(-risk[many]), uniform[many]) * np.exp(risk[many])
        count[many], within[many] = np.floor(drawn), drawn % 1.0
    return count, within


def redone(risk: Floats) -> tuple[Floats, Floats]:
    """Return mean and deviation of the share of a piece that is done when it is lost: a truncated exponential."""
    x = np.maximum(risk, 1e-3)
    mean = 1 / x - 1 / np.expm1(x)
    return np.asarray(mean), np.sqrt(np.maximum(1 / x**2 - 1 / (np.expm1(x) * -np.expm1(-x)), 0.0))


def recovery(profile: Profile, rate: float) -> float:
    """Return the expected seconds from a loss to the trial's going on: wait, start-up and start, which may be lost."""
    risk = min(rate * (profile.startup.mean + profile.start.mean), MOST_RISK)
    return profile.provision.mean * math.exp(risk) + math.expm1(risk) / rate


def replacing(machine: Machine, profile: Profile) -> float:
    """Return dollars per second by which losses change the bill of one instance that is held.

    A replacement is one life more: its copy of the data, its minimum and its last increment; its wait is not paid.
    """
    if not machine.hazard:
        return 0.0
    rate = machine.hazard / 3600.0
    if machine.billing.per == "function":
        return rate * machine.ingress
    seconds = _rounded_up(rate, machine.billing.minimum, machine.billing.increment) - profile.provision.mean
    return rate * (machine.ingress + seconds * machine.per_second)


def _rounded_up(rate: float, minimum: float, increment: float) -> float:
    """The expected seconds that the bill adds to a life which ends at ``rate`` per second."""
    after = increment / -math.expm1(-rate * increment) if increment > 0 else 1 / rate
    return minimum + math.exp(-rate * minimum) * after - 1 / rate
