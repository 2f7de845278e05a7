"""Laws of the shared weights and of what is computed once for several nets."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from plugins.supernet.tests.helpers import make_space  # noqa: E402
from unfold_supernet.networks import layers, supernet  # noqa: E402
from unfold_supernet.networks.space import Space  # noqa: E402
from unfold_supernet.schema.space import SpaceSpec  # noqa: E402


def space() -> Space:
    """Return a family of every combination of two widths, two depths and two resolutions."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3,), "resolution": (0.5, 1.0)}
    given = {"form": "conv2d", "coupling": "independent", "stages": ({"width": 8}, {"width": 8}), **lists}
    return make_space(SpaceSpec.model_validate(given), 3, (8, 8), 2, 4)


def test_layers_in_common_are_computed_once_and_give_the_same_gradient() -> None:
    """Nets that share their first layers answer as alone, and the gradient of their sum is the sum of theirs."""
    whole, seen = space(), supernet.PrefixCache()
    weights = {name: tensor.requires_grad_() for name, tensor in supernet.init_weights(whole, 0).items()}
    x, extra = torch.randn(6, 3, 8, 8), torch.randn(6, 2)
    alone = [supernet.train_forward(whole, weights, one, x, extra) for one in whole.subnets]
    shared = [supernet.train_forward(whole, weights, one, x, extra, seen) for one in whole.subnets]
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))
    assert len(seen) < sum(len(supernet.list_convolutions(whole, one)) for one in whole.subnets)
    wanted, found = (
        torch.autograd.grad(torch.stack([one.square().sum() for one in outputs]).sum(), list(weights.values()))
        for outputs in (alone, shared)
    )
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(wanted, found, strict=True))


def test_groups_hold_every_net_once() -> None:
    """Grouping loses no net and doubles none; nets of one group begin alike, those of two do not."""
    whole = space()
    groups = supernet.group_by_first_layer(whole, whole.subnets)
    assert sorted(one.name for group in groups for one in group) == sorted(one.name for one in whole.subnets)
    begins = [{(one.shrink, supernet.list_convolutions(whole, one)[0]) for one in group} for group in groups]
    assert all(len(each) == 1 for each in begins)
    assert len({begin for each in begins for begin in each}) == len(groups)


@pytest.mark.parametrize("shape", [(5, 1, 128), (4, 3, 13), (3, 2, 8, 8), (3, 2, 9, 10)])
@pytest.mark.parametrize("shrink", [2, 3])
def test_a_lower_resolution_is_a_mean_of_neighbours(shape: tuple[int, ...], shrink: int) -> None:
    """What is reduced is what the library's average pooling gives, with what is left over at the edges dropped."""
    x = torch.randn(shape)
    wanted = functional.avg_pool1d(x, shrink) if len(shape) == 3 else functional.avg_pool2d(x, shrink)
    assert torch.allclose(layers.downsample(x, shrink), wanted, atol=1e-6)
