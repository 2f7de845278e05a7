"""The report of ``unfold train`` on a user's module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unfold_supernet.modules.int8 import PrecisionChoice
from unfold_supernet.modules.problem import EAGER_BATCH, ModuleProblem, ModuleResult
from unfold_supernet.report import sentences
from unfold_supernet.report.front import draw_front
from unfold_supernet.report.heads import note_undefined_outputs, tabulate_heads
from unfold_supernet.report.tables import scale_column, tabulate_calibration, tabulate_classes, tabulate_gaps
from unfold_supernet.report.training import (
    MICRO,
    WEIGHT_BYTES,
    collect_quality_metrics,
    describe_verdict,
    note_data,
    note_missed_classes,
    outline_report,
)
from unfoldkit.api import Cell, Column, Metric, Report, RunDir, Table

MAX_REASONS = 4


def build_module_report(problem: ModuleProblem, result: ModuleResult, directory: RunDir) -> Report:
    """Build the report of a training of a user's module; ``directory`` is the run that it names for the next verb."""
    names = problem.data.names
    tables = [_tabulate_members(result)]
    tables += [tabulate_gaps(result.comparisons)] if result.comparisons else []
    tables += [tabulate_classes(names, result.classifiers)] if result.classifiers else []
    tables += tabulate_heads(result.verdict.task, names, result.heads)
    tables += [tabulate_calibration(result.calibration)] if result.calibration else []
    return replace(
        outline_report(problem, result, f"{len(result.qualities)} members"),
        metrics=_collect_metrics(result),
        tables=tuple(tables),
        figures=(
            draw_front(
                result.qualities, result.seconds_by_batch, result.front, result.comparisons, result.verdict.task
            ),
        ),
        lines=_write_lines(problem, result),
        notes=(
            *note_data(problem.data, problem.leaks),
            *note_missed_classes(names, result.classifiers),
            *note_undefined_outputs(names, result.heads),
            *_write_notes(problem, result),
        ),
        next=f"unfold serve {directory.word}" if result.verdict.is_met else "unfold train SPEC --allow-code",
    )


def _collect_metrics(result: ModuleResult) -> dict[str, Metric]:
    ratios = [result.eager_seconds[name] / result.seconds_by_batch[name][EAGER_BATCH] for name in result.qualities]
    int8 = sum(choice.is_int8 for choice in result.precisions.values())
    # which engine is faster depends on the machine
    precision = {"int8_members": Metric(int8, timed=True)} if result.precisions else {}
    return (
        collect_quality_metrics(result)
        | precision
        | {
            "engine_ratio_min": Metric(min(ratios), "x", timed=True),
            "train_seconds": Metric(result.training_s, "s", timed=True),
        }
    )


def _tabulate_members(result: ModuleResult) -> Table:
    macs_column, macs = scale_column("operations", "kMAC", list(result.macs.values()), 0)
    measures = _collect_measures(result)
    columns = (
        Column("member"),
        Column(sentences.name_score(result.verdict.task), "%", 2),
        Column("±", "points", 2),
        *(Column(name, "%", 1) for name in next(iter(measures.values()))),
        macs_column,
        Column("weights", "kB", 1),
        Column("batch 1", "µs", 0, timed=True),
        Column("batch 32", "µs", 0, timed=True),
        Column("batch 32 in torch", "µs", 0, timed=True),
        Column("front"),
    )
    rows: list[tuple[Cell, ...]] = []
    front = set(result.front)
    for (name, quality), work in zip(result.qualities.items(), macs, strict=True):
        seconds = result.seconds_by_batch[name]
        times = [seconds[1], seconds[EAGER_BATCH], result.eager_seconds[name]]
        rows.append(
            (
                name,
                quality.score,
                quality.half_width,
                *measures[name].values(),
                work,
                result.parameters[name] * WEIGHT_BYTES / 1e3,
                *(time * MICRO for time in times),
                name in front,
            )
        )
    return Table("members", columns, tuple(rows))


def _collect_measures(result: ModuleResult) -> dict[str, dict[str, float]]:
    """Collect the measures beside the score of each member, by name."""
    measures = {name: {"macro F1": quality.macro_f1} for name, quality in result.classifiers.items()}
    return measures | {name: quality.measures for name, quality in result.heads.items()}


def _write_lines(problem: ModuleProblem, result: ModuleResult) -> tuple[tuple[str, str], ...]:
    source = f"{problem.source.module}:{problem.source.function}"
    lines = [
        ("module", sentences.describe_module(source, result.groups, result.attentions, result.skippable)),
        ("front", sentences.describe_front(result.verdict.task, result.front)),
        *describe_verdict(result.verdict),
        ("files", sentences.list_member_files(result.verdict.task)),
    ]
    if problem.max_int8_loss is not None:
        lines.append(("precision", _describe_precisions(result.precisions, problem.max_int8_loss)))
    if result.inelastic:
        shared = list(result.inelastic[:MAX_REASONS])
        text = sentences.list_shared_parts(shared, len(result.inelastic) - len(shared))
        lines.insert(1, ("shared in full", text))
    return tuple(lines)


def _describe_precisions(precisions: Mapping[str, PrecisionChoice], max_loss: float) -> str:
    chosen = [name for name, choice in precisions.items() if choice.is_int8]
    relevant = [precisions[name] for name in chosen] or [choice for choice in precisions.values() if choice.speedup]
    if not relevant:
        return sentences.describe_precision_choice((), None, 100.0, max_loss, 0)
    if chosen:
        speedup = min(choice.speedup or 0.0 for choice in relevant)
        loss_bound = max(choice.loss_bound for choice in relevant)
    else:
        best = min(relevant, key=lambda choice: (choice.loss_bound > max_loss, -(choice.speedup or 0.0)))
        speedup, loss_bound = best.speedup or 0.0, best.loss_bound
    return sentences.describe_precision_choice(chosen, speedup, loss_bound, max_loss, relevant[0].rows)


def _write_notes(problem: ModuleProblem, result: ModuleResult) -> tuple[str, ...]:
    extra = 0 if result.takes_extra else problem.data.extra.shape[1]
    return (sentences.note_unused_numbers(extra),) if extra else ()
