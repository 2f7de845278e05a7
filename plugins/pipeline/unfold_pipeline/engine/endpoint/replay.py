"""Replay a trace on running engines, open loop, and measure TTFT, TPOT and latency of each request.

Latency counts from the arrival in the trace, so neither a late sender nor a full pool of connections hides anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.autoscaling.token_envelope import TokenLog
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import (
    CHAT,
    COMPLETIONS,
    Endpoint,
    EndpointError,
    EndpointLimits,
    StreamedReply,
    build_body,
    build_http_client,
    read_server,
    stream_completion,
)
from unfold_pipeline.engine.endpoint.prefill import REQUEST_ID, PrefillPool
from unfold_pipeline.engine.endpoint.profiler import WARMUP_TOKENS, WARMUP_WORDS, write_prompt
from unfold_pipeline.engine.simulation.workload import EngineRequests

if TYPE_CHECKING:
    import httpx

MAX_CONNECTIONS = 1024
START_DELAY_S = 0.2
REQUESTS_PER_PROGRESS = 16


@dataclass(slots=True)
class StageError(Exception):
    """A request that a stage did not answer; ``stage`` is its name, empty if none could be served."""

    stage: str


class StagePasses(Protocol):
    """Running stages before and after the engines, which each request of a replay passes."""

    async def before(self, number: int) -> None:
        """Pass the stages before the engines with a request."""

    async def after(self, number: int) -> None:
        """Pass the stages after the engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRequests:
    """Requests that were replayed, in order of arrival; NaN and 0 where one failed.

    Attributes:
        arrival_s: (n,) arrival times.
        ttft_s: (n,) time to first token.
        last_token_s: (n,) time to the last token.
        latency_s: (n,) time to the end of the last stage; without stages after the engines, to the last token.
        input_tokens: (n,) prompt tokens, by the usage.
        cached_tokens: (n,) those of them that came from a prefix cache, by the usage.
        output_tokens: (n,) generated tokens, by the usage.
        engine: (n,) index of the engine.
        failures: Failed requests by what happened.
        local_prompts: Requests with a prompt that a decode engine computed, as no prefill engine did.
        lateness_s: The greatest delay of the sender.
        start_s: When the trace began, on the clock of the machine.
    """

    arrival_s: FloatArray
    ttft_s: FloatArray
    last_token_s: FloatArray
    latency_s: FloatArray
    input_tokens: CountArray
    cached_tokens: CountArray
    output_tokens: CountArray
    engine: CountArray
    failures: Counter[str]
    lateness_s: float
    start_s: float = 0.0
    local_prompts: int = 0

    @property
    def completed(self) -> CountArray:
        """Indices of the requests that were completed."""
        return np.flatnonzero(self.output_tokens > 0)

    @property
    def cached_share(self) -> float:
        """Fraction of the prompt tokens that came from a prefix cache."""
        return float(self.cached_tokens.sum()) / max(1, int(self.input_tokens.sum()))


async def replay_requests(
    endpoints: Sequence[Endpoint],
    balancer: EngineBalancer,
    requests: EngineRequests,
    limits: EndpointLimits,
    progress: Callable[[str, int, int], None],
    log: TokenLog | None = None,
    around: StagePasses | None = None,
    prefill: PrefillPool | None = None,
) -> ReplayedRequests:
    """Send each request of a trace at its time to an engine, and wait for all.

    Args:
        endpoints: The engines, in the order of the balancer; they may change while requests are sent.
        balancer: Distributes the requests.
        requests: What to send.
        limits: How long an engine may take.
        progress: Receives progress.
        log: Records what was sent, for a scaling rule.
        around: The stages before and after the engines.
        prefill: The engines that compute the prompts; ``None`` if the others do.

    Raises:
        EndpointError: An engine does not respond before the trace begins.
    """
    engines = len(endpoints) + (0 if prefill is None else len(prefill.endpoints))
    connections = min(MAX_CONNECTIONS, len(requests) + engines)
    async with build_http_client(connections, limits) as client:
        session = _Replay(
            client,
            endpoints,
            balancer,
            requests,
            limits,
            progress,
            log,
            around,
            prefill,
        )
        await session.warm_up()
        return await session.run()


@dataclass(slots=True)
class _Replay:
    client: httpx.AsyncClient
    endpoints: Sequence[Endpoint]
    balancer: EngineBalancer
    requests: EngineRequests
    limits: EndpointLimits
    progress: Callable[[str, int, int], None]
    log: TokenLog | None
    around: StagePasses | None
    prefill: PrefillPool | None
    named: dict[str, Endpoint] = field(default_factory=dict)
    tokens_per_word: float = 1.0
    replies: dict[int, tuple[int, StreamedReply]] = field(default_factory=dict)
    left_s: dict[int, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    local_prompts: int = 0

    async def warm_up(self) -> None:
        """Find the model and the path of each active engine, and the tokens of a word."""
        active = zip(self.endpoints, self.balancer.active, strict=True)
        for endpoint in [endpoint for endpoint, is_active in active if is_active]:
            facts = await read_server(self.client, endpoint, self.limits)
            named = replace(endpoint, model=facts.model, path=COMPLETIONS)
            try:
                reply = await self._send(named, WARMUP_WORDS, WARMUP_TOKENS)
            except EndpointError as error:
                if error.status not in (404, 405):
                    raise
                named = replace(named, path=CHAT)
                reply = await self._send(named, WARMUP_WORDS, WARMUP_TOKENS)
            self.named[endpoint.url] = named
            self.tokens_per_word = reply.input_tokens / WARMUP_WORDS
        if self.prefill is not None:
            await self._warm_up_prefill(self.prefill)

    async def _warm_up_prefill(self, prefill: PrefillPool) -> None:
        """Pass a prompt from every prefill engine on to a decode engine.

        Raises:
            EndpointError: A prefill engine does not respond, or leaves no KV cache.
        """
        decode = next(iter(self.named.values()))
        for endpoint in prefill.endpoints:
            await read_server(self.client, replace(endpoint, model=decode.model), self.limits)
            alone = PrefillPool((endpoint,), EngineBalancer((endpoint.url,), "round_robin"), self.limits)
            body = build_body(decode, write_prompt(WARMUP_WORDS), WARMUP_TOKENS)
            computed = await alone.compute(self.client, decode.path, body, WARMUP_WORDS)
            if computed.transfer is None:
                hint = '--kv-transfer-config \'{"kv_connector":"NixlConnector","kv_role":"kv_both"}\' at both pools'
                raise EndpointError(f"{endpoint.url}: {computed.message}", hint)
            headers = {REQUEST_ID: computed.request_id}
            await stream_completion(self.client, decode, computed.extend(body), self.limits, headers=headers)

    async def run(self) -> ReplayedRequests:
        """Send the requests at their times."""
        self.progress("replay", 0, len(self.requests))
        start_s, lateness_s = time.perf_counter() + START_DELAY_S, 0.0
        async with asyncio.TaskGroup() as group:
            for index, arrival_s in enumerate(self.requests.arrival_s.tolist()):
                await asyncio.sleep(max(0.0, start_s + arrival_s - time.perf_counter()))
                lateness_s = max(lateness_s, time.perf_counter() - start_s - arrival_s)
                group.create_task(self._replay_request(index))
        return self._collect(start_s, lateness_s)

    async def _replay_request(self, index: int) -> None:
        """Pass a request through the stages before the engines, an engine, and the stages after them."""
        try:
            if self.around is not None:
                await self.around.before(index)
            await self._send_to_engine(index)
            if self.around is not None and index in self.replies:
                await self.around.after(index)
                self.left_s[index] = time.perf_counter()
        except StageError as error:
            self.replies.pop(index, None)
            self.failures[f"the stage {error.stage} failed" if error.stage else "a stage cannot be served"] += 1
        finally:
            self.finished += 1
            if self.finished % REQUESTS_PER_PROGRESS == 0:
                self.progress("replay", self.finished, len(self.requests))

    async def _send_to_engine(self, index: int) -> None:
        prompt, output = int(self.requests.input_tokens[index]), int(self.requests.output_tokens[index])
        if self.log is not None:
            self.log.add(time.perf_counter(), prompt, output)
        engine = self.balancer.choose(prompt + output, time.perf_counter())
        if engine is None:
            self.failures["no engine takes requests"] += 1
            return
        try:
            words = max(1, round(prompt / self.tokens_per_word))
            reply = await self._send(self._name_endpoint(engine), words, output, self.prefill)
            self.replies[index] = (engine, reply)
        except EndpointError as error:
            self.failures[error.message] += 1
            self.balancer.mark_down(engine, time.perf_counter())
        finally:
            self.balancer.release(engine, prompt + output)

    def _name_endpoint(self, engine: int) -> Endpoint:
        """Return an engine with model and path; one that started later serves the same as the others."""
        endpoint = self.endpoints[engine]
        if endpoint.url not in self.named:
            known = next(iter(self.named.values()))
            self.named[endpoint.url] = replace(endpoint, model=known.model, path=known.path)
        return self.named[endpoint.url]

    async def _send(
        self, endpoint: Endpoint, words: int, output: int, prefill: PrefillPool | None = None
    ) -> StreamedReply:
        body, headers = build_body(endpoint, write_prompt(words), output), dict[str, str]()
        if prefill is not None:
            computed = await prefill.compute(self.client, endpoint.path, body, words)
            self.local_prompts += computed.transfer is None
            body, headers = computed.extend(body), {REQUEST_ID: computed.request_id}
        return await stream_completion(self.client, endpoint, body, self.limits, headers=headers)

    def _collect(self, start_s: float, lateness_s: float) -> ReplayedRequests:
        count = len(self.requests)
        ttft_s, last_s, latency_s = (np.full(count, np.nan) for _ in range(3))
        tokens = np.zeros((4, count), dtype=np.int64)
        for index, (engine, reply) in self.replies.items():
            arrival_s = start_s + float(self.requests.arrival_s[index])
            ttft_s[index], last_s[index] = reply.event_s[0] - arrival_s, reply.end_s - arrival_s
            latency_s[index] = self.left_s.get(index, reply.end_s) - arrival_s
            tokens[:, index] = reply.input_tokens, reply.output_tokens, engine, reply.cached_tokens
        return ReplayedRequests(
            arrival_s=self.requests.arrival_s,
            ttft_s=ttft_s,
            last_token_s=last_s,
            latency_s=latency_s,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            engine=tokens[2],
            cached_tokens=tokens[3],
            failures=self.failures,
            lateness_s=lateness_s,
            start_s=start_s,
            local_prompts=self.local_prompts,
        )
