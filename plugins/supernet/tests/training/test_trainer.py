"""Augmentation of inputs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_options,
)
from unfold_supernet.training import trainer  # noqa: E402

pytestmark = pytest.mark.torch


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_shifted_inputs_retain_their_content(shift: int, seed: int, flat: bool) -> None:
    """Inputs shift by at most ``shift`` along each axis; their content stays and zeros enter."""
    size = (12,) if flat else (8, 9)
    x = torch.zeros((5, 1, *size))
    x[(slice(None), 0, *(edge // 2 for edge in size))] = 1.0
    moved = trainer.augment_inputs(x, make_options(shift=shift), seed, 1, 2)
    assert moved.shape == x.shape
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(5))
    for before, after in zip(x, moved, strict=True):
        assert ((before.nonzero() - after.nonzero()).abs() <= shift).all()
