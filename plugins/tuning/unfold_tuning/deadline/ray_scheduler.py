"""Ray Tune under a deadline: a scheduler of successive halving with barriers, for any searcher and trainable.

Trials pause at a rung until all trials of the stage have reached it, as in Ray's own HyperBand scheduler; the best
continue from their checkpoints. Whatever the limits leave no room for is not begun, or stopped. After each barrier the
autoscaler is informed of how many trials continue.

Ray restores trials and searcher of an interrupted experiment, but not its scheduler. The state here is therefore stored
beside Ray's own after every result, and ``Tuner.restore`` continues with the same deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from unfold_tuning.deadline.limits import LimitKeeper, parse_limits
from unfoldkit.api import user_error

STATE_FILE = "unfold-scheduler.json"
SNAPSHOT_VARIABLE = "TUNE_GLOBAL_CHECKPOINT_S"
"""Ray's period of storing the state of an experiment; by default ten seconds; a crash repeats their iterations."""


class UnfoldScheduler(TrialScheduler):  # type: ignore[misc]
    """A scheduler for ``TuneConfig(scheduler=...)``; ``metric`` and ``mode`` are those of the ``TuneConfig``.

    Args:
        deadline: From the first trial on, such as ``"2h"``, or seconds.
        num_samples: Trials of the search. Where the ``TuneConfig`` has more, or -1, the others are not begun; where it
            has fewer, the search has as many.
        max_t: Units of ``time_attr`` that the best trial runs.
        budget: The bill at which trials stop, with their next result, such as ``"$40"``; needs ``usd_per_hour``.
        usd_per_hour: Price of the resources of one trial.
        grace_period: Units that every trial runs.
        reduction_factor: The best 1/factor continue.
        time_attr: The result that counts.
        confidence: Probability with which what is begun shall end in time.
    """

    def __init__(
        self,
        *,
        deadline: str | float,
        num_samples: int,
        max_t: int,
        budget: str | float | None = None,
        usd_per_hour: float | None = None,
        grace_period: int = 1,
        reduction_factor: int = 3,
        time_attr: str = "training_iteration",
        confidence: float = 0.95,
    ) -> None:
        """Check the limits; the clock starts with the first trial."""
        super().__init__()
        if num_samples < 1 or not 1 <= grace_period <= max_t or reduction_factor < 2:
            raise user_error("num_samples, grace_period, max_t or reduction_factor make no sense together")
        self.keeper = LimitKeeper(
            limits=parse_limits(deadline, budget, usd_per_hour, confidence),
            slots=1,
            trials=num_samples,
            min_steps=grace_period,
            max_steps=max_t,
            eta=reduction_factor,
        )
        self._metric: str | None = None
        self.mode = "max"
        self.time_attr = time_attr
        self.stage = 0
        self.steps: dict[str, int] = {}
        self.values: dict[str, dict[int, float]] = {}
        self.numbers: dict[str, int] = {}
        self.reported_at: dict[str, float] = {}
        self.ended: set[str] = set()
        self.survivors: set[str] = set()
        self.is_full = False
        self.is_restored = False
        self.keeper.warm_up()
        os.environ.setdefault(SNAPSHOT_VARIABLE, "0")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Continue as the scheduler of a restored experiment."""
        self.__dict__.update(state)
        os.environ.setdefault(SNAPSHOT_VARIABLE, "0")

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ARG002 - Ray's
        """See Ray's ``TrialScheduler``."""
        self._metric, self.mode = metric or self._metric, mode or self.mode
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``."""
        if self._metric is None:
            raise user_error("no metric to rank trials by", hint='write TuneConfig(metric="loss", mode="min")')
        if not self.is_restored:
            self.is_restored = True
            self._require_free_searcher(tune_controller)
            self._load_state(trial)
        self.keeper.began = self.keeper.began or self.keeper.wall()
        is_known = trial.trial_id in self.numbers
        if not is_known and (self.stage or len(self.numbers) >= self.keeper.trials or self.keeper.is_over()):
            self.ended.add(trial.trial_id)
            tune_controller.stop_trial(trial)
            search = getattr(tune_controller, "search_alg", None)
            if search is not None:
                # a searcher without end would go on for ever
                search.set_finished()
            return
        self.numbers.setdefault(trial.trial_id, len(self.numbers))
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            # restored, and not to be continued
            self.ended.add(trial.trial_id)
        elif (self.is_full and not is_known) or trial.trial_id in self.ended:
            self.ended.add(trial.trial_id)
            tune_controller.stop_trial(trial)
        elif is_known and trial.last_result:
            self._record(trial, trial.last_result, is_timed=False)

    def _require_free_searcher(self, tune_controller: Any) -> None:
        """Require a searcher that suggests every trial of the first stage while others wait at its rung.

        Raises:
            UnfoldError: It waits for some of them to end before it suggests more.
        """
        search = getattr(tune_controller, "search_alg", None)
        limit = getattr(getattr(search, "searcher", search), "max_concurrent", 0) or 0
        if 0 < limit < self.keeper.trials:
            message = f"the searcher suggests {limit} trials at a time, but all {self.keeper.trials} wait at a rung"
            hint = (
                "leave out max_concurrent_trials and ConcurrencyLimiter; tune.with_resources bounds what runs at once"
            )
            raise user_error(message, hint=hint)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``: the stage goes on without the trial, unless Ray adds it again at once."""
        # Ray marks a trial that it retries before it calls this, and one that is lost after it
        if trial.status != Trial.ERROR:
            self._end(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """See Ray's ``TrialScheduler``: a trial that ends by itself has reached every rung."""
        self._record(trial, result)
        if self.values.get(trial.trial_id):
            self.steps[trial.trial_id] = max(self.steps[trial.trial_id], self.keeper.rungs[-1])
        self._end(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See Ray's ``TrialScheduler``."""
        self._end(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See Ray's ``TrialScheduler``: pause at a rung until the stage has ended."""
        self._record(trial, result)
        self._count_slots(tune_controller)
        decision = self._decide(tune_controller, trial)
        self._store_state(trial)
        return decision

    def _decide(self, tune_controller: Any, trial: Trial) -> str:
        rungs = self.keeper.rungs
        if self.keeper.is_over() or self.steps[trial.trial_id] >= rungs[-1]:
            self.ended.add(trial.trial_id)
            self._end_stage_if_complete(tune_controller, trial)
            return str(TrialScheduler.STOP)
        if self.steps[trial.trial_id] < rungs[self.stage]:
            return str(TrialScheduler.CONTINUE)
        self._end_stage_if_complete(tune_controller, trial)
        if trial.trial_id in self.ended:
            return str(TrialScheduler.STOP)
        is_running_on = self.steps[trial.trial_id] < rungs[self.stage]
        return str(TrialScheduler.CONTINUE if is_running_on else TrialScheduler.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """See Ray's ``TrialScheduler``: survivors first, then new trials as long as they end in time."""
        if self.keeper.began and self.keeper.is_over():
            self._stop_all(tune_controller)
            return None
        self._count_slots(tune_controller)
        self._accept_fewer_trials(tune_controller)
        trials, rung = tune_controller.get_trials(), self.keeper.rungs[self.stage]
        waiting = [trial for trial in trials if trial.status in (Trial.PENDING, Trial.PAUSED)]
        waiting = [trial for trial in waiting if trial.trial_id not in self.ended]
        begun = [trial for trial in waiting if trial.trial_id in self.reported_at]
        members = self.survivors if self.stage else self.reported_at.keys()
        open_trials = [trial for trial in begun if trial.trial_id in members]
        open_trials = [trial for trial in open_trials if self.steps.get(trial.trial_id, 0) < rung]
        if open_trials:
            return open_trials[0]
        new = [trial for trial in waiting if trial.trial_id not in self.reported_at]
        return self._choose_new_trial(tune_controller, new[0], rung) if new and not self.stage else None

    def _accept_fewer_trials(self, tune_controller: Any) -> None:
        """Search with as many trials as there are, once the searcher has no more."""
        search = getattr(tune_controller, "search_alg", None)
        count = len(self.numbers)
        if self.stage or self.is_full or search is None or not 0 < count < self.keeper.trials:
            return
        if search.is_finished():
            self.keeper.notes.append(f"stage 1: {count} of {self.keeper.trials} trials, the searcher has no more")
            self.keeper.trials, self.is_full = count, True
            self._end_stage_if_complete(tune_controller, next(iter(tune_controller.get_trials())))

    def _choose_new_trial(self, tune_controller: Any, trial: Trial, rung: int) -> Trial | None:
        """Choose a trial that has not begun, if it ends in time; give up all of them if nothing runs any more."""
        active = [name for name in self.reported_at if name not in self.ended]
        open_steps = [rung - self.steps.get(name, 0) for name in active if self.steps.get(name, 0) < rung]
        if self.keeper.can_begin_trial(len(self.reported_at), open_steps):
            self.reported_at[trial.trial_id] = self.keeper.wall()
            return trial
        if not open_steps:
            self._give_up_pending(tune_controller, len(self.reported_at))
            self._end_stage_if_complete(tune_controller, trial)
            return self.choose_trial_to_run(tune_controller)
        return None

    def debug_string(self) -> str:
        """See Ray's ``TrialScheduler``."""
        left_s = self.keeper.compute_time_left_s() if self.keeper.began else self.keeper.limits.deadline_s
        notes = "; ".join(self.keeper.notes[-2:])
        return f"unfold: stage {self.stage + 1} of {len(self.keeper.rungs)}, {left_s:.0f} s left {notes}"

    def _record(self, trial: Trial, result: dict[str, Any], *, is_timed: bool = True) -> None:
        steps, now = int(result.get(self.time_attr, 0)), self.keeper.wall()
        value = result.get(str(self._metric))
        if value is not None:
            self.values.setdefault(trial.trial_id, {})[steps] = float(value)
        if is_timed and steps > self.steps.get(trial.trial_id, 0):
            seconds = float(result.get("time_this_iter_s") or now - self.reported_at.get(trial.trial_id, now))
            self.keeper.record_step(self.numbers.get(trial.trial_id, 0), steps, seconds)
        self.steps[trial.trial_id] = max(steps, self.steps.get(trial.trial_id, 0))
        self.reported_at[trial.trial_id] = now

    def _count_slots(self, tune_controller: Any) -> None:
        running = sum(trial.status == Trial.RUNNING for trial in tune_controller.get_trials())
        self.keeper.slots = max(self.keeper.slots, running)

    def _end(self, tune_controller: Any, trial: Trial) -> None:
        self.ended.add(trial.trial_id)
        self._end_stage_if_complete(tune_controller, trial)
        if self.stage and self.numbers.keys() <= self.ended:
            # a request lasts until the next one, and would keep nodes after the search
            self._inform_autoscaler(trial, 0)

    def _end_stage_if_complete(self, tune_controller: Any, current: Trial) -> None:
        """End the stage once every trial of it has reached the rung or ended, and none is still to begin."""
        rungs = self.keeper.rungs
        while self.stage < len(rungs) - 1:
            rung = rungs[self.stage]
            members = self.survivors if self.stage else set(self.numbers)
            if self.stage == 0 and len(self.numbers) < self.keeper.trials and not self.is_full:
                return
            if any(self.steps.get(name, 0) < rung and name not in self.ended for name in members):
                return
            reached = [name for name in members if self.steps.get(name, 0) >= rung and self.values.get(name)]
            ranked = sorted(reached, key=lambda name: self._rank_key(name, rung))
            self.stage += 1
            count = self.keeper.count_survivors(self.stage, len(ranked)) if ranked else 0
            self.survivors = set(ranked[:count])
            self._store_state(current)
            self._stop_losers(tune_controller, current, members)
            self._inform_autoscaler(current, count)
            if any(name not in self.ended for name in self.survivors):
                return

    def _rank_key(self, name: str, rung: int) -> tuple[bool, float, int]:
        values = self.values[name]
        value = values[max((step for step in values if step <= rung), default=min(values))]
        is_nan = value != value  # noqa: PLR0124
        sign = -1.0 if self.mode == "max" else 1.0
        return is_nan, 0.0 if is_nan else sign * value, self.numbers[name]

    def _stop_losers(self, tune_controller: Any, current: Trial, members: set[str]) -> None:
        for trial in tune_controller.get_trials():
            if trial.trial_id not in members or trial.trial_id in self.survivors or trial.trial_id in self.ended:
                continue
            self.ended.add(trial.trial_id)
            # the trial that reports is stopped by what on_trial_result returns
            if trial is not current:
                tune_controller.stop_trial(trial)

    def _give_up_pending(self, tune_controller: Any, begun: int) -> None:
        """Stop trials that would be late before they begin, so that the stage can end."""
        self.keeper.note_fewer_trials(begun)
        self.is_full = True
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PENDING and trial.trial_id not in self.reported_at:
                self.ended.add(trial.trial_id)
                tune_controller.stop_trial(trial)

    def _stop_all(self, tune_controller: Any) -> None:
        """Stop whatever waits, as a limit is reached; running trials stop with their next result."""
        self.keeper.note_limit()
        for trial in tune_controller.get_trials():
            if trial.status in (Trial.PENDING, Trial.PAUSED):
                self.ended.add(trial.trial_id)
                tune_controller.stop_trial(trial)

    def _inform_autoscaler(self, trial: Trial, count: int) -> None:
        """Request the resources of the trials that continue; a cluster without an autoscaler ignores it."""
        from ray.autoscaler.sdk import request_resources

        bundles = trial.placement_group_factory.bundles
        with contextlib.suppress(Exception):
            request_resources(bundles=[bundle for _ in range(min(count, self.keeper.slots)) for bundle in bundles])

    # what Ray does not restore

    def _store_state(self, trial: Trial) -> None:
        """Store what Ray does not restore beside the state of the experiment, in one step."""
        storage = getattr(trial, "storage", None)
        if storage is None:
            return
        state = {
            "began": self.keeper.began,
            "stage": self.stage,
            "is_full": self.is_full,
            "trials": self.keeper.trials,
            "numbers": self.numbers,
            "steps": self.steps,
            "values": self.values,
            "begun": sorted(self.reported_at),
            "ended": sorted(self.ended),
            "survivors": sorted(self.survivors),
            "seconds": self.keeper.steps,
            "notes": self.keeper.notes,
        }
        path = f"{storage.experiment_fs_path}/{STATE_FILE}"
        with storage.storage_filesystem.open_output_stream(f"{path}.part") as file:
            file.write(json.dumps(state).encode())
        storage.storage_filesystem.move(f"{path}.part", path)

    def _load_state(self, trial: Trial) -> None:
        """Load what an earlier process stored of this experiment; nothing if it is new, even in the same folder.

        Raises:
            UnfoldError: The file is not one of this scheduler.
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
            raise user_error(f"the state of the scheduler cannot be read: {error}", file=path) from error
        try:
            if trial.trial_id not in state["numbers"]:
                return
            self.keeper.began, self.stage, self.is_full = float(state["began"]), int(state["stage"]), state["is_full"]
            self.keeper.trials = int(state.get("trials", self.keeper.trials))
            self.numbers, self.steps = dict(state["numbers"]), dict(state["steps"])
            self.values = {
                name: {int(step): float(value) for step, value in values.items()}
                for name, values in state["values"].items()
            }
            self.reported_at = dict.fromkeys(state["begun"], self.keeper.wall())
            self.ended, self.survivors = set(state["ended"]), set(state["survivors"])
            seconds = {int(trial): items for trial, items in state["seconds"].items()}
            self.keeper.steps = {trial: [(end, value) for end, value in items] for trial, items in seconds.items()}
            self.keeper.notes = list(state["notes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise user_error("this is no state of the scheduler", file=path) from error
