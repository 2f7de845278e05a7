"""Fields of chat requests that some OpenAI-compatible endpoints do not take, learnt from what they refuse."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

OTHER_NAMES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
FIELDS = ("stream_options", *OTHER_NAMES, *SAMPLING)
UNKNOWN_WORDS = (
    "unsupported",
    "not supported",
    "does not support",
    "unrecognized",
    "unknown",
    "unexpected",
    "not permitted",
    "extra",
    "not allowed",
)
"""How servers name a field that they do not take."""


@dataclass(frozen=True, slots=True)
class Dialects:
    """Fields that endpoints have refused so far, by model.

    OpenAI's reasoning models take ``max_completion_tokens`` alone and no ``temperature``, other servers ``max_tokens``
    alone, and some no ``stream_options``. A chain may hold models of all kinds, so no client could write a request for
    each.

    Attributes:
        fields: That may be left out, or written by their other names.
        refused: By model, what its endpoint did not take.
    """

    fields: tuple[str, ...] = FIELDS
    refused: dict[str, set[str]] = field(default_factory=dict)

    def adapt(self, model: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write a request as the endpoint of a model takes it."""
        for name in sorted(self.refused.get(model, ())):
            request = leave_out(name, request)
        return request

    def remember(self, model: str, names: Collection[str]) -> None:
        """Remember the fields without which the endpoint of a model took a request."""
        if names:
            self.refused.setdefault(model, set()).update(names)

    def find_refused(self, request: Mapping[str, Any], text: str, tried: Collection[str]) -> str:
        """Find the field of a request that an error names as unknown; empty if there is none.

        Args:
            request: What the endpoint refused.
            text: Of its error.
            tried: Fields that were left out already; none is left out in the place of the other.
        """
        if any(name in tried for name in OTHER_NAMES):
            tried = {*tried, *OTHER_NAMES}
        if not any(word in text.casefold() for word in UNKNOWN_WORDS):
            return ""
        # a server that wants the other name mentions both, and the refused one first
        places = {name: match.start() for name in self.fields if (match := re.search(rf"\b{name}\b", text))}
        named = sorted(places, key=places.__getitem__)
        return next((name for name in named if name in request and name not in tried), "")


def leave_out(name: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave a field out, or give the limit of the output its other name."""
    if name not in request:
        return request
    rest = {key: value for key, value in request.items() if key != name}
    other = OTHER_NAMES.get(name)
    return rest if other is None or other in rest else {**rest, other: request[name]}
