"""Copies of controllers share nothing that an action changes, whatever the policies keep."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, policy
from unfold_placement.core.controller import Controller
from unfold_placement.core.feasibility import EMPTIED_ARRAYS
from unfold_placement.core.types import Task
from unfold_placement.policies.registry import build_policies
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.verification.model import FIXED_ARRAYS, SHARED, canonical_key, copy_controller, list_running
from unfold_placement.verification.scenario import Jobs, Kind, Scenario, apply_action, build_initial, list_actions

SHIPPED: dict[str, dict[str, Any]] = {
    "spread": {"skew": 2}, "affinity": {}, "anti-affinity": {"density": 2}, "avoid": {}, "types": {}, "locality": {},
    "servers": {}, "barrier": {}, "limit": {"most": 4}, "fifo": {}, "priority": {}, "wfq": {},
    "drf": {"backfill": True}, "hierarchy": {}, "history": {},
    "quota": {"quotas": {"a": 1, "z": 2}}, "edf": {}, "pack": {}, "value": {},
}  # fmt: skip


def list_mutable(value: Any, found: dict[int, Any]) -> dict[int, Any]:
    """Return the mutable objects that are reachable from a value, by their id."""
    if id(value) in found or type(value) in SHARED or isinstance(value, (str, bytes, type, FunctionType)):
        return found
    if isinstance(value, (dict, list, deque, set, np.ndarray)) or is_dataclass(value):
        found[id(value)] = value
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, deque, set)):
        parts = list(value)
    elif isinstance(value, MethodType):
        parts = [value.__self__]
    elif is_dataclass(value):
        parts = [getattr(value, item.name, None) for item in fields(value)]
    for part in parts:
        list_mutable(part, found)
    return found


def list_shared(first: Controller, second: Controller) -> list[Any]:
    """Return what two controllers share beside what no action changes: rows by name, groups of nodes, some arrays."""
    table, view = first.table, first.view
    fixed = [getattr(table.state, name) for name in FIXED_ARRAYS]
    fixed += [getattr(view.empty_cluster.state, name) for name in EMPTIED_ARRAYS if view.empty_cluster.state]
    known = [*fixed, table.task_rows, table.node_rows, view.label_groups, view.empty_cluster.capacity]
    constant = set().union(*(list_mutable(item, {}) for item in known))
    common = list_mutable(first, {}).keys() & list_mutable(second, {}).keys()
    return [value for key, value in list_mutable(first, {}).items() if key in common - constant]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("gang", [{}, {"gang": {}}])
def test_a_copy_shares_nothing_that_changes(name: str, gang: dict[str, Any]) -> None:
    """After random arrivals, ends and losses of nodes a copy equals its controller, continues alike, and is its own."""
    kinds = (
        Kind("small", (Task("", {"gpu": 1000}, 60.0, user="a"),)),
        Kind("team", (Task("", {"gpu": 1000}, 60.0, user="z"),) * 3),
        Kind("large", (Task("", {"gpu": 2000}, 60.0, user="z"),) * 2),
    )
    scenario = Scenario(tuple(cluster(2, 2)), kinds, "large", 4, unsteady=("n1",))
    controller = build_initial(scenario, build_policies(policy(**{name: SHIPPED[name]}, **gang)))
    jobs, chance = Jobs(), np.random.default_rng(list(name.encode()))

    def key(of: Controller) -> object:
        return canonical_key(of, jobs.renaming(kinds), list_running(of))

    for _ in range(25):
        following = copy_controller(controller)
        assert list_shared(controller, following) == []
        assert key(following) == key(controller)
        actions = list(list_actions(scenario, controller, jobs, list_running(controller)))
        action = actions[int(chance.integers(len(actions)))]
        before, jobs_before = key(controller), jobs
        jobs = apply_action(scenario, following, jobs_before, action)
        after = key(following)
        jobs, jobs_after = jobs_before, jobs
        assert key(controller) == before
        apply_action(scenario, controller, jobs_before, action)
        jobs = jobs_after
        assert key(controller) == after
        controller = following


def test_values_that_are_not_what_annotations_say_are_copied() -> None:
    """A policy from outside may set a field of a shipped queue to anything."""
    queue = AdmissionQueue("user")
    queue.used, queue.ages = {"a": {"gpu": 1}}, None  # type: ignore[assignment]
    controller = build_initial(Scenario(tuple(cluster(1, 1)), (), ""), build_policies(policy(fifo={})))
    controller.policies[0].queue = queue  # type: ignore[attr-defined]
    copied: Any = copy_controller(controller).policies[0]
    assert (copied.queue.used, copied.queue.ages) == (queue.used, None)
    assert copied.queue.used["a"] is not queue.used["a"]
