"""Optuna under a deadline: successive halving, Hyperband or ASHA by ask and tell, with the objective unchanged.

A pruner can stop a trial but not pause it. Here each trial runs in a thread of its own, and ``trial.should_prune``
blocks at a rung until the trial may continue or has lost; meanwhile its slot runs another trial. The best continue
where they were, so no iteration is repeated. Trials for which the limits leave no room are not started, or are pruned.
"""

from __future__ import annotations

import copy
import datetime as dt
import gc
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from unfold_tuning.deadline.halving_search import EVEN_CHANCE, HalvingSearch, StoredStage, check_method
from unfold_tuning.deadline.limits import LimitKeeper, parse_limits
from unfold_tuning.deadline.study_progress import IDENTITY_KEY, StudyProgress
from unfold_tuning.deadline.waiting_trials import show_as_pruned
from unfoldkit.api import format_count, user_error

CHECK_PERIOD_S = 0.05
BEYOND = "the first report is that of step {step}, beyond max_steps={max_steps}, which counts in the same steps"
SAMPLER_PACKAGES = {"CmaEsSampler": ("cmaes",), "GPSampler": ("scipy", "torch"), "QMCSampler": ("scipy",)}
"""What samplers of Optuna import once trials are complete."""
MIN_FAILURES = 8
"""So many trials fail before a search ends in which no trial has ever reported or returned anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineResult:
    """How a run under a deadline ended.

    Attributes:
        seconds: Its duration.
        spent_usd: The bill of its workers.
        is_on_time: Whether it ended by the deadline.
        stage_trials: Trials that finished each stage, in the order in which the stages ended.
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
    deadline: str | float | dt.timedelta,
    max_steps: int | None = None,
    method: str = "sha",
    budget: str | float | None = None,
    usd_per_hour: str | float | None = None,
    n_trials: int = 64,
    min_steps: int = 1,
    eta: int = 3,
    n_jobs: int | None = None,
    confidence: str | float = 0.95,
    catch: Iterable[type[Exception]] | type[Exception] | None = None,
    callbacks: Iterable[Callable[[Any, Any], None]] | None = None,
    timeout: float | None = None,
    gc_after_trial: bool = False,
    show_progress_bar: bool = False,
) -> DeadlineResult:
    """Optimize a study by successive halving; at a deadline or a budget, trials stop with their next report.

    The objective reports with ``trial.report(value, step)`` and asks ``trial.should_prune()``, as for any pruner; the
    sampler of the study is used as it is, and its direction ranks trials. A study in a storage continues after a crash,
    with the same deadline: trials that had lost stay pruned, those that were running call the objective again with
    their parameters, and may continue from what they stored in :func:`get_checkpoint_folder`.

    If a limit ends the search before a trial is complete, the best of those that ran furthest counts as complete with
    its last report: the study then has a best trial.

    Args:
        study: An Optuna study with one objective.
        objective: The objective.
        deadline: Time from now, such as ``"2h"`` or a ``timedelta``, or seconds.
        max_steps: Steps of the best trial. If left out, the first trial runs to its end to show them, as long as it
            uses little of the time.
        method: ``sha``, successive halving with barriers; ``hyperband``, several brackets of it that share the trials;
            or ``asha``, without barriers and without a plan of the whole.
        budget: The bill at which trials stop, with their next report, such as ``"$40"``.
        usd_per_hour: Price of one worker, such as ``1.5`` or ``"$1.50/h"``; if left out, the workers share that of the
            machine.
        n_trials: Trials of the search.
        min_steps: Steps of every trial in the first stage.
        eta: The best 1/eta continue.
        n_jobs: Trials that run at once; as many as there are processors if left out.
        confidence: Probability that a trial or a step which is started ends in time.
        catch: Errors of the objective that fail the trial; others end the run. If left out, each error fails its trial,
            and the run ends if all trials fail.
        callbacks: Called with the study and each trial that has ended, as by ``study.optimize``.
        timeout: As in ``study.optimize``, in seconds; the earlier of timeout and deadline ends the search.
        gc_after_trial: Collect garbage after each trial.
        show_progress_bar: Ignored with a warning, so that scripts need to change one line only.

    Raises:
        UnfoldError: A limit or a number is invalid, the study has several objectives, or another process runs it.
    """
    _check_study(study, objective)
    check_method(method)
    if max_steps is None and method == "hyperband":
        raise user_error("hyperband needs max_steps, which decides how many brackets there are")
    known_steps = min_steps if max_steps is None else max_steps
    _check_sizes(n_trials=n_trials, max_steps=known_steps, min_steps=min_steps, eta=eta)
    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, Integral)):
        raise user_error(f"n_jobs must be an integer, not {n_jobs!r}")
    if callable(callbacks):
        raise user_error("callbacks is a function", hint="write callbacks=[function]")
    limits = parse_limits(deadline, budget, usd_per_hour, confidence)
    if timeout is not None:
        limits = replace(limits, deadline_s=min(limits.deadline_s, parse_limits(timeout, None, None, 0.5).deadline_s))
    if show_progress_bar:
        _warn("a search under a deadline has no progress bar")
    keeper = LimitKeeper(
        limits=limits,
        slots=int(n_jobs) if n_jobs and n_jobs > 0 else os.cpu_count() or 1,
        trials=_limit_trials(study, int(n_trials)),
        min_steps=int(min_steps),
        max_steps=int(known_steps),
        eta=int(eta),
        method=method,
    )
    if limits.machine is not None:
        keeper.share_machine(keeper.slots)
        keeper.note_once(limits.machine.note)
        _warn(limits.machine.note)
    return StudyRun(
        study=study,
        objective=objective,
        keeper=keeper,
        catch=_list_errors(catch),
        ends_if_all_fail=catch is None,
        callbacks=(*(callbacks or ()), *([_collect_garbage] if gc_after_trial else [])),
        progress=StudyProgress(study),
        is_sized=max_steps is not None,
    ).run()


def _check_study(study: Any, objective: Any) -> None:
    if isinstance(study, type) or not hasattr(study, "directions") or not callable(objective):
        message = f"optimize takes a study and an objective, not {type(study).__name__} and {type(objective).__name__}"
        raise user_error(message, hint="write deadline.optimize(study, objective, deadline=..., max_steps=...)")
    if len(study.directions) != 1:
        hint = "name it in create_study(direction=...)"
        raise user_error("a deadline needs one objective to rank trials by", hint=hint)
    _check_sampler(study.sampler)


def _check_sampler(sampler: Any) -> None:
    """Check that what a sampler imports at its first proposal is there: afterwards each trial would fail.

    Raises:
        UnfoldError: A package is not installed.
    """
    inner = getattr(sampler, "_base_sampler", sampler)
    for kind in type(inner).__mro__:
        for package in SAMPLER_PACKAGES.get(kind.__name__, ()):
            if importlib.util.find_spec(package) is None:
                message = f"{kind.__name__} needs the package {package}, which is not installed"
                raise user_error(message, hint=f"pip install {package}")


def _check_sizes(**sizes: Any) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise user_error(f"{name} must be an integer of at least 1, not {value!r}")
    if sizes["min_steps"] > sizes["max_steps"] or sizes["eta"] < 2:
        raise user_error("min_steps must not exceed max_steps, and eta must be at least 2")


def _list_errors(catch: Iterable[type[Exception]] | type[Exception] | None) -> tuple[type[Exception], ...]:
    """List the errors that fail a trial.

    Raises:
        UnfoldError: An item is no exception class.
    """
    if catch is None:
        return (Exception,)
    errors = (catch,) if isinstance(catch, type) else tuple(catch)
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, Exception)):
            raise user_error(f"catch: {error!r} is not a class of exceptions", hint="write catch=(ValueError,)")
    return errors


def _limit_trials(study: Any, trials: int) -> int:
    """Limit the trials to the points of a grid, which would otherwise repeat while the first ones wait at a rung."""
    points = getattr(study.sampler, "_n_min_trials", trials)
    if points < trials:
        _warn(f"{trials} trials, but the grid of the sampler has {points} points: {points} trials begin")
    return int(min(points, trials))


def _warn(message: str) -> None:
    import optuna

    optuna.logging.get_logger("optuna").warning(message)


def _log_end(frozen: Any) -> None:
    """Log the end of a trial as ``study.optimize`` does; failures have a warning of their own."""
    import optuna
    from optuna.trial import TrialState

    logger, number = optuna.logging.get_logger("optuna"), frozen.number
    if frozen.state == TrialState.COMPLETE:
        logger.info("Trial %d finished with value: %s and parameters: %s.", number, frozen.value, frozen.params)
    elif frozen.state == TrialState.PRUNED:
        logger.info("Trial %d pruned at step %d.", number, frozen.last_step or 0)


def _collect_garbage(study: Any, trial: Any) -> None:  # noqa: ARG001 - a callback of Optuna
    gc.collect()


def get_checkpoint_folder(trial: Any, base: str | Path = "checkpoints") -> Path:
    """Return a folder for the states of a trial, the same after a crash; it is created.

    Another study of the same name has other folders: it must not continue from the states of this one.
    """
    identity = trial.study.user_attrs.get(IDENTITY_KEY, "new")
    folder = Path(base) / f"{trial.study.study_name}-{identity}-{trial.number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(slots=True, kw_only=True)
class RunningTrial:
    """A trial in its thread; without a thread, one that an earlier process began.

    Attributes:
        trial: The Optuna trial.
        released: Signals that it need not wait any more.
        thread: Its thread, once it runs.
        reported_at: When it reported last, or continued after a rung.
        is_waiting: Whether it waits at a rung.
        is_stopped: Whether it has lost, and is to be pruned.
        has_ended: Whether its objective has returned.
        is_at_limit: Whether it was asked to stop because a limit is reached, or would be within its next step.
        is_cut_off: Whether a limit ended it; what it counts as is decided at the end.
        is_rejected: Whether the study's own pruner stopped it.
        error: What its objective raised.
    """

    trial: Any
    released: threading.Condition
    thread: threading.Thread | None = None
    reported_at: float = 0.0
    is_waiting: bool = False
    is_stopped: bool = False
    has_ended: bool = False
    is_at_limit: bool = False
    is_cut_off: bool = False
    is_rejected: bool = False
    error: BaseException | None = None

    @property
    def is_begun_earlier(self) -> bool:
        """Whether an earlier process began it, and this one has not continued it."""
        return self.thread is None and not self.has_ended


@dataclass(slots=True, kw_only=True)
class StudyRun:
    """One run of a study; the pruner of the study calls it from the threads of the trials.

    Attributes:
        study: The study.
        objective: The objective.
        keeper: The limits.
        catch: Errors that fail a trial.
        ends_if_all_fail: Whether the search ends with an error that every trial has.
        callbacks: Called after each trial.
        progress: The part of the run that the study stores.
        is_sized: Whether the number of steps of a complete trial is known.
        trials: Trials by number, in the order in which they began.
        search: Which trials may run, and to which rung.
        stored: That part, as it was stored last.
        unconstrained: Trials with constraints that cannot be evaluated yet: the objective may set them at its end.
        first_step: The step that a trial reports first: 0 or 1.
        counts_reports: Whether steps name problem instances, in any order, as those of ``WilcoxonPruner`` do.
        lock: Guards everything here.
        changed: Signals a change of it to the thread that called ``optimize``.
        is_ending: Whether a limit is reached or an error ends the run.
        repeats: Trials in a row which repeat the point of an earlier one.
        is_exhausted: Whether the sampler has no further configurations.
        fatal_error: The error that ends the run.
    """

    study: Any
    objective: Callable[[Any], Any]
    keeper: LimitKeeper
    catch: tuple[type[Exception], ...]
    ends_if_all_fail: bool
    callbacks: tuple[Callable[[Any, Any], None], ...]
    progress: StudyProgress
    is_sized: bool = True
    trials: dict[int, RunningTrial] = field(default_factory=dict)
    search: HalvingSearch = field(init=False)
    stored: StoredStage | None = None
    unconstrained: set[int] = field(default_factory=set)
    first_step: int | None = None
    counts_reports: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    changed: threading.Condition = field(init=False)
    is_ending: bool = False
    repeats: int = 0
    is_exhausted: bool = False
    fatal_error: BaseException | None = None

    def __post_init__(self) -> None:
        """Build the search, and the condition on the lock."""
        from optuna.study import StudyDirection

        is_maximized = self.study.direction == StudyDirection.MAXIMIZE
        self.search = HalvingSearch(keeper=self.keeper, is_maximized=is_maximized, is_sized=self.is_sized)
        self.changed = threading.Condition(self.lock)

    def run(self) -> DeadlineResult:
        """Run every stage, and restore the study's own pruner."""
        from optuna.pruners import WilcoxonPruner

        self.keeper.warm_up()
        self.progress.lock_study()
        self.keeper.began = self.progress.begin_search(self.keeper.wall())
        pruner = self.study.pruner
        self.counts_reports = isinstance(pruner, WilcoxonPruner)
        self.study.pruner = _RungPruner(self, pruner)
        try:
            with self.lock, _counting_waiting_trials(self.study.sampler), show_as_pruned(self.study, self.list_waiting):
                self._restore_trials()
                self._run_search()
        finally:
            with self.lock:
                self.is_ending = True
                for item in self.trials.values():
                    item.released.notify()
            for item in self.trials.values():
                if item.thread is not None:
                    item.thread.join()
            self.study.pruner = pruner
            self.progress.release_study()
        # whatever interrupts this process leaves the search open, and the same script continues it
        self._check_failures()
        self._settle_cut_off_trials()
        self.progress.end_search()
        if self.fatal_error is not None:
            raise self.fatal_error
        seconds = self.keeper.wall() - self.keeper.began
        return DeadlineResult(
            seconds=seconds,
            spent_usd=self.keeper.compute_spent_usd(),
            is_on_time=seconds <= self.keeper.limits.deadline_s,
            stage_trials=tuple(self.search.count_reached()),
            notes=tuple(self.keeper.notes),
        )

    # what an earlier process left

    def _restore_trials(self) -> None:
        """Restore the trials of the search that a crash interrupted, with their reports and their rungs."""
        from optuna.trial import Trial, TrialState

        search, trials = self.search, self.progress.list_trials()
        search.restore_stage(
            self.progress.load_stage(), {trial.number: self.progress.get_bracket(trial) for trial in trials}
        )
        steps = [min(trial.intermediate_values) for trial in trials if trial.intermediate_values]
        if steps and not self.counts_reports:
            self.first_step = 0 if min(steps) == 0 else 1
        for frozen in trials:
            number, is_running = frozen.number, frozen.state == TrialState.RUNNING
            item = RunningTrial(
                trial=Trial(self.study, frozen._trial_id) if is_running else frozen,  # noqa: SLF001 - as study.ask does
                released=threading.Condition(self.lock),
                has_ended=not is_running,
            )
            self.trials[number] = item
            self._record_reports(item, frozen.intermediate_values, is_timed=False)
            self._record_violation(frozen)
            if frozen.state == TrialState.COMPLETE:
                search.complete_trial(number)
            elif not is_running:
                search.fail_trial(number)
            elif search.has_lost(number):
                search.ended.add(number)
                self._prune_lost(item)
        if self.trials:
            # the sampler of this process would draw the same values again
            self.study.sampler.reseed_rng()

    # the thread that calls optimize

    def _run_search(self) -> None:
        """Start and release trials as slots become free, until the search or a limit ends."""
        while not self.is_ending:
            self._update_search()
            while len(self._list_active()) < self.keeper.slots and self._run_next():
                pass
            if self._list_active():
                self._wait()
            elif not (self.search.advance() or self._continue_reserve()):
                return

    def _update_search(self) -> None:
        """Let the best trials continue, and prune those which have lost."""
        if self.is_exhausted and self.search.supply is None:
            self.search.limit_supply(len(self.trials))
        losers = self.search.update()
        stage = self.search.describe_stage()
        if stage != self.stored:
            # before any trial learns of it: a process that is killed now continues from here
            self.progress.store_stage(stage)
            self.stored = stage
        for number in losers:
            # one that might keep constraints which the winner violates waits until those are known
            if not (number in self.unconstrained and self.trials[number].is_waiting):
                self._prune_lost(self.trials[number])

    def _continue_reserve(self) -> bool:
        """Let trials that lost continue to the end if each complete one violates its constraints, as they may not.

        Returns:
            Whether any continues: the best of those that ran furthest and end in time, one for each slot.
        """
        from optuna.trial import TrialState

        search, complete = self.search, self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        own = [trial.number for trial in complete if trial.number in self.trials]
        if not self.unconstrained or any(search.violations[number] == 0 for number in own):
            return False
        waiting = [number for number, item in self.trials.items() if item.is_waiting]
        ranked = sorted(search.rank(waiting, self.keeper.max_steps), key=lambda number: -search.steps[number])
        chosen = [number for number in ranked if self._ends_in_time(number)][: self.keeper.slots]
        for number in chosen:
            search.ended.discard(number)
            search.levels[number] = len(search.list_rungs(search.brackets[number])) - 1
        if chosen:
            count = format_count(len(chosen), "trial")
            self.keeper.notes.append(f"no complete trial keeps the constraints: {count} that had lost may continue")
        return bool(chosen)

    def _ends_in_time(self, number: int) -> bool:
        """Return whether a trial is more likely than not to reach the last rung in time."""
        rungs = self.search.list_rungs(self.search.brackets[number])
        steps = rungs[-1] - self.search.steps[number]
        return steps > 0 and self.keeper.can_reach_rung(len(rungs) - 1, steps, self.search.numbers[number], EVEN_CHANCE)

    def _prune_lost(self, item: RunningTrial) -> None:
        """Prune a trial that has lost: its thread learns of it, or there is none any more."""
        from optuna.trial import TrialState

        item.is_stopped, item.is_waiting = True, False
        if item.is_begun_earlier:
            item.has_ended = True
            self._store_end(item, None, TrialState.PRUNED)
        item.released.notify()

    def _run_next(self) -> bool:
        """Continue a trial that may, or begin one that ends in time; return whether there is one."""
        # one that runs further than it may, because it never asks, occupies its slot already
        runnable = [self.trials[number] for number in self.search.list_runnable()]
        item = next((item for item in runnable if item.is_waiting or item.is_begun_earlier), None)
        if item is not None:
            self._continue_trial(item)
            return True
        bracket = self.search.choose_bracket()
        if bracket is None:
            return False
        trial = self.study.ask()
        self.progress.mark_trial(trial, bracket)
        self.trials[trial.number] = RunningTrial(trial=trial, released=threading.Condition(self.lock))
        self.search.begin_trial(trial.number, bracket)
        self._continue_trial(self.trials[trial.number])
        return True

    def _continue_trial(self, item: RunningTrial) -> None:
        """Start the thread of a trial, or release it from the rung at which it waits."""
        item.reported_at, item.is_waiting = self.keeper.wall(), False
        if item.thread is None:
            item.thread = threading.Thread(
                target=self._run_thread, args=(item,), name=f"trial-{item.trial.number}", daemon=True
            )
            item.thread.start()
        item.released.notify()

    def _list_active(self) -> list[RunningTrial]:
        """List the trials that occupy a slot."""
        running = [item for item in self.trials.values() if item.thread is not None and not item.has_ended]
        return [item for item in running if not item.is_waiting]

    def _wait(self) -> None:
        """Wait for a change, or for a limit."""
        self.changed.wait(max(0.001, min(CHECK_PERIOD_S, self.keeper.compute_time_left_s())))
        self.progress.stay_alive()
        self._check_failures()
        if self.progress.is_stop_requested():
            self.keeper.notes.append("the objective or a callback stopped the study")
            self.is_ending = True
        if self.fatal_error is not None or self.keeper.is_over():
            if self.fatal_error is None:
                self.keeper.note_limit()
            self.is_ending = True

    def _check_failures(self) -> None:
        """End a search in which every trial fails: the objective is at fault."""
        values = self.search.values
        items = [item for number, item in self.trials.items() if item.has_ended or values.get(number)]
        failed = [item for item in items if item.error is not None and not values.get(item.trial.number)]
        enough = min(self.keeper.trials, max(MIN_FAILURES, 2 * self.keeper.slots))
        if (
            self.ends_if_all_fail
            and self.fatal_error is None
            and failed
            and len(failed) >= enough
            and len(failed) == len(items)
        ):
            self.fatal_error = failed[-1].error

    def _settle_cut_off_trials(self) -> None:
        """Prune the trials that a limit cut off; without a complete trial, the best of them is complete as it is."""
        from optuna.trial import TrialState

        with self.lock:
            search, states = self.search, (TrialState.COMPLETE,)
            items = {n: item for n, item in self.trials.items() if item.is_cut_off or item.is_begun_earlier}
            valid = {number: search.steps[number] for number in items if self._has_number(number)}
            furthest = [number for number, steps in valid.items() if steps == max(valid.values())]
            is_complete = bool(self.study.get_trials(deepcopy=False, states=states))
            ranked = search.rank(furthest, max(valid.values(), default=0))
            best = ranked[0] if ranked and not is_complete and self.fatal_error is None else None
            for number, item in items.items():
                item.has_ended = True
                if number == best or (number in valid and search.has_reached_end(number)):
                    values = search.values[number]
                    self._store_end(item, values[max(values)], TrialState.COMPLETE)
                else:
                    self._store_end(item, None, TrialState.PRUNED)
            failed = sum(item.error is not None for item in self.trials.values())
            ends = {trial.state for trial in self.study.get_trials(deepcopy=False)}
            if self.fatal_error is None and TrialState.COMPLETE not in ends:
                if failed:
                    count = format_count(failed, "trial")
                    self._warn_once(f"no trial is complete: {count} failed, and the others had lost")
                elif ends == {TrialState.PRUNED}:
                    self._warn_once("no trial is complete: all were pruned")

    def _has_number(self, number: int) -> bool:
        values = self.search.values.get(number, {})
        return bool(values) and not math.isnan(values[max(values)])

    # the threads of the trials

    def _run_thread(self, item: RunningTrial) -> None:
        """Run a trial; an error outside its objective, such as of the storage, ends the run."""
        try:
            self._run_objective(item)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            with self.lock:
                self.fatal_error = self.fatal_error or error
                item.has_ended = True
                self.search.fail_trial(item.trial.number)
                self.changed.notify()

    def _run_objective(self, item: RunningTrial) -> None:
        import optuna
        from optuna.trial import TrialState

        state, value = TrialState.COMPLETE, None
        try:
            with self.progress.allow_stop():
                value = self.objective(item.trial)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except self.catch as error:
            state, item.error = TrialState.FAIL, error
            optuna.logging.get_logger("optuna").warning("trial %d failed: %r", item.trial.number, error)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            state, item.error, self.fatal_error = TrialState.FAIL, error, error
        with self.lock:
            if state == TrialState.COMPLETE and self._has_returned_early(item):
                state, value = TrialState.PRUNED, None
            # a trial that was stopped may return its last value instead of raising TrialPruned
            number, is_over = item.trial.number, self.is_ending or item.is_at_limit or self.keeper.is_over()
            is_cut_off = is_over and not item.is_stopped and self.fatal_error is None
            if state == TrialState.PRUNED and is_cut_off and self.search.values.get(number):
                item.is_cut_off = True
                self.search.ended.add(number)
            else:
                if value is None and state == TrialState.COMPLETE:
                    value = self._get_last_report(number)
                state = self._store_end(item, value if state == TrialState.COMPLETE else None, state)
                self._record_end(item, is_complete=state == TrialState.COMPLETE)
            item.has_ended = True
            self.changed.notify()

    def _has_returned_early(self, item: RunningTrial) -> bool:
        """Return whether a trial that has lost returned a value instead of raising: that of a trial cut short."""
        if not item.is_stopped:
            return False
        self._record_reports(item, self._get_trial(item.trial.number).intermediate_values)
        return not self.search.has_reached_end(item.trial.number)

    def _get_last_report(self, number: int) -> float | None:
        """Get the last report of a trial; its objective returned nothing, as scripts for other tools may do."""
        values = self._get_trial(number).intermediate_values
        if not values:
            return None
        self._warn_once("the objective returns nothing: the last report of a trial is its value")
        return float(values[max(values)])

    def _record_end(self, item: RunningTrial, *, is_complete: bool) -> None:
        """Record how a trial ended; where trials never report, the search has one stage, of one step a trial."""
        search, number = self.search, item.trial.number
        frozen = self._get_trial(number)
        if is_complete:
            self._record_reports(item, frozen.intermediate_values)
        if is_complete and not search.values.get(number):
            if not any(search.values.values()):
                search.drop_rungs()
            if self.keeper.max_steps == 1:
                self.keeper.record_step(search.numbers[number], 1, self.keeper.wall() - item.reported_at)
            search.record_report(number, 1, frozen.value)
        if is_complete and not item.is_rejected:
            # it never asked at a rung, or ran to its end
            search.complete_trial(number)
        elif not item.is_stopped:
            search.fail_trial(number)

    def _store_end(self, item: RunningTrial, value: Any, state: Any) -> Any:
        """Store how a trial ended, and call the callbacks; return the state, which a wrong value turns into a failure.

        A value that is not a number fails the trial, as in ``study.optimize``. If the sampler raises an error about a
        stored trial, as about constraints that a pruned one has not set, a note has it.
        """
        from optuna.trial import TrialState

        was_stopped, number = self.progress.is_stop_requested(), item.trial.number
        with self.progress.allow_stop():
            try:
                self.study.tell(number, value, state=state)
            except Exception as error:
                if not self._get_trial(number).state.is_finished():
                    if not isinstance(error, (ValueError, TypeError)):
                        raise
                    state = TrialState.FAIL
                    _warn(f"trial {number} failed: {error}")
                    self.study.tell(number, state=state)
                self.keeper.notes.append(f"trial {number}: {type(error).__name__}: {error}")
        if not was_stopped and self.progress.is_stop_requested():
            # the sampler has seen every configuration: those that run go on
            self.progress.withdraw_stop()
            self.is_exhausted = True
        frozen = self._get_trial(number)
        _log_end(frozen)
        self._record_violation(frozen)
        try:
            with self.progress.allow_stop():
                for callback in self.callbacks:
                    callback(self.study, copy.deepcopy(frozen))
        except Exception as error:  # noqa: BLE001 - raised again by the caller's thread
            self.fatal_error = self.fatal_error or error
        return state

    def _get_trial(self, number: int) -> Any:
        return self.study.get_trials(deepcopy=False)[number]

    def _record_violation(self, frozen: Any) -> None:
        """Record by how much a trial violates its constraints, as far as it has set them."""
        values = list(getattr(frozen, "constraints", {}).values())
        function = getattr(self.study.sampler, "_constraints_func", None)
        self.unconstrained.discard(frozen.number)
        if function is not None and not values:
            try:
                values = list(function(frozen))
            except Exception:  # noqa: BLE001 - it may need what the objective stores at its end
                self.unconstrained.add(frozen.number)
        self.search.violations[frozen.number] = sum(max(0.0, float(value)) for value in values)

    def reject_trial(self, frozen: Any) -> None:
        """Record that the study's own pruner stops a trial, which may still return a value."""
        with self.lock:
            if frozen.number in self.trials:
                self.trials[frozen.number].is_rejected = True

    def should_prune(self, frozen: Any) -> bool:
        """Decide for a trial that asks whether to stop; wait at a rung until it may continue or has lost."""
        with self.lock:
            item = self.trials.get(frozen.number)
            if item is None:
                return False
            self._record_reports(item, frozen.intermediate_values)
            self._record_violation(frozen)
            self.changed.notify()
            if not item.is_stopped and self._repeats_point(frozen):
                # two that asked at the same time prove nothing: the sampler may have other points
                self.repeats, item.is_stopped = self.repeats + 1, True
                self.is_exhausted = self.is_exhausted or self.repeats >= self.keeper.slots
                self.search.fail_trial(frozen.number)
            elif len(frozen.intermediate_values) == 1:
                self.repeats = 0
            if self.is_ending or item.is_stopped:
                return True
            if self.search.has_reached_end(frozen.number):
                return self.keeper.is_over()
            item.is_at_limit = self.keeper.is_last_report(self.search.numbers[frozen.number])
            if item.is_at_limit:
                self.keeper.note_limit()
                return True
            if self.search.needs_steps(frozen.number):
                return False
            item.is_waiting = True
            while item.is_waiting and not self.is_ending:
                item.released.wait()
            return item.is_stopped or self.is_ending

    def _repeats_point(self, frozen: Any) -> bool:
        """Return whether a sampler that tries each point once has suggested one again."""
        from optuna.samplers import BruteForceSampler

        if not isinstance(self.study.sampler, BruteForceSampler):
            return False
        earlier = self.study.get_trials(deepcopy=False)[: frozen.number]
        return any(other.number in self.trials and other.params == frozen.params for other in earlier)

    def list_waiting(self) -> set[int]:
        """List the numbers of the trials that wait at a rung."""
        with self.lock:
            return {number for number, item in self.trials.items() if item.is_waiting}

    def _warn_once(self, note: str) -> None:
        """Note and log something once."""
        if self.keeper.note_once(note):
            _warn(note)

    def _record_reports(self, item: RunningTrial, values: dict[int, float], *, is_timed: bool = True) -> None:
        if not values:
            return
        if self.counts_reports:
            # a trial is as good as the mean over its instances so far
            values, self.first_step = {len(values): sum(values.values()) / len(values)}, 1
        if self.first_step is None:
            self.first_step = 0 if min(values) == 0 else 1
            if self.search.is_sized and min(values) > self.keeper.max_steps > 1:
                self._warn_once(BEYOND.format(step=min(values), max_steps=self.keeper.max_steps))
        offset, number = 1 - self.first_step, item.trial.number
        before, now = self.search.steps.get(number, 0), self.keeper.wall()
        for step, value in values.items():
            self.search.record_report(number, step + offset, value)
        steps = self.search.steps[number]
        if steps > before:
            if is_timed:
                self.keeper.record_step(self.search.numbers[number], steps, now - item.reported_at)
            item.reported_at = now


class _RungPruner:
    """The pruner of a study while it runs: it delegates to the study's own one, then to the run."""

    def __init__(self, run: StudyRun, pruner: Any) -> None:
        self.run, self.pruner, self.own = run, pruner, _select_own_pruner(pruner)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        """Pickle the study's own pruner: callbacks store the study with it."""
        return copy.copy, (self.pruner,)

    def prune(self, study: Any, trial: Any) -> bool:
        """See ``optuna.pruners.BasePruner``."""
        if self.own is not None and self.own.prune(study, trial):
            self.run.reject_trial(trial)
            return True
        return self.run.should_prune(trial)


@contextmanager
def _counting_waiting_trials(sampler: Any) -> Iterator[None]:
    """Let a sampler that tries each point once count the trials that wait at a rung, which are not finished.

    With ``avoid_premature_stop`` it would suggest their points again.
    """
    is_strict = getattr(sampler, "_avoid_premature_stop", False)
    if is_strict:
        sampler._avoid_premature_stop = False  # noqa: SLF001 - Optuna has no other way
    try:
        yield
    finally:
        if is_strict:
            sampler._avoid_premature_stop = True  # noqa: SLF001


def _select_own_pruner(pruner: Any) -> Any:
    """Select a study's pruner if it adds rules of its own; ``None`` if the rungs replace it, with a warning."""
    from optuna import pruners

    replaced = (
        pruners.NopPruner,
        pruners.PercentilePruner,
        pruners.SuccessiveHalvingPruner,
        pruners.HyperbandPruner,
    )
    if not isinstance(pruner, replaced):
        return pruner
    # a study without one has the median pruner
    if not isinstance(pruner, (pruners.NopPruner, pruners.MedianPruner)):
        _warn(f"the rungs of the search replace {type(pruner).__name__}")
    return None
