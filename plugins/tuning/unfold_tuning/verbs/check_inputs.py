"""Checks the files that a spec names without planning: recorded times, price lists, and the training table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from unfold_tuning.job.build import build_machines, build_trainable, resolve_record
from unfold_tuning.job.problem import BUNDLED_DATASETS
from unfold_tuning.schema.tuning import TuningSpec
from unfold_tuning.trial.trainable import read_table
from unfoldkit.api import Diagnostic, Run, run_checks


def check_inputs(spec: TuningSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files that a spec names; nothing is trained, and no cloud is queried."""
    checks = (resolve_record, _check_prices, _check_table)
    yield from run_checks(partial(check, spec, run) for check in checks)


def _check_prices(spec: TuningSpec, run: Run) -> None:
    if spec.cloud.prices != "live":
        build_machines(spec.cloud, run)


def _check_table(spec: TuningSpec, run: Run) -> None:
    if spec.trainable is None or spec.trainable.data in (None, *BUNDLED_DATASETS):
        return
    path = run.path(str(spec.trainable.data), key="trainable.data")
    # only the user's function knows the form of its own data
    if spec.trainable.function is None:
        read_table(path, build_trainable(spec.trainable))
