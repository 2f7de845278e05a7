"""Counting gangs in part, and gates and names that are left."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gang_counts import GangLog, leaked_gates, leaked_names
from unfold_placement.kubernetes.objects.codec import Scope

SCOPE = Scope("train", "unfold")


def pod(name: str, state: str, gang: str = "a", **labels: str) -> dict[str, Any]:
    """Return a pod in one of the states, of a Job unless its labels name a JobSet."""
    meta: dict[str, Any] = {"name": name, "labels": {"batch.kubernetes.io/job-name": gang, **labels}}
    spec: dict[str, Any] = {"schedulingGates": [{"name": SCOPE.gate}]} if state == "gated" else {}
    spec |= {"nodeName": "n0"} if state in {"bound", "ended", "going"} else {}
    meta |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if state == "going" else {}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Succeeded" if state == "ended" else "Pending"}}


def replay(*steps: tuple[float, str, str], size: int = 2) -> GangLog:
    """Return the log of a gang from times (s), pods and states; ``gone`` deletes a pod."""
    log = GangLog(SCOPE.gate)
    log.expect("a", size)
    for at_s, name, state in steps:
        log.note(pod(name, "going" if state == "gone" else state), at_s, is_gone=state == "gone")
    return log


@pytest.mark.parametrize(
    ("steps", "part_s"),
    [
        ([(0, "x", "gated"), (0, "y", "gated"), (1, "x", "open"), (1.5, "y", "open")], 0.5),
        ([(0, "x", "gated"), (0, "y", "gated"), (1, "x", "bound"), (9, "x", "going")], 8),
        ([(0, "x", "bound"), (2, "y", "bound"), (5, "y", "going"), (6, "z", "gated"), (8, "z", "bound")], 3),
        ([(0, "x", "ended"), (1, "x", "gone"), (4, "y", "bound")], 4),
    ],
    ids=["opened in turn", "taken back", "one replaced", "one collected after its end"],
)
def test_a_gang_is_in_part_while_some_of_its_pods_wait(steps: list[tuple[float, str, str]], part_s: float) -> None:
    """The longest time counts: from the first pod past the gate until all are, or none is."""
    log = replay(*steps)
    assert log.longest_part_s == {"a": part_s}
    assert log.partial(part_s - 0.1) == ["a"]
    assert log.partial(part_s) == []


def test_what_has_ended_with_its_gang_need_not_start_again() -> None:
    """The others are lost and wait for a new place; they are whole again without it."""
    log = replay((0, "x", "bound"), (0, "y", "bound"), (7, "x", "ended"), (8, "y", "gone"), (9, "z", "gated"))
    assert log.partial(0.0) == []
    log.note(pod("z", "bound"), 90)
    assert (log.partial(0.0), log.longest_part_s) == ([], {"a": 0})


def test_a_new_pod_that_runs_without_the_others_is_a_part_even_after_its_end() -> None:
    """All are lost; one comes back alone, and ends before the other does."""
    log = replay((0, "x", "bound"), (0, "y", "bound"), (5, "x", "going"), (5, "y", "going"), (20, "z", "bound"))
    log.note(pod("z", "ended"), 22)
    log.note(pod("w", "bound"), 50)
    assert log.longest_part_s == {"a": 30}


def test_a_gang_that_is_still_in_part_is_partial_at_any_limit() -> None:
    """One that never gets its second pod counts at the end of a run, and its deletion ends its time."""
    log = replay((0, "x", "ended"))
    assert log.partial(100.0) == ["a"]
    log.close("a", 5.0)
    assert (log.partial(100.0), log.longest_part_s) == ([], {"a": 5.0})


def test_a_gang_is_placed_and_ends_once_all_its_pods_do() -> None:
    """Pods that are collected after their success still count."""
    log = replay((0, "x", "bound"), (3, "y", "bound"), (4, "x", "ended"), (5, "x", "gone"))
    assert log.placed_s == {"a": 3}
    assert not log.has_ended("a")
    log.note(pod("y", "ended"), 6)
    assert log.has_ended("a")


def test_pods_of_all_jobs_of_a_jobset_are_one_gang() -> None:
    """The JobSet's label comes before the Job's."""
    log = replay(size=2)
    name = {"jobset.sigs.k8s.io/jobset-name": "a"}
    log.note(pod("x", "bound", "a-driver-0", **name), 0)
    log.note(pod("y", "bound", "a-workers-0", **name), 1)
    assert log.placed_s == {"a": 1}


def test_a_gate_is_leaked_where_its_gang_waits_no_more() -> None:
    """Pods past the gate, or of gangs that wait, are none."""
    pods = [pod("x", "gated"), pod("y", "bound"), pod("z", "gated", "b")]
    assert leaked_gates(pods, SCOPE.gate, {"b"}) == ["x"]


def node(rows: str, *names: str) -> dict[str, Any]:
    """Return a node that lists and offers resources."""
    resources = {SCOPE.resource(name): "1" for name in names} | {"cpu": "4"}
    return {"metadata": {"name": "n0", "annotations": {SCOPE.names_key: rows}}, "status": {"allocatable": resources}}


def test_names_are_leaked_without_a_living_task_or_owner() -> None:
    """Resources that are bound to a task, records of units, and Leases; those of the whole cluster may stay."""
    rows = '{"pack-x": [1, "train", 1, 0.0, null, "x"], "pack-y": [1, "train", 2, 0.0, null, "y"]}'
    config = {"data": {"names": '{"limit": [2, "train", 1, 0.0, null, ""]}', "units": '{"x": {"x": 1}, "y": {"y": 1}}'}}
    lease = {"metadata": {"name": "train.other"}}
    found = leaked_names(SCOPE, [node(rows, "pack-x", "pack-y", "lost")], config, [lease], {"x"})
    prefix = f"n0: {SCOPE.prefix}"
    assert found == ["lease train.other", f"{prefix}lost", f"{prefix}pack-y", "unit: y"]


def test_slots_of_gangs_are_leaked_once_no_task_is_left() -> None:
    """They are bound to no task: the policy deletes them with the last of the gang."""
    rows = '{"gang-a-": [1, "train", 1, 0.0, null, ""]}'
    assert leaked_names(SCOPE, [node(rows, "gang-a-")], {}, [], {"x"}) == []
    assert leaked_names(SCOPE, [node(rows, "gang-a-")], {}, [], ()) == [f"n0: {SCOPE.resource('gang-a-')}"]
