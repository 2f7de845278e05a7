"""Names that kube-scheduler itself counts (DRA, ``resource.k8s.io/v1``): a device for each, a claim for each pod.

A name that is counted for the whole cluster is a ResourceSlice that all nodes reach, with one device whose capacity is
the name's amount (KEP-5075, consumable capacity). A pod that asks for the name has a claim on a part of it, and is
bound only while no more is claimed than there is, whoever made the pods. kube-controller-manager frees what a pod that
has ended still claims.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from unfold_placement.core.types import MILLI, Ask
from unfold_placement.kubernetes.api import Api, ApiError, call_all
from unfold_placement.kubernetes.codec import DOMAIN, Body, Scope, annotation_key, parse_amount, shorten_name
from unfoldkit.api import UnfoldError, fail

GROUP = "resource.k8s.io"
API = f"{GROUP}/v1"
SLICES, CLASSES = f"/apis/{API}/resourceslices", f"/apis/{API}/deviceclasses"
DRIVER = DOMAIN
"""The name of the driver, and of the device class."""
POLICY, SPACE, NAME, COUNTED = (
    annotation_key("policy"),
    annotation_key("namespace"),
    annotation_key("name"),
    annotation_key("counted"),
)
ENTRY, DEVICE, UNIT, COUNTER = "unfold-counters", "counter", "count", "counter"
NEEDS = "it needs resource.k8s.io/v1 with consumable capacity: on by default since Kubernetes 1.36; or counters: gates"


@dataclass(slots=True)
class Counters:
    """The slices of a scope by their names, and its claims by the pods that they are for, as they were seen last."""

    api: Api
    scope: Scope
    slices: dict[str, Body] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Find the device class, make it where there is none, and read what is there.

        Raises:
            Refused: we may not.
            UnfoldError: the cluster has no such API.
        """
        try:
            self.api.get(f"{CLASSES}/{DRIVER}")
        except ApiError as refused:
            if not refused.is_absent:
                raise
            self._class()
        self.read()

    def read(self) -> None:
        """Read slices and claims."""
        mine = f"{POLICY}={self.scope.name},{SPACE}={self.scope.namespace}"
        self.slices = {_title(item): item for item in self.api.get(SLICES, labelSelector=mine)["items"]}
        claims = self.api.get(self._path(), labelSelector=mine)["items"]
        self.claims = {_owner(item)["name"]: _title(item) for item in claims}

    def publish(self, names: Mapping[str, int]) -> None:
        """Make the slices be these names, with these amounts; one that changes is the next generation of its pool.

        Raises:
            Refused: somebody else wrote them meanwhile.
            UnfoldError: the cluster cannot count, or does not let us.
        """
        wanted = {slice_name(self.scope, name): (name, much) for name, much in names.items()}
        changed = {item for item, (_, much) in wanted.items() if slice_amount(self.slices.get(item)) != much}
        calls = [partial(self._write, item, *wanted[item]) for item in sorted(changed)]
        calls += [partial(self._remove, item) for item in self.slices.keys() - wanted.keys()]
        refused = [answer for answer in (call_all(calls) if calls else ()) if isinstance(answer, ApiError)]
        if refused and not refused[0].is_conflict:
            raise _unable(refused[0])
        if refused:
            self.read()
            raise refused[0]

    def claim(self, pod: Body) -> None:
        """Make the claim of a pod that is about to be opened, where it asks for such names.

        Raises:
            Refused: a claim of that name is another's.
        """
        body = build_claim(pod, self.scope)
        if body is None:
            return
        try:
            self.api.post(self._path(), body)
        except ApiError as refused:
            if refused.reason != "AlreadyExists":
                raise
            self._same(body)
        self.claims[_title(pod)] = _title(body)

    def release(self, over: Callable[[str], bool]) -> None:
        """Delete the claims of pods that are over; the cluster keeps one until its pod has gone."""
        ended = [pod for pod in list(self.claims) if over(pod)]
        answers = call_all([partial(self.api.delete, self._path(self.claims[pod])) for pod in ended]) if ended else ()
        for pod, answer in zip(ended, answers, strict=True):
            if not isinstance(answer, ApiError) or answer.is_absent:
                self.claims.pop(pod, None)

    def _write(self, item: str, name: str, much: int) -> None:
        known = self.slices.get(item)
        body = build_slice(self.scope, name, much, pool_generation(known) + 1)
        if known is None:
            made = self.api.post(SLICES, body)
        else:
            body["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
            made = self.api.put(f"{SLICES}/{item}", body)
        if not made["spec"]["devices"][0].get("allowMultipleAllocations"):
            # the server dropped what it does not know: the device would be given to one task alone
            self._remove(item)
            raise fail("this cluster cannot count names", key="cluster.kubernetes.counters", hint=NEEDS)
        self.slices[item] = made

    def _remove(self, item: str) -> None:
        try:
            self.api.delete(f"{SLICES}/{item}")
        except ApiError as refused:
            if not refused.is_absent:
                raise
        self.slices.pop(item, None)

    def _same(self, body: Body) -> None:
        """Let a claim be that is for the same pod; one of an earlier pod of that name has to go first."""
        found = self.api.get(self._path(_title(body)))
        if _owner(found).get("uid") != _owner(body)["uid"]:
            self.api.delete(self._path(_title(body)))
            # where the earlier pod is not wholly gone, this is refused, and its turn comes again
            self.api.post(self._path(), body)

    def _class(self) -> None:
        try:
            self.api.post(CLASSES, build_device_class())
        except ApiError as refused:
            if refused.is_absent:
                raise _unable(refused) from refused
            if not refused.is_conflict:
                raise

    def _path(self, name: str = "") -> str:
        path = f"/apis/{API}/namespaces/{self.scope.namespace}/resourceclaims"
        return f"{path}/{name}" if name else path


def add_claim(pod: Body, asks: Iterable[Ask]) -> None:
    """Let a pod ask for names that are counted: by a claim that whoever opens its gate makes."""
    counted: dict[str, int] = {}
    for item in asks:
        if item.counted:
            counted[item.name] = counted.get(item.name, 0) + item.amount
    if not counted:
        return
    spec, sizes = pod["spec"], pod["spec"]["containers"][0]["resources"]
    pod["metadata"]["annotations"][COUNTED] = msgspec.json.encode(counted).decode()
    entry = {"name": ENTRY, "resourceClaimName": claim_name(_title(pod))}
    spec["resourceClaims"] = [*spec.get("resourceClaims", ()), entry]
    sizes["claims"] = [*sizes.get("claims", ()), {"name": ENTRY}]


def rename_claim(pod: Body) -> None:
    """Let a pod that is made again under another name ask by a claim of its own."""
    for entry in pod["spec"].get("resourceClaims", ()):
        if entry["name"] == ENTRY:
            entry["resourceClaimName"] = claim_name(_title(pod))


def claim_name(pod: str) -> str:
    """Return the name of a pod's claim."""
    return f"{pod}-counters"


def build_claim(pod: Body, scope: Scope) -> Body | None:
    """Return the claim of a pod, which lives no longer than the pod; none if it asks for no name that is counted."""
    counted = counted_resources(pod)
    if not counted:
        return None
    name, uid = _title(pod), pod["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": True}
    meta = {
        "name": claim_name(name),
        "namespace": scope.namespace,
        "labels": _labels(scope),
        "ownerReferences": [owner],
    }
    requests = [
        {"name": f"{COUNTER}-{place}", "exactly": _request(slice_name(scope, counter), much)}
        for place, (counter, much) in enumerate(sorted(counted.items()))
    ]
    return {"apiVersion": API, "kind": "ResourceClaim", "metadata": meta, "spec": {"devices": {"requests": requests}}}


def counted_resources(pod: Body) -> dict[str, int]:
    """Return the names that a pod has a claim on, and how much of each; a damaged note says nothing."""
    if not any(entry["name"] == ENTRY for entry in pod["spec"].get("resourceClaims", ())):
        return {}
    try:
        return msgspec.json.decode(pod["metadata"].get("annotations", {}).get(COUNTED, "{}"), type=dict[str, int])
    except msgspec.MsgspecError:
        return {}


def build_slice(scope: Scope, name: str, much: int, generation: int) -> Body:
    """Return the slice of a name: a pool of its own with one device, of which each claim takes a part."""
    own = slice_name(scope, name)
    device = {
        "name": DEVICE,
        "allowMultipleAllocations": True,
        "attributes": {COUNTER: {"string": own}},
        "capacity": {UNIT: {"value": str(much)}},
    }
    pool = {"name": own, "generation": generation, "resourceSliceCount": 1}
    meta = {"name": own, "labels": _labels(scope), "annotations": {NAME: name}}
    spec = {"driver": DRIVER, "pool": pool, "allNodes": True, "devices": [device]}
    return {"apiVersion": API, "kind": "ResourceSlice", "metadata": meta, "spec": spec}


def slice_name(scope: Scope, name: str) -> str:
    """Return what a name's slice, pool and attribute are called: told apart by a hash, at most 60 letters."""
    return shorten_name(f"{scope.namespace}.{scope.name}.{name}\0", 60).lower()


def slice_amount(found: Body | None) -> int:
    """Return the amount of a slice's name, below zero where there is no slice."""
    if found is None:
        return -1
    return parse_amount(UNIT, found["spec"]["devices"][0]["capacity"][UNIT]["value"]) // MILLI


def pool_generation(found: Body | None) -> int:
    """Return which version of its pool a slice is, from 1; zero where there is none."""
    return 0 if found is None else int(found["spec"]["pool"]["generation"])


def build_device_class() -> Body:
    """Return the class that claims refer to: every device of ours."""
    selectors = [{"cel": {"expression": f"device.driver == {json.dumps(DRIVER)}"}}]
    return {"apiVersion": API, "kind": "DeviceClass", "metadata": {"name": DRIVER}, "spec": {"selectors": selectors}}


def _request(counter: str, much: int) -> Body:
    expression = f"device.attributes[{json.dumps(DRIVER)}].{COUNTER} == {json.dumps(counter)}"
    capacity = {"requests": {UNIT: str(much)}}
    return {"deviceClassName": DRIVER, "selectors": [{"cel": {"expression": expression}}], "capacity": capacity}


def _labels(scope: Scope) -> dict[str, str]:
    return {POLICY: scope.name, SPACE: scope.namespace}


def _title(body: Body) -> str:
    return str(body["metadata"]["name"])


def _owner(claim: Body) -> Body:
    found: Body = next(iter(claim["metadata"].get("ownerReferences", ())), {"name": ""})
    return found


def _unable(refused: ApiError) -> UnfoldError:
    return fail(f"no counters: {refused.message}", key="cluster.kubernetes.counters", hint=NEEDS)
