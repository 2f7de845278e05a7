"""Pictures of a plan over time: its models, the hours of one test patient, the alerts of a ward, and the front."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.early_warning_metrics import compute_lead_hours, mark_warnings
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.search.planner import Solution
from unfold_cascade.temporal.simulation.online_step import HourStep, replay_entity
from unfold_cascade.temporal.simulation.policy import build_policy_arrays
from unfoldkit.api import AnyFigure, Bar, Edge, Figure, Graph, Marker, Node, Series, Timeline

WARD_PATIENTS = 16
"""Patients of the ward: half of them with an onset, as far as there are so many."""
WARD_GROUPS = (sentences.ALERT_NEAR, sentences.QUIET, sentences.FALSE_ALERT, sentences.MISSED)
UNIT = "h since first record"


def build_figures(solution: Solution) -> tuple[AnyFigure, ...]:
    """Build the figures of a plan; those of patients show what the cascade does on the test cohort."""
    return draw_models(solution), draw_patient(solution), draw_ward(solution), _draw_front(solution)


def draw_models(solution: Solution) -> Graph:
    """Draw the models of each stage in evaluation order, with the share of test hours that reach them."""
    study, evaluated = solution.study, solution.cascade.outcome.trajectories.evaluated
    nodes, edges, previous = [], [], ""
    for s, (stage, policy) in enumerate(zip(solution.problem.stages, solution.cascade.policy, strict=True)):
        for position, model in enumerate(policy.chain):
            reached, decided = (
                float(mask.mean()) for mask in (evaluated[:, s] > position, evaluated[:, s] == position + 1)
            )
            flops = f"{float(study.call_costs.flops[model]):,.0f}"
            name = f"{stage.name}: {study.model_name(model)}"
            nodes.append(Node(name=name, facts=sentences.model_facts(reached, decided, flops)))
            # a parallel stage does not wait for the stage before it
            if previous and (position or not stage.is_parallel):
                edges.append(Edge(previous, name, reached))
            previous = name
    title = sentences.title_models(is_certified=solution.selection.is_certified)
    return Graph(name="models", title=title, nodes=tuple(nodes), edges=tuple(edges), weight="share of hours")


def draw_patient(solution: Solution) -> Timeline:
    """Draw the hours of one test patient: the true stage, that of the cascade, alerts, and which models decide.

    It is the patient with the median lead time or, if no lead time is defined, the median number of alert hours.
    """
    cohort, outcome, policy = solution.study.test, solution.cascade.outcome, solution.cascade.policy
    entity, title = _select_patient(cohort, outcome.alert)
    rows = np.arange(*cohort.timeline.starts[entity : entity + 2])
    starts, ends = _find_spans(cohort, entity)
    arrays = build_policy_arrays(policy, solution.study.parallel)
    steps = replay_entity(cohort.timeline, cohort.scores, arrays, solution.problem.transitions, entity)
    stages = ("", *solution.problem.stage_names)
    states = {
        sentences.TRUE_STAGE: [stages[number] for number in cohort.highest[rows]],
        sentences.CASCADE_STAGE: [stages[step.stages[0]] for step in steps],
        sentences.ALERT: [sentences.ALERT if step.stages[0] == len(policy) else "" for step in steps],
    }
    for s, stage in enumerate(policy):
        for model in stage.chain:
            lane = f"{stages[s + 1]}: {solution.study.model_name(model)}"
            states[lane] = [_describe_call(step, s, model) for step in steps]
    stage_lanes = (sentences.TRUE_STAGE, sentences.CASCADE_STAGE)
    bars = [
        bar for lane, groups in states.items() for bar in _join_hours(lane, groups, starts, ends, lane in stage_lanes)
    ]
    return Timeline(
        name="patient",
        title=title,
        unit=UNIT,
        lanes=tuple(states),
        bars=tuple(bars),
        markers=tuple(_mark_patient(cohort, outcome.alert, entity, starts)),
        groups=(sentences.DECIDES, sentences.UNSURE, sentences.ALERT, *solution.problem.stage_names),
    )


def draw_ward(solution: Solution) -> Timeline:
    """Draw the hours of test patients with and without an onset, in four groups: alert or not, onset near or not.

    An onset is near from 12 hours before it on: all other hours are those of the alert rate.
    """
    cohort, outcome = solution.study.test, solution.cascade.outcome
    is_present = np.diff(cohort.timeline.starts) > 0
    entities, has_onset = np.flatnonzero(is_present), np.zeros(cohort.entities, dtype=np.bool_)
    has_onset[cohort.entity[np.isfinite(cohort.since[:, -1])]] = True
    affected, event_free = entities[has_onset[entities]], entities[~has_onset[entities]]
    beds = max(WARD_PATIENTS // 2, WARD_PATIENTS - len(event_free))
    affected_beds = _spread(affected, beds)
    event_free_beds = _spread(event_free, WARD_PATIENTS - len(affected_beds))
    alert, near = outcome.alert, ~cohort.events.event_free
    group = np.select(
        [alert & near, alert, near], [sentences.ALERT_NEAR, sentences.FALSE_ALERT, sentences.MISSED], sentences.QUIET
    )
    bars: list[Bar] = []
    markers: list[Marker] = []
    for entity in (*affected_beds, *event_free_beds):
        rows, (starts, ends) = np.arange(*cohort.timeline.starts[entity : entity + 2]), _find_spans(cohort, entity)
        lane = _name_patient(cohort, entity)
        bars += _join_hours(lane, group[rows].tolist(), starts, ends, False)
        markers += [Marker(sentences.ONSET, at, lane=lane) for at in _find_onset(cohort, entity, starts)]
    return Timeline(
        name="ward",
        title=sentences.title_ward(len(affected_beds), len(affected), len(event_free_beds), len(event_free)),
        unit=UNIT,
        lanes=tuple(_name_patient(cohort, entity) for entity in (*affected_beds, *event_free_beds)),
        bars=tuple(bars),
        markers=tuple(markers),
        groups=WARD_GROUPS,
    )


def _select_patient(cohort: Cohort, alert: BoolArray) -> tuple[int, str]:
    """Select the patient in the middle of an order, and return the title that states the order."""
    timed = np.flatnonzero(cohort.events.has_lead_time)
    if timed.size:
        lead_h = compute_lead_hours(alert, cohort.events, cohort.timeline.starts)
        entity = int(timed[_find_median(lead_h)])
        return entity, sentences.title_patient(_name_patient(cohort, entity), len(timed))
    present = np.flatnonzero(np.diff(cohort.timeline.starts) > 0)
    alerts = np.bincount(cohort.entity[alert], minlength=cohort.entities)[present]
    entity = int(present[_find_median(alerts.astype(np.float64))])
    return entity, sentences.title_patient_without_onset(_name_patient(cohort, entity), len(present))


def _find_median(values: FloatArray) -> int:
    """Find the position of the median; of equal values the first ones count as lower."""
    return int(np.argsort(values, kind="stable")[len(values) // 2])


def _spread(entities: IntArray, count: int) -> list[int]:
    """Select at most ``count`` entities at even distances."""
    if len(entities) <= count:
        return [int(entity) for entity in entities]
    return [int(entities[(2 * index + 1) * len(entities) // (2 * count)]) for index in range(count)]


def _name_patient(cohort: Cohort, entity: int) -> str:
    return cohort.ids[entity] if cohort.ids else f"case {entity + 1}"


def _find_spans(cohort: Cohort, entity: int) -> tuple[FloatArray, FloatArray]:
    """Find when the records of an entity begin and end, in hours since its first one.

    A record lasts until the next one, but no longer than is usual for the entity: a gap stays a gap.
    """
    begin, end = cohort.timeline.starts[entity : entity + 2]
    start = cohort.timeline.hour[begin:end] - cohort.timeline.hour[begin]
    gaps = np.diff(start)
    usual_h = float(np.median(gaps)) if gaps.size else 1.0
    return start, start + np.append(np.minimum(gaps, usual_h), usual_h)


def _find_onset(cohort: Cohort, entity: int, starts: FloatArray) -> list[float]:
    """Find when the onset is; nothing without an event, or where the label holds from the first record on."""
    since_first = float(cohort.since[cohort.timeline.starts[entity], -1])
    if not np.isfinite(since_first) or since_first >= 0:
        return []
    return [float(starts[0] + cohort.events.hours_until[cohort.timeline.starts[entity]])]


def _mark_patient(cohort: Cohort, alert: BoolArray, entity: int, starts: FloatArray) -> Iterator[Marker]:
    rows = slice(*cohort.timeline.starts[entity : entity + 2])
    warned = np.flatnonzero(mark_warnings(alert, cohort.events)[rows])
    if warned.size and cohort.events.has_lead_time[entity]:
        lead_h = float(cohort.events.hours_until[rows][warned[0]])
        yield Marker(sentences.first_alert(lead_h), float(starts[warned[0]]))
    yield from (Marker(sentences.ONSET, at) for at in _find_onset(cohort, entity, starts))


def _describe_call(step: HourStep, stage: int, model: int) -> str:
    """Describe what a model did in an hour; empty if it was not called."""
    verdicts = [call.verdict for call in step.calls[0] if (call.stage, call.model) == (stage, model)]
    if not verdicts:
        return ""
    return sentences.UNSURE if verdicts[0] == "IDK" else sentences.DECIDES


def _join_hours(
    lane: str, groups: Sequence[str], starts: FloatArray, ends: FloatArray, is_named: bool
) -> Iterator[Bar]:
    """Join hours that follow each other in one group; hours with an empty group have no bar."""
    is_break = np.append(False, starts[1:] > ends[:-1] + 1e-9)
    keys = list(zip(groups, np.cumsum(is_break).tolist(), strict=True))
    for (group, _), items in itertools.groupby(range(len(keys)), key=keys.__getitem__):
        rows = list(items)
        if group:
            begin, end = float(starts[rows[0]]), float(ends[rows[-1]])
            yield Bar(lane=lane, start=begin, end=end, group=group, name=group if is_named else "")


def _draw_front(solution: Solution) -> Figure:
    points, point = solution.front.points, solution.selection.point
    cost = tuple(candidate.cost for candidate in points)
    accuracy = tuple(100 * (1 - candidate.loss) for candidate in points)
    series = (
        Series("tuning patients", cost, accuracy, "steps"),
        Series("selected, tuning patients", (point.cost,), (100 * (1 - point.loss),), "points"),
    )
    title = f"{solution.problem.name}: accuracy and cost of {len(points)} cascades"
    return Figure("front", title, "cost per case-hour, relative to the baseline", "accuracy %", series, log_x=True)
