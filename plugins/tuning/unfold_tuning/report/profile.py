"""The report of a measured profile."""

from __future__ import annotations

import numpy as np

from unfold_tuning.executor.profiler import ProfileSamples
from unfold_tuning.job.profile import Profile
from unfold_tuning.report import sentences
from unfoldkit.api import Column, Metric, Report, Table, Verdict

COLUMNS = (
    Column("accelerators"),
    Column("iteration", "s", 4, timed=True),
    Column("speed-up", "", 2, timed=True),
)


def report_profile(name: str, profile: Profile, samples: ProfileSamples, measured_on: str, spent_usd: float) -> Report:
    """Report a profile and the samples that it was made from.

    Args:
        name: Name of the spec.
        profile: The profile as it was stored.
        samples: The samples.
        measured_on: The hardware.
        spent_usd: What the measurement cost.
    """
    speedups = (*profile.speedup, *profile.across)
    rows = tuple((workers, profile.iteration.mean / speedup, speedup) for workers, speedup in speedups)
    return Report(
        kind="tuning",
        verb="profile",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.write_profile_headline(profile.iteration.mean),
        subtitle=(sentences.describe_profiled_trials(samples.trials, samples.iters),),
        metrics=_build_metrics(profile, samples) | {"spent_usd": Metric(spent_usd, "$", timed=True)},
        tables=(Table("speed-up", COLUMNS, rows),),
        lines=(*_list_conditions(samples, measured_on), *_list_failures(samples)),
        next="unfold plan SPEC",
    )


def _build_metrics(profile: Profile, samples: ProfileSamples) -> dict[str, Metric]:
    return {
        "iteration_s": Metric(profile.iteration.mean, "s", timed=True),
        "iteration_std_s": Metric(profile.iteration.std, "s", timed=True),
        "startup_s": Metric(float(np.mean(samples.startups)), "s", timed=True),
        "trial_start_s": Metric(float(np.mean(samples.starts)), "s", timed=True),
        "checkpoint_s": Metric(float(np.mean(samples.saves)), "s", timed=True),
        "warm_up_s": Metric(samples.warm_up_s, "s", timed=True),
        "trial_spread": Metric(profile.trial_cv, timed=True),
        "steps": Metric(sum(len(seconds) for seconds in samples.iterations.values())),
    }


def _list_conditions(samples: ProfileSamples, measured_on: str) -> tuple[tuple[str, str], ...]:
    """List where the profile was measured and what does not count as an iteration."""
    lines = [("measured on", measured_on)]
    if samples.resumed:
        lines.append(("resumed", sentences.describe_resumed_measurements(samples.resumed)))
    if samples.warm_up_s:
        lines.append(("warm-up", sentences.describe_warm_up(samples.warm_up_s)))
    return tuple(lines)


def _list_failures(samples: ProfileSamples) -> tuple[tuple[str, str], ...]:
    if not samples.errors:
        return ()
    last = list(samples.errors.values())[-1]
    return (("failed configurations", sentences.describe_failed_configs(len(samples.errors), last)),)
