"""The compiled scheduler of vLLM V1: token budget, chunked prefill, prefix cache, asynchronous scheduling.

The rules are those of ``scheduler_reference``, which a property test compares with this kernel. A step costs about a
microsecond. State lies in a few arrays whose rows are named below: compiled code counts the references of every array
of a tuple at every call, which would cost more than the step itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.limits import EngineLimits
from unfold_pipeline.engine.step_time import StepTimes
from unfold_pipeline.engine.workload import EngineRequests
from unfoldkit.jit import compiled

NONE = -1
# rows of the state of requests: tokens, blocks, and where their blocks and contents begin
INPUT, OUTPUT, COMPUTED, GENERATED, SEEN, ENTERED, HAVE, FIRST_BLOCK, FIRST_CONTENT, REQUEST_ROWS = range(10)
# rows of the block pool: the free list, the users of a block, and the content of a full one
BEFORE, AFTER, USERS, CONTENT, POOL_ROWS = range(5)
# rows of the queues, and of the steps in flight
RUNNING, RESUMED, QUEUES = range(3)
REQUEST, TOKENS, HISTORY, STEP_ROWS = range(4)
# rows of the counters; the first two are the lengths of the queues
(_, _, ARRIVED, ADMITTED, FREE, FREE_HEAD, FREE_TAIL, PREEMPTIONS, HIT_TOKENS, STEPS, PREFILL_STEPS) = range(11)
PEAK_RUNNING, PEAK_BLOCKS, LATE_FIRST, LATE_TOKEN, LATE_LAST, COUNTERS = range(11, 17)
# limits, as numbers
BUDGET, MAX_RUNNING, BLOCK_TOKENS, DEPTH, CACHES, RESERVES, ALLOWED, LIMITS = range(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """What happened to each request, and what the engine did.

    Attributes:
        first_token_s: (n,) time of the first token; NaN where the simulation ended before.
        last_token_s: (n,) time of the last token; NaN where the simulation ended before.
        preemptions: preempted requests, counted each time.
        hit_tokens: prompt tokens found in the prefix cache.
        steps: iterations.
        prefill_steps: iterations with a prefill chunk.
        peak_running: largest number of running requests.
        peak_blocks: largest number of blocks in use.
        aborted: whether more requests missed a target than allowed.
    """

    first_token_s: FloatArray
    last_token_s: FloatArray
    preemptions: int
    hit_tokens: int
    steps: int
    prefill_steps: int
    peak_running: int
    peak_blocks: int
    aborted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTargets:
    """Targets whose misses end a simulation early; ``inf`` for none.

    Attributes:
        ttft_s: time to first token.
        tpot_s: time per output token after the first.
        latency_s: time to the last token.
        allowed_misses: misses of one target that still meet it.
    """

    ttft_s: float = np.inf
    tpot_s: float = np.inf
    latency_s: float = np.inf
    allowed_misses: int = np.iinfo(np.int64).max


def simulate(
    requests: EngineRequests, limits: EngineLimits, times: StepTimes, targets: LatencyTargets | None = None
) -> EngineRun:
    """Simulate one engine on its requests.

    A step is scheduled when the step before the last one ends, as vLLM does while the last one runs. A simulation ends
    early once more requests miss one target than its percentile allows, which is exact.

    Args:
        requests: arrivals, tokens and block contents.
        limits: arguments of the engine.
        times: duration of a step.
        targets: latency targets for an early end.
    """
    count, goal = len(requests), targets or LatencyTargets()
    counters = np.zeros(COUNTERS, dtype=np.int64)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    depth = 2 if limits.async_scheduling else 1
    state = _request_state(requests)
    _run(
        requests.arrival_s,
        state,
        np.full(int(state[FIRST_BLOCK, -1]), NONE, dtype=np.int64),
        _empty_pool(limits.num_blocks, counters),
        requests.content,
        np.full(requests.contents, NONE, dtype=np.int64),
        np.zeros((QUEUES, max(count, limits.max_num_seqs) + 1), dtype=np.int64),
        np.zeros((STEP_ROWS, depth, limits.max_num_seqs + 1), dtype=np.int64),
        _limit_numbers(limits, requests.block_tokens, depth, goal.allowed_misses),
        np.array([goal.ttft_s, goal.tpot_s, goal.latency_s]),
        times.dense,
        times.sequence,
        times.axes,
        times.axis_lengths,
        times.attention,
        times.scale,
        times.overhead,
        counters,
        first,
        last,
    )
    return EngineRun(
        first_token_s=first,
        last_token_s=last,
        preemptions=int(counters[PREEMPTIONS]),
        hit_tokens=int(counters[HIT_TOKENS]),
        steps=int(counters[STEPS]),
        prefill_steps=int(counters[PREFILL_STEPS]),
        peak_running=int(counters[PEAK_RUNNING]),
        peak_blocks=int(counters[PEAK_BLOCKS]),
        aborted=int(counters[[LATE_FIRST, LATE_TOKEN, LATE_LAST]].max()) > goal.allowed_misses,
    )


def _request_state(requests: EngineRequests) -> CountArray:
    """Return the state of requests before they arrive; a last column holds where all blocks end."""
    state = np.zeros((REQUEST_ROWS, len(requests) + 1), dtype=np.int64)
    state[INPUT, :-1], state[OUTPUT, :-1] = requests.input_tokens, requests.output_tokens
    most = -(-(state[INPUT] + state[OUTPUT]) // requests.block_tokens)
    state[FIRST_BLOCK, 1:] = np.cumsum(most)[:-1]
    state[FIRST_CONTENT] = requests.first_content
    return state


def _empty_pool(blocks: int, counters: CountArray) -> CountArray:
    """Return a pool whose blocks are all free."""
    pool = np.zeros((POOL_ROWS, blocks), dtype=np.int64)
    pool[BEFORE], pool[AFTER], pool[CONTENT] = np.arange(-1, blocks - 1), np.arange(1, blocks + 1), NONE
    pool[AFTER, -1] = NONE
    counters[FREE], counters[FREE_TAIL] = blocks, blocks - 1
    return pool


def _limit_numbers(limits: EngineLimits, block_tokens: int, depth: int, allowed: int) -> CountArray:
    numbers = np.zeros(LIMITS, dtype=np.int64)
    numbers[BUDGET], numbers[MAX_RUNNING] = limits.max_num_batched_tokens, limits.max_num_seqs
    numbers[BLOCK_TOKENS], numbers[DEPTH], numbers[ALLOWED] = block_tokens, depth, allowed
    numbers[CACHES], numbers[RESERVES] = limits.prefix_cache, limits.reserve_full_isl
    return numbers


@compiled
def _take(pool: CountArray, by_content: CountArray, counters: CountArray) -> int:
    """Take the block that was freed longest ago, and forget its content."""
    block = counters[FREE_HEAD]
    head = pool[AFTER, block]
    counters[FREE_HEAD] = head
    if head == NONE:
        counters[FREE_TAIL] = NONE
    else:
        pool[BEFORE, head] = NONE
    counters[FREE] -= 1
    if pool[CONTENT, block] != NONE:
        by_content[pool[CONTENT, block]] = NONE
        pool[CONTENT, block] = NONE
    pool[USERS, block] = 1
    return int(block)


@compiled
def _touch(block: int, pool: CountArray, counters: CountArray) -> None:
    """Use a cached block once more; an idle one leaves the free list."""
    if pool[USERS, block] == 0:
        before, after = pool[BEFORE, block], pool[AFTER, block]
        if before == NONE:
            counters[FREE_HEAD] = after
        else:
            pool[AFTER, before] = after
        if after == NONE:
            counters[FREE_TAIL] = before
        else:
            pool[BEFORE, after] = before
        counters[FREE] -= 1
    pool[USERS, block] += 1


@compiled
def _release(request: int, state: CountArray, table: CountArray, pool: CountArray, counters: CountArray) -> None:
    """Free the blocks of a request, the last one first, so that prefixes live longest."""
    for index in range(state[HAVE, request] - 1, -1, -1):
        block = table[state[FIRST_BLOCK, request] + index]
        pool[USERS, block] -= 1
        if pool[USERS, block] == 0:
            tail = counters[FREE_TAIL]
            pool[BEFORE, block], pool[AFTER, block] = tail, NONE
            if tail == NONE:
                counters[FREE_HEAD] = block
            else:
                pool[AFTER, tail] = block
            counters[FREE_TAIL] = block
            counters[FREE] += 1
    state[HAVE, request] = 0


@compiled
def _compute(
    position: int,
    stop: int,
    fill: int,
    budget: int,
    slot: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    counters: CountArray,
) -> tuple[int, int, int]:
    """Schedule running requests from ``position`` up to one that lacks blocks; return position, requests, budget."""
    size, caches = limits[BLOCK_TOKENS], limits[CACHES]
    while position < stop and budget > 0:
        request = queues[RUNNING, position]
        if state[GENERATED, request] < state[OUTPUT, request]:
            history, total = state[COMPUTED, request], state[INPUT, request] + state[GENERATED, request]
            count = min(total - history, budget)
            end = history + count
            have = state[HAVE, request]
            if end > have * size:
                needed = (end + size - 1) // size
                if needed - have > counters[FREE]:
                    break
                for index in range(have, needed):
                    table[state[FIRST_BLOCK, request] + index] = _take(pool, by_content, counters)
                state[HAVE, request] = needed
            state[COMPUTED, request] = end
            known = min(end, state[INPUT, request] + state[SEEN, request])
            while caches and (state[ENTERED, request] + 1) * size <= known:
                item = content[state[FIRST_CONTENT, request] + state[ENTERED, request]]
                # the first block of a content answers for it
                if by_content[item] == NONE:
                    block = table[state[FIRST_BLOCK, request] + state[ENTERED, request]]
                    by_content[item] = block
                    pool[CONTENT, block] = item
                state[ENTERED, request] += 1
            steps[REQUEST, slot, fill], steps[HISTORY, slot, fill] = request, history
            # a negative count marks a chunk that gives no token
            steps[TOKENS, slot, fill] = -count
            if end == total:
                state[GENERATED, request] += 1
                steps[TOKENS, slot, fill] = count
            fill += 1
            budget -= count
        position += 1
    return position, fill, budget


@compiled
def _admit(
    budget: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    counters: CountArray,
) -> bool:
    """Admit the first waiting request if it has room, with the blocks that the cache holds of it."""
    size = limits[BLOCK_TOKENS]
    if counters[RESUMED] > 0:
        request = queues[RESUMED, counters[RESUMED] - 1]
    elif counters[ADMITTED] < counters[ARRIVED]:
        request = counters[ADMITTED]
    else:
        return False
    total = state[INPUT, request] + state[GENERATED, request]
    first, hits, idle = state[FIRST_CONTENT, request], 0, 0
    if limits[CACHES]:
        most = min((total - 1) // size, state[FIRST_CONTENT, request + 1] - first)
        while hits < most and by_content[content[first + hits]] != NONE:
            if pool[USERS, by_content[content[first + hits]]] == 0:
                idle += 1
            hits += 1
    end = total if limits[RESERVES] else hits * size + min(total - hits * size, budget)
    if (end + size - 1) // size - hits + idle > counters[FREE]:
        return False
    if counters[RESUMED] > 0:
        counters[RESUMED] -= 1
    else:
        counters[ADMITTED] += 1
    for index in range(hits):
        block = by_content[content[first + index]]
        _touch(block, pool, counters)
        table[state[FIRST_BLOCK, request] + index] = block
    state[HAVE, request] = state[ENTERED, request] = hits
    state[COMPUTED, request] = hits * size
    counters[HIT_TOKENS] += hits * size
    queues[RUNNING, counters[RUNNING]] = request
    counters[RUNNING] += 1
    return True


@compiled
def _schedule(
    slot: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    counters: CountArray,
) -> int:
    """Choose the tokens of the next step; return the number of its requests."""
    budget, fill, position, preempted = limits[BUDGET], 0, 0, False
    while True:
        position, fill, budget = _compute(
            position, counters[RUNNING], fill, budget, slot, limits, state, table, pool, content, by_content, queues,
            steps, counters,
        )  # fmt: skip
        if position >= counters[RUNNING] or budget <= 0:
            break
        counters[RUNNING] -= 1
        victim = queues[RUNNING, counters[RUNNING]]
        # the last one that was admitted: it stands last where this step has scheduled it
        if fill and steps[REQUEST, slot, fill - 1] == victim:
            fill -= 1
            budget += abs(steps[TOKENS, slot, fill])
            if steps[TOKENS, slot, fill] > 0:
                state[GENERATED, victim] -= 1
        _release(victim, state, table, pool, counters)
        state[COMPUTED, victim] = state[ENTERED, victim] = 0
        queues[RESUMED, counters[RESUMED]] = victim
        counters[RESUMED] += 1
        counters[PREEMPTIONS] += 1
        preempted = True
    while not preempted and budget > 0 and counters[RUNNING] < limits[MAX_RUNNING]:
        if not _admit(budget, limits, state, table, pool, content, by_content, queues, counters):
            break
        _, fill, budget = _compute(
            counters[RUNNING] - 1, counters[RUNNING], fill, budget, slot, limits, state, table, pool, content,
            by_content, queues, steps, counters,
        )  # fmt: skip
    counters[PEAK_RUNNING] = max(counters[PEAK_RUNNING], counters[RUNNING])
    counters[PEAK_BLOCKS] = max(counters[PEAK_BLOCKS], pool.shape[1] - counters[FREE])
    return fill


@compiled
def _attention(point: FloatArray, axes: FloatArray, lengths: CountArray, values: FloatArray) -> float:
    """Return the attention time of a step by multilinear interpolation; the edge cells continue outside the table."""
    low0, low1, low2, low3 = 0, 0, 0, 0
    while low0 < lengths[0] - 2 and axes[0, low0 + 1] <= point[0]:
        low0 += 1
    while low1 < lengths[1] - 2 and axes[1, low1 + 1] <= point[1]:
        low1 += 1
    while low2 < lengths[2] - 2 and axes[2, low2 + 1] <= point[2]:
        low2 += 1
    while low3 < lengths[3] - 2 and axes[3, low3 + 1] <= point[3]:
        low3 += 1
    weight0 = (point[0] - axes[0, low0]) / (axes[0, low0 + 1] - axes[0, low0])
    weight1 = (point[1] - axes[1, low1]) / (axes[1, low1 + 1] - axes[1, low1])
    weight2 = (point[2] - axes[2, low2]) / (axes[2, low2 + 1] - axes[2, low2])
    weight3 = (point[3] - axes[3, low3]) / (axes[3, low3 + 1] - axes[3, low3])
    result = 0.0
    for bit0 in range(2):
        part0 = weight0 if bit0 else 1 - weight0
        for bit1 in range(2):
            part1 = part0 * (weight1 if bit1 else 1 - weight1)
            if part1 != 0.0:
                low = values[low0 + bit0, low1 + bit1, low2]
                high = values[low0 + bit0, low1 + bit1, low2 + 1]
                at_low = (1 - weight3) * low[low3] + weight3 * low[low3 + 1]
                at_high = (1 - weight3) * high[low3] + weight3 * high[low3 + 1]
                result += part1 * ((1 - weight2) * at_low + weight2 * at_high)
    return result


@compiled
def _sum_tokens(
    count: int, slot: int, state: CountArray, steps: CountArray, point: FloatArray, counters: CountArray
) -> int:
    """Set the attention point of a step (chunk, history, decodes, context) and return its tokens."""
    total, decodes, contexts, chunk, work = 0, 0, 0, 0, 0.0
    for index in range(count):
        tokens, history = abs(steps[TOKENS, slot, index]), steps[HISTORY, slot, index]
        total += tokens
        if tokens == 1 and history >= state[INPUT, steps[REQUEST, slot, index]]:
            decodes += 1
            contexts += history + 1
        else:
            chunk += tokens
            work += tokens * (history + tokens / 2)
    point[0], point[1], point[2], point[3] = chunk, 0.0, decodes, contexts / decodes if decodes else 0.0
    if chunk > 0:
        counters[PREFILL_STEPS] += 1
        # several chunks are one of equal work
        point[1] = work / chunk - chunk / 2
        if point[1] < 0:
            point[0], point[1] = np.sqrt(2 * work), 0.0
    return total


@compiled
def _deliver(
    count: int,
    slot: int,
    end: float,
    arrivals: FloatArray,
    state: CountArray,
    steps: CountArray,
    goals: FloatArray,
    counters: CountArray,
    first: FloatArray,
) -> int:
    """Deliver the tokens of a step; return how many requests have their last one, listed in the row of histories."""
    finished = 0
    for index in range(count):
        request = steps[REQUEST, slot, index]
        if steps[TOKENS, slot, index] > 0:
            state[SEEN, request] += 1
            if state[SEEN, request] == 1:
                first[request] = end
                if end - arrivals[request] > goals[0]:
                    counters[LATE_FIRST] += 1
            if state[SEEN, request] == state[OUTPUT, request]:
                steps[HISTORY, slot, finished] = request
                finished += 1
    return finished


@compiled
def _remove(request: int, queues: CountArray, counters: CountArray) -> None:
    """Take a finished request out of the running ones, or out of the queue if it was preempted meanwhile."""
    for row in range(2):
        for index in range(counters[row]):
            if queues[row, index] == request:
                for behind in range(index, counters[row] - 1):
                    queues[row, behind] = queues[row, behind + 1]
                counters[row] -= 1
                return


@compiled
def _finish(
    ended: CountArray,
    end: float,
    arrivals: FloatArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    queues: CountArray,
    goals: FloatArray,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> None:
    """Release the requests that are complete, in order of request, as the reference does."""
    for request in np.sort(ended):
        last[request] = end
        tokens = state[OUTPUT, request]
        if tokens > 1 and (end - first[request]) / (tokens - 1) > goals[1]:
            counters[LATE_TOKEN] += 1
        if end - arrivals[request] > goals[2]:
            counters[LATE_LAST] += 1
        _remove(request, queues, counters)
        _release(request, state, table, pool, counters)


@compiled
def _run(
    arrivals: FloatArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    limits: CountArray,
    goals: FloatArray,
    dense: FloatArray,
    sequence: FloatArray,
    axes: FloatArray,
    lengths: CountArray,
    attention: FloatArray,
    scale: float,
    overhead: float,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> None:
    """Run the engine until every request is answered, or a target is missed too often."""
    depth = limits[DEPTH]
    counts, ends, point = np.zeros(depth, dtype=np.int64), np.zeros(depth), np.zeros(4)
    now, busy_until, oldest, in_flight = 0.0, 0.0, 0, 0
    while True:
        while in_flight < depth:
            while counters[ARRIVED] < arrivals.size and arrivals[counters[ARRIVED]] <= now:
                counters[ARRIVED] += 1
            slot = (oldest + in_flight) % depth
            count = _schedule(slot, limits, state, table, pool, content, by_content, queues, steps, counters)
            if count == 0:
                break
            total = _sum_tokens(count, slot, state, steps, point, counters)
            fixed = dense[min(total, dense.size - 1)] + sequence[min(count, sequence.size - 1)]
            duration = scale * (fixed + _attention(point, axes, lengths, attention)) + overhead
            busy_until = max(busy_until, now) + duration
            counts[slot], ends[slot] = count, busy_until
            counters[STEPS] += 1
            in_flight += 1
        if in_flight:
            now = ends[oldest]
            ended = _deliver(counts[oldest], oldest, now, arrivals, state, steps, goals, counters, first)
            if ended:
                _finish(
                    steps[HISTORY, oldest, :ended],
                    now,
                    arrivals,
                    state,
                    table,
                    pool,
                    queues,
                    goals,
                    counters,
                    first,
                    last,
                )
            oldest = (oldest + 1) % depth
            in_flight -= 1
            if max(counters[LATE_FIRST], counters[LATE_TOKEN], counters[LATE_LAST]) > limits[ALLOWED]:
                return
        elif counters[ARRIVED] < arrivals.size:
            now = max(now, arrivals[counters[ARRIVED]])
        else:
            return
