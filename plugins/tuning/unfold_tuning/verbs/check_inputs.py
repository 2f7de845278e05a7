"""Open what a spec names without planning: recorded times, price lists, and the table to learn from."""

from __future__ import annotations

from collections.abc import Iterator

from unfold_tuning.job.build import machines_of
from unfold_tuning.job.trial_logs import resolved
from unfold_tuning.schema.models import TuningSpec
from unfold_tuning.trial.trainable import SETS, table
from unfoldkit.api import Diagnostic, Run, UnfoldError


def opened(spec: TuningSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files that a spec names; nothing is trained, and no cloud is asked."""
    for look in (resolved, _prices, _table):
        try:
            look(spec, run)
        except UnfoldError as error:
            yield from error.diagnostics


def _prices(spec: TuningSpec, run: Run) -> None:
    if spec.cloud.prices != "live":
        machines_of(spec, run)


def _table(spec: TuningSpec, run: Run) -> None:
    given = spec.trainable
    if given is None or given.data in (None, *SETS):
        return
    path = run.path(str(given.data), key="trainable.data")
    # what a function of the user's makes of its file, only the function knows
    if given.function is None:
        table(path, given)
