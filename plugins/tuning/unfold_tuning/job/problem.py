"""A tuning job, resolved: what :mod:`unfold_tuning.job.build` makes of a spec, its files and price lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unfold_tuning._types import FloatArray
from unfold_tuning.job.pace_record import PaceRecord
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.job.search_space import Dimension

BUNDLED_DATASETS = ("digits", "breast-cancer", "wine")


Mode = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class EarlyStopRules:
    """Rules that end trials, or the search, before their last iteration.

    Attributes:
        patience: Iterations without a better ranking score after which a trial ends, if any.
        min_delta: A score is better if it is larger by more than this.
        target_score: The search ends with the first trial with a ranking score of at least this, if any.
        ends_stragglers: The last trials of a stage lose once waiting for them would make the run late.
    """

    patience: int | None = None
    min_delta: float = 0.0
    target_score: float | None = None
    ends_stragglers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableConfig:
    """What a trial trains: a built-in estimator on a data set, or a user's function.

    Attributes:
        estimator: Name of the built-in estimator, if any.
        function: ``module:function`` of the user, if any.
        data: The data as the spec names it: a bundled data set or a CSV file.
        data_path: The CSV file, resolved.
        target: Column to predict.
        columns: Feature columns; all other columns if ``None``.
        group: Column of rows that are held out together.
        metric: Name of the metric, if the spec gives one.
        mode: Whether a smaller or a larger metric is better.
        early_stop: Rules that end trials or the search early.
        rounds: Boosting rounds or passes over the data per iteration.
        timeout_s: A trial without a checkpoint for so long is killed.
        span: Instances that a trial may span.
        space: The search space.
    """

    estimator: str | None = None
    function: str | None = None
    data: str | None = None
    data_path: Path | None = None
    target: str = "target"
    columns: tuple[str, ...] | None = None
    group: str | None = None
    metric: str | None = None
    mode: Mode = "max"
    early_stop: EarlyStopRules = EarlyStopRules()
    rounds: int = 1
    timeout_s: float | None = None
    span: int = 1
    space: Mapping[str, Dimension] = field(default_factory=dict)

    @property
    def metric_name(self) -> str:
        """The name of the metric, with its default."""
        return self.metric or ("accuracy" if self.function is None else "metric")

    def display_metric(self, score: float) -> float:
        """Convert a ranking score (higher is better) to the metric; see :func:`score_metric`."""
        return score_metric(score, self.mode)


def score_metric(metric: float, mode: Mode) -> float:
    """Convert a metric to a ranking score (higher is better): one to be minimized counts by its negative."""
    # no negative zero
    return 0.0 - metric if mode == "min" else metric


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """How instances are started; ``grace_s`` after the deadline an instance shuts itself down."""

    image: str | None = None
    subnet: str | None = None
    security_groups: tuple[str, ...] = ()
    role: str | None = None
    setup: str = ""
    grace_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Where nodes come from and how trials are placed on them.

    Attributes:
        provider: ``local``, ``aws``, ``ray``, ``skypilot``, or a cloud for which only planning is supported.
        region: Region of the cloud.
        engine: Name of the engine of the run: ``local`` or ``ray``.
        ray_address: Address of a running Ray head, if one is named.
        launch: How instances are started.
        is_spread: Place a trial on the emptiest node instead of the fullest.
        run_folder: Folder of the run, with which instances are tagged.
        deadline_s: Deadline of the run, if any.
        zones: Availability zones in the order in which they are tried; any zone if empty.
        resource: Which resource of a running Ray cluster an accelerator is.
        infra: Where SkyPilot starts instances, in its notation.
    """

    provider: str
    region: str
    engine: str
    ray_address: str | None
    launch: LaunchConfig | None
    is_spread: bool
    run_folder: Path
    deadline_s: float | None
    zones: tuple[str, ...] = ()
    resource: str = "GPU"
    infra: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledTrial:
    """A trial of a profile on one accelerator: one item per checkpoint, warm-up excluded.

    Attributes:
        ends: Iterations that it had run.
        seconds: Mean seconds of an iteration since the checkpoint before.
        metrics: Its ranking score.
        config: Its configuration.
    """

    ends: tuple[int, ...]
    seconds: tuple[float, ...]
    metrics: tuple[float, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPaces:
    """Measured trials of the job, and what is known of the others.

    Attributes:
        profile: Paces of the profiled trials.
        planned: Hyperparameters of all trials of the first stage, named as in ``profile``: [trials, names].
        history: Paces of earlier jobs.
        measured_on: The hardware of the measurement, or empty.
        record_error: Standard deviation of the log pace between this run and the earlier one that ``profile`` is of;
            ``None`` if its trials were measured for this run.
        record_spread: Spread of the trials' log paces, if it is given and not as recorded.
    """

    profile: PaceRecord
    planned: FloatArray
    history: tuple[PaceRecord, ...] = ()
    measured_on: str = ""
    record_error: float | None = None
    record_spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything that planning a job needs.

    Attributes:
        name: Name of the spec.
        stages: The stage table of the search.
        machines: One per instance type and market.
        profile: Timings of the job.
        deadline_s: Deadline from the start of the run, if any.
        budget_usd: Alone the constraint of the search; with a deadline a hard cap.
        confidence: Required probability of meeting the deadline or the budget.
        samples: Simulated runs per plan.
        requested_samples: Simulated runs that the spec asks for.
        seed: Seed of the simulation and of the trials.
        is_spread: Whether trials go to the emptiest node.
        trainable: What trials train, if the spec says so.
        record: Summary of the record that iteration times come from, or empty.
        paces: Measured trials, if the profile has any; else its stated error counts.
        fingerprint: Identifies the job: runs with equal fingerprints may continue each other.
        starts_on: Where ``train`` starts instances: here, next to a Ray head, or nowhere, so that the user does.
    """

    name: str
    stages: tuple[Stage, ...]
    machines: tuple[Machine, ...]
    profile: Profile
    deadline_s: float | None
    budget_usd: float | None
    confidence: float
    samples: int
    requested_samples: int
    seed: int
    is_spread: bool
    trainable: TrainableConfig | None
    record: str
    fingerprint: str
    paces: MeasuredPaces | None = None
    starts_on: Literal["here", "ray", "elsewhere"] = "here"
