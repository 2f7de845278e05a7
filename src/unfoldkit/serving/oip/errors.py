"""Errors of a request body; their messages are for the client."""

from __future__ import annotations

from unfoldkit.errors import shorten

MAX_LETTERS = 2000
"""The longest message: it may quote names of any length from the request."""


class InvalidRequest(ValueError):  # noqa: N818 - the client's mistake
    """A body that is not a request for this model; the message is for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message, MAX_LETTERS))


def find_refused_input(error: BaseException) -> InvalidRequest | None:
    """Return ONNX Runtime's refusal of an input, such as an id that an embedding lacks; ``None`` for other errors."""
    if isinstance(error, InvalidRequest):
        return error
    # the runtime's own exceptions share no base
    if type(error).__name__ == "InvalidArgument":
        return InvalidRequest(str(error).rpartition("Status Message: ")[2])
    return None


class TooLarge(Exception):  # noqa: N818 - the client's, not ours
    """The body exceeds its limit."""
