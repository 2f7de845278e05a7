"""A hierarchical model of how a job's pace changes from stage to stage, learnt on other jobs and updated by this one.

Log seconds per iteration of a job vary between trials, drift with the iterations that a trial has run, and change where
only the best trials continue. All of it varies from job to job. The model is an empirical-Bayes one: the drift of the
profile, the mean pace of every stage and the change of a trial's own pace are jointly normal over jobs. What was
measured of this job conditions the rest. Mean and covariance are estimates themselves, hence the tails of a t
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from scipy.special import digamma

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.job.pace_record import PaceRecord
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.pace_slopes import PaceSlopes, fit_pace_slopes
from unfold_tuning.simulator.stage_paces import StagePaces

DEGREES = 4.0
MAX_DRIFT = 2.0
CREDIT = 0.75
"""The fraction of a learnt speed-up that is believed; a learnt slow-down is believed entirely."""
CREDIT_NARROW = 0.5
"""The fraction of a spread below the usual one that is believed, in logarithms: later stages may spread more."""
PROFILED_TRIALS = 8
PROFILE_ITERS = (4, 12)
"""The iterations with which the two windows of a profile end."""
REPLAYS = 20
"""Random orders in which each earlier job is replayed through the stages of this one."""
MAX_ORDERS = 10 * REPLAYS
"""Orders that are tried for them: in some, no trial of the profile may have run beyond the first stage."""
MIN_JOBS = 4
"""With records of fewer jobs than this, the default prior is used: a covariance needs several."""
NUGGET = 1e-4

# The default prior, without any record: scales learnt on 17 surrogate tasks of LCBench, and no mean.
DRIFT_STD = ((2.5, 0.25), (6.5, 0.29), (10.5, 0.35), (18.5, 0.40), (44.5, 0.38))
"""Standard deviation between jobs of the log pace after some iterations over that of the first ones."""
DRIFT_OCTAVES = 12.0
"""Doublings of the iterations over which the correlation of the drift falls to 37 %; 27 fit the surrogate tasks."""
SELECTION_STD = 0.26
"""Standard deviation between jobs of the mean log pace of the best third of the trials, over that of all."""
SELECTED_FRACTION = 1 / 3
TRIAL_STD = 0.44
SPREADS = ((math.log(0.44), 0.18), (math.log(0.66), 0.35), (math.log(0.57), 0.46), (math.log(0.45), 0.6))
STEP_STD = (0.51, 0.32, 0.16)
SPREAD_STD = 0.35
"""Standard deviation between unknown jobs of the log spread of their trials: twice that of the surrogate tasks."""
MAX_USUAL_STDS = 2.0
"""A profile with a spread further from that of earlier jobs is of a job unlike them."""
MAX_DRIFT_STDS = 3.0
"""A profile with a drift further from that of earlier jobs is of a job unlike them."""
MIN_DRIFT_STD = 0.05
"""Drifts of earlier jobs count as varying by at least this much, in logarithms."""

RECORD_SPREAD_STD = 1.0
"""Standard deviation between jobs of any kind of the log spread of their trials."""
MIN_SPREAD = 0.02
"""Trials of a record spread at least by this much, in logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceGroup:
    """The trials of one bracket in one stage; ``previous`` is the index of the group that they come from.

    ``selection`` is how often the best third were selected until then: for other fractions by their logarithm, but at
    least once a rung.
    """

    stage: int
    bracket: int
    trials: int
    done: int
    target: int
    rung: int
    previous: int | None
    selection: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PacePrior:
    """The prior over a job's paces, for one stage table.

    Quantities are numbered: 0 is the profile's own drift, then follows the mean pace of each group relative to the
    profile's first window, then the mean change of a trial's own pace on entering each group.

    Attributes:
        groups: The groups of trials, stage by stage.
        mean: Means: [1 + 2 groups].
        covariance: Covariances: [1 + 2 groups, 1 + 2 groups].
        spread_mean: Mean of the log spread between the trials of a group: [groups].
        spread_std: Its standard deviation: [groups].
        step_std: Spread between the trials of a group of the change of their own pace: [groups].
        jobs: Number of jobs that the prior was learnt on; 0 for the default one.
        slopes: How hyperparameters change the pace, if that is known.
    """

    groups: tuple[PaceGroup, ...]
    mean: FloatArray
    covariance: FloatArray
    spread_mean: FloatArray
    spread_std: FloatArray
    step_std: FloatArray
    jobs: int
    slopes: PaceSlopes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPaces:
    """Measured log paces of a group's trials: ``last`` in this stage, ``earlier`` of the same trials in the one before.

    Both are natural logarithms of seconds per iteration on one accelerator of the profiled kind.
    """

    last: tuple[float, ...]
    earlier: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PacePosterior:
    """What is known of a job's paces.

    Attributes:
        prior: The prior.
        level: Mean log seconds per iteration in the profile's first window.
        observed: Observed quantities, by their numbers in the prior.
        last: The last mean log pace of each group that has run, by group.
    """

    prior: PacePrior
    level: float
    observed: Mapping[int, float] = field(default_factory=dict)
    last: Mapping[int, float] = field(default_factory=dict)

    def observe_stage(self, stage: int, paces: Sequence[GroupPaces]) -> PacePosterior:
        """Return the posterior after a stage, from the measured paces of each of its groups."""
        observed, last = dict(self.observed), dict(self.last)
        members = [index for index, group in enumerate(self.prior.groups) if group.stage == stage]
        for index, measured in zip(members, paces, strict=True):
            if not measured.last:
                continue
            last[index] = float(np.mean(measured.last))
            if self.prior.groups[index].previous is None:
                observed[1 + index] = last[index] - self.level
            elif measured.earlier:
                observed[1 + len(self.prior.groups) + index] = last[index] - float(np.mean(measured.earlier))
        return replace(self, observed=observed, last=last)

    def predict(
        self, first_stage: int, base: float, survivors: Mapping[int, float] | None = None, *, has_known_trials: bool
    ) -> StagePaces:
        """Predict the paces of the stages from ``first_stage`` on, relative to a log pace.

        Args:
            first_stage: The first stage to predict.
            base: The log pace to which shifts are relative: that of the profile's mean iteration.
            survivors: Mean log pace of the trials that continue, by the group that they come from; the mean of that
                group if it is left out.
            has_known_trials: Whether the model knows each continuing trial's own pace, relative to ``base``.
        """
        targets = [index for index, group in enumerate(self.prior.groups) if group.stage >= first_stage]
        rows, offsets, spread_mean, spread_std = [], [], [], []
        for index in targets:
            row, source, variance = self._trace_changes(index)
            rows.append(row)
            if source is None:
                offsets.append(self.level - base)
                spread_mean.append(self.prior.spread_mean[index])
                spread_std.append(self.prior.spread_std[index])
                continue
            known = (survivors or {}).get(source, self.last[source])
            offsets.append(0.0 if has_known_trials else known - base)
            spread_mean.append(
                math.log(max(math.sqrt(variance), 1e-3)) if has_known_trials else self.prior.spread_mean[index]
            )
            spread_std.append(0.0 if has_known_trials else self.prior.spread_std[index])
        mean, covariance = self._condition()
        selection = np.array(rows).reshape(len(targets), len(mean))
        return StagePaces(
            mean=selection @ mean + np.array(offsets),
            covariance=selection @ covariance @ selection.T * self._inflation,
            degrees=DEGREES,
            spread_mean=np.array(spread_mean),
            spread_std=np.array(spread_std),
        )

    @property
    def _inflation(self) -> float:
        """Factor of the covariance by which few jobs make it wider, more so for an unusual one."""
        drift_std = math.sqrt(self.prior.covariance[0, 0])
        distance = abs(self.observed.get(0, self.prior.mean[0]) - self.prior.mean[0]) / max(drift_std, 1e-6)
        return 1 + (1 + min(distance, MAX_DRIFT_STDS)) / self.prior.jobs if self.prior.jobs else 1.0

    def _trace_changes(self, index: int) -> tuple[FloatArray, int | None, float]:
        """Trace a group back to one that has run, as a sum of changes, or else to its own mean pace.

        Returns:
            The weights of the prior's quantities, the group that has run, and the variance of a trial's own changes.
        """
        count = len(self.prior.groups)
        row, variance, group = np.zeros(1 + 2 * count), 0.0, index
        while group not in self.last:
            previous = self.prior.groups[group].previous
            if previous is None:
                row[:] = 0.0
                row[1 + index] = 1.0
                return row, None, 0.0
            row[1 + count + group] += 1.0
            variance += float(self.prior.step_std[group]) ** 2
            group = previous
        return row, group, variance

    def _condition(self) -> tuple[FloatArray, FloatArray]:
        """Condition the prior on what was observed; observed quantities have their values and no variance."""
        mean, covariance = self.prior.mean, self.prior.covariance
        seen = sorted(self.observed)
        if not seen:
            return mean, covariance
        values = np.array([self.observed[index] for index in seen])
        cross = covariance[:, seen]
        gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + NUGGET * np.eye(len(seen)), cross.T).T
        return mean + gain @ (values - mean[seen]), covariance - gain @ cross.T


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The measured mean change of trials' log paces from the first window to a later one, and its standard error."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPaces:
    """What the record of an earlier run of the same job shows.

    Attributes:
        trials: Number of trials.
        error: Standard deviation of the log pace between the two runs.
        drifts: By group, the drift up to it; ``None`` where no trial ran so far.
        log_factors: Log of the spread between trials, relative to the default prior: [groups].
        factor_std: Standard deviation of these logs; ``None`` if a single trial shows no spread.
    """

    trials: int
    error: float
    drifts: tuple[Drift | None, ...]
    log_factors: FloatArray
    factor_std: float | None


def list_pace_groups(stages: Sequence[Stage]) -> tuple[PaceGroup, ...]:
    """List the groups of a stage table; a group with earlier iterations comes from the last one of its bracket."""
    groups: list[PaceGroup] = []
    latest: dict[int, int] = {}
    begun: dict[int, int] = {}
    for index, stage in enumerate(stages):
        for group in stage.groups:
            previous = latest.get(group.bracket) if group.done else None
            if previous is None:
                begun[group.bracket] = group.trials
            rung = 0 if previous is None else groups[previous].rung + 1
            groups.append(
                PaceGroup(
                    stage=index,
                    bracket=group.bracket,
                    trials=group.trials,
                    done=group.done,
                    target=group.done + group.iters,
                    rung=rung,
                    previous=previous,
                    selection=max(float(rung), _count_selections(group.trials, begun[group.bracket])),
                )
            )
            latest[group.bracket] = len(groups) - 1
    return tuple(groups)


def _count_selections(trials: int, of: int) -> float:
    """Count how often the best third were selected to leave some trials of others; 0 if all continue."""
    return max(0.0, math.log(trials / of) / math.log(SELECTED_FRACTION))


def build_pace_prior(stages: Sequence[Stage], records: Sequence[PaceRecord], seed: int) -> PacePrior:
    """Learn the prior of a stage table from earlier jobs, or build the default one if there are too few.

    Args:
        stages: The stage table.
        records: Earlier jobs.
        seed: Seed of the replays.
    """
    groups = list_pace_groups(stages)
    if len(records) < MIN_JOBS:
        return build_default_prior(groups)
    slopes = fit_pace_slopes(records, PROFILE_ITERS)
    # a record may have run too few iterations for this job
    usable = [
        items
        for number, record in enumerate(records)
        if (items := _list_replays(record, groups, slopes, [seed, number]))
    ]
    if len(usable) < MIN_JOBS:
        return build_default_prior(groups)
    replays = [item for items in usable for item in items]
    vectors = np.array([item.vector for item in replays])
    spreads = np.log(np.maximum([item.spreads for item in replays], 0.02))
    steps = np.array([item.steps for item in replays])
    mean = vectors.mean(axis=0)
    is_later = np.array([False, *(group.rung > 0 for group in groups), *(True for _ in groups)])
    mean = np.where(is_later & (mean < 0), CREDIT * mean, mean)
    return PacePrior(
        groups=groups,
        mean=mean,
        covariance=np.cov(vectors.T) + NUGGET * np.eye(len(mean)),
        spread_mean=spreads.mean(axis=0),
        spread_std=spreads.std(axis=0),
        step_std=np.sqrt((steps**2).mean(axis=0)),
        jobs=len(usable),
        slopes=slopes,
    )


@dataclass(frozen=True, slots=True)
class _Replay:
    """An earlier job run through the stages: the prior's quantities, and the spreads of each group."""

    vector: FloatArray
    spreads: list[float]
    steps: list[float]


def _list_replays(
    record: PaceRecord, groups: Sequence[PaceGroup], slopes: PaceSlopes | None, seed: Sequence[int]
) -> list[_Replay]:
    """List replays of an earlier job in which some of the first trials, its profile, ran on beyond the first window."""
    replays = (_replay(record, groups, slopes, np.random.default_rng([*seed, order])) for order in range(MAX_ORDERS))
    return list(islice((item for item in replays if np.isfinite(item.vector).all()), REPLAYS))


def _replay(
    record: PaceRecord, groups: Sequence[PaceGroup], slopes: PaceSlopes | None, rng: np.random.Generator
) -> _Replay:
    pools: dict[int, IntArray] = {}
    paces: list[float] = []
    changes: list[float] = []
    spreads: list[float] = []
    steps: list[float] = []
    level, drift = 0.0, 0.0
    for index, group in enumerate(groups):
        if group.previous is None:
            pool = _draw_trials(record, group, rng)
            if not index:
                level, drift = measure_profile(record, pool[:PROFILED_TRIALS], record.select_features(pool), slopes)
        else:
            pool = record.rank_survivors(pools[group.previous], group.done, group.target, group.trials)
        pools[index] = pool
        own = record.compute_log_paces(group.done, group.target)[pool]
        paces.append(float(np.mean(own)) - level if len(own) else math.nan)
        spreads.append(float(np.std(own, ddof=1)) if len(own) > 1 else (spreads[-1] if spreads else 0.1))
        if group.previous is None:
            changes.append(0.0)
            steps.append(0.0)
        else:
            before = groups[group.previous]
            change = own - record.compute_log_paces(before.done, before.target)[pool]
            changes.append(float(np.mean(change)) if len(change) else math.nan)
            steps.append(float(np.std(change, ddof=1)) if len(change) > 1 else steps[-1])
    return _Replay(np.array([drift, *paces, *changes]), spreads, steps)


def _draw_trials(record: PaceRecord, group: PaceGroup, rng: np.random.Generator) -> IntArray:
    """Draw the trials of a new bracket among those that ran so far; some repeatedly if the record has too few."""
    ran = np.flatnonzero(np.isfinite(record.compute_log_paces(group.done, group.target)))
    order = rng.permutation(ran)
    return np.asarray(np.resize(order, group.trials) if len(order) else order)


def measure_profile(
    record: PaceRecord, profiled: IntArray, planned: FloatArray, slopes: PaceSlopes | None
) -> tuple[float, float]:
    """Measure the mean log pace of profiled trials in the profile's first window, and its later change.

    Args:
        record: Paces of the trials.
        profiled: The profiled trials of the record.
        planned: Hyperparameters of all trials of the first stage: [trials, names].
        slopes: Corrects the profile for the other configurations.

    Returns:
        Level and drift; the drift is nan unless some trial ran beyond the first window.
    """
    first, second = PROFILE_ITERS
    early = record.compute_log_paces(0, first)[profiled]
    level, drift = float(np.nanmean(early)), math.nan
    if len(record.ends) > 1 and record.ends[-1] > first:
        change = record.compute_log_paces(first, second)[profiled] - early
        drift = float(np.nanmean(change)) if np.isfinite(change).any() else math.nan
    if slopes is not None and slopes.names == record.names and len(planned):
        shift = slopes.estimate_shift(record.select_features(profiled), planned)
        level, drift = level + float(shift[0]), drift + float(shift[1])
    return level, float(np.clip(drift, -MAX_DRIFT, MAX_DRIFT))


def build_pace_posterior(
    stages: Sequence[Stage], measured: PaceRecord, planned: FloatArray, history: Sequence[PaceRecord], seed: int
) -> PacePosterior:
    """Build the posterior of a job before its first stage, from its profile and from earlier jobs.

    Args:
        stages: The stage table.
        measured: The trials of the profile.
        planned: Hyperparameters of all trials of the first stage, as ``measured`` names them: [trials, names].
        history: Earlier jobs.
        seed: Seed of the replays.
    """
    profiled = np.arange(measured.trials)
    prior = widen_prior(build_pace_prior(stages, history, seed), measured, profiled)
    level, drift = measure_profile(measured, profiled, planned, prior.slopes)
    return PacePosterior(prior=prior, level=level, observed={0: drift} if math.isfinite(drift) else {})


def widen_prior(prior: PacePrior, measured: PaceRecord, profiled: IntArray) -> PacePrior:
    """Widen a prior for a profile unlike those of earlier jobs.

    If its trials spread more than theirs, the spread of the trials grows, and with it how much few profiled trials and
    few survivors are off from all. If its pace drifts as it never did there, such as after a warm-up, what they show
    of later paces is no guide: the default prior is used.

    Args:
        prior: The prior.
        measured: Paces of the trials.
        profiled: The profiled trials of the record.
    """
    if not prior.jobs or _has_unlike_drift(prior, measured, profiled):
        return build_default_prior(prior.groups, estimate_spread_factor(measured, profiled))
    usual = math.exp(prior.spread_mean[0])
    factor = estimate_unlike_factor(measured, profiled, usual, max(float(prior.spread_std[0]), SPREADS[0][1]))
    selections = np.array([group.selection for group in prior.groups])
    brackets = np.array([group.bracket for group in prior.groups])
    selected = np.outer(selections, selections) * (brackets[:, None] == brackets[None, :])
    # the learnt covariance holds both already, at the usual spread
    scale = (factor**2 - 1) * (usual / TRIAL_STD) ** 2
    covariance, means = prior.covariance.copy(), slice(1, 1 + len(prior.groups))
    covariance[means, means] += scale * (TRIAL_STD**2 / PROFILED_TRIALS + SELECTION_STD**2 * selected)
    return replace(prior, covariance=covariance, spread_mean=prior.spread_mean + math.log(factor))


def _has_unlike_drift(prior: PacePrior, measured: PaceRecord, profiled: IntArray) -> bool:
    """Return whether the profile's drift is too far from that of earlier jobs to be explained by it."""
    drift = measure_profile(measured, profiled, np.zeros((0, 0)), None)[1]
    std = max(math.sqrt(prior.covariance[0, 0]), MIN_DRIFT_STD)
    return abs(drift - float(prior.mean[0])) > MAX_DRIFT_STDS * std


def build_recorded_posterior(
    stages: Sequence[Stage],
    record: PaceRecord,
    history: Sequence[PaceRecord],
    seed: int,
    error: float,
    spread: float | None = None,
) -> PacePosterior:
    """Build the posterior of a job before its first stage from the record of an earlier run of it.

    A record shows how paces change beyond the iterations of a profile, and how much the trials differ there.

    Args:
        stages: The stage table.
        record: The paces of the earlier run.
        history: Other earlier jobs; if there are enough, the record counts as a profile.
        seed: Seed of the replays.
        error: Standard deviation of the log pace between the two runs.
        spread: Spread of the trials' log paces, if not as recorded.
    """
    posterior = build_pace_posterior(stages, record, np.zeros((0, 0)), history, seed)
    if posterior.prior.jobs:
        return posterior
    recorded = summarize_record(record, posterior.prior.groups, error, spread)
    return PacePosterior(prior=build_default_prior(posterior.prior.groups, record=recorded), level=posterior.level)


def summarize_record(
    record: PaceRecord, groups: Sequence[PaceGroup], error: float, spread: float | None = None
) -> RecordedPaces:
    """Summarize an earlier run of the job: the drift up to each group, and the spread of its trials there.

    The log of a standard deviation over n trials has a standard error of about ``1 / sqrt(2 (n - 1))``; it is shrunk
    towards the default prior, the less the more trials there are.

    Args:
        record: The paces of the earlier run.
        groups: The groups of the stage table.
        error: Standard deviation of the log pace between the two runs.
        spread: Spread of the trials' log paces, if not as recorded.
    """
    early = record.compute_log_paces(0, PROFILE_ITERS[0])
    drifts: list[Drift | None] = []
    log_factors = np.zeros(len(groups))
    sampling = 0.5 / max(record.trials - 1, 0.5)
    weight = RECORD_SPREAD_STD**2 / (RECORD_SPREAD_STD**2 + sampling)
    for index, group in enumerate(groups):
        own = record.compute_log_paces(group.done, group.target)
        change = own - early
        own, change = own[np.isfinite(own)], change[np.isfinite(change)]
        change_std = float(np.std(change, ddof=1)) if len(change) > 1 else TRIAL_STD
        is_covered = len(change) > 0 and record.ends[-1] > group.done
        drifts.append(
            Drift(mean=float(np.mean(change)), std=change_std / math.sqrt(len(change))) if is_covered else None
        )
        if len(own) > 1 and 2 * len(own) > record.trials:
            prior_spread = SPREADS[min(group.rung, len(SPREADS) - 1)][0]
            log_spread = estimate_log_spread(own)
            log_factors[index] = weight * (max(log_spread, math.log(MIN_SPREAD)) - prior_spread)
        elif index:
            # where few trials ran, they are the best ones: the others show how trials spread
            log_factors[index] = log_factors[index - 1]
    if spread is not None:
        priors = [SPREADS[min(group.rung, len(SPREADS) - 1)][0] for group in groups]
        log_factors = math.log(max(spread, MIN_SPREAD)) - np.array(priors)
    is_known = spread is not None or record.trials > 1
    factor_std = RECORD_SPREAD_STD * math.sqrt(1 - weight) if spread is None else 0.0
    return RecordedPaces(
        trials=record.trials,
        error=error,
        drifts=tuple(drifts),
        log_factors=log_factors,
        factor_std=factor_std if is_known else None,
    )


def estimate_log_spread(values: FloatArray) -> float:
    """Estimate the log of the standard deviation of normal values; that of few is too small on average."""
    degrees = len(values) - 1
    bias = float(digamma(degrees / 2) - math.log(degrees / 2)) / 2
    return math.log(max(float(np.std(values, ddof=1)), 1e-9)) - bias


def estimate_spread_factor(record: PaceRecord, profiled: IntArray) -> float:
    """Estimate how much wider or narrower the trials of an unknown job spread than the default prior assumes.

    It is shrunk towards the prior. Even equal trials make the margin only so much smaller: their likelihood decides
    less than the prior where they are few.
    """
    excess, sampling = _measure_excess(record, profiled, TRIAL_STD)
    log_factor = excess * SPREAD_STD**2 / (SPREAD_STD**2 + sampling)
    if log_factor >= 0:
        return math.exp(log_factor)
    # n trials have a density of the log spread that falls by at most n - 1 with it, and 2 (n - 1) is 1 / sampling
    return math.exp(CREDIT_NARROW * max(log_factor, -0.5 * SPREAD_STD**2 / sampling))


def estimate_unlike_factor(record: PaceRecord, profiled: IntArray, usual: float, std: float) -> float:
    """Estimate how much wider the trials spread than those of earlier jobs; 1 unless the job is unlike these.

    The log spread of a job follows a t distribution around that of earlier ones: the more unlike them, the less they
    count. What is within two standard deviations of them is one of them.

    Args:
        record: Paces of the trials.
        profiled: The profiled trials of the record.
        usual: Spread of the trials of earlier jobs.
        std: Standard deviation between these of its logarithm.
    """
    excess, sampling = _measure_excess(record, profiled, usual)
    surprise = excess**2 / (std**2 + sampling)
    if excess < 0 or surprise < MAX_USUAL_STDS**2:
        return 1.0
    variance = std**2 * (DEGREES + surprise) / (DEGREES + 1)
    return math.exp(excess * variance / (variance + sampling))


def _measure_excess(record: PaceRecord, profiled: IntArray, usual: float) -> tuple[float, float]:
    """Measure the log spread of profiled trials over a usual one, and its variance from sampling.

    The log of a standard deviation over n trials has a standard error of about ``1 / sqrt(2 (n - 1))``.
    """
    early = record.compute_log_paces(0, PROFILE_ITERS[0])[profiled]
    early = early[np.isfinite(early)]
    if len(early) < 2:
        return 0.0, 1.0
    return math.log(max(float(np.std(early, ddof=1)), 1e-3) / usual), 0.5 / (len(early) - 1)


def build_default_prior(
    groups: Sequence[PaceGroup],
    spread_factor: float = 1.0,
    record: RecordedPaces | None = None,
) -> PacePrior:
    """Build the prior without records: wide, and with no speed-up in its means.

    The drift of a job is a Gaussian process over the logarithm of iterations. Selection shifts the pace of each
    bracket's survivors, and the profile's few trials are off from all of them.

    Args:
        groups: The groups of the stage table.
        spread_factor: How much wider trials spread, and with them selection and the error of the profile.
        record: What the record of an earlier run shows of this job, if there is one.
    """
    count = len(groups)
    centers = [_compute_center(0, PROFILE_ITERS[0]), _compute_center(*PROFILE_ITERS)]
    centers += [_compute_center(group.done, group.target) for group in groups]
    octaves = np.log2(centers)
    scale = np.interp(octaves, *np.array([(math.log2(iters), std) for iters, std in DRIFT_STD]).T)
    scale[0] = 0.0  # the first window is what all others are relative to
    # no more than the profile's own drift is extrapolated, however much later stages may vary
    shared = np.minimum(scale, scale[1])
    extra = np.sqrt(scale**2 - shared**2)
    correlation = np.exp(-np.abs(octaves[:, None] - octaves[None, :]) / DRIFT_OCTAVES)
    drift = (np.outer(shared, shared) + np.outer(extra, extra)) * correlation
    factors = np.full(count, spread_factor)
    level_std = spread_factor * TRIAL_STD / math.sqrt(PROFILED_TRIALS)
    if record is not None:
        factors = np.exp(record.log_factors)
        level_std = math.hypot(factors[0] * TRIAL_STD / math.sqrt(record.trials), record.error)
    # quantities as linear functions of drift, selection of each bracket and sampling error of the profile
    brackets = sorted({group.bracket for group in groups})
    basis = np.zeros((1 + 2 * count, 2 + count + len(brackets) + 1))
    basis[0, 1] = 1.0
    for index, group in enumerate(groups):
        basis[1 + index, 2 + index] = 1.0
        basis[1 + index, 2 + count + brackets.index(group.bracket)] = factors[index] * SELECTION_STD * group.selection
        basis[1 + index, -1] = level_std
        if group.previous is not None:
            basis[1 + count + index, 2 + index] = 1.0
            basis[1 + count + index, 2 + group.previous] = -1.0
    covariance = np.eye(basis.shape[1])
    center, covariance[: 2 + count, : 2 + count] = _condition_drift(drift, record.drifts if record else ())
    spreads = np.array([SPREADS[min(group.rung, len(SPREADS) - 1)] for group in groups])
    return PacePrior(
        groups=tuple(groups),
        mean=basis[:, : 2 + count] @ center,
        covariance=basis @ covariance @ basis.T + NUGGET * np.eye(1 + 2 * count),
        spread_mean=spreads[:, 0] + np.log(factors),
        spread_std=spreads[:, 1] if record is None or record.factor_std is None else np.full(count, record.factor_std),
        step_std=np.array(
            [0.0 if group.previous is None else STEP_STD[min(group.rung, len(STEP_STD)) - 1] for group in groups]
        ),
        jobs=0,
    )


def _condition_drift(covariance: FloatArray, drifts: Sequence[Drift | None]) -> tuple[FloatArray, FloatArray]:
    """Condition the drift, which is 0 on average, on that of the groups where it was measured.

    Args:
        covariance: Of the first window, the profile's second one, and each group: [2 + groups, 2 + groups].
        drifts: By group.

    Returns:
        Mean and covariance.
    """
    seen = [2 + index for index, drift in enumerate(drifts) if drift is not None]
    values = np.array([drift.mean for drift in drifts if drift is not None])
    noise = np.diag([drift.std**2 + NUGGET for drift in drifts if drift is not None])
    if not seen:
        return np.zeros(len(covariance)), covariance
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + noise, covariance[seen]).T
    return gain @ values, covariance - gain @ covariance[seen]


def _compute_center(done: int, target: int) -> float:
    return (done + 1 + target) / 2
