"""Memory of an engine: weights, the engine's own use, and the blocks that are left for the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from unfold_pipeline.engine.hardware.gpu import Gpu
from unfold_pipeline.engine.hardware.model_shape import ModelShape

BLOCK_TOKENS = 16
ENGINE_BYTES = 3e9
"""What vLLM keeps for activations, CUDA graphs and its communication; measured values lie between 2 and 4 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """The KV cache of an engine.

    Attributes:
        num_blocks: blocks, at least 0.
        is_measured: whether the count was measured, not estimated from memory.
    """

    num_blocks: int
    is_measured: bool

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * BLOCK_TOKENS


def estimate_kv_cache(
    model: ModelShape, gpu: Gpu, *, tensor_parallel: int, precision: str, kv_precision: str, utilization: float
) -> KvCache:
    """Estimate the blocks of the KV cache: memory that vLLM may use, less weights and its own use."""
    left = gpu.memory_bytes * utilization - model.weight_bytes(precision) / tensor_parallel - ENGINE_BYTES
    block_bytes = BLOCK_TOKENS * model.kv_bytes_per_token(tensor_parallel, kv_precision)
    return KvCache(num_blocks=max(0, int(left // block_bytes)), is_measured=False)
