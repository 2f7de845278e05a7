"""Size of a search space."""

from __future__ import annotations

import pytest

from plugins.supernet.tests.helpers import make_space, parse_spec
from unfold_supernet.schema.space import SpaceSpec

STAGES = ({"width": 16}, {"width": 32}, {"width": 64})


@pytest.mark.parametrize("scope", ["net", "stage"])
@pytest.mark.parametrize("coupling", ["compound", "independent"])
def test_subnet_count_equals_enumeration(scope: str, coupling: str) -> None:
    """The count of a space equals the number of enumerated subnets."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3, 5), "resolution": (1.0, 0.5)}
    given_ = SpaceSpec.model_validate({"stages": STAGES, **lists, "scope": scope, "coupling": coupling})
    assert len(make_space(given_, 1, (16, 16), 0, 10).subnets) == given_.subnet_count


def test_space_with_too_many_subnets_is_refused() -> None:
    """A space with too many subnets is refused with its size."""
    from unfoldkit.api import UnfoldError

    text = (
        "version: 1\nkind: supernet\nname: t\ndata: {source: digits}\nspace:\n"
        "  stages: [{width: 8}, {width: 8}, {width: 8}, {width: 8}, {width: 8}, {width: 8}, {width: 8}, {width: 8}]\n"
        "  expand: [0.25, 0.5, 1]\n  depth: [1, 2]\n  coupling: independent\n  scope: stage\n"
    )
    with pytest.raises(UnfoldError, match="1,679,616"):
        parse_spec(text)
