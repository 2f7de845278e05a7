"""Which cascade is chosen: search the front of the gates, certify, and keep the front as a file of the run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade.data.dataset import Cases, cases, group_of_label
from unfold_cascade.gates import calibration_io
from unfold_cascade.planner.compose import PolicyFront, search
from unfold_cascade.planner.policy import Policy, Step
from unfold_cascade.planner.score_tables import Zoo, zoo
from unfold_cascade.planner.select import Choice, Monolith, choose, monolith, shortlist
from unfold_cascade.schema.models import CascadeSpec
from unfoldkit.api import Run, dump, fingerprint
from unfoldkit.safe_io.files import decoding, parse_object

FRONT_FILE = "front.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a report tells of: the cases, the tables, the front, the reference and the choice."""

    spec: CascadeSpec
    given: Cases
    zoo: Zoo
    front: PolicyFront
    base: Monolith
    choice: Choice

    @property
    def policy(self) -> Policy | None:
        """The cascade that was chosen; ``None`` if only the monolith keeps the promise."""
        return None if self.choice.point is None else self.front.policies[self.choice.point]


def decide(spec: CascadeSpec, run: Run) -> Plan:
    """Fit what is missing, search the front on the tuning rows, certify on the calibration rows."""
    given = cases(spec, run)
    tables = zoo(spec, run, given)
    # runs of before hold every point
    front = shortlist(_front(spec, run, given, tables))
    base = monolith(tables, given.labels, given.rows.train)
    rows = given.rows
    choice = choose(tables, front, base, given.labels, rows.train, rows.calibrate, spec.goal, given.names)
    return Plan(spec, given, tables, front, base, choice)


def _front(spec: CascadeSpec, run: Run, given: Cases, tables: Zoo) -> PolicyFront:
    made_from = fingerprint(dump(spec.gates), spec.order, spec.conditional, dict(tables.prices), _seen(given, tables))
    groups = group_of_label(spec, given.names)

    def make() -> bytes:
        run.log.info("searching the gates on %d rows", len(given.rows.train))
        found = search(tables, given.labels, groups, given.rows.train, spec.gates, spec.order, spec.conditional)
        return to_json(shortlist(found))

    return from_json(run.directory.once(FRONT_FILE, made_from, make), str(run.directory.path / FRONT_FILE))


def _seen(given: Cases, tables: Zoo) -> list[Any]:
    """What the front depends on, beside the spec."""
    questions = [tables.first, *tables.then.values()]
    arrays = [array for q in questions for array in (q.answer, q.score, q.price, q.paid) if array is not None]
    return [
        _hash(given.labels),
        _hash(given.rows.train),
        *map(_hash, arrays),
        [sorted(b) for q in questions for b in q.buys],
        # named only where they are there: fronts of runs from before stay good
        *([] if tables.stakes.cost is None else [_hash(tables.stakes.cost)]),
    ]


def _hash(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def to_json(front: PolicyFront) -> bytes:
    """Return the front as JSON; a cut that never stops is null."""
    points = [
        {"loss": float(loss), "cost": float(cost), "first": _step_data(policy.first), "then": _then_data(policy)}
        for loss, cost, policy in zip(front.loss, front.cost, front.policies, strict=True)
    ]
    return (json.dumps({"schema": "unfold_cascade.front/1", "points": points}) + "\n").encode()


def from_json(data: bytes, file: str) -> PolicyFront:
    """Return the front that ``to_json`` wrote.

    Raises:
        UnfoldError: it is not such a front.
    """
    with decoding(file, "a front"):
        points = parse_object(data)["points"]
        loss, cost = (np.array([float(point[name]) for point in points]) for name in ("loss", "cost"))
        return PolicyFront(loss, cost, tuple(_policy(point) for point in points))


def _then_data(policy: Policy) -> dict[str, Any]:
    return {str(group): _step_data(step) for group, step in policy.then.items()}


def _step_data(step: Step) -> dict[str, Any]:
    data = {"chain": list(step.chain), "cuts": [_cut_data(cut) for cut in step.cuts]}
    return data | {"curves": [calibration_io.to_data(curve) for curve in step.curves]} if step.curves else data


def _cut_data(cut: float) -> float | str:
    return cut if math.isfinite(cut) else ("always" if cut < 0 else "never")


def _policy(point: dict[str, Any]) -> Policy:
    return Policy(_step(point["first"]), {int(group): _step(step) for group, step in point["then"].items()})


def _step(data: dict[str, Any]) -> Step:
    words = {"always": -math.inf, "never": math.inf}
    cuts = tuple(words[cut] if isinstance(cut, str) else float(cut) for cut in data["cuts"])
    fitted = tuple(calibration_io.from_data(item) for item in data.get("curves", ()))
    return Step(tuple(int(model) for model in data["chain"]), cuts, fitted)
