"""Measure a running engine with about 40 streamed requests: prompts alone, streams together, and both mixed.

Engines that share a machine are measured once more, all at the same time.

Each phase is stored as soon as it ends, so a profile that was interrupted continues. The first phase is repeated at the
end: an engine with steps that differ by more than a factor of two meanwhile measures the machine, not itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

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
from unfold_pipeline.engine.step_times.endpoint_profile import (
    MIXED_PHASE,
    SOLO_PHASE,
    EndpointProfile,
    MeasuredPhase,
    MeasuredRequest,
)

if TYPE_CHECKING:
    import httpx

PROMPT_SIZES, WIDE_STREAMS = 5, 16
SHORTEST_PROMPT = 16
LONGEST_PROMPT = 8192
WARMUP_WORDS, WARMUP_TOKENS = 64, 4
SOLO_TOKENS, STREAM_TOKENS, MIXED_TOKENS = 8, 24, 48
MIXED_STREAMS = 3
EVENTS_BEFORE_PROMPT = 3
SLOWEST_PROMPT_S = 30.0
LARGEST_DRIFT, OUTLIERS_FROM = 2.0, 4
REPEAT_PHASE = "repeat"
CONTEXT_MARGIN = 64
MAX_CACHED_SHARE = 0.5
SHORTEST_STEP_S = 1e-4
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTask:
    """What to measure.

    Attributes:
        endpoint: The engine.
        longest_prompt: Tokens of the longest prompt that a plan needs.
        max_streams: The most requests that the engine may run at the same time.
        limits: How long the engine may take.
    """

    endpoint: Endpoint
    longest_prompt: int
    max_streams: int
    limits: EndpointLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """Requests of a phase as (prompt tokens, output tokens); in a mixed phase the last one is sent late."""

    name: str
    requests: tuple[tuple[int, int], ...]


def plan_phases(longest_prompt: int, max_streams: int) -> tuple[PlannedPhase, ...]:
    """Return the phases of a profile, about 40 requests.

    Args:
        longest_prompt: Tokens of the longest prompt.
        max_streams: The most requests that the engine may run at the same time.
    """
    shortest, is_wide = min(SHORTEST_PROMPT, longest_prompt), max_streams >= WIDE_STREAMS
    # a prompt of one token takes a step of one token: what TTFT has beyond it is the front end
    sizes = [1, *sorted({round(size) for size in np.geomspace(shortest, longest_prompt, PROMPT_SIZES - 1)} - {1})]
    phases = [
        PlannedPhase(name=f"{SOLO_PHASE}-{size}-{repeat}", requests=((size, SOLO_TOKENS),))
        for repeat in range(1, 3 if is_wide else 4)
        for size in sizes
    ]
    levels = (2, 6, 16) if is_wide else (2, 4, 8)
    phases += [
        PlannedPhase(name=f"streams-{level}", requests=((shortest, STREAM_TOKENS),) * level)
        for level in levels
        if level <= max_streams
    ]
    level = min(4, max_streams)
    middle = sizes[len(sizes) // 2]
    if level > 1:
        phases.append(PlannedPhase(name=f"streams-{level}-{middle}", requests=((middle, STREAM_TOKENS),) * level))
        streams = ((shortest, MIXED_TOKENS),) * min(MIXED_STREAMS, max_streams - 1)
        phases.append(PlannedPhase(name=MIXED_PHASE, requests=(*streams, (sizes[-1], SOLO_TOKENS))))
    phases.append(PlannedPhase(name=REPEAT_PHASE, requests=((shortest, SOLO_TOKENS),)))
    return tuple(phases)


async def measure_endpoint(
    task: ProfileTask,
    stored: EndpointProfile | None,
    store: Callable[[EndpointProfile], object],
    progress: Callable[[str, int, int], None],
) -> EndpointProfile:
    """Measure the phases that a stored profile lacks.

    Args:
        task: What to measure.
        stored: The profile so far, of the same task.
        store: Called with the profile after each phase.
        progress: Receives progress.

    Raises:
        EndpointError: The engine refuses, does not stream, reports no usage, stalls, or is too unsteady.
    """
    async with build_http_client(2 * task.max_streams + 8, task.limits) as client:
        session = _Session(client, task)
        profile = await session.begin(stored)
        phases = plan_phases(session.choose_longest_prompt(profile), task.max_streams)
        for index, phase in enumerate(phases):
            names = {finished.name for finished in profile.phases}
            if phase.name not in names and not _is_too_slow(profile, phase):
                profile = replace(profile, phases=(*profile.phases, await session.measure_phase(profile, phase)))
                store(profile)
            progress("requests", index + 1, len(phases))
    drift = describe_drift(profile)
    if drift:
        # the next profile measures all phases again
        store(replace(profile, phases=()))
        raise EndpointError(drift, "an idle machine; fewer threads for an engine on a CPU")
    return profile


async def measure_together(
    task: ProfileTask,
    endpoints: Sequence[Endpoint],
    profile: EndpointProfile,
    store: Callable[[EndpointProfile], object],
    progress: Callable[[str, int, int], None],
) -> EndpointProfile:
    """Measure each phase of a profile at several engines of one machine at the same time.

    Args:
        task: What was measured at one engine.
        endpoints: The engines.
        profile: What was measured, and what was measured together so far.
        store: Called with the profile after each phase.
        progress: Receives progress.

    Raises:
        EndpointError: An engine refuses or stalls.
    """
    async with build_http_client(len(endpoints) * (2 * task.max_streams + 8), task.limits) as client:
        sessions = [_Session(client, replace(task, endpoint=endpoint)) for endpoint in endpoints]
        phases = [
            phase
            for phase in plan_phases(sessions[0].choose_longest_prompt(profile), task.max_streams)
            if phase.name in {measured.name for measured in profile.phases}
        ]
        for session in sessions:
            await session.begin(profile)
        for index, phase in enumerate(phases):
            if phase.name not in {measured.name for measured in profile.together}:
                measured = await _measure_at_all(sessions, profile, phase)
                profile = replace(profile, together=(*profile.together, *measured))
                store(profile)
            progress(f"requests at {len(endpoints)} processes", index + 1, len(phases))
    return profile


async def _measure_at_all(
    sessions: Sequence[_Session], profile: EndpointProfile, phase: PlannedPhase
) -> list[MeasuredPhase]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(session.measure_phase(profile, phase)) for session in sessions]
    except* EndpointError as errors:
        raise _first_error(errors) from errors
    return [task.result() for task in tasks]


@dataclass(slots=True)
class _Session:
    client: httpx.AsyncClient
    task: ProfileTask

    async def begin(self, stored: EndpointProfile | None) -> EndpointProfile:
        """Return the stored profile, or a new one after a request that warms the engine up and counts its words."""
        facts = await read_server(self.client, self.task.endpoint, self.task.limits)
        if stored is not None and stored.model == facts.model:
            await self._warm_up(replace(self.task.endpoint, model=stored.model, path=stored.path))
            return stored
        endpoint = replace(self.task.endpoint, model=facts.model, path=COMPLETIONS)
        try:
            reply = await self._warm_up(endpoint)
        except EndpointError as error:
            if error.status not in (404, 405):
                raise
            endpoint = replace(endpoint, path=CHAT)
            reply = await self._warm_up(endpoint)
        return EndpointProfile(
            url=endpoint.url,
            model=endpoint.model,
            path=endpoint.path,
            tokens_per_word=reply.input_tokens / WARMUP_WORDS,
            max_context=facts.max_context,
            kv_tokens=facts.kv_tokens,
            phases=(),
        )

    def choose_longest_prompt(self, profile: EndpointProfile) -> int:
        """Return the longest prompt to measure: as the plan needs, as far as the engine takes it."""
        limit = profile.max_context - MIXED_TOKENS - CONTEXT_MARGIN if profile.max_context else LONGEST_PROMPT
        return max(SHORTEST_PROMPT, min(self.task.longest_prompt, limit, LONGEST_PROMPT))

    async def measure_phase(self, profile: EndpointProfile, phase: PlannedPhase) -> MeasuredPhase:
        """Measure a phase; once more if tokens came at once, as a pause of this process looks like a buffer."""
        replies = await self._send_phase(profile, phase)
        if any(_came_at_once(reply) for reply in replies):
            replies = await self._send_phase(profile, phase)
        _check_replies(replies)
        begin_s = min(reply.start_s for reply in replies)
        return MeasuredPhase(name=phase.name, requests=tuple(_shift(reply, begin_s) for reply in replies))

    async def _send_phase(self, profile: EndpointProfile, phase: PlannedPhase) -> list[StreamedReply]:
        """Send the requests of a phase together; the last one of a mixed phase once the others stream."""
        endpoint = replace(self.task.endpoint, model=profile.model, path=profile.path)
        bodies = [
            build_body(endpoint, write_prompt(max(1, round(size / profile.tokens_per_word))), output)
            for size, output in phase.requests
        ]
        is_mixed = phase.name == MIXED_PHASE
        early = len(bodies) - 1 if is_mixed else len(bodies)
        streaming, counts = asyncio.Event(), [0] * early

        def count_event(index: int) -> None:
            counts[index] += 1
            if min(counts) >= EVENTS_BEFORE_PROMPT:
                streaming.set()

        async def send(index: int) -> StreamedReply:
            if index >= early:
                await streaming.wait()
                return await stream_completion(self.client, endpoint, bodies[index], self.task.limits)
            return await stream_completion(
                self.client, endpoint, bodies[index], self.task.limits, lambda: count_event(index)
            )

        async def send_early(index: int) -> StreamedReply:
            try:
                return await send(index)
            finally:
                # a stream that is too short to be counted must not hold the prompt back
                streaming.set()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(send_early(i) if i < early else send(i)) for i in range(len(bodies))]
        except* EndpointError as errors:
            raise _first_error(errors) from errors
        return [task.result() for task in tasks]

    async def _warm_up(self, endpoint: Endpoint) -> StreamedReply:
        body = build_body(endpoint, write_prompt(WARMUP_WORDS), WARMUP_TOKENS)
        return await stream_completion(self.client, endpoint, body, self.task.limits)


def write_prompt(words: int) -> str:
    """Return random words, others at each call: no prompt lies in the prefix cache of an engine that was measured."""
    return " ".join(random.SystemRandom().choices(WORDS.split(), k=words))


def _first_error(errors: BaseExceptionGroup[EndpointError]) -> EndpointError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, EndpointError) else EndpointError(str(error))


def _shift(reply: StreamedReply, begin_s: float) -> MeasuredRequest:
    return MeasuredRequest(
        start_s=reply.start_s - begin_s,
        event_s=tuple(stamp - begin_s for stamp in reply.event_s),
        end_s=reply.end_s - begin_s,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
    )


def _came_at_once(reply: StreamedReply) -> bool:
    return reply.end_s - reply.event_s[0] < SHORTEST_STEP_S * (reply.output_tokens - 1)


def _check_replies(replies: Sequence[StreamedReply]) -> None:
    """Reject what cannot be measured.

    Raises:
        EndpointError: A reply came at once, or prompts were cached.
    """
    for reply in replies:
        if _came_at_once(reply):
            raise EndpointError("all tokens arrive at once", "a server that streams token by token, without a buffer")
        if reply.cached_tokens > MAX_CACHED_SHARE * reply.input_tokens:
            raise EndpointError(
                "the prompts come from a prefix cache", "random prompts cannot be there: is a cache before the engine?"
            )


def _is_too_slow(profile: EndpointProfile, phase: PlannedPhase) -> bool:
    """Return whether the longest prompt of a phase would take too long, by the prompts before it."""
    solo = profile.select_solo()
    if not solo:
        return False
    slowest = max(solo, key=lambda request: request.input_tokens)
    longest = max(size for size, _ in phase.requests)
    prompts = sum(size for size, _ in phase.requests) if phase.name != MIXED_PHASE else longest
    return slowest.ttft_s * max(longest, prompts) / slowest.input_tokens > SLOWEST_PROMPT_S


def describe_drift(profile: EndpointProfile) -> str:
    """Return by how much equal steps differ, if by more than ``LARGEST_DRIFT``; one outlier on each side is normal."""
    # decodes of contexts as short as these take one and the same step
    tpots = sorted(
        request.tpot_s
        for request in profile.select_solo()
        if request.tpot_s > 0 and request.input_tokens <= 2 * SHORTEST_PROMPT
    )
    tpots = tpots[1:-1] if len(tpots) > OUTLIERS_FROM else tpots
    if len(tpots) < 2 or tpots[-1] <= LARGEST_DRIFT * tpots[0]:
        return ""
    return f"equal steps took {tpots[0] * 1e3:.3g} to {tpots[-1] * 1e3:.3g} ms"
