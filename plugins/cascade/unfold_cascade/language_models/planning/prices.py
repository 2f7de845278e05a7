"""What a call of a language model costs, by its tokens.

``cost = ((in - cached - written) p_in + cached p_cached + written p_written + out p_out) / per + fixed``. Input tokens
include the cached ones, and output tokens include those of reasoning, as in the usage object of OpenAI.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """Dollars per token, and per call (``fixed``)."""

    input: float = 0.0
    cached: float = 0.0
    written: float = 0.0
    output: float = 0.0
    fixed: float = 0.0

    def cost(self, input_tokens: float, output_tokens: float, cached: float = 0.0, written: float = 0.0) -> float:
        """Compute the cost of one call in dollars; uncached input never counts below zero tokens."""
        plain = max(input_tokens - cached - written, 0.0)
        tokens = plain * self.input + cached * self.cached + written * self.written + output_tokens * self.output
        return tokens + self.fixed

    def costs(
        self, input_tokens: FloatArray, output_tokens: FloatArray, cached: FloatArray, written: FloatArray
    ) -> FloatArray:
        """Compute the (n,) costs of calls from (n,) token counts."""
        plain = np.maximum(input_tokens - cached - written, 0.0)
        tokens = plain * self.input + cached * self.cached + written * self.written + output_tokens * self.output
        return tokens + self.fixed
