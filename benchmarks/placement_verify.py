"""Verification of policies: seeded bugs found, false alarms, public bugs, and the speed of the search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from unfold_placement.core.types import Node, Put, Task
from unfold_placement.core.view import View
from unfold_placement.policies.fairness.quota import Quota
from unfold_placement.policies.ordering.gang import Gang
from unfold_placement.policies.registry import PolicyRule, build_policies
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.policies.shared.pending import UnitShapes
from unfold_placement.schema.policies import PolicySpec
from unfold_placement.simulation.problem import Problem
from unfold_placement.verification.scenario import Kind, Scenario
from unfold_placement.verification.search import HEAD_OF_LINE, search
from unfold_placement.verification.verify import Bound, Verification, verify_policies
from unfold_placement.workload.build import policy_rules

QUOTA = {"quotas": {"a": 1, "b": 1, "z": 2}}
PASSING: dict[str, dict[str, Any]] = {
    name: {name: {"backfill": True}} for name in ("fifo", "drf", "hierarchy", "edf", "wfq", "priority")
}
STRICT: dict[str, dict[str, Any]] = {
    name: {name: {"backfill": False}} for name in ("fifo", "drf", "hierarchy", "edf", "wfq", "priority")
}
GANG: dict[str, Any] = {"gang": {}}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    **{f"{name} with backfill": parts for name, parts in PASSING.items()},
    **STRICT,
    "quota": {"quota": QUOTA},
    "gang": GANG,
    **{f"{name} with backfill + gang": {**parts, **GANG} for name, parts in PASSING.items()},
    "quota + gang": {"quota": QUOTA, **GANG},
}


def run(quick: bool, seed: int, data: Path | None = None) -> dict[str, Any]:
    """Measure the verification.

    Args:
        quick: A third of the mutations and compositions.
        seed: Unused: the search is exhaustive.
        data: Unused.

    Returns:
        ``metrics``, ``tables``, ``aims`` and ``notes``.
    """
    del seed, data
    step = 3 if quick else 1
    began = time.process_time()
    rows = [_row(name, verified(parts)) for name, parts in list(COMPOSITIONS.items())[::step]]
    seconds = time.process_time() - began
    mutations = [_try_mutation(*mutation) for mutation in list(list_mutations())[::step]]
    small = _speed(4)
    large = _speed(4 if quick else 6)
    metrics = {
        "mutations_found": sum(row["found"] != "" for row in mutations),
        "mutations": len(mutations),
        "false_alarms": sum(row["violations"] for row in rows),
        "unconfirmed": sum(row["unconfirmed"] for row in rows),
        "compositions": len(rows),
        "compositions_s": seconds,
        "transitions_per_s": small["transitions"] / small["cpu_s"],
        "four_jobs_s": small["cpu_s"],
        "six_jobs_s": large["cpu_s"],
        "six_jobs_states": large["states"],
    }
    aims = {
        "mutations_found": ">= 28", "false_alarms": "0", "compositions_s": "<= 120", "transitions_per_s": ">= 5,000",
        "four_jobs_s": "< 1", "six_jobs_s": "< 10",
    }  # fmt: skip
    notes = [
        "Standard menu: clusters of one and two nodes with two GPUs each, three jobs in flight, victims of two users.",
        "A mutation is found if a counterexample is confirmed by a replay in the simulator.",
        "by_design: what strict orders and classes do to tasks behind them; it fails no composition.",
        "Seconds are CPU seconds of one core, confirmation included.",
    ]
    return {"metrics": metrics, "aims": aims, "tables": {"compositions": rows, "mutations": mutations}, "notes": notes}


def verified(parts: dict[str, Any]) -> Verification:
    """Verify a composition on the standard menu."""
    problem = Problem(name="x", nodes=(), tasks=(), rules=_rules(parts), is_recorded=True)
    return verify_policies(problem, Bound(), lambda *_: None)


def _rules(parts: dict[str, Any]) -> tuple[PolicyRule, ...]:
    return policy_rules(PolicySpec.model_validate(parts, strict=False))


def _row(name: str, found: Verification) -> dict[str, Any]:
    return {
        "composition": name,
        "violations": len(found.counterexamples),
        "found": ", ".join(example.finding.property_name for example in found.counterexamples),
        "by_design": ", ".join(example.finding.property_name for example in found.by_design),
        "states": sum(record.states for record in found.searches),
        "complete": found.is_complete,
        "unconfirmed": found.unconfirmed,
    }


Mutation = tuple[str, dict[str, Any], list[Any]]


def list_mutations() -> Iterator[Mutation]:
    """Yield 30 bugs: a description, the composition, and what is patched."""
    for name, parts in [*PASSING.items(), ("quota", {"quota": QUOTA, **GANG})]:
        yield f"{name}: no guard", parts, [patch.object(AdmissionQueue, "_reserve_oldest", _nothing)]
    for name in ("drf", "hierarchy"):
        yield f"{name}: ties by name", {**STRICT[name], **GANG}, [patch.object(AdmissionQueue, "age", _by_name)]
    for name, parts in STRICT.items():
        yield f"{name}: impossible first", parts, [patch.object(AdmissionQueue, "_let_pass", lambda *_: False)]
    for name in ("fifo", "drf", "edf"):
        yield f"{name}: reservation kept", PASSING[name], [patch.object(View, "release_reservation", _nothing)]
        yield f"{name}: never retried", PASSING[name], [patch.object(UnitShapes, "revive", lambda *_: False)]
        yield f"{name}: newest reserved", PASSING[name], [patch.object(AdmissionQueue, "age", _newest)]
    yield "fifo: owner excluded", PASSING["fifo"], [patch.object(AdmissionQueue, "admit_reserved", _no_transactions)]
    yield "gang: torn", GANG, [patch.object(Gang, "_place_gangs", _place_all_but_one)]
    yield "drf + gang: torn", {**PASSING["drf"], **GANG}, [patch.object(Gang, "_place_gangs", _place_all_but_one)]
    yield "gang: no guard", GANG, [patch.object(Gang, "_lacks_only_room", lambda *_: False)]
    yield "quota: no bound on preemptions", {"quota": {**QUOTA, "max_preemptions": None}, **GANG}, []
    yield "quota: wrong sign", {"quota": QUOTA}, [patch.object(Quota, "excess", lambda *_: 1.0)]


def _try_mutation(name: str, parts: dict[str, Any], patches: list[Any]) -> dict[str, Any]:
    began = time.process_time()
    with ExitStack() as stack:
        for change in patches:
            stack.enter_context(change)
        found = verified(parts)
    names = [example.finding.property_name for example in (*found.counterexamples, *found.by_design)]
    kept = [property_name for property_name in names if property_name != HEAD_OF_LINE]
    return {"mutation": name, "found": ", ".join(kept), "cpu_s": time.process_time() - began}


def _nothing(*_args: object, **_options: object) -> None:
    return None


def _no_transactions(*_args: object, **_options: object) -> Iterator[list[Put]]:
    yield from ()


def _by_name(_queue: AdmissionQueue, unit: tuple[Task, ...]) -> tuple[str, str]:
    return unit[0].user, unit[0].name


def _newest(queue: AdmissionQueue, unit: tuple[Task, ...]) -> int:
    return -queue.ages.get(unit[0].name, (queue.joined, 0.0))[0]


PLACE: Callable[..., Any] = Gang._place_gangs  # noqa: SLF001 - the mutation wraps the method


def _place_all_but_one(gang: Gang, view: View) -> Iterator[list[Put]]:
    for transaction in PLACE(gang, view):
        yield transaction[:-1] if len(transaction) > 1 else transaction


def _speed(jobs: int) -> dict[str, float]:
    """Search two nodes and three kinds with a gang as large as the cluster."""

    def kind(name: str, count: int, user: str) -> Kind:
        return Kind(name, (Task("", {"gpu": 1000}, 60.0, user=user),) * count)

    nodes = tuple(Node(f"node-{index}", {"gpu": 2000}) for index in range(2))
    scenario = Scenario(nodes, (kind("small", 1, "a"), kind("other", 1, "b"), kind("gang", 4, "z")), "gang", jobs)
    policies = build_policies(_rules({"drf": {"backfill": True}, **GANG}))
    began = time.process_time()
    result = search(scenario, policies, 100_000)
    return {"cpu_s": time.process_time() - began, "transitions": result.transitions, "states": result.states}
