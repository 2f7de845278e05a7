"""How names, tasks and nodes are written in the words of Kubernetes: needs no cluster."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from unfold_placement.core.types import PODS, Ask, EphemeralResource, Task
from unfold_placement.kubernetes.objects import dra, pods
from unfold_placement.kubernetes.objects.codec import (
    DRA,
    Scope,
    annotation_key,
    container_requests,
    decode_resources,
    encode_resources,
    json_pointer,
    pod_name,
    shorten_name,
)
from unfold_placement.kubernetes.objects.tasks import decode_task
from unfold_placement.kubernetes.writer import node_patch

SCOPE = Scope("mine", "unfold")
TEXTS = st.text(min_size=1, max_size=90)


@given(TEXTS, TEXTS)
def test_shortened_names_are_valid_and_distinct(one: str, two: str) -> None:
    """Whatever a name is, its label is valid, and equal only for equal names."""
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", shorten_name(one, 63))
    assert (shorten_name(one, 63) == shorten_name(two, 63)) == (one == two)


@given(TEXTS, TEXTS, st.integers(0, 99), st.integers(0, 99))
def test_pods_are_named_after_task_and_attempt(one: str, two: str, first: int, second: int) -> None:
    """Names of pods are valid names of objects, and equal only for the same attempt of the same task."""
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pod_name(one, first))
    assert (pod_name(one, first) == pod_name(two, second)) == ((one, first) == (two, second))


@given(st.lists(st.tuples(TEXTS, st.integers(0, 1 << 30), st.floats(0, 1e6), st.booleans()), unique_by=lambda x: x[0]))
def test_encoded_resources_decode_to_themselves(rows: list[tuple[str, int, float, bool]]) -> None:
    """An annotation gives back the names, amounts and leases that it was made of; equal names are equal texts."""
    names = [
        EphemeralResource(name, "n0", amount, "me", 3, since, since + 5.0 if leased else float("inf"), "t")
        for name, amount, since, leased in rows
    ]
    text = encode_resources(names, 1000.0)
    back = decode_resources(text, "n0", 1000.0)
    assert {item.name: item.amount for item in names} == {name: item.amount for name, item in back.items()}
    assert all(abs(back[item.name].expires - item.expires) < 1e-6 for item in names if item.expires < float("inf"))
    assert text == encode_resources(reversed(names), 1000.0)


def test_a_malformed_annotation_has_no_resources() -> None:
    """Whatever somebody wrote there, nothing breaks and nothing is run."""
    assert decode_resources("{broken", "n0", 0.0) == {}
    assert decode_resources('{"x": 1}', "n0", 0.0) == {}


def test_a_task_is_decoded_from_its_pod() -> None:
    """What policies look at comes back, times of the day become times of the scope."""
    task = Task("a/0", {"gpu": 1000}, 60.0, job="a", user="ann", size=4, deadline=30.0, data=("x",), run_on={"t4": 9.0})
    body = pods.gated_pod(task, [Ask("x"), Ask("x", 2), Ask("turn", gated=True)], SCOPE, 1000.0)
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    first = body["spec"]["containers"][0]["resources"]
    assert first["requests"] == {"nvidia.com/gpu": "1", "mine.placement.unfoldkit/x": "3"} == first["limits"]
    assert body["spec"]["schedulingGates"] == [{"name": "placement.unfoldkit/mine"}]
    body["spec"]["containers"] = []
    found = decode_task(body, SCOPE, 900.0)
    assert (found.name, found.arrival, found.deadline) == ("a/0", 100.0, 130.0)
    assert (found.demand, found.run_on) == ({**task.demand, PODS: 1000}, task.run_on)
    assert (found.data, found.size) == (("x",), 4)


def test_the_next_attempt_is_gated_and_unpinned() -> None:
    """What a start wrote is gone from the pod that is made again, all else is kept."""
    body = pods.gated_pod(Task("a", {}, 1.0), [], SCOPE, 1000.0, {"metadata": {"labels": {"mine": "1"}}})
    body["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    body["spec"] |= {"nodeName": "n0", "schedulingGates": [], "nodeSelector": {"kubernetes.io/hostname": "n0"}}
    body["metadata"]["annotations"] |= {pods.STARTED: "1", pods.NODE: "n0", pods.STARTS: "1"}
    made = pods.next_attempt_pod(body, SCOPE.gate, "preempted", "me")
    assert made["metadata"]["name"] == "a-1"
    assert (made["metadata"]["labels"]["mine"], pods.pod_index(made), pods.start_count(made)) == ("1", 1, 1)
    assert made["spec"].keys() & {"nodeName", "nodeSelector"} == set()
    assert pods.task_state(made) == "waiting"


COUNTING = Scope("mine", "unfold", counters=DRA)
LICENCES = (
    Ask("l", 2, gated=True, counted=True),
    Ask("m", gated=True, counted=True),
    Ask("l", gated=True, counted=True),
)


def test_a_pod_claims_its_counted_resources() -> None:
    """Names that the cluster counts are requests of one claim, each for its whole amount; other names are not."""
    body = pods.gated_pod(Task("a", {}, 1.0), [*LICENCES, Ask("turn", gated=True), Ask("x")], COUNTING, 1000.0)
    body["metadata"]["uid"] = "u"
    assert body["spec"]["resourceClaims"] == [{"name": "unfold-counters", "resourceClaimName": "a-0-counters"}]
    assert body["spec"]["containers"][0]["resources"]["claims"] == [{"name": "unfold-counters"}]
    claim = dra.build_claim(body, COUNTING)
    assert claim is not None
    asked = [item["exactly"]["capacity"]["requests"] for item in claim["spec"]["devices"]["requests"]]
    assert asked == [{"count": "3"}, {"count": "1"}]
    assert claim["metadata"]["ownerReferences"][0]["uid"] == "u"


def test_the_next_attempt_has_a_claim_of_its_own() -> None:
    """A pod that is made again refers to a claim that is named after it."""
    body = pods.gated_pod(Task("a", {}, 1.0), LICENCES, COUNTING, 1000.0)
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    made = pods.next_attempt_pod(body, COUNTING.gate, "preempted", "me")
    assert made["spec"]["resourceClaims"][0]["resourceClaimName"] == "a-1-counters"
    assert dra.counted_resources(made) == {"l": 3, "m": 1}


def test_pods_have_no_claims_without_dra() -> None:
    """Where gates count, a pod that asks for a licence is the pod of before."""
    plain = pods.gated_pod(Task("a", {}, 1.0), [], SCOPE, 1000.0)
    assert pods.gated_pod(Task("a", {}, 1.0), LICENCES, SCOPE, 1000.0) == plain
    assert dra.build_claim(plain, SCOPE) is None


@given(TEXTS, TEXTS)
def test_every_resource_has_its_own_pool(one: str, two: str) -> None:
    """Names and scopes have different pools, which are valid names of objects; a slice is one device."""
    spec = dra.build_slice(SCOPE, one, 7, 3)["spec"]
    pool = spec["pool"]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pool)
    assert (pool == dra.slice_name(SCOPE, two)) == (one == two)
    assert pool not in {dra.slice_name(Scope("other", "unfold"), one), dra.slice_name(Scope("mine", "other"), one)}
    assert (spec["pool"]["generation"], [item["capacity"]["count"]["value"] for item in spec["devices"]]) == (3, ["7"])


def test_a_patch_tests_before_it_writes() -> None:
    """Names are compared and set: the first operation is a test; where nothing differs there is no patch."""
    key_of = SCOPE.names_key
    body = {
        "metadata": {"name": "n0", "resourceVersion": "7", "annotations": {key_of: "{}"}},
        "status": {"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}},
    }
    ops = node_patch(body, SCOPE, "{}", '{"x":1}', {SCOPE.resource("x"): 1})
    path = f"/metadata/annotations/{json_pointer(key_of)}"
    assert ops[0] == {"op": "test", "path": path, "value": "{}"}
    assert [op["path"].rpartition("/")[0] for op in ops[2:]] == ["/status/capacity", "/status/allocatable"]
    assert node_patch(body, SCOPE, "{}", "{}", {}) == []
    assert annotation_key("x") == "placement.unfoldkit/x"


def test_a_decoded_task_demands_what_was_submitted() -> None:
    """The place that a pod takes of its node is not a resource that a container may ask for."""
    task = Task("a", {"cpu": 500}, 1.0)
    body = pods.gated_pod(task, [], SCOPE, 1000.0)
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    body["spec"]["containers"] = []
    assert (
        container_requests(decode_task(body, SCOPE, 0.0), [], SCOPE)
        == {"cpu": "500m"}
        == container_requests(task, [], SCOPE)
    )
