"""What the searchers of Ray learn from trials that wait at a rung, with real raylets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfold_tuning import deadline

pytest.importorskip("ray.tune")
from ray import tune
from ray.tune.experiment import Experiment
from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator

from unfold_tuning.deadline.waiting_trials import RaySearcher

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Curve(tune.Trainable):  # type: ignore[misc]
    """A trial with a loss that falls towards its distance from the best point; its process serves the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """See Ray."""
        self.config, self.done = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See Ray."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, float]:
        """See Ray."""
        self.done += 1
        return {"loss": (self.config["x"] - 0.7) ** 2 + (self.config["y"] - 0.2) ** 2 + 0.5**self.done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """See Ray."""
        Path(checkpoint_dir, "done").write_text(str(self.done))

    def load_checkpoint(self, checkpoint: str) -> None:
        """See Ray."""
        self.done = int(Path(checkpoint, "done").read_text())


class NotingSearcher(Searcher):  # type: ignore[misc]
    """Suggests random points, and notes what it learns."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__(metric="loss", mode="min")
        self.random, self.limit = random.Random(1), limit  # noqa: S311 - not for cryptography
        self.open: set[str] = set()
        self.results: dict[str, list[Any]] = {}

    def suggest(self, trial_id: str) -> dict[str, float] | None:
        """Suggest no more than may be open, as ``BayesOptSearch`` does with its first points."""
        if len(self.open) >= self.limit:
            return None
        self.open.add(trial_id)
        self.results[trial_id] = []
        return {"x": self.random.random(), "y": self.random.random()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a result, and its budget as BOHB has it."""
        self.results[trial_id].append(result.get("hyperband_info"))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note the last result."""
        self.open.discard(trial_id)
        self.results[trial_id].append(result and result["training_iteration"])

    def save(self, checkpoint_path: str) -> None:
        """See Ray."""

    def restore(self, checkpoint_path: str) -> None:
        """See Ray."""


class PausingSearcher(NotingSearcher):
    """Is notified of trials that pause, as ``TuneBOHB`` is."""

    def on_pause(self, trial_id: str) -> None:
        """Let another trial begin."""
        self.open.discard(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """Count it again."""
        self.open.add(trial_id)


def fit(folder: Path, searcher: Any, trials: int, space: dict[str, Any] | None = None, method: str = "sha") -> Any:
    """Run a search, and return its scheduler."""
    scheduler = deadline.UnfoldScheduler(deadline="1 h", num_samples=trials, max_t=9, method=method)
    config = tune.TuneConfig(
        metric="loss", mode="min", num_samples=trials, scheduler=scheduler, search_alg=searcher, reuse_actors=True
    )
    run_config = tune.RunConfig(storage_path=str(folder), verbose=0)
    results = tune.Tuner(Curve, param_space=space, tune_config=config, run_config=run_config).fit()
    assert not results.errors
    points = {result.metrics["trial_id"]: result.config for result in results}
    return [points[name] for name in sorted(scheduler.search.numbers, key=scheduler.search.numbers.__getitem__)]


def build_search(searcher: Any, trials: int) -> Any:
    """Build what Ray builds around a searcher; it needs no cluster."""
    space = {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}
    searcher.set_search_properties("loss", "min", space)
    search = SearchGenerator(searcher)
    search.add_configurations(Experiment("learns", Curve, config={}, num_samples=trials))
    return search


@pytest.mark.parametrize("is_limited", [False, True])
def test_the_sampler_sees_waiting_trials_as_pruned(is_limited: bool) -> None:
    """Ray's ``OptunaSearch`` leaves them running, and a sampler ignores these; the study itself stays as it was."""
    optuna = pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch

    seen: list[list[str]] = []

    class NotingSampler(optuna.samplers.RandomSampler):  # type: ignore[misc,name-defined]
        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            seen.append([item.state.name for item in study.get_trials(deepcopy=False)])
            return dict(super().sample_relative(study, trial, search_space))

    searcher = OptunaSearch(sampler=NotingSampler(seed=1))
    search = build_search(searcher, 4)
    if is_limited:
        search.searcher = ConcurrencyLimiter(searcher, 4)
    waiting: list[str] = []
    RaySearcher(search, lambda: waiting)
    names = [search.next_trial().trial_id for _ in range(3)]
    for name in names[:2]:
        search.on_trial_result(name, {"loss": 0.5, "training_iteration": 1})
        waiting.append(name)
    search.on_trial_complete(names[1])
    search.next_trial()
    assert seen[-1] == ["PRUNED", "PRUNED", "RUNNING", "RUNNING"]
    assert [trial.state.name for trial in searcher._ot_study.trials] == ["RUNNING", "PRUNED", "RUNNING", "RUNNING"]
    assert "sample_relative" not in vars(searcher._ot_study.sampler)


@pytest.mark.parametrize("is_limited", [False, True])
def test_a_trial_is_complete_once_to_other_searchers(is_limited: bool) -> None:
    """They take one result of a trial: the one with which it first waits; what follows is not presented."""
    inner = NotingSearcher()
    search = build_search(inner, 4)
    if is_limited:
        search.searcher = ConcurrencyLimiter(inner, 2)
    searcher = RaySearcher(search, list)
    first, second = (search.next_trial().trial_id for _ in range(2))
    for step, is_pause in ((1, True), (2, False), (3, True)):
        result = {"loss": 0.5, "training_iteration": step}
        searcher.note_result(first, result, step, is_pause=is_pause)
        search.on_trial_result(first, result)
    search.on_trial_complete(first)
    search.on_trial_result(second, {"loss": 0.5, "training_iteration": 1})
    search.on_trial_complete(second, result={"loss": 0.5, "training_iteration": 2})
    assert inner.results == {first: [1], second: [None, 2]}
    # the first trial counts no more, so another one may begin
    assert search.next_trial() is not None


def test_bohb_has_budgets_of_results_at_rungs() -> None:
    """``TuneBOHB`` warns of each result without ``hyperband_info``, and counts trials that wait unless notified."""
    inner = PausingSearcher(limit=1)
    search = build_search(inner, 4)
    searcher = RaySearcher(search, list)
    name = search.next_trial().trial_id
    assert search.next_trial() is None
    for step, is_pause in ((1, False), (2, True)):
        result: dict[str, Any] = {"loss": 0.5, "training_iteration": step}
        searcher.note_result(name, result, step, is_pause=is_pause)
        search.on_trial_result(name, result)
    assert inner.results[name] == [{}, {"budget": 2}]
    assert search.next_trial() is not None
    searcher.note_start(name)
    assert name in inner.open


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["sha", "asha"])
def test_optuna_learns_from_the_first_rung(tmp_path: Path, method: str) -> None:
    """The later trials of a stage are nearer to the best point than the random ones with which the search begins."""
    optuna = pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=8))
    points = fit(tmp_path, searcher, 32, {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}, method)
    losses = [(point["x"] - 0.7) ** 2 + (point["y"] - 0.2) ** 2 for point in points]
    assert np.median(losses[-12:]) < 0.5 * np.median(losses[:8])
    states = [trial.state.name for trial in searcher._ot_study.trials]
    assert len(states) == 32
    assert "RUNNING" not in states
    # the values of the study are the last ones of the trials, not those at a rung
    assert all(
        max(trial.intermediate_values) >= 8 for trial in searcher._ot_study.trials if trial.state.name == "COMPLETE"
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 4])
def test_a_searcher_that_takes_one_result_has_it_at_the_first_rung(tmp_path: Path, limit: int) -> None:
    """``BayesOptSearch`` suggests no more until its first trials are complete: it once ended with ten of forty."""
    searcher = NotingSearcher(limit=4)
    points = fit(tmp_path, ConcurrencyLimiter(searcher, limit) if limit else searcher, 9)
    assert len(points) == 9
    assert len(searcher.results) == 9
    assert not searcher.open
    # every trial is complete once, and presents nothing afterwards
    assert all(sum(isinstance(item, int) for item in items) == 1 for items in searcher.results.values())
    assert sum(items == [1] for items in searcher.results.values()) >= 8


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_bohb_learns_results_with_their_budgets(tmp_path: Path) -> None:
    """``TuneBOHB`` needs the steps of each rung, and to know which trials wait, as from Ray's own scheduler."""
    searcher = PausingSearcher(limit=4)
    points = fit(tmp_path, searcher, 9)
    assert len(points) == 9
    items = [item for items in searcher.results.values() for item in items]
    # the last trial to reach a rung may continue without a pause
    budgets = [item["budget"] for item in items if isinstance(item, dict) and item]
    assert budgets.count(1) >= 8
    assert budgets.count(3) >= 2
    assert None not in [item for items in searcher.results.values() for item in items[:-1]]
