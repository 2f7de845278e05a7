"""Nodes and pods as kubectl writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from unfold_placement.schema.placement import PlacementSpec
from unfold_placement.verbs.plan import plan
from unfold_placement.workload.kubectl import kubectl_nodes, kubectl_tasks
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

Body = dict[str, Any]


def node(name: str, ready: str = "True", **spec: Any) -> Body:
    """Return a node of eight GPUs."""
    status = {
        "allocatable": {
            "cpu": "15890m", "memory": "4Gi", "nvidia.com/gpu": "8", "pods": "110", "ephemeral-storage": "95551679124",
        },
        "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
    }  # fmt: skip
    labels = {"node.kubernetes.io/instance-type": "p3.16xlarge", "rack": "r1"}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


def at(minute: int) -> str:
    """Return a time as Kubernetes writes it."""
    return f"2026-03-01T10:{minute:02}:00Z"


def pod(name: str, came: int, start: int | None = None, end: int | None = None, **more: Any) -> Body:
    """Return a pod that asks for a GPU and two and a half cores, with times in minutes of an hour."""
    containers = [
        {"resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "4", "nvidia.com/gpu": 1}}},
        {"resources": {"requests": {"cpu": 2, "memory": "1e9"}}},
    ]
    status: Body = {"phase": "Pending" if start is None else "Running" if end is None else "Succeeded"}
    if start is not None:
        status["startTime"] = at(start)
    if end is not None:
        status["containerStatuses"] = [{"state": {"terminated": {"finishedAt": at(end)}}}]
    meta = {"name": name, "namespace": "team", "creationTimestamp": at(came), **more}
    return {"kind": "Pod", "metadata": meta, "spec": {"containers": containers, "priority": 5}, "status": status}


def write(folder: Path, name: str, items: list[Body]) -> Path:
    """Write a list as kubectl does, and return its file."""
    path = folder / name
    path.write_text(json.dumps({"kind": "List", "items": items}), "utf-8")
    return path


def test_fields_that_are_null_are_absent(tmp_path: Path) -> None:
    """Other programs write ``null`` for what kubectl leaves out; an object without a needed field is named."""
    empty_node = node("a", taints=None)
    empty_node["metadata"]["labels"] = None
    empty_pod = pod("p", 0, 1, 5, ownerReferences=None)
    empty_pod["spec"] |= {"initContainers": None, "overhead": None, "priority": None}
    empty_pod["spec"]["containers"][0]["resources"]["limits"] = None
    path = write(tmp_path, "all.json", [empty_node, empty_pod])
    (found,), (task,) = kubectl_nodes(path), kubectl_tasks(path)
    assert (found.labels, task.job, task.demand["cpu"]) == ({"type": ""}, "team/p", 2500)
    del empty_node["status"]
    with pytest.raises(UnfoldError, match=r"item 0 \(Node a\) is not what kubectl prints: it has no 'status'"):
        kubectl_nodes(write(tmp_path, "all.json", [empty_node]))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("allocatable", {"nvidia.com/gpu": "9" * 40}, r"1e\+40 gpu is out of range"),
        ("labels", {"type": ["a100"]}, r"type is \"\['a100'\]\", not a text"),
    ],
)
def test_a_node_with_an_odd_value_is_named(tmp_path: Path, part: str, value: Body, message: str) -> None:
    """What cannot be computed with is reported with the object, whatever wrote it."""
    body = node("odd")
    (body["metadata"] if part == "labels" else body["status"])[part] = value
    with pytest.raises(UnfoldError, match=rf"item 0 \(Node odd\) is not what kubectl prints: {message}"):
        kubectl_nodes(write(tmp_path, "nodes.json", [body]))


def test_namesakes_are_distinguished(tmp_path: Path) -> None:
    """Jobs of one name in two namespaces are two gangs, and a pod that was created again is a task of its own."""
    owner = {"ownerReferences": [{"kind": "Job", "name": "train"}]}
    other = pod("p", 0, 1, 5, **owner)
    other["metadata"]["namespace"] = "other"
    items = [pod("p", 0, 1, 5, **owner), other, pod("p", 6, 7, 9, **owner)]
    tasks = kubectl_tasks(write(tmp_path, "pods.json", items))
    assert [(task.name, task.job, task.size) for task in tasks] == [
        ("team/p", "team/train", 2), ("other/p", "other/train", 1), ("team/p#2", "team/train", 2),
    ]  # fmt: skip


def test_all_containers_show_when_a_pod_ended_or_was_last_seen(tmp_path: Path) -> None:
    """Init containers and sidecars count, too; a pod that runs has run at least until its container started again."""
    sidecar, failed, restarted = pod("sidecar", 0, 1, 5), pod("failed", 0, 1, 5), pod("restarted", 0, 1)
    sidecar["status"]["initContainerStatuses"] = [{"state": {"terminated": {"finishedAt": at(8)}}}]
    failed["status"] |= {"phase": "Failed", "containerStatuses": [{"state": {"waiting": {}}}]}
    failed["status"]["initContainerStatuses"] = [{"state": {"terminated": {"finishedAt": at(3)}}}]
    restarted["status"]["containerStatuses"] = [{"state": {"running": {"startedAt": at(50)}}}]
    warnings: list[str] = []
    path = write(tmp_path, "pods.json", [sidecar, failed, restarted, pod("reversed", 0, 9, 4)])
    assert [task.run for task in kubectl_tasks(path, warn=warnings.append)] == [420.0, 120.0, 2940.0, 0.0]
    assert warnings[1] == "pods.json: 1 pods end before they start; they run for 0 s"


def test_a_file_without_anything_usable_says_why(tmp_path: Path) -> None:
    """All nodes cordoned, or no pod started: the message counts them, and a wrong amount names its pod."""
    with pytest.raises(UnfoldError, match="none of its 2 nodes accepts pods"):
        kubectl_nodes(write(tmp_path, "nodes.json", [node("a", unschedulable=True), node("b", "False")]))
    with pytest.raises(UnfoldError, match="none of its 1 pods has started"):
        kubectl_tasks(write(tmp_path, "pods.json", [pod("p", 0)]))
    wrong = pod("q", 0, 1, 5)
    wrong["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "-1"
    with pytest.raises(UnfoldError, match=r"item 0 \(Pod q\) is not what kubectl prints: '-1' is not an amount of cpu"):
        kubectl_tasks(write(tmp_path, "pods.json", [wrong]))


def test_sidecars_and_overhead_count(tmp_path: Path) -> None:
    """A task of a pod occupies what kube-scheduler counts: here 2.5 cores, a sidecar of 3 and an overhead of 1."""
    body = pod("p", 0, 1, 5)
    side = {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "3"}}}
    body["spec"] |= {"initContainers": [side], "overhead": {"cpu": "1"}}
    (task,) = kubectl_tasks(write(tmp_path, "pods.json", [body]))
    assert task.demand["cpu"] == 6500


def test_schedulable_nodes_are_read(tmp_path: Path) -> None:
    """What is allocatable counts, in our words; a node that is cordoned, not ready or of the control plane is none."""
    tainted = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]
    gpus = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    items = [node("a", taints=gpus), node("b", "False"), node("c", unschedulable=True), node("d", taints=tainted)]
    (found,) = kubectl_nodes(write(tmp_path, "nodes.json", items))
    assert found.name == "a"
    assert found.capacity == {"cpu": 15_890, "memory": 4_096_000, "gpu": 8000, "pods": 110_000}
    assert (found.labels["type"], found.labels["rack"]) == ("p3.16xlarge", "r1")


def test_pods_that_ran_are_tasks(tmp_path: Path) -> None:
    """Requests of all containers are summed, a limit replaces a missing one; the owner of a pod is its job."""
    owner = [{"kind": "Job", "name": "train"}]
    items = [pod("x", 5, 6, 16, ownerReferences=owner), pod("y", 3, 4, ownerReferences=owner), pod("z", 7),
             pod("log", 1, 1, ownerReferences=[{"kind": "DaemonSet", "name": "log"}])]  # fmt: skip
    messages: list[str] = []
    x, y = kubectl_tasks(write(tmp_path, "pods.json", items), warn=messages.append)
    assert x.demand == {"cpu": 2500, "memory": 512_000 + 953_675, "gpu": 1000}
    assert (x.name, x.job, x.user, x.size, x.priority) == ("team/x", "team/train", "team", 2, 5)
    assert (x.arrival, x.run, y.arrival, y.run) == (120.0, 600.0, 0.0, 720.0)
    assert messages == [
        "pods.json: left out 1 pods of daemons and 1 that never started",
        "pods.json: 1 pods still run; they are taken to end with the last time of the file",
    ]
    assert [task.size for task in kubectl_tasks(tmp_path / "pods.json", max_tasks=1)] == [1]


def test_init_containers_count_if_they_need_more(tmp_path: Path) -> None:
    """A container that runs before the others needs its room before them, not beside them."""
    item = pod("x", 0, 1, 2)
    item["spec"]["initContainers"] = [{"resources": {"requests": {"cpu": "3", "memory": "1Mi"}}}]
    (task,) = kubectl_tasks(write(tmp_path, "pods.json", [item]))
    assert (task.demand["cpu"], task.demand["memory"]) == (3000, 512_000 + 953_675)


def test_pods_with_resource_claims_are_counted(tmp_path: Path) -> None:
    """Their devices are in other objects: without a note they would count as pods that need none."""
    bodies = [pod("a", 1, 2, 3), pod("b", 1, 2, 3), pod("daemon", 1, 2, 3)]
    for body in bodies[1:]:
        body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]
    bodies[2]["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "d", "controller": True}]
    warnings: list[str] = []
    assert len(kubectl_tasks(write(tmp_path, "pods.json", bodies), warn=warnings.append)) == 2
    assert "pods.json: 1 pod with resource claims; the claimed devices are not counted" in warnings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NAME  READY", "not JSON.*kubectl get pods"),
        ('{"items": []}', "no Pod in it"),
        ('{"items": [{"kind": "Node"}]}', "no Pod in it"),
        ('{"items": [{"kind": "Pod"}]}', "item 0 is not what kubectl prints"),
    ],
)
def test_other_files_are_reported(tmp_path: Path, text: str, expected: str) -> None:
    """What kubectl does not write with -o json is an error with the file and the command."""
    path = tmp_path / "pods.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UnfoldError, match=expected):
        kubectl_tasks(path)


def test_a_cluster_is_replayed_from_kubectl_output(tmp_path: Path) -> None:
    """Nine pods of a GPU each on a node of eight: the ninth waits for the end of the first; pods are counted too."""
    nodes = write(tmp_path, "nodes.json", [node("a")])
    pods = write(tmp_path, "pods.json", [pod(f"p{at}", 0, 0, 10) for at in range(9)])
    items = json.loads(pods.read_text())["items"]
    for item in items:
        item["spec"]["containers"] = item["spec"]["containers"][:1]
        item["spec"]["containers"][0]["resources"]["requests"]["memory"] = "1Mi"
    write(tmp_path, "pods.json", items)
    spec = PlacementSpec.model_validate({
        "version": 1, "kind": "placement", "name": "k", "cluster": {"trace": "kubectl", "path": str(nodes)},
        "workload": {"replay": {"trace": "kubectl", "path": str(pods)}},
    })  # fmt: skip
    report = plan(spec, Run(directory=RunDir(tmp_path / "run"), engine=LocalEngine(1)))
    assert report.verdict is Verdict.YES
    assert report.metrics["makespan_s"].value == 1200


@pytest.mark.parametrize(
    "encode",
    [
        lambda nodes, pods: yaml.safe_dump({"kind": "List", "items": nodes + pods}),
        lambda nodes, pods: "\n---\n".join(map(yaml.safe_dump, nodes + pods)),
        lambda nodes, pods: "\n".join(json.dumps({"items": items}) for items in (nodes, pods)),
        lambda nodes, pods: "".join(map(json.dumps, nodes + pods)),
    ],
    ids=["YAML", "documents", "lists", "objects"],
)
def test_documents_are_read_one_after_another(tmp_path: Path, encode: Callable[[list[Body], list[Body]], str]) -> None:
    """What several commands wrote to one file, in JSON or YAML, equals one list."""
    path = tmp_path / "all.txt"
    path.write_text(encode([node("a")], [pod("p", 0, 1, 5)]), "utf-8")
    assert [found.name for found in kubectl_nodes(path)] == ["a"]
    assert [(task.name, task.run) for task in kubectl_tasks(path)] == [("team/p", 240.0)]


@pytest.mark.parametrize("encode", [json.dumps, yaml.safe_dump], ids=["JSON", "YAML"])
def test_warnings_of_kubectl_before_the_objects_are_skipped(tmp_path: Path, encode: Callable[[Body], str]) -> None:
    """A shell's ``2>&1`` puts them at the head of the file; an error keeps the line that it has there."""
    head = (
        "Warning: v1 ComponentStatus is deprecated in v1.19+\r\n\n"
        'E1202 17:00:00.000001   12345 memcache.go:287] "Unhandled Error" err="no metrics"\n'
        "I1202 17:00:01.000000   12345 request.go:752] Waited for 1.2s: {throttling}\n"
    )
    path = tmp_path / "all.txt"
    path.write_text(head + encode({"kind": "List", "items": [node("a"), pod("p", 0, 1, 5)]}), "utf-8")
    assert ([found.name for found in kubectl_nodes(path)], len(kubectl_tasks(path))) == (["a"], 1)
    path.write_text(head + "a: 1\na: 2\n", "utf-8")
    with pytest.raises(UnfoldError) as raised:
        kubectl_nodes(path)
    assert raised.value.diagnostics[0].line == 6


def test_items_of_a_typed_list_have_its_kind(tmp_path: Path) -> None:
    """The server's own lists name the kind once: nodes of one are no pods of another."""
    lists = []
    for kind, item in (("Node", node("a")), ("Pod", pod("p", 0, 1, 5))):
        del item["kind"]
        lists.append(json.dumps({"kind": f"{kind}List", "items": [item]}))
    path = tmp_path / "all.json"
    path.write_text("\n".join(lists), "utf-8")
    assert ([found.name for found in kubectl_nodes(path)], len(kubectl_tasks(path))) == (["a"], 1)


def test_the_last_state_of_an_object_counts(tmp_path: Path) -> None:
    """A watch prints a pod at every change: it is one task, with the end that the last one shows."""
    path = write(
        tmp_path, "pods.json", [pod("p", 0, 1, uid="u"), pod("q", 0, 1, 2, uid="v"), pod("p", 0, 1, 3, uid="u")]
    )
    assert [(task.name, task.run) for task in kubectl_tasks(path)] == [("team/p", 120.0), ("team/q", 60.0)]


def test_an_evicted_pod_ends_with_its_eviction(tmp_path: Path) -> None:
    """A failed pod without containers does not run until the end of the file."""
    evicted = pod("e", 0, 1)
    evicted["status"] |= {"phase": "Failed", "conditions": [{"lastTransitionTime": "2026-03-01T10:04:00Z"}]}
    tasks = kubectl_tasks(write(tmp_path, "pods.json", [evicted, pod("q", 0, 1, 50)]))
    assert [task.run for task in tasks] == [180.0, 2940.0]
