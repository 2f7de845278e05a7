"""Header fields of calls: read as they were sent, and written as any decoder reads them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.serving.grpc.http2.wire import HEAD
from unfoldkit.serving.grpc.http2.headers import Head, HeadReader, write_fields, write_trailers

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=20).filter(
    lambda name: not name.startswith("grpc-") and name not in ("te", "connection", "upgrade", "keep-alive")
)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200).map(str.strip)
ITEMS = st.one_of(
    st.tuples(NAMES.filter(lambda name: not name.endswith("-bin")), TEXTS),
    st.tuples(NAMES.map(lambda name: name + "-bin"), st.binary(max_size=200)),
)


def read(fields: Any) -> Head:
    return HeadReader().read(Encoder().encode(fields))


@given(st.lists(ITEMS, max_size=8))
def test_metadata_are_read_as_they_are_written(items: list[tuple[str, str | bytes]]) -> None:
    """Texts and bytes come back, in order, through the block that we write ourselves."""
    block = Encoder().encode(HEAD) + write_fields(items)
    reader = HeadReader()
    assert reader.read(block).metadata == tuple(items)
    assert Decoder().decode(write_fields(items)) is not None


@given(st.text(max_size=300))
def test_a_message_is_percent_encoded(message: str) -> None:
    """Any text comes back, but for surrogates; the field itself is printable ASCII."""
    fields: dict[Any, Any] = dict(Decoder().decode(write_trailers(13, message)))
    assert fields["grpc-status"] == "13"
    written = fields.get("grpc-message", "")
    assert all(" " <= letter <= "~" for letter in written)
    assert unquote(written) == message.encode(errors="replace").decode()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9), ("99999999H", 365 * 86400)],
)
def test_a_timeout_has_its_unit(text: str, seconds: float) -> None:
    """The units of ``grpc-timeout`` are those of the protocol; very long ones are a year."""
    assert read([*HEAD, ("grpc-timeout", text)]).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "-1S", "1.5S", "123456789S", "1 S", "1s", "\u0661S"])
def test_a_timeout_that_is_none_is_a_problem(text: str) -> None:
    """Anything else ends the call."""
    assert read([*HEAD, ("grpc-timeout", text.encode())]).problem


@pytest.mark.parametrize("item", [("a-bin", "!!!"), ("a", "ä"), ("a-bin", "a")])
def test_metadata_that_cannot_be_read_are_a_problem(item: tuple[str, str]) -> None:
    """Base64 that is none, and text that is not ASCII, end the call."""
    assert read([*HEAD, item]).problem
