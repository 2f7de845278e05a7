"""Train, search, certify, judge: the figures of a cascade over time on patients that nothing before has looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade.arrays import FloatArray
from unfold_cascade.spec import CascadeSpec
from unfold_cascade.time import measures
from unfold_cascade.time.alarms import Alarm
from unfold_cascade.time.choose import Choice, Reference, choose
from unfold_cascade.time.intervals import Interval, Intervals, intervals, lead_interval
from unfold_cascade.time.judge import Outcome, Quality, at_rate, outcome, quality, scale
from unfold_cascade.time.keys import Alerts, Moves
from unfold_cascade.time.monolith import decoded
from unfold_cascade.time.policy import Policy
from unfold_cascade.time.rivals import Rivals, rivals
from unfold_cascade.time.search import Front, adequate, cheapest, nearest, parallel, search
from unfold_cascade.time.steps import Yard
from unfold_cascade.time.study import Part, Study, study
from unfoldkit.api import Run


@dataclass(frozen=True, slots=True)
class Judged:
    """A policy on the test patients."""

    name: str
    policy: Policy | None
    done: Outcome
    found: Quality


@dataclass(frozen=True, slots=True)
class Lead:
    """Mean hours of warning at exactly the same rate of alerts, the gain over the monolith, and the shares caught."""

    own: float
    base: float
    interval: Interval
    caught: float
    caught_base: float


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a report tells of."""

    study: Study
    front: Front
    choice: Choice
    naive: Choice
    cascade: Judged
    naive_cascade: Judged
    latched: Judged
    argmax: Judged
    single: Judged
    one_stage: Judged
    sure: Intervals
    lead: Lead
    rate: float


def decide(spec: CascadeSpec, run: Run) -> Findings:
    """Fit what is missing, search on the tuning patients, certify on others, judge on yet others."""
    whole, moves = study(spec, run), spec.moves or Moves()
    rate = (spec.alerts or Alerts()).per_100h
    run.progress("search", 0, 3)
    known = rivals(whole, moves, rate)
    yard = Yard(whole.rates, known.latched_quality.bill, spec.cost.by, moves)
    front = search(whole, known, yard, rate)
    run.progress("search", 1, 3)
    choices = [
        choose(whole, front, _reference(whole, known, moves, place), spec.goal, spec.cost.by) for place in (0, 1)
    ]
    run.progress("search", 2, 3)
    found = _judged(whole, known, front, choices, moves, rate, run.seed)
    run.progress("search", 3, 3)
    return found


def _reference(whole: Study, known: Rivals, moves: Moves, place: int) -> Reference:
    answers = [known.both(part, moves, whole)[place].answer for part in (whole.train, whole.calibrate)]
    return Reference(answers[0], answers[1])


def _judged(
    whole: Study, known: Rivals, front: Front, choices: list[Choice], moves: Moves, rate: float, seed: int
) -> Findings:
    test, flags = whole.test, parallel(whole)
    latched, argmax = known.both(test, moves, whole)
    cascade, naive = (_on_test(whole, "cascade", choice.point.policy, flags, moves) for choice in choices)
    single = _alone(whole, front, known.latched_quality, moves, longest=1)
    one_stage = _alone(whole, front, known.latched_quality, moves, longest=99)
    return Findings(
        study=whole,
        front=front,
        choice=choices[0],
        naive=choices[1],
        cascade=cascade,
        naive_cascade=naive,
        latched=Judged("monolith, latched", known.latched.policy, latched, quality(test, latched)),
        argmax=Judged("monolith, argmax", known.argmax.policy, argmax, quality(test, argmax)),
        single=single,
        one_stage=one_stage,
        sure=intervals(test, cascade.done, latched, whole.rates, seed),
        lead=_lead(whole, choices[0].point.policy, flags, known, moves, rate, seed),
        rate=rate,
    )


def _on_test(whole: Study, name: str, policy: Policy, flags: np.ndarray, moves: Moves) -> Judged:
    """Judge a policy on the test patients; its scores are scaled by what the tuning patients showed."""
    tuned = outcome(whole.train, policy, flags, moves, whole.rates)
    scaling = scale(whole.train, policy[-1].chain, tuned.walk.asked[:, -1].astype(np.int64))
    done = outcome(whole.test, policy, flags, moves, whole.rates, scaling)
    return Judged(name, policy, done, quality(whole.test, done))


def _alone(whole: Study, front: Front, base: Quality, moves: Moves, *, longest: int) -> Judged:
    """Judge the cheapest alarm without any stage before it: a single model, or a cascade within the last stage."""
    tried = [one for one in front.watch if len(one.step.chain) <= longest]
    best: Alarm = cheapest(adequate(tried, base) or nearest(tried, base))[0]
    names = " → ".join(whole.models[model] for model in best.step.chain)
    return _on_test(whole, names, (best.step,), np.array([True]), moves)


def _lead(whole: Study, policy: Policy, flags: np.ndarray, known: Rivals, moves: Moves, rate: float, seed: int) -> Lead:
    """Compare warnings at exactly the same rate on the test patients: both final cuts are set there, alike."""
    test = whole.test
    exact = at_rate(test, policy, flags, moves, rate) or policy
    own = outcome(test, exact, flags, moves, whole.rates).alert
    base = at_rate(test, known.latched.policy, np.array([True]), moves, rate) or known.latched.policy
    other = decoded(test, replace(known.latched, policy=base), moves, whole.rates).alert
    hours = [measures.lead_hours(alert, test.events, test.clock.starts) for alert in (own, other)]
    means = [_mean(values) for values in hours]
    caught = [_mean((values > 0).astype(np.float64)) for values in hours]
    return Lead(means[0], means[1], lead_interval(hours[0] - hours[1], seed), caught[0], caught[1])


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")


def part_names(whole: Study) -> tuple[tuple[str, Part], ...]:
    """Return the parts of the split by name."""
    return ("train", whole.train), ("calibrate", whole.calibrate), ("test", whole.test)
