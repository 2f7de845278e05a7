"""Searches that cannot be planned, or are spelt differently here."""

from __future__ import annotations

import pytest
from tuning_runs import SPEC, load_spec

from unfoldkit.api import UnfoldError


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("grid", r"every point of a grid; .* \(write random, with as many trials as the grid has points\)"),
        ("asha", r"no barriers .* no stages to plan \(write successive-halving or hyperband\)"),
        ("BOHB", r"drawn at random .*\(write hyperband\)"),
        ("Successive_Halving", r'no algorithm "Successive_Halving" \(write successive-halving\)'),
        ("sha", r"\(write successive-halving\)"),
        ("hyperbnd", r'\(did you mean "hyperband"\?\)'),
    ],
)
def test_searches_of_other_tools_are_refused_with_a_replacement(algorithm: str, message: str) -> None:
    """An unsupported search is refused with the reason, one that is spelt differently with its name here."""
    with pytest.raises(UnfoldError, match=message):
        load_spec(SPEC.replace("algorithm: successive-halving", f"algorithm: {algorithm}"))
