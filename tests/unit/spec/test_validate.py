"""Every mistake at once, and none that follows from another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import pytest
from pydantic import Field

from unfoldkit.errors import UnfoldError
from unfoldkit.spec.base import Model, Problem
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse


class Fixed(Model):
    process: Literal["fixed"]
    rate: int


class Burst(Model):
    process: Literal["burst"]
    rate: int
    size: int


class Window(Model):
    window: int


class Pulse(Model):
    pulse: int


class Stage(Model):
    name: str
    after: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it


class Job(Model):
    by_size: dict[int, str] = {}  # noqa: RUF012 - pydantic copies it
    stages: Annotated[tuple[Stage, ...], Field(min_length=2)] = (Stage(name="a"), Stage(name="b"))
    first: str = "a"
    source: Fixed | Burst | None = None
    shape: Window | Pulse | None = None
    mode: Literal["fast", "slow"] = "fast"
    count: int = 1

    def problems(self) -> Iterable[Problem]:
        if self.first not in [stage.name for stage in self.stages]:
            yield Problem(("first",), "no such stage")
        if self.count == 7:
            yield Problem(("count",), "not seven", at_key=True)


def list_mistakes(text: str) -> list[str]:
    """Return the mistakes of a job."""
    try:
        validate(Job, parse(text, "f"))
    except UnfoldError as error:
        return [str(item) for item in error.diagnostics]
    return []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count: 2\n", []),
        # a misspelt key shows which branch was intended
        ("shape: {pulses: 3}\n", ['f:1:9: shape.pulses: unknown key (did you mean "pulse"?)']),
        ("by_size: {1.5: a}\n", ["f:1:11: by_size.1.5: expected a whole number, got 1.5"]),
        ("by_size: {many: a}\n", ['f:1:11: by_size.many: expected a whole number, got "many"']),
        ("first: z\ncount: x\n", ["f:1:8: first: no such stage", 'f:2:8: count: expected a whole number, got "x"']),
        ("rate: 3\n", ['f:1:1: rate: unknown key (write it below "source")']),
        (
            "stages: [{name: a, mode: slow}, {name: b}]\n",
            ["f:1:20: stages[0].mode: unknown key (write it at the top of the spec)"],
        ),
        ("first: z\ncuont: 1\n", ["f:1:8: first: no such stage", 'f:2:1: cuont: unknown key (did you mean "count"?)']),
        ("stages: 5\nfirst: z\n", ["f:1:9: stages: expected a list, got 5"]),
        (
            "stages: [{name: z}, {name: 5}]\nfirst: z\n",
            ["f:1:28: stages[1].name: expected text, got 5 (put it in quotes)"],
        ),
        ("stages: [{name: z}]\n", ["f:1:9: stages: must have at least 2 entries, has 1"]),
        (
            "stages: [{nam: z}, {}]\n",
            [
                'f:1:11: stages[0].nam: unknown key (did you mean "name"?)',
                "f:1:20: stages[1].name: this key is missing",
            ],
        ),
        ("mode: fsat\n", ['f:1:7: mode: "fsat" is not allowed here (did you mean "fast"?)']),
        ("mode: 3\n", ["f:1:7: mode: 3 is not allowed here (one of: fast, slow)"]),
        ("source: {process: burst, rate: 1}\n", ["f:1:9: source.size: this key is missing"]),
        ("source: {process: fixed, rate: x}\n", ['f:1:32: source.rate: expected a whole number, got "x"']),
        ("source: {process: fixed, rate: 1, sise: 2}\n", ["f:1:35: source.sise: unknown key (one of: process, rate)"]),
        (
            "stages: [{name: a}, {name: b, after: {a: x}}]\n",
            ['f:1:42: stages[1].after.a: expected a whole number, got "x"'],
        ),
        ("count: 7\nfirst: z\n", ["f:1:1: count: not seven", "f:2:8: first: no such stage"]),
    ],
)
def test_mistakes_are_reported_together_in_the_order_of_the_file(text: str, expected: list[str]) -> None:
    """Structural and cross-reference mistakes are reported together, without their consequences."""
    assert list_mistakes(text) == expected


def test_a_document_without_a_mapping_is_reported() -> None:
    """A list or a word in place of a spec is refused at its position."""
    assert list_mistakes("- a\n") == [
        'f:1:1: a spec is a mapping of keys, not ["a"] (unfold init KIND writes one to start from)'
    ]
