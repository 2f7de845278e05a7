"""Check the files that a spec names, without training or simulating: data, layers, members and queries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from unfold_supernet.members.files import check_files
from unfold_supernet.schema.supernet import SupernetSpec
from unfold_supernet.verbs import build
from unfoldkit.api import Diagnostic, Run, run_checks


def check_inputs(spec: SupernetSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files; every file is checked, whatever the others contain."""
    checks = (_check_data, _check_layers, _check_members, _check_queries)
    yield from run_checks(partial(check, spec, run) for check in checks)


def _check_data(spec: SupernetSpec, run: Run) -> None:
    if spec.data is not None:
        build.build_dataset(spec, run)


def _check_layers(spec: SupernetSpec, run: Run) -> None:
    if spec.layers is not None:
        build.build_family(spec, run)


def _check_members(spec: SupernetSpec, run: Run) -> None:
    if spec.members is not None:
        problem = build.build_member_list(spec, run)
        check_files(problem.files, problem.classes)


def _check_queries(spec: SupernetSpec, run: Run) -> None:
    if spec.queries.path is not None:
        build.build_query_stream(spec.queries, run)
