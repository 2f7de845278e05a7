"""What an engine is started with: limits of its scheduler and the size of its KV cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Arguments of an engine, with the names and defaults of vLLM V1.

    Attributes:
        num_blocks: usable blocks of the KV cache.
        max_num_batched_tokens: token budget of a step.
        max_num_seqs: requests that run at the same time.
        prefix_cache: whether full blocks are reused by content.
        reserve_full_isl: whether a request is admitted only with room for its whole prompt.
        async_scheduling: whether a step is scheduled while the one before it runs.
    """

    num_blocks: int
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    prefix_cache: bool = True
    reserve_full_isl: bool = True
    async_scheduling: bool = True
