"""Open what a spec names without fitting anything: the table, its columns and labels, each mistake told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from unfold_cascade.data.dataset import read
from unfold_cascade.data.table import Frame, expand, load_frame
from unfold_cascade.planner.score_tables import heard
from unfold_cascade.schema.models import CascadeSpec
from unfold_cascade.temporal.build import build_problem
from unfold_cascade.temporal.data.features import expand_patterns
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.table import EntityTable
from unfold_cascade.temporal.problem import TemporalProblem
from unfoldkit.api import Diagnostic, Run, UnfoldError

Action = Callable[[], object]


def opened(spec: CascadeSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield what is wrong with the table that a spec names, each column of it once; nothing is written."""
    try:
        actions = list(_actions(spec, run))
    except UnfoldError as error:
        yield from error.diagnostics
        return
    told = [item for action in actions for item in _wrong(action)]
    yield from dict.fromkeys(told)


def _wrong(action: Action) -> tuple[Diagnostic, ...]:
    try:
        action()
    except UnfoldError as error:
        return tuple(error.diagnostics)
    return ()


def _actions(spec: CascadeSpec, run: Run) -> Iterator[Action]:
    """Yield what is to be tried; the table itself is read at once.

    Raises:
        UnfoldError: it cannot be read.
    """
    if spec.over_time:
        problem = build_problem(spec, run)
        yield from _hourly(problem, read_table(problem.source, run))
        return
    frame = load_frame(spec, run)
    if spec.data.source == "recorded":
        yield lambda: heard(spec, read(spec, run).names, frame)
        return
    for name in spec.features or ("",):
        yield from _columns(spec, frame, name)
    yield partial(read, spec, run)


def _hourly(problem: TemporalProblem, table: EntityTable) -> Iterator[Action]:
    for name, group in problem.features.items():
        find, key = partial(expand_patterns, {name: group}, table.columns), f"features.{name}.columns"
        if _wrong(find):
            yield find
            continue
        yield from (partial(table.column_index, column, key=key) for column in find()[name].columns)
    for s, stage in enumerate(problem.stages):
        if stage.target.column is not None:
            yield partial(table.column_index, stage.target.column, key=f"stages[{s}].target.column")


def _columns(spec: CascadeSpec, frame: Frame, name: str) -> Iterator[Action]:
    """Yield the columns of one feature group, of all where there is none; or what keeps them from being found."""
    groups = {name: spec.features[name]} if name else {}
    categories = spec.data.categories if spec.data.source == "table" else ()
    find = partial(expand, frame, groups, spec.stages[-1].target.column or "", categories, spec.group or "")
    if _wrong(find):
        yield find
        return
    # a word of a category is a number whatever it is
    read = set(frame.columns)
    for columns in find().values():
        yield from (partial(frame.flags, column, key="features") for column in columns if column in read)
