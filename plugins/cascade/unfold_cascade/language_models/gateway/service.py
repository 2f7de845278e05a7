"""Build the service of a gateway plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from unfold_cascade.language_models.gateway.app import GatewayApp
from unfold_cascade.language_models.gateway.dashboard import build_dashboard
from unfold_cascade.language_models.gateway.metrics import build_metrics
from unfold_cascade.language_models.gateway.plan import GatewayPlan
from unfold_cascade.language_models.gateway.router import Router
from unfold_cascade.language_models.gateway.state import GatewayState
from unfold_cascade.language_models.gateway.token_counts import TokenCounter
from unfold_cascade.language_models.gateway.upstream import Upstreams, build_client
from unfold_cascade.language_models.report import sentences
from unfoldkit.api import Service

STATE_FILE = "gateway/state.sqlite"
CONNECTIONS, KEPT_CONNECTIONS = 1000, 200


def build_gateway(plan: GatewayPlan, folder: Path, log: logging.Logger) -> Service:
    """Build the gateway of a plan; its state is kept in the folder.

    Raises:
        UnfoldError: The state cannot be used.
    """
    app = build_app(plan, folder, log)
    return Service(
        name=plan.name,
        app=app,
        paths=("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models", "/health", "/metrics"),
        body_bytes=plan.body_bytes,
        lines=tuple(_list_lines(plan, app)),
        watch=build_dashboard(plan, app.router.state, app.metrics),
    )


def build_app(plan: GatewayPlan, folder: Path, log: logging.Logger) -> GatewayApp:
    """Build the application of a gateway."""
    import httpx

    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=KEPT_CONNECTIONS)
    client = build_client(plan.models.values(), limits)
    state = GatewayState(
        folder / STATE_FILE, plan.plan_hash, None if plan.promise is None else plan.promise.audit_limit
    )
    router = Router(plan, Upstreams(client, plan.limits), state, log)

    async def close() -> None:
        await client.aclose()
        state.close()

    return GatewayApp(plan, router, build_metrics(), close, TokenCounter(router.upstreams))


def _list_lines(plan: GatewayPlan, app: GatewayApp) -> Iterator[tuple[str, str]]:
    yield "model", sentences.served_alias(plan.alias, plan.chain)
    state = app.router.state
    if state.is_withdrawn:
        yield "promise", sentences.withdrawn(plan.reference, state.void_reason)
    elif plan.promise is None:
        yield "promise", sentences.unpromised(plan.reference)
    else:
        yield "promise", sentences.served_promise(plan.promise.max_loss, plan.promise.confidence, plan.reference)
        yield "audit", sentences.served_audit(plan.audit_share, plan.promise.audit_limit, by_labels=plan.audits_labels)
