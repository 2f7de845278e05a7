"""A short run of the fuzz; `python -m tests.fuzz.fuzz_specs` is the long one."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.fuzz_specs import Case, attempt, case, fuzz, specs
from unfoldkit.api import Kind, Problem, Spec, hookimpl
from unfoldkit.registry import load_registry


class Careless(Spec):
    """A spec with a check that fails."""

    def problems(self) -> Iterable[Problem]:
        raise ZeroDivisionError(self.name)


@hookimpl
def unfold_kinds() -> Iterator[Kind]:
    yield Kind("careless", "for tests", f"{__name__}:Careless", plan="x:y")


def test_a_spoilt_spec_is_refused_or_valid() -> None:
    """Whatever is done to a spec, it is refused in words within two seconds or it is valid."""
    messages: list[str] = []
    found = fuzz(200, seed=1, report=messages.append)
    assert not messages, messages[0]
    assert found["refused"] > 50
    assert found["valid"] > 5


def test_a_case_can_be_made_again() -> None:
    """The same seed and number give the same case; another seed gives another."""
    assert case(specs(), 3, 7) == case(specs(), 3, 7)
    assert [case(specs(), 3, n).data for n in range(9)] != [case(specs(), 4, n).data for n in range(9)]


def test_the_fuzz_notices_what_it_looks_for() -> None:
    """An exception other than a refusal, such as one of a plugin's own check, comes out of an attempt."""
    plugin = types.SimpleNamespace(unfold_kinds=unfold_kinds)
    registry = load_registry(entry_points=[], extra={"careless": plugin})
    spoilt = Case(0, Path(), b"version: 1\nkind: careless\nname: a\n", ())
    with pytest.raises(ZeroDivisionError):
        attempt(registry, spoilt)
