"""Check the inputs of a spec without fitting anything (``check --data``): the table, its columns and its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from unfold_cascade.build import build_dataset_options, build_recorded_models
from unfold_cascade.data.dataset import Dataset, DatasetOptions, find_missing_labels, find_similar_labels, read_dataset
from unfold_cascade.data.table import Frame, load_frame, resolve_columns
from unfold_cascade.language_models.build import build_routing_problem
from unfold_cascade.planner.recorded_scores import read_recorded_scores
from unfold_cascade.report import sentences
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.features import expand_patterns, find_longest_span
from unfold_cascade.temporal.data.labels import label_table
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.splits import split_entities
from unfold_cascade.temporal.data.table import EntityTable
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.report.sentences import describe_table
from unfoldkit.api import Diagnostic, Run, UnfoldError, run_checks

Check = Callable[[], object]


def check_inputs(spec: CascadeSpec, run: Run) -> Iterator[Diagnostic]:
    """Yield every mistake in the table of a spec, once; nothing is written."""
    try:
        checks = list(_list_checks(spec, run))
    except UnfoldError as error:
        yield from error.diagnostics
        return
    yield from dict.fromkeys(run_checks(checks))


def _list_checks(spec: CascadeSpec, run: Run) -> Iterator[Check]:
    """Yield the checks of a spec; the table itself is read immediately.

    Raises:
        UnfoldError: The table cannot be read.
    """
    if spec.over_time:
        problem = build_temporal_problem(spec, run)
        yield from _list_temporal_checks(problem, read_table(problem.source, run), run)
        return
    if spec.is_language_model:
        if spec.data.source == "recorded":
            yield partial(_check_routing, spec, run)
        return
    options = build_dataset_options(spec, run)
    frame = load_frame(options.source)
    if options.is_recorded:
        models = build_recorded_models(spec)
        yield lambda: read_recorded_scores(models, _read_dataset(options, run).names, frame)
        return
    for name in options.features or ("",):
        yield from _list_column_checks(options, frame, name)
    yield partial(_read_dataset, options, run)


def _read_dataset(options: DatasetOptions, run: Run) -> Dataset:
    """Read the data set, and log copied rows and leaked labels, which are no mistakes of the spec."""
    dataset = read_dataset(options)
    if dataset.copies:
        counts = dataset.identical, dataset.near
        text = sentences.copied_rows(*counts, dataset.source, are_grouped=options.groups_copies)
        run.log.warning("%s", text)
    similar = find_similar_labels(dataset.names)
    if similar:
        run.log.warning("%s", sentences.similar_labels(similar))
    missing = find_missing_labels(dataset.names)
    if missing:
        run.log.warning("%s", sentences.missing_labels(missing))
    if dataset.leaks:
        run.log.warning("%s", sentences.leaked_label(dataset.leaks))
    if dataset.patients and dataset.clusters is not None:
        run.log.warning("%s", sentences.repeated_patients(dataset.patients, int(dataset.clusters.max()) + 1))
    if dataset.has_unnamed_groups:
        run.log.warning("%s", sentences.unnamed_groups(dataset.source))
    for note in (*sentences.label_marks(dataset.marks, dataset.names), *sentences.doubtful_values(dataset.doubts)):
        run.log.warning("%s", note)
    return dataset


def _check_routing(spec: CascadeSpec, run: Run) -> None:
    """Read the log of language models, and log copied rows and leaked confidences."""
    problem = build_routing_problem(spec, run)
    if problem.copies is not None:
        counts = problem.copies.identical, problem.copies.near
        run.log.warning("%s", sentences.copied_rows(*counts, problem.source, are_grouped=True))
    if problem.leaks:
        run.log.warning("%s", sentences.leaked_label(problem.leaks))


def _list_temporal_checks(problem: TemporalProblem, table: EntityTable, run: Run) -> Iterator[Check]:
    for name, group in problem.features.items():
        resolve, key = partial(expand_patterns, {name: group}, table.columns), f"features.{name}.columns"
        if any(run_checks([resolve])):
            yield resolve
            continue
        yield from (partial(table.column_index, column, key=key) for column in resolve()[name].columns)
    for s, stage in enumerate(problem.stages):
        if stage.target.column is not None:
            yield partial(table.column_index, stage.target.column, key=f"stages[{s}].target.column")
    yield partial(_check_labels, problem, table, run)


def _check_labels(problem: TemporalProblem, table: EntityTable, run: Run) -> None:
    """Check that enough entities reach the stages, and log what may make figures too good, which is no mistake."""
    hours = label_table(problem, table)
    split_entities(problem, hours)
    for note in describe_table(
        problem.stage_names,
        leaks=hours.leaks,
        marks=hours.marks,
        repeated=hours.repeated,
        stays=hours.stays,
        copies=hours.copies,
        doubts=hours.doubts,
        gap_h=hours.timeline.median_gap,
        span_h=find_longest_span(problem.features.values()),
    ):
        run.log.warning("%s", note)


def _list_column_checks(options: DatasetOptions, frame: Frame, name: str) -> Iterator[Check]:
    """Yield the checks of the columns of one feature group (of all columns if ``name`` is empty)."""
    groups = {name: options.features[name]} if name else {}
    source = options.source
    excluded = (source.group, "" if options.features else options.split.column)
    resolve = partial(resolve_columns, frame, groups, options.label_column, source.categories, excluded)
    if any(run_checks([resolve])):
        yield resolve
        return
    for columns in resolve().values():
        # an indicator of a category is numeric by construction
        yield from (
            partial(frame.numbers_or_flags, column, key="features") for column in columns if column in frame.columns
        )
