"""Whether the verdict of a cascade is true: draws from generators of known truth, planned and checked on fresh cases.

Each scenario is drawn many times, planned as a user would (``unfold plan`` on recorded predictions), and the plan is
followed on 20,000 fresh cases of the population that it would serve. A yes is false if any of its promises is broken
there. Of the scenarios without a saving, with copies or with a leaked label, every yes is false.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.build import build_problem
from unfold_cascade.planner.planner import Solution, solve
from unfold_cascade.planner.policy import follow
from unfold_cascade.schema.cascade import CascadeSpec
from unfoldkit.engines.local import LocalEngine
from unfoldkit.run_context import Run
from unfoldkit.run_directory import RunDir
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

FRESH = 20_000
DRAWS = 100
PRICES = (1.0, 20.0)
DELTA_PERCENT = 5.0


@dataclass(frozen=True, slots=True)
class Log:
    """(n,) true labels, and (n, 2) answers and confidences of a cheap and of a big model."""

    labels: IntArray
    answers: IntArray
    confidences: FloatArray


Draw = Callable[[np.random.Generator, int], Log]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A population to plan on, the one to serve (the same if ``None``), the goal, and whether any yes is false."""

    draw: Draw
    served: Draw | None = None
    cases: int = 1000
    goal: Mapping[str, Any]
    draws: int = DRAWS
    is_any_yes_false: bool = False
    is_exchangeable: bool = True


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Draw every scenario its number of times (10 times if ``quick``) and count false verdicts."""
    del data
    rows = []
    totals = {"cost": [0, 0], "loss": [0, 0], "sensitivity": [0, 0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            draws = 10 if quick else scenario.draws
            counts = _count(scenario, [seed, number], draws, totals)
            rows.append([name, draws, counts["yes"], 100 * counts["false"] / draws, counts["largest_loss"]])
            sys.stderr.write(f"{name}: {counts['yes']} yes, {counts['false']} false of {draws}\n")
    false = {row[0]: row[3] for row in rows}
    power = next(row for row in rows if row[0] == "real saving")
    shares = {f"{name}_broken_percent": 100 * broken / max(total, 1) for name, (broken, total) in totals.items()}
    return {
        "metrics": {
            "false_yes_percent": max(value for name, value in false.items()),
            "false_yes_duplicates_percent": max(share for name, share in false.items() if "copied" in name),
            "false_yes_no_saving_percent": max(false["no saving"], false["anti-informative confidence"]),
            "power_percent": 100 * power[2] / power[1],
            **shares,
        },
        "aims": {
            "false_yes_percent": "≤ 5",
            "false_yes_duplicates_percent": "0",
            "false_yes_no_saving_percent": "0",
            "power_percent": "≥ 90",
            **dict.fromkeys(shares, "≤ 5"),
        },
        "tables": {
            "scenarios": {
                "columns": ["scenario", "draws", "yes", "false yes %", "largest loss of a yes, points"],
                "rows": rows,
            }
        },
        "notes": [
            "the table states the draws of each scenario; one false verdict of 100 draws is 1 %",
            "generators only; broken shares are of the yes verdicts whose served population is that of the log",
            "sensitivity is the loss within a label (goal.max_loss_of)",
        ],
    }


def _count(scenario: Scenario, seed: list[int], draws: int, totals: dict[str, list[int]]) -> dict[str, Any]:
    counts: dict[str, Any] = {"yes": 0, "false": 0, "largest_loss": None}
    for draw in range(draws):
        rng = np.random.default_rng([*seed, draw])
        solution = _plan(scenario.draw(rng, scenario.cases), scenario.goal, draw)
        if solution.policy is None:
            continue
        broken, loss = _list_broken(solution, (scenario.served or scenario.draw)(rng, FRESH), scenario.goal)
        counts["yes"] += 1
        counts["false"] += scenario.is_any_yes_false or any(broken.values())
        counts["largest_loss"] = round(max(100 * loss, counts["largest_loss"] or -100.0), 2)
        if scenario.is_exchangeable and not scenario.is_any_yes_false:
            for name, is_broken in broken.items():
                totals[name][0] += is_broken
                totals[name][1] += 1
    return counts


def _plan(log: Log, goal: Mapping[str, Any], seed: int) -> Solution:
    """Write a log and plan it in a folder of its own."""
    models = [
        {"name": name, "price": price, "recorded": {"prediction": name, "confidence": f"q_{name}"}}
        for name, price in zip(("cheap", "big"), PRICES, strict=True)
    ]
    spec = {
        "version": 1,
        "kind": "cascade",
        "name": "truth",
        "data": {"source": "recorded", "path": "log.csv"},
        "stages": [{"name": "answer", "target": {"column": "label"}, "models": models}],
        "cost": {"by": "price"},
        "goal": dict(goal),
    }
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        text = io.StringIO()
        text.write("label,cheap,q_cheap,big,q_big\n")
        rows = zip(log.labels, log.answers, log.confidences, strict=True)
        text.writelines(f"{y},{a},{qa:.4f},{b},{qb:.4f}\n" for y, (a, b), (qa, qb) in rows)
        (base / "log.csv").write_text(text.getvalue(), "utf-8")
        (base / "log.yaml").write_text(yaml.safe_dump(spec), "utf-8")
        place = Run(directory=RunDir(base / "run"), engine=LocalEngine(1), base=base, seed=seed)
        return solve(build_problem(validate(CascadeSpec, read_document(str(base / "log.yaml"))), place), place)


def _list_broken(solution: Solution, log: Log, goal: Mapping[str, Any]) -> tuple[dict[str, bool], float]:
    """List which promises the plan breaks on fresh cases, and its loss there."""
    if solution.policy is None:
        raise ValueError("there is no cascade to follow")
    names = solution.problem.dataset.names
    number = np.array([names.index(str(label)) for label in range(len(names))])
    labels, answers = number[log.labels], number[log.answers]
    table = replace(solution.tables.first_stage, answer=answers, score=log.confidences, call_prices=None)
    tables = replace(solution.tables, first_stage=table, candidates=table, clusters=None)
    outcome = follow(tables, solution.policy, np.arange(len(labels)))
    baseline = answers[:, solution.baseline.index]
    d = (outcome.answer != labels).astype(float) - (baseline != labels)
    loss = float(d.mean())
    of_labels = goal.get("max_loss_of", {})
    # where each label is promised, any mix of labels keeps the largest of these losses
    allowed_loss = max(map(_share, [goal["max_loss"], *of_labels.values()]))
    broken = {"cost": solution.baseline.cost / float(outcome.cost.mean()) < 1.05, "loss": loss > allowed_loss}
    if of_labels:
        inside = {label: float(d[labels == names.index(str(label))].mean()) for label in of_labels}
        broken["sensitivity"] = any(inside[label] > _share(allowed) for label, allowed in of_labels.items())
    return broken, loss


def _share(percent: str) -> float:
    return float(percent.rstrip("%")) / 100


def _draw_log(
    rng: np.random.Generator,
    cases: int,
    *,
    accuracy: tuple[float, float] = (0.8, 0.95),
    informed: float = 0.0,
    noise: float = 0.15,
    rare: float = 0.5,
) -> Log:
    """Draw two labels and two models; ``informed`` is how much more confident right answers are than wrong ones."""
    labels = (rng.random(cases) < rare).astype(np.int64)
    right = rng.random((cases, 2)) < accuracy
    answers = np.where(right, labels[:, None], 1 - labels[:, None])
    cheap = 0.6 + informed * right[:, 0] + noise * rng.normal(size=cases)
    return Log(labels, answers, np.column_stack([cheap, 0.9 + 0.02 * rng.normal(size=cases)]))


def _copy(log: Log, times: int, jitter: float, rng: np.random.Generator) -> Log:
    rows = rng.permutation(np.repeat(np.arange(len(log.labels)), times))
    confidences = log.confidences[rows]
    return Log(log.labels[rows], log.answers[rows], confidences + jitter * rng.normal(size=confidences.shape))


def _redraw_big(log: Log, rng: np.random.Generator) -> Log:
    redrawn = 0.9 + 0.02 * rng.normal(size=len(log.labels))
    return replace(log, confidences=np.column_stack([log.confidences[:, 0], redrawn]))


def _leak(rng: np.random.Generator, cases: int) -> Log:
    log = _draw_log(rng, cases)
    right = log.answers[:, 0] == log.labels
    cheap = np.where(right, rng.uniform(0.7, 1.0, cases), rng.uniform(0.2, 0.6, cases))
    return replace(log, confidences=np.column_stack([cheap, log.confidences[:, 1]]))


def _drift(rng: np.random.Generator, cases: int) -> Log:
    """Draw a log in the order of time: the cheap model gets worse over the last 40 %, and stays confident."""
    early = _draw_log(rng, int(0.6 * cases), accuracy=(0.95, 0.96), informed=0.3)
    late = _decayed(rng, cases - int(0.6 * cases))
    return Log(
        np.concatenate((early.labels, late.labels)),
        np.concatenate((early.answers, late.answers)),
        np.concatenate((early.confidences, late.confidences)),
    )


def _drift_gradually(rng: np.random.Generator, cases: int) -> Log:
    """Draw a log in the order of time in which more and more of the last 60 % of the cases are decayed ones."""
    steady, early = int(0.4 * cases), _draw_log(rng, cases, accuracy=(0.95, 0.96), informed=0.3)
    late = _decayed(rng, cases)
    chance = np.clip((np.arange(cases) - steady) / (cases - steady), 0.0, 1.0)
    is_late = rng.random(cases) < chance
    return Log(
        np.where(is_late, late.labels, early.labels),
        np.where(is_late[:, None], late.answers, early.answers),
        np.where(is_late[:, None], late.confidences, early.confidences),
    )


def _decayed(rng: np.random.Generator, cases: int) -> Log:
    log = _draw_log(rng, cases, accuracy=(0.8, 0.96), informed=0.0)
    return replace(log, confidences=log.confidences + np.array([0.3, 0.0]))


def _draw_rare(rng: np.random.Generator, cases: int, share: float = 0.1) -> Log:
    """Draw a label that the cheap model never answers, and is as confident about as about the other."""
    log = _draw_log(rng, cases, accuracy=(0.97, 0.97), informed=0.2, rare=share)
    answers = log.answers.copy()
    answers[log.labels == 1, 0] = 0
    confidences = log.confidences.copy()
    confidences[log.labels == 1, 0] += 0.2
    return Log(log.labels, answers, confidences)


def _draw_confident_errors(rng: np.random.Generator, cases: int) -> Log:
    """Draw a few cases at which the cheap model is wrong, confident, and alone: the big one is right there."""
    log = _draw_log(rng, cases, accuracy=(0.97, 0.97), informed=0.3)
    odd = rng.random(cases) < 0.012
    answers, confidences = log.answers.copy(), log.confidences.copy()
    answers[odd] = np.column_stack([1 - log.labels[odd], log.labels[odd]])
    confidences[odd, 0] = 0.95 + 0.02 * rng.normal(size=odd.sum())
    return Log(log.labels, answers, confidences)


def _draw_small_saving(rng: np.random.Generator, cases: int) -> Log:
    """Draw a cheap model that is sure, and right, at one case in twelve: just below the saving of the goal."""
    log = _draw_log(rng, cases, accuracy=(0.75, 0.95))
    is_sure = rng.random(cases) < 0.085
    answers, confidences = log.answers.copy(), log.confidences.copy()
    answers[is_sure, 0] = log.labels[is_sure]
    confidences[is_sure, 0] = 1.2 + 0.01 * rng.normal(size=is_sure.sum())
    return Log(log.labels, answers, confidences)


def _draw_two_values(rng: np.random.Generator, cases: int) -> Log:
    """Draw a confidence of two values, of which the higher one is slightly more frequent at wrong answers."""
    log = _draw_log(rng, cases)
    is_right = log.answers[:, 0] == log.labels
    is_high = rng.random(cases) < np.where(is_right, 0.55, 0.6)
    return replace(log, confidences=np.column_stack([np.where(is_high, 0.9, 0.4), log.confidences[:, 1]]))


SCENARIOS: Mapping[str, Scenario] = {
    "no saving": Scenario(draw=_draw_log, goal={"max_loss": "1%"}, is_any_yes_false=True),
    "anti-informative confidence": Scenario(
        draw=lambda rng, n: _draw_log(rng, n, informed=-0.2), cases=3000, goal={"max_loss": "2%"}, is_any_yes_false=True
    ),
    "copied rows": Scenario(
        draw=lambda rng, n: _copy(_draw_log(rng, n, informed=0.1), 15, 0.0, rng),
        cases=60,
        goal={"max_loss": "3%"},
        is_any_yes_false=True,
    ),
    "copied rows, jitter": Scenario(
        draw=lambda rng, n: _copy(_draw_log(rng, n, informed=0.1), 15, 1e-4, rng),
        cases=60,
        goal={"max_loss": "3%"},
        is_any_yes_false=True,
    ),
    "copied rows, one value redrawn": Scenario(
        draw=lambda rng, n: _redraw_big(_copy(_draw_log(rng, n, informed=0.1), 15, 0.0, rng), rng),
        cases=60,
        goal={"max_loss": "3%"},
        is_any_yes_false=True,
    ),
    "leaked label": Scenario(draw=_leak, served=_draw_log, goal={"max_loss": "3%"}, is_any_yes_false=True),
    "drift along the log": Scenario(
        draw=_drift, served=_decayed, goal={"max_loss": "8%"}, draws=200, is_exchangeable=False
    ),
    "gradual drift along the log": Scenario(
        draw=_drift_gradually, served=_decayed, goal={"max_loss": "8%"}, draws=200, is_exchangeable=False
    ),
    "label shift": Scenario(
        draw=_draw_rare,
        served=lambda rng, n: _draw_rare(rng, n, 0.5),
        goal={"max_loss": "6%", "max_loss_of": {"0": "6%", "1": "30%"}},
        is_exchangeable=False,
    ),
    "rare label always wrong": Scenario(
        draw=lambda rng, n: _draw_rare(rng, n, 0.05), goal={"max_loss": "6%", "max_loss_of": {"1": "30%"}}, cases=2000
    ),
    "rare confident errors": Scenario(draw=_draw_confident_errors, goal={"max_loss": "1%"}, cases=1500),
    "saving below the goal": Scenario(draw=_draw_small_saving, goal={"max_loss": "2%"}, cases=3000),
    "two-valued confidence": Scenario(
        draw=_draw_two_values, goal={"max_loss": "2%"}, cases=3000, is_any_yes_false=True
    ),
    "edge of the goal": Scenario(draw=lambda rng, n: _draw_log(rng, n, informed=0.16), goal={"max_loss": "4%"}),
    "edge of a label": Scenario(
        draw=lambda rng, n: _draw_log(rng, n, informed=0.2, rare=0.3),
        goal={"max_loss": "5%", "max_loss_of": {"1": "9%"}},
    ),
    "real saving": Scenario(
        draw=lambda rng, n: _draw_log(rng, n, accuracy=(0.85, 0.95), informed=0.3), goal={"max_loss": "4%"}, draws=200
    ),
}
