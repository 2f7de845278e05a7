"""What a sampler or searcher learns from the trials that wait at a rung, which it would take for running ones.

Without it none has seen a result when it proposes the trials of the first stage, which are all there are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True, slots=True)
class _ViewingMethod:
    """A method of a sampler which sees a view of a study; in a copy of the sampler it is the method itself."""

    sampler: Any
    name: str
    method: Callable[..., Any]
    study: Any
    view: Any

    def __call__(self, asking: Any, *args: Any, **options: Any) -> Any:
        """Sample; another study may have the same sampler."""
        return self.method(self.view if asking is self.study else asking, *args, **options)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        """Pickle the method of the sampler: callbacks store the study with it."""
        return getattr, (self.sampler, self.name)


@contextmanager
def show_as_pruned(study: Any, list_waiting: Callable[[], Collection[int]]) -> Iterator[None]:
    """Let the sampler of an Optuna study see the trials that wait at a rung as pruned there.

    Args:
        study: The study, which has them as running ones.
        list_waiting: Lists their numbers.
    """
    from optuna.trial import TrialState

    def list_trials(deepcopy: bool = True, states: Container[Any] | None = None, use_cache: bool = False) -> list[Any]:
        trials = list(study._get_trials(deepcopy=deepcopy, use_cache=use_cache))  # noqa: SLF001 - as samplers do
        waiting = list_waiting()
        for index, trial in enumerate(trials):
            if trial.number in waiting and trial.intermediate_values:
                trials[index] = copy.copy(trial)
                trials[index].state = TrialState.PRUNED
        return [trial for trial in trials if states is None or trial.state in states]

    view, sampler = copy.copy(study), study.sampler
    view._get_trials = list_trials  # noqa: SLF001 - Optuna filters the trials of a bracket like this
    names = ("infer_relative_search_space", "sample_relative", "sample_independent")
    replaced = {name: vars(sampler).get(name) for name in names}
    for name in names:
        setattr(sampler, name, _ViewingMethod(sampler, name, getattr(sampler, name), study, view))
    try:
        yield
    finally:
        for name, method in replaced.items():
            if method is None:
                delattr(sampler, name)
            else:
                setattr(sampler, name, method)


@dataclass(slots=True)
class RaySearcher:
    """A searcher of Ray that learns from results at rungs: Ray itself presents a trial when it ends.

    ``OptunaSearch`` sees waiting trials as pruned, ``TuneBOHB`` each result with its budget. For any other searcher a
    trial is complete where it first waits, because a searcher takes one result of each.

    Attributes:
        search: What generates the trials of an experiment, with its searcher in any number of wrappers.
        list_waiting: Lists the trials that wait at a rung.
        shown: Trials that are complete to the searcher.
    """

    search: Any
    list_waiting: Callable[[], Collection[str]]
    shown: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Stand between the experiment and its searcher."""
        if hasattr(self.inner, "_ot_study"):
            self.search.next_trial = partial(self._suggest, self.search.next_trial)
        elif self.has_one_result:
            for name in ("on_trial_result", "on_trial_complete"):
                setattr(self.search, name, partial(self._inform, getattr(self.search, name)))

    @property
    def inner(self) -> Any:
        """The searcher without its wrappers."""
        inner = self.search
        while hasattr(inner, "searcher"):
            inner = inner.searcher
        return inner

    @property
    def has_one_result(self) -> bool:
        """Whether the searcher takes one result of a trial, the last."""
        return self.inner is not self.search and not any(
            hasattr(self.inner, name) for name in ("_ot_study", "on_pause")
        )

    def _suggest(self, next_trial: Callable[[], Any]) -> Any:
        inner = self.inner
        with show_as_pruned(inner._ot_study, self._list_numbers):  # noqa: SLF001 - Ray has no other way
            return next_trial()

    def _list_numbers(self) -> set[int]:
        trials = self.inner._ot_trials  # noqa: SLF001 - Ray has no other way
        return {trials[name].number for name in self.list_waiting() if name in trials}

    def _inform(self, method: Callable[..., Any], trial_id: str, *args: Any, **options: Any) -> None:
        if trial_id not in self.shown:
            method(trial_id, *args, **options)

    def note_result(self, trial_id: str, result: dict[str, Any], steps: int, *, is_pause: bool) -> None:
        """Present a result of a trial, which may be that at a rung, before Ray presents it."""
        if hasattr(self.inner, "on_pause"):
            # as Ray's HyperBandForBOHB does
            result["hyperband_info"] = {"budget": steps} if is_pause else {}
            if is_pause:
                self.inner.on_pause(trial_id)
        elif is_pause and self.has_one_result and trial_id not in self.shown:
            self.search.on_trial_complete(trial_id, result=result)
            self.shown.add(trial_id)

    def note_start(self, trial_id: str) -> None:
        """Note that a trial starts or continues."""
        if hasattr(self.inner, "on_unpause"):
            self.inner.on_unpause(trial_id)
