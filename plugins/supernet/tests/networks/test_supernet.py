"""Shared weights: prefixes, grouping, calibration, views, threads."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")


from plugins.supernet.tests.helpers import (  # noqa: E402
    make_form_space,
    make_space,
)
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    draw_inputs,
    make_random_supernet,
)
from unfold_supernet.networks import supernet  # noqa: E402
from unfold_supernet.networks import supernet as net  # noqa: E402
from unfold_supernet.networks.batch_norm import calibrate_norms  # noqa: E402
from unfold_supernet.networks.space import (  # noqa: E402
    Space,
)
from unfold_supernet.schema.space import SpaceSpec  # noqa: E402

pytestmark = pytest.mark.torch


def make_resolution_space() -> Space:
    """Build a space of every combination of two widths, two depths and two resolutions."""
    lists = {"expand": (0.5, 1.0), "depth": (1, 2), "kernel": (3,), "resolution": (0.5, 1.0)}
    given = {"form": "conv2d", "coupling": "independent", "stages": ({"width": 8}, {"width": 8}), **lists}
    return make_space(SpaceSpec.model_validate(given), 3, (8, 8), 2, 4)


@pytest.mark.parametrize("rows", [2, 9, 16, 17])
def test_leftover_row_joins_a_calibration_batch(rows: int) -> None:
    """Statistics are the means over all rows whatever the size of the last batch; exact for a linear stem."""
    of = make_form_space("mlp", 0)
    x = torch.randn(rows, 3, 1, generator=torch.Generator().manual_seed(1))
    weights = net.init_weights(of, 0)
    (mean, _variance), *_ = calibrate_norms(of, weights, of.largest, x, batch=8)
    torch.testing.assert_close(mean, weights["stem.weight"][:, :, 0] @ x.mean(0)[:, 0])


@pytest.mark.parametrize("form", ["conv1d", "transformer"])
def test_views_share_the_memory_of_the_weights(form: str) -> None:
    """Every view lies in the memory of the shared weights."""
    found = make_random_supernet(make_form_space(form))
    homes = {tensor.untyped_storage().data_ptr() for tensor in found.weights.values()}
    for bound in found.bound.values():
        for view in (*bound.views, bound.head):
            assert {tensor.untyped_storage().data_ptr() for tensor in view} <= homes


@pytest.mark.parametrize("form", ["conv2d", "transformer"])
def test_threads_do_not_interfere(form: str) -> None:
    """Threads that run different subnets at once get the results of a single thread."""
    found = make_random_supernet(make_form_space(form))
    x, extra = draw_inputs(found.space)
    names = list(found.bound)
    alone = {name: found(name, x, extra) for name in names}
    wrong: list[str] = []

    def ask(start: int) -> None:
        for at in range(150):
            name = names[(start + at) % len(names)]
            if not torch.equal(found(name, x, extra), alone[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_cached_prefixes_give_the_same_outputs_and_gradients() -> None:
    """Subnets that share prefixes give the same outputs and the same summed gradient as separate runs."""
    whole, seen = make_resolution_space(), supernet.PrefixCache()
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


def test_grouping_by_first_layer_partitions_the_subnets() -> None:
    """Groups partition the subnets; members start with the same layer, and groups with different ones."""
    whole = make_resolution_space()
    groups = supernet.group_by_first_layer(whole, whole.subnets)
    assert sorted(one.name for group in groups for one in group) == sorted(one.name for one in whole.subnets)
    begins = [{(one.shrink, supernet.list_convolutions(whole, one)[0]) for one in group} for group in groups]
    assert all(len(each) == 1 for each in begins)
    assert len({begin for each in begins for begin in each}) == len(groups)
