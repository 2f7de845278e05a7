"""Bodies are decompressed within their bound, as their headers say."""

from __future__ import annotations

import gzip
import zlib

import pytest

from unfoldkit.serving.oip.content_encoding import BodyEncoding, read_encoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge


def test_headers_describe_the_body() -> None:
    """Unknown encodings are refused."""
    assert read_encoding([(b"content-encoding", b"identity"), (b"host", b"a")]) == BodyEncoding()
    assert read_encoding([(b"content-encoding", b"GZIP"), (b"inference-header-content-length", b"7")]).json_bytes == 7
    for name, value in ((b"content-encoding", b"gzip, gzip"), (b"inference-header-content-length", b"-1")):
        with pytest.raises(InvalidRequest):
            read_encoding([(name, value)])


def test_a_packed_body_is_unpacked_within_its_bound() -> None:
    """A body is unpacked whole or refused, and never beyond the bound of bodies."""
    for packed, name in ((gzip.compress(b"abc"), b"gzip"), (zlib.compress(b"abc"), b"deflate")):
        comes = read_encoding([(b"content-encoding", name)])
        assert comes.decompress(packed, 3) == b"abc"
        with pytest.raises(TooLarge):
            comes.decompress(packed, 2)
        for damaged in (packed[:-1], packed + b"x", b"abc"):
            with pytest.raises(InvalidRequest):
                comes.decompress(damaged, 3)
