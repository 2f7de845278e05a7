"""YAML 1.2 core with a place for every key and value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unfoldkit.errors import UnfoldError
from unfoldkit.spec.yaml_reader import MAX_BYTES, MAX_DEPTH, MAX_NODES, decode_text, dotted, parse, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("y", "y"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  1\n", "1\n"),
        ("0b11", "0b11"),
        ("=", "="),
        ("150 ms", "150 ms"),
        ("-.inf", float("-inf")),
    ],
)
def test_plain_text_means_what_yaml_12_says(text: str, value: Any) -> None:
    """Plain text is a number, truth value or nothing by the rules of YAML 1.2 core, and text otherwise."""
    found = parse(f"a: {text}\n").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_has_its_place() -> None:
    """Lines and columns count from 1, in block and in flow, after characters of more than one byte."""
    document = parse("a:\n  - {é: 1, b: [x]}\n  - two\n")
    assert document.data == {"a": [{"é": 1, "b": ["x"]}, "two"]}
    assert document.keys == {("a",): (1, 1), ("a", 0, "é"): (2, 6), ("a", 0, "b"): (2, 12)}
    assert document.values["a", 0, "b", 0] == (2, 16)
    assert document.values["a", 1] == (3, 5)
    assert document.values[()] == (1, 1)


def test_keys_are_text() -> None:
    """A key is the text that was written, whatever it looks like."""
    assert parse("1: a\ntrue: b\n~: c\n'': d\n1.50: e\n").data == {
        "1": "a",
        "true": "b",
        "~": "c",
        "": "d",
        "1.50": "e",
    }


def test_an_alias_stands_for_its_value() -> None:
    """Anchors work, and each place of the value is that of the anchor's."""
    document = parse("a: &x {b: 1}\nc: *x\n")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_merge_key_is_refused_as_such() -> None:
    """YAML 1.1 had them; as a usual key its values would be named as mistakes. In quotes it is a key."""
    with pytest.raises(UnfoldError) as caught:
        parse("a: &x {b: 1}\nc: {<<: *x, <<: {d: 2}}\n")
    found = [(item.line, item.column, item.key, item.message) for item in caught.value.diagnostics]
    assert found == [(2, column, "c.<<", "YAML 1.2 has no merge keys") for column in (5, 13)]
    assert parse('a: {"<<": 1}').data == {"a": {"<<": 1}}


def test_every_duplicate_is_reported() -> None:
    """All duplicate keys of a file are reported at once."""
    with pytest.raises(UnfoldError) as caught:
        parse("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert [(item.line, item.column, item.key) for item in caught.value.diagnostics] == [(2, 1, "a"), (3, 11, "b.c")]


@pytest.mark.parametrize("text", ["!!str 5", "!x {}", "!!map {}", "!!python/tuple [1]", "{!!str a: 1}", "! 5"])
def test_a_tag_is_refused_wherever_it_stands(text: str) -> None:
    """A tag on a value, list, mapping or key is refused, but for the empty one, which has no meaning."""
    if text.startswith("! "):
        assert parse(text).data in (5, "5")
    else:
        with pytest.raises(UnfoldError, match=r"the tag !.* is not allowed"):
            parse(text)


def test_a_byte_order_mark_is_no_mistake() -> None:
    """A file that Windows marked as UTF-8 is read."""
    assert parse(decode_text(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f")).data == {"a": 1, "b": 2}


def test_limits_are_reported() -> None:
    """A file that is too large, too deep or too many values is refused by its limit; just below it is read."""
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH).data
    with pytest.raises(UnfoldError, match="nested deeper than 60"):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(UnfoldError, match="more than 200,000 values"):
        parse("- a\n" * MAX_NODES)
    with pytest.raises(UnfoldError, match="larger than 4 MiB"):
        decode_text(b" " * (MAX_BYTES + 1), "f")


def test_a_file_that_cannot_be_read_is_named() -> None:
    """A missing file and an impossible path are reported, never raised."""
    for path in ("nonesuch.yaml", "x" * 300):
        with pytest.raises(UnfoldError, match="cannot read"):
            read_document(path)


def test_paths_are_dotted() -> None:
    """Keys are joined by dots, indices are in brackets."""
    assert dotted(("a", "b", 0, "c", 1)) == "a.b[0].c[1]"
    assert dotted(()) == ""


def test_a_pipe_is_no_spec(tmp_path: Path) -> None:
    """Reading one may never end; the hint has the way that works."""
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UnfoldError, match=r"a\.yaml: cannot read: a pipe \(- reads a spec from stdin\)"):
        read_document(str(tmp_path / "a.yaml"))
