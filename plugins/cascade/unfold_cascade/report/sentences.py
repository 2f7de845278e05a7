"""Every user-visible sentence of cascades without time, as functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unfold_cascade.data.changed_units import ChangedUnit
from unfold_cascade.data.doubtful_values import MIN_SHARE, Doubt
from unfold_cascade.data.error_costs import ErrorWeights
from unfold_cascade.data.leakage import LabelMark
from unfold_cascade.planner.problem import COPIES
from unfoldkit.api import attach_unit, format_amount, format_count

FREE = "free"
MIN_ROUNDED_RATIO = 1.1
"""From this ratio on, one decimal says enough."""
ROUNDING = 1e-9


def choice_of_models(count: int) -> str:
    """Count the models that a cascade may choose from."""
    return f"{format_count(count, 'model')} to choose from"


def loss(points: float) -> str:
    """Write a loss in points; a loss that rounds to zero has no sign."""
    return f"{round(points, 1) + 0.0:.1f}"


def loss_or_gain(points: float, digits: int = 1) -> str:
    """Write what a cascade loses against the baseline in points, or what it gains if the loss is negative."""
    rounded = round(points, digits) + 0.0
    return f"{'gain' if rounded < 0 else 'loss'} {abs(rounded):.{digits}f} points"


def short_saving(ratio: float | None) -> str:
    """Write a saving in one word, a ratio below 1 never as 1.0x; ``None`` means that the cascade costs nothing."""
    if ratio is None:
        return FREE
    return f"{ratio:,.1f}x" if ratio >= MIN_ROUNDED_RATIO else f"{math.floor(100 * ratio + ROUNDING) / 100:.2f}x"


def headline(ratio: float | None, baseline_cost: float, unit: str, loss_points: float, folder: str) -> str:
    """Summarize a cascade that meets its goal."""
    if ratio is None:
        saving = f"free instead of {attach_unit(format_amount(baseline_cost), unit)} per case"
    elif ratio < 1:
        saving = f"costs {math.ceil(100 * (1 / ratio - 1)):.0f} % more than the baseline"
    else:
        saving = f"{short_saving(ratio)} cheaper"
    return f"{saving}, {loss_or_gain(loss_points)} · saved in {folder}"


def use_baseline(name: str, reason: str) -> str:
    """Recommend the baseline alone, with the reason."""
    return f"use {name} alone: {reason}"


def no_saving(min_saving: float | None) -> str:
    """State that no cascade saves enough on the tuning cases."""
    return "no cascade is cheaper" if min_saving is None else f"no cascade is {min_saving:g}x cheaper"


def uncertain_saving(unit_count: int, cluster_column: str | None, min_saving: float, confidence: float) -> str:
    """State that the cases do not certify the saving."""
    cases = f"{unit_count} {units(cluster_column)}"
    return f"{cases} certify no saving of {min_saving:g}x with {percent(confidence)} confidence"


def certified_costs(min_saving: float | None, budget: float | None, unit: str) -> str:
    """State the bounds on the cost that a certificate covers."""
    bounds = [] if budget is None else [f"cost ≤ {attach_unit(f'{budget:g}', unit)} per case"]
    return " and ".join(bounds + ([] if min_saving is None else [f"saving ≥ {min_saving:g}x"]))


def saving_bound(ratio: float | None, bound: float, confidence: float, cases: int) -> str:
    """State the saving on the test cases with its lower bound, or the bound of a larger cost."""
    least = f"at least {short_saving(bound)}" if bound >= 1 else f"at most {math.ceil(100 * (1 / bound - 1))} % more"
    return f"{short_saving(ratio)} on {cases:,} test cases, {least} with {percent(confidence)} confidence"


def baseline_is_better(name: str, accuracy: float, cost: float, unit: str) -> str:
    """State that the baseline is within the budget and more accurate."""
    quality = f"{100 * accuracy:.1f} % correct for {attach_unit(format_amount(cost), unit)} per case"
    return f"the baseline {name} is within the budget and more accurate than any cascade: {quality}"


def over_budget(budget: float, unit: str, cheapest: float) -> str:
    """State that every cascade exceeds the budget."""
    limit = f"the budget of {attach_unit(format_amount(budget), unit)} per case"
    return f"every cascade exceeds {limit}; the cheapest costs {format_amount(cheapest)}"


def not_certified(allowed: str, relaxation: str) -> str:
    """State that no cascade is certified, and what would have to be allowed."""
    return f"no cascade is certified within {allowed}; minimal relaxation: {relaxation}"


def question(baseline: str, allowed: str, budget: float | None, unit: str) -> str:
    """Ask what a plan answers, under a limit of the loss or of the cost."""
    if budget is not None:
        return f"Does some cascade beat {baseline} at {attach_unit(format_amount(budget), unit)} per case?"
    return f"Is there a cascade that is cheaper than {baseline} and loses at most {allowed}?"


def label_bounds(confidence: float) -> dict[str, str]:
    """Label what a certificate bounds, by metric."""
    return {
        "certified_loss_points": f"loss at most, with {percent(confidence)} confidence",
        "saving_lower_bound": f"saving at least, with {percent(confidence)} confidence",
    }


def points(share: float) -> str:
    """Write a share of cases in points."""
    return f"{100 * share:g} point{'' if round(100 * share, 9) == 1 else 's'}"


def allowed_losses(max_loss: float, of_labels: Mapping[str, float]) -> str:
    """List the losses that a goal allows."""
    labels = [f'{100 * allowed:g} of "{label}"' for label, allowed in of_labels.items()]
    return " and ".join([points(max_loss), *labels])


def relaxations(options: Iterable[Iterable[tuple[str, float]]]) -> str:
    """List the minimal relaxations of a goal, any one of which certifies a cascade."""
    texts = [
        " and ".join(
            f'max_loss_of "{label}": {100 * allowed:g}%' if label else f"max_loss: {100 * allowed:g}%"
            for label, allowed in option
        )
        for option in options
    ]
    return ", or ".join(texts)


def units(cluster_column: str | None) -> str:
    """Name the independent units of a certificate."""
    if cluster_column == COPIES:
        return "distinct rows"
    return "cases" if cluster_column is None else f"groups by {cluster_column}"


def certificate(
    *,
    baseline: str,
    cluster_column: str | None,
    certified_loss: float,
    of_labels: Mapping[str, float],
    confidence: float,
    unit_count: int,
    method: str,
    test_loss_points: float,
    has_rejections: bool,
    costs: str = "",
) -> str:
    """State the certified loss of a cascade, and the bounds on its ``costs``."""
    unit = "distinct row" if cluster_column == COPIES else cluster_column
    average = "" if unit is None else f" for the average {unit}"
    text = f"loss against {baseline}{average} ≤ {_round_up_points(certified_loss)}"
    text += "".join(f', of "{label}" ≤ {100 * allowed:g}' for label, allowed in of_labels.items())
    text += f" and {costs}" if costs else ""
    text += f" with {percent(confidence)} confidence"
    text += f" ({unit_count} {units(cluster_column)}, {method} test; {loss(test_loss_points)} on test)"
    return text + ("; cheaper cascades were not certified" if has_rejections else "")


def vacuous_certificate(
    baseline: str, cluster_column: str | None, unit_count: int, confidence: float, test_loss_points: float
) -> str:
    """State that the certified loss is as large as any loss could be."""
    claim = f"{unit_count} {units(cluster_column)} cannot rule out any loss against {baseline}"
    return f"none: {claim} with {percent(confidence)} confidence ({loss(test_loss_points)} on test)"


def no_certificate(reason: str) -> str:
    """State why there is no certificate."""
    return f"none: {reason}"


def cannot_certify(cluster_column: str | None, unit_count: int, allowed: str, confidence: float) -> str:
    """State that the data do not certify the allowed loss."""
    return f"{unit_count} {units(cluster_column)} cannot certify ≤ {allowed} with {percent(confidence)} confidence"


def too_few_units(refusal: str, cluster_column: str | None, smallest: float, needed: int) -> str:
    """Add that even perfect results would not certify the loss, and how many units would."""
    unit = units(cluster_column)
    return f"{refusal}: without any error they certify {smallest * 100:.2f}; {needed:,} {unit} are needed"


def least_certified(refusal: str, min_loss: float) -> str:
    """Add the smallest loss that the data certify."""
    return f"{refusal}; the smallest loss that they certify is {min_loss * 100:g}"


def front_range(count: int, lowest: str, highest: str) -> str:
    """Describe the range of savings along the Pareto front."""
    return f"{format_count(count, 'cascade')}, savings from {lowest} to {highest}; plot: --out report.html"


def own_table(name: str) -> str:
    """State that new data are the table of the run itself."""
    return f"{name} is the table of the run, or part of it; its models or gates were fitted there and look too good"


def known_cases(known: int, name: str) -> str:
    """State that some of the new data are rows of the run."""
    return f"{format_count(known, 'row')} of {name} left out: the run has seen the same features"


def greedy_gap(gaps: Sequence[tuple[str, float | None]]) -> str:
    """Compare the paper's greedy gates with the exact ones; ``None`` where greedy does not reach the loss."""
    texts = [f"{name} {gap:+.0f} %" if gap is not None else f"{name} not reached" for name, gap in gaps]
    return f"cost of the paper's greedy search at the same loss: {', '.join(texts)}"


def baseline_drop(baseline: str, tuning: float, test: float) -> str:
    """Warn that the baseline itself fails on the test cases, which no loss against it shows."""
    shares = f"{100 * test:.1f} % of the test cases and in {100 * tuning:.1f} % of the tuning cases"
    hint = "no loss relative to it reveals this; are labels coded the same way in all parts?"
    return f"{baseline} is right in {shares}: {hint}"


def class_skew(label: str, share: float, others: int, baseline: str, of_baseline: int, of_cascade: int | None) -> str:
    """State how many cases of rare labels are answered correctly."""
    cascade = [] if of_cascade is None else [f"the cascade {of_cascade:,}"]
    counts = ", ".join([*cascade, f"{baseline} {of_baseline:,}"])
    return f'{100 * share:.1f} % of the test cases are "{label}"; correct among the {others:,} others: {counts}'


def error_costs(weights: ErrorWeights) -> str:
    """Explain the costs of errors."""
    if weights == "balanced":
        costs = "errors on each label have the same total weight"
    else:
        costs = ", ".join((*_list_error_costs(weights), "any other error 1"))
    return f"{costs}; losses are shares of the worst possible cost"


def split(train: int, calibrate: int, test: int, *, is_recorded: bool) -> str:
    """Describe the parts of the data."""
    how = "" if is_recorded else " (out of fold)"
    return f"{train:,} cases to tune{how}, {calibrate:,} to certify, {test:,} to evaluate"


def left_out_sites(sites: int, lowest: float, highest: float, kept: int | None) -> str:
    """Summarize the losses at sites that were left out in turn, and how many kept the allowed loss."""
    text = f"each of {sites} left out in turn: loss from {loss(lowest)} to {loss(highest)} points"
    return text if kept is None else f"{text}; {kept} of {sites} within the allowed loss"


def utility_of_sites(lowest: float, highest: float) -> str:
    """State the spread of the utility across sites."""
    return f"; utility from {lowest:.3f} to {highest:.3f}"


RECALIBRATED = "thresholds were refitted on local cases and certified on others of them; the models are unchanged"
NOT_VALIDATED = "earlier or later periods and other sites: the intervals cover only cases drawn like these"
NOT_CONCLUDED = "loss, utility, sensitivity and every other outcome that needs labels: any of them may have changed"


def validation_headline(broken: Sequence[str], kept: Sequence[str], undecided: Sequence[str]) -> str:
    """Summarize which promises are broken, kept and undecided."""
    parts = [f"broken: {', '.join(broken)}"] if broken else []
    parts += [f"kept: {', '.join(kept)}"] if kept else []
    parts += [f"undecided: {', '.join(undecided)}"] if undecided else []
    return " · ".join(parts)


def intervals_of_validation(confidence: float) -> str:
    """State what the intervals of a validation mean together."""
    return f"all hold together with {percent(confidence)} confidence; undecided means that more cases are needed"


def estimate_before(value: float, low: float, high: float) -> str:
    """Write what the test data of a plan showed, with its interval."""
    return f"{value:.3g} [{low:.3g}, {high:.3g}]" if low == low else f"{value:.3g}"  # noqa: PLR0124 - NaN


def concluded_without_labels(*, has_drifted: bool) -> str:
    """State what data without labels show about a certificate."""
    if has_drifted:
        return "these cases differ from those of the plan, so its certificate does not cover them"
    return "no comparison shows that these cases differ from those of the plan"


def not_promised(labels: Sequence[str], *, has_saving: bool) -> str:
    """List what the certificate does not cover; ``labels`` are those without a guarantee of their own."""
    names = ", ".join(f'"{label}"' for label in labels[:4]) + ", ..." * (len(labels) > 4)
    items = [f"the loss within {names}"] if labels else []
    items += [] if has_saving else ["a saving"]
    return ", ".join([*items, "other mixes of cases, other sites and later times"])


def attempt(number: int, joint_confidence: float, allowed: int) -> str:
    """State which attempt on the data a certificate is, and the confidence that all of them hold together."""
    of_allowed = f" of {allowed:,}" if allowed > 1 else ""
    text = f"{number:,}{of_allowed} on these data"
    joint = f"certificates up to this one hold together with {percent(joint_confidence)} confidence"
    return f"{text}; {joint}" if number > 1 or allowed > 1 else text


def percent(share: float) -> str:
    """Write a confidence: ``95 %``, or ``99.75 %`` where it is shared by several attempts."""
    return f"{100 * share:.6g} %"


def copied_rows(identical: int, near: int, table: str, *, are_grouped: bool) -> str:
    """State how many rows repeat others, and what is made of them."""
    kinds = [f"{identical:,} identical"] * (identical > 0) + [f"{near:,} near-identical"] * (near > 0)
    effect = "they share a part of the split and count once" if are_grouped else "each counts as a case of its own"
    return f"{format_count(identical + near, 'row')} of {table} repeat others ({' and '.join(kinds)}): {effect}"


def leaked_label(columns: Sequence[str], remedy: str = "remove it, or list it in data.trusted") -> str:
    """State which columns predict the label, or the right answers, on their own."""
    names = ", ".join(f'"{name}"' for name in columns[:3]) + ", ..." * (len(columns) > 3)
    verb = "predict" if len(columns) > 1 else "predicts"
    return f"{names} {verb} the label without error, as a leaked label would; {remedy}"


def repeated_patients(column: str, clusters: int) -> str:
    """State that the rows of one patient count as one case, though the spec names no group."""
    text = f'rows share a patient by "{column}", so they are split and certified as {format_count(clusters, "group")}'
    return f"{text} (data.group: {column} says so; data.duplicates: keep counts every row)"


def unnamed_groups(table: str) -> str:
    """Warn that a random split puts similar rows on both sides, so that new cases fare worse than those of the test."""
    text = f"rows of {table} lie in close groups, as several rows of one patient or device do"
    return f"{text}; name their column (data.group), or results on new ones will be worse than stated here"


def doubtful_values(doubts: Sequence[Doubt]) -> tuple[str, ...]:
    """Warn of columns with codes for missing values, with two units, or with row numbers."""
    return tuple(_doubtful_column(doubt) for doubt in doubts[:3]) + ("and other columns",) * (len(doubts) > 3)


def label_marks(marks: Sequence[LabelMark], labels: Sequence[str], noun: str = "cases") -> tuple[str, ...]:
    """Warn of columns that may be known only after the outcome."""
    lines = tuple(_label_mark(mark, labels[mark.label], noun) for mark in marks[:3])
    return lines + ("and other columns",) * (len(marks) > 3)


def _label_mark(mark: LabelMark, label: str, noun: str) -> str:
    states = {"filled": "has a value", "empty": "is empty", "nonzero": "is not 0"}
    state = states.get(mark.state, f"is {mark.state}")
    cases = f'in {100 * mark.share:.0f} % of the {noun} of "{label}" and in hardly any other'
    return f'"{mark.column}" {state} {cases}; leave it out if it is known only after the outcome'


def _doubtful_column(doubt: Doubt) -> str:
    if doubt.is_counter:
        return f'"{doubt.column}" grows from row to row, as a row number or an identifier does: leave it out'
    if doubt.code is None:
        return f'"{doubt.column}" seems to hold {doubt.units} ({100 * doubt.share:.0f} %): convert one of them'
    digits = ".2g" if doubt.is_isolated or doubt.share < MIN_SHARE else ".1f"
    share = f"{100 * doubt.share:{digits}} %"
    if doubt.is_isolated:
        return (
            f'"{doubt.column}" is far from its other values in {share} of its rows, such as {doubt.code:g}: check them'
        )
    values = f'"{doubt.column}" is {doubt.code:g} in {share} of its rows, far from its other values'
    return f"{values}: if this marks missing values, leave the cells empty"


def changed_units(changes: Iterable[ChangedUnit]) -> tuple[str, ...]:
    """Warn of columns that seem to be in another unit than in the run."""
    return tuple(
        f'"{change.column}" has the median {change.now:.4g}, and {change.before:.4g} in the run; '
        f"they differ as {change.units}, so convert them if the units differ"
        for change in sorted(changes, key=lambda change: change.column)
    )


def missing_labels(names: Sequence[str]) -> str:
    """Warn of labels that may mark missing ones."""
    quoted = ", ".join(f'"{name}"' for name in names[:3])
    return f"{quoted} may mark missing labels: leave these cells empty, unless they are a class of their own"


def similar_labels(pairs: Sequence[tuple[str, str]]) -> str:
    """Warn of labels that differ only in case or in how they are encoded."""
    texts = " and ".join(f'"{one}" and "{other}"' for one, other in pairs[:2]) + ", ..." * (len(pairs) > 2)
    return f"{texts} differ only in case or encoding and count as different labels"


def unlabelled_rows(count: int, table: str) -> str:
    """State that rows without a label were skipped."""
    return f"skipped {format_count(count, 'row')} of {table} without a label"


def models_measured(count: int, batch: int) -> str:
    """Summarize the profile of the models."""
    return f"{format_count(count, 'model')} measured with {format_count(batch, 'row')} per call"


def served_policy(baseline: str, *, is_cascade: bool) -> str:
    """State what a service answers with."""
    return "the cascade of the plan" if is_cascade else f"the baseline {baseline}: no cascade was certified"


def engines(how: str, names: Sequence[str], *, is_only_one: bool) -> str:
    """State which runtime answers for some models."""
    return f"{how} ({format_count(len(names), 'model')})" if is_only_one else f"{how}: {', '.join(names)}"


def _list_error_costs(weights: Mapping[str, float | Mapping[str, float]]) -> Iterator[str]:
    for label, cost in weights.items():
        if isinstance(cost, Mapping):
            yield from (f'"{label}" predicted as "{answer}" costs {weight:g}' for answer, weight in cost.items())
        else:
            yield f'an error on "{label}" costs {cost:g}'


def _round_up_points(certified_loss: float) -> str:
    """Write a loss in points, rounded up: a guarantee must not be printed smaller than it is."""
    return points(math.ceil(round(certified_loss * 10_000, 6)) / 10_000)


FLOW_TITLE = "The path of the test cases: which model answers, at what cost, and how often it is right"
EXITS_TITLE = "Correct answers by the model that answers, with 95 % intervals"
RISK_TITLE = "Wrong answers among those that a gate trusts, by how many it trusts"
RELIABILITY_TITLE = "Right answers by the score that a gate reads"
THRESHOLDS = "thresholds of the plan"
AS_STATED = "as the score says"
CORRECT = "→ correct"
WRONG = "→ wrong"


def call_cost(cost: float, unit: str, digits: int) -> str:
    """State the cost of one call of a model."""
    # a unit such as $/10k has its number of calls
    return attach_unit(f"{cost:,.{digits}f}", unit) + ("" if "/" in unit else " a call")


def exit_cases(model: str, cases: int) -> str:
    """Name a model with the number of cases that it answers."""
    return f"{model} ({format_count(cases, 'case')})"


def second_stage(stage: str, groups: int) -> str:
    """Name the second stage where its groups are shown as one."""
    return f"{stage} ({format_count(groups, 'group')})"
