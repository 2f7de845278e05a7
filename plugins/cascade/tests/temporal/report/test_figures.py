"""The pictures of patients: they show what the simulation did with patients that a rule selects, in every format."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from plugins.cascade.tests.temporal.simulation.worlds import SEEDS, draw_world
from unfold_cascade._types import FloatArray
from unfold_cascade.temporal.evaluation.evaluate import evaluate_policy
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.report.figures import WARD_GROUPS, WARD_PATIENTS, build_figures, draw_patient, draw_ward
from unfold_cascade.temporal.search.planner import SearchResult, Solution, evaluate_solution
from unfold_cascade.temporal.simulation.online_step import replay_entity
from unfold_cascade.temporal.simulation.policy import Policy
from unfoldkit.api import Report, Timeline, Verdict
from unfoldkit.render import html, md, plot, text
from unfoldkit.report import from_data, to_data, validate_report

NASTY = ('<script>alert("1")</script>|`' + "x" * 90, "患者-" * 12, "Zoë & Søn \u202e #7", "$x_1$\n**p**")


@pytest.fixture(scope="module")
def solution(search: SearchResult) -> Solution:
    return evaluate_solution(search)


def follow(solution: Solution, cohort: Cohort, policy: Policy) -> Solution:
    """Return the solution with another test cohort and another cascade."""
    study = replace(solution.study, test=cohort)
    outcome = evaluate_policy(cohort, policy, study.parallel, solution.problem.transitions, study.call_costs)
    return replace(solution, study=study, cascade=replace(solution.cascade, policy=policy, outcome=outcome))


def sum_hours(figure: Timeline, lane: str) -> dict[str, float]:
    """Sum the hours of each group on a lane."""
    hours: dict[str, float] = defaultdict(float)
    for bar in figure.bars:
        if bar.lane == lane:
            hours[bar.group] += bar.end - bar.start
    return dict(hours)


def find_entity(cohort: Cohort, title: str) -> int:
    return next(number for number, name in enumerate(cohort.ids) if title.startswith(f"{name}, hour by hour"))


@pytest.mark.parametrize("seed", list(SEEDS)[:20])
def test_a_replayed_entity_follows_the_simulation(seed: int) -> None:
    """Stages and calls of every entity equal those of the simulation, with purchases, gaps and all moves."""
    world = draw_world(seed)
    expected = world.simulate_reference()
    starts = world.timeline.starts
    for entity in range(len(starts) - 1):
        steps = replay_entity(world.timeline, world.scores, world.policy, world.transitions, entity)
        assert [step.stages[0] for step in steps] == expected.stage[starts[entity] : starts[entity + 1]].tolist()
        models = [call.model for step in steps for call in step.calls[0]]
        assert np.bincount(models, minlength=len(world.scores.p)).tolist() == expected.calls[entity].tolist()


def test_the_patient_is_the_one_with_the_median_lead_time(solution: Solution) -> None:
    """As many patients with an onset have a shorter lead time as have a longer one, ties aside."""
    cohort, alert = solution.study.test, solution.cascade.outcome.alert
    shown = find_entity(cohort, draw_patient(solution).title)
    lead: dict[int, float] = {}
    for entity in np.flatnonzero(cohort.events.has_lead_time).tolist():
        rows = range(*cohort.timeline.starts[entity : entity + 2])
        until = [float(cohort.events.hours_until[row]) for row in rows if alert[row]]
        lead[entity] = max((hours for hours in until if 0 < hours <= 48), default=0.0)
    assert f"of {len(lead)} test patients with an onset" in draw_patient(solution).title
    assert sum(hours < lead[shown] for hours in lead.values()) <= len(lead) // 2
    assert sum(hours > lead[shown] for hours in lead.values()) <= len(lead) // 2
    marks = {marker.name: marker.at for marker in draw_patient(solution).markers}
    if lead[shown]:
        assert marks[sentences.ONSET] - marks[sentences.first_alert(lead[shown])] == pytest.approx(lead[shown])


def test_the_hours_of_the_patient_are_those_of_the_simulation(solution: Solution) -> None:
    """Alert hours, true stages, and the calls of each model add up to what the plan did with the patient."""
    figure, cohort, outcome = draw_patient(solution), solution.study.test, solution.cascade.outcome
    entity = find_entity(cohort, figure.title)
    rows = slice(*cohort.timeline.starts[entity : entity + 2])
    assert sum(sum_hours(figure, sentences.ALERT).values()) == outcome.alert[rows].sum()
    names = ("", *solution.problem.stage_names)
    for lane, stages in ((sentences.TRUE_STAGE, cohort.highest), (sentences.CASCADE_STAGE, outcome.stage)):
        counts = {names[stage]: int((stages[rows] == stage).sum()) for stage in set(stages[rows].tolist()) - {0}}
        assert sum_hours(figure, lane) == counts
    for s, policy in enumerate(solution.cascade.policy):
        for model in policy.chain:
            lane = f"{names[s + 1]}: {solution.study.model_name(model)}"
            assert sum(sum_hours(figure, lane).values()) == outcome.trajectories.calls[entity, model]


def test_the_ward_has_alerts_as_the_alert_rate_counts_them(solution: Solution) -> None:
    """Each hour of each shown patient is in the group of the metrics; patients of both kinds are evenly spaced."""
    figure, cohort, alert = draw_ward(solution), solution.study.test, solution.cascade.outcome.alert
    assert len(figure.lanes) == min(WARD_PATIENTS, cohort.entities)
    for lane in figure.lanes:
        entity = cohort.ids.index(lane)
        rows = slice(*cohort.timeline.starts[entity : entity + 2])
        free = cohort.events.event_free[rows]
        counts = (alert[rows] & ~free, ~alert[rows] & free, alert[rows] & free, ~alert[rows] & ~free)
        expected = {group: int(mask.sum()) for group, mask in zip(WARD_GROUPS, counts, strict=True) if mask.any()}
        assert sum_hours(figure, lane) == expected
    places = [cohort.ids.index(lane) for lane in figure.lanes]
    for shown in (places[: WARD_PATIENTS // 2], places[WARD_PATIENTS // 2 :]):
        assert shown == sorted(shown)
    onsets = {marker.lane for marker in figure.markers}
    assert onsets <= set(figure.lanes[: WARD_PATIENTS // 2])
    assert onsets


def test_gaps_stay_gaps(solution: Solution) -> None:
    """Where a patient has no record for half a day, no bar bridges it."""
    cohort = solution.study.test
    hour: FloatArray = cohort.timeline.hour.copy()
    for first, last in zip(cohort.timeline.starts[:-1], cohort.timeline.starts[1:], strict=True):
        hour[first + (last - first) // 2 : last] += 12.0
    torn = replace(cohort, timeline=replace(cohort.timeline, hour=hour))
    figure = draw_ward(replace(solution, study=replace(solution.study, test=torn)))
    for lane in figure.lanes:
        bars = sorted((bar.start, bar.end) for bar in figure.bars if bar.lane == lane)
        assert max(start - end for (_, end), (start, _) in itertools.pairwise(bars)) == pytest.approx(12.0)


def cases(solution: Solution) -> dict[str, Solution]:
    """Return a run without an alert, one with alerts at every hour, one patient, and ids that are markup."""
    cohort, policy = solution.study.test, solution.cascade.policy
    last = policy[-1]
    silent, loud = (
        (*policy[:-1], replace(last, spans=((cut, cut),) * len(last.spans), owned=(), cut=cut))
        for cut in (np.inf, -np.inf)
    )
    ids = tuple(f"{NASTY[number % len(NASTY)]}{number}" for number in range(cohort.entities))
    return {
        "as trained": solution,
        "no alert": follow(solution, cohort, silent),
        "only alerts": follow(solution, cohort, loud),
        "one patient": follow(solution, cohort.take(1), policy),
        "one hour": follow(solution, take_hour(cohort), policy),
        "without ids": follow(solution, replace(cohort, ids=()), policy),
        "ids that are markup": follow(solution, replace(cohort, ids=ids), policy),
    }


def take_hour(cohort: Cohort) -> Cohort:
    """Return the first hour of the first patient."""
    first = cohort.take(1)
    timeline = replace(first.timeline, starts=np.array([0, 1]), hour=first.timeline.hour[:1])
    events = replace(first.events, event_free=first.events.event_free[:1], hours_until=first.events.hours_until[:1])
    events = replace(events, has_lead_time=np.array([False]))
    scores = replace(first.scores, p=np.ascontiguousarray(first.scores.p[:, :1]))
    return replace(
        first, timeline=timeline, events=events, scores=scores, entered=first.entered[:1], since=first.since[:1],
        highest=first.highest[:1],
    )  # fmt: skip


def test_every_run_is_drawn_in_every_format(solution: Solution) -> None:
    """Also without alerts, with one patient or one hour, and with names that are markup, no format breaks."""
    for name, changed in cases(solution).items():
        figures = build_figures(changed)
        report = Report("cascade", "plan", "wards", Verdict.YES, "yes", figures=figures)
        assert not list(validate_report(report, "cascade", "plan")), name
        assert from_data(to_data(report)) == report
        assert plot.render(report).startswith(b"\x89PNG")
        page = html.render(report)
        assert "<script" not in page
        assert len(page.encode()) < 400_000
        for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            ET.fromstring(drawn)  # noqa: S314 - made here
        assert figures[2].title.partition("\n")[0][:20] in md.render(report)
        assert max(map(len, text.render(report, width=80).splitlines())) <= 80
        groups = {bar.group for figure in figures if isinstance(figure, Timeline) for bar in figure.bars}
        has_alerts = bool(changed.cascade.outcome.alert.any())
        assert bool(groups & {sentences.ALERT_NEAR, sentences.FALSE_ALERT}) == has_alerts or name == "as trained"
