"""Slices and claims against a server that is a dictionary: what a real one that can count never answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes.objects import dra, pods
from unfold_placement.kubernetes.objects.codec import DRA, Body, Scope
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import Api, ApiError

SCOPE = Scope("mine", "unfold", counters=DRA)
LICENCE = Ask("l", gated=True, counted=True)


@dataclass
class Server:
    """Keeps what is posted; ``old`` ones drop what they do not know, ``kept`` objects are not deleted at once."""

    old: bool = False
    none: bool = False
    kept: bool = False
    objects: dict[str, Body] = field(default_factory=dict)

    def get(self, path: str, **_query: str) -> Body:
        if path.endswith(("resourceslices", "resourceclaims")):
            return {"items": [body for name, body in self.objects.items() if name.startswith(f"{path}/")]}
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return self.objects[path]

    def post(self, path: str, body: Body) -> Body:
        name = f"{path}/{body['metadata']['name']}"
        if self.none:
            raise ApiError(404, "", "no such API")
        if name in self.objects:
            raise ApiError(409, "AlreadyExists", name)
        if self.old and "devices" in body["spec"]:
            del body["spec"]["devices"][0]["allowMultipleAllocations"]
        self.objects[name] = body
        return body

    ensure = post

    def delete(self, path: str) -> Body:
        return {} if self.kept else self.objects.pop(path)


def counters(server: Server) -> dra.Counters:
    """Return the counters of a scope on a server."""
    return dra.Counters(cast("Api", server), SCOPE)


def pod(uid: str) -> Body:
    """Return the pod of a task that needs a licence."""
    body = pods.gated_pod(Task("a", {}, 1.0), [LICENCE], SCOPE, 0.0)
    body["metadata"]["uid"] = uid
    return body


def test_a_cluster_without_consumable_capacity_is_an_error() -> None:
    """Without consumable capacity one task would have it all: the slice is taken back, and the error says so."""
    server = Server(old=True)
    with pytest.raises(UnfoldError, match="cannot count") as caught:
        counters(server).publish({"l": 2})
    assert "1.36" in (caught.value.diagnostics[0].hint or "")
    assert server.objects == {}
    with pytest.raises(UnfoldError, match="no counters"):
        counters(Server(none=True)).start()


def test_a_missing_device_class_is_created() -> None:
    """Whoever may make it does so once."""
    server = Server()
    counters(server).start()
    counters(server).start()
    assert list(server.objects) == [f"{dra.CLASSES}/{dra.DRIVER}"]


def test_a_claim_of_an_earlier_pod_is_not_taken_over() -> None:
    """The same pod finds its claim again; another of its name gets a new one, or none while the old one is held."""
    server = Server()
    made = counters(server)
    made.claim(pod("one"))
    made.claim(pod("one"))
    made.claim(pod("two"))
    (claim,) = server.objects.values()
    assert claim["metadata"]["ownerReferences"][0]["uid"] == "two"
    server.kept = True
    with pytest.raises(ApiError):
        made.claim(pod("three"))


def test_claims_are_released_once() -> None:
    """The claim of a pod that is over is deleted, others stay, and nothing is left to delete."""
    server = Server()
    made = counters(server)
    made.claim(pod("one"))
    made.release(lambda name: name != "a-0")
    assert len(server.objects) == 1
    made.release(lambda name: name == "a-0")
    assert (server.objects, made.claims) == ({}, {})
