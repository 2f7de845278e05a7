"""The report of ``unfold train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unfold_supernet._types import Task
from unfold_supernet.family.datasets import Dataset
from unfold_supernet.family.target_leakage import Leak
from unfold_supernet.modules.problem import ModuleProblem, ModuleResult
from unfold_supernet.networks.space import count_parameters
from unfold_supernet.report import sentences
from unfold_supernet.report.front import draw_front
from unfold_supernet.report.tables import (
    MAX_CLASSES,
    describe_engine_plan,
    note_busy_measurement,
    scale_column,
    tabulate_calibration,
    tabulate_classes,
    tabulate_engines,
    tabulate_gaps,
)
from unfold_supernet.training.accuracy import Difference, SubnetQuality
from unfold_supernet.training.problem import TrainingProblem, TrainingResult
from unfold_supernet.training.verdict import FamilyVerdict
from unfoldkit.api import Cell, Column, Metric, Report, Table, Verdict, format_count

MICRO = 1e6
MAX_LISTED_STEPS = 16
WEIGHT_BYTES = 4
MAX_LEAKS = 3
"""Labels or values for which a report names the leaking columns."""


def build_training_report(problem: TrainingProblem, result: TrainingResult) -> Report:
    """Report every subnet of a trained family: accuracy, latency, calibration, gap to standalone models, and engine."""
    tables = [
        _tabulate_subnets(result),
        tabulate_classes(problem.data.names, result.qualities),
        _tabulate_switches(result),
        tabulate_engines(result.engine_costs, result.engine_plan),
    ]
    if result.calibration:
        tables.insert(2, tabulate_calibration(result.calibration))
    if result.comparisons:
        tables.insert(1, tabulate_gaps(result.comparisons))
    return replace(
        outline_report(problem, result, format_count(len(result.qualities), "subnet")),
        metrics=_collect_metrics(result),
        tables=tuple(tables),
        figures=(draw_front(result.qualities, result.seconds_by_batch, result.front, result.comparisons),),
        lines=_write_lines(result),
        notes=(
            *note_data(problem.data, problem.leaks),
            *note_missed_classes(problem.data.names, result.qualities),
            *note_busy_measurement(result.engine_plan),
        ),
        next="unfold plan SPEC" if result.verdict.is_met else "unfold train SPEC",
    )


def outline_report(
    problem: TrainingProblem | ModuleProblem, result: TrainingResult | ModuleResult, size: str
) -> Report:
    """Build what the reports of all trainings share: the answer, the data, and the ``size`` of the family in words."""
    gaps = [comparison.gap for comparison in result.comparisons.values()]
    scores, data = [quality.score for quality in result.qualities.values()], problem.data
    answer = sentences.state_training(
        result.verdict.task,
        len(scores),
        min(scores),
        max(scores),
        len(result.front),
        describe_gap(gaps) if gaps else "",
    )
    return Report(
        kind="supernet",
        verb="train",
        name=problem.name,
        verdict=Verdict.YES if result.verdict.is_met else Verdict.NO,
        question=sentences.ASK_FOR_TRAINING,
        headline=_state_misses(result.verdict) or answer,
        subtitle=(size, data.about, f"{len(data.train):,} to train", f"{len(data.test):,} to test"),
        provenance={"inputs": {data.about: data.digest}},
    )


def _state_misses(verdict: FamilyVerdict) -> str:
    """State why the answer is no; empty if it is yes."""
    goal, task, misses = verdict.goal, verdict.task, list[str]()
    if verdict.useless:
        misses.append(sentences.state_useless_subnets(task, verdict.useless, verdict.constant))
    if not verdict.grows:
        misses.append(sentences.state_no_growth(task))
    if verdict.misses_score and goal.score is not None:
        misses.append(sentences.state_missed_score(task, verdict.score_bound, goal.score))
    if verdict.misses_sharing and goal.max_sharing_cost is not None and verdict.sharing_bound is not None:
        misses.append(sentences.state_missed_sharing(verdict.sharing_bound, goal.max_sharing_cost))
    return "; ".join(misses)


def describe_verdict(verdict: FamilyVerdict) -> tuple[tuple[str, str], ...]:
    """Describe the constant that members must beat, and after a no what to change."""
    lines = (("constant", sentences.state_constant(verdict.task, verdict.constant)),)
    return lines if verdict.is_met else (*lines, ("change", sentences.advise_training(_name_advice(verdict))))


def _name_advice(verdict: FamilyVerdict) -> str:
    """Name the change that most likely turns a no into a yes."""
    if verdict.useless:
        return "useless"
    if not verdict.grows:
        return "growth"
    return "score" if verdict.misses_score else "sharing"


def describe_gap(gaps: Sequence[Difference]) -> str:
    """Describe the largest weight-sharing gap; one that may be chance on these test rows is described as such."""
    largest = max(gaps, key=lambda gap: gap.points)
    if largest.points <= 0:
        return sentences.state_no_gap()
    if any(gap.points > 0 and gap.is_significant for gap in gaps):
        return sentences.state_gap(largest.points)
    return sentences.state_insignificant_gap(largest.points, largest.error)


def _collect_metrics(result: TrainingResult) -> dict[str, Metric]:
    costs = result.switch_costs
    metrics = collect_quality_metrics(result) | {
        "switch_us_p50": Metric(costs.switch_p50_s * MICRO, "µs", timed=True),
        "switch_us_p99": Metric(costs.switch_p99_s * MICRO, "µs", timed=True),
        "view_ratio_max": Metric(max(costs.view_ratios.values()), "x", timed=True),
        "engine_ratio_min": Metric(min(result.engine_plan.speedups.values()), "x", timed=True),
        "memory_ratio": Metric(costs.shared_bytes / costs.separate_bytes),
        "train_seconds": Metric(result.training_s, "s", timed=True),
    }
    for size, comparison in zip(("min", "mid", "max"), result.comparisons.values(), strict=False):
        metrics[f"sharing_cost_{size}_points"] = Metric(comparison.gap.points, "points")
    return metrics


def _tabulate_subnets(result: TrainingResult) -> Table:
    macs_column, macs = scale_column("operations", "kMAC", result.macs, 0)
    columns = (
        Column("subnet"),
        Column("accuracy", "%", 2),
        Column("±", "points", 2),
        Column("macro F1", "%", 1),
        macs_column,
        Column("weights", "kB", 1),
        Column("batch 1", "µs", 0, timed=True),
        Column("batch 32", "µs", 0, timed=True),
        Column("front"),
    )
    front = set(result.front)
    sizes = {
        subnet.name: count_parameters(result.space, subnet) * WEIGHT_BYTES / 1e3 for subnet in result.space.subnets
    }
    rows: list[tuple[Cell, ...]] = []
    for (name, quality), work in zip(result.qualities.items(), macs, strict=True):
        times = [result.seconds_by_batch[name][batch] * MICRO for batch in (1, 32)]
        scores = quality.accuracy, quality.half_width, quality.macro_f1
        rows.append((name, *scores, work, sizes[name], *times, name in front))
    return Table("subnets", columns, tuple(rows))


def _tabulate_switches(result: TrainingResult) -> Table:
    costs = result.switch_costs
    mechanisms = (
        ("first inference after a switch (median)", costs.switch_p50_s),
        ("first inference after a switch (p99)", costs.switch_p99_s),
        ("binding views again", costs.bind_s),
        ("loading a state in place", costs.load_state_s),
    )
    rows = tuple((name, seconds * MICRO) for name, seconds in mechanisms)
    return Table("model switch", (Column("mechanism"), Column("extra time", "µs", 2, timed=True)), rows)


def collect_quality_metrics(result: TrainingResult | ModuleResult) -> dict[str, Metric]:
    """Collect the metrics of the score, weight sharing and calibration, which every family has."""
    scores = [quality.score for quality in result.qualities.values()]
    # keys of earlier reports for classifiers
    names: dict[Task, tuple[str, str]] = {
        "classes": ("accuracy", "majority_accuracy"),
        "labels": ("auroc", "constant_auroc"),
        "values": ("r2", "constant_r2"),
    }
    gaps = [comparison.gap.points for comparison in result.comparisons.values()]
    errors, verdict = result.calibration.values(), result.verdict
    name, constant = names[verdict.task]
    return {
        "front_points": Metric(len(result.front), label="subnets on the front"),
        f"{name}_min": Metric(min(scores), "%"),
        f"{name}_max": Metric(max(scores), "%"),
        "cost_of_sharing_points": Metric(max(gaps, default=None), "points", label="largest cost of sharing"),
        constant: Metric(verdict.constant, "%", label="a constant answer reaches"),
        f"{name}_bound": Metric(verdict.score_bound, "%", label="best subnet, at least (95 %)"),
        "sharing_cost_bound_points": Metric(verdict.sharing_bound, "points", label="cost of sharing, at most (95 %)"),
        "ece_points_max": Metric(max((error.after for error in errors), default=None), "points"),
        "ece_points_max_uncalibrated": Metric(max((error.before for error in errors), default=None), "points"),
    }


def _write_lines(result: TrainingResult) -> tuple[tuple[str, str], ...]:
    costs, search = result.switch_costs, result.search
    steps = result.steps | {name: result.steps.get(name, 0) for name in result.qualities}
    lines = (
        ("front", sentences.describe_front(result.verdict.task, result.front)),
        ("steps", sentences.describe_steps(steps, MAX_LISTED_STEPS)),
        ("model switch", sentences.explain_switch(costs.switch_p50_s * MICRO)),
        ("views", sentences.state_view_cost(max(costs.view_ratios.values()))),
        *describe_engine_plan(result.engine_plan),
        *describe_verdict(result.verdict),
        ("memory", sentences.state_memory(costs.shared_bytes, costs.separate_bytes)),
        ("files", sentences.list_files()),
    )
    if search is None:
        return lines
    text = sentences.describe_search(search.count, search.measured, search.rank_correlation)
    return (("search", text), *lines)


def note_data(data: Dataset, leaks: Sequence[Leak]) -> tuple[str, ...]:
    """Name columns that leak a target, and a group with rows on both sides of the split."""
    listed = [sentences.note_leak(data.task, leak.columns, leak.target, leak.score) for leak in leaks[:MAX_LEAKS]]
    return (*listed, *([sentences.note_unnamed_group(data.unnamed_group)] if data.unnamed_group else []))


def note_missed_classes(names: Sequence[str], qualities: Mapping[str, SubnetQuality]) -> tuple[str, ...]:
    """Name the classes that no member ever recognizes; accuracy hides them where they are rare."""
    if not qualities:
        return ()
    recalls = zip(names, *(quality.sensitivity for quality in qualities.values()), strict=True)
    missed = [name for name, *values in recalls if not any(values)]
    return (sentences.state_missed_classes(missed, MAX_CLASSES),) if missed else ()
