"""Resources that kube-scheduler itself counts (DRA, ``resource.k8s.io/v1``): a device for each, a claim for each pod.

A limit for the whole cluster is a ResourceSlice that all nodes reach. It has one device with the amount as capacity
(KEP-5075, consumable capacity). A pod that requests the resource claims a part of it. It is bound only while the claims
do not exceed the capacity, whichever program made the pods. kube-controller-manager frees claims of ended pods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from unfold_placement.core.types import MILLI, Ask
from unfold_placement.kubernetes.objects.codec import DOMAIN, Body, Scope, annotation_key, parse_amount, shorten_name
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.kubernetes.api import Api, ApiError, call_all

GROUP = "resource.k8s.io"
API = f"{GROUP}/v1"
SLICES, CLASSES = f"/apis/{API}/resourceslices", f"/apis/{API}/deviceclasses"
DRIVER = DOMAIN
"""Name of the driver and of the device class."""
POLICY, SPACE = annotation_key("policy"), annotation_key("namespace")
"""Labels of slices and claims."""
NAME, COUNTED = annotation_key("name"), annotation_key("counted")
"""Annotations: the resource of a slice, and the counted resources of a pod."""
ENTRY, DEVICE, UNIT, COUNTER = "unfold-counters", "counter", "count", "counter"
MAX_SLICE_NAME = 60
NEEDS = "it needs resource.k8s.io/v1 with consumable capacity: on by default since Kubernetes 1.36; or counters: gates"


@dataclass(slots=True)
class Counters:
    """The slices and claims of a scope, as last seen.

    Attributes:
        api: The server.
        scope: The policy's scope.
        slices: Slices by their names.
        claims: Names of claims by pod.
    """

    api: Api
    scope: Scope
    slices: dict[str, Body] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Find or create the device class, and read slices and claims.

        Raises:
            ApiError: Access is denied.
            UnfoldError: The cluster has no such API.
        """
        try:
            self.api.get(f"{CLASSES}/{DRIVER}")
        except ApiError as error:
            if not error.is_absent:
                raise
            self._create_class()
        self.read()

    def read(self) -> None:
        """Read slices and claims."""
        selector = f"{POLICY}={self.scope.name},{SPACE}={self.scope.namespace}"
        self.slices = {_name(body): body for body in self.api.get(SLICES, labelSelector=selector)["items"]}
        claims = self.api.get(self._claims_path(), labelSelector=selector)["items"]
        self.claims = {_owner(claim)["name"]: _name(claim) for claim in claims}

    def publish(self, amounts: Mapping[str, int]) -> None:
        """Make the slices equal to these resources and amounts; a changed slice is a new generation of its pool.

        Raises:
            ApiError: Another process wrote them meanwhile.
            UnfoldError: The cluster cannot count, or denies access.
        """
        desired = {slice_name(self.scope, name): (name, amount) for name, amount in amounts.items()}
        changed = {key for key, (_, amount) in desired.items() if slice_amount(self.slices.get(key)) != amount}
        calls = [partial(self._write_slice, key, *desired[key]) for key in sorted(changed)]
        calls += [partial(self._delete_slice, key) for key in self.slices.keys() - desired.keys()]
        errors = [result for result in (call_all(calls) if calls else ()) if isinstance(result, ApiError)]
        if errors and not errors[0].is_conflict:
            raise _unsupported_error(errors[0])
        if errors:
            self.read()
            raise errors[0]

    def claim(self, pod: Body) -> None:
        """Create the claim of a pod that is about to be opened, if it requests counted resources.

        Raises:
            ApiError: A claim of that name belongs to another pod.
        """
        claim = build_claim(pod, self.scope)
        if claim is None:
            return
        try:
            self.api.post(self._claims_path(), claim)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            self._replace_stale_claim(claim)
        self.claims[_name(pod)] = _name(claim)

    def release(self, is_over: Callable[[str], bool]) -> None:
        """Delete the claims of pods that are over; the cluster keeps a claim until its pod is gone."""
        ended = [pod for pod in list(self.claims) if is_over(pod)]
        calls = [partial(self.api.delete, self._claims_path(self.claims[pod])) for pod in ended]
        for pod, result in zip(ended, call_all(calls) if calls else (), strict=True):
            if not isinstance(result, ApiError) or result.is_absent:
                self.claims.pop(pod, None)

    def _write_slice(self, key: str, name: str, amount: int) -> None:
        current = self.slices.get(key)
        body = build_slice(self.scope, name, amount, pool_generation(current) + 1)
        if current is None:
            written = self.api.post(SLICES, body)
        else:
            body["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
            written = self.api.put(f"{SLICES}/{key}", body)
        if not written["spec"]["devices"][0].get("allowMultipleAllocations"):
            # the server dropped an unknown field: the device would be allocated to one task alone
            self._delete_slice(key)
            raise user_error("this cluster cannot count resources", key="cluster.kubernetes.counters", hint=NEEDS)
        self.slices[key] = written

    def _delete_slice(self, key: str) -> None:
        try:
            self.api.delete(f"{SLICES}/{key}")
        except ApiError as error:
            if not error.is_absent:
                raise
        self.slices.pop(key, None)

    def _replace_stale_claim(self, claim: Body) -> None:
        """Keep an existing claim of the same pod; replace one of an earlier pod of that name."""
        path = self._claims_path(_name(claim))
        if _owner(self.api.get(path)).get("uid") != _owner(claim)["uid"]:
            self.api.delete(path)
            # while the earlier pod still exists, this is refused, and the unit is admitted again later
            self.api.post(self._claims_path(), claim)

    def _create_class(self) -> None:
        try:
            self.api.ensure(CLASSES, build_device_class())
        except ApiError as error:
            if error.is_absent:
                raise _unsupported_error(error) from error
            raise

    def _claims_path(self, name: str = "") -> str:
        path = f"/apis/{API}/namespaces/{self.scope.namespace}/resourceclaims"
        return f"{path}/{name}" if name else path


def add_claim(pod: Body, asks: Iterable[Ask]) -> None:
    """Let a pod reference a claim on the counted resources that it requests; the process that opens it creates it."""
    counted: dict[str, int] = {}
    for ask in asks:
        if ask.counted:
            counted[ask.name] = counted.get(ask.name, 0) + ask.amount
    if not counted:
        return
    spec, sizes = pod["spec"], pod["spec"]["containers"][0]["resources"]
    pod["metadata"]["annotations"][COUNTED] = msgspec.json.encode(counted).decode()
    entry = {"name": ENTRY, "resourceClaimName": claim_name(_name(pod))}
    spec["resourceClaims"] = [*spec.get("resourceClaims", ()), entry]
    sizes["claims"] = [*sizes.get("claims", ()), {"name": ENTRY}]


def rename_claim(pod: Body) -> None:
    """Let a pod that was recreated under another name reference a claim of its own."""
    for entry in pod["spec"].get("resourceClaims", ()):
        if entry["name"] == ENTRY:
            entry["resourceClaimName"] = claim_name(_name(pod))


def claim_name(pod: str) -> str:
    """Return the name of a pod's claim."""
    return f"{pod}-counters"


def build_claim(pod: Body, scope: Scope) -> Body | None:
    """Build the claim of a pod, which is deleted with it; None if it requests no counted resource."""
    counted = counted_resources(pod)
    if not counted:
        return None
    name, uid = _name(pod), pod["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": True}
    meta = {
        "name": claim_name(name),
        "namespace": scope.namespace,
        "labels": _labels(scope),
        "ownerReferences": [owner],
    }
    requests = [
        {"name": f"{COUNTER}-{index}", "exactly": _device_request(slice_name(scope, resource), amount)}
        for index, (resource, amount) in enumerate(sorted(counted.items()))
    ]
    return {"apiVersion": API, "kind": "ResourceClaim", "metadata": meta, "spec": {"devices": {"requests": requests}}}


def counted_resources(pod: Body) -> dict[str, int]:
    """Return the resources on which a pod has a claim, with amounts; a malformed annotation is empty."""
    if not any(entry["name"] == ENTRY for entry in pod["spec"].get("resourceClaims", ())):
        return {}
    try:
        return msgspec.json.decode(pod["metadata"].get("annotations", {}).get(COUNTED, "{}"), type=dict[str, int])
    except msgspec.MsgspecError:
        return {}


def build_slice(scope: Scope, name: str, amount: int, generation: int) -> Body:
    """Build the slice of a resource: a pool with one device; each claim takes a part of it."""
    key = slice_name(scope, name)
    device = {
        "name": DEVICE,
        "allowMultipleAllocations": True,
        "attributes": {COUNTER: {"string": key}},
        "capacity": {UNIT: {"value": str(amount)}},
    }
    pool = {"name": key, "generation": generation, "resourceSliceCount": 1}
    meta = {"name": key, "labels": _labels(scope), "annotations": {NAME: name}}
    spec = {"driver": DRIVER, "pool": pool, "allNodes": True, "devices": [device]}
    return {"apiVersion": API, "kind": "ResourceSlice", "metadata": meta, "spec": spec}


def slice_name(scope: Scope, name: str) -> str:
    """Return the name of a resource's slice, pool and attribute, made unique by a hash."""
    return shorten_name(f"{scope.namespace}.{scope.name}.{name}\0", MAX_SLICE_NAME).lower()


def slice_amount(body: Body | None) -> int:
    """Return the counted amount that a ResourceSlice states, in units; -1 without a slice."""
    if body is None:
        return -1
    return parse_amount(UNIT, body["spec"]["devices"][0]["capacity"][UNIT]["value"]) // MILLI


def pool_generation(body: Body | None) -> int:
    """Return the generation of a slice's pool, from 1; 0 if there is none."""
    return 0 if body is None else int(body["spec"]["pool"]["generation"])


def build_device_class() -> Body:
    """Build the device class to which claims refer: every device of this driver."""
    selectors = [{"cel": {"expression": f"device.driver == {json.dumps(DRIVER)}"}}]
    return {"apiVersion": API, "kind": "DeviceClass", "metadata": {"name": DRIVER}, "spec": {"selectors": selectors}}


def _device_request(key: str, amount: int) -> Body:
    expression = f"device.attributes[{json.dumps(DRIVER)}].{COUNTER} == {json.dumps(key)}"
    capacity = {"requests": {UNIT: str(amount)}}
    return {"deviceClassName": DRIVER, "selectors": [{"cel": {"expression": expression}}], "capacity": capacity}


def _labels(scope: Scope) -> dict[str, str]:
    return {POLICY: scope.name, SPACE: scope.namespace}


def _name(body: Body) -> str:
    return str(body["metadata"]["name"])


def _owner(claim: Body) -> Body:
    owner: Body = next(iter(claim["metadata"].get("ownerReferences", ())), {"name": ""})
    return owner


def _unsupported_error(error: ApiError) -> UnfoldError:
    return user_error(f"no counters: {error.message}", key="cluster.kubernetes.counters", hint=NEEDS)
