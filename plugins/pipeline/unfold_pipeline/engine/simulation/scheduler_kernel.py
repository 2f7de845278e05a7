"""The compiled scheduler of vLLM V1: token budget, chunked prefill, prefix cache, asynchronous scheduling.

The rules are those of ``scheduler_reference``, which a property test compares with this kernel. A step costs about a
microsecond. The rows of a few arrays, named below, hold the state: compiled code counts the references of every array
of a tuple at every call, which would cost more than the step itself. The functions therefore repeat the list of arrays
instead of sharing one argument. Requests belong to one engine each, so engines
share their state; block pools, queues and clocks are per engine.

Layers with a sliding window have blocks of their own: groups of as many layers share the pool, and those with a window
free what lies before it. Models without such layers have one group, and skip all of this.
"""

from __future__ import annotations

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfoldkit.jit import compiled

NONE = -1
# rows of the state of requests: tokens, blocks, and where their blocks and contents begin
INPUT, OUTPUT, COMPUTED, GENERATED, SEEN, ENTERED, HAVE, FIRST_BLOCK, FIRST_CONTENT, SKIPPED, REQUEST_ROWS = range(11)
# rows of the block pool: the free list, the users of a block, and the content of a full one
BEFORE, AFTER, USERS, CONTENT, POOL_ROWS = range(5)
# rows of the queues, and of the steps in flight
RUNNING, RESUMED, ASSIGNED, QUEUES = range(4)
REQUEST, TOKENS, HISTORY, STEP_ROWS = range(4)
# rows of the counters; the first three are the lengths of the queues
(_, _, _, ARRIVED, ADMITTED, FREE, FREE_HEAD, FREE_TAIL, PREEMPTIONS, HIT_TOKENS, STEPS, PREFILL_STEPS) = range(12)
PEAK_RUNNING, PEAK_BLOCKS, WAITING_TOKENS, OLDEST, IN_FLIGHT, STALLED, FINISHED, COUNTERS = range(12, 20)
# requests that miss a target, and how many may
LATE_FIRST, LATE_TOKEN, LATE_LAST, MISSES = range(4)
# limits, as numbers
(BUDGET, MAX_RUNNING, BLOCK_TOKENS, DEPTH, CACHES, RESERVES, CLOSED, ENDS_AT_PREEMPTION, RECEIVES) = range(9)
# layers with a window: groups of blocks, the window of the cache, blocks that a group may hold, the window of attention
GROUPS, FULL_GROUPS, WINDOW, MOST_BLOCKS, SPAN, LIMITS = range(9, 15)
# sums of a step, then the same for layers with a window
CHUNK, WORK, DECODES, CONTEXTS, WINDOW_POINT, POINTS = 0, 1, 2, 3, 4, 8
# factors on the duration of a step
SCALE, OVERHEAD, WINDOW_SHARE, FACTORS = range(4)
# rows of the clock of an engine
NOW, BUSY_UNTIL, CLOCKS = range(3)
# what a router does
ROUND_ROBIN, LEAST_TOKENS = range(2)


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
def _give_back(block: int, pool: CountArray, counters: CountArray) -> None:
    """Put a block that a request no longer uses at the end of the free list, unless another one uses it."""
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


@compiled
def _release(
    request: int, limits: CountArray, state: CountArray, table: CountArray, pool: CountArray, counters: CountArray
) -> None:
    """Free the blocks of a request, the last one first, so that prefixes live longest.

    Without a prefix cache, any block is as good as another, so that they are counted alone.
    """
    if not limits[CACHES]:
        counters[FREE] += state[HAVE, request]
        state[HAVE, request] = 0
        return
    for index in range(state[HAVE, request] - 1, -1, -1):
        _give_back(table[state[FIRST_BLOCK, request] + index], pool, counters)
    state[HAVE, request] = 0


@compiled
def _find_place(request: int, group: int, index: int, limits: CountArray, state: CountArray) -> int:
    """Return where the block of a group stands in the table; groups with a window reuse the places of freed blocks."""
    blocks = (state[INPUT, request] + state[OUTPUT, request] + limits[BLOCK_TOKENS] - 1) // limits[BLOCK_TOKENS]
    full = limits[FULL_GROUPS]
    if group < full:
        return int(state[FIRST_BLOCK, request] + group * blocks + index)
    ring = min(blocks, limits[MOST_BLOCKS])
    return int(state[FIRST_BLOCK, request] + full * blocks + (group - full) * ring + index % ring)


@compiled
def _release_groups(
    request: int, limits: CountArray, state: CountArray, table: CountArray, pool: CountArray, counters: CountArray
) -> None:
    """Free the blocks of all groups of a request, those of each group from the last one on."""
    have, skipped = state[HAVE, request], state[SKIPPED, request]
    if not limits[CACHES]:
        counters[FREE] += limits[GROUPS] * have - (limits[GROUPS] - limits[FULL_GROUPS]) * skipped
        state[HAVE, request] = state[SKIPPED, request] = 0
        return
    for group in range(limits[GROUPS]):
        least = skipped if group >= limits[FULL_GROUPS] else 0
        for index in range(have - 1, least - 1, -1):
            _give_back(table[_find_place(request, group, index, limits, state)], pool, counters)
    state[HAVE, request] = state[SKIPPED, request] = 0


@compiled
def _skip_blocks(
    request: int, limits: CountArray, state: CountArray, table: CountArray, pool: CountArray, counters: CountArray
) -> None:
    """Free the blocks that lie before the window of the next token."""
    begin = max(0, state[COMPUTED, request] - limits[WINDOW] + 1) // limits[BLOCK_TOKENS]
    skipped = state[SKIPPED, request]
    if begin > skipped and not limits[CACHES]:
        counters[FREE] += (limits[GROUPS] - limits[FULL_GROUPS]) * (begin - skipped)
        state[SKIPPED, request] = begin
    elif begin > skipped:
        for group in range(limits[FULL_GROUPS], limits[GROUPS]):
            for index in range(begin - 1, skipped - 1, -1):
                _give_back(table[_find_place(request, group, index, limits, state)], pool, counters)
        state[SKIPPED, request] = begin


@compiled
def _take_groups(
    request: int,
    needed: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    by_content: CountArray,
    counters: CountArray,
) -> None:
    """Take the blocks that a request lacks, group after group."""
    for group in range(limits[GROUPS]):
        for index in range(state[HAVE, request], needed):
            table[_find_place(request, group, index, limits, state)] = _take(pool, by_content, counters)


@compiled
def _enter_groups(
    request: int,
    known: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
) -> None:
    """Enter the full blocks of all groups of a request that hold known tokens."""
    groups = limits[GROUPS]
    while (state[ENTERED, request] + 1) * limits[BLOCK_TOKENS] <= known:
        index = state[ENTERED, request]
        item = content[state[FIRST_CONTENT, request] + index] * groups
        for group in range(groups):
            is_held = group < limits[FULL_GROUPS] or index >= state[SKIPPED, request]
            if is_held and by_content[item + group] == NONE:
                block = table[_find_place(request, group, index, limits, state)]
                by_content[item + group] = block
                pool[CONTENT, block] = item + group
        state[ENTERED, request] += 1


@compiled
def _is_cached(item: int, begin: int, end: int, by_content: CountArray) -> bool:
    """Return whether the cache holds a block of each group from ``begin`` to ``end``."""
    held = begin
    while held < end and by_content[item + held] != NONE:
        held += 1
    return held == end


@compiled
def _count_group_hits(
    request: int, most: int, limits: CountArray, state: CountArray, content: CountArray, by_content: CountArray
) -> int:
    """Return the leading blocks that the cache holds: all of those without a window, the last window of the others."""
    first, groups, full = state[FIRST_CONTENT, request], limits[GROUPS], limits[FULL_GROUPS]
    hits = most if full == 0 else 0
    while full and hits < most and _is_cached(content[first + hits] * groups, 0, full, by_content):
        hits += 1
    if full == groups:
        return hits
    needed = (limits[WINDOW] - 1 + limits[BLOCK_TOKENS] - 1) // limits[BLOCK_TOKENS]
    run = 0
    for index in range(hits - 1, -1, -1):
        if _is_cached(content[first + index] * groups, full, groups, by_content):
            run += 1
            if run >= needed:
                return index + run
        else:
            run = 0
    return run


@compiled
def _admit_groups(
    request: int,
    budget: int,
    limits: CountArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    counters: CountArray,
) -> bool:
    """Give a waiting request the cached blocks of all groups, if its others have room; return whether they have."""
    size, groups, full = limits[BLOCK_TOKENS], limits[GROUPS], limits[FULL_GROUPS]
    total, first, hits, idle = state[INPUT, request] + state[GENERATED, request], state[FIRST_CONTENT, request], 0, 0
    if limits[CACHES]:
        most = min((total - 1) // size, state[FIRST_CONTENT, request + 1] - first)
        hits = _count_group_hits(request, most, limits, state, content, by_content)
    begin = max(0, hits * size - limits[WINDOW] + 1) // size
    for group in range(groups):
        for index in range(begin if group >= full else 0, hits):
            if pool[USERS, by_content[content[first + index] * groups + group]] == 0:
                idle += 1
    if limits[RESERVES]:
        blocks = (total + size - 1) // size
        windowed = max(0, min(blocks, limits[MOST_BLOCKS]) - hits)
        if full * (blocks - hits) + (groups - full) * windowed + idle > counters[FREE]:
            return False
    end = hits * size + min(total - hits * size, budget)
    if groups * ((end + size - 1) // size - hits) + idle > counters[FREE]:
        return False
    state[SKIPPED, request] = begin
    for group in range(groups):
        for index in range(begin if group >= full else 0, hits):
            block = by_content[content[first + index] * groups + group]
            _touch(block, pool, counters)
            table[_find_place(request, group, index, limits, state)] = block
    state[HAVE, request] = state[ENTERED, request] = hits
    state[COMPUTED, request] = hits * size
    counters[HIT_TOKENS] += hits * size
    return True


@compiled
def _window_work(count: int, history: int, span: int) -> float:
    """Return the pairs of tokens of a chunk in layers with a window."""
    if history + count <= span:
        return float(count * (history + count / 2))
    rising = max(0, span - history)
    return float(rising * (history + rising / 2) + (count - rising) * span)


@compiled
def _compute(  # noqa: C901, PLR0912, PLR0915 - one function, as calls cost more than what they do
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
    point: FloatArray,
    counters: CountArray,
) -> tuple[int, int, int]:
    """Schedule running requests from ``position`` up to one that lacks blocks; return position, requests, budget.

    The sums of the step are added to ``point``: prefill tokens, prefill work, decodes and their contexts.
    """
    size, caches = limits[BLOCK_TOKENS], limits[CACHES]
    groups, window = limits[GROUPS], limits[WINDOW]
    chunk, work, decodes, contexts = 0, 0.0, 0, 0
    while position < stop and budget > 0:
        request = queues[RUNNING, position]
        if state[GENERATED, request] < state[OUTPUT, request]:
            history, total = state[COMPUTED, request], state[INPUT, request] + state[GENERATED, request]
            count = min(total - history, budget)
            end = history + count
            have = state[HAVE, request]
            if window > 0 and history >= window:
                _skip_blocks(request, limits, state, table, pool, counters)
            if end > have * size:
                needed = (end + size - 1) // size
                if (needed - have) * groups > counters[FREE]:
                    break
                if not caches:
                    counters[FREE] -= (needed - have) * groups
                elif window > 0:
                    _take_groups(request, needed, limits, state, table, pool, by_content, counters)
                else:
                    for index in range(have, needed):
                        table[state[FIRST_BLOCK, request] + index] = _take(pool, by_content, counters)
                state[HAVE, request] = needed
            state[COMPUTED, request] = end
            known = min(end, state[INPUT, request] + state[SEEN, request])
            if caches and window > 0:
                _enter_groups(request, known, limits, state, table, pool, content, by_content)
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
            # the last token of a received prompt is computed like a decode
            if count == 1 and history >= state[INPUT, request] - limits[RECEIVES]:
                decodes += 1
                contexts += end
            else:
                chunk += count
                work += count * (history + count / 2)
            fill += 1
            budget -= count
        position += 1
    point[0] += chunk
    point[1] += work
    point[2] += decodes
    point[3] += contexts
    return position, fill, budget


@compiled
def _start(request: int, state: CountArray, queues: CountArray, counters: CountArray) -> None:
    """Move the first waiting request to the running ones."""
    if counters[RESUMED] > 0:
        counters[RESUMED] -= 1
    else:
        counters[ADMITTED] += 1
        counters[WAITING_TOKENS] -= state[INPUT, request]
    queues[RUNNING, counters[RUNNING]] = request
    counters[RUNNING] += 1


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
    """Admit the first waiting request if it has room, with the blocks that the cache holds of it.

    A received prompt needs all its blocks at once; one that was preempted is computed here.
    """
    size = limits[BLOCK_TOKENS]
    receives = limits[RECEIVES] == 1 and counters[RESUMED] == 0
    if counters[RESUMED] > 0:
        request = queues[RESUMED, counters[RESUMED] - 1]
    elif counters[ADMITTED] < counters[ARRIVED]:
        request = queues[ASSIGNED, counters[ADMITTED]]
    else:
        return False
    if limits[WINDOW] > 0:
        if not _admit_groups(request, budget, limits, state, table, pool, content, by_content, counters):
            return False
        _start(request, state, queues, counters)
        return True
    total = state[INPUT, request] + state[GENERATED, request]
    first, hits, idle = state[FIRST_CONTENT, request], 0, 0
    if limits[CACHES]:
        most = min((total - 1) // size, state[FIRST_CONTENT, request + 1] - first)
        while hits < most and by_content[content[first + hits]] != NONE:
            if pool[USERS, by_content[content[first + hits]]] == 0:
                idle += 1
            hits += 1
    end = total if limits[RESERVES] or receives else hits * size + min(total - hits * size, budget)
    if (end + size - 1) // size - hits + idle > counters[FREE]:
        return False
    _start(request, state, queues, counters)
    for index in range(hits):
        block = by_content[content[first + index]]
        _touch(block, pool, counters)
        table[state[FIRST_BLOCK, request] + index] = block
    state[HAVE, request] = state[ENTERED, request] = hits
    state[COMPUTED, request] = total - 1 if receives else hits * size
    counters[HIT_TOKENS] += hits * size
    return True


@compiled
def _merge_chunks(point: FloatArray, counters: CountArray) -> None:
    """Turn the sums of a step into its attention point: chunk, history, decodes, mean context."""
    if point[2] > 0:
        point[3] /= point[2]
    chunk, work = point[0], point[1]
    point[1] = 0.0
    if chunk > 0:
        counters[PREFILL_STEPS] += 1
        # several chunks are one of equal work
        point[1] = work / chunk - chunk / 2
        if point[1] < 0:
            point[0], point[1] = np.sqrt(2 * work), 0.0


@compiled
def _sum_windows(
    slot: int, fill: int, limits: CountArray, state: CountArray, steps: CountArray, point: FloatArray
) -> None:
    """Set the attention point of the layers with a window, from the sums and the requests of a step."""
    span, work, contexts = limits[SPAN], 0.0, 0
    for index in range(fill):
        count, history = abs(steps[TOKENS, slot, index]), steps[HISTORY, slot, index]
        if count == 1 and history >= state[INPUT, steps[REQUEST, slot, index]] - limits[RECEIVES]:
            contexts += min(history + 1, span)
        else:
            work += _window_work(count, history, span)
    chunk, past = point[CHUNK], 0.0
    if chunk > 0:
        past = work / chunk - chunk / 2
        if past < 0:
            chunk, past = np.sqrt(2 * work), 0.0
    point[WINDOW_POINT + CHUNK], point[WINDOW_POINT + WORK] = chunk, past
    point[WINDOW_POINT + DECODES] = point[DECODES]
    point[WINDOW_POINT + CONTEXTS] = contexts / max(point[DECODES], 1.0)


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
    point: FloatArray,
    counters: CountArray,
) -> tuple[int, int]:
    """Choose the tokens of the next step; return its requests and its tokens, and set its attention point."""
    budget, fill, position, preempted = limits[BUDGET], 0, 0, False
    point[0] = point[1] = point[2] = point[3] = 0.0
    while True:
        position, fill, budget = _compute(
            position, counters[RUNNING], fill, budget, slot, limits, state, table, pool, content, by_content, queues,
            steps, point, counters,
        )  # fmt: skip
        if position >= counters[RUNNING] or budget <= 0:
            break
        counters[RUNNING] -= 1
        victim = queues[RUNNING, counters[RUNNING]]
        # the last one that was admitted: it stands last where this step has scheduled it
        if fill and steps[REQUEST, slot, fill - 1] == victim:
            fill -= 1
            count, history = abs(steps[TOKENS, slot, fill]), steps[HISTORY, slot, fill]
            budget += count
            if count == 1 and history >= state[INPUT, victim] - limits[RECEIVES]:
                point[2] -= 1
                point[3] -= history + 1
            else:
                point[0] -= count
                point[1] -= count * (history + count / 2)
            if steps[TOKENS, slot, fill] > 0:
                state[GENERATED, victim] -= 1
        if limits[WINDOW] > 0:
            _release_groups(victim, limits, state, table, pool, counters)
        else:
            _release(victim, limits, state, table, pool, counters)
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
            by_content, queues, steps, point, counters,
        )  # fmt: skip
    counters[PEAK_RUNNING] = max(counters[PEAK_RUNNING], counters[RUNNING])
    counters[PEAK_BLOCKS] = max(counters[PEAK_BLOCKS], pool.shape[1] - counters[FREE])
    if limits[SPAN] > 0:
        _sum_windows(slot, fill, limits, state, steps, point)
    _merge_chunks(point, counters)
    return fill, limits[BUDGET] - budget


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
def _deliver(
    count: int,
    slot: int,
    end: float,
    arrivals: FloatArray,
    state: CountArray,
    steps: CountArray,
    goals: FloatArray,
    misses: CountArray,
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
                    misses[LATE_FIRST] += 1
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
def _assign(request: int, state: CountArray, queues: CountArray, counters: CountArray) -> None:
    """Put a request into the queue of an engine, at its arrival."""
    queues[ASSIGNED, counters[ASSIGNED]] = request
    counters[ASSIGNED] += 1
    counters[WAITING_TOKENS] += state[INPUT, request]


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
    misses: CountArray,
    limits: CountArray,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> None:
    """Release the requests that are complete, in order of request, as the reference does."""
    for request in np.sort(ended):
        last[request] = end
        tokens = state[OUTPUT, request]
        if tokens > 1 and (end - first[request]) / (tokens - 1) > goals[1]:
            misses[LATE_TOKEN] += 1
        if end - arrivals[request] > goals[2]:
            misses[LATE_LAST] += 1
        _remove(request, queues, counters)
        if limits[WINDOW] > 0:
            _release_groups(request, limits, state, table, pool, counters)
        else:
            _release(request, limits, state, table, pool, counters)
        counters[FINISHED] += 1
        if limits[CLOSED] and counters[ASSIGNED] < arrivals.size:
            # a client of a closed loop sends its next request when the last one is answered
            arrivals[counters[ASSIGNED]] = end
            _assign(counters[ASSIGNED], state, queues, counters)


@compiled
def _advance(  # noqa: C901 - as above
    until: float,
    arrivals: FloatArray,
    state: CountArray,
    table: CountArray,
    pool: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    fills: CountArray,
    ends: FloatArray,
    clock: FloatArray,
    limits: CountArray,
    goals: FloatArray,
    allowed: CountArray,
    misses: CountArray,
    dense: FloatArray,
    sequence: FloatArray,
    axes: FloatArray,
    lengths: CountArray,
    attention: FloatArray,
    factors: FloatArray,
    point: FloatArray,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> bool:
    """Run one engine up to a moment; return whether a target is missed too often."""
    depth = limits[DEPTH]
    while True:
        while counters[IN_FLIGHT] < depth and not counters[STALLED]:
            while (
                counters[ARRIVED] < counters[ASSIGNED] and arrivals[queues[ASSIGNED, counters[ARRIVED]]] <= clock[NOW]
            ):
                counters[ARRIVED] += 1
            slot = (counters[OLDEST] + counters[IN_FLIGHT]) % depth
            count, total = _schedule(
                slot, limits, state, table, pool, content, by_content, queues, steps, point, counters
            )  # fmt: skip
            if count == 0:
                counters[STALLED] = 1
                break
            fixed = dense[min(total, dense.size - 1)] + sequence[min(count, sequence.size - 1)]
            attending = _attention(point, axes, lengths, attention)
            if limits[SPAN] > 0:
                share = factors[WINDOW_SHARE]
                windowed = _attention(point[WINDOW_POINT:], axes, lengths, attention)
                attending = (1 - share) * attending + share * windowed
            duration = factors[0] * (fixed + attending) + factors[1]
            clock[BUSY_UNTIL] = max(clock[BUSY_UNTIL], clock[NOW]) + duration
            fills[slot], ends[slot] = count, clock[BUSY_UNTIL]
            counters[STEPS] += 1
            counters[IN_FLIGHT] += 1
        if counters[IN_FLIGHT]:
            oldest = counters[OLDEST]
            if ends[oldest] >= until:
                return False
            now = ends[oldest]
            clock[NOW] = now
            ended = _deliver(fills[oldest], oldest, now, arrivals, state, steps, goals, misses, first)
            if ended:
                _finish(
                    steps[HISTORY, oldest, :ended], now, arrivals, state, table, pool, queues, goals, misses, limits,
                    counters, first, last,
                )  # fmt: skip
            counters[OLDEST] = (oldest + 1) % depth
            counters[IN_FLIGHT] -= 1
            counters[STALLED] = 0
            is_missed = (
                misses[LATE_FIRST] > allowed[0] or misses[LATE_TOKEN] > allowed[1] or misses[LATE_LAST] > allowed[2]
            )
            if is_missed or (limits[ENDS_AT_PREEMPTION] and counters[PREEMPTIONS] > 0):
                return True
        elif counters[ARRIVED] < counters[ASSIGNED] and arrivals[queues[ASSIGNED, counters[ARRIVED]]] < until:
            clock[NOW] = max(clock[NOW], arrivals[queues[ASSIGNED, counters[ARRIVED]]])
            counters[STALLED] = 0
        else:
            return False


@compiled
def advance_engines(
    until: float,
    arrivals: FloatArray,
    state: CountArray,
    table: CountArray,
    pools: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    fills: CountArray,
    ends: FloatArray,
    clocks: FloatArray,
    limits: CountArray,
    goals: FloatArray,
    allowed: CountArray,
    misses: CountArray,
    dense: FloatArray,
    sequence: FloatArray,
    axes: FloatArray,
    lengths: CountArray,
    attention: FloatArray,
    factors: FloatArray,
    point: FloatArray,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> bool:
    """Run every engine up to a moment; return whether a target is missed too often.

    Args:
        until: Seconds; what ends then is left for later.
        arrivals: (requests,) arrival times; those of a closed loop are written.
        state: (REQUEST_ROWS, requests + 1) state of requests.
        table: Blocks of each request.
        pools: (engines, POOL_ROWS, blocks) block pools.
        content: Content of each full block.
        by_content: (engines or 1, contents x groups) cached block of each content in each group.
        queues: (engines, QUEUES, requests + 1) queues.
        steps: (engines, STEP_ROWS, depth, requests) steps in flight.
        fills: (engines, depth) requests of each step.
        ends: (engines, depth) when each step ends.
        clocks: (engines, CLOCKS) clocks.
        limits: (LIMITS,) limits of every engine.
        goals: (MISSES,) targets in seconds.
        allowed: (MISSES,) misses that still meet them.
        misses: (MISSES,) misses so far.
        dense: See :class:`StepTimes`, as for the next four.
        sequence: By requests.
        axes: Of the attention table.
        lengths: Of the axes.
        attention: The table.
        factors: (FACTORS,) scale, overhead, and the fraction of layers with a window.
        point: (POINTS,) scratch.
        counters: (engines, COUNTERS) counters.
        first: (requests,) time of the first token.
        last: (requests,) time of the last token.
    """
    for engine in range(pools.shape[0]):
        if _advance(
            until, arrivals, state, table, pools[engine], content, by_content[min(engine, by_content.shape[0] - 1)],
            queues[engine], steps[engine], fills[engine], ends[engine], clocks[engine], limits, goals, allowed, misses,
            dense, sequence, axes, lengths, attention, factors, point, counters[engine], first, last,
        ):  # fmt: skip
            return True
    return False


@compiled
def route_requests(
    begin: int,
    end: int,
    routing: int,
    active: CountArray,
    cursor: CountArray,
    arrivals: FloatArray,
    state: CountArray,
    table: CountArray,
    pools: CountArray,
    content: CountArray,
    by_content: CountArray,
    queues: CountArray,
    steps: CountArray,
    fills: CountArray,
    ends: FloatArray,
    clocks: FloatArray,
    limits: CountArray,
    goals: FloatArray,
    allowed: CountArray,
    misses: CountArray,
    dense: FloatArray,
    sequence: FloatArray,
    axes: FloatArray,
    lengths: CountArray,
    attention: FloatArray,
    factors: FloatArray,
    point: FloatArray,
    counters: CountArray,
    first: FloatArray,
    last: FloatArray,
) -> bool:
    """Route the requests from ``begin`` to ``end`` to active engines; return whether a target is missed too often.

    Round robin needs no state. Least tokens counts the KV cache in use and the prompts that wait, when a request
    arrives; ties rotate, as the lowest number would become a hot replica. ``active`` is (engines,), not 0 for engines
    that take requests; ``cursor`` holds the engine that is next.
    """
    engines, size = pools.shape[0], limits[BLOCK_TOKENS]
    for request in range(begin, end):
        if routing == LEAST_TOKENS and advance_engines(
            arrivals[request], arrivals, state, table, pools, content, by_content, queues, steps, fills, ends, clocks,
            limits, goals, allowed, misses, dense, sequence, axes, lengths, attention, factors, point, counters, first,
            last,
        ):  # fmt: skip
            return True
        choice, least = NONE, 0
        for offset in range(engines):
            engine = (cursor[0] + offset) % engines
            if not active[engine]:
                continue
            if routing == ROUND_ROBIN:
                choice = engine
                break
            used = (pools.shape[2] - counters[engine, FREE]) * size // limits[GROUPS]
            load = used + counters[engine, WAITING_TOKENS]
            if choice == NONE or load < least:
                choice, least = engine, load
        cursor[0] = (choice + 1) % engines
        _assign(request, state, queues[choice], counters[choice])
    return False
