"""Prefill and decode in separate pools: the same scheduler twice, with the KV cache sent over links between them.

A prefill engine computes the prompt and one token, which is not delivered. The decode engine gets the KV cache,
computes the last token of the prompt again, and delivers the first token, as vLLM does with its NIXL connector. So the
time to first token includes the transfer and a decode step. Decode engines do not push back: a transfer may end before
there is room, and the blocks of a prefill engine are free at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray, IndexArray
from unfold_pipeline.engine.simulation.cluster import EngineRun, LatencyTargets, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes
from unfold_pipeline.engine.simulation.workload import EngineRequests
from unfoldkit.jit import compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePool:
    """Engines of one kind, which take requests in turn."""

    engines: int
    limits: EngineLimits
    times: StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransfer:
    """What sending the KV cache of each request takes.

    Attributes:
        latency_s: From the last byte until the decode engine may start, and the hand-over between the engines.
        send_s: (n,) seconds of the links of the prefill engine.
        receive_s: (n,) seconds of the links of the decode engine, at most ``send_s``.
    """

    latency_s: float
    send_s: FloatArray
    receive_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregatedRun:
    """What happened to each request in two pools.

    Attributes:
        arrival_s: (n,) arrival times.
        prefilled_s: (n,) end of the prompt on a prefill engine.
        received_s: (n,) arrival of the KV cache at a decode engine.
        first_token_s: (n,) time of the first token; NaN where the simulation ended before.
        last_token_s: (n,) time of the last token; NaN where the simulation ended before.
        prefill: The run of the prefill engines.
        decode: The run of the decode engines, in the order in which caches leave the prefill engines.
    """

    arrival_s: FloatArray
    prefilled_s: FloatArray
    received_s: FloatArray
    first_token_s: FloatArray
    last_token_s: FloatArray
    prefill: EngineRun
    decode: EngineRun

    @property
    def aborted(self) -> bool:
        """Whether more requests missed a target than allowed."""
        return self.prefill.aborted or self.decode.aborted

    @property
    def finished(self) -> int:
        """Requests that were completed."""
        return self.decode.finished


def size_transfers(
    requests: EngineRequests, *, send_bytes: float, receive_bytes: float, bytes_per_s: float, latency_s: float
) -> KvTransfer:
    """Return the transfers of whole blocks.

    Args:
        requests: Prompts.
        send_bytes: Bytes of a token that leave each GPU of a prefill engine.
        receive_bytes: Bytes of a token that reach each GPU of a decode engine.
        bytes_per_s: Bandwidth of the link of a GPU, each way.
        latency_s: Constant part of a transfer.
    """
    blocks = -(-requests.input_tokens // requests.block_tokens)
    token_s = np.asarray(blocks * (requests.block_tokens / bytes_per_s), dtype=np.float64)
    return KvTransfer(latency_s=latency_s, send_s=token_s * send_bytes, receive_s=token_s * receive_bytes)


@compiled
def _queue_on_links(ready: FloatArray, link: CountArray, occupied: FloatArray, links: int) -> FloatArray:
    """Return the end of each transfer on the link that it takes; a link serves in the order of the arrays."""
    free, ends = np.zeros(links), np.empty(ready.size)
    for index in range(ready.size):
        free[link[index]] = max(free[link[index]], ready[index]) + occupied[index]
        ends[index] = free[link[index]]
    return ends


@compiled
def _receive_on_links(sent: FloatArray, link: CountArray, occupied: FloatArray, links: int) -> FloatArray:
    """Return when each cache is complete: bytes are received while they are sent, one request after another."""
    free, ends = np.zeros(links), np.empty(sent.size)
    for index in range(sent.size):
        free[link[index]] = max(free[link[index]] + occupied[index], sent[index])
        ends[index] = free[link[index]]
    return ends


def simulate_prefill(requests: EngineRequests, pool: EnginePool, targets: LatencyTargets | None = None) -> EngineRun:
    """Simulate the prefill engines: every prompt ends with one token."""
    prompts = replace(requests, output_tokens=np.ones_like(requests.output_tokens))
    return simulate(prompts, pool.limits, pool.times, targets, engines=pool.engines)


def transfer_caches(
    prefilled_s: FloatArray, transfer: KvTransfer, prefill_engines: int, decode_engines: int
) -> tuple[IndexArray, FloatArray]:
    """Return the requests in the order in which they leave the prefill engines, and when their caches are complete.

    Each engine sends and receives one cache at a time over all its links; decode engines take caches in turn.

    Args:
        prefilled_s: (n,) end of each prompt.
        transfer: Durations.
        prefill_engines: Engines that send, in turn of arrival.
        decode_engines: Engines that receive.
    """
    by_end = np.argsort(prefilled_s, kind="stable")
    sent_s = np.empty_like(prefilled_s)
    sent_s[by_end] = _queue_on_links(
        prefilled_s[by_end], by_end % prefill_engines, transfer.send_s[by_end], prefill_engines
    )
    order = np.argsort(sent_s, kind="stable").astype(np.int32)
    turns = np.arange(order.size, dtype=np.int64) % decode_engines
    received_s = _receive_on_links(sent_s[order], turns, transfer.receive_s[order], decode_engines)
    return order, received_s + transfer.latency_s


def simulate_decode(
    requests: EngineRequests,
    prefill: EngineRun,
    pool: EnginePool,
    transfer: KvTransfer,
    prefill_engines: int,
    targets: LatencyTargets | None = None,
) -> DisaggregatedRun:
    """Simulate transfers and decode engines behind prefill engines that were simulated.

    Args:
        requests: Requests in order of arrival.
        prefill: The run of the prefill engines, to its end.
        pool: The decode engines.
        transfer: What sending a cache takes.
        prefill_engines: Prefill engines.
        targets: Targets from the arrival at the decode engine, for an early end.
    """
    order, received_s = transfer_caches(prefill.first_token_s, transfer, prefill_engines, pool.engines)
    limits = replace(pool.limits, receives_kv=True)
    decode = simulate(requests.reorder(order, received_s), limits, pool.times, targets, engines=pool.engines)
    first_s, last_s, arrived_s = (np.empty(len(requests)) for _ in range(3))
    first_s[order], last_s[order], arrived_s[order] = decode.first_token_s, decode.last_token_s, received_s
    return DisaggregatedRun(
        arrival_s=requests.arrival_s,
        prefilled_s=prefill.first_token_s,
        received_s=arrived_s,
        first_token_s=first_s,
        last_token_s=last_s,
        prefill=prefill,
        decode=decode,
    )
