"""Optuna scripts as people write them: conditions, errors, nan, early returns, storages, stops and callbacks."""

from __future__ import annotations

import copy
import datetime as dt
import importlib.util
import math
import pickle
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_tuning import deadline
from unfold_tuning.deadline.optuna_study import StudyRun
from unfold_tuning.deadline.study_progress import OWNER_KEY, StudyProgress
from unfoldkit.api import UnfoldError

optuna = pytest.importorskip("optuna")
pytestmark = [pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"), pytest.mark.timed]
optuna.logging.set_verbosity(optuna.logging.CRITICAL)
STEPS = 9


def run_steps(trial: Any, quality: float, steps: int = STEPS, step_s: float = 0.001) -> float:
    """Report a loss that falls towards ``1 - quality``, as training loops do."""
    loss = 1.0
    for step in range(steps):
        time.sleep(step_s)
        loss = 1 - quality * (1 - 0.5 ** (step + 1))
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def search(objective: Any, study: Any = None, **options: Any) -> tuple[Any, deadline.DeadlineResult]:
    """Run a search of nine trials that minimizes."""
    study = study or optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    options = {"deadline": "60 s", "n_trials": 9, "max_steps": STEPS, "n_jobs": 3, **options}
    return study, deadline.optimize(study, objective, **options)


def test_conditional_parameters() -> None:
    """Trials with different parameters are ranked together."""

    def objective(trial: Any) -> float:
        if trial.suggest_categorical("model", ["tree", "net"]) == "tree":
            return run_steps(trial, trial.suggest_float("quality", 0, 0.5))
        layers = trial.suggest_int("layers", 1, 3)
        return run_steps(trial, sum(trial.suggest_float(f"w{index}", 0, 1) for index in range(layers)) / layers)

    study, result = search(objective)
    assert result.stage_trials == (9, 3, 1)
    assert study.best_trial.state.name == "COMPLETE"


def test_trials_that_fail_after_a_rung_take_no_place() -> None:
    """A trial which raises while others still run to the rung does not continue in place of a healthy one."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        if trial.number < 3:
            trial.report(0.0, 0)
            raise MemoryError
        return run_steps(trial, quality)

    study, result = search(objective)
    assert result.stage_trials == (6, 2, 1)
    assert Counter(trial.state.name for trial in study.trials) == {"FAIL": 3, "PRUNED": 5, "COMPLETE": 1}


def test_a_search_without_a_complete_trial_says_why() -> None:
    """Where all trials that continue fail, in the end those too which had lost, the study has no best trial."""

    def objective(trial: Any) -> float:
        trial.report(trial.suggest_float("quality", 0, 1), 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        raise MemoryError

    study, result = search(objective)
    assert not study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert result.notes[-1] == "no trial is complete: 9 trials failed, and the others had lost"

    def prune_at_once(trial: Any) -> float:
        raise optuna.TrialPruned

    assert search(prune_at_once)[1].notes[-1] == "no trial is complete: all were pruned"


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_the_next_best_continue_where_all_that_continued_fail(how: str) -> None:
    """A winner which runs out of memory or diverges in the last stage does not leave the study without a result."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        loss = 1.0
        for step in range(STEPS):
            is_lost = step == STEPS - 2 and trial.number == 4
            if is_lost and how == "raises":
                raise MemoryError
            loss = math.nan if math.isnan(loss) or is_lost else 1 - quality - step / 100
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for index in range(9):
        study.enqueue_trial({"quality": 0.9 if index == 4 else index / 10})
    study, result = search(objective, study)
    assert study.best_trial.number == 8
    assert len(study.best_trial.intermediate_values) == STEPS
    assert any("that had lost may continue" in note for note in result.notes)


def test_a_trial_that_lost_and_returns_a_value_is_pruned() -> None:
    """Its value is that of a trial cut short, which must not become the best one of the study."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        for step in range(STEPS):
            # losses rise, as those of a mean over harder and harder cases
            trial.report(1 - quality + step, step)
            if trial.should_prune():
                return 1 - quality + step
        return 1 - quality + STEPS

    study, result = search(objective)
    assert result.stage_trials == (9, 3, 1)
    assert Counter(trial.state.name for trial in study.trials) == {"PRUNED": 8, "COMPLETE": 1}
    assert len(study.best_trial.intermediate_values) == STEPS


def test_instances_in_any_order_are_counted() -> None:
    """Under a ``WilcoxonPruner`` steps name problem instances: their number counts, and their mean ranks."""

    def objective(trial: Any) -> float:
        quality, values = trial.suggest_float("quality", 0, 1), []
        for instance in reversed(range(STEPS)):
            values.append(instance + 1 - quality)
            trial.report(values[-1], instance)
            if trial.should_prune():
                raise optuna.TrialPruned
        return sum(values) / len(values)

    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=1), pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.0)
    )
    study, result = search(objective, study)
    assert result.stage_trials == (9, 3, 1)
    counts = sorted(len(trial.intermediate_values) for trial in study.trials)
    assert counts == [1, 1, 1, 1, 1, 1, 3, 3, 9]


def test_trials_that_prune_themselves_take_no_place() -> None:
    """A trial that raises TrialPruned on a nan of its own is not counted at later rungs."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        if trial.number % 2:
            trial.report(math.nan, 0)
            raise optuna.TrialPruned
        return run_steps(trial, quality)

    study, result = search(objective)
    assert result.stage_trials[0] == 5
    assert study.best_trial.number % 2 == 0


def test_nan_ranks_last_and_fails_as_a_result() -> None:
    """A loss of nan or -inf loses at every rung; an objective that returns nan fails, as in ``study.optimize``."""
    for quality in (math.nan, math.inf):
        _, result = search(lambda trial, quality=quality: run_steps(trial, quality), n_trials=4)
        assert len(set(result.notes)) == len(result.notes)
        study, _ = search(lambda trial, quality=quality: run_steps(trial, quality if trial.number < 4 else 0.5))
        assert study.best_trial.number >= 4
    study, result = search(lambda trial: math.nan if trial.suggest_int("x", 0, 9) >= 0 else 0.0, n_trials=3)
    assert {trial.state.name for trial in study.trials} == {"FAIL"}
    assert len(result.notes) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trials_that_violate_constraints_rank_behind_the_others() -> None:
    """The winner keeps the constraints, although every trial that violates them has a better value."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        trial.set_user_attr("excess", quality - 0.5)
        return run_steps(trial, quality)

    sampler = optuna.samplers.TPESampler(seed=1, constraints_func=lambda trial: (trial.user_attrs["excess"],))
    study, result = search(objective, optuna.create_study(sampler=sampler))
    assert result.stage_trials == (9, 3, 1)
    allowed = [trial.params["quality"] for trial in study.trials if trial.params["quality"] <= 0.5]
    assert study.best_params["quality"] == max(allowed)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_constraints_that_are_set_last_end_no_search() -> None:
    """A trial that is pruned before its objective stores what the constraints need is noted and stays pruned."""

    def objective(trial: Any) -> float:
        loss = run_steps(trial, trial.suggest_float("quality", 0, 1))
        trial.set_user_attr("excess", -1.0)
        return loss

    sampler = optuna.samplers.TPESampler(seed=1, constraints_func=lambda trial: (trial.user_attrs["excess"],))
    study, result = search(objective, optuna.create_study(sampler=sampler))
    assert result.stage_trials == (9, 3, 1)
    assert Counter(trial.state.name for trial in study.trials) == {"PRUNED": 8, "COMPLETE": 1}
    assert sum("excess" in note for note in result.notes) == 8


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_winner_that_violates_constraints_known_last_is_replaced() -> None:
    """Where the objective learns at its end that the winner violates its constraints, those which had lost go on."""
    calls: list[tuple[int, int]] = []

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        for step in range(STEPS):
            calls.append((trial.number, step))
            trial.report(1 - quality * (1 - 0.5 ** (step + 1)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("excess", quality - 0.5)
        return 1 - quality

    sampler = optuna.samplers.TPESampler(seed=1, constraints_func=lambda trial: (trial.user_attrs["excess"],))
    study, result = search(objective, optuna.create_study(sampler=sampler))
    qualities = [trial.params["quality"] for trial in study.trials]
    assert max(qualities) > 0.5
    assert study.best_params["quality"] <= 0.5
    assert len(calls) == len(set(calls))
    assert all(trial.state.is_finished() for trial in study.trials)
    assert any("constraints" in note for note in result.notes)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trials_of_which_none_keeps_its_constraints_all_end() -> None:
    """If every trial violates its constraints, each runs to its end, and the search ends before its deadline."""

    def objective(trial: Any) -> float:
        loss = run_steps(trial, trial.suggest_float("quality", 0, 1))
        trial.set_user_attr("excess", 1.0)
        return loss

    sampler = optuna.samplers.TPESampler(seed=1, constraints_func=lambda trial: (trial.user_attrs["excess"],))
    study, result = search(objective, optuna.create_study(sampler=sampler))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert result.is_on_time


def test_a_pruner_with_rules_of_its_own_is_asked() -> None:
    """A pruner that judges a trial by itself prunes, and one that ranks trials is replaced with a warning."""

    class Threshold(optuna.pruners.BasePruner):  # type: ignore[misc,name-defined]
        def prune(self, study: Any, trial: Any) -> bool:
            return bool(trial.params["quality"] > 0.5)

    study, result = search(
        lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)), optuna.create_study(pruner=Threshold())
    )
    assert result.stage_trials[0] == sum(trial.params["quality"] <= 0.5 for trial in study.trials)
    assert all(trial.params["quality"] <= 0.5 for trial in study.trials if trial.state.name == "COMPLETE")
    assert isinstance(study.pruner, Threshold)
    study = optuna.create_study(pruner=optuna.pruners.HyperbandPruner())
    _, result = search(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)), study)
    assert result.stage_trials == (9, 3, 1)


def test_trials_that_never_ask_or_report_are_counted() -> None:
    """Trials that ran to their end have finished the stages, whether they asked at the rungs or not."""

    def objective(trial: Any) -> float:
        for step in range(STEPS):
            trial.report(1.0, step)
        return 1.0

    assert search(objective)[1].stage_trials == (9, 3, 1)
    assert search(lambda trial: trial.suggest_float("quality", 0, 1))[1].stage_trials == (9,)


def test_an_objective_that_returns_nothing_counts_with_its_last_report() -> None:
    """A search that only learns at its end that the objective returns nothing still has a best trial."""

    def objective(trial: Any) -> None:
        run_steps(trial, trial.suggest_float("quality", 0, 1))

    study, result = search(objective)
    assert study.best_value == study.best_trial.intermediate_values[STEPS - 1]
    assert sum("returns nothing" in note for note in result.notes) == 1


def test_steps_beyond_the_last_rung_are_noted() -> None:
    """Where reports count other steps than ``max_steps``, no rung stops anything: the result notes it."""

    def objective(trial: Any) -> float:
        trial.report(1.0, 5000)
        return float(trial.should_prune())

    _, result = search(objective)
    assert sum("step 5000, beyond max_steps=9" in note for note in result.notes) == 1


def test_no_step_begins_that_would_pass_the_deadline() -> None:
    """Trials stop while their fastest step would still end too late, and the best of them counts as complete."""
    study, result = search(
        lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1), steps=100, step_s=0.5),
        # the fourth step ends at 2 s, with room for a machine that does other things as well; the fifth is too late
        deadline=dt.timedelta(seconds=2.4),
        n_trials=2,
        n_jobs=2,
        min_steps=100,
        max_steps=100,
    )
    assert result.is_on_time
    assert result.seconds > 1.1
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "PRUNED"]
    assert all(len(trial.intermediate_values) >= 3 for trial in study.trials)


def test_trials_that_return_early_keep_their_rank() -> None:
    """An objective with early stopping of its own returns after two steps, and counts with that value."""
    study, result = search(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1), steps=2))
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)
    assert result.stage_trials[0] == 9


@pytest.mark.parametrize("n_jobs", [1, np.int64(4)])
def test_a_study_stopped_by_its_deadline_has_a_best_trial(n_jobs: int) -> None:
    """If no trial is complete at the deadline, the best of those that ran furthest is, with its last report."""
    study, result = search(
        lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1), steps=10**6, step_s=0.01),
        deadline=1.0,
        max_steps=10**6,
        n_jobs=n_jobs,
    )
    assert result.seconds < 2.0
    furthest = max(len(trial.intermediate_values) for trial in study.trials)
    assert len(study.best_trial.intermediate_values) >= furthest - 3
    assert all(trial.state.is_finished() for trial in study.trials)


def test_a_stop_from_within_ends_the_search() -> None:
    """``study.stop()`` of an objective or a callback ends the search, and callbacks see every trial that ended."""
    seen: list[int] = []

    def callback(study: Any, trial: Any) -> None:
        seen.append(trial.number)
        if len(seen) >= 3:
            study.stop()

    study, result = search(
        lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)),
        n_trials=90,
        callbacks=[callback],
        deadline="10 min",
    )
    assert result.stage_trials == (90,)
    assert len(set(seen)) == len(seen) == len(study.trials)
    assert "stopped the study" in result.notes[-1]
    study.optimize(lambda trial: trial.suggest_float("quality", 0, 1), n_trials=1)


def test_an_objective_that_always_fails_ends_the_search() -> None:
    """Where every trial raises, the error is raised after a few, unless the user catches it."""

    def objective(_: Any) -> float:
        raise KeyError("column")

    study = optuna.create_study()
    with pytest.raises(KeyError, match="column"):
        search(objective, study, n_trials=90)
    assert 8 <= len(study.trials) < 20
    study, result = search(objective, n_trials=20, catch=KeyError)
    assert len(study.trials) == 20
    assert result.stage_trials[0] == 0


def test_a_deadline_holds_without_reports() -> None:
    """An objective that never reports is not begun where it would end too late."""
    study, result = search(
        lambda trial: time.sleep(0.2) or trial.suggest_float("x", 0, 1), deadline=1.5, n_trials=90, n_jobs=2
    )
    assert result.seconds < 1.5 + 1.5
    assert 4 <= len(study.trials) <= 15


def interrupt_at(calls: list[tuple[int, int]], count: int) -> Any:
    """Return a wait of the search that ends as by Ctrl-C once so many steps have run."""
    wait = StudyRun._wait

    def wait_or_interrupt(run: StudyRun) -> None:
        if len(calls) >= count:
            raise KeyboardInterrupt
        wait(run)

    return wait_or_interrupt


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_interrupted_searches_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """After Ctrl-C the survivors continue, no step runs again, and the winner is that of the whole search."""
    calls: list[tuple[int, int]] = []

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0, 1)
        state = deadline.get_checkpoint_folder(trial, tmp_path) / "steps"
        done = int(state.read_text()) if state.exists() else 0
        for step in range(done, STEPS):
            calls.append((trial.number, step))
            state.write_text(str(step + 1))
            time.sleep(0.01)
            trial.report(1 - quality * (1 - 0.5 ** (step + 1)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 1 - quality

    if kind == "sqlite":
        storage: Any = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    else:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal")))
    study = optuna.create_study(storage=storage, study_name="s")
    for index in range(9):
        study.enqueue_trial({"quality": (index * 5 % 9) / 9})
    monkeypatch.setattr(StudyRun, "_wait", interrupt_at(calls, 20))
    with pytest.raises(KeyboardInterrupt):
        search(objective, study, n_jobs=2)
    monkeypatch.undo()
    study = optuna.load_study(storage=storage, study_name="s")
    _, result = search(objective, study, n_jobs=2)
    assert result.stage_trials == (9, 3, 1)
    assert study.best_trial.params["quality"] == 8 / 9
    assert Counter(calls).most_common(1)[0][1] == 1
    assert len(study.trials) == 9
    if kind == "sqlite":
        storage.engine.dispose()


def test_two_processes_do_not_share_a_study() -> None:
    """A study that another living process runs is refused; one with a dead process is not."""
    study = optuna.create_study()
    study.set_user_attr(OWNER_KEY, {"host": "elsewhere", "pid": 1, "start": "", "at": time.time()})
    with pytest.raises(UnfoldError, match="runs this study"):
        search(lambda trial: run_steps(trial, 0.5), study)
    study.set_user_attr(OWNER_KEY, {"host": "elsewhere", "pid": 1, "start": "", "at": time.time() - 100})
    search(lambda trial: run_steps(trial, 0.5), study)
    assert len(study.trials) == 9


@pytest.mark.slow
def test_two_that_start_at_the_same_time_do_not_share_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads that both see no owner of a study, as processes may, one runs it."""
    url, outcomes = f"sqlite:///{tmp_path / 'study.db'}", []
    optuna.create_study(storage=url, study_name="one")
    barrier, stay_alive = threading.Barrier(2), StudyProgress.stay_alive

    def write_together(progress: StudyProgress) -> None:
        barrier.wait(60)
        stay_alive(progress)

    def run() -> None:
        try:
            StudyProgress(optuna.load_study(storage=url, study_name="one")).lock_study()
        except UnfoldError:
            outcomes.append("refused")
        else:
            outcomes.append("runs")
        # the owner lives until the other one has decided
        barrier.wait(60)

    monkeypatch.setattr(StudyProgress, "stay_alive", write_together)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "runs"]


CHANGES = {
    "method": ({}, {"method": "hyperband"}),
    "brackets": ({"method": "hyperband"}, {}),
    "fewer steps": ({}, {"max_steps": 3}),
    "more steps": ({"max_steps": 3}, {"max_steps": 9}),
    "factor": ({"eta": 2}, {"eta": 4}),
    "fewer trials": ({"n_trials": 18}, {"n_trials": 4}),
    "steps shown before": ({"max_steps": None}, {"max_steps": 27}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("calls", [7, 14])
def test_an_interrupted_search_continues_with_other_arguments(change: str, calls: int) -> None:
    """A script that is edited between two starts continues its trials at the rungs that it has now."""
    before, after = CHANGES[change]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    count = iter(range(calls))

    def objective(trial: Any) -> float:
        quality, done = trial.suggest_float("quality", 0, 1), trial.user_attrs.get("done", 0)
        for step in range(done, 27):
            trial.report(1 - quality * (1 - 0.5**step), step)
            trial.set_user_attr("done", step + 1)
            if next(count, None) is None:
                raise KeyboardInterrupt
            if trial.should_prune():
                raise optuna.TrialPruned
            if step + 1 == (options.get("max_steps") or STEPS):
                break
        return float(1 - quality)

    options = {"n_jobs": 1, **before}
    with pytest.raises(KeyboardInterrupt):
        search(objective, study, **options)
    study.tell(max(trial.number for trial in study.trials), state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    count, options = iter(range(10**6)), {"n_jobs": 1, **after}
    search(objective, study, **options)
    assert not any(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
    last = max(max(trial.intermediate_values) for trial in study.trials if trial.intermediate_values)
    assert last + 1 >= (options.get("max_steps") or STEPS)
    assert study.best_trial.state.name == "COMPLETE"


def test_ends_of_trials_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A search shows the trials that end, as ``study.optimize`` does."""
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        search(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)))
    finally:
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        optuna.logging.disable_propagation()
    messages = {record.getMessage() for record in caplog.records}
    assert sum("pruned at step" in message for message in messages) == 8
    assert sum("finished with value" in message for message in messages) == 1


def test_arguments_of_optimize_are_accepted() -> None:
    """A script which only replaces the call keeps ``timeout``, ``catch`` as a list, and the flags of its call."""

    def objective(trial: Any) -> float:
        if trial.number == 3:
            raise KeyError("once")
        return run_steps(trial, trial.suggest_float("quality", 0, 1))

    study, _ = search(objective, catch=[KeyError], timeout=600, gc_after_trial=True, show_progress_bar=True)
    assert Counter(trial.state.name for trial in study.trials)["FAIL"] == 1
    _, result = search(lambda trial: run_steps(trial, 0.5, step_s=0.2), timeout=0.5)
    assert result.seconds < 5


def test_callbacks_may_store_the_study(tmp_path: Path) -> None:
    """A script that pickles or copies the study after each trial continues with its own pruner and sampler."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=7)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1), pruner=pruner)

    def store(study: Any, _: Any) -> None:
        copy.deepcopy(study)
        (tmp_path / "study.pkl").write_bytes(pickle.dumps(study))

    search(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)), study, callbacks=[store])
    stored = pickle.loads((tmp_path / "study.pkl").read_bytes())  # noqa: S301 - written above
    assert isinstance(stored.pruner, optuna.pruners.MedianPruner)
    stored.optimize(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)), n_trials=12)
    assert len(stored.trials) == 9 + 12
    assert len(study.trials) == 9


def test_a_grid_runs_each_point_once() -> None:
    """Trials that wait at a rung do not make a grid repeat its points, and its own stop ends no trial."""
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"quality": [0.1, 0.5, 0.7, 0.9]}))
    search(lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1)), study)
    assert sorted(trial.params["quality"] for trial in study.trials) == [0.1, 0.5, 0.7, 0.9]
    assert study.best_params == {"quality": 0.9}


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_brute_force_search_runs_each_point_once(*, is_strict: bool) -> None:
    """Trials that wait are not finished, so the sampler repeats points: repetitions end with their first report."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_int("depth", 1, 4) / 10 + 0.1 * trial.suggest_categorical("bias", [0, 1, 2])
        return run_steps(trial, quality)

    sampler = optuna.samplers.BruteForceSampler(seed=1, avoid_premature_stop=is_strict)
    study, result = search(objective, optuna.create_study(sampler=sampler), n_trials=40)
    points = {tuple(trial.params.values()) for trial in study.trials}
    assert len(points) == 12
    # no more than the workers that ask at the same time
    assert len(study.trials) <= 12 + 3
    assert result.stage_trials[0] == 12
    assert study.best_trial.params == {"depth": 4, "bias": 2}


def test_trials_that_ask_at_the_same_time_do_not_exhaust_a_space() -> None:
    """Two workers may receive the same point before either is stored: every other point is still tried."""

    class HastySampler(optuna.samplers.BruteForceSampler):  # type: ignore[misc,name-defined]
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            while trial.number in (1, 2):
                # the first worker may not have suggested anything yet
                if name in study.trials[0].params:
                    return study.trials[0].params[name]
                time.sleep(0.001)
            return super().sample_independent(study, trial, name, distribution)

    def objective(trial: Any) -> float:
        return run_steps(trial, trial.suggest_int("depth", 1, 6) / 10)

    study, result = search(objective, optuna.create_study(sampler=HastySampler(seed=1)), n_trials=20)
    assert {trial.params["depth"] for trial in study.trials} == set(range(1, 7))
    assert len(study.trials) <= 6 + 2 + 3
    assert result.stage_trials[0] == 6


def test_a_storage_that_fails_ends_the_search() -> None:
    """An error outside the objective is raised at once instead of at the deadline."""

    class FullStorage(optuna.storages.InMemoryStorage):  # type: ignore[misc,name-defined]
        def set_trial_state_values(self, trial_id: int, state: Any, values: Any = None) -> Any:
            if values is not None and self.get_n_trials(0) > 3:
                raise OSError("disk full")
            return super().set_trial_state_values(trial_id, state, values)

    began = time.monotonic()
    with pytest.raises(OSError, match="disk full"):
        search(lambda trial: run_steps(trial, 0.5), optuna.create_study(storage=FullStorage()), max_steps=1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("method", ["sha", "asha"])
@pytest.mark.parametrize("stride", [1, 10])
def test_the_first_trial_shows_how_many_steps_there_are(method: str, stride: int) -> None:
    """Without max_steps the first trial that does not fail runs to its end; the rungs count its steps."""

    def objective(trial: Any) -> float:
        if trial.number == 0:
            raise MemoryError
        quality = trial.suggest_float("quality", 0, 1)
        for step in range(STEPS):
            time.sleep(0.001)
            trial.report(1 - quality, stride * (step + 1))
            if trial.should_prune():
                raise optuna.TrialPruned
        return 1 - quality

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study, result = search(objective, study, max_steps=None, n_trials=10, method=method)
    assert f"max_steps: {stride * STEPS}, as the first complete trial ran" in result.notes
    assert len(study.trials[1].intermediate_values) == STEPS
    best = max(trial.params["quality"] for trial in study.trials if trial.params)
    assert study.best_params["quality"] == best
    assert sum(len(trial.intermediate_values) for trial in study.trials) < 9 * STEPS / 1.5


def test_a_trial_shows_no_more_steps_where_they_take_long() -> None:
    """The first trial waits at a rung as the others, once it has used a part of the time."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study, result = search(
        lambda trial: run_steps(trial, trial.suggest_float("quality", 0, 1), 100_000, 0.02),
        study,
        max_steps=None,
        deadline="4 s",
        n_jobs=1,
    )
    assert len(study.trials) > 1
    assert any(note.endswith("assumed, as no trial was complete soon enough to show it") for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": print}, "callbacks is a function"),
        ({"n_trials": "27"}, "must be an integer"),
        ({"max_steps": 9.5}, "must be an integer"),
        ({"catch": ["ValueError"]}, "not a class of exceptions"),
        ({"timeout": -1}, "positive time"),
        ({"deadline": None}, "deadline: None is not a quantity"),
        ({"n_jobs": "4"}, "n_jobs must be an integer"),
        ({"n_jobs": True}, "n_jobs must be an integer"),
        ({"confidence": 95}, "at least 0.5 and less than 1"),
        ({"budget": "$4", "usd_per_hour": "$1"}, "usd_per_hour: "),
        ({"budget": float("inf"), "usd_per_hour": 1}, "must be positive"),
        ({"budget": "40 EUR", "usd_per_hour": 1}, "budget: "),
        ({"deadline": "10 minutes"}, 'write "10 min"'),
        ({"deadline": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, "is a date"),
        ({"deadline": dt.timedelta(seconds=-1)}, "positive time"),
        ({"deadline": np.timedelta64(20_000_000_000, "ns")}, "is not a quantity"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """What a search cannot use is refused before a trial begins."""
    study = optuna.create_study()
    with pytest.raises(UnfoldError, match=message):
        search(lambda trial: trial.number, study, **options)
    assert not study.trials


def test_a_study_and_an_objective_in_the_wrong_order_are_named() -> None:
    """Swapped arguments, or no study, are an error that names what is expected."""
    study = optuna.create_study()
    for first, second in ((abs, study), (None, abs), (optuna.Study, abs)):
        with pytest.raises(UnfoldError, match=r"takes a study and an objective.*optimize\(study, objective"):
            deadline.optimize(first, second, deadline="1 s", max_steps=1)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_sampler_without_its_package_is_named_before_the_first_trial(
    monkeypatch: pytest.MonkeyPatch, is_wrapped: bool
) -> None:
    """``CmaEsSampler`` imports cmaes once trials are complete: each trial after that failed, and the run did not."""
    sampler = optuna.samplers.CmaEsSampler(seed=1)
    if is_wrapped:
        sampler = optuna.samplers.PartialFixedSampler({"rate": 0.1}, sampler)
    study = optuna.create_study(sampler=sampler)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cmaes" else name)
    with pytest.raises(UnfoldError, match=r"CmaEsSampler needs the package cmaes.*\(pip install cmaes\)"):
        search(lambda trial: trial.suggest_float("rate", 0, 1), study)
    assert not study.trials


def test_studies_of_one_name_share_no_states(tmp_path: Path) -> None:
    """A script that is run again in the same folder begins anew, unless its storage has the study."""
    begun: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        state = deadline.get_checkpoint_folder(trial, tmp_path) / "steps"
        begun.append(int(state.read_text()) if state.exists() else 0)
        state.write_text("1")
        return trial.suggest_float("x", 0, 1)

    for _ in range(2):
        study = optuna.create_study(study_name="s")
        deadline.optimize(study, objective, deadline="1 min", n_trials=2, max_steps=1)
    assert begun == [0] * 4
