"""Kueue's rules, one by one, and laws over random queues."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.placement.tests.kueue.queue_objects import (
    GPU,
    Body,
    at,
    cluster_queue,
    flavor,
    local_queue,
    workload,
    write_list,
)
from unfold_placement.kueue import replay as replays
from unfold_placement.kueue import scheduler
from unfold_placement.kueue.replay import Admission, replay_queues
from unfold_placement.workload.kueue_objects import read_queue_snapshot
from unfoldkit.api import UnfoldError

RUN_S = 100.0
RECLAIM = {"preemption": {"reclaimWithinCohort": "Any"}}


def replay(folder: Path, *items: Body, run_s: float = RUN_S) -> dict[str, Admission]:
    """Replay some objects, each ClusterQueue with a LocalQueue ``main`` in the namespace of its name."""
    queues = [local_queue(item["metadata"]["name"]) for item in items if item["kind"] == "ClusterQueue"]
    snapshot = read_queue_snapshot(write_list(folder, [flavor(), *queues, *items]), run_s)
    assert snapshot is not None
    return {admission.workload.name: admission for admission in replay_queues(snapshot)}


def starts(folder: Path, *items: Body) -> dict[str, float]:
    """Return when each workload begins the run that it completes."""
    return {name: admission.start_s for name, admission in replay(folder, *items).items()}


def test_best_effort_passes_a_head_that_does_not_fit_and_strict_fifo_does_not(tmp_path: Path) -> None:
    """A large head waits for the running workload; a small one behind it starts only where the strategy allows."""
    jobs = [workload("a/run", 0, 6, admitted=0), workload("a/big", 1, 8), workload("a/small", 2, 2)]
    assert starts(tmp_path, cluster_queue("a", 8), *jobs)["a/small"] == 0.0
    strict = starts(tmp_path, cluster_queue("a", 8, queueingStrategy="StrictFIFO"), *jobs)
    # the strict head is tried all the time, the other one a second after the release
    assert strict["a/big"] == 98.0
    assert strict["a/small"] == 198.0


def test_priority_comes_before_age(tmp_path: Path) -> None:
    """The higher priority starts first, and of equal ones the older."""
    jobs = [workload("a/run", 0, 8, admitted=0), workload("a/old", 1, 8), workload("a/new", 2, 8, priority=5)]
    found = starts(tmp_path, cluster_queue("a", 8), *jobs)
    assert found["a/new"] < found["a/old"]


def test_a_queue_above_its_borrowing_limit_blocks_no_other(tmp_path: Path) -> None:
    """A queue whose quota was cut reserved less than nothing, and given back this filled the cohort for ever."""
    preemption = {"reclaimWithinCohort": "LowerPriority", "borrowWithinCohort": {"policy": "LowerPriority"}}
    above = cluster_queue("a", 2, cohortName="c", borrowingLimit=2, preemption=preemption)
    jobs = [workload("a/run", 0, 8, admitted=0), workload("a/waits", 0, 3)]
    jobs += [workload("b/first", 0, 2), workload("b/second", 0, 2)]
    found = starts(tmp_path, above, cluster_queue("b", 10, cohortName="c"), *jobs)
    assert found == {"a/run": 0.0, "a/waits": RUN_S + 1, "b/first": 0.0, "b/second": 0.0}


@pytest.mark.parametrize(
    ("queues", "fits"),
    [
        ([cluster_queue("a", 4, cohortName="c"), cluster_queue("b", 4, cohortName="c")], True),
        ([cluster_queue("a", 4), cluster_queue("b", 4)], False),
        ([cluster_queue("a", 4, cohortName="c", borrowingLimit=3), cluster_queue("b", 4, cohortName="c")], False),
        ([cluster_queue("a", 4, cohortName="c"), cluster_queue("b", 4, cohortName="c", lendingLimit=3)], False),
        ([cluster_queue("a", 4, cohortName="c", borrowingLimit=4), cluster_queue("b", 4, cohortName="c")], True),
    ],
)
def test_borrowing_and_lending_have_limits(tmp_path: Path, queues: list[Body], fits: bool) -> None:
    """Eight GPUs are four of the own and four borrowed, within both limits, else the workload never starts."""
    found = replay(tmp_path, *queues, workload("a/big", 0, 8))["a/big"]
    assert math.isfinite(found.end_s) == fits
    assert ("can ever offer" in found.reason) == (not fits)


def test_quota_is_reclaimed_and_the_borrower_starts_over(tmp_path: Path) -> None:
    """A workload within its quota preempts the borrower that was admitted last; that runs again from its beginning."""
    queues = [cluster_queue("a", 4, cohortName="c", **RECLAIM), cluster_queue("b", 4, cohortName="c")]
    jobs = [workload("b/one", 0, 4, admitted=0), workload("b/two", 1, 4, admitted=2), workload("a/own", 50, 4)]
    found = replay(tmp_path, *queues, *jobs)
    assert found["a/own"].start_s == 0.0
    assert (found["b/one"].preemptions, found["b/two"].preemptions) == (0, 1)
    # quota is free again at the end of b/one, 50 s later, and the retry follows a second after that
    assert found["b/two"].start_s == 51.0


def test_reclaim_needs_the_policy(tmp_path: Path) -> None:
    """Without reclaimWithinCohort the lender waits until the borrower ends."""
    queues = [cluster_queue("a", 4, cohortName="c"), cluster_queue("b", 4, cohortName="c")]
    jobs = [workload("b/one", 0, 8, admitted=0), workload("a/own", 50, 4)]
    assert starts(tmp_path, *queues, *jobs)["a/own"] == 51.0


def test_priority_preempts_within_the_queue_with_the_fewest_victims(tmp_path: Path) -> None:
    """The lowest priority goes first; a victim that turns out to be unnecessary keeps running."""
    queue = cluster_queue("a", 8, preemption={"withinClusterQueue": "LowerPriority"})
    jobs = [
        workload("a/small", 0, 2, admitted=0, priority=1), workload("a/large", 0, 6, admitted=1, priority=2),
        workload("a/urgent", 5, 6, priority=9), workload("a/equal", 6, 6, priority=2),
    ]  # fmt: skip
    found = replay(tmp_path, queue, *jobs)
    assert found["a/urgent"].start_s == 0.0
    assert (found["a/small"].preemptions, found["a/large"].preemptions) == (0, 1)
    assert found["a/equal"].preemptions == 0


def test_the_next_flavor_is_tried(tmp_path: Path) -> None:
    """A full first flavor sends a workload to the second; taints and selectors exclude flavors."""
    body = cluster_queue("a", 4)
    second = {"name": "spot", "resources": [{"name": GPU, "nominalQuota": "4"}]}
    body["spec"]["resourceGroups"][0]["flavors"].append(second)
    taint = {"key": "spot", "value": "true", "effect": "NoSchedule"}
    jobs = [workload("a/run", 0, 4, admitted=0), workload("a/next", 1, 4)]
    assert starts(tmp_path, body, flavor("spot"), *jobs)["a/next"] == 0.0
    assert starts(tmp_path, body, flavor("spot", nodeTaints=[taint]), *jobs)["a/next"] == 100.0
    template = {"containers": [{"name": "c", "resources": {"requests": {GPU: "1"}}}], "nodeSelector": {"pool": "x"}}
    jobs[1]["spec"]["podSets"][0]["template"]["spec"] = template
    assert starts(tmp_path, body, flavor("spot", nodeLabels={"pool": "y"}), *jobs)["a/next"] == math.inf
    assert starts(tmp_path, body, flavor("spot", nodeLabels={"pool": "x"}), *jobs)["a/next"] == 0.0


def test_a_partial_admission_takes_what_is_free(tmp_path: Path) -> None:
    """A workload with minCount starts with fewer pods."""
    jobs = [workload("a/run", 0, 5, admitted=0), workload("a/part", 1, 8, pod_set={"minCount": 2})]
    assert starts(tmp_path, cluster_queue("a", 8), *jobs)["a/part"] == 0.0


def test_a_cohort_has_quota_of_its_own_and_a_tree(tmp_path: Path) -> None:
    """Queues two levels below borrow from the root."""
    group = cluster_queue("x", 6)["spec"]["resourceGroups"]
    cohorts = [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Cohort", "metadata": {"name": "root"},
         "spec": {"resourceGroups": group}},
        {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Cohort", "metadata": {"name": "leaf"},
         "spec": {"parentName": "root"}},
    ]  # fmt: skip
    found = starts(tmp_path, *cohorts, cluster_queue("a", 2, cohortName="leaf"), workload("a/big", 0, 8))
    assert found["a/big"] == 0.0


def test_a_cycle_of_cohorts_is_an_error(tmp_path: Path) -> None:
    """Kueue admits nothing there; the error names the cycle."""
    cohorts = [
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Cohort",
            "metadata": {"name": name},
            "spec": {"parentName": up},
        }
        for name, up in (("x", "y"), ("y", "x"))
    ]
    with pytest.raises(UnfoldError, match="x -> y -> x"):
        replay(tmp_path, *cohorts, cluster_queue("a", 2, cohortName="x"), workload("a/job", 0, 1))


def test_a_stopped_queue_admits_nothing_and_drains(tmp_path: Path) -> None:
    """Hold keeps what runs; HoldAndDrain evicts it."""
    jobs = [workload("a/run", 0, 1, admitted=0), workload("a/wait", 1, 1), workload("a/later", 2, 1)]
    held = replay(tmp_path, cluster_queue("a", 8, stopPolicy="Hold"), *jobs)
    assert (math.isfinite(held["a/run"].end_s), math.isfinite(held["a/wait"].end_s)) == (True, False)
    assert {held[name].reason for name in ("a/wait", "a/later")} == {"ClusterQueue a admits nothing"}
    drained = replay(tmp_path, cluster_queue("a", 8, stopPolicy="HoldAndDrain"), *jobs)
    assert not any(math.isfinite(admission.end_s) for admission in drained.values())


@pytest.mark.parametrize("seed", range(40))
def test_no_queue_ever_uses_more_than_it_may(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In random cohorts usage stays within its limits; what fits ends, unless a strict head never does."""
    items = random_queues(random.Random(seed))  # noqa: S311
    limits: list[str] = []
    run_cycle = replays.Scheduler.run_cycle

    def check(scheduler: Any) -> Any:
        result = run_cycle(scheduler)
        for name, node in scheduler.state.nodes.items():
            for key in node.quotas:
                used = sum(entry.usage.get(key, 0) for entry in scheduler.state.admitted.get(name, {}).values())
                limits.extend([f"{name}: {used} is not {node.used(key)}"] if used != node.used(key) else [])
                limits.extend([f"{name}: {node.available(key)} left"] if node.available(key) < 0 else [])
        return result

    monkeypatch.setattr(replays.Scheduler, "run_cycle", check)
    found = replay(tmp_path, *items)
    assert limits == []
    for admission in found.values():
        assert math.isfinite(admission.end_s) or "can ever offer" in admission.reason or "behind" in admission.reason
        assert not math.isfinite(admission.end_s) or admission.end_s == admission.start_s + RUN_S
        assert admission.start_s >= admission.workload.arrival_s


@pytest.mark.parametrize("seed", range(20))
def test_remembered_refusals_change_no_admission(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that computes each nomination afresh admits the same workloads at the same times."""
    items = random_queues(random.Random(seed))  # noqa: S311
    remembered = replay(tmp_path, *items)
    monkeypatch.setattr(scheduler, "_identify_request", lambda _: object())
    assert replay(tmp_path, *items) == remembered


def random_queues(rng: random.Random) -> list[Body]:
    """Return random queues of one cohort with workloads that arrive over time."""
    items: list[Body] = []
    for name in "abc":
        limits: Body = {"borrowingLimit": rng.randrange(5)} if rng.random() < 0.4 else {}
        limits |= {"lendingLimit": rng.randrange(5)} if rng.random() < 0.4 else {}
        rules = {
            "withinClusterQueue": rng.choice(["Never", "LowerPriority", "LowerOrNewerEqualPriority"]),
            "reclaimWithinCohort": rng.choice(["Never", "LowerPriority", "Any"]),
        }
        strategy = rng.choice(["StrictFIFO", "BestEffortFIFO"])
        items.append(
            cluster_queue(
                name, rng.randrange(1, 9), cohortName="c", preemption=rules, queueingStrategy=strategy, **limits
            )
        )
    for number in range(30):
        job = workload(
            f"{rng.choice('abc')}/j{number}", rng.randrange(300), rng.randrange(1, 7), priority=rng.randrange(3)
        )
        items.append(job)
    return items


def test_arrivals_after_the_beginning_are_awaited(tmp_path: Path) -> None:
    """A requeueAt in the future delays a workload."""
    job = workload("a/late", 0, 1)
    job["status"] = {"requeueState": {"count": 1, "requeueAt": at(60)}}
    assert starts(tmp_path, cluster_queue("a", 8), job, workload("a/now", 10, 1))["a/late"] == 50.0


def test_the_replay_is_independent_of_the_order_of_the_file(tmp_path: Path) -> None:
    """The same objects in another order start at the same times."""
    items = random_queues(random.Random(5))  # noqa: S311
    found = starts(tmp_path, *items)
    assert starts(tmp_path, *reversed(items)) == found


def test_a_queue_that_is_replayed_is_left_as_it_was(tmp_path: Path) -> None:
    """A second replay of one snapshot gives the same."""
    snapshot = read_queue_snapshot(
        write_list(tmp_path, [cluster_queue("a", 2), local_queue("a"), workload("a/x", 0, 1)]), 5
    )
    assert snapshot is not None
    assert replay_queues(snapshot) == replay_queues(replace(snapshot))


def _random_queues(rng: random.Random, count: int) -> list[Body]:
    """Return ClusterQueues in a tree of cohorts with every kind of preemption, and their workloads."""
    api = "kueue.x-k8s.io/v1beta2"
    names = range(rng.randrange(1, 4))
    items: list[Body] = [
        {"apiVersion": api, "kind": "Cohort", "metadata": {"name": f"c{i}"}, "spec": {"parentName": f"c{i - 1}"}}
        for i in names[1:]
    ]
    queues = rng.randrange(2, 7)
    for index in range(queues):
        preemption: Body = {
            "reclaimWithinCohort": rng.choice(["Any", "LowerPriority"]),
            "withinClusterQueue": rng.choice(["LowerPriority", "LowerOrNewerEqualPriority", "Never"]),
        }
        if rng.random() < 0.4:
            preemption["borrowWithinCohort"] = {"policy": "LowerPriority"}
        limits = {key: rng.randrange(9) for key in ("borrowingLimit", "lendingLimit") if rng.random() < 0.3}
        cohort = f"c{rng.choice(names)}"
        items.append(
            cluster_queue(f"q{index}", rng.randrange(2, 12), cohortName=cohort, preemption=preemption, **limits)
        )
    return items + [
        workload(f"q{rng.randrange(queues)}/w{number}", number * 7, rng.randrange(1, 9), priority=rng.randrange(6))
        for number in range(count)
    ]


def test_queues_that_preempt_each_other_at_every_retry_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every retry, a second later, stops what the last one started: these never end, and the others go on."""
    monkeypatch.setattr(replays, "MAX_PREEMPTING_CYCLES", 500)
    found = replay(tmp_path, *_random_queues(random.Random(104), 45))  # noqa: S311
    looping = [item for item in found.values() if "over and over" in item.reason]
    assert 2 <= len(looping) < len(found) / 2
    assert all(item.preemptions and math.isinf(item.end_s) for item in looping)
    assert sum(math.isfinite(item.end_s) for item in found.values()) > len(found) / 2


@pytest.mark.timed
def test_a_state_that_recurs_at_one_instant_is_noticed_at_once(tmp_path: Path) -> None:
    """The next cycles depend on nothing else, so the limit on cycles need not be reached."""
    began_s = time.process_time()
    found = replay(tmp_path, *_random_queues(random.Random(150), 45))  # noqa: S311
    assert sum("over and over" in item.reason for item in found.values()) >= 2
    assert time.process_time() - began_s < 5


def test_queues_that_preempt_each_other_hold_up_no_other_cohort(tmp_path: Path) -> None:
    """What runs in another cohort starts and ends as it would without them."""
    alone = [cluster_queue("other", 4), *(workload(f"other/o{number}", number, 3) for number in range(5))]
    both = [*_random_queues(random.Random(150), 45), *alone]  # noqa: S311
    expected, found = replay(tmp_path, *alone), replay(tmp_path, *both)
    assert math.isfinite(expected["other/o4"].end_s)
    waits = {name: item.end_s - expected["other/o0"].end_s for name, item in expected.items()}
    assert {name: found[name].end_s - found["other/o0"].end_s for name in expected} == pytest.approx(waits)
