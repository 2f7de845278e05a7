"""Open what a spec names without replaying it: nodes and tasks from files, and the labels that policies speak of."""

from __future__ import annotations

from collections.abc import Iterator

from unfold_placement.schema.models import PlacementSpec
from unfold_placement.verbs.plan import labelled
from unfold_placement.workload.build import build_nodes, build_tasks
from unfoldkit.api import Diagnostic, Run, UnfoldError


def check_inputs(spec: PlacementSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the files of a spec, and with labels that no node has; no cluster is asked."""
    for look in (_nodes, _tasks):
        try:
            look(spec, run)
        except UnfoldError as error:
            yield from error.diagnostics


def _nodes(spec: PlacementSpec, run: Run) -> None:
    if nodes := build_nodes(spec.cluster, run):
        labelled(spec.policy, nodes)


def _tasks(spec: PlacementSpec, run: Run) -> None:
    if spec.workload.replay:
        build_tasks(spec.workload, run)
