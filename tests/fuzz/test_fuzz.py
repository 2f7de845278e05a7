"""A short run of the fuzz; `python -m tests.fuzz.fuzz_specs` is the long one."""

from __future__ import annotations

from tests.fuzz.fuzz_specs import case, fuzz, specs


def test_a_spoilt_spec_is_refused_or_valid() -> None:
    """Whatever is done to a spec, it is refused in words within two seconds or it is valid."""
    told: list[str] = []
    found = fuzz(200, seed=1, tell=told.append)
    assert not told, told[0]
    assert found["refused"] > 50
    assert found["valid"] > 5


def test_a_case_can_be_made_again() -> None:
    """The same seed and number give the same case; another seed gives another."""
    assert case(specs(), 3, 7) == case(specs(), 3, 7)
    assert [case(specs(), 3, n).data for n in range(9)] != [case(specs(), 4, n).data for n in range(9)]
