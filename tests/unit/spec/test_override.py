"""``--set a.b[0]=value``."""

from __future__ import annotations

from typing import Any

import pytest

from unfoldkit.errors import UnfoldError
from unfoldkit.spec.override import apply_settings
from unfoldkit.spec.yaml_reader import parse

TEXT = "a: {b: [1, {c: 2}]}\nd: x\n"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("d=y", ("d",), "y"),
        ("d=", ("d",), None),
        ("d=no", ("d",), "no"),
        ("d=a=b", ("d",), "a=b"),
        ("a.b[0]=150 ms", ("a", "b", 0), "150 ms"),
        ("a.b[1].c=[1, 2]", ("a", "b", 1, "c"), [1, 2]),
        ("a.new.deep={x: 1}", ("a", "new", "deep"), {"x": 1}),
        ("new=1e3", ("new",), 1000.0),
        ('a."new.name"=8', ("a", "new.name"), 8),
        ("a.'x=y'.z=8", ("a", "x=y", "z"), 8),
        ("a.o'neil=8", ("a", "o'neil"), 8),
    ],
)
def test_a_setting_lands_where_it_says(setting: str, path: tuple[str | int, ...], value: Any) -> None:
    """The value is read as YAML and set at its path; its origin is remembered."""
    document = apply_settings(parse(TEXT), [setting])
    found = document.data
    for part in path:
        found = found[part]
    assert found == value
    assert document.origins == {path: f"--set {setting}"}


def test_the_document_itself_is_not_changed() -> None:
    """Settings make a new document; of two for one key the later holds."""
    document = parse(TEXT)
    assert apply_settings(document, ["d=1", "d=2"]).data["d"] == 2
    assert document.data == parse(TEXT).data
    assert apply_settings(document, []) is document


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("d", "expected key=value"),
        ("=1", "expected key=value"),
        ("a..b=1", "expected key=value"),
        ('a."b.c=1', "expected key=value"),
        ('a.""=1', "expected key=value"),
        ("a.b[x]=1", "expected key=value"),
        ("a.b[5]=1", "a.b is a list of 2 .write a.b.0.."),
        ("a.b.c=1", "a.b is a list of 2"),
        ("d.e=1", 'd is "x", not a mapping'),
        ("a=[", "a bracket that is not closed"),
        ("a=[1", "not closed"),
        ("a={b: 1, b: 2}", "duplicate key"),
        ("a=\udcff", "not UTF-8"),
        (".".join("a" * 100) + "=1", "nested deeper"),
    ],
)
def test_an_invalid_setting_is_reported(setting: str, message: str) -> None:
    """A setting that leads nowhere, or is not YAML, is refused with the flag as its place."""
    with pytest.raises(UnfoldError, match=message) as caught:
        apply_settings(parse(TEXT), [setting])
    assert caught.value.diagnostics[0].file == f"--set {setting}"


def test_every_bad_setting_is_reported() -> None:
    """All bad settings are reported at once."""
    with pytest.raises(UnfoldError) as caught:
        apply_settings(parse(TEXT), ["d", "x=1", "a.b[9]=1"])
    assert len(caught.value.diagnostics) == 2
