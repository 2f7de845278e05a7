"""What ``serve`` returns: an ASGI application and what surrounds it. The host owns socket, signals and token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from unfoldkit.serving.observability.dashboard import DashboardSource

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Responder = Callable[..., None]
"""Takes a body, a callback for the reply, and ``json_bytes`` if tensors follow so many bytes of JSON."""
MetricsSharing = Callable[[Path], Callable[[], object]]
"""Takes the folder that processes share, and returns what stores the metrics of this process there."""


@dataclass(frozen=True, slots=True)
class AdmissionCheck:
    """Decides before a body is read whether a request is admitted.

    Args:
        full: Returns 0 if one more request can wait, else the time in s after which to retry.
        refuse: Counts requests that were rejected.
    """

    full: Callable[[], int]
    refuse: Callable[[int], object]

    def ask(self) -> int:
        """Return 0 if a request is admitted; else count it as rejected and return the time to retry in s."""
        if retry_s := self.full():
            self.refuse(1)
        return retry_s


def is_always_healthy() -> bool:
    """Return true: the health of a service without models."""
    return True


@dataclass(frozen=True, slots=True)
class Service:
    """A running application that answers requests.

    Args:
        name: Shown to the user at start.
        app: The application; its lifespan events open and close what it holds.
        paths: Paths that are shown to the user at start.
        posts: By path, responders to POST requests, which may be called without ``app``.
        body_bytes: The largest body that a responder takes.
        lines: Titles and texts that are shown to the user at start.
        watch: What the live page at ``/`` shows; without it there is no page.
        gates: By path, admission checks that precede the responders.
        share: Makes several processes one service: stores metrics in a common folder.
        healthy: Whether the models respond.
        registry: The metrics of the service, to which the host adds its own.
        endpoints: By name, the models that are offered over gRPC too.
        repository: Loads and unloads the models; ``None`` if they stay loaded.
        charts: The charts of ``watch`` alone, for their history, where its tables take long.
    """

    name: str
    app: ASGIApp
    paths: tuple[str, ...] = ()
    posts: Mapping[str, Responder] = field(default_factory=dict)
    body_bytes: int = 0
    lines: tuple[tuple[str, str], ...] = ()
    watch: DashboardSource | None = None
    gates: Mapping[str, AdmissionCheck] = field(default_factory=dict)
    share: MetricsSharing | None = None
    healthy: Callable[[], bool] = is_always_healthy
    registry: CollectorRegistry | None = None
    endpoints: Mapping[str, Any] = field(default_factory=dict)
    repository: Any = None
    charts: DashboardSource | None = None
