"""Conditions of a spec: a closed grammar that executes nothing, and agrees with Python where the two overlap."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_pipeline.flow_syntax import ConditionError, parse_condition, split_source

TENSORS = {
    "label": np.array("person"),
    "scores": np.array([0.1, 0.7, 0.2]),
    "n": np.array([3], dtype=np.int64),
    "grid": np.arange(6.0).reshape(2, 3),
    "bytes": np.array(b"cat", dtype=object),
    "empty": np.array([]),
    "nan": np.array(np.nan),
    "is_night": np.array(True),
    "mixed": np.array([1, None], dtype=object),
    "/fc/out.0": np.array(2.0),
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('label == "person"', True),
        ("label == 'person'", True),
        ('label != "person"', False),
        ('label in ["car", "person"]', True),
        ('label not in ["car", "person"]', False),
        ("scores[1] > 0.5 and n == 3", True),
        ("scores[-1] >= .2", True),
        ("grid[1, 2] == 5", True),
        ("max(scores) < 0.5 or argmax(scores) == 1", True),
        ("not (min(grid) >= 0)", False),
        ("not not is_night", True),
        ("is_night", True),
        ("is_night == false", False),
        ('bytes == "cat"', True),
        ('n == "3"', False),
        ("nan == nan", False),
        ("nan < 1 or nan >= 1", False),
        ("0 < n", True),
        ("output == 'person'", True),
        ("/fc/out.0 == 2e0", True),
        ("`/fc/out.0` == 2", True),
        ('n == 3 or n == 4 and label == "no"', True),
        ("true", True),
        ('label == "a \\" b"', False),
    ],
)
def test_conditions_hold(text: str, holds: bool) -> None:
    """Comparisons, lists, functions and connectives have their usual meaning and precedence."""
    assert parse_condition(text).holds(TENSORS) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "label",
        "label = 1",
        "label ==",
        '"person"',
        "3 > 2 > 1",
        "n == 3 extra",
        "__import__('os')",
        "label.__class__()",
        "scores[0.5] > 1",
        "scores[i] > 1",
        "max(scores[0]) > 1",
        "max(3) > 1",
        "label == person()",
        "lambda: 1",
        "label in []",
        "n + 1 > 2",
        "(" * 40 + "n > 1" + ")" * 40,
        "not " * 60 + "n",
        "n > 1 or " * 400 + "n > 1",
        'label == "unclosed',
    ],
)
def test_other_text_is_rejected(text: str) -> None:
    """What is no sentence of the grammar is rejected when the spec is read; so is a tensor that is no single value."""
    with pytest.raises(ConditionError):
        parse_condition(text).holds({**TENSORS, "label": np.array(["a", "b"])})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("other == 1", "no tensor other"),
        ("scores > 1", "has shape \\[3\\], not one value"),
        ("scores[3] > 1", "out of bounds"),
        ("grid[0] > 1", "has shape \\[3\\]"),
        ("empty == 1", "has shape \\[0\\]"),
        ("max(empty) > 1", "empty"),
        ("label < 3", "cannot order"),
        ("mixed[1] >= 0", "cannot order None and 0.0"),
    ],
)
def test_untestable_output_is_reported(text: str, reason: str) -> None:
    """An output without the tensor, or with several values or another type, names the tensor."""
    with pytest.raises(ConditionError, match=reason):
        parse_condition(text).holds(TENSORS)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9))
def test_conditions_agree_with_python(seed: int) -> None:
    """A random condition holds exactly where Python's expression of the same text is true."""
    rng = random.Random(seed)  # noqa: S311
    names = {"a": rng.randint(-2, 2), "b": rng.choice([0.5, -1.0, 2.0]), "c": rng.choice(["x", "y"])}

    def draw(depth: int) -> str:
        kind = rng.randrange(4 if depth else 2)
        if kind == 0:
            return f"{rng.choice('ab')} {rng.choice(['==', '!=', '<', '<=', '>', '>='])} {rng.randint(-2, 2)}"
        if kind == 1:
            return rng.choice(['c == "x"', 'c != "y"', 'c in ["x", "z"]', 'c not in ["x"]', "a in [1, -1, 2.0]"])
        if kind == 2:
            return f"not ({draw(depth - 1)})"
        return f"({draw(depth - 1)}) {rng.choice(['and', 'or'])} {draw(depth - 1)} or {draw(depth - 1)}"

    text = draw(3)
    expected = bool(eval(text, {"__builtins__": {}}, dict(names)))  # noqa: S307 - the reference, on text drawn here
    assert parse_condition(text).holds({name: np.array(value) for name, value in names.items()}) is expected


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="abn()[]<>=!\"\\'`,.0123 -andornot\n\u00e9\x00", max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Any text is a condition or a ``ConditionError``, never another failure."""
    with contextlib.suppress(ConditionError):
        parse_condition(text)


def test_sources_prefer_the_longest_stage() -> None:
    """Names of stages and tensors may contain dots."""
    assert split_source("a.b.c", ["a", "a.b"]) == ("a.b", "c")
    assert split_source("a.b", ["a", "a.b"]) == ("a.b", "")
    assert split_source("a./x/y.0", ["a", "b"]) == ("a", "/x/y.0")
    assert split_source("ab", ["a"])[0] == ""
