"""A deadline and a budget for the tuning tools that you use already: ``from unfold_tuning import deadline``.

``deadline.optimize`` runs an Optuna study, ``deadline.UnfoldScheduler`` is a scheduler of Ray Tune. Neither package is
imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfold_tuning.deadline.optuna_study import DeadlineResult, get_checkpoint_folder, optimize
    from unfold_tuning.deadline.ray_scheduler import UnfoldScheduler

__all__ = ["DeadlineResult", "UnfoldScheduler", "get_checkpoint_folder", "optimize"]


def __getattr__(name: str) -> Any:
    """Import the part that is used."""
    if name == "UnfoldScheduler":
        from unfold_tuning.deadline import ray_scheduler

        return ray_scheduler.UnfoldScheduler
    if name in __all__:
        from unfold_tuning.deadline import optuna_study

        return getattr(optuna_study, name)
    raise AttributeError(name)
