"""The differential fuzzing of HTTP parsers, in its quick form."""

from __future__ import annotations

import io

from tests.fuzz.fuzz_http import build_fast_path, find_disagreement, read_h11, read_llhttp, run
from unfoldkit.serving.http.fast_path.head import parse_head


def test_parsers_agree_on_mutated_requests() -> None:
    """Fast path, llhttp and h11 read the same requests with the same ends, or reject them."""
    assert list(run(3000, 1, io.StringIO())) == []


def test_a_disagreement_is_found() -> None:
    """Both laws can be broken: by a fast path which misjudges the end, and by parsers that read another body."""
    stream = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    fast_path = build_fast_path()
    assert find_disagreement(stream, fast_path) == ""
    assert [len(read(stream)) for read in (read_llhttp, read_h11)] == [2, 2]
    head = parse_head(stream, fast_path)
    assert head is not None
    raw = stream[: head.body_start]
    # the cache holds what a wrong fast path would have read
    fast_path.cached_heads[raw] = type(head)(head.responder, head.body_start, head.end - 1, head.path)
    assert "the fast path ends at" in find_disagreement(stream, fast_path)
