"""Running prefill engines: compute a prompt and leave its KV cache for the decode engine that answers the request.

The protocol is that of vLLM's KV connectors. A prefill engine gets the request for one token with
``kv_transfer_params: {do_remote_decode: true}`` and returns where the KV cache is; the decode engine gets the request
with these parameters, which say ``do_remote_prefill``, and reads the cache.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointError, EndpointLimits, read_bounded

if TYPE_CHECKING:
    import httpx

TRANSFER = "kv_transfer_params"
REQUEST_ID = "x-request-id"
KEEP_CACHE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Asks a prefill engine to keep the KV cache of a prompt until a decode engine has read it."""
HUNG_UP = "499"
"""Status of a prompt for which the client did not wait."""
NOT_FOR_PROMPTS = frozenset({"stream_options", "min_tokens", TRANSFER})
MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What the prefill engines did for a request.

    Attributes:
        request_id: Of the request, which both engines get.
        transfer: Where the KV cache is; ``None`` if the decode engine has to compute the prompt itself.
        message: Why it has to; empty if it does not.
    """

    request_id: str
    transfer: Mapping[str, Any] | None = None
    message: str = ""

    def extend(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request for the decode engine; a transfer that a client states is dropped."""
        body = {name: value for name, value in request.items() if name != TRANSFER}
        return body if self.transfer is None else {**body, TRANSFER: dict(self.transfer)}


def ignore_attempt(_engine: int, _status: str) -> None:
    """Count no attempt."""


@dataclass(slots=True)
class PrefillPool:
    """The prefill engines of a service.

    Attributes:
        endpoints: The engines, in the order of the balancer.
        balancer: Distributes the prompts.
        limits: How long an engine may take.
        on_attempt: Called with the index of an engine and the status of its answer.
    """

    endpoints: Sequence[Endpoint]
    balancer: EngineBalancer
    limits: EndpointLimits
    on_attempt: Callable[[int, str], object] = field(default=ignore_attempt)

    async def compute(self, client: httpx.AsyncClient, path: str, request: Mapping[str, Any], tokens: int) -> Prefill:
        """Compute the prompt of a request at one engine after the other until one does.

        Args:
            client: The connections.
            path: The path of the request.
            request: Its body.
            tokens: Of the prompt, as estimated.
        """
        content = json.dumps(build_prompt_request(request), ensure_ascii=False).encode("utf-8", "replace")
        prefill = Prefill(request_id=str(uuid.uuid4()), message="no prefill engine responds")
        tried = set[int]()
        while (index := self.balancer.choose(tokens, time.perf_counter(), tried)) is not None:
            tried.add(index)
            status = HUNG_UP
            try:
                code, answer = await self._send(client, self.endpoints[index], path, content, prefill.request_id)
                status = str(code)
            except EndpointError:
                status = "unreachable"
                self.balancer.mark_down(index, time.perf_counter())
                continue
            finally:
                self.balancer.release(index, tokens)
                self.on_attempt(index, status)
            if code >= 500 or code in (401, 403, 408, 425, 429) or 300 <= code < 400:
                self.balancer.mark_down(index, time.perf_counter())
                continue
            self.balancer.mark_up(index)
            # a prompt that is refused is refused again by the decode engine, and the client gets that answer
            transfer = read_transfer(answer) if code == 200 else None
            message = "" if transfer is not None else f"a prefill engine answers {code} without {TRANSFER}"
            return Prefill(request_id=prefill.request_id, transfer=transfer, message=message)
        return prefill

    async def _send(
        self, client: httpx.AsyncClient, endpoint: Endpoint, path: str, content: bytes, request_id: str
    ) -> tuple[int, bytes]:
        """Return status and body of an answer.

        Raises:
            EndpointError: The engine does not answer.
        """
        import httpx

        headers = {**endpoint.headers, "accept": "application/json", REQUEST_ID: request_id}
        try:
            async with (
                asyncio.timeout(self.limits.first_token_s),
                client.stream("POST", endpoint.build_url(path), content=content, headers=headers) as response,
            ):
                return int(response.status_code), await read_bounded(response, MAX_ANSWER_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError) as error:
            raise EndpointError("a prefill engine does not answer", "are the engines running?") from error


def build_prompt_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for a prefill engine: one token, not streamed, with a KV cache that stays."""
    body = {name: value for name, value in request.items() if name not in NOT_FOR_PROMPTS}
    body |= {"stream": False, "max_tokens": 1, TRANSFER: KEEP_CACHE}
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1
    return body


def read_transfer(answer: bytes) -> Mapping[str, Any] | None:
    """Return where a KV cache is; ``None`` if the answer does not say so.

    vLLM returns none for a prompt if the answer ends with its first token.
    """
    try:
        transfer = json.loads(answer).get(TRANSFER)
    except (ValueError, RecursionError, AttributeError):
        return None
    return transfer if isinstance(transfer, Mapping) and transfer else None
