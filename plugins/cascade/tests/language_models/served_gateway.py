"""A gateway on a real socket, in front of scripted upstreams."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.cascade.tests.language_models.scripted_upstream import Script, Upstream, always, serve_upstream
from tests.asgi import host
from unfold_cascade.language_models.gateway.app import GatewayApp
from unfold_cascade.language_models.gateway.plan import Gate, GatewayPlan, Promise, ServedModel, UpstreamLimits
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.planning.calibration import Calibration
from unfold_cascade.language_models.planning.prices import TokenPrices

IDENTITY = Calibration(scale="number", transform="identity", low=-5.0, high=0.0, slope=1.0, intercept=1.0)
"""P = 1 / (1 + exp(-(1 + log-probability))): -0.1 gives 0.71, -2 gives 0.27."""
SMALL_PRICE = TokenPrices(input=1e-6, cached=1e-7, written=1e-6, output=2e-6)
LARGE_PRICE = TokenPrices(input=1e-5, cached=1e-6, written=1e-5, output=2e-5)
SMALL_COST = 100 * 1e-6 + 10 * 2e-6
LARGE_COST = 100 * 1e-5 + 10 * 2e-5
QUICK = UpstreamLimits(connect_s=1.0, first_token_s=2.0, between_tokens_s=0.5, total_s=6.0, retries=1)
CALLS = [{"id": f"c{k}", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}} for k in range(2)]


@dataclass(slots=True)
class Gateway:
    """A running gateway and its upstreams."""

    url: str
    small: Upstream
    large: Upstream
    app: GatewayApp

    def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Post JSON (or bytes) and return status, headers and body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **named})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
        except urllib.error.HTTPError as error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def events(self, body: dict[str, Any], **headers: str) -> tuple[dict[str, str], list[Any]]:
        """Post a streamed request, and return headers and the events: JSON, or the text of other lines."""
        status, head, data = self.post({**body, "stream": True}, **headers)
        assert status == 200, data
        lines = [line for line in data.decode().split("\n\n") if line]
        return head, [json.loads(x[6:]) if x.startswith("data: {") else x for x in lines]


def ask(text: str = "2+2?", **fields: Any) -> dict[str, Any]:
    """Build a chat request for the alias."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


@contextmanager
def serve_gateway(
    folder: Path, small: Script | None = None, large: Script | None = None, **changes: Any
) -> Iterator[Gateway]:
    """Serve the chain small -> large, gated at 0.5; ``changes`` are fields of the plan."""
    with ExitStack() as stack:
        upstreams = [
            stack.enter_context(serve_upstream(script))
            for script in (small or always(text="cheap answer"), large or always(text="dear answer"))
        ]
        plan = make_plan(*(upstream.url for upstream in upstreams), **changes)
        app = build_app(plan, folder, logging.getLogger("unfold.test"))
        url = stack.enter_context(host(app))
        yield Gateway(url, *upstreams, app)


def make_plan(small_url: str, large_url: str, **changes: Any) -> GatewayPlan:
    """Build the plan of the chain small -> large."""
    models = {
        "small": ServedModel(name="small", url=small_url, upstream_model="s-1", prices=SMALL_PRICE, http2=False),
        "large": ServedModel(name="large", url=large_url, upstream_model="l-1", prices=LARGE_PRICE, http2=False),
    }
    windows = changes.pop("windows", {})
    models = {name: replace(model, window=windows.get(name)) for name, model in models.items()}
    plan = GatewayPlan(
        name="test",
        alias="auto",
        models=models,
        chain=("small", "large"),
        gates=(Gate(0.5, IDENTITY),),
        reference="large",
        promise=Promise(max_loss=0.02, confidence=0.95, audit_limit=0.05),
        plan_hash="abc123",
        audit_share=0.0,
        limits=QUICK,
    )
    return replace(plan, **changes)


def answer_with_calls(request: dict[str, Any], _number: int) -> dict[str, Any]:
    """Answer a request with tools by two calls, and their results or any other request by a text."""
    is_result = request["messages"][-1]["role"] == "tool"
    return {"tool_calls": CALLS} if request.get("tools") and not is_result else {"text": "hello world"}
