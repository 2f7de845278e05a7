"""Cost of spot preemptions: how often a trial is preempted, the work it repeats, and the replacements on its bill.

A trial is a sequence of checkpoint intervals. Preemptions arrive as a Poisson process, also while an interval is
repeated. Those of an interval are therefore geometric, those of a trial negative binomial. Each one costs the finished
part of the interval and a new instance, which may itself be preempted before the trial runs on it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincinv

from unfold_tuning._types import FloatArray
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.simulator.kernels import count_preemptions

MAX_RISK = 50.0
"""Expected preemptions per interval beyond which a trial ends too late for its exact time to matter."""
GAMMA_THRESHOLD = 50.0
"""Above this many expected preemptions they are drawn from the gamma distribution of equal mean and spread."""


def sample_delay(
    uniform: FloatArray, seconds: FloatArray, intervals: FloatArray, rate_per_s: float, profile: Profile
) -> FloatArray:
    """Sample the seconds by which preemptions delay trials.

    Args:
        uniform: One uniform per trial: [samples, trials].
        seconds: Trial times without preemptions: [samples, trials].
        intervals: Checkpoint intervals of each trial: [trials].
        rate_per_s: Preemptions per second.
        profile: Timings of the job.

    Returns:
        Delays: [samples, trials] seconds.
    """
    interval_s = seconds / intervals
    risk = np.minimum(rate_per_s * interval_s, MAX_RISK)
    count, residual = sample_preemptions(uniform, risk, intervals)
    mean, std = compute_lost_fraction_moments(risk)
    # the residual is uniform again, so it draws how much is repeated
    repeated = count * mean + np.sqrt(12 * count) * std * (residual - 0.5)
    return np.asarray(repeated * interval_s + count * estimate_recovery_s(profile, rate_per_s))


def sample_preemptions(uniform: FloatArray, risk: FloatArray, intervals: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sample the preemptions of trials, monotone in risk and length for a fixed uniform.

    Args:
        uniform: One uniform per trial: [samples, trials].
        risk: Expected preemptions per checkpoint interval: [samples, trials].
        intervals: Checkpoint intervals of each trial: [trials].

    Returns:
        Counts, and where each uniform lies within its step of the distribution, which is uniform again.
    """
    intervals = np.broadcast_to(intervals, risk.shape)
    is_many = intervals * np.expm1(risk) > GAMMA_THRESHOLD
    count, residual = count_preemptions(uniform, np.where(is_many, 0.0, risk), intervals)
    if is_many.any():
        shape = -intervals[is_many] * np.expm1(-risk[is_many])
        draws = gammaincinv(shape, uniform[is_many]) * np.exp(risk[is_many])
        count[is_many], residual[is_many] = np.floor(draws), draws % 1.0
    return count, residual


def compute_lost_fraction_moments(risk: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute mean and standard deviation of the finished fraction of a lost interval: a truncated exponential."""
    x = np.maximum(risk, 1e-3)
    mean = 1 / x - 1 / np.expm1(x)
    return np.asarray(mean), np.sqrt(np.maximum(1 / x**2 - 1 / (np.expm1(x) * -np.expm1(-x)), 0.0))


def estimate_recovery_s(profile: Profile, rate_per_s: float) -> float:
    """Compute the expected seconds from a preemption until the trial runs again, further preemptions included."""
    risk = min(rate_per_s * (profile.startup.mean + profile.start.mean), MAX_RISK)
    return profile.provision.mean * math.exp(risk) + math.expm1(risk) / rate_per_s


def compute_replacement_usd_per_second(machine: Machine, profile: Profile) -> float:
    """Compute the dollars per second by which preemptions change the bill of one held instance.

    A replacement starts a new instance lifetime, with its copy of the data, its minimum charge and its last increment;
    the wait for it is not billed.
    """
    if not machine.interruptions_per_hour:
        return 0.0
    rate_per_s = machine.interruptions_per_hour / 3600.0
    if machine.billing.per == "function":
        return rate_per_s * machine.ingress_usd
    rounding_s = _estimate_rounding_s(rate_per_s, machine.billing.minimum, machine.billing.increment)
    seconds = rounding_s - profile.provision.mean
    return rate_per_s * (machine.ingress_usd + seconds * machine.usd_per_second)


def _estimate_rounding_s(rate_per_s: float, minimum_s: float, increment_s: float) -> float:
    """Compute the expected seconds that minimum and increment add to a lifetime that ends at a constant rate."""
    after_minimum = increment_s / -math.expm1(-rate_per_s * increment_s) if increment_s > 0 else 1 / rate_per_s
    return minimum_s + math.exp(-rate_per_s * minimum_s) * after_minimum - 1 / rate_per_s
