"""What a simulated engine is given: the limits of its scheduler, and the duration of each step.

    t = scale (dense(T) + sequence(m) + attention(C, K, d, k)) + overhead

with T tokens of m requests, d of them decodes of mean context k, and prefill chunks of C tokens after a history of K.
Layers with a sliding window take their part of the attention at the pairs of tokens within it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Arguments of an engine, with the names and defaults of vLLM V1.

    Attributes:
        num_blocks: Usable blocks of the KV cache.
        max_num_batched_tokens: Token budget of a step.
        max_num_seqs: Requests that run at the same time.
        prefix_cache: Whether full blocks are reused by content.
        reserve_full_isl: Whether a request is admitted only with room for its whole prompt.
        async_scheduling: Whether a step is scheduled while the one before it runs.
        receives_kv: Whether prompts arrive computed but for their last token, as behind a pool of prefill engines.
        full_groups: Groups of layers, with blocks of their own, that keep the whole context.
        window_groups: Groups of layers that keep a window; not for engines which receive prompts.
        window: Tokens that those layers keep; 0 without such groups.
    """

    num_blocks: int
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    prefix_cache: bool = True
    reserve_full_isl: bool = True
    async_scheduling: bool = True
    receives_kv: bool = False
    full_groups: int = 1
    window_groups: int = 0
    window: int = 0

    def count_window_blocks(self, block_tokens: int) -> int:
        """Return the most blocks that a request holds in a group with a window, by which vLLM admits it."""
        return -(-(self.window - 1 + self.max_num_batched_tokens) // block_tokens) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Tables of the duration of a step, in seconds; dense, sequence and attention hold all layers.

    Attributes:
        dense: (T + 1,) time of the operators that depend on the number of tokens only.
        sequence: (m + 1,) time of the operators that run once per scheduled request (LM head, sampler).
        axes: (4, longest) values of the attention table's axes, padded: prefill tokens, history, decodes, context.
        axis_lengths: (4,) how many values each axis has.
        attention: Time by prefill tokens, history, decodes, context.
        overhead: Constant time of a step, measured.
        scale: Factor on the tables, measured.
        window: Tokens that some layers attend to; 0 if all attend to the whole context.
        window_share: Fraction of the layers that do.
    """

    dense: FloatArray
    sequence: FloatArray
    axes: FloatArray
    axis_lengths: CountArray
    attention: FloatArray
    overhead: float = 0.0
    scale: float = 1.0
    window: int = 0
    window_share: float = 0.0

    def calibrated(self, *, overhead: float, scale: float = 1.0) -> StepTimes:
        """Return the tables with a measured overhead in seconds and a measured factor."""
        return replace(self, overhead=overhead, scale=scale)


def pad_axes(axes: list[FloatArray]) -> tuple[FloatArray, CountArray]:
    """Return the axes of an attention table as one padded array, with their lengths."""
    longest = max(axis.size for axis in axes)
    padded = np.full((len(axes), longest), np.inf)
    for index, axis in enumerate(axes):
        padded[index, : axis.size] = axis
    return padded, np.array([axis.size for axis in axes], dtype=np.int64)
