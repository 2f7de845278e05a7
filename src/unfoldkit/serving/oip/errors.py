"""Errors of a request body; their messages are for the client."""

from __future__ import annotations


class InvalidRequest(ValueError):  # noqa: N818 - the client's mistake
    """A body that is not a request for this model; the message is for the client."""


class TooLarge(Exception):  # noqa: N818 - the client's, not ours
    """The body exceeds its limit."""
