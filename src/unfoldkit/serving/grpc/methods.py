"""How the methods of a service are answered, by whichever server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a method is answered.

    Args:
        parse: Reads a request from its bytes.
        serialize: Writes a response.
        answer: Answers a request in the context of its call; a stream is answered by what reads and writes messages.
        is_stream: Requests and responses are streams.
        start: Answers a request without a task: takes its bytes and the call, and calls ``respond`` or ``fail``.
    """

    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    answer: Callable[[Any, Any], Any]
    is_stream: bool = False
    start: Callable[[bytes, Any], None] | None = None
