"""Counts of input tokens before a request is sent: by the endpoint that would answer, or estimated from its usage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.gateway.plan import ServedModel
from unfold_cascade.language_models.gateway.upstream import Upstreams, read_count
from unfold_cascade.language_models.openai_api.chat_request import MEDIA_PARTS, MEDIA_TOKENS, has_media, measure_size
from unfold_cascade.language_models.openai_api.completion import Completion

USUAL_BYTES, USUAL_TOKENS = 4000, 1000
"""What an endpoint is assumed to have counted at first: four bytes a token, as usual for English."""

ASKED_AGAIN_AFTER_S = 600.0


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Input tokens of a request; ``is_exact`` if the endpoint counted them."""

    tokens: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the input tokens of requests.

    Attributes:
        upstreams: The endpoints.
        seen: By model, the bytes of the requests that it answered, and the tokens that it reported for them.
        asked_again_at: When an endpoint that did not count is asked again, by model and path, in monotonic seconds.
    """

    upstreams: Upstreams
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    asked_again_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def learn(self, model: str, request: Mapping[str, Any], completion: Completion) -> None:
        """Learn from the usage that an endpoint reports how many bytes one of its tokens has."""
        tokens = read_count((completion.usage or {}).get("prompt_tokens"))
        if tokens and not has_media(request):
            size, total = self.seen.get(model, (USUAL_BYTES, USUAL_TOKENS))
            self.seen[model] = size + measure_size(request, MEDIA_PARTS)[0], total + tokens

    async def count(
        self, model: ServedModel, request: Mapping[str, Any], original: Mapping[str, Any], path: str
    ) -> TokenCount:
        """Count the tokens of a request.

        Args:
            model: That would answer.
            request: The chat request.
            original: What the client sent, in the form of the API of ``path``.
            path: Of the count, below the base of the endpoint.
        """
        key = model.name, path
        if time.monotonic() >= self.asked_again_at.get(key, 0.0):
            tokens = await self.upstreams.count_tokens(model, original, path)
            if tokens is not None:
                return TokenCount(tokens, is_exact=True)
            self.asked_again_at[key] = time.monotonic() + ASKED_AGAIN_AFTER_S
        return TokenCount(self._estimate(model.name, request), is_exact=False)

    def _estimate(self, model: str, request: Mapping[str, Any]) -> int:
        size, media = measure_size(request, MEDIA_PARTS)
        known_size, known_tokens = self.seen.get(model, (USUAL_BYTES, USUAL_TOKENS))
        return math.ceil(size * known_tokens / known_size) + MEDIA_TOKENS * media
