"""The verbs of cascades. Specs of cases over time and without time have their own implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from unfold_cascade.schema.cascade import CascadeSpec
    from unfoldkit.api import Report, Run, Service


class Verbs(Protocol):
    """One implementation of the verbs: a module of this package."""

    def profile(self, spec: CascadeSpec, run: Run) -> Report:
        """Measure the cost of a call of each model."""

    def train(self, spec: CascadeSpec, run: Run) -> Report:
        """Fit, calibrate, certify and save."""

    def plan(self, spec: CascadeSpec, run: Run) -> Report:
        """Tune the gates for the goal, or check the plan of the run on new data."""

    def validate(self, spec: CascadeSpec, run: Run) -> Report:
        """Compare the promises of the run's plan with new data."""

    def serve(self, spec: CascadeSpec, run: Run) -> Service:
        """Answer requests by the plan of the run."""


def profile(spec: CascadeSpec, run: Run) -> Report:
    """Fit the models that the run does not store, and report the operations, bytes and time of one row."""
    return _select_verbs(spec).profile(spec, run)


def train(spec: CascadeSpec, run: Run) -> Report:
    """Fit all models, tune and certify the gates, compare with the baseline, and save everything in the run."""
    return _select_verbs(spec).train(spec, run)


def plan(spec: CascadeSpec, run: Run) -> Report:
    """Find the cheapest certified cascade, or the most accurate within the budget, with its Pareto front.

    Models that the run does not store are fitted. A plan that is checked on new data is compared with them instead.
    """
    return _select_verbs(spec).plan(spec, run)


def validate(spec: CascadeSpec, run: Run) -> Report:
    """Compare what the plan of the run promised with the data of ``run.options["data"]``: kept, broken or undecided.

    Raises:
        UnfoldError: The run stores no such plan, or the data lack a column or hold an unknown label.
    """
    return _select_verbs(spec).validate(spec, run)


def serve(spec: CascadeSpec, run: Run) -> Service:
    """Build the service of what ``train`` or ``plan`` left in the run; nothing is fitted.

    Raises:
        UnfoldError: The run stores no plan of this spec, a file was changed, or its models predict differently now.
    """
    return _select_verbs(spec).serve(spec, run)


def _select_verbs(spec: CascadeSpec) -> Verbs:
    # at the call: each implementation loads its own libraries
    if spec.over_time:
        from unfold_cascade.verbs import temporal

        return temporal
    if spec.is_language_model:
        from unfold_cascade.verbs import language_models

        return language_models
    from unfold_cascade.verbs import static

    return static
