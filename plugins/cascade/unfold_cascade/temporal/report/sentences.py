"""Every user-visible sentence of cascades over time, as functions of plain values: one place to edit their English."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unfold_cascade.data.doubtful_values import Doubt
from unfold_cascade.data.leakage import LabelMark
from unfold_cascade.report import sentences as shared
from unfold_cascade.temporal.problem import NO_STAGE
from unfoldkit.api import attach_unit, format_amount, format_count

Interval = tuple[float, float]
LATCHED = "the latched baseline"


def summarize_plan(
    *, price_saving: float | None, flops_saving: float | None, loss_points: float, path: str, relaxed: float | None
) -> str:
    """Headline of a plan: savings and loss; ``relaxed`` is the smallest certifiable loss in percent, if it failed."""
    savings = [(price_saving, "cheaper"), (flops_saving, "fewer FLOPs")]
    ratios = " and ".join(f"{saving:.1f}x {words}" for saving, words in savings if saving is not None)
    text = f"{ratios}, {shared.loss_or_gain(loss_points, 2)}"
    if relaxed is None:
        return f"{text} · saved in {path}"
    return f"{text}, not certified; minimal relaxation: max_loss: {relaxed:g}% · saved in {path}"


def leak_notes(columns: Sequence[str]) -> tuple[str, ...]:
    """Warn of columns that predict the stages on their own; empty without any."""
    remedy = "remove it, unless its values are known at that hour"
    return (shared.leaked_label(columns, remedy),) if columns else ()


def describe_repeated_patients(column: str) -> tuple[str, ...]:
    """Warn of a column that names one patient for several cases; empty without one."""
    if not column:
        return ()
    text = f'"{column}" is the same in several cases, so one patient may be in several parts of the split'
    return (f"{text}; name it in data.group, or the figures may be too good",)


def describe_merged_stays(column: str) -> tuple[str, ...]:
    """Warn of a column that names several stays of one case; empty without one."""
    if not column:
        return ()
    text = f'cases have several values of "{column}", and a stage entered in one stay holds in all later ones'
    return (f"{text}; name {column} in data.entity and the patient in data.group",)


def describe_table(
    stages: Sequence[str],
    *,
    leaks: Sequence[str],
    marks: Sequence[LabelMark],
    repeated: str,
    stays: str,
    copies: int,
    doubts: Sequence[Doubt],
    gap_h: float,
    span_h: float,
) -> tuple[str, ...]:
    """Warn of what may make the figures of a table too good, or of its values."""
    return (
        *leak_notes(leaks),
        *shared.label_marks(marks, (NO_STAGE, *stages), "hours"),
        *describe_repeated_patients(repeated),
        *describe_merged_stays(stays),
        *describe_copies(copies),
        *shared.doubtful_values(doubts),
        *describe_rare_rows(gap_h, span_h),
    )


def describe_copies(copies: int) -> tuple[str, ...]:
    """State that records occur more than once under different names; empty if none does."""
    if not copies:
        return ()
    repeat = "repeats" if copies == 1 else "repeat"
    return (f"{format_count(copies, 'patient')} {repeat} the hours of another one; copies count as one patient",)


def describe_rare_rows(gap_h: float, span_h: float) -> tuple[str, ...]:
    """Warn of rows further apart than windows and validities reach, as minutes taken for hours are; else empty.

    Args:
        gap_h: Median time between successive rows of a patient, in hours.
        span_h: The longest window or validity, in hours; 0 if there is none.
    """
    if not 0.0 < span_h < gap_h:
        return ()
    text = f"rows of a patient are usually {gap_h:,.4g} h apart, longer than every window and validity ({span_h:g} h)"
    return (f"{text}; do the times count hours?",)


def describe_known_patients(known: int, total: int, name: str) -> str:
    """State that patients of new data are those of the run, and what follows."""
    origin = f"{known:,} of {total:,} patients in {name} are those of the run"
    if known < total:
        return f"{origin} and are left out; its models or gates were fitted on some of them"
    return f"{origin}; its models or gates were fitted on some of them and look too good there"


def describe_certificate(
    *,
    loss_points: float,
    confidence: float,
    patients: int,
    method: str,
    refused_points: float | None,
    costs: Sequence[str] = (),
) -> str:
    """What is certified, ``costs`` together with the loss; ``refused_points`` is a goal that was not certified."""
    claim = f"loss of the average patient ≤ {loss_points:.2g} points against the latched baseline"
    claim = " and ".join([claim, *costs])
    text = f"{claim} with {shared.percent(confidence)} confidence ({patients:,} patients, {method} test)"
    return text if refused_points is None else f"{text}; {patients:,} patients cannot certify ≤ {refused_points:g}"


def describe_uncertain_saving(patients: int, min_saving: float, confidence: float) -> str:
    """Why no saving is certified."""
    return f"{patients:,} patients certify no saving of {min_saving:g}x with {shared.percent(confidence)} confidence"


def describe_refusal(reason: str) -> str:
    """A reason of the planner, with patients in place of cases."""
    return reason.replace("cases", "patients").replace("rows", "patients")


def describe_saving_bound(bound: float, by: str, confidence: float) -> str:
    """The lower confidence bound of the saving in what is compared."""
    measure = by.replace("+", " and ").replace("flops", "FLOPs")
    joint = "mean of " if " and " in measure else ""
    least = f"at least {shared.short_saving(bound)}" if bound >= 1 else "no saving shown"
    return f"{joint}{measure}: {least} with {shared.percent(confidence)} confidence"


def describe_mean_price(price: float, baseline: float, unit: str | None) -> str:
    """State the mean price of an hour of a test case, and that of the baseline, in the unit of the spec."""
    amount, base = (attach_unit(format_amount(value), unit or "") for value in (price, baseline))
    return f"{amount} per case-hour; the latched baseline costs {base}"


def describe_outcomes(promised: Sequence[str], refused: Sequence[str], confidence: float) -> str:
    """The outcomes that are certified together with the loss, or those that are not."""
    if refused:
        return f"not certified: {'; '.join(refused)}"
    return f"{'; '.join(promised)}: together with the loss, {shared.percent(confidence)} confidence"


def describe_not_promised(missing: Sequence[str]) -> str:
    """The outcomes that no certificate covers; their figures are those of the test patients only."""
    return f"{', '.join(missing)}; other sites and later times"


def describe_loss(points: float, interval: Interval) -> str:
    """Loss against the latched baseline; both in points."""
    return f"{points:+.2f} points {format_interval(interval)} against the latched baseline"


def describe_quality(
    *, utility: float, utility_interval: Interval, auprc: float, auprc_interval: Interval, meets_margins: bool
) -> str:
    """Changes of utility and AUPRC against the latched baseline, and whether any alarm met the margins in tuning."""
    text = f"utility {utility:+.3f} {format_interval(utility_interval)}, AUPRC "
    text += f"{auprc:+.4f} {format_interval(auprc_interval)}"
    return text if meets_margins else f"{text}; no alarm met both margins on the tuning patients"


def describe_lead(
    *,
    lead_h: float,
    baseline_lead_h: float,
    per_100h: float,
    gain_interval_h: Interval,
    sensitivity: float,
    baseline_sensitivity: float,
) -> str:
    """Lead time and sensitivity of cascade and latched baseline at one alert rate."""
    if not math.isfinite(lead_h) and not math.isfinite(baseline_lead_h):
        return f"not defined: no onset among the test patients can be predicted at {per_100h:g} alerts per 100 h"
    text = f"{lead_h:.1f} h, baseline {baseline_lead_h:.1f} h, both at {per_100h:g} alerts per 100 h: "
    text += f"{lead_h - baseline_lead_h:+.2f} h {format_interval(gain_interval_h)}; "
    return text + f"sensitivity {100 * sensitivity:.0f} %, baseline {100 * baseline_sensitivity:.0f} %"


def describe_savings(price: Interval, flops: Interval) -> str:
    """Intervals of the savings."""
    return f"price {format_interval(price)}x, FLOPs {format_interval(flops)}x"


def describe_split(train: int, calibrate: int, test: int) -> str:
    """How many patients each cohort has, and what it is for."""
    return f"{train:,} patients to tune (out of fold), {calibrate:,} to certify, {test:,} to evaluate"


def format_interval(interval: Interval) -> str:
    """Format a 95 % interval as ``[low, high]``."""
    return f"[{interval[0]:.3g}, {interval[1]:.3g}]"


def describe_served_baseline() -> str:
    """What is served if no cascade is certified."""
    return "the latched baseline model: no cascade was certified"


def describe_served_cascade() -> str:
    """What is served if a cascade is certified."""
    return "the cascade of the plan"


def describe_chain(models: list[str], *, is_parallel: bool) -> str:
    """The models of one stage in evaluation order."""
    return " → ".join(models) + (", at every hour" if is_parallel else "")


def describe_engines(engine: str, converted: int, models: int) -> str:
    """How many models run on the fast engine."""
    return f"{engine} for {converted} of {models} models; close to a threshold the native model decides"


def describe_audit(share: float) -> str:
    """How many entities are audited."""
    return f"the baseline model also decides {shared.percent(share)} of the cases"


def describe_memory(cases: int, file: str, *, is_synced: bool = False) -> str:
    """How many entities the server has stored, where, and whether every hour reaches the disk."""
    return f"{format_count(cases, 'case')} in {file}" + (", every answered hour synced" if is_synced else "")


def name_cost_unit(unit: str | None) -> str:
    """Unit of the costs that the live page adds up."""
    return unit or "price of calls and purchases"


ALERT_NEAR = "alert, onset near"
QUIET = "quiet"
FALSE_ALERT = "alert, no onset near"
MISSED = "silent, onset near"
ONSET = "onset"
ALERT = "alert"
DECIDES = "decides"
UNSURE = "unsure: next model"
TRUE_STAGE = "true stage"
CASCADE_STAGE = "cascade"


def title_models(*, is_certified: bool) -> str:
    """Title of the graph of models."""
    status = "" if is_certified else " (not certified)"
    return f"The cascade{status}: its models, and the share of hours passed on to the next"


def model_facts(evaluated: float, decided: float, flops: str) -> tuple[str, str, str]:
    """How often a model runs and decides, as shares of all hours, and what a call costs."""
    return f"runs in {100 * evaluated:.3g} % of hours", f"decides {100 * decided:.3g} %", f"{flops} FLOPs a call"


def title_patient(name: str, patients: int) -> str:
    """Title of the hours of the patient who was chosen by lead time."""
    rule = f"of {patients:,} test patients with an onset, the one with the median lead time"
    return f"{name}, hour by hour: {rule}"


def title_patient_without_onset(name: str, patients: int) -> str:
    """Title of the hours of the patient who was chosen by alerts, as no lead time is defined."""
    rule = f"of {patients:,} test patients, the one with the median number of alerts"
    return f"{name}, hour by hour: {rule}"


def first_alert(lead_h: float) -> str:
    """Name the first alert that counts as a warning."""
    return f"first alert, {lead_h:.3g} h before the onset"


def title_ward(shown: int, with_onset: int, shown_without: int, without_onset: int) -> str:
    """Title of the alerts of a ward; patients are evenly spaced in the order of the table."""
    groups = [(shown, with_onset, "with"), (shown_without, without_onset, "without")]
    parts = [f"{count:,} of {total:,} test patients {word} an onset" for count, total, word in groups if count]
    return f"Alerts: {' and '.join(parts)}, evenly spaced in the table"
