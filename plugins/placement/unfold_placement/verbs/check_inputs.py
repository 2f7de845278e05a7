"""Checks the files that a spec names, and the labels that its policies use, without a replay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.schema.policies import check_pack_levels
from unfold_placement.workload.build import build_node_changes, build_nodes, build_queue_problem, build_tasks
from unfoldkit.api import Diagnostic, Run, UnfoldError, run_checks


def check_inputs(spec: PlacementSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield the faults of a spec's files and labels; no cluster is contacted."""
    try:
        if build_queue_problem(spec, run) is not None:
            return
    except UnfoldError as error:
        yield from error.diagnostics
        return
    yield from run_checks((partial(_check_nodes, spec, run), partial(_check_tasks, spec, run)))


def _check_nodes(spec: PlacementSpec, run: Run) -> None:
    if nodes := build_nodes(spec.cluster, run):
        check_pack_levels(spec.policy, nodes)
        build_node_changes(spec.cluster, nodes, run)


def _check_tasks(spec: PlacementSpec, run: Run) -> None:
    if spec.workload.replay:
        build_tasks(spec.workload, run)
