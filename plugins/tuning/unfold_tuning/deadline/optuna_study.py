"""Optuna under a deadline: successive halving with true barriers, by ask and tell, with the objective unchanged.

A pruner can stop a trial but not pause it. Here each trial runs in a thread of its own, and ``trial.should_prune``
blocks at a rung until all trials of the stage have reached it; meanwhile its slot runs another trial. The best continue
where they were, so no iteration is repeated. Whatever the limits leave no room for is not begun, or pruned.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfold_tuning.deadline.limits import LimitKeeper, parse_limits
from unfoldkit.api import user_error

BEGAN_KEY = "unfold:began"
RESUMES_KEY = "unfold:resumes"
CHECK_PERIOD_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineResult:
    """How a run under a deadline ended.

    Attributes:
        seconds: Its duration.
        spent_usd: The bill of its workers.
        is_on_time: Whether it ended by the deadline.
        stage_trials: Trials that finished each stage.
        notes: What was trimmed or stopped, and why.
    """

    seconds: float
    spent_usd: float
    is_on_time: bool
    stage_trials: tuple[int, ...]
    notes: tuple[str, ...]


def optimize(
    study: Any,
    objective: Callable[[Any], Any],
    *,
    deadline: str | float,
    max_steps: int,
    budget: str | float | None = None,
    usd_per_hour: float | None = None,
    n_trials: int = 64,
    min_steps: int = 1,
    eta: int = 3,
    n_jobs: int | None = None,
    confidence: float = 0.95,
    catch: tuple[type[Exception], ...] = (Exception,),
) -> DeadlineResult:
    """Optimize a study by successive halving whose trials stop at a deadline or a budget, with their next report.

    The objective reports with ``trial.report(value, step)`` and asks ``trial.should_prune()``, as for any pruner; the
    sampler of the study is used as it is. A study in a storage continues after a crash, with the same deadline: trials
    that were running begin again with their parameters, and may continue from what they stored in
    :func:`get_checkpoint_folder`.

    Args:
        study: An Optuna study with one objective.
        objective: The objective.
        deadline: From now on, such as ``"2h"``, or seconds.
        max_steps: Steps of the best trial.
        budget: The bill at which trials stop, with their next report, such as ``"$40"``; needs ``usd_per_hour``.
        usd_per_hour: Price of one worker.
        n_trials: Trials of the first stage.
        min_steps: Steps of every trial in the first stage.
        eta: The best 1/eta continue.
        n_jobs: Trials that run at once; as many as there are processors if left out.
        confidence: Probability with which what is begun shall end in time.
        catch: Errors of the objective that fail the trial; others end the run.

    Raises:
        UnfoldError: A limit or a number makes no sense, or the study has several objectives.
    """
    if len(study.directions) != 1:
        raise user_error(
            "a deadline needs one objective to rank trials by", hint="name it in create_study(direction=...)"
        )
    for name, value in (("n_trials", n_trials), ("max_steps", max_steps), ("min_steps", min_steps)):
        if value < 1:
            raise user_error(f"{name} must be at least 1")
    if min_steps > max_steps or eta < 2:
        raise user_error("min_steps must not exceed max_steps, and eta must be at least 2")
    keeper = LimitKeeper(
        limits=parse_limits(deadline, budget, usd_per_hour, confidence),
        slots=max(1, n_jobs or os.cpu_count() or 1),
        trials=n_trials,
        min_steps=min_steps,
        max_steps=max_steps,
        eta=eta,
    )
    return StudyRun(study=study, objective=objective, keeper=keeper, catch=catch).run()


def get_checkpoint_folder(trial: Any, base: str | Path = "checkpoints") -> Path:
    """Return a folder for the states of a trial, the same after a crash; it is created."""
    number = trial.user_attrs.get(RESUMES_KEY, trial.number)
    folder = Path(base) / f"{trial.study.study_name}-{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(slots=True, kw_only=True)
class RunningTrial:
    """A trial in its thread.

    Attributes:
        trial: The Optuna trial.
        thread: Its thread.
        steps: Steps that it has run.
        values: Reported value by steps.
        reported_at: When it reported last, or continued after a rung.
        waits_for: The rung at which it waits for its stage; 0 while it runs.
        is_stopped: Whether it is to be pruned.
        has_ended: Whether its objective has returned.
        error: What an objective raised that is not to be caught.
    """

    trial: Any
    thread: threading.Thread | None = None
    steps: int = 0
    values: dict[int, float] = field(default_factory=dict)
    reported_at: float = 0.0
    waits_for: int = 0
    is_stopped: bool = False
    has_ended: bool = False
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True)
class StudyRun:
    """One run of a study; the pruner of the study calls it from the threads of the trials.

    Attributes:
        study: The study.
        objective: The objective.
        keeper: The limits.
        catch: Errors that fail a trial.
        trials: Trials by number.
        stage: The current stage.
        bracket_begin: Trials that began in earlier brackets.
        first_step: The step that a trial reports first: 0 or 1.
        lock: Guards everything here.
        changed: Signals a change of it.
        is_ending: Whether a limit is reached or an error ends the run.
        stage_trials: Trials that finished each stage.
    """

    study: Any
    objective: Callable[[Any], Any]
    keeper: LimitKeeper
    catch: tuple[type[Exception], ...]
    trials: dict[int, RunningTrial] = field(default_factory=dict)
    stage: int = 0
    bracket_begin: int = 0
    first_step: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    changed: threading.Condition = field(init=False)
    is_ending: bool = False
    stage_trials: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Build the condition on the lock."""
        self.changed = threading.Condition(self.lock)

    def run(self) -> DeadlineResult:
        """Run every stage, and restore the study's own pruner."""
        self.keeper.warm_up()
        began = self.study.user_attrs.get(BEGAN_KEY)
        self.keeper.began = float(began) if began is not None and not self._has_finished() else self.keeper.wall()
        self.study.set_user_attr(BEGAN_KEY, self.keeper.began)
        pruner, self.study.pruner = self.study.pruner, _RungPruner(self)
        try:
            self._restart_interrupted()
            with self.lock:
                self._run_brackets()
        finally:
            with self.lock:
                self.is_ending = True
                self.changed.notify_all()
            for item in self.trials.values():
                if item.thread is not None:
                    item.thread.join()
            self.study.pruner = pruner
            self.study.set_user_attr(f"{BEGAN_KEY}:ended", True)
        errors = [item.error for item in self.trials.values() if item.error is not None]
        if errors:
            raise errors[0]
        seconds = self.keeper.wall() - self.keeper.began
        return DeadlineResult(
            seconds=seconds,
            spent_usd=self.keeper.compute_spent_usd(),
            is_on_time=seconds <= self.keeper.limits.deadline_s,
            stage_trials=tuple(self.stage_trials),
            notes=tuple(self.keeper.notes),
        )

    def _has_finished(self) -> bool:
        return bool(self.study.user_attrs.get(f"{BEGAN_KEY}:ended", False))

    def _restart_interrupted(self) -> None:
        """Fail trials that a crash left running, and enqueue their parameters."""
        from optuna.trial import TrialState

        if self._has_finished():
            self.study.set_user_attr(f"{BEGAN_KEY}:ended", False)
            return
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state in (TrialState.PRUNED, TrialState.COMPLETE):
                # its stage has ended, and it is one of the trials that have begun
                self._adopt(frozen, is_complete=frozen.state == TrialState.COMPLETE)
            elif frozen.state == TrialState.RUNNING:
                number = frozen.user_attrs.get(RESUMES_KEY, frozen.number)
                self.study.tell(frozen.number, state=TrialState.FAIL)
                self.study.enqueue_trial(frozen.params, user_attrs={RESUMES_KEY: number})

    def _adopt(self, frozen: Any, *, is_complete: bool) -> None:
        item = RunningTrial(trial=frozen, has_ended=True, is_stopped=not is_complete)
        self._record_reports(item, frozen.intermediate_values, is_timed=False)
        if is_complete:
            item.steps = max(item.steps, self.keeper.rungs[-1])
        self.trials[frozen.number] = item

    # the thread that calls optimize

    def _run_brackets(self) -> None:
        """Run the search, and again with the trials that did not fit at first, as long as there is time for them."""
        while not self.is_ending:
            self.stage, self.bracket_begin = 0, len(self.trials) if self.stage_trials else 0
            if self.bracket_begin >= self.keeper.trials:
                return
            self._run_stages()
            if len(self.trials) == self.bracket_begin:
                return

    def _run_stages(self) -> None:
        rungs = self.keeper.rungs
        while self.stage < len(rungs):
            if self.stage == 0:
                self._begin_trials(rungs[0])
            else:
                while not self.is_ending and self._list_active(rungs[self.stage]):
                    self._wait()
            if self.is_ending or len(self.trials) == self.bracket_begin:
                return
            self._end_stage(rungs)

    def _begin_trials(self, rung: int) -> None:
        """Begin the trials of the first stage as slots become free, as many as will end in time."""
        while not self.is_ending:
            active = self._list_active(rung)
            begun = len(self.trials) - self.bracket_begin
            is_left = len(self.trials) < self.keeper.trials
            if is_left and len(active) < self.keeper.slots:
                if self.keeper.can_begin_trial(begun, [rung - item.steps for item in active]):
                    self._begin_trial()
                    continue
                if not active:
                    self.keeper.note_fewer_trials(len(self.trials))
            if not active:
                return
            self._wait()

    def _begin_trial(self) -> None:
        trial = self.study.ask()
        item = RunningTrial(trial=trial, reported_at=self.keeper.wall())
        self.trials[trial.number] = item
        item.thread = threading.Thread(
            target=self._run_objective, args=(item,), name=f"trial-{trial.number}", daemon=True
        )
        item.thread.start()

    def _list_active(self, rung: int) -> list[RunningTrial]:
        """List the trials that occupy a slot and have not reached a rung."""
        return [
            item for item in self.trials.values() if not item.has_ended and not item.waits_for and item.steps < rung
        ]

    def _wait(self) -> None:
        """Wait for a change, or for a limit."""
        self.changed.wait(max(0.001, min(CHECK_PERIOD_S, self.keeper.compute_time_left_s())))
        errors = [item for item in self.trials.values() if item.error is not None]
        if errors or self.keeper.is_over():
            if not errors:
                self.keeper.note_limit()
            self.is_ending = True
            self.changed.notify_all()

    def _end_stage(self, rungs: Sequence[int]) -> None:
        """Let the best trials of a stage continue; the others are pruned."""
        rung = rungs[self.stage]
        ranked = self._rank(rung)
        self.stage_trials.append(len(ranked))
        self.stage += 1
        if self.stage >= len(rungs):
            return
        count = self.keeper.count_survivors(self.stage, len(ranked)) if ranked else 0
        chosen = {item.trial.number for item in ranked[:count]}
        for item in self.trials.values():
            if item.waits_for:
                item.is_stopped = item.trial.number not in chosen
        # one after another, as slots become free
        self._release([item for item in ranked[:count] if item.waits_for], rungs[self.stage])

    def _release(self, waiting: list[RunningTrial], rung: int) -> None:
        """Let waiting trials continue, at most as many at once as there are slots."""
        for item in self.trials.values():
            if item.is_stopped and item.waits_for:
                item.waits_for = 0
        self.changed.notify_all()
        for item in waiting:
            while not self.is_ending and len(self._list_active(rung)) >= self.keeper.slots:
                self._wait()
            item.reported_at = self.keeper.wall()
            item.waits_for = 0
            self.changed.notify_all()

    def _rank(self, rung: int) -> list[RunningTrial]:
        """Rank the trials that reached a rung by their value there, best first; nan ranks last."""
        from optuna.study import StudyDirection

        sign = -1.0 if self.study.direction == StudyDirection.MAXIMIZE else 1.0
        bracket = list(self.trials.values())[self.bracket_begin :]
        reached = [item for item in bracket if item.steps >= rung and not item.is_stopped]

        def key(item: RunningTrial) -> tuple[bool, float, int]:
            value = item.values[max(step for step in item.values if step <= max(rung, min(item.values)))]
            return (value != value, sign * value if value == value else 0.0, item.trial.number)  # noqa: PLR0124 - nan

        return sorted((item for item in reached if item.values), key=key)

    # the threads of the trials

    def _run_objective(self, item: RunningTrial) -> None:
        import optuna
        from optuna.trial import TrialState

        state, value = TrialState.COMPLETE, None
        try:
            value = self.objective(item.trial)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except self.catch as error:
            state = TrialState.FAIL
            optuna.logging.get_logger("optuna").warning("trial %d failed: %r", item.trial.number, error)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            state, item.error = TrialState.FAIL, error
        with self.lock:
            try:
                # a trial that was stopped may return its last value instead of raising TrialPruned
                self.study.tell(item.trial, value if state == TrialState.COMPLETE else None, state=state)
            except (ValueError, TypeError) as error:
                self.study.tell(item.trial, state=TrialState.FAIL)
                self.keeper.notes.append(f"trial {item.trial.number}: {error}")
                state = TrialState.FAIL
            item.has_ended = True
            if state == TrialState.COMPLETE and item.values and not item.is_stopped:
                # it never asked at a rung, or ran to its end
                item.steps = max(item.steps, self.keeper.rungs[-1])
            self.changed.notify_all()

    def should_prune(self, frozen: Any) -> bool:
        """Decide for a trial that asks whether to stop; wait at a rung until its stage has ended."""
        with self.lock:
            item = self.trials.get(frozen.number)
            if item is None:
                return False
            self._record_reports(item, frozen.intermediate_values)
            rungs = self.keeper.rungs
            if self.is_ending or item.is_stopped:
                return True
            next_rung = next((rung for rung in rungs[self.stage :] if rung <= item.steps), None)
            # a later rung counts too: a trial that reports rarely may pass one
            if next_rung is not None and item.steps < rungs[-1]:
                item.waits_for = next_rung
                self.changed.notify_all()
                while item.waits_for and not self.is_ending:
                    self.changed.wait(CHECK_PERIOD_S)
                return item.is_stopped or self.is_ending
            self.changed.notify_all()
            return self.keeper.is_over()

    def _record_reports(self, item: RunningTrial, values: dict[int, float], *, is_timed: bool = True) -> None:
        if not values:
            return
        if self.first_step is None:
            self.first_step = 0 if min(values) == 0 else 1
        offset = 1 - self.first_step
        item.values = {step + offset: value for step, value in values.items()}
        steps, now = max(item.values), self.keeper.wall()
        if steps > item.steps:
            if is_timed:
                self.keeper.record_step(item.trial.number, steps, now - item.reported_at)
            item.steps, item.reported_at = steps, now


class _RungPruner:
    """The pruner of a study while it runs: it delegates to the run."""

    def __init__(self, run: StudyRun) -> None:
        self.run = run

    def prune(self, study: Any, trial: Any) -> bool:  # noqa: ARG002 - the interface of Optuna
        """See ``optuna.pruners.BasePruner``."""
        return self.run.should_prune(trial)
