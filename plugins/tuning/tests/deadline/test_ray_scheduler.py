"""Ray Tune under a deadline, with real raylets."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unfold_tuning import deadline
from unfold_tuning.deadline import limits
from unfold_tuning.deadline.machine_price import MachinePrice
from unfoldkit.api import UnfoldError

pytest.importorskip("ray.tune")
from unfold_tuning.deadline import ray_scheduler

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class FakeTrial(SimpleNamespace):
    """Stands for a trial of Ray."""

    def set_status(self, status: str) -> None:
        """See Ray."""
        self.status = status

    def init_local_path(self) -> None:
        """See Ray: it creates a folder."""
        self.has_folder = True


def make_storage(folder: Path) -> SimpleNamespace:
    """Return what stands for Ray's storage of an experiment on the local disk, in which no trial has a file."""
    from pyarrow.fs import LocalFileSystem

    return SimpleNamespace(
        experiment_fs_path=str(folder),
        trial_fs_path=str(folder / "trial"),
        storage_filesystem=LocalFileSystem(),
        current_checkpoint_index=-1,
    )


class _Wrapper:
    """Stands for what a scheduler sees of Ray's controller."""

    def __init__(self, controller: FakeController) -> None:
        self._controller = controller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class FakeController:
    """Stands for Ray's controller: runs trials one result at a time on two places, without processes.

    As Ray does, it starts every pending trial for which it has a place, whatever the scheduler chooses.
    """

    def _wrapped(self) -> Any:
        """Wrap this anew, as Ray does for every call of a scheduler."""
        return _Wrapper(self)

    def __init__(self, scheduler: Any, qualities: list[float], step_s: float, max_t: int) -> None:
        self.scheduler, self.step_s, self.max_t = scheduler, step_s, max_t
        self.qualities = qualities
        self.failing: dict[int, int] = {}
        self.always_failing: set[int] = set()
        self.silent_steps = 0
        self.forgets = False
        self.lost: set[int] = set()
        self.now = 1000.0
        scheduler.keeper.wall = lambda: self.now
        scheduler.set_search_properties("score", "max")
        factory = SimpleNamespace(bundles=[{"CPU": 1.0}], required_resources={"CPU": 1.0})
        self.trials = [
            FakeTrial(trial_id=str(index), status="PENDING", placement_group_factory=factory, last_result={})
            for index in range(len(qualities))
        ]
        self.added: list[Any] = []
        self.steps = [0] * len(qualities)
        self.most_at_once = 0
        self.search_alg: Any = None
        scheduler._count_places = lambda _: 2
        scheduler._inform_autoscaler = lambda *_: None
        self.max_results = 10**9

    def get_trials(self) -> list[Any]:
        """Return every trial that was added."""
        return self.added

    def _set_trial_status(self, trial: Any, status: str) -> None:
        trial.status = status

    def stop_trial(self, trial: Any) -> None:
        """Stop a trial, and notify the scheduler as Ray does."""
        if trial.status in ("PENDING", "PAUSED"):
            self.scheduler.on_trial_remove(self._wrapped(), trial)
            trial.status = "TERMINATED"
        elif trial.status == "RUNNING":
            self.scheduler.on_trial_complete(self._wrapped(), trial, trial.last_result)
            trial.status = "TERMINATED"

    def run(self) -> None:
        """Run until no trial is left that can run."""
        for trial in self.trials:
            self.added.append(trial)
            self.scheduler.on_trial_add(self._wrapped(), trial)
        while True:
            for _ in range(2):
                chosen = self.scheduler.choose_trial_to_run(self._wrapped())
                if chosen is not None:
                    assert chosen.status in ("PENDING", "PAUSED")
                    chosen.status = "PENDING"
                self._start_pending()
            running = [trial for trial in self.trials if trial.status == "RUNNING"]
            self.most_at_once = max(self.most_at_once, len(running))
            if not running:
                return
            self.now += self.step_s
            for trial in running:
                if sum(self.steps) >= self.max_results:
                    return
                if trial.status == "RUNNING":
                    self._step(trial)

    def _start_pending(self) -> None:
        pending = [trial for trial in self.trials if trial.status == "PENDING"]
        if pending and sum(trial.status == "RUNNING" for trial in self.trials) < 2:
            pending[0].status = "RUNNING"
            if self.forgets:
                self.steps[int(pending[0].trial_id)] = 0

    def _step(self, trial: Any) -> None:
        index = int(trial.trial_id)
        if self.failing.get(index) == self.steps[index]:
            self._fail(index, trial)
            return
        self.steps[index] += 1
        # Ray's own time lacks the start of an actor
        result = {"training_iteration": self.steps[index], "time_this_iter_s": 0.01}
        if self.steps[index] > self.silent_steps:
            result["score"] = self.qualities[index]
        trial.last_result = result
        decision = self.scheduler.on_trial_result(self._wrapped(), trial, result)
        trial.status = {"PAUSE": "PAUSED", "STOP": "TERMINATED", "CONTINUE": trial.status}[decision]
        if decision == "STOP":
            self.scheduler.on_trial_complete(self._wrapped(), trial, result)

    def _fail(self, index: int, trial: Any) -> None:
        """Fail as Ray's controller does: for good, or to be retried."""
        if index not in self.always_failing:
            del self.failing[index]
        if index in self.lost:
            self.scheduler.on_trial_error(self._wrapped(), trial)
            trial.status = "ERROR"
            return
        trial.status = "ERROR"
        self.scheduler.on_trial_error(self._wrapped(), trial)
        trial.status = "PENDING"
        self.scheduler.on_trial_add(self._wrapped(), trial)


def test_a_third_continues_at_each_rung() -> None:
    """Trials pause at rungs, the best third continues, and every trial ends."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6], 1.0, 9)
    controller.run()
    assert controller.steps == [1, 1, 9, 1, 1, 3, 1, 3, 1]
    assert {trial.status for trial in controller.trials} == {"TERMINATED"}


def test_a_trial_that_always_fails_is_given_up() -> None:
    """With ``max_failures=-1`` Ray retries it for ever: after twelve failures the stage goes on without it."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6], 1.0, 9)
    controller.failing, controller.always_failing = {2: 2, 3: 0}, {2, 3}
    controller.run()
    assert controller.steps == [1, 1, 2, 0, 1, 9, 1, 3, 1]
    assert [trial.trial_id for trial in controller.trials if trial.status == "ERROR"] == ["2", "3"]
    assert sum("failed 12 times without a result" in note for note in scheduler.keeper.notes) == 2
    assert controller.now < 1100.0


def test_a_trial_that_ray_retries_keeps_its_place() -> None:
    """A trial that Ray retries is added again, and continues where it was; a lost one frees its place."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6], 1.0, 9)
    controller.failing = {2: 5, 7: 2}
    controller.lost = {7}
    controller.run()
    assert controller.steps == [1, 1, 9, 1, 1, 3, 1, 2, 1]
    assert [trial.status for trial in controller.trials].count("ERROR") == 1


class FakeSearch:
    """Stands for a searcher that may have no end or suggest a few trials at a time."""

    def __init__(self, *, is_endless: bool = False, max_concurrent: int = 0, total_samples: int = 0) -> None:
        self.is_endless, self.max_concurrent, self.total_samples = is_endless, max_concurrent, total_samples

    def is_finished(self) -> bool:
        """Return whether it suggests no more trials."""
        return not self.is_endless

    def set_finished(self) -> None:
        """End it."""
        self.is_endless = False

    def on_trial_complete(self, trial_id: str) -> None:
        """See Ray."""


@pytest.mark.parametrize(("trials", "steps"), [(5, [1, 1, 9, 1, 1]), (9, [1, 1, 9, 1, 1, 3, 1, 3, 1]), (14, None)])
def test_the_search_has_as_many_trials_as_both_allow(trials: int, steps: list[int] | None) -> None:
    """With fewer samples in the ``TuneConfig`` the search does not wait for more; with more, the others never begin."""
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6, *([1.0] * 5)]
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, qualities[:trials], 1.0, 9)
    controller.search_alg = FakeSearch(is_endless=trials > 9)
    controller.run()
    assert controller.steps == (steps or [1, 1, 9, 1, 1, 3, 1, 3, 1, 0, 0, 0, 0, 0])
    assert {trial.status for trial in controller.trials} == {"TERMINATED"}
    assert controller.search_alg.is_finished()
    assert any("num_samples" in note for note in scheduler.keeper.notes) == (trials != 9)


@pytest.mark.parametrize("kind", ["array", "list", "text"])
def test_metrics_may_be_arrays_of_one_number(kind: str) -> None:
    """The best trial wins whatever holds its value; a warning names a metric that is no number."""
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    wrap: Any = {"array": lambda value: np.array([[value]]), "list": lambda value: [value], "text": "{:.0%}".format}[
        kind
    ]
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [wrap(quality) for quality in qualities], 1.0, 9)
    controller.run()
    notes = [note for note in scheduler.keeper.notes if "no number" in note]
    assert notes == (["trials report a str as score, which is no number: they rank last"] if kind == "text" else [])
    assert kind == "text" or controller.steps == [1, 1, 9, 1, 1, 3, 1, 3, 1]


def test_metric_and_mode_may_be_those_of_the_scheduler() -> None:
    """Scripts may name both in the scheduler; a ``TuneConfig`` may repeat but not contradict them."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, metric="loss", mode="min")
    assert scheduler.set_search_properties(None, None)
    assert scheduler.set_search_properties("loss", "min")
    assert not scheduler.search.is_maximized
    assert not scheduler.set_search_properties("accuracy", "max")
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, metric="loss")
    with pytest.raises(UnfoldError, match="no mode"):
        scheduler.on_trial_add(SimpleNamespace(), FakeTrial(trial_id="0"))
    with pytest.raises(UnfoldError, match="min or max"):
        deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, mode="minimum")


def test_a_limit_of_the_searcher_bounds_what_runs_at_once() -> None:
    """While trials wait at a rung the searcher suggests the others, and no more run than it would allow."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index / 9 for index in range(9)], 1.0, 9)
    scheduler._count_places = lambda _: 4
    controller.search_alg = FakeSearch(max_concurrent=1)
    controller.run()
    assert controller.search_alg.max_concurrent == 9
    assert controller.most_at_once == 1
    assert controller.steps == [1, 1, 1, 1, 1, 1, 3, 3, 9]
    limiter = SimpleNamespace(max_concurrent=2, batch=True)
    with pytest.raises(UnfoldError, match="batches of 2 trials"):
        scheduler._lift_limit(SimpleNamespace(search_alg=SimpleNamespace(searcher=limiter)))


def test_a_budget_needs_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of a machine share its price; one of the user costs nothing, which a note states."""
    for usd_per_hour in (3600.0, 0.0):
        machine = MachinePrice(usd_per_hour, f"at {usd_per_hour}")
        monkeypatch.setattr(limits, "find_machine_price", lambda machine=machine: machine)
        scheduler = deadline.UnfoldScheduler(deadline="2h", budget="$10", num_samples=9, max_t=9)
        controller = FakeController(scheduler, [index / 10 for index in range(9)], 1.0, 9)
        controller.run()
        # a dollar a second
        assert controller.now - 1000.0 <= 10.0 if usd_per_hour else max(controller.steps) == 9
        assert machine.note in scheduler.keeper.notes


def test_a_class_without_checkpoints_is_refused() -> None:
    """Its trials would fail at the first rung, one after another."""
    from ray.tune import Trainable

    class Model(Trainable):
        pass

    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, metric="loss", mode="min")
    trial = FakeTrial(trial_id="0", get_trainable_cls=lambda: Model)
    with pytest.raises(UnfoldError, match="Model has no save_checkpoint"):
        scheduler.on_trial_add(SimpleNamespace(), trial)


@pytest.mark.parametrize("stop", [{"training_iteration": 9}, {}])
def test_the_size_of_the_search_is_that_of_ray(stop: dict[str, int]) -> None:
    """``UnfoldScheduler(deadline="2h")`` takes it from the searcher and from the stop criterion, anew each time."""
    scheduler, max_t = deadline.UnfoldScheduler(deadline="1 h"), 9 if stop else 100
    for trials, steps in ((9, [1, 1, max_t, 1, 1, 3, 1, 3, 1]), (3, [1, 1, max_t])):
        controller = FakeController(scheduler, [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6][:trials], 1.0, max_t)
        controller.search_alg = FakeSearch(total_samples=trials)
        for trial in controller.trials:
            trial.stopping_criterion = stop
        controller.run()
        assert controller.steps == steps
        assert (scheduler.keeper.trials, scheduler.keeper.max_steps) == (trials, max_t)


@pytest.mark.parametrize("total", [0, sys.maxsize])
def test_a_searcher_without_end_needs_a_number_of_trials(total: int) -> None:
    """``num_samples=-1`` says nothing about the size of a search."""
    controller = FakeController(deadline.UnfoldScheduler(deadline="1 h"), [0.5] * 3, 1.0, 9)
    controller.search_alg = FakeSearch(total_samples=total)
    with pytest.raises(UnfoldError, match=r"the searcher does not end.*UnfoldScheduler\(num_samples=64"):
        controller.run()


def test_a_scheduler_serves_one_search_after_another() -> None:
    """A second ``fit`` with the same scheduler begins anew, with its clock and all its trials."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    first = FakeController(scheduler, [0.5] * 4, 1.0, 9)
    first.search_alg = FakeSearch()
    first.run()
    assert scheduler.__getstate__()["searcher"] is None
    second = FakeController(scheduler, [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6], 1.0, 9)
    second.search_alg = FakeSearch()
    second.now = 90_000.0
    second.run()
    assert second.steps == [1, 1, 9, 1, 1, 3, 1, 3, 1]
    assert scheduler.keeper.began == 90_000.0


def test_trials_that_need_more_than_the_cluster_has_are_noted() -> None:
    """A search in which nothing could run reports it when its deadline ends it."""
    scheduler = deadline.UnfoldScheduler(deadline=60.0, num_samples=9, max_t=9)
    controller = FakeController(scheduler, [0.5] * 9, 1.0, 9)
    scheduler._count_places = lambda _: 0
    scheduler.on_trial_add(controller, controller.trials[0])
    controller.added.append(controller.trials[0])
    controller.now += 61.0
    assert scheduler.choose_trial_to_run(controller) is None
    assert any("each needs {'CPU': 1.0}" in note for note in scheduler.keeper.notes)


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_functions_that_pause_without_a_checkpoint_are_noted(has_checkpoint: bool) -> None:
    """Trials of a function begin again after a rung unless they report checkpoints."""
    from ray.tune.trainable import FunctionTrainable

    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index / 9 for index in range(9)], 1.0, 9)
    for trial in controller.trials:
        trial.get_trainable_cls = lambda: FunctionTrainable
        trial.has_checkpoint = lambda: has_checkpoint
    controller.run()
    assert any("without a checkpoint" in note for note in scheduler.keeper.notes) != has_checkpoint


def test_a_result_that_counts_no_steps_is_refused() -> None:
    """With a misspelt ``time_attr`` no trial would ever reach a rung."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, time_attr="training_iterations")
    with pytest.raises(UnfoldError, match=r'training_iterations.*"training_iteration"'):
        FakeController(scheduler, [0.5] * 9, 1.0, 9).run()


def test_trials_without_a_value_run_past_their_rung() -> None:
    """A trial that evaluates every second iteration is ranked by its first value."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index / 9 for index in range(9)], 1.0, 9)
    controller.silent_steps = 1
    controller.run()
    assert controller.steps == [2, 2, 2, 2, 2, 2, 3, 3, 9]


@pytest.mark.parametrize("method", ["sha", "hyperband", "asha"])
@pytest.mark.parametrize("results", [0, 1, 5, 9, 11, 14, 17])
def test_a_restored_search_continues_where_it_was(tmp_path: Path, results: int, method: str) -> None:
    """A new scheduler with the trials that Ray restores ends the search as planned, with the same clock."""
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    storage = make_storage(tmp_path)
    options: Any = {"deadline": "1 h", "num_samples": 9, "max_t": 9, "method": method}
    whole = FakeController(deadline.UnfoldScheduler(**options), qualities, 1.0, 9)
    whole.run()
    first = FakeController(deadline.UnfoldScheduler(**options), qualities, 1.0, 9)
    for trial in first.trials:
        trial.storage = storage
    first.max_results = results
    first.run()
    second = FakeController(deadline.UnfoldScheduler(**options), qualities, 1.0, 9)
    second.now = first.now + 1.0
    second.steps, second.trials = first.steps, first.trials
    for trial in second.trials:
        trial.status = trial.status if trial.status == "TERMINATED" else "PENDING"
    second.trials.sort(key=lambda trial: -first.steps[int(trial.trial_id)])
    second.run()
    if method != "asha":
        assert second.steps == whole.steps
    assert second.steps[2] == 9
    assert second.scheduler.keeper.began == first.scheduler.keeper.began
    assert all(trial.status == "TERMINATED" for trial in second.trials)


@pytest.mark.parametrize(("failing", "steps"), [(range(9), [1, 1, 9, 1, 1, 3, 1, 3, 1]), ((2, 4, 5), None)])
def test_errored_trials_begin_again_where_ray_resumes_them(
    tmp_path: Path, failing: Collection[int], steps: list[int] | None
) -> None:
    """After ``Tuner.restore(resume_errored=True)`` lost trials begin again, and the best of them runs to the end."""
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    storage = make_storage(tmp_path)
    first = FakeController(deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9), qualities, 1.0, 9)
    first.failing, first.lost = dict.fromkeys(failing, 0), set(failing)
    for trial in first.trials:
        trial.storage = storage
    first.run()
    assert [trial.status for trial in first.trials].count("ERROR") == len(failing)
    second = FakeController(deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9), qualities, 1.0, 9)
    second.steps, second.trials = first.steps, first.trials
    for trial in second.trials:
        trial.status = "PENDING" if trial.status == "ERROR" else trial.status
    second.run()
    assert {trial.status for trial in second.trials} == {"TERMINATED"}
    assert all(trial.has_folder for trial in second.trials)
    assert second.steps[2] == 9
    assert steps is None or second.steps == steps


@pytest.mark.parametrize("failing", [range(9), (2, 4, 5)])
def test_errored_trials_that_ray_restarts_begin_again_as_others(tmp_path: Path, failing: Collection[int]) -> None:
    """After ``Tuner.restore(restart_errored=True)`` lost trials have other identifiers, and the old clock goes on."""
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    storage = make_storage(tmp_path)
    first = FakeController(deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9), qualities, 1.0, 9)
    first.failing, first.lost = dict.fromkeys(failing, 0), set(failing)
    for trial in first.trials:
        trial.storage, trial.experiment_tag = storage, f"{trial.trial_id}_q"
    first.run()
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    # Ray unpickles the scheduler of the experiment that it restores
    scheduler.__setstate__(scheduler.__getstate__())
    second = FakeController(scheduler, qualities, 1.0, 9)
    second.now, second.steps, second.trials = first.now + 1.0, first.steps, first.trials
    for trial in second.trials:
        if trial.status == "ERROR":
            trial.status, trial.trial_id = "PENDING", f"0{trial.trial_id}"
    # Ray begins with those that have reported last
    second.trials.sort(key=lambda trial: trial.status != "PENDING")
    second.run()
    assert {trial.status for trial in second.trials} == {"TERMINATED"}
    assert second.steps[2] == 9
    assert scheduler.keeper.began == first.scheduler.keeper.began


def test_another_search_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    """The state of other trials is ignored, and an invalid state file is an error."""
    storage = make_storage(tmp_path)
    state = tmp_path / ray_scheduler.STATE_FILE
    for text in ('{"added": ["other"]}', "{}", "[]", "no state"):
        state.write_text(text)
        scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
        controller = FakeController(scheduler, [index / 9 for index in range(9)], 1.0, 9)
        for trial in controller.trials:
            trial.storage = storage
        if "other" in text:
            controller.run()
            assert max(controller.steps) == 9
        else:
            with pytest.raises(UnfoldError, match="state"):
                controller.run()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"experiment_state-2.json": b'{"trial'}, "state-2.json: the file is incomplete.*begin another search"),
        (
            {"experiment_state-2.json": b"", "experiment_state-1.json": b"{}"},
            r"state-2.json: .*remove the file: Ray then restores from experiment_state-1.json",
        ),
        (
            {"experiment_state-2.json": b"{}", "searcher-state-2.pkl": pickle.dumps([1])[:-1]},
            "state-2.pkl: the file is",
        ),
        ({"experiment_state-2.json": b"{}", "basic-variant-state-2.json": pickle.dumps([1])}, ""),
    ],
)
def test_a_torn_file_of_ray_does_not_begin_another_search(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    """If Ray cannot restore a search, it begins another one, which would replace the results of the first."""
    storage = make_storage(tmp_path)
    (tmp_path / ray_scheduler.STATE_FILE).write_text('{"added": ["other"]}')
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    restored = pickle.loads(pickle.dumps(deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)))  # noqa: S301
    controller = FakeController(restored, [index / 9 for index in range(9)], 1.0, 9)
    for trial in controller.trials:
        trial.storage = storage
    if not message:
        controller.run()
        return
    for _ in range(2):
        # Ray catches the first error, and adds new trials
        with pytest.raises(UnfoldError, match=message):
            controller.run()


def test_a_scheduler_that_has_served_before_is_restored_as_a_new_one() -> None:
    """Ray pickles the scheduler with each ``Tuner``: what an earlier ``fit`` left in it is of another experiment."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    qualities = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]
    FakeController(scheduler, qualities, 1.0, 9).run()
    for name in ("_count_places", "_inform_autoscaler"):
        delattr(scheduler, name)
    scheduler.keeper.wall = limits.SteadyClock()
    controller = FakeController(pickle.loads(pickle.dumps(scheduler)), qualities, 1.0, 9)  # noqa: S301
    controller.run()
    assert controller.steps == [1, 1, 9, 1, 1, 3, 1, 3, 1]


def test_the_autoscaler_may_release_every_node_at_the_end() -> None:
    """The resources of the trials that may run are requested as they become fewer, and none after the search."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index / 9 for index in range(9)], 1.0, 9)
    requested: list[int] = []
    scheduler._inform_autoscaler = lambda _, count: requested.append(count)
    controller.run()
    assert requested[0] == 9
    assert requested[-1] == 0
    assert {3, 1} <= set(requested)


@pytest.mark.parametrize("method", ["hyperband", "asha"])
def test_other_methods_end_every_trial(method: str) -> None:
    """Every trial ends, no more of them run at once than there are places, and the best reach the end."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=27, max_t=9, method=method)
    controller = FakeController(scheduler, [(index * 10 % 27) / 27 for index in range(27)], 1.0, 9)
    controller.failing = {4: 0, 20: 2}
    controller.lost = {20}
    controller.run()
    assert {trial.status for trial in controller.trials} <= {"TERMINATED", "ERROR"}
    assert controller.most_at_once == 2
    assert all(controller.steps)
    best = max(range(27), key=lambda index: controller.qualities[index])
    assert controller.steps[best] == 9
    assert sum(controller.steps) < 27 * 9


def test_trials_that_have_not_begun_wait_for_the_scheduler() -> None:
    """Ray starts pending trials unasked, so all but the next one are held, and none begins that would be late."""
    scheduler = deadline.UnfoldScheduler(deadline=30.0, num_samples=27, max_t=9, method="asha")
    controller = FakeController(scheduler, [index / 27 for index in range(27)], 8.0, 9)
    controller.run()
    # two places, three steps of eight seconds
    assert sum(controller.steps) <= 6
    assert controller.now - 1000.0 <= 30.0


@pytest.mark.parametrize("method", ["sha", "hyperband", "asha"])
@pytest.mark.parametrize("limit_s", [20.0, 60.0, 200.0])
def test_no_run_passes_its_deadline(limit_s: float, method: str) -> None:
    """Whatever the deadline, the run has ended by then, uses a good part of what it has, and no trial failed."""
    scheduler = deadline.UnfoldScheduler(deadline=limit_s, num_samples=81, max_t=27, method=method)
    controller = FakeController(scheduler, [(index * 37 % 81) / 81 for index in range(81)], 2.0, 27)
    controller.run()
    assert controller.now - 1000.0 <= limit_s
    assert all(trial.status == "TERMINATED" for trial in controller.trials)
    assert sum(controller.steps) * 2.0 >= 0.3 * limit_s
    assert not any("failed" in note for note in scheduler.keeper.notes)


def test_the_time_budget_of_ray_is_a_deadline_too() -> None:
    """Ray ends all trials after ``time_budget_s``: fewer begin, so that one is complete. The next run has none."""
    from ray.tune.stopper import CombinedStopper, MaximumIterationStopper, TimeoutStopper

    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=81, max_t=27)
    qualities = [(index * 37 % 81) / 81 for index in range(81)]
    controller: Any = FakeController(scheduler, qualities, 2.0, 27)
    controller.search_alg = SimpleNamespace()
    controller._stopper = CombinedStopper(MaximumIterationStopper(27), TimeoutStopper(120.0))
    controller.run()
    assert controller.now - 1000.0 <= 120.0
    assert max(controller.steps) == 27
    unlimited = FakeController(scheduler, qualities, 2.0, 27)
    unlimited.search_alg = SimpleNamespace()
    unlimited.run()
    assert sum(steps > 0 for steps in unlimited.steps) == 81


@pytest.mark.parametrize("limit_s", [36.4, 42.0, 60.0])
def test_trials_that_begin_again_are_planned_so(limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checkpoints a trial repeats its steps after each rung: fewer begin, so that one is complete in time."""
    monkeypatch.setattr(ray_scheduler, "_can_continue", lambda *_: False)
    scheduler = deadline.UnfoldScheduler(deadline=limit_s, num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index * 7 % 9 / 9 for index in range(9)], 2.0, 9)
    controller.forgets = True
    controller.run()
    assert controller.now - 1000.0 <= limit_s
    assert max(trial.last_result["training_iteration"] for trial in controller.trials if trial.last_result) == 9


def test_what_runs_at_the_deadline_is_ended() -> None:
    """A step that outlasts the deadline is not awaited; the last result of its trial counts."""
    scheduler = deadline.UnfoldScheduler(deadline=30.0, num_samples=9, max_t=9)
    controller = FakeController(scheduler, [index / 9 for index in range(9)], 2.0, 9)
    controller.max_results = 3
    controller.run()
    assert any(trial.status == "RUNNING" for trial in controller.trials)
    controller.now += 30.0
    assert scheduler.choose_trial_to_run(controller._wrapped()) is None
    assert all(trial.status == "TERMINATED" for trial in controller.trials)


def train(config: dict[str, Any]) -> None:
    """Train as Ray's documentation does: report each iteration with a checkpoint, and restore it."""
    from ray import tune

    done = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            done = json.loads((Path(folder) / "state.json").read_text())["done"]
    for step in range(done, 9):
        time.sleep(config["step_s"])
        with Path(config["log"]).open("a") as log:
            log.write(f"{config['quality']:.9f}:{step}\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps({"done": step + 1}))
            loss = 1 - config["quality"] * (1 - 0.5 ** (step + 1))
            tune.report({"loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))


def fit(folder: Path, step_s: float, scheduler: Any, num_samples: int) -> Any:
    """Run a search as Ray's documentation does."""
    from ray import tune

    space = {"quality": tune.uniform(0, 1), "step_s": step_s, "log": str(folder / "log")}
    config = tune.TuneConfig(metric="loss", mode="min", num_samples=num_samples, scheduler=scheduler)
    run_config = tune.RunConfig(storage_path=str(folder / "ray"), verbose=0)
    return tune.Tuner(train, param_space=space, tune_config=config, run_config=run_config).fit()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("size", [{"num_samples": 9, "max_t": 9}, {}])
def test_trials_pause_at_rungs_and_the_best_continue(tmp_path: Path, size: dict[str, int]) -> None:
    """A third continues at each rung, from its checkpoint: the best trial runs to the end, and no step twice."""
    scheduler = deadline.UnfoldScheduler(deadline="10 min", **size)
    results = fit(tmp_path, 0.01, scheduler, 9)
    lines = (tmp_path / "log").read_text().split()
    by_trial: dict[str, list[int]] = {}
    for line in lines:
        quality, step = line.split(":")
        by_trial.setdefault(quality, []).append(int(step))
    assert len(by_trial) == 9
    best = max(by_trial)
    assert sorted(set(by_trial[best])) == list(range(9))
    reached = sorted(max(steps) for steps in by_trial.values())
    assert sum(last >= 8 for last in reached) == 1
    assert results.get_best_result().config["quality"] == pytest.approx(float(best), abs=1e-8)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("has_file", [True, False])
def test_a_restored_trial_has_what_ray_had_not_stored(tmp_path: Path, has_file: bool) -> None:
    """The scheduler has ended the trials, but Ray has stored no result of them, as after a kill in between."""
    from ray import tune

    before = fit(tmp_path, 0.01, deadline.UnfoldScheduler(deadline="10 min", max_t=3), 3)
    log, folder = (tmp_path / "log").read_text(), Path(before.experiment_path)
    name = json.loads((folder / ray_scheduler.STATE_FILE).read_text())["last_report"][0]
    (stored,) = folder.glob("experiment_state-*.json")
    state = json.loads(stored.read_text())
    for index, (trial, metadata) in enumerate(state["trial_data"]):
        if has_file or name in trial:
            fields = json.loads(metadata) | {"last_result": {}, "last_result_time": 0.0, "metric_analysis": {}}
            state["trial_data"][index] = [json.dumps(json.loads(trial) | {"status": "PAUSED"}), json.dumps(fields)]
    stored.write_text(json.dumps(state))
    if not has_file:
        next(folder.glob(f"*{name}*/result.json")).unlink()
    results = tune.Tuner.restore(str(folder), train).fit()
    shown = ("training_iteration", "loss", "config")
    assert [{key: result.metrics[key] for key in shown} for result in sorted(results, key=lambda item: item.path)] == [
        {key: result.metrics[key] for key in shown} for result in sorted(before, key=lambda item: item.path)
    ]
    assert (tmp_path / "log").read_text() == log


@pytest.mark.usefixtures("ray_cluster")
def test_a_short_deadline_is_kept(tmp_path: Path) -> None:
    """Where the whole search would take minutes on two processors, the run has ended soon after the deadline."""
    # on a loaded machine, the first processes of Ray take most of this
    scheduler = deadline.UnfoldScheduler(deadline=30.0, num_samples=27, max_t=9)
    began = time.time()
    results = fit(tmp_path, 0.5, scheduler, 27)
    assert time.time() - began < 30 + 20
    assert results.get_best_result() is not None
    assert scheduler.keeper.began


def sleep_long(config: dict[str, Any]) -> None:
    """Report once, then run a step that outlasts any deadline."""
    from ray import tune

    tune.report({"loss": config["quality"]})
    time.sleep(60.0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_step_that_runs_at_the_deadline_is_not_awaited(tmp_path: Path) -> None:
    """Ray gives a process ten seconds to end its step; here it ends with the deadline."""
    from ray import tune

    scheduler = deadline.UnfoldScheduler(deadline=8.0, num_samples=2, max_t=9, grace_period=9)
    config = tune.TuneConfig(metric="loss", mode="min", num_samples=2, scheduler=scheduler)
    run_config = tune.RunConfig(storage_path=str(tmp_path / "ray"), verbose=0)
    space = {"quality": tune.uniform(0, 1)}
    results = tune.Tuner(sleep_long, param_space=space, tune_config=config, run_config=run_config).fit()
    assert not results.errors
    assert scheduler.keeper.wall() - scheduler.keeper.began < 8.0 + 5.0


def test_nonsense_is_rejected() -> None:
    """A deadline that cannot be read, and numbers that make no sense together, are errors."""
    with pytest.raises(UnfoldError):
        deadline.UnfoldScheduler(deadline="soon", num_samples=9, max_t=9)
    with pytest.raises(UnfoldError):
        deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, grace_period=10)
    with pytest.raises(UnfoldError, match="hyperband"):
        deadline.UnfoldScheduler(deadline="1 h", num_samples=9, max_t=9, method="bohb")
    with pytest.raises(UnfoldError, match="integer"):
        deadline.UnfoldScheduler(deadline="1 h", num_samples="9", max_t=9)
