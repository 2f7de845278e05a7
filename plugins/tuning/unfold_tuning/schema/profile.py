"""Timings of a tuning job: written in the spec, or read from the record of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfold_tuning.schema.search import Count
from unfold_tuning.schema.trainable import Scalar
from unfoldkit.api import Duration, Fraction, Model, Percent, Problem

MIN_SPEEDUP = 0.001
"""Smallest speed-up: further down, times of a job are no longer finite."""
MAX_VARIATION = 10.0
"""Largest coefficient of variation: beyond it, the mean of a time lies in values too rare to be sampled."""


class Delay(Model):
    """A random time by mean and standard deviation."""

    mean: Duration = Field(description="expected time")
    std: Duration = Field(default=0.0, description="standard deviation of the time")


class Iteration(Model):
    """One iteration of a trial on one accelerator."""

    mean: Duration = Field(description="expected time of an iteration")
    std: Duration = Field(default=0.0, description="standard deviation between iterations")


Time = Annotated[Duration | Delay, Field(union_mode="left_to_right")]

Variation = Annotated[
    Annotated[float, Field(ge=0, le=MAX_VARIATION)] | Annotated[Percent, Field(ge=0, le=MAX_VARIATION)],
    Field(union_mode="left_to_right"),
]
"""A coefficient of variation: 0.25, 25%, or 150% where a few trials take far longer than the others."""

TimeUnit = Literal["ns", "us", "ms", "s", "min", "h", "d"]

Names = Annotated[str | tuple[str, ...], Field(union_mode="left_to_right")]


class Recorded(Model):
    """An earlier run: a table (CSV, JSON, JSON Lines) with one row per checkpoint or trial, or a record of a tool.

    Ray Tune, TensorBoard and MLflow write such records. By default, columns have the names that Ray Tune, Weights &
    Biases or Optuna give them.
    """

    path: str = Field(description="the file or folder of the record")
    trial: Names | None = Field(default=None, description="the column or columns that identify a trial")
    iteration: str | None = Field(default=None, description="iterations that a trial has run")
    elapsed: str | None = Field(default=None, description="seconds since a trial began")
    seconds: str | None = Field(default=None, description="seconds of an iteration, if there is no elapsed time")
    unit: TimeUnit | None = Field(
        default=None, description="of the numbers in the column of times, if its name does not end with it"
    )
    iters: Count = Field(default=1, description="iterations between two rows, if no column counts them")
    accelerators: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="accelerators of each trial")
    where: dict[str, Annotated[str | int, Field(union_mode="left_to_right")]] = Field(
        default_factory=dict, description="use only the rows with these values, by column"
    )


class MeasuredTrial(Model):
    """A profiled trial: the iterations at which intervals end, and the seconds per iteration in each interval."""

    ends: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(description="iterations at which the intervals end")
    seconds: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)] = Field(
        description="seconds per iteration in each interval"
    )
    config: dict[str, Scalar | tuple[Scalar, ...] | None] = Field(default_factory=dict, description="its configuration")


class ProfileSpec(Model):
    """Timings of the job; ``unfold profile`` measures them if they are left out."""

    iteration: Iteration | None = Field(default=None, description="time of an iteration on one accelerator")
    recorded: Recorded | None = Field(
        default=None, description="replaces iteration: its times, and trial_spread, from an earlier run"
    )
    speedup: dict[int, float] = Field(
        default_factory=lambda: {1: 1.0}, description="speed-up by accelerators per trial, relative to one"
    )
    across: dict[int, float] | None = Field(
        default=None, description="the same for trials across instances; only sizes that it names may span instances"
    )
    provision: Time = Field(default=45.0, description="from request to running; a single number varies by 50 %")
    startup: Time = Field(default=60.0, description="from running to ready, billed; a single number varies by 15 %")
    start: Time = Field(default=0.0, description="start of a trial with its checkpoint")
    sync: Time = Field(default=10.0, description="between two stages: rank, checkpoint, move")
    trial_spread: Variation = Field(default=0.05, description="lasting variation of speed between trials")
    worker_spread: Variation = Field(default=0.0, description="variation between the workers of one trial")
    error: Fraction = Field(
        default=0.1,
        description="relative error assumed for times in the spec; measured trials have a posterior over paces instead",
    )
    measured_on: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="hardware of the measurement; a plan for other hardware needs cloud.instances speed"
    )
    trials: tuple[MeasuredTrial, ...] = Field(
        default=(), description="measured trials on one accelerator, as unfold profile stores them"
    )


def check_profile(profile: ProfileSpec) -> Iterable[Problem]:
    """Yield contradictions within a profile."""
    if (profile.iteration is None) == (profile.recorded is None):
        yield Problem(("profile",), "name either iteration or recorded", hint="write iteration: {mean: 12 s}")
    if profile.iteration is not None and profile.iteration.mean <= 0:
        yield Problem(("profile", "iteration", "mean"), "an iteration must take some time")
    yield from _check_deviations(profile)
    if profile.error > 0.5:
        yield Problem(("profile", "error"), "a profile that may be wrong by more than 50% guarantees nothing")
    for key, table in (("speedup", profile.speedup), ("across", profile.across or {})):
        for accelerators, speedup in table.items():
            if accelerators < 1 or speedup < MIN_SPEEDUP:
                message = f"accelerators must be positive, and the speed-up at least {MIN_SPEEDUP:g}"
                yield Problem(("profile", key, accelerators), message, at_key=True)
    for index, trial in enumerate(profile.trials):
        if len(trial.ends) != len(trial.seconds) or list(trial.ends) != sorted(set(trial.ends)):
            message = "a trial needs ascending ends, and seconds for each of them"
            yield Problem(("profile", "trials", index), message, hint="write {ends: [4, 12], seconds: [1.2, 0.9]}")
    if profile.speedup.get(1) != 1.0:
        yield Problem(("profile", "speedup"), "the speed-up of one accelerator is 1", hint="write {1: 1, 2: 1.9}")


def _check_deviations(profile: ProfileSpec) -> Iterable[Problem]:
    """Yield times with a spread that would draw nearly all samples close to zero."""
    for name in ("iteration", "provision", "startup", "start", "sync"):
        time = getattr(profile, name)
        if isinstance(time, (Delay, Iteration)) and time.std > MAX_VARIATION * time.mean:
            message = f"a standard deviation above {MAX_VARIATION:g} times the mean cannot be simulated"
            yield Problem(("profile", name, "std"), message, hint="give both in seconds, or with their units")
