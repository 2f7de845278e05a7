"""JSON Schema for editors."""

from __future__ import annotations

import pytest
from jsonschema import Draft7Validator

from tests.support import HELLO
from unfoldkit.spec.base import Model, Spec
from unfoldkit.spec.schema import build_joint_schema, build_schema
from unfoldkit.spec.units import Duration, Fraction
from unfoldkit.spec.yaml_reader import parse


class Part(Model):
    wait: Duration
    share: Fraction = 0.5


class One(Spec):
    part: Part


class Two(Spec):
    parts: tuple[Part, ...] = ()


def test_a_schema_is_of_draft_7() -> None:
    """The schema is a valid draft-07 schema that points only inside itself."""
    data = build_schema(One, "unfold one")
    Draft7Validator.check_schema(data)
    assert data["title"] == "unfold one"
    assert "$defs" not in str(data)


@pytest.mark.parametrize(
    ("part", "valid"),
    [
        ({"wait": "150 ms"}, True),
        ({"wait": "150 ms", "share": "25%"}, True),
        ({"wait": "150 ms", "share": 0.25}, True),
        ({"wait": 150}, False),
        ({"wait": "150"}, False),
        ({"wait": "150 parsecs"}, False),
        ({"wait": "1 s", "share": 2}, False),
        ({"wait": "1 s", "wiat": "1 s"}, False),
        ({}, False),
    ],
)
def test_the_joint_schema_holds_each_kind_to_its_rules(part: dict[str, object], *, valid: bool) -> None:
    """With one schema for all kinds an editor accepts and refuses what the kind's own would."""
    both = build_joint_schema({"one": One, "two": Two})
    Draft7Validator.check_schema(both)
    for body in ({"kind": "one", "part": part}, {"kind": "two", "parts": [part]}):
        document = {"version": 1, "name": "a", **body}
        assert Draft7Validator(both).is_valid(document) is valid


def test_the_joint_schema_needs_the_envelope() -> None:
    """A spec without kind, or of a kind that is not there, is refused by the joint schema."""
    both = Draft7Validator(build_joint_schema({"one": One}))
    assert not both.is_valid({"version": 1, "name": "a"})
    assert not both.is_valid(parse(HELLO.read_text(encoding="utf-8")).data)
