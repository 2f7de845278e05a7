"""Requests of an LLM engine: arrivals, token counts, and which prompt blocks hold the same tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray, IndexArray
from unfoldkit.api import user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequests:
    """Requests in order of arrival.

    Attributes:
        arrival_s: (n,) seconds, ascending.
        input_tokens: (n,) prompt tokens, at least 1.
        output_tokens: (n,) generated tokens, at least 1.
        first_content: (n + 1,) where the blocks of each request begin in ``content``.
        content: (blocks,) content of every full block: equal numbers hold equal tokens after equal tokens;
            ``None`` where no two requests hold equal blocks.
        contents: Number of different contents.
        block_tokens: Tokens of a block.
        left_out: Requests of the trace that were not answered, and are not among these.
    """

    arrival_s: FloatArray
    input_tokens: CountArray
    output_tokens: CountArray
    first_content: CountArray
    content: CountArray | None
    contents: int
    block_tokens: int
    left_out: int = 0

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def is_shared(self) -> bool:
        """Whether two requests may hold equal blocks."""
        return self.content is not None

    def list_contents(self) -> CountArray:
        """Return the content of every full block, shape (blocks,)."""
        return np.arange(self.contents, dtype=np.int64) if self.content is None else self.content

    def reorder(self, order: IndexArray, arrival_s: FloatArray) -> EngineRequests:
        """Return the requests in another order with other arrivals, such as after a stage before the engine.

        Args:
            order: (n,) index of each request.
            arrival_s: (n,) new arrivals, ascending.
        """
        first = np.concatenate([[0], np.cumsum(np.diff(self.first_content)[order])]).astype(np.int64)
        return replace(
            self,
            arrival_s=np.ascontiguousarray(arrival_s, dtype=np.float64),
            input_tokens=self.input_tokens[order],
            output_tokens=self.output_tokens[order],
            first_content=first,
            content=None if self.content is None else self.content[_list_positions(self.first_content, order)],
            contents=int(first[-1]) if self.content is None else self.contents,
        )

    def select_range(self, begin: int, end: int) -> EngineRequests:
        """Return the requests ``[begin, end)`` from 0 s on, with the contents that they share."""
        first = self.first_content[begin : end + 1]
        return replace(
            self,
            arrival_s=self.arrival_s[begin:end] - self.arrival_s[begin],
            input_tokens=self.input_tokens[begin:end],
            output_tokens=self.output_tokens[begin:end],
            first_content=first - first[0],
            content=None if self.content is None else self.content[first[0] : first[-1]],
            contents=int(first[-1] - first[0]) if self.content is None else self.contents,
        )


def _list_positions(first: CountArray, order: IndexArray) -> CountArray:
    """Return the positions of the blocks of some requests, request after request."""
    sizes = np.diff(first)[order]
    starts = np.repeat(first[order] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    return np.asarray(starts + np.arange(int(sizes.sum())), dtype=np.int64)


def build_requests(
    arrival_s: FloatArray,
    input_tokens: CountArray,
    output_tokens: CountArray,
    *,
    block_tokens: int = 16,
    shared_tokens: CountArray | None = None,
    shared_with: CountArray | None = None,
    left_out: int = 0,
) -> EngineRequests:
    """Build the requests of a trace.

    Args:
        arrival_s: (n,) seconds.
        input_tokens: (n,) prompt tokens.
        output_tokens: (n,) generated tokens.
        block_tokens: Tokens of a block of the KV cache.
        shared_tokens: (n,) leading prompt tokens equal to those of the earlier request ``shared_with``.
        shared_with: (n,) index of that request, or -1.
        left_out: Requests of the trace that were not answered, and are not among these.

    Raises:
        UnfoldError: Lengths differ, times descend, or a token count is below 1.
    """
    sizes = {arrival_s.size, input_tokens.size, output_tokens.size}
    if len(sizes) != 1 or not arrival_s.size:
        raise user_error("arrivals, input tokens and output tokens need one value per request")
    if (np.diff(arrival_s) < 0).any():
        raise user_error("the arrivals are not in order")
    if min(int(input_tokens.min()), int(output_tokens.min())) < 1:
        raise user_error("every request needs at least one input and one output token")
    full_blocks = (input_tokens + output_tokens) // block_tokens
    first = np.concatenate([[0], np.cumsum(full_blocks)]).astype(np.int64)
    content = None
    if shared_tokens is not None and shared_with is not None and (shared_with >= 0).any():
        content = np.arange(first[-1], dtype=np.int64)
        for request in np.flatnonzero(shared_with >= 0):
            other = int(shared_with[request])
            count = (
                min(int(shared_tokens[request]), int(input_tokens[request]), int(input_tokens[other])) // block_tokens
            )
            content[first[request] : first[request] + count] = content[first[other] : first[other] + count]
    return EngineRequests(
        arrival_s=np.ascontiguousarray(arrival_s, dtype=np.float64),
        input_tokens=np.ascontiguousarray(input_tokens, dtype=np.int64),
        output_tokens=np.ascontiguousarray(output_tokens, dtype=np.int64),
        first_content=first,
        content=content,
        contents=int(first[-1]),
        block_tokens=block_tokens,
        left_out=left_out,
    )
