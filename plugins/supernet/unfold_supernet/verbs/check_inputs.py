"""Open what a spec names without training or simulating: data, layers, and the table of queries."""

from __future__ import annotations

from collections.abc import Iterator

from unfold_supernet.accelerator.layer_table import tabled
from unfold_supernet.accelerator.query_table import listed
from unfold_supernet.family.datasets import load
from unfold_supernet.schema.models import SupernetSpec
from unfoldkit.api import Diagnostic, Run, UnfoldError


def opened(spec: SupernetSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files that a spec names."""
    for look in (_data, _layers, _queries):
        try:
            look(spec, run)
        except UnfoldError as error:
            yield from error.diagnostics


def _data(spec: SupernetSpec, run: Run) -> None:
    if spec.data is not None:
        load(spec.data, run, form=spec.form)


def _layers(spec: SupernetSpec, run: Run) -> None:
    if spec.layers is not None:
        tabled(run.path(spec.layers, key="layers"), spec.name)


def _queries(spec: SupernetSpec, run: Run) -> None:
    if spec.queries.path is not None:
        listed(run.path(spec.queries.path, key="queries.path"), spec.queries.policy)
