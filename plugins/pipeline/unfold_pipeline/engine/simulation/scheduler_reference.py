"""The scheduler of vLLM V1 in plain Python: the reference of ``scheduler_kernel``, rule by rule and without speed.

Rules: LLMServingSim 2.0, ``docs/continuous-batching.md``, checked against vLLM 0.19 runs. A step first continues the
running requests in order of admission, and preempts the last of them where blocks are missing; then it admits waiting
requests.

Groups of layers have blocks of their own in one pool. Those with a sliding window free what lies before the window of
the next token, as the hybrid KV cache manager of vLLM does, ``vllm/v1/core/single_type_kv_cache_manager.py``.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline.engine.simulation.disaggregation import EnginePool, KvTransfer
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests


@dataclass(slots=True)
class Step:
    """One iteration: what it computes, and which requests it gives a token."""

    chunks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By request: scheduled tokens, and the history before them."""
    produces: set[int] = field(default_factory=set)


@dataclass(slots=True)
class ReferenceRun:
    """What happened to each request, and what the engine did."""

    first_token_s: list[float]
    last_token_s: list[float]
    preemptions: int = 0
    hit_tokens: int = 0
    steps: int = 0
    prefill_steps: int = 0
    peak_running: int = 0
    peak_blocks: int = 0


class ReferencePool:
    """Blocks of the KV cache: a freed block keeps its content until it is taken from the head of the free list."""

    def __init__(self, blocks: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self.references = [0] * blocks
        self.content: list[int | None] = [None] * blocks
        self.by_content: dict[int, int] = {}

    def take(self) -> int:
        """Take the block that was freed longest ago, and forget its content."""
        block, _ = self.free.popitem(last=False)
        known = self.content[block]
        if known is not None:
            del self.by_content[known]
            self.content[block] = None
        self.references[block] = 1
        return block

    def touch(self, block: int) -> None:
        """Use a cached block once more."""
        if self.references[block] == 0:
            del self.free[block]
        self.references[block] += 1

    def release(self, blocks: Sequence[int | None]) -> None:
        """Free the blocks of a request, the last one first, so that prefixes live longest."""
        for block in reversed(blocks):
            if block is None:
                continue
            self.references[block] -= 1
            if self.references[block] == 0:
                self.free[block] = None

    def enter(self, block: int, content: int) -> None:
        """Record the content of a full block; the first block of a content answers for it."""
        if content not in self.by_content:
            self.by_content[content] = block
            self.content[block] = content


class ReferenceEngine:
    """State of one engine between steps."""

    def __init__(self, requests: EngineRequests, limits: EngineLimits) -> None:
        count = len(requests)
        self.requests, self.limits = requests, limits
        self.pool = ReferencePool(limits.num_blocks)
        self.computed = [0] * count
        self.generated = [0] * count
        self.seen = [0] * count
        self.entered = [0] * count
        self.admitted: set[int] = set()
        self.groups = limits.full_groups + limits.window_groups
        self.blocks: list[list[list[int | None]]] = [[[] for _ in range(self.groups)] for _ in range(count)]
        self.running: list[int] = []
        self.waiting: deque[int] = deque()
        self.run = ReferenceRun([math.nan] * count, [math.nan] * count)

    def total(self, request: int) -> int:
        """Return the tokens of KV that a request needs before its next token."""
        return int(self.requests.input_tokens[request]) + self.generated[request]

    def schedule(self) -> Step:
        """Choose the tokens of the next step."""
        step, budget, preempted = Step(), self.limits.max_num_batched_tokens, False
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            if self.generated[request] >= int(self.requests.output_tokens[request]):
                position += 1
                continue
            tokens = min(self.total(request) - self.computed[request], budget)
            self.skip_blocks(request)
            evicted_itself = False
            while self.missing_blocks(request, self.computed[request] + tokens) > len(self.pool.free):
                victim = self.running.pop()
                budget += self.preempt(victim, step)
                preempted = True
                if victim == request:
                    evicted_itself = True
                    break
            if evicted_itself:
                break
            self.compute(request, tokens, step)
            budget -= tokens
            position += 1
        if not preempted:
            self.admit(step, budget)
        self.run.peak_running = max(self.run.peak_running, len(self.running))
        self.run.peak_blocks = max(self.run.peak_blocks, self.limits.num_blocks - len(self.pool.free))
        return step

    def admit(self, step: Step, budget: int) -> None:
        """Admit waiting requests in order, while tokens, slots and blocks last."""
        size = self.requests.block_tokens
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            total = self.total(request)
            hits = self.cached_prefix(request, (total - 1) // size)
            count = len(hits[0])
            receives = self.limits.receives_kv and request not in self.admitted
            computed = total - 1 if receives else count * size
            tokens = min(total - computed, budget)
            cached = [block for group in hits for block in group if block is not None]
            idle_hits = sum(self.pool.references[block] == 0 for block in cached)
            needed = [self.groups * (math.ceil((computed + tokens) / size) - count)]
            if self.limits.reserve_full_isl:
                needed.append(sum(max(0, self.reserved_blocks(group, total) - count) for group in range(self.groups)))
            if max(needed) + idle_hits > len(self.pool.free):
                break
            self.waiting.popleft()
            self.admitted.add(request)
            for block in cached:
                self.pool.touch(block)
            self.blocks[request] = hits
            self.computed[request] = computed
            self.entered[request] = count
            self.run.hit_tokens += count * size
            self.running.append(request)
            self.compute(request, tokens, step)
            budget -= tokens

    def reserved_blocks(self, group: int, tokens: int) -> int:
        """Return the blocks of a group by which a request with some tokens is admitted."""
        blocks, size = math.ceil(tokens / self.requests.block_tokens), self.requests.block_tokens
        if group < self.limits.full_groups:
            return blocks
        return min(blocks, self.limits.count_window_blocks(size))

    def cached_prefix(self, request: int, most: int) -> list[list[int | None]]:
        """Return the leading blocks of each group of a request that the cache holds, without those before the window.

        Groups with a window need only what the next token attends to.
        """
        if not self.limits.prefix_cache:
            return [[] for _ in range(self.groups)]
        first, last = self.requests.first_content[request : request + 2]
        contents = [int(item) for item in self.requests.list_contents()[first:last][:most]]
        full = range(self.limits.full_groups)
        windowed = range(self.limits.full_groups, self.groups)
        misses = (index for index, item in enumerate(contents) if not self.is_cached(item, full))
        count = next(misses, len(contents))
        skipped = 0
        if windowed:
            needed = math.ceil((self.limits.window - 1) / self.requests.block_tokens)
            # the longest prefix with its last window in the cache
            count = next(
                end
                for end in range(count, -1, -1)
                if all(self.is_cached(item, windowed) for item in contents[max(0, end - needed) : end])
            )
            skipped = self.count_skipped(count * self.requests.block_tokens)
        return [
            [
                None if group in windowed and index < skipped else self.pool.by_content[item * self.groups + group]
                for index, item in enumerate(contents[:count])
            ]
            for group in range(self.groups)
        ]

    def is_cached(self, content: int, groups: range) -> bool:
        """Return whether the cache holds a content in each of some groups."""
        return all(content * self.groups + group in self.pool.by_content for group in groups)

    def count_skipped(self, computed: int) -> int:
        """Return the blocks before the window of the token after some computed ones."""
        return max(0, computed - self.limits.window + 1) // self.requests.block_tokens

    def skip_blocks(self, request: int) -> None:
        """Free the blocks that lie before the window of the next token, the last one first."""
        for group in range(self.limits.full_groups, self.groups):
            blocks = self.blocks[request][group]
            skipped = [
                index for index in range(self.count_skipped(self.computed[request])) if blocks[index] is not None
            ]
            self.pool.release([blocks[index] for index in skipped])
            for index in skipped:
                blocks[index] = None

    def missing_blocks(self, request: int, tokens: int) -> int:
        """Return the blocks that a request lacks for some tokens, in all groups."""
        return sum(math.ceil(tokens / self.requests.block_tokens) - len(blocks) for blocks in self.blocks[request])

    def release_blocks(self, request: int) -> None:
        """Free the blocks of a request, group after group."""
        for blocks in self.blocks[request]:
            self.pool.release(blocks)
        self.blocks[request] = [[] for _ in range(self.groups)]

    def compute(self, request: int, tokens: int, step: Step) -> None:
        """Schedule tokens of a request, with the blocks that they need."""
        history = self.computed[request]
        needed = math.ceil((history + tokens) / self.requests.block_tokens)
        for blocks in self.blocks[request]:
            blocks.extend(self.pool.take() for _ in range(needed - len(blocks)))
        step.chunks[request] = (tokens, history)
        self.computed[request] += tokens
        if self.limits.prefix_cache:
            self.enter_blocks(request)
        if self.computed[request] == self.total(request):
            self.generated[request] += 1
            step.produces.add(request)

    def enter_blocks(self, request: int) -> None:
        """Enter the full blocks of a request with tokens known by now."""
        known = min(self.computed[request], int(self.requests.input_tokens[request]) + self.seen[request])
        first = int(self.requests.first_content[request])
        for index in range(self.entered[request], known // self.requests.block_tokens):
            content = int(self.requests.list_contents()[first + index])
            for group, blocks in enumerate(self.blocks[request]):
                if (block := blocks[index]) is not None:
                    self.pool.enter(block, content * self.groups + group)
            self.entered[request] = index + 1

    def preempt(self, request: int, step: Step) -> int:
        """Put a running request back at the head of the queue, and return the budget that this frees."""
        freed = 0
        if request in step.chunks:
            freed, _ = step.chunks.pop(request)
            if request in step.produces:
                step.produces.remove(request)
                self.generated[request] -= 1
        self.release_blocks(request)
        self.computed[request] = self.entered[request] = 0
        self.waiting.appendleft(request)
        self.run.preemptions += 1
        return freed

    def finish_step(self, step: Step, end_s: float) -> None:
        """Deliver the tokens of a step, and release the requests that are complete."""
        for request in sorted(step.produces):
            self.seen[request] += 1
            if self.seen[request] == 1:
                self.run.first_token_s[request] = end_s
            if self.seen[request] == int(self.requests.output_tokens[request]):
                self.run.last_token_s[request] = end_s
                if request in self.running:
                    self.running.remove(request)
                else:
                    self.waiting.remove(request)
                self.release_blocks(request)


def step_seconds(step: Step, times: StepTimes, requests: EngineRequests, *, receives_kv: bool = False) -> float:
    """Return the duration of a step.

    Several prefill chunks are one of equal work; decodes have the mean of their contexts. The last token of a prompt
    with a received KV cache is computed like a decode.
    """
    received = int(receives_kv)
    tokens = sum(count for count, _ in step.chunks.values())
    decodes = [
        history + 1
        for request, (count, history) in step.chunks.items()
        if _is_decode(requests, request, count, history + received)
    ]
    chunks = [
        (count, history)
        for request, (count, history) in step.chunks.items()
        if not _is_decode(requests, request, count, history + received)
    ]
    attention = interpolate(_attention_point(chunks, decodes, None), times)
    if times.window:
        windowed = interpolate(_attention_point(chunks, decodes, times.window), times)
        attention = (1 - times.window_share) * attention + times.window_share * windowed
    dense = times.dense[min(tokens, times.dense.size - 1)]
    sequence = times.sequence[min(len(step.chunks), times.sequence.size - 1)]
    return float(times.scale * (dense + sequence + attention) + times.overhead)


def _attention_point(
    chunks: Sequence[tuple[int, int]], decodes: Sequence[int], window: int | None
) -> tuple[float, float, float, float]:
    """Return the attention point of chunks after histories and of decodes with contexts, each token within a window."""
    chunk, past = 0.0, 0.0
    if chunks:
        work = sum(_count_pairs(count, history, window) for count, history in chunks)
        chunk = float(sum(count for count, _ in chunks))
        past = work / chunk - chunk / 2
        if past < 0:
            chunk, past = math.sqrt(2 * work), 0.0
    contexts = [context if window is None else min(context, window) for context in decodes]
    return chunk, past, float(len(decodes)), sum(contexts) / len(contexts) if contexts else 0.0


def _count_pairs(count: int, history: int, window: int | None) -> float:
    """Return the pairs of tokens of a chunk, as the area below the line of its contexts."""
    beyond = 0 if window is None else min(count, max(0, history + count - window))
    rising = count - beyond
    return rising * (history + rising / 2) + beyond * (window or 0)


def _is_decode(requests: EngineRequests, request: int, count: int, history: int) -> bool:
    return count == 1 and history >= int(requests.input_tokens[request])


def interpolate(point: tuple[float, float, float, float], times: StepTimes) -> float:
    """Return the attention time at a point by multilinear interpolation; outside the table the edge cells continue."""
    lower, weight = [], []
    for axis, value in enumerate(point):
        values = times.axes[axis, : times.axis_lengths[axis]]
        index = int(np.clip(np.searchsorted(values, value, side="right") - 1, 0, values.size - 2))
        lower.append(index)
        weight.append((value - values[index]) / (values[index + 1] - values[index]))
    result = 0.0
    for corner in np.ndindex(2, 2, 2, 2):
        share = math.prod(w if bit else 1 - w for w, bit in zip(weight, corner, strict=True))
        result += share * times.attention[tuple(i + bit for i, bit in zip(lower, corner, strict=True))]
    return float(result)


def simulate_reference(requests: EngineRequests, limits: EngineLimits, times: StepTimes) -> ReferenceRun:
    """Simulate one engine; see ``scheduler_kernel.simulate`` for the rules of time."""
    engine = ReferenceEngine(requests, limits)
    in_flight: deque[tuple[Step, float]] = deque()
    depth = 2 if limits.async_scheduling else 1
    arrived, now, busy_until, count = 0, 0.0, 0.0, len(requests)

    def schedule() -> bool:
        nonlocal arrived, busy_until
        while arrived < count and requests.arrival_s[arrived] <= now:
            engine.waiting.append(arrived)
            arrived += 1
        step = engine.schedule()
        if not step.chunks:
            return False
        busy_until = max(busy_until, now) + step_seconds(step, times, requests, receives_kv=limits.receives_kv)
        in_flight.append((step, busy_until))
        engine.run.steps += 1
        received = int(limits.receives_kv)
        engine.run.prefill_steps += any(
            not _is_decode(requests, r, c, h + received) for r, (c, h) in step.chunks.items()
        )
        return True

    while True:
        while len(in_flight) < depth and schedule():
            pass
        if in_flight:
            step, now = in_flight.popleft()
            engine.finish_step(step, now)
        elif arrived < count:
            now = max(now, float(requests.arrival_s[arrived]))
        else:
            return engine.run


def simulate_pool_reference(
    requests: EngineRequests, limits: EngineLimits, times: StepTimes, engines: int
) -> ReferenceRun:
    """Simulate engines that take requests in turn; times are by request, counts are sums over the engines."""
    count = len(requests)
    total = ReferenceRun([math.nan] * count, [math.nan] * count)
    for engine in range(min(engines, count)):
        members = np.arange(engine, count, engines, dtype=np.int32)
        run = simulate_reference(requests.reorder(members, requests.arrival_s[members]), limits, times)
        for index, member in enumerate(members):
            total.first_token_s[member], total.last_token_s[member] = run.first_token_s[index], run.last_token_s[index]
        total.preemptions += run.preemptions
        total.hit_tokens += run.hit_tokens
        total.steps += run.steps
    return total


def simulate_disaggregated_reference(
    requests: EngineRequests, prefill: EnginePool, decode: EnginePool, transfer: KvTransfer
) -> tuple[ReferenceRun, list[float], ReferenceRun, list[int]]:
    """Simulate prefill engines, links and decode engines.

    Returns:
        The prefill run, when each cache is complete, the decode run, and the request of each of its places.
    """
    ones = np.ones_like(requests.output_tokens)
    prompts = simulate_pool_reference(
        replace(requests, output_tokens=ones), prefill.limits, prefill.times, prefill.engines
    )
    free, sent_s = [0.0] * prefill.engines, [0.0] * len(requests)
    for request in sorted(range(len(requests)), key=lambda item: prompts.first_token_s[item]):
        engine = request % prefill.engines
        sent_s[request] = free[engine] = max(free[engine], prompts.first_token_s[request]) + transfer.send_s[request]
    order, free = sorted(range(len(requests)), key=lambda item: sent_s[item]), [0.0] * decode.engines
    received_s = [0.0] * len(requests)
    for turn, request in enumerate(order):
        engine = turn % decode.engines
        free[engine] = max(free[engine] + transfer.receive_s[request], sent_s[request])
        received_s[request] = free[engine] + transfer.latency_s
    arrivals = requests.reorder(np.array(order, dtype=np.int32), np.array([received_s[item] for item in order]))
    limits = replace(decode.limits, receives_kv=True)
    return prompts, received_s, simulate_pool_reference(arrivals, limits, decode.times, decode.engines), order
