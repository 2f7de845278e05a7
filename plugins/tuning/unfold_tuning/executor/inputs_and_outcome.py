"""What an executor needs to run a plan, and how the run ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.pace_posterior import PacePosterior
from unfold_tuning.trial.ledger import Trial
from unfoldkit.api import Progress, ignore_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """A plan and everything that running it needs.

    Attributes:
        stages: The stage table.
        plan: One allocation per stage.
        machine: The instance type.
        profile: Timings of the job.
        trainable: What trials train.
        folder: Folder of the trials' states.
        seed: Seed of the configurations and of the trials.
        checkpoint_iters: Iterations between two checkpoints.
        deadline_s: Deadline from the start of the run, if any.
        budget_usd: Hard cap on the bill, if any.
        confidence: Required probability of meeting the deadline.
        paces: Posterior over the job's paces before the first stage, if its profile was measured.
        is_replanning: Whether the remaining job is planned again at barriers and after losses.
        wall: The wall clock.
        progress: Receives a line and the finished and total trials of the stage.
        log: Receives warnings.
    """

    stages: tuple[Stage, ...]
    plan: Plan
    machine: Machine
    profile: Profile
    trainable: TrainableConfig
    folder: Path
    seed: int
    checkpoint_iters: int
    deadline_s: float | None = None
    budget_usd: float | None = None
    confidence: float = 0.95
    paces: PacePosterior | None = None
    is_replanning: bool = True
    wall: Callable[[], float] = time.time
    progress: Progress = ignore_progress
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How far a run has come.

    Attributes:
        index: The stage that runs.
        plan: The allocations so far and those planned.
        began: Wall time of the start.
        now: Wall time of this state.
        ends_at: Wall time at which the run is expected to end; ``None`` before the first estimate.
        spent_usd: The bill so far.
    """

    index: int
    plan: Plan
    began: float
    now: float
    ends_at: float | None
    spent_usd: float


def ignore_state(state: RunState) -> None:
    """Show no state of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        winner: The best trial, if any.
        began: Wall time of the start.
        ended: Wall time at which the last stage ended; releasing nodes counts on the bill only.
        spent_usd: The bill.
        stop_reason: Why the run stopped before its end, or empty.
        plan: The allocations that were used.
        notes: What was planned again and why.
        lost_nodes: Nodes that were lost.
    """

    winner: Trial | None
    began: float
    ended: float
    spent_usd: float
    stop_reason: str
    plan: Plan
    notes: tuple[str, ...]
    lost_nodes: int

    @property
    def seconds(self) -> float:
        """The duration of the run."""
        return self.ended - self.began
