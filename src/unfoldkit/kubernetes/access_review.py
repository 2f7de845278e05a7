"""Access reviews (authorization.k8s.io/v1): what the server would let this account do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from unfoldkit.kubernetes.api import Api, ApiError, Body, call_all

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Access:
    """A request that an account may be allowed in a namespace.

    Attributes:
        verb: Such as ``patch``.
        group: API group, such as ``apps``.
        resource: Plural name of the resource, with its subresource, such as ``deployments/scale``.
        name: Name of the object; empty for any.
    """

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{self.name and f' {self.name}'}"


def list_denied(api: Api, requests: Sequence[Access]) -> list[Access]:
    """Return the requests that the server would deny; none where it does not review them.

    Args:
        api: The server, with the account and the namespace in question.
        requests: What the account may need; each is one review.

    Raises:
        UnfoldError: The server cannot be reached.
    """
    answers = call_all([partial(api.post, REVIEWS, _build_review(api, request)) for request in requests])
    return [
        request
        for request, answer in zip(requests, answers, strict=True)
        if not isinstance(answer, ApiError) and (answer.get("status") or {}).get("allowed") is False
    ]


def _build_review(api: Api, request: Access) -> Body:
    resource, _, subresource = request.resource.partition("/")
    attributes = {
        "namespace": api.namespace,
        "verb": request.verb,
        "group": request.group,
        "resource": resource,
        "subresource": subresource,
        "name": request.name,
    }
    spec = {"resourceAttributes": {name: value for name, value in attributes.items() if value}}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
