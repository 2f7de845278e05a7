"""Kueue's objects as kubectl prints them: versions, lists, documents, and errors with file, object and field."""

from __future__ import annotations

import bz2
import json
import lzma
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from plugins.placement.tests.kueue.queue_objects import (
    GPU,
    Body,
    at,
    cluster_queue,
    condition,
    flavor,
    local_queue,
    workload,
    write_list,
)
from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.verbs.check_inputs import check_inputs
from unfold_placement.verbs.plan import plan
from unfold_placement.workload.kueue_objects import parse_quantity, read_queue_snapshot
from unfoldkit.api import Report, Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine


def spec(path: Path, **parts: Any) -> PlacementSpec:
    """Return a spec that replays a file."""
    replay = {"trace": "kubectl", "path": str(path), **parts.pop("replay", {})}
    cluster = {"trace": "kubectl", "path": str(path)}
    body = {"version": 1, "kind": "placement", "name": "k", "cluster": cluster, "workload": {"replay": replay}, **parts}
    return PlacementSpec.model_validate_json(json.dumps(body))


def report(folder: Path, given: PlacementSpec) -> Report:
    """Plan a spec."""
    return plan(given, Run(directory=RunDir(folder / "run"), engine=LocalEngine(1)))


def two_teams(folder: Path) -> Path:
    """Return a file in which team-b borrows what team-a lends, and both wait."""
    queues = [cluster_queue(name, 8, cohortName="all") for name in ("team-a", "team-b")]
    jobs = [workload(f"team-a/a{number}", number, 4) for number in range(4)]
    jobs += [workload(f"team-b/b{number}", 10 + number, 6) for number in range(3)]
    done = [workload("team-a/done", 0, 4, admitted=1, finished=301)]
    return write_list(folder, [flavor(), *queues, *map(local_queue, ("team-a", "team-b")), *jobs, *done])


def test_a_quota_change_is_replayed_before_it_is_made(tmp_path: Path) -> None:
    """More quota for one team lets it start earlier, and the report states which teams gain, by how much, and when."""
    path = two_teams(tmp_path)
    unchanged = report(tmp_path, spec(path))
    assert unchanged.metrics["earlier"].value == 0
    assert [column.name for column in unchanged.tables[0].columns] == [
        "ClusterQueue",
        "workloads",
        "never",
        "mean wait",
    ]
    changed = report(tmp_path, spec(path, policy={"quota": {"team-a": 16}}, explain={"task": "team-a/a2"}))
    assert changed.verdict is Verdict.YES
    assert changed.metrics["earlier"].value == 3
    assert {"old start", "start", "change"} < {column.name for column in changed.tables[1].columns}
    lines = dict(changed.lines)
    assert lines["quota"] == "team-a: nvidia.com/gpu in flavor default from 8 to 16"
    assert "a2 starts at 2026-03-01 10:" in lines["explained"]
    assert "earlier than without the change" in lines["explained"]
    rows = (tmp_path / "run" / "admission.csv").read_text().splitlines()
    assert len(rows) == 8
    sources = [line for _, line in changed.lines if "the median of" in line]
    assert sources == [
        "the run time of 4 workloads is the median of the ended workloads in the same LocalQueue",
        "the run time of 3 workloads is the median of all ended workloads",
    ]


def test_manifests_are_replayed_before_they_are_applied(tmp_path: Path) -> None:
    """A changed ClusterQueue in a file of its own replaces the one of the snapshot."""
    new = tmp_path / "new.yaml"
    new.write_text(yaml.safe_dump(cluster_queue("team-b", 20, cohortName="all")), "utf-8")
    changed = report(tmp_path, spec(two_teams(tmp_path), replay={"apply": str(new)}))
    assert (changed.metrics["earlier"].value or 0) > 0
    new.write_text(yaml.safe_dump(workload("team-b/x", 0, 1)), "utf-8")
    with pytest.raises(UnfoldError, match="Workload is not a configuration of Kueue"):
        report(tmp_path, spec(two_teams(tmp_path), replay={"apply": str(new)}))


def test_both_versions_and_all_forms_are_read(tmp_path: Path) -> None:
    """Lists, typed lists, several JSON documents and YAML documents, v1beta1 and v1beta2, hold the same."""
    items = json.loads(two_teams(tmp_path).read_text())["items"]
    expected = read_queue_snapshot(tmp_path / "kueue.json")
    old = json.loads(json.dumps(items).replace("v1beta2", "v1beta1").replace("cohortName", "cohort"))
    # a kind that the replay does not read may have any version
    old.append({"apiVersion": "kueue.x-k8s.io/v1alpha1", "kind": "Topology", "metadata": {"name": "rack"}})
    kinds = sorted({item["kind"] for item in items})
    typed = [{"kind": f"{kind}List", "apiVersion": "kueue.x-k8s.io/v1beta2",
              "items": [{key: value for key, value in item.items() if key not in {"kind", "apiVersion"}}
                        for item in items if item["kind"] == kind]} for kind in kinds]  # fmt: skip
    texts = {
        "old.json": json.dumps({"kind": "List", "items": old}),
        "lists.json": "\n".join(map(json.dumps, typed)),
        "documents.json": "\n\n".join(map(json.dumps, items)),
        "items.json": json.dumps(items),
        "documents.yaml": "# exported\n---\n" + "\n---\n".join(map(yaml.safe_dump, items)) + "\n---\n",
        "list.yaml": yaml.safe_dump({"kind": "List", "apiVersion": "v1", "items": items}),
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(text, "utf-8")
        found = read_queue_snapshot(path)
        assert found is not None
        assert expected is not None
        assert sorted(found.workloads, key=lambda item: item.name) == sorted(
            expected.workloads, key=lambda item: item.name
        )
        assert found.queues == expected.queues


@pytest.mark.parametrize(
    ("resource", "text", "amount"),
    [
        ("cpu", "500m", 500), ("cpu", 2, 2000), ("cpu", "1.5", 1500), ("cpu", "100u", 1), ("memory", "64Gi", 64 << 30),
        ("memory", "1G", 10**9), ("memory", "1e3", 1000), ("memory", "128974848000m", 128_974_848), ("x", "0.5", 1),
    ],
)  # fmt: skip
def test_quantities_are_those_of_kueue(resource: str, text: object, amount: int) -> None:
    """Thousandths of a core, else whole units, rounded up."""
    assert parse_quantity(resource, text) == amount


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ClusterQueue.spec.queueingStrategy", "StrictFifo", 'did you mean "StrictFIFO"'),
        ("ClusterQueue.spec.preemption", {"withinClusterQueue": "Any"}, "'Any' is unknown"),
        ("ClusterQueue.spec.resourceGroups", "all", "not a list of mappings"),
        ("ClusterQueue.spec.resourceGroups", [{"coveredResources": ["cpu"], "flavors": [
            {"name": "f", "resources": [{"name": "cpu", "nominalQuota": "many"}]}]}], "'many' is not a quantity"),
        ("ClusterQueue.spec.resourceGroups", [{"coveredResources": ["cpu"], "flavors": [
            {"name": "f", "resources": [{"name": "gpu", "nominalQuota": "1"}]}]}], "not in coveredResources"),
        ("ClusterQueue.spec.admissionScope", {"admissionMode": "UsageBased"}, "admission fair sharing"),
        ("ClusterQueue.apiVersion", "kueue.x-k8s.io/v1alpha9", "v1alpha9 is unknown"),
        ("ResourceFlavor.spec", {"topologyName": "rack"}, "topology-aware scheduling"),
        ("Workload.metadata", {"name": "a0", "namespace": "team-a"}, "creationTimestamp: is missing"),
        ("Workload.metadata", {"name": "a0", "namespace": "team-a", "creationTimestamp": "noon"}, "is not a time"),
        ("Workload.spec.podSets", [{"name": "m", "count": -1}], "not a number of at least 0"),
        ("Workload.spec.podSets", [{"name": "m", "count": 1, "template": {"spec": {"containers": [
            {"resources": {"requests": {GPU: "x"}}}]}}}], "'x' is not a quantity"),
        ("Workload.spec.podSets", [{"name": "m", "count": 1, "template": {"spec": {"containers": 3}}}], "containers"),
        ("Workload.spec.podSets", [{"name": "m", "count": 1, "topologyRequest": {"required": "rack"}}], "topology"),
        ("Workload.spec.podSets", [], "podSets: is missing"),
        ("Workload.spec.priority", "high", "'high' is not a number"),
        ("Workload.status", {"conditions": {}}, "not a list of mappings"),
    ],
)  # fmt: skip
def test_bad_objects_are_errors_with_file_object_and_field(tmp_path: Path, path: str, value: Any, message: str) -> None:
    """Every fault names the file, the object and the field."""
    items = json.loads(two_teams(tmp_path).read_text())["items"]
    kind, *keys = path.split(".")
    body = next(item for item in items if item["kind"] == kind)
    for key in keys[:-1]:
        body = body.setdefault(key, {})
    body[keys[-1]] = value
    file = write_list(tmp_path, items, "bad.json")
    with pytest.raises(UnfoldError) as caught:
        read_queue_snapshot(file)
    (fault,) = caught.value.diagnostics
    assert fault.file == str(file)
    assert fault.key.startswith(kind)
    assert message.replace("\\", "") in f"{fault.key}: {fault.message} ({fault.hint})"
    assert [
        item.message for item in check_inputs(spec(file), Run(directory=RunDir(tmp_path / "r"), engine=LocalEngine(1)))
    ]


@pytest.mark.parametrize(
    "text",
    ["", "null", "3", "[1]", "{", '{"kind": "List", "items": [1]}', '{"kind": "X"}', "a: [", "kind: List\nitems: 3",
     '{"kind": "Pod", "metadata": {"name": 3}}', "[" * 5000, "a: &x [1]\nb: *x\n"],
)  # fmt: skip
def test_other_files_are_errors(tmp_path: Path, text: str) -> None:
    """Whatever a file holds, the answer is an error with the file's name, or that it has no ClusterQueue."""
    path = tmp_path / "any.json"
    path.write_text(text, "utf-8")
    faults: list[str] = []
    try:
        snapshot = read_queue_snapshot(path)
    except UnfoldError as error:
        snapshot, faults = None, [error.diagnostics[0].file]
    assert snapshot is None
    assert faults in ([], [str(path)])


def test_cohorts_that_form_a_cycle_are_an_error_of_the_file(tmp_path: Path) -> None:
    """The message names the file of the cohorts, not that of the spec, and one cohort of the cycle."""
    parents = {"outside": "x", "x": "y", "y": "x"}
    version = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Cohort"}
    cohorts = [{**version, "metadata": {"name": n}, "spec": {"parentName": p}} for n, p in parents.items()]
    path = write_list(tmp_path, [flavor(), cluster_queue("q", 8, cohortName="outside"), *cohorts])
    with pytest.raises(UnfoldError, match=r"Cohort x: spec\.parentName: cohorts form a cycle: x -> y -> x") as error:
        read_queue_snapshot(path)
    assert error.value.diagnostics[0].file == str(path)


def test_what_changes_nothing_else_is_stated(tmp_path: Path) -> None:
    """Assumptions are lines of the report: weights, checks, unknown namespaces, workloads that are left out."""
    queue = cluster_queue(
        "team-a", 8, fairSharing={"weight": "2"}, namespaceSelector={"matchLabels": {"team": "a"}},
        admissionChecksStrategy={"admissionChecks": [{"name": "capacity"}]},
    )  # fmt: skip
    jobs = [
        workload("team-a/x", 0, 1), workload("team-a/off", 0, 1, active=False), workload("team-z/lost", 0, 1),
        workload("team-a/old", 0, 1, admitted=0),
    ]  # fmt: skip
    jobs += [workload("team-a/late", 500, 1), workload("team-a/going", 0, 8, admitted=400)]
    jobs[-1]["metadata"]["deletionTimestamp"] = at(450)
    path = write_list(tmp_path, [queue, local_queue("team-a"), *jobs])
    lines = [line for _, line in report(tmp_path, spec(path, replay={"run": "60 s"})).lines]
    for text in ("fairSharing weight", "admission checks", "no Namespace team-a", "no ResourceFlavor", "not active",
                 "no LocalQueue team-z/main", "1 workload already ran longer", "being deleted"):  # fmt: skip
        assert any(text in line for line in lines), text


def test_keys_without_a_meaning_are_errors(tmp_path: Path) -> None:
    """Other policies, borrowing and node events reveal nothing about Kueue's queues."""
    path = two_teams(tmp_path)
    cases: list[tuple[Body, str]] = [
        ({"policy": {"fifo": {}}}, "policy.fifo"),
        ({"policy": {"quota": {"team-a": 3, "borrow": False}}}, "policy.quota.borrow"),
        ({"policy": {"quota": {"team-c": 3}}}, "policy.quota.team-c"),
        ({"policy": {"quota": {"team-a": 3, "resource": "cpu"}}}, "policy.quota.team-a"),
        ({"policy": {"quota": {"team-a": 2.5}}}, "policy.quota.team-a"),
        ({"replay": {"faster": 2}}, "workload.replay.faster"),
        ({"explain": {"task": "team-a/none"}}, "explain.task"),
    ]
    for parts, key in cases:
        with pytest.raises(UnfoldError) as caught:
            report(tmp_path, spec(path, **parts))
        assert caught.value.diagnostics[0].key == key


def test_workloads_without_their_queues_are_not_taken_for_pods(tmp_path: Path) -> None:
    """The message names what the file lacks."""
    path = write_list(tmp_path, [flavor(), local_queue("team-a"), workload("team-a/x", 0, 1)])
    with pytest.raises(UnfoldError, match="Kueue's Workloads, but no ClusterQueue"):
        report(tmp_path, spec(path))


def test_a_quota_that_is_no_number_is_named_as_such(tmp_path: Path) -> None:
    """A team is no unknown key because its quota is written as Kubernetes writes amounts."""
    with pytest.raises(ValidationError, match=r"policy\.quota\.quotas\.team-a\n.*valid number"):
        spec(two_teams(tmp_path), policy={"quota": {"team-a": "64Gi", "resource": "memory"}})


@pytest.mark.parametrize(("quotas", "is_refused"), [({"a": 4}, True), ({"a": 5}, False), ({"mid": 0}, False)])
def test_a_quota_below_what_it_lends_is_refused_as_by_kueue(
    tmp_path: Path, quotas: dict[str, float], is_refused: bool
) -> None:
    """The replay answered for ClusterQueues that Kueue's webhook refuses; cohorts lend what is below them, too."""
    queue, job = cluster_queue("a", 8, cohortName="mid", lendingLimit=5), workload("a/x", 0, 1, admitted=1, finished=9)
    groups = cluster_queue("mid", 1, lendingLimit=5)["spec"]["resourceGroups"]
    cohort = {**queue, "kind": "Cohort", "metadata": {"name": "mid"}, "spec": {"resourceGroups": groups}}
    path = write_list(tmp_path, [flavor(), cohort, queue, local_queue("a"), job])
    with pytest.raises(UnfoldError, match="refuses a quota below the lendingLimit") if is_refused else nullcontext():
        report(tmp_path, spec(path, policy={"quota": quotas}))


def test_a_cohort_without_quota_gets_none_from_a_number(tmp_path: Path) -> None:
    """No flavor is known for it: the message says which file adds one."""
    cohort = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Cohort", "metadata": {"name": "all"}, "spec": {}}
    queue, job = cluster_queue("a", 8, cohortName="all"), workload("a/x", 0, 1, admitted=1, finished=9)
    path = write_list(tmp_path, [flavor(), cohort, queue, local_queue("a"), job])
    with pytest.raises(UnfoldError, match=r"all has no quota of nvidia.com/gpu \(it has no quota at all; .*apply"):
        report(tmp_path, spec(path, policy={"quota": {"all": 4}}))


def test_a_run_without_an_end_has_no_duration(tmp_path: Path) -> None:
    """Without an ended workload the run time must be written; what is left of a limit of execution time replaces it."""
    items = [flavor(), cluster_queue("a", 8), local_queue("a"), workload("a/x", 0, 1)]
    with pytest.raises(UnfoldError, match="nothing shows how long it runs"):
        read_queue_snapshot(write_list(tmp_path, items))
    items[-1]["spec"]["maximumExecutionTimeSeconds"] = 50
    snapshot = read_queue_snapshot(write_list(tmp_path, items))
    assert snapshot is not None
    assert snapshot.workloads[0].run_s == 50.0
    # it ran before it was evicted, and Kueue ends it once both add up
    items[-1].setdefault("status", {})["accumulatedPastExecutionTimeSeconds"] = 20
    snapshot = read_queue_snapshot(write_list(tmp_path, items))
    assert snapshot is not None
    assert snapshot.workloads[0].run_s == 30.0


def test_a_workload_that_ended_before_its_admission_has_no_duration(tmp_path: Path) -> None:
    """Clocks that differ would let it run for less than no time, and shorten the median of its queue."""
    items = [flavor(), cluster_queue("a", 8), local_queue("a")]
    items += [workload(f"a/w{index}", 0, 1, admitted=10, finished=end) for index, end in enumerate((50, 0))]
    snapshot = read_queue_snapshot(write_list(tmp_path, [*items, workload("a/next", 60, 1)]))
    assert snapshot is not None
    assert [(item.name, item.run_s) for item in snapshot.workloads] == [("a/next", 40.0)]
    assert any("ended before they were admitted" in note for note in snapshot.notes)


def test_a_history_is_replayed_from_its_first_arrival(tmp_path: Path) -> None:
    """Where nothing waits or runs, the ended workloads arrive again."""
    jobs = [
        workload(f"a/x{number}", 10 * number, 5, admitted=100 * number, finished=100 * number + 50)
        for number in range(3)
    ]
    path = write_list(tmp_path, [flavor(), cluster_queue("a", 8), local_queue("a"), *jobs])
    snapshot = read_queue_snapshot(path)
    assert snapshot is not None
    assert snapshot.is_history
    assert [item.arrival_s for item in snapshot.workloads] == [0.0, 10.0, 20.0]
    assert at(0)[:10] == "2026-03-01"


def test_quotas_above_the_nodes_are_stated(tmp_path: Path) -> None:
    """Where the file lists nodes, quotas that exceed them are named."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {},
            "status": {"allocatable": {GPU: "4", "cpu": "8"}}}  # fmt: skip
    items = json.loads(two_teams(tmp_path).read_text())["items"]
    lines = [line for _, line in report(tmp_path, spec(write_list(tmp_path, [*items, node]))).lines]
    assert "the quotas of nvidia.com/gpu (16) exceed what the nodes offer (4): admitted pods may still wait" in lines


def test_the_example_is_replayed(tmp_path: Path) -> None:
    """More quota for one team of the example starts six workloads earlier and none later."""
    example = Path(__file__).parents[4] / "examples" / "kueue" / "kueue.yaml"
    changed = report(tmp_path, spec(example, policy={"quota": {"team-a": 16}}))
    assert [changed.metrics[key].value for key in ("earlier", "later", "never_start")] == [6, 0, 0]


def test_documents_of_yaml_may_end_with_points(tmp_path: Path) -> None:
    """As some tools write them; the file was said to lack a value."""
    done = workload("team-a/a", 0, 4, admitted=1, finished=301)
    items, path = [flavor(), cluster_queue("team-a", 8), local_queue("team-a"), done], tmp_path / "k.yaml"
    for end in ("", "...\n", "...\n---\n"):
        path.write_text(
            "# of a cluster\n" + "---\n".join(yaml.safe_dump(item) + end for item in items) + "...\n", "utf-8"
        )
        assert len(read_queue_snapshot(path).workloads) == 1


@pytest.mark.parametrize(
    ("data", "name"),
    [(bz2.compress(b"{}"), "bzip2"), (lzma.compress(b"{}"), "xz"), (b"\x28\xb5\x2f\xfdxx", "zstd")],
    ids=["bzip2", "xz", "zstd"],
)
def test_files_of_other_compressors_are_named(tmp_path: Path, data: bytes, name: str) -> None:
    """The error was of a byte that is no UTF-8."""
    path = tmp_path / "k.json"
    path.write_bytes(data)
    with pytest.raises(UnfoldError, match=f"a file of {name}: unpack it, or pack it with gzip"):
        read_queue_snapshot(path)


def test_a_workload_that_runs_starts_before_the_replay(tmp_path: Path) -> None:
    """Its start was "after -49 s", and one workload of one queue was "1 workloads"; a list of Go may be null."""
    jobs = [workload("team-a/done", 0, 1, admitted=1, finished=51), workload("team-a/run", 5, 1, admitted=2)]
    path = write_list(tmp_path, [flavor(), cluster_queue("team-a", 8), local_queue("team-a"), *jobs])
    with path.open("a", encoding="utf-8") as file:
        file.write('\n{"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "CohortList", "items": null}\n')
    made = report(tmp_path, spec(path))
    assert made.headline == "1 workload starts, the last before the replay begins"
    assert made.subtitle == ("1 ClusterQueue", "1 workload")


def test_an_evicted_workload_waits_for_its_retry_behind_the_others(tmp_path: Path) -> None:
    """Kueue queues it again at ``requeueAt``, ordered by its eviction; one set aside for good is left out."""
    jobs = [workload("team-a/done", 0, 8, admitted=1, finished=101), workload("team-a/run", 50, 8, admitted=200)]
    reasons = ("PodsReadyTimeout", "AdmissionCheck", "Inadmissible")
    for number, reason in enumerate(reasons):
        job = workload(f"team-a/{reason}", number, 8)
        job["status"]["conditions"] = [
            {**condition(kind, 210 + number, status), "reason": reason}
            for kind, status in (("Evicted", "True"), ("QuotaReserved", "False"), ("Requeued", "False"))
        ]
        job["status"]["requeueState"] = {"count": 1, "requeueAt": at(250)}
        jobs.append(job)
    jobs.append(workload("team-a/new", 205, 8))
    path = write_list(tmp_path, [flavor(), cluster_queue("team-a", 8), local_queue("team-a"), *jobs])
    made = report(tmp_path, spec(path))
    rows = [row.split(",") for row in (tmp_path / "run" / "admission.csv").read_text().splitlines()[1:]]
    starts = [row[0] for row in sorted(rows, key=lambda row: float(row[4]))]
    assert starts == ["team-a/run", "team-a/new", "team-a/PodsReadyTimeout", "team-a/AdmissionCheck"]
    assert any("left out 1 workload: not queued again" in line for _, line in made.lines)
