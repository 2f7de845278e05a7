"""From a validator's location to a line."""

from __future__ import annotations

from typing import Annotated, Optional

import pytest
from pydantic import Field

from unfoldkit.errors import Diagnostic
from unfoldkit.spec.base import Model
from unfoldkit.spec.override import apply_settings
from unfoldkit.spec.positions import diagnostic_at, known_keys, locate, real_path
from unfoldkit.spec.yaml_reader import parse

TEXT = "stages:\n  - {name: a}\nvoice: plain\n"


class Leaf(Model):
    short: int = Field(alias="long-name")


class Other(Model):
    size: int


class Root(Model):
    leaves: tuple[Leaf, ...] = ()
    named: dict[str, Annotated[Leaf, Field()]] = {}  # noqa: RUF012 - pydantic copies it
    either: Optional[Leaf | Other] = None  # noqa: UP045 - the old spelling must work too


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), {"leaves", "named", "either"}),
        (("leaves", 0), {"long-name"}),
        (("named", "x"), {"long-name"}),
        (("either",), {"long-name", "size"}),
        (("nonesuch",), set()),
    ],
)
def test_the_keys_of_a_place_are_known(path: tuple[str | int, ...], expected: set[str]) -> None:
    """The valid keys at a path follow from the model: through lists, mappings, unions and aliases."""
    assert known_keys(Root, path) == expected


def test_a_validators_tags_are_left_out() -> None:
    """Of a location only keys and indices that exist stay; the last one stays too when it is the missing one."""
    data = {"a": [{"b": 1}]}
    assert real_path(data, ("a", 0, "SomeModel", "b")) == ("a", 0, "b")
    assert real_path(data, ("a", 0, "tag", "c"), missing=True) == ("a", 0, "c")
    assert real_path(data, ("a", 7)) == ("a",)


def test_a_mistake_stands_at_its_value_its_key_or_the_nearest_parent() -> None:
    """A place is the value's; the key's where asked; for what is not there, that of what would hold it."""
    document = parse(TEXT, "f")
    places = [
        diagnostic_at(document, ("voice",), "m"),
        diagnostic_at(document, ("voice",), "m", at_key=True),
        diagnostic_at(document, ("stages", 0, "price"), "m"),
        diagnostic_at(document, ("nonesuch",), "m"),
    ]
    assert [(item.line, item.column) for item in places] == [(3, 8), (3, 1), (2, 5), (1, 1)]


def test_a_mistake_of_a_setting_names_the_flag() -> None:
    """A mistake in the value of ``--set``, or inside it, is reported at the flag."""
    document = apply_settings(parse(TEXT, "f"), ["stages[0]={name: 1}"])
    assert str(diagnostic_at(document, ("stages", 0, "name"), "m")) == "--set stages[0]={name: 1}: stages[0].name: m"
    assert diagnostic_at(document, ("voice",), "m").line == 3


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("pause", "--set pause=1 s"),
        ("stages[0].size", "--set stages[0].size=3"),
        ("stages[0].size.least", "--set stages[0].size=3"),
        ("stages[0].name", "f:2:6"),
        ("voice", "f:3:1"),
    ],
)
def test_a_verb_s_mistake_stands_where_its_key_was_given(key: str, place: str) -> None:
    """A key that a verb rejects is reported with the option that set it, or its line."""
    document = apply_settings(parse(TEXT, "f"), ["pause=1 s", "stages[0].size=3"])
    assert str(locate(document, Diagnostic("m", key=key))) == f"{place}: {key}: m"
