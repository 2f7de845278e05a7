"""Input downsampling."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from unfold_supernet.networks import layers  # noqa: E402


@pytest.mark.parametrize("shape", [(5, 1, 128), (4, 3, 13), (3, 2, 8, 8), (3, 2, 9, 10)])
@pytest.mark.parametrize("shrink", [2, 3])
def test_downsampling_equals_average_pooling(shape: tuple[int, ...], shrink: int) -> None:
    """Downsampling equals torch's average pooling; incomplete windows at the edges are dropped."""
    x = torch.randn(shape)
    wanted = functional.avg_pool1d(x, shrink) if len(shape) == 3 else functional.avg_pool2d(x, shrink)
    assert torch.allclose(layers.downsample(x, shrink), wanted, atol=1e-6)
