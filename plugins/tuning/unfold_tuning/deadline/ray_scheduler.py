"""Ray Tune under a deadline: a scheduler of successive halving, Hyperband or ASHA, for any searcher and trainable.

Trials pause at a rung, and the best continue from their checkpoints. Trials for which the limits leave no
room are not started, or are stopped. The autoscaler is informed of how many trials run or may run.

Ray starts every pending trial as soon as it has the resources, whatever a scheduler chooses. Trials that have not begun
are therefore held as paused ones.

Ray restores trials and searcher of an interrupted experiment, but not its scheduler. The state here is therefore stored
beside Ray's own after every result, and ``Tuner.restore`` continues with the same deadline.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.result import SHOULD_CHECKPOINT
from ray.tune.schedulers import TrialScheduler
from ray.tune.stopper import TimeoutStopper
from ray.tune.trainable import FunctionTrainable, Trainable

from unfold_tuning.deadline.halving_search import HalvingSearch, check_method
from unfold_tuning.deadline.limits import LimitKeeper, SteadyClock, parse_limits
from unfold_tuning.deadline.ray_storage import find_torn_file, restore_results, store_whole_files
from unfold_tuning.deadline.waiting_trials import RaySearcher
from unfoldkit.api import did_you_mean, format_count, user_error

STATE_FILE = "unfold-scheduler.state"
"""Ray stages each JSON file and pickle of a restored experiment, and stores it again over what is newer."""
SNAPSHOT_VARIABLE = "TUNE_GLOBAL_CHECKPOINT_S"
"""Ray's period of storing the state of an experiment; by default ten seconds; a crash repeats their iterations."""
EXCESS = "no more than {trials} trials begin: num_samples of the scheduler counts all trials, each point of a grid too"
FEWER = "stage 1: {count} of {trials} trials, the searcher has no more: num_samples of the TuneConfig bounds them too"
LIFTED = "at most {limit} at once; the searcher suggests more, because others wait at rungs"
NEW_SEARCH = "begin another search under RunConfig(name=...); the results so far stay in the folders of the trials"
NO_NUMBER = "trials report a {kind} as {metric}, which is no number: they rank last"
NO_CHECKPOINT = "trials pause at a rung without a checkpoint: those that continue begin again"
GIVEN_UP = "trial {trial} failed {count} times without a result between: the search goes on without it"
MAX_RETRIES = 12
"""A trial that fails as often without a result between is not retried, whatever ``max_failures`` allows."""
USUAL_MAX_T = 100
"""Ray's own default for ``ASHAScheduler``."""
_SEARCH_FIELDS = ("numbers", "brackets", "levels", "steps", "values", "stages", "stage_trials", "is_full", "supply")


class UnfoldScheduler(TrialScheduler):  # type: ignore[misc]
    """A scheduler for ``TuneConfig(scheduler=...)``.

    Args:
        deadline: Time from the first trial, such as ``"2h"`` or a ``timedelta``, or seconds.
        num_samples: Trials of the search, as many as the searcher has if left out. Where the ``TuneConfig`` has more,
            or -1, the others are not begun; where it has fewer, the search has as many.
        max_t: Units of ``time_attr`` that the best trial runs; if left out, those at which the ``RunConfig`` stops
            trials, else 100 as for ``ASHAScheduler``.
        metric: Ranks trials; that of the ``TuneConfig`` if left out, as for the other schedulers of Ray.
        mode: ``min`` or ``max``; that of the ``TuneConfig`` if left out.
        method: ``sha``, successive halving with barriers; ``hyperband``, several brackets of it that share the trials;
            or ``asha``, without barriers and without a plan of the whole.
        budget: The bill at which trials stop, with their next result, such as ``"$40"``.
        usd_per_hour: Price of the resources of one trial; if left out, the trials share that of the machine.
        grace_period: Units that every trial runs.
        reduction_factor: The best 1/factor continue.
        time_attr: The result that counts.
        confidence: Probability that a trial or a step which is started ends in time.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        *,
        deadline: str | float | dt.timedelta,
        num_samples: int | None = None,
        max_t: int | None = None,
        metric: str | None = None,
        mode: str | None = None,
        method: str = "sha",
        budget: str | float | None = None,
        usd_per_hour: str | float | None = None,
        grace_period: int = 1,
        reduction_factor: int = 3,
        time_attr: str = "training_iteration",
        confidence: str | float = 0.95,
    ) -> None:
        """Check the limits; the clock starts with the first trial."""
        super().__init__()
        check_method(method)
        numbers = {
            "num_samples": num_samples,
            "max_t": max_t,
            "grace_period": grace_period,
            "reduction_factor": reduction_factor,
        }
        for name, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise user_error(f"{name} must be an integer, not {value!r}")
        # what is left out follows from the first trial
        trials, steps = (1 if num_samples is None else num_samples), (grace_period if max_t is None else max_t)
        if trials < 1 or not 1 <= grace_period <= steps or reduction_factor < 2:
            raise user_error("num_samples, grace_period, max_t or reduction_factor make no sense together")
        self.keeper = LimitKeeper(
            limits=parse_limits(deadline, budget, usd_per_hour, confidence),
            slots=1,
            trials=int(trials),
            min_steps=int(grace_period),
            max_steps=int(steps),
            eta=int(reduction_factor),
            method=method,
        )
        if mode not in (None, "min", "max"):
            raise user_error(f"mode must be min or max, not {mode!r}")
        self._metric, self._mode = metric, mode
        self.time_attr = time_attr
        self.searcher: Any = None
        self.num_samples, self.max_t = num_samples, max_t
        self.is_unpickled = False
        self.deadline_s = self.keeper.limits.deadline_s
        self._begin_experiment()
        self.keeper.warm_up()
        os.environ.setdefault(SNAPSHOT_VARIABLE, "0")

    def _begin_experiment(self) -> None:
        """Forget the trials of the experiment before: a scheduler may serve one ``fit`` after another."""
        self.keeper = replace(
            self.keeper,
            limits=replace(self.keeper.limits, deadline_s=self.deadline_s),
            slots=1,
            trials=self.num_samples or 1,
            began=0.0,
            paid_slot_s=0.0,
            changed_at=0.0,
            steps={},
            notes=[],
            repeats_steps=False,
        )
        self.search = HalvingSearch(keeper=self.keeper, is_maximized=self._mode != "min")
        self.reported_at: dict[str, float] = {}
        self.last_report: tuple[str, dict[str, Any]] = ("", {})
        self.added: set[str] = set()
        self.tags: dict[str, str] = {}
        self.retries = Counter[str]()
        self.requested = 0
        self.max_running = 0
        self.is_restored = False
        self.is_updating = False
        self.learner: RaySearcher | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the searcher, which Ray stores itself, and what stands before it."""
        return {**self.__dict__, "searcher": None, "learner": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Continue as the scheduler of a restored experiment."""
        self.__dict__.update(state)
        self.is_unpickled = True
        # it may be another machine, or the same one after a boot
        self.keeper.wall = SteadyClock()
        # it may have served another experiment before Ray stored it
        self._begin_experiment()
        os.environ.setdefault(SNAPSHOT_VARIABLE, "0")

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ARG002 - Ray's
        """See Ray's ``TrialScheduler``: return whether the ``TuneConfig`` agrees with what was set before."""
        settings = ((self._metric, metric), (self._mode, mode))
        if any(before and value and before != value for before, value in settings):
            return False
        self._metric, self._mode = metric or self._metric, mode or self._mode
        self.search.is_maximized = self._mode != "min"
        return True

    # what Ray calls when trials come and go

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``: hold a trial that may not run yet."""
        if self._metric is None or self._mode is None:
            missing = "metric" if self._metric is None else "mode"
            raise user_error(f"no {missing} to rank trials by", hint='write TuneConfig(metric="loss", mode="min")')
        # Ray wraps its controller again at every call, but an experiment has one searcher
        searcher = getattr(tune_controller, "search_alg", None)
        if self.searcher is not None and searcher is not self.searcher:
            self._begin_experiment()
        self.searcher = searcher
        self._start_clock(tune_controller, trial)
        name, is_excess = trial.trial_id, len(self.added) >= self.keeper.trials
        if name in self.added:
            self._keep_or_give_up(tune_controller, trial)
            return
        self.added.add(name)
        self._restore_results(trial)
        self._forget_restarted(trial)
        # the result grid expects a folder of every trial, and Ray creates it for those that start
        trial.init_local_path()
        if name in self.search.failed and trial.status != Trial.ERROR:
            # restored with resume_errored
            self.search.revive_trial(name)
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            # restored, and not to be continued
            self._note_restored_end(trial)
        elif is_excess or name in self.search.ended or self.keeper.is_over():
            if is_excess:
                self._warn_once(EXCESS.format(trials=self.keeper.trials))
            elif self.keeper.is_over():
                self._warn_once("the deadline, which began with the first start, or the budget has been reached")
            self._refuse(tune_controller, trial)
        elif not self._may_start(tune_controller, trial):
            trial.set_status(Trial.PAUSED)

    def _restore_results(self, trial: Trial) -> None:
        """Give a restored trial what is counted here, but what Ray had not stored before a crash.

        Ray's snapshot may hold a report without the checkpoint that came with it.
        """
        if self.search.steps.get(trial.trial_id, 0) >= max(self._read_steps(trial.last_result), 1):
            restore_results(trial, self.last_report)

    def _keep_or_give_up(self, tune_controller: Any, trial: Trial) -> None:
        """Let a trial that Ray retries keep its place, unless it always fails: its stage would wait for it for ever."""
        self.retries[trial.trial_id] += 1
        if self.retries[trial.trial_id] < MAX_RETRIES:
            return
        self._warn_once(GIVEN_UP.format(trial=trial.trial_id, count=MAX_RETRIES))
        tune_controller._set_trial_status(trial, Trial.ERROR)  # noqa: SLF001 - which Ray opens to schedulers
        self.search.fail_trial(trial.trial_id)
        if self.searcher is not None:
            self.searcher.on_trial_complete(trial.trial_id, error=True)
        self._update(tune_controller, trial)

    def _start_clock(self, tune_controller: Any, trial: Trial) -> None:
        """Start the clock with the first trial, or continue that of the experiment which is restored."""
        if not self.is_restored:
            self._require_checkpoints(trial)
            store_whole_files(tune_controller)
            self._size_search(trial)
            self.learner = RaySearcher(self.searcher, self.search.list_waiting)
            self._load_state(trial)
            self._lift_limit(tune_controller)
            self._share_machine(trial)
            self.keeper.began = self.keeper.began or self.keeper.wall()
            self._observe_time_budget(tune_controller)
            # an error before makes Ray start over, and must stop that too
            self.is_restored = True

    def _observe_time_budget(self, tune_controller: Any) -> None:
        """Plan for Ray's ``time_budget_s`` too: it ends every trial, wherever the search stands."""
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        stopper = getattr(controller, "_stopper", None)
        stoppers = [item for item in getattr(stopper, "_stoppers", [stopper]) if isinstance(item, TimeoutStopper)]
        passed_s = self.keeper.wall() - self.keeper.began
        ends = [passed_s + item._budget for item in stoppers]  # noqa: SLF001 - what is left of it
        limits = self.keeper.limits
        self.keeper.limits = replace(limits, deadline_s=min([limits.deadline_s, *ends]))

    def _size_search(self, trial: Trial) -> None:
        """Take from Ray how many trials there are, and how long the best runs, where the scheduler was not given it.

        Raises:
            UnfoldError: The searcher has no end.
        """
        if self.num_samples is None:
            total = getattr(self.searcher, "total_samples", 0)
            if not 0 < total < sys.maxsize:
                hint = "write UnfoldScheduler(num_samples=64, ...)"
                raise user_error("num_samples: the searcher does not end, so the search has no size", hint=hint)
            self.keeper.trials = int(total)
        if self.max_t is None:
            stop = getattr(trial, "stopping_criterion", None) or {}
            self.keeper.max_steps = max(self.keeper.min_steps, int(stop.get(self.time_attr, USUAL_MAX_T)))
        self.search = HalvingSearch(keeper=self.keeper, is_maximized=self._mode != "min")

    def _share_machine(self, trial: Trial) -> None:
        """Share the price of this machine among its trials, where the budget came without the price of one.

        Raises:
            UnfoldError: The machine is rented, and it is not the only one of the cluster.
        """
        import ray

        machine = self.keeper.limits.machine
        if machine is None:
            return
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]} if ray.is_initialized() else ()
        if machine.usd_per_hour and len(hosts) > 1:
            message = f"a budget needs the price of a trial's resources: the cluster has {len(hosts)} hosts"
            raise user_error(message, hint="write usd_per_hour=1.5")
        places = min(self._count_places(trial), self.max_running or self.keeper.trials, self.keeper.trials)
        self.keeper.share_machine(max(1, places))
        self._warn_once(machine.note)

    def _may_start(self, tune_controller: Any, trial: Trial) -> bool:
        """Return whether Ray may start a trial that it adds: a restored one that may run, or the first new one."""
        if not self._is_new(trial):
            if trial.last_result:
                self._record(trial, trial.last_result, is_timed=False)
            return self.search.needs_steps(trial.trial_id)
        others = (other for other in tune_controller.get_trials() if other is not trial)
        return not any(other.status == Trial.PENDING and self._is_new(other) for other in others)

    def _forget_restarted(self, trial: Trial) -> None:
        """Forget the trial that Ray begins again under another identifier, as ``restart_errored=True`` demands."""
        tag = getattr(trial, "experiment_tag", None)
        before = next(
            (name for name, other in self.tags.items() if tag and other == tag and name != trial.trial_id), None
        )
        if before is not None:
            self.search.revive_trial(before)
            del self.tags[before]
        if tag:
            self.tags[trial.trial_id] = tag

    def _is_new(self, trial: Trial) -> bool:
        return trial.trial_id not in self.search.brackets and trial.trial_id not in self.search.ended

    def _note_restored_end(self, trial: Trial) -> None:
        if trial.trial_id in self.search.ended:
            return
        if trial.status == Trial.ERROR:
            self.search.fail_trial(trial.trial_id)
            return
        if trial.last_result:
            self._record(trial, trial.last_result, is_timed=False)
        self.search.complete_trial(trial.trial_id)

    def _warn_once(self, note: str) -> None:
        """Note and log something once."""
        if self.keeper.note_once(note):
            logging.getLogger("ray.tune").warning(note)

    def _refuse(self, tune_controller: Any, trial: Trial) -> None:
        """End a trial that is being added before it begins."""
        is_new = trial.trial_id not in self.search.ended
        self.search.ended.add(trial.trial_id)
        trial.set_status(Trial.TERMINATED)
        search = getattr(tune_controller, "search_alg", None)
        if search is not None and is_new:
            search.on_trial_complete(trial.trial_id)
            # a searcher without end would go on for ever
            search.set_finished()

    def _lift_limit(self, tune_controller: Any) -> None:
        """Let the searcher suggest every trial, and bound here how many run: those that wait at a rung do not.

        Raises:
            UnfoldError: It suggests trials in batches.
        """
        search = getattr(tune_controller, "search_alg", None)
        limiter: Any = getattr(search, "searcher", search)
        limit = getattr(limiter, "max_concurrent", 0) or 0
        if not 0 < limit < self.keeper.trials:
            return
        if getattr(limiter, "batch", False):
            message = f"the searcher suggests batches of {limit} trials, but all {self.keeper.trials} wait at a rung"
            raise user_error(message, hint="leave out batch=True of ConcurrencyLimiter")
        self.max_running = limit
        limiter.max_concurrent = self.keeper.trials
        if not getattr(limiter, "_limit_concurrency", True):
            limiter.searcher.set_max_concurrency(self.keeper.trials)
        self._warn_once(LIFTED.format(limit=format_count(limit, "trial")))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``: the stage goes on without the trial, unless Ray adds it again at once."""
        # Ray marks a trial that it retries before it calls this, and one that is lost after it
        if trial.status != Trial.ERROR:
            self.search.fail_trial(trial.trial_id)
            self._update(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """See Ray's ``TrialScheduler``: a trial that ends by itself has reached every rung."""
        if trial.trial_id not in self.search.ended:
            self._record(trial, result)
            self.search.complete_trial(trial.trial_id)
        self._update(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``."""
        self.search.ended.add(trial.trial_id)
        self._update(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See Ray's ``TrialScheduler``: pause at a rung until the trial may continue."""
        if self._is_new(trial):
            self.search.begin_trial(trial.trial_id, self.search.choose_bracket() or self.search.list_open_brackets()[0])
        self._require_time_attr(trial, result)
        # Ray flattens the configuration too, which it restores itself
        report = {name: value for name, value in result.items() if not name.startswith("config/")}
        self.last_report = (trial.trial_id, report)
        self.retries.pop(trial.trial_id, None)
        self._record(trial, result)
        self._count_slots(tune_controller, trial)
        if not _can_continue(trial, result) and not self.search.needs_steps(trial.trial_id):
            # before it is decided which trials continue, as that takes longer
            self.keeper.repeats_steps = True
        decision = self._decide(tune_controller, trial)
        if decision == TrialScheduler.PAUSE and not _can_continue(trial, result):
            self._warn_once(NO_CHECKPOINT)
        if self.learner is not None:
            steps = self.search.steps[trial.trial_id]
            self.learner.note_result(trial.trial_id, result, steps, is_pause=decision == TrialScheduler.PAUSE)
        self._store_state(trial)
        return decision

    def _require_time_attr(self, trial: Trial, result: dict[str, Any]) -> None:
        """Require that the first result of a trial counts its steps: without a count no trial reaches a rung.

        Raises:
            UnfoldError: It does not.
        """
        if self.time_attr not in result and not self.search.steps.get(trial.trial_id):
            names = sorted(name for name, value in result.items() if isinstance(value, Real))
            hint = did_you_mean(self.time_attr, names) or 'leave time_attr out, or write time_attr="training_iteration"'
            raise user_error(f"time_attr: no result has {self.time_attr!r}", hint=hint)

    def _require_checkpoints(self, trial: Trial) -> None:
        """Require a trainable class that can pause.

        Raises:
            UnfoldError: It saves no checkpoints.
        """
        kind = _load_trainable(trial)
        has_rungs = self.keeper.min_steps < self.keeper.max_steps
        if kind is not None and has_rungs and kind.save_checkpoint is Trainable.save_checkpoint:
            message = f"{kind.__name__} has no save_checkpoint, without which its trials cannot pause at a rung"
            raise user_error(message, hint="define save_checkpoint and load_checkpoint, or write grace_period=max_t")

    def _decide(self, tune_controller: Any, trial: Trial) -> str:
        name = trial.trial_id
        is_limit = self.keeper.is_last_report(self.search.numbers[name])
        if is_limit or self.search.has_reached_end(name):
            if is_limit and not self.search.has_reached_end(name):
                self.keeper.note_limit()
            self.search.ended.add(name)
        if name not in self.search.ended and self.search.needs_steps(name):
            return str(TrialScheduler.CONTINUE)
        self._update(tune_controller, trial, is_reporting=True)
        if name in self.search.ended:
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE if self.search.needs_steps(name) else TrialScheduler.PAUSE)

    # which trial runs next

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """See Ray's ``TrialScheduler``: trials that continue first, then new ones as long as they end in time."""
        trials = tune_controller.get_trials()
        if not self.keeper.began or not trials:
            return None
        if self.keeper.is_over():
            self._stop_waiting(tune_controller)
            return None
        self._count_slots(tune_controller, trials[0])
        self._accept_fewer_trials(tune_controller)
        self._update(tune_controller, trials[0])
        while True:
            if self._begin_pending(tune_controller):
                return None
            status = {trial.trial_id: trial for trial in tune_controller.get_trials()}
            active = sum(trial.status in (Trial.RUNNING, Trial.PENDING) for trial in status.values())
            if active >= self.keeper.slots:
                return None
            waiting = [status[name] for name in self.search.list_runnable() if name in status]
            chosen = next((trial for trial in waiting if trial.status == Trial.PAUSED), None)
            chosen = chosen or self._begin_held(tune_controller)
            if chosen is not None or active:
                self._note_start(chosen)
                return chosen
            if any(trial.status == Trial.PAUSED for trial in status.values()) and not self.search.advance():
                self._stop_waiting(tune_controller)
            elif not any(trial.status == Trial.PAUSED for trial in status.values()):
                return None
            self._update(tune_controller, trials[0])

    def _note_start(self, trial: Trial | None) -> None:
        """Note when a trial starts or continues: until its next result, its slot is taken."""
        if trial is not None:
            self.reported_at[trial.trial_id] = self.keeper.wall()
            if self.learner is not None:
                self.learner.note_start(trial.trial_id)

    def _begin_pending(self, tune_controller: Any) -> bool:
        """Begin a trial that Ray is about to start, or hold it if it ends too late; return whether one begins."""
        for trial in tune_controller.get_trials():
            if trial.status != Trial.PENDING or not self._is_new(trial):
                continue
            bracket = self.search.choose_bracket()
            if bracket is not None:
                self._begin(trial, bracket)
                return True
            tune_controller._set_trial_status(trial, Trial.PAUSED)  # noqa: SLF001 - which Ray opens to schedulers
        return False

    def _begin_held(self, tune_controller: Any) -> Trial | None:
        """Begin the first trial that is held, if it ends in time."""
        held = (trial for trial in tune_controller.get_trials() if trial.status == Trial.PAUSED and self._is_new(trial))
        trial = next(held, None)
        bracket = None if trial is None else self.search.choose_bracket()
        if trial is None or bracket is None:
            return None
        self._begin(trial, bracket)
        return trial

    def _begin(self, trial: Trial, bracket: int) -> None:
        self.search.begin_trial(trial.trial_id, bracket)
        self.reported_at[trial.trial_id] = self.keeper.wall()
        # a crash before the first result must not move the deadline
        self._store_state(trial)

    def _accept_fewer_trials(self, tune_controller: Any) -> None:
        """Search with as many trials as there are, once the searcher has no more."""
        search, count = getattr(tune_controller, "search_alg", None), len(self.added)
        is_known = self.search.supply is not None or not 0 < count < self.keeper.trials
        if search is not None and not is_known and search.is_finished():
            self._warn_once(FEWER.format(count=count, trials=self.keeper.trials))
            self.search.limit_supply(count)

    def debug_string(self) -> str:
        """See Ray's ``TrialScheduler``."""
        left_s = self.keeper.compute_time_left_s() if self.keeper.began else self.keeper.limits.deadline_s
        notes = "; ".join(self.keeper.notes[-2:])
        stages = ", ".join(str(stage + 1) for stage in self.search.stages)
        return f"unfold: {self.keeper.method}, stage {stages}, {left_s:.0f} s left {notes}"

    def _record(self, trial: Trial, result: dict[str, Any], *, is_timed: bool = True) -> None:
        name, now = trial.trial_id, self.keeper.wall()
        steps, value = self._read_steps(result), result.get(str(self._metric))
        if is_timed and steps > self.search.steps.get(name, 0) and name in self.search.numbers:
            # Ray's own time of an iteration lacks the start of its actor, also after a pause
            seconds = now - self.reported_at[name] if name in self.reported_at else result.get("time_this_iter_s")
            self.keeper.record_step(self.search.numbers[name], steps, float(seconds or 0.0))
        number = None if value is None else _read_number(value)
        if number is None and value is not None:
            self._warn_once(NO_NUMBER.format(metric=self._metric, kind=type(value).__name__))
            number = math.nan
        self.search.record_report(name, steps, number)
        self.reported_at[name] = now

    def _read_steps(self, result: dict[str, Any]) -> int:
        steps = _read_number(result.get(self.time_attr, 0))
        return int(steps) if steps is not None and math.isfinite(steps) else 0

    def _count_slots(self, tune_controller: Any, trial: Trial) -> None:
        """Count the trials that can run at once: what the cluster holds now, at most as many as there are."""
        running = sum(other.status == Trial.RUNNING for other in tune_controller.get_trials())
        places = min(self._count_places(trial), self.max_running or self.keeper.trials)
        self.keeper.set_slots(min(max(1, running, places), max(self.keeper.trials, running)))

    def _count_places(self, trial: Trial) -> int:
        """Count how many trials the cluster has resources for."""
        import ray

        needed = trial.placement_group_factory.required_resources
        total = ray.cluster_resources() if ray.is_initialized() else {}
        places = [math.floor(total.get(name, 0.0) / amount) for name, amount in needed.items() if amount > 0]
        return min(places, default=self.keeper.trials)

    def _update(self, tune_controller: Any, current: Trial, *, is_reporting: bool = False) -> None:
        """Let trials continue that may, stop those that have lost, and request what all of these need."""
        if self.is_updating:
            # a trial that is stopped below calls this again
            return
        self.is_updating = True
        try:
            self._end_stages(tune_controller, current, is_reporting=is_reporting)
        finally:
            self.is_updating = False
        self._inform_autoscaler(current, self.search.count_wanted())

    def _end_stages(self, tune_controller: Any, current: Trial, *, is_reporting: bool) -> None:
        stages: list[int] | None = None
        while stages != self.search.stages:
            stages, losers = list(self.search.stages), self.search.update()
            if stages != self.search.stages:
                self._store_state(current)
            for trial in tune_controller.get_trials():
                # the trial that reports is stopped by what on_trial_result returns
                if trial.trial_id in losers and not (is_reporting and trial is current):
                    tune_controller.stop_trial(trial)

    def _stop_waiting(self, tune_controller: Any) -> None:
        """Stop what waits as nothing more fits, and as a limit is reached what runs too: its last result counts."""
        statuses = [Trial.PENDING, Trial.PAUSED]
        if self.keeper.is_over():
            statuses.append(Trial.RUNNING)
            self.keeper.note_limit()
            self._note_missing_resources(tune_controller)
        for trial in tune_controller.get_trials():
            if trial.status in statuses:
                self.search.ended.add(trial.trial_id)
                end_process = _hold_process(tune_controller, trial)
                tune_controller.stop_trial(trial)
                end_process()

    def _note_missing_resources(self, tune_controller: Any) -> None:
        """Note that no trial could run, because each needs more than the cluster has."""
        trial = next(iter(tune_controller.get_trials()), None)
        if trial is not None and not any(self.search.steps.values()) and self._count_places(trial) < 1:
            self._warn_once(f"no trial ran: each needs {trial.placement_group_factory.required_resources}")

    def _inform_autoscaler(self, trial: Trial, count: int) -> None:
        """Request the resources of the trials that may run; a cluster without an autoscaler ignores it."""
        if count == self.requested:
            return
        self.requested = count
        from ray.autoscaler.sdk import request_resources

        bundles = trial.placement_group_factory.bundles
        with contextlib.suppress(Exception):
            request_resources(bundles=[bundle for _ in range(count) for bundle in bundles])

    # what Ray does not restore

    def _store_state(self, trial: Trial) -> None:
        """Store what Ray does not restore beside the state of the experiment, in one step."""
        storage = getattr(trial, "storage", None)
        if storage is None:
            return
        keeper, search = self.keeper, self.search
        state = {
            "began": keeper.began,
            "slots": keeper.slots,
            "paid_slot_s": keeper.paid_slot_s,
            "changed_at": keeper.changed_at,
            "trials": keeper.trials,
            "added": sorted(self.added),
            "tags": self.tags,
            "last_report": self.last_report,
            "max_running": self.max_running,
            "seconds": keeper.steps,
            "notes": keeper.notes,
            "repeats_steps": keeper.repeats_steps,
            **{name: getattr(search, name) for name in _SEARCH_FIELDS},
            "ended": sorted(search.ended),
            "failed": sorted(search.failed),
            "shown": sorted(self.learner.shown) if self.learner is not None else [],
        }
        path = f"{storage.experiment_fs_path}/{STATE_FILE}"
        storage.storage_filesystem.create_dir(storage.experiment_fs_path, recursive=True)
        with storage.storage_filesystem.open_output_stream(f"{path}.part") as file:
            file.write(json.dumps(state, default=_to_plain, skipkeys=True).encode())
        storage.storage_filesystem.move(f"{path}.part", path)

    def _load_state(self, trial: Trial) -> None:
        """Load what an earlier process stored of this experiment; nothing if it is new, even in the same folder.

        Raises:
            UnfoldError: The file is not one of this scheduler, or a file of Ray's is torn: Ray then starts over.
        """
        storage = getattr(trial, "storage", None)
        if storage is None:
            return
        path = f"{storage.experiment_fs_path}/{STATE_FILE}"
        try:
            with storage.storage_filesystem.open_input_stream(path) as file:
                state = json.loads(file.readall())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            message = f"the state of the scheduler cannot be read: {error}"
            raise user_error(message, file=path, hint=NEW_SEARCH) from error
        try:
            tags = dict(state.get("tags", {}))
            is_restarted = self.is_unpickled and getattr(trial, "experiment_tag", None) in tags.values()
            is_known = is_restarted or trial.trial_id in state["added"]
            if is_known:
                self._restore_state(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise user_error("this is not a state of the scheduler", file=path, hint=NEW_SEARCH) from error
        torn = find_torn_file(storage) if self.is_unpickled and not is_known else None
        if torn is not None:
            raise user_error(
                "the file is incomplete, so Ray cannot restore the search and would begin another one",
                file=torn.path,
                hint=f"remove the file: Ray then restores from {torn.earlier}" if torn.earlier else NEW_SEARCH,
            )

    def _restore_state(self, state: dict[str, Any]) -> None:
        keeper, search = self.keeper, self.search
        keeper.began, keeper.trials = float(state["began"]), int(state["trials"])
        keeper.slots, keeper.paid_slot_s = int(state["slots"]), float(state["paid_slot_s"])
        keeper.changed_at, keeper.notes = float(state["changed_at"]), [str(note) for note in state["notes"]]
        self.max_running = int(state.get("max_running", 0))
        self.tags = {str(name): str(tag) for name, tag in state.get("tags", {}).items()}
        name, result = state.get("last_report", ("", {}))
        self.last_report = (str(name), dict(result))
        keeper.repeats_steps = bool(state.get("repeats_steps"))
        keeper.steps = {
            int(trial): [(float(end), float(seconds)) for end, seconds in items]
            for trial, items in state["seconds"].items()
        }
        for name in _SEARCH_FIELDS:
            kind = type(getattr(search, name))
            setattr(search, name, state[name] if name in ("is_full", "supply") else kind(state[name]))
        search.values = {
            name: {int(step): float(value) for step, value in values.items()}
            for name, values in state["values"].items()
        }
        search.ended, search.failed = set(state["ended"]), set(state["failed"])
        if self.learner is not None:
            self.learner.shown.update(state.get("shown", ()))


def _load_trainable(trial: Trial) -> type[Trainable] | None:
    """Load the class that a trial runs; ``None`` if it is not known here."""
    kind = trial.get_trainable_cls() if hasattr(trial, "get_trainable_cls") else None
    return kind if isinstance(kind, type) and issubclass(kind, Trainable) else None


def _hold_process(tune_controller: Any, trial: Trial) -> Callable[[], None]:
    """Return what ends the process of a running trial once Ray has stopped it: Ray awaits its step for ten seconds."""
    # Ray wraps its controller for schedulers, and warns of what they read through the wrapper
    controller = getattr(tune_controller, "_tune_controller", tune_controller)
    manager: Any = getattr(controller, "_actor_manager", None)
    actors: dict[Trial, Any] = getattr(controller, "_trial_to_actor", {})
    actor = next((actor for other, actor in actors.items() if other is trial), None)

    def end_process() -> None:
        if actor in getattr(controller, "_stopping_actors", ()) and manager.is_actor_started(actor):
            manager.remove_actor(tracked_actor=actor, kill=True)

    return end_process


def _can_continue(trial: Trial, result: dict[str, Any]) -> bool:
    """Return whether a trial that pauses continues where it was: it reports checkpoints, or Ray saves one."""
    kind = _load_trainable(trial)
    if kind is None or not issubclass(kind, FunctionTrainable):
        return True
    return bool(result.get(SHOULD_CHECKPOINT)) or bool(trial.has_checkpoint())


def _to_plain(value: Any) -> Any:
    """Return numbers of NumPy or PyTorch in a report as those of Python, and other objects as their text."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _read_number(value: Any) -> float | None:
    """Read a reported number, also as an array or a list of one; ``None`` if it is none."""
    for read in (float, lambda item: float(np.asarray(item, dtype=float).item())):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return read(value)
    return None
