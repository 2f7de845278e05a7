"""Optuna studies under a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unfold_tuning import deadline
from unfoldkit.api import UnfoldError

optuna = pytest.importorskip("optuna")
pytestmark = [pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"), pytest.mark.timed]
optuna.logging.set_verbosity(optuna.logging.ERROR)


def build_objective(step_s: float, seen: list[tuple[int, int]], first: int = 0, steps: int = 9) -> Any:
    """Return an objective as Optuna's documentation writes it; its value is that of the parameter, less early on."""

    def objective(trial: Any) -> float:
        quality = trial.suggest_float("quality", 0.0, 1.0)
        for step in range(first, steps + first):
            time.sleep(step_s)
            seen.append((trial.number, step))
            trial.report(quality * (1 - 0.5 ** (step + 1)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return quality

    return objective


@pytest.mark.parametrize("first", [0, 1])
def test_successive_halving_with_barriers(first: int) -> None:
    """Exactly a third continues at each rung, the best ones, and no step is run twice."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    seen: list[tuple[int, int]] = []
    result = deadline.optimize(
        study, build_objective(0.002, seen, first), deadline="60 s", n_trials=9, max_steps=9, n_jobs=3
    )
    assert result.stage_trials == (9, 3, 1)
    assert result.is_on_time
    assert Counter(seen).most_common(1)[0][1] == 1
    ran = Counter(number for number, _ in seen)
    assert sorted(ran.values()) == [1] * 6 + [3] * 2 + [9]
    best = max(study.trials, key=lambda trial: trial.params["quality"])
    assert ran[best.number] == 9
    assert study.best_trial.number == best.number
    states = Counter(trial.state.name for trial in study.trials)
    assert states == {"COMPLETE": 1, "PRUNED": 8}


@pytest.mark.parametrize("method", ["hyperband", "asha"])
def test_hyperband_and_asha(method: str) -> None:
    """The best trial runs to the end, most others do not, and no step is run twice."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    seen: list[tuple[int, int]] = []
    result = deadline.optimize(
        study, build_objective(0.002, seen), deadline="60 s", n_trials=27, max_steps=9, n_jobs=3, method=method
    )
    assert result.is_on_time
    assert len(seen) == len(set(seen))
    assert len(seen) < 27 * 9 / 2
    best = max(study.trials, key=lambda trial: trial.params["quality"])
    assert study.best_trial.number == best.number
    assert all(trial.state.is_finished() for trial in study.trials)
    # trials of the first bracket, or of all rungs
    assert sum(result.stage_trials) >= 27


def test_samplers_learn_from_trials_that_wait_at_a_rung() -> None:
    """To the sampler, trials that wait are pruned with their last value; in the study they run."""
    seen: list[list[str]] = []

    class Watching(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            others = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
            seen.append([other.state.name for other in others if other.intermediate_values])
            return super().sample_independent(study, trial, name, distribution)

    sampler = Watching(seed=0)
    study = optuna.create_study(sampler=sampler)
    stored: list[str] = []

    def objective(trial: Any) -> float:
        value = float(trial.suggest_float("x", 0, 1))
        stored.extend(other.state.name for other in study.trials[: trial.number])
        for step in range(3):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    deadline.optimize(study, objective, deadline=60, n_trials=4, n_jobs=1, max_steps=3)
    assert seen == [["PRUNED"] * count for count in range(4)]
    assert set(stored) == {"RUNNING"}
    assert "sample_independent" not in vars(sampler)


def test_a_minimized_study_keeps_the_smallest() -> None:
    """In a study that minimizes, the trials with the smallest values continue."""
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=2))
    seen: list[tuple[int, int]] = []
    deadline.optimize(study, build_objective(0.001, seen), deadline="60 s", n_trials=9, max_steps=9, n_jobs=2)
    assert study.best_trial.params["quality"] == min(trial.params["quality"] for trial in study.trials)


@pytest.mark.parametrize("limit", [1.5, 2.0])
def test_a_deadline_that_is_too_short_is_kept(limit: float) -> None:
    """Where the whole search would take ten times as long, fewer trials run, and the run ends by the deadline."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    seen: list[tuple[int, int]] = []
    result = deadline.optimize(
        study, build_objective(0.02, seen, steps=27), deadline=limit, n_trials=81, max_steps=27, n_jobs=2
    )
    # a step that runs cannot be interrupted, and the machine may be busy
    assert result.seconds <= limit + 1.0
    assert result.notes
    assert 1 <= len(study.trials) < 81
    assert all(trial.state.is_finished() for trial in study.trials)


def test_a_budget_stops_the_run() -> None:
    """The run stops soon after its workers have cost the budget: each of them ends its step."""
    study = optuna.create_study(direction="maximize")
    seen: list[tuple[int, int]] = []
    result = deadline.optimize(
        study,
        build_objective(0.02, seen, steps=27),
        deadline="10 min",
        budget="$6",
        usd_per_hour=3600.0,
        n_trials=81,
        max_steps=27,
        n_jobs=2,
    )
    # two workers at a dollar a second
    assert result.spent_usd <= 6.0 + 2.0


def test_failing_trials_do_not_end_the_run() -> None:
    """Trials that raise fail, the others continue; an error that is not caught is raised."""
    seen: list[tuple[int, int]] = []
    inner = build_objective(0.001, seen)

    def objective(trial: Any) -> float:
        if trial.number % 3 == 0:
            raise RuntimeError("broken")
        return float(inner(trial))

    study = optuna.create_study(direction="maximize")
    result = deadline.optimize(study, objective, deadline="60 s", n_trials=9, max_steps=9, n_jobs=3)
    assert Counter(trial.state.name for trial in study.trials)["FAIL"] == 3
    assert result.stage_trials[0] == 6
    with pytest.raises(RuntimeError, match="broken"):
        deadline.optimize(
            optuna.create_study(), objective, deadline="60 s", n_trials=3, max_steps=3, n_jobs=1, catch=(ValueError,)
        )


def test_objectives_that_never_ask_are_awaited() -> None:
    """An objective without should_prune runs to its end, and the run ends."""
    study = optuna.create_study(direction="maximize")
    result = deadline.optimize(
        study, lambda trial: trial.suggest_float("x", 0, 1), deadline="60 s", n_trials=4, max_steps=3, n_jobs=2
    )
    assert len(study.trials) == 4
    assert result.is_on_time


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deadline": "soon"}, "soon"),
        ({"deadline": -1.0}, "positive"),
        ({"budget": "$4", "usd_per_hour": 0}, "price"),
        ({"min_steps": 20}, "min_steps"),
        ({"n_trials": 0}, "n_trials"),
        ({"confidence": 1.5}, "confidence"),
        ({"method": "pbt"}, "method"),
        ({"method": "hyperband", "max_steps": None}, "hyperband needs max_steps"),
    ],
)
def test_nonsense_is_rejected(changes: dict[str, Any], message: str) -> None:
    """Limits that make no sense are errors with a hint, before any trial begins."""
    study = optuna.create_study()
    arguments: dict[str, Any] = {"deadline": "1 h", "max_steps": 9, **changes}
    with pytest.raises(UnfoldError, match=message):
        deadline.optimize(study, lambda _: 0.0, **arguments)
    assert not study.trials


@pytest.mark.e2e
def test_killed_runs_continue_without_repeating_a_finished_step(tmp_path: Path) -> None:
    """A study in a storage that is killed again and again ends, and repeats no step that was stored."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__)), str(tmp_path)]
    for kill in range(4):
        with subprocess.Popen(command, env=environment) as process:
            # a few steps further than at the last kill
            while process.poll() is None and count_lines(tmp_path / "log") < 4 * (kill + 1):
                time.sleep(0.02)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, env=environment, check=True)
    lines = (tmp_path / "log").read_text().split()
    assert len(lines) == len(set(lines))


def count_lines(path: Path) -> int:
    """Count the lines of a file that may not exist yet."""
    return len(path.read_text().split()) if path.exists() else 0


def drive(folder: Path) -> None:
    """Run a study with an objective that stores its steps."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal")))
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize", load_if_exists=True)

    def objective(trial: Any) -> float:
        state = deadline.get_checkpoint_folder(trial, folder / "states") / "steps"
        done = int(state.read_text()) if state.exists() else 0
        quality = float(trial.suggest_float("quality", 0.0, 1.0))
        for step in range(9):
            if step >= done:
                time.sleep(0.2)
                part = state.with_suffix(".part")
                part.write_text(str(step + 1))
                part.replace(state)
                # after the state: a kill in between must not make a stored step look repeated
                with (folder / "log").open("a") as log:
                    log.write(f"{quality:.12f}:{step}\n")
            trial.report(quality, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return quality

    deadline.optimize(study, objective, deadline="1 h", n_trials=9, max_steps=9, n_jobs=2)


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
