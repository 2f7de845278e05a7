"""Layers that users write and torch-pruning, the exporter or torch's fast paths treat in their own way."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.onnx._internal.exporter._registration import ONNXRegistry  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from unfold_supernet import elastic, fit  # noqa: E402
from unfold_supernet.elasticity.layer_replacement import copy_unnormed, replace_linear_code  # noqa: E402
from unfold_supernet.elasticity.width_groups import find_width_groups, trace_indices  # noqa: E402
from unfold_supernet.family.datasets import Dataset  # noqa: E402
from unfold_supernet.modules import evaluation, onnx_export  # noqa: E402
from unfold_supernet.modules.elastic_family import ElasticFamily  # noqa: E402
from unfold_supernet.modules.onnx_export import export_onnx, measure_disagreement  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch


def check_members(family: ElasticFamily, module: nn.Module, example: Tensor) -> None:
    """Check the full member against the module, and each member against its ONNX model for more rows."""
    more = torch.cat([example, example])[:-1]
    with torch.no_grad():
        torch.testing.assert_close(family("1x1", more), module(more), atol=1e-5, rtol=1e-4)
    for member in family.members():
        session = onnxruntime.InferenceSession(family.export("onnx", member))
        with torch.no_grad():
            outputs = family.extract(member.name)(more).numpy()
        np.testing.assert_allclose(session.run(None, {"x": more.numpy()})[0], outputs, atol=1e-5)


class Padded(nn.Module):  # type: ignore[misc,unused-ignore]
    """A classifier of tokens, of which those of number 0 are padding; torch's encoder leaves them out at inference."""

    def __init__(self, *, ignores: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(50, 24), nn.TransformerEncoder(layer, 2), nn.Linear(24, 5)
        self.ignores = ignores

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        shown = (~padding).float()[..., None] if self.ignores else torch.ones_like(x)
        result: Tensor = self.head((x * shown).sum(1) / shown.sum(1))
        return result


def make_tokens() -> Tensor:
    return torch.cat([torch.randint(1, 50, (3, 7)), torch.zeros(3, 2, dtype=torch.long)], 1)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_padded_tokens_are_no_obstacle() -> None:
    """An encoder as torch makes it by default, with a mask of padded tokens, loses heads and feed-forward units."""
    torch.manual_seed(0)
    module, example = Padded(ignores=True).eval(), make_tokens()
    family = elastic(module, example, widths=(0.5, 1))
    assert len(family.heads) == 2
    check_members(family, module, example)


def test_outputs_that_depend_on_padded_tokens_are_refused() -> None:
    """What torch computes for padded tokens differs between training and inference: they must be left out."""
    torch.manual_seed(0)
    with pytest.raises(UnfoldError, match=r"encoder for padded tokens differ.*enable_nested_tensor=False"):
        elastic(Padded(ignores=False).eval(), make_tokens(), widths=(0.5, 1))


def make_grouped(middle: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), middle(), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.GroupNorm(4, 16),
        lambda: nn.GroupNorm(1, 16),
        lambda: nn.Conv2d(16, 16, 3, groups=4),
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, groups=2), nn.GroupNorm(4, 16)),
    ],
)
def test_channels_of_groups_are_narrowed_alike(middle: Callable[[], nn.Module]) -> None:
    """Of each group of a norm or convolution as many channels remain, and every layer is narrowed."""
    module, example = make_grouped(middle), torch.randn(2, 3, 9, 9)
    family = elastic(module, example, widths=(0.5, 1))
    assert {part.path for part in family.inelastic} == {"7"}
    rows = family.members()[0].indices["0.weight"][0]
    assert rows is not None
    grouped = next(layer for layer in module[1].modules() if hasattr(layer, "groups") or hasattr(layer, "num_groups"))
    count = getattr(grouped, "num_groups", 0) or grouped.groups
    assert torch.bincount(rows // (16 // count), minlength=count).tolist() == [8 // count] * count
    check_members(family, module, example)


class Branches(nn.Module):  # type: ignore[misc,unused-ignore]
    """Maps of two convolutions that are pooled to two positions, flattened, and concatenated."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv1d(2, count, 3) for count in channels)
        self.head = nn.Linear(2 * sum(channels), 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for signals (n, 2, length)."""
        pooled = [torch.nn.functional.adaptive_avg_pool1d(branch(x).relu(), 2) for branch in self.branches]
        result: Tensor = self.head(torch.cat([each.flatten(1) for each in pooled], 1))
        return result


@pytest.mark.parametrize("channels", [(8, 8), (8, 12)])
def test_flattened_maps_are_followed_through_a_concatenation(channels: tuple[int, int]) -> None:
    """Both branches are narrowed apart, and a member returns what the module does if the other channels are 0."""
    torch.manual_seed(0)
    module, example = Branches(*channels), torch.randn(3, 2, 20)
    family = elastic(module, example, widths=(0.5, 1))
    assert sorted(group.root for group in family.groups) == ["branches.0", "branches.1"]
    check_members(family, module, example)
    kept = family.by_name["0.5x1"].indices
    with torch.no_grad():
        for index, branch in enumerate(module.branches):
            dropped = torch.ones(channels[index], dtype=torch.bool)
            dropped[kept[f"branches.{index}.weight"][0]] = False
            for parameter in branch.parameters():
                parameter[dropped] = 0
        torch.testing.assert_close(family("0.5x1", example), module(example))


class Joined(nn.Module):  # type: ignore[misc,unused-ignore]
    """Two layers, and their outputs beside the inputs, as in networks with skipped layers."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], list[Tensor]], norm: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 12)
        self.join, self.norm, self.head = join, norm, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        parts = self.join(x, self.first(x).relu(), self.second(x).relu())
        result: Tensor = self.head(self.norm(torch.cat(parts, -1)))
        return result


@pytest.mark.parametrize(
    ("join", "norm"),
    [
        (lambda x, a, b: [x, a, b], nn.Identity()),
        (lambda x, a, b: [a, x, b], nn.BatchNorm1d(26)),
        (lambda x, a, b: [x, x.sin(), b, a], nn.Identity()),
        (lambda x, a, b: [a, b, x], nn.LayerNorm(26)),
        (lambda x, a, b: [x, a, b], nn.LayerNorm(26)),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_inputs_beside_channels_are_counted(
    join: Callable[[Tensor, Tensor, Tensor], list[Tensor]], norm: nn.Module
) -> None:
    """A head that reads inputs and channels side by side keeps all inputs, and the channels that remain."""
    torch.manual_seed(0)
    module, example = Joined(join, norm).eval(), torch.randn(3, 6)
    with torch.no_grad():
        module(example)
    indices = trace_indices(module, example, find_width_groups(module, example)[0], 0.5)[1]
    rows = [indices[f"{name}.weight"][0] for name in ("first", "second")]
    read = indices["head.weight"][1]
    assert read is not None
    # numbers of inputs, and of the channels that remain, above 0
    numbered = [torch.arange(1.0, 7), *(torch.zeros(len(kept)) for kept in (torch.arange(8), torch.arange(12)))]
    for number, kept in zip(numbered[1:], rows, strict=True):
        assert kept is not None
        number[kept] = 1
    assert (torch.cat(join(*numbered))[read] != 0).all()
    assert len(read) == len(torch.cat(join(*numbered))) - 10


class Alternating(nn.Module):  # type: ignore[misc,unused-ignore]
    """A layer, of which every second channel is subtracted from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 32), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 4) for inputs (n, 10)."""
        hidden = self.first(x).relu()
        result: Tensor = self.second(hidden[:, ::2] - hidden[:, 1::2])
        return result


def test_neighbours_that_are_subtracted_remain_together() -> None:
    """A quarter of the channels remains in pairs, and members return what their ONNX models do."""
    torch.manual_seed(0)
    module, example = Alternating().eval(), torch.randn(3, 10)
    family = elastic(module, example, widths=(0.25, 1))
    rows = family.members()[0].indices["first.weight"][0]
    assert rows is not None
    assert rows.tolist() == sorted({*(rows // 2 * 2).tolist(), *(rows // 2 * 2 + 1).tolist()})
    assert len(rows) == 8
    check_members(family, module, example)


def test_rms_norms_are_narrowed() -> None:
    """Layers before ``torch.nn.RMSNorm`` lose channels, and the norm does too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.RMSNorm(16), nn.ReLU(), nn.Linear(16, 5)).eval()
    nn.init.uniform_(module[1].weight)
    example = torch.randn(3, 6)
    family = elastic(module, example, widths=(0.25, 1))
    assert family.members()[0].skeleton.get_submodule("1").normalized_shape == (4,)
    check_members(family, module, example)


class SingleHead(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention without an axis for heads, which the exporter converts in its parts only."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.hidden, self.head = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        result: Tensor = self.head(torch.relu(self.hidden(x.mean(1))))
        return result


def test_attention_without_heads_is_exported() -> None:
    """An operator that the exporter knows in another form only is converted in its parts."""
    torch.manual_seed(0)
    module, example = SingleHead().eval(), torch.randn(3, 7, 6)
    check_members(elastic(module, example, widths=(0.5, 1)), module, example)


class Bessel(nn.Module):  # type: ignore[misc,unused-ignore]
    """Computes what ONNX has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.special.bessel_j0(x)
        return result


class OwnKernels(nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolution with other kernels for each row, so that the number of groups follows the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.head = nn.Linear(6, 18), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        kernels = self.kernels(x.mean(2)).view(rows * 6, 1, 3)
        x = functional.conv1d(x.reshape(1, rows * 6, -1), kernels, padding=1, groups=rows * 6).view(rows, 6, -1)
        result: Tensor = self.head(x.mean(2))
        return result


@pytest.mark.parametrize(
    ("layer", "size", "message"),
    [
        (nn.Sequential(nn.Linear(6, 16), Bessel(), nn.Linear(16, 6)), (6,), r"cannot be converted to ONNX.*bessel_j0"),
        (
            nn.Sequential(nn.Conv1d(6, 16, 1), nn.Conv1d(16, 6, 1), OwnKernels()),
            (6, 9),
            r"layer 0\.2 cannot be converted to ONNX",
        ),
    ],
)
def test_operators_without_a_form_in_onnx_are_refused(layer: nn.Module, size: tuple[int, ...], message: str) -> None:
    """The layer or operator is named before the training, not when the trained members are exported."""
    with pytest.raises(UnfoldError, match=message):
        elastic(nn.Sequential(layer), torch.randn(3, *size), widths=(0.5, 1))


def test_a_trial_conversion_does_not_trace_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that are converted on trial are traced once; a trace of a large network takes seconds."""
    trace = Mock(wraps=torch.export.export)
    monkeypatch.setattr(torch.export, "export", trace)
    onnx_export.check_export(nn.Sequential(nn.Linear(6, 16), nn.Mish()).eval(), torch.randn(3, 6))
    assert trace.call_count == 1


def test_norms_by_the_batch_are_refused() -> None:
    """A batch norm without statistics of its own makes a row's outputs depend on the rows beside it."""
    module = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Linear(16, 5))
    with pytest.raises(UnfoldError, match=r"1 normalizes by the other rows.*track_running_stats=True"):
        elastic(module, torch.randn(3, 6), widths=(0.5, 1))


class Hidden(nn.Module):  # type: ignore[misc,unused-ignore]
    """A linear layer with a further computation, given as a function."""

    def __init__(self, compute: Callable[[Hidden, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.compute = nn.Linear(16, 16), compute
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, torch.relu(self.linear(x)))


def count_calls(layer: Hidden, x: Tensor) -> Tensor:
    layer.calls += 1
    return x * layer.calls


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda _layer, x: functional.dropout(x, 0.5), r"layer 1 returns other outputs.*training=self\.training"),
        (lambda _layer, x: x + torch.randn_like(x), r"layer 1 returns other outputs for the same inputs"),
        (count_calls, r"layer 1 returns other outputs.*keep nothing between calls"),
        (lambda _layer, x: x - x.mean(0), r"in layer 1, the outputs of a row depend on the other rows.*axis 0"),
        (lambda _layer, x: x / x.shape[0], r"in layer 1, the outputs of a row depend on the other rows"),
        (lambda _layer, x: functional.normalize(x, dim=0), r"in layer 1, the outputs of a row depend"),
    ],
    ids=["dropout", "noise", "state", "mean", "rows", "norm"],
)
def test_outputs_that_depend_on_more_than_the_row_are_refused(
    compute: Callable[[Hidden, Tensor], Tensor], message: str
) -> None:
    """No accuracy and no ONNX model describes a member with random answers, or answers that depend on the batch."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), Hidden(compute), nn.Linear(16, 5))
    with pytest.raises(UnfoldError, match=message):
        elastic(module, torch.randn(3, 6), widths=(0.5, 1))


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_refused() -> None:
    """Packed weights are not parameters; the layer is named."""
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    packed = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    with pytest.raises(UnfoldError, match=r"layer 0 is quantized.*before it is quantized"):
        elastic(packed, torch.randn(3, 6), widths=(0.5, 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weight_norm_by_hooks_is_folded() -> None:
    """Weights that ``torch.nn.utils.weight_norm`` computes before each call are narrowed; the user's module stays."""
    torch.manual_seed(0)
    normed = nn.utils.weight_norm
    module = nn.Sequential(
        normed(nn.Conv1d(3, 16, 3)), nn.ReLU(), normed(nn.Conv1d(16, 24, 3)), nn.ReLU(), nn.Flatten(),
        normed(nn.Linear(24 * 5, 5)),
    ).eval()  # fmt: skip
    example = torch.randn(2, 3, 9)
    with torch.no_grad():
        # as loaded weights are: the hook has not yet computed what is called next
        module[0].weight_g.mul_(2)
    family = elastic(module, example, widths=(0.5, 1))
    assert {group.root for group in family.groups} == {"0", "2"}
    assert "weight_g" in dict(module[0].named_parameters())
    check_members(family, module, example)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_get_their_weights_from_the_example() -> None:
    """Layers that learn their sizes from the first input are initialized on the example, in the mode that they had."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.LazyConv2d(16, 3),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(12),
        nn.ReLU(),
        nn.LazyLinear(5),
    )
    example = torch.randn(3, 2, 6, 6)
    family = elastic(module, example, widths=(0.5, 1))
    assert module[1].training
    assert int(module[1].num_batches_tracked) == 0
    assert {group.root for group in family.groups} == {"0", "4"}
    check_members(family, module.eval(), example)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_that_fail_on_the_example_are_refused() -> None:
    """A module that cannot be called gets the reason and the shape of its inputs."""
    module = nn.Sequential(nn.LazyLinear(12), nn.Unflatten(1, (5, 5)))
    with pytest.raises(UnfoldError, match=r"fails on the example.*\(4,\) for each row"):
        elastic(module, torch.randn(3, 4))


class Applied(nn.Module):  # type: ignore[misc,unused-ignore]
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gated(nn.Module):  # type: ignore[misc,unused-ignore]
    """Maps of a convolution that ``gate`` multiplies by each other, and a classifier of their means."""

    def __init__(self, gate: Callable[[Tensor], Tensor], channels: int = 16) -> None:
        super().__init__()
        self.maps, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.gate, self.head = gate, nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 5) for images (n, 3, height, width)."""
        result: Tensor = self.head(self.gate(self.norm(self.maps(x))).mean((2, 3)))
        return result


@pytest.mark.parametrize(
    ("gate", "step", "distance"),
    [
        (lambda x: functional.glu(x, 1), 1, 16),
        (lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :].sigmoid(), 1, 16),
        (lambda x: x[:, : -x.shape[1] // 2] * x[:, -x.shape[1] // 2 :].sigmoid(), 1, 16),
        (lambda x: x[:, ::2] * x[:, 1::2].sigmoid(), 2, 1),
        (lambda x: x[:, ::2].relu(), 2, 1),
    ],
)
def test_gated_channels_remain_in_pairs(gate: Callable[[Tensor], Tensor], step: int, distance: int) -> None:
    """Of the channels that a gate multiplies, both remain or none, and a quarter at a width of a quarter."""
    torch.manual_seed(0)
    module, example = Gated(gate).eval(), torch.randn(2, 3, 9, 9)
    family = elastic(module, example, widths=(0.25, 1))
    indices = family.members()[0].indices
    read, rows = indices["head.weight"][1], indices["maps.weight"][0]
    assert read is not None
    assert rows is not None
    assert len(read) == 4
    assert rows.tolist() == sorted([*(read * step).tolist(), *(read * step + distance).tolist()])
    check_members(family, module, example)


@pytest.mark.parametrize("axis", [1, 2], ids=["signals", "tokens"])
def test_channels_of_signals_and_tokens_are_split_along_their_axis(axis: int) -> None:
    """Of three axes, the second holds the channels of a convolution, and the last those of a linear layer."""
    torch.manual_seed(0)
    layer, end = (nn.Conv1d(3, 16, 3), nn.Conv1d(8, 4, 1)) if axis == 1 else (nn.Linear(3, 16), nn.Linear(8, 4))
    halves = (
        lambda x: x.narrow(axis, 0, x.shape[axis] // 2) * x.narrow(axis, x.shape[axis] // 2, x.shape[axis] // 2).tanh(),
        lambda x: x.chunk(2, axis)[0] * x.chunk(2, axis)[1].tanh(),
    )
    for gate in halves:
        module = nn.Sequential(layer, Applied(gate), end).eval()
        assert check_cut_out(module, torch.randn(2, 3, 9) if axis == 1 else torch.randn(2, 9, 3)) == {"0"}


class Backwards(torch.autograd.Function):  # type: ignore[misc,name-defined,unused-ignore]
    """Maps in the opposite order, by a function of the user's own."""

    @staticmethod
    def forward(_context: object, x: Tensor) -> Tensor:
        return x.flip(1)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return gradient.flip(1)


def gate_twice(x: Tensor) -> Tensor:
    first, second = (x[:, ::2] * x[:, 1::2]).chunk(2, 1)
    return first * second


@pytest.mark.parametrize(("gate", "channels"), [(Backwards.apply, 32), (lambda x: x[:, 4::2], 14), (gate_twice, 8)])
def test_channels_that_are_not_followed_stay(gate: Callable[[Tensor], Tensor], channels: int) -> None:
    """Channels that a function moves, that a slice skips, or that depend on more than are removed are kept."""
    torch.manual_seed(0)
    with pytest.raises(UnfoldError, match=r"no channels of this module can be narrowed.*maps"):
        elastic(Gated(gate, channels).eval(), torch.randn(2, 3, 9, 9), widths=(0.5, 1))


@pytest.mark.parametrize("middle", [nn.Identity, lambda: nn.GroupNorm(1, 32)], ids=["plain", "norm"])
@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x * x[:, :1].sigmoid(),
        lambda x: x * x[:, 0, None].sigmoid(),
        lambda x: torch.cat([x[:, 20:], x[:, :20]], 1),
        lambda x: x.sort(1).values,
    ],
    ids=["slice", "select", "swap", "sort"],
)
def test_channels_with_a_place_of_their_own_stay(
    gate: Callable[[Tensor], Tensor], middle: Callable[[], nn.Module]
) -> None:
    """Channels that are selected by their place, or move to another one, are kept, also before a norm."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3), Applied(gate), middle(), nn.Flatten(), nn.Linear(32 * 9, 5))
    groups, inelastic = find_width_groups(module.eval(), torch.randn(2, 3, 5, 5))
    assert not groups
    assert {part.path for part in inelastic} == {"0", "4"}


def check_cut_out(module: nn.Module, example: Tensor) -> set[str]:
    """Check that a narrow copy is the module with the other channels at 0; return the roots of its groups."""
    groups, _ = find_width_groups(module.eval(), example)
    narrowed, indices = trace_indices(module, example, groups, 0.5)
    remaining = dict(narrowed.named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            kept = torch.zeros(parameter.shape, dtype=torch.bool)
            axes = [
                torch.arange(size) if index is None else index
                for size, index in zip(parameter.shape, indices[name], strict=True)
            ]
            kept[torch.meshgrid(*axes, indexing="ij")] = True
            remaining[name].copy_(parameter[kept].reshape(remaining[name].shape))
            parameter.mul_(kept)
        torch.testing.assert_close(narrowed.eval()(example), module(example))
    return {group.root for group in groups}


@pytest.mark.parametrize(
    ("flatten", "inputs"),
    [
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), 72),
        (lambda x: x.transpose(1, 3).transpose(1, 2).reshape(len(x), -1), 72),
        (lambda x: torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1).flatten(1), 16),
    ],
    ids=["last", "view", "stack"],
)
def test_channels_that_are_flattened_last_stay(flatten: Callable[[Tensor], Tensor], inputs: int) -> None:
    """They are neighbours in the flattened map, where those of one channel are by default."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), Applied(flatten))
    module = nn.Sequential(*layers, nn.Linear(inputs, 20), nn.ReLU(), nn.Linear(20, 5))
    assert check_cut_out(module, torch.randn(2, 3, 7, 7)) == {"0", "4"}


@pytest.mark.parametrize(
    ("middle", "roots"),
    [
        (lambda: nn.Conv2d(12, 24, 3, groups=12), {"2", "4"}),
        (lambda: nn.Conv2d(12, 48, 3, groups=12), {"2", "4"}),
        (lambda: nn.Sequential(nn.ChannelShuffle(3), nn.Conv2d(12, 24, 3, groups=3)), {"2.1", "4"}),
    ],
    ids=["twice", "four times", "shuffled"],
)
def test_kernels_of_a_channel_are_narrowed_together(middle: Callable[[], nn.Module], roots: set[str]) -> None:
    """Of a depthwise convolution with several kernels a channel, as in EEGNet, each channel keeps as many of them."""
    torch.manual_seed(0)
    layer = middle()
    outputs = [each.out_channels for each in layer.modules() if isinstance(each, nn.Conv2d)][-1]
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(outputs, 16, 1), nn.ReLU())
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    assert check_cut_out(module, torch.randn(2, 3, 9, 9)) == roots


class Halves(nn.Module):  # type: ignore[misc,unused-ignore]
    """A block as of YOLOv8: half of the channels is refined, and all that was computed is concatenated."""

    def __init__(self, take: Callable[[Tensor], tuple[Tensor, Tensor]], *, adds: bool) -> None:
        super().__init__()
        self.start, self.end, self.take, self.adds = nn.Conv2d(8, 16, 1), nn.Conv2d(32, 12, 1), take, adds
        self.refine = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Compute maps (n, 12, height, width) from maps with 8 channels."""
        parts = [*self.take(self.start(x).relu())]
        for layer in self.refine:
            parts.append(layer(parts[-1]) + (parts[-1] if self.adds else 0.0))
        result: Tensor = self.end(torch.cat(parts, 1))
        return result


def take_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


def take_quarter(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take parts of unequal sizes; the first is that of the code of FasterNet."""
    first, second = x.split((x.shape[1] // 4, x.shape[1] - x.shape[1] // 4), 1)
    return second, first


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("take", [take_halves, lambda x: x.chunk(2, 1)], ids=["slices", "chunks"])
def test_halves_that_do_not_depend_on_each_other_are_narrowed_alike(
    take: Callable[[Tensor], tuple[Tensor, Tensor]], adds: bool
) -> None:
    """Code that takes the first half of the channels takes the half of those that remain."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Halves(take, adds=adds), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    ).eval()
    example = torch.randn(2, 3, 9, 9)
    family = elastic(module, example, widths=(0.5, 1))
    assert {part.path for part in family.inelastic} == {"5"}
    rows = family.members()[0].indices["2.start.weight"][0]
    assert rows is not None
    assert torch.bincount(rows // 8, minlength=2).tolist() == [4, 4]
    check_members(family, module, example)
    assert "2.start" in check_cut_out(module, example)


@pytest.mark.parametrize("take", [lambda x: x.chunk(2, 1)[::-1], take_quarter], ids=["swapped", "unequal"])
def test_parts_are_followed_to_where_they_are_concatenated(take: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Swapped and unequal parts are narrowed with the layers that read them."""
    torch.manual_seed(0)
    joined = Applied(lambda x: torch.cat([*take(x)], 1).mean((2, 3)))
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), joined)
    module = nn.Sequential(*layers, nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 5))
    assert check_cut_out(module, torch.randn(2, 3, 7, 7)) == {"0", "2", "4"}


def test_layer_norms_keep_the_scales_of_their_channels() -> None:
    """Of a quarter of the channels, each is scaled and shifted as in the module."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).eval()
    family = elastic(module, torch.randn(2, 6), widths=(0.25, 1))
    indices = family.members()[0].indices
    for key in ("0.bias", "1.weight", "1.bias"):
        assert indices[key][0].tolist() == indices["3.weight"][1].tolist()


class Weighted(nn.Module):  # type: ignore[misc,unused-ignore]
    """Channels that are weighed by themselves and their neighbours, as in ECA-Net, in a branch that starts near 0."""

    def __init__(self, turns: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.turns, self.scale = turns, nn.Parameter(torch.full((16, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Compute maps (n, 16, height, width)."""
        result: Tensor = x + self.scale * self.outer(self.turns(self.inner(x)))
        return result


def weigh_neighbours(x: Tensor) -> Tensor:
    means = x.mean((2, 3))[:, None]
    return x * functional.conv1d(means, torch.ones(1, 1, 3), padding=1).sigmoid()[:, 0, :, None, None]


def flip_last(x: Tensor) -> Tensor:
    """Change the sign of the last sixth of the channels."""
    is_first = torch.arange(x.shape[1])[:, None, None] < x.shape[1] * 5 // 6
    return torch.where(is_first, x, -x)


@pytest.mark.parametrize(
    "turns", [weigh_neighbours, lambda x: x.cumsum(1), flip_last], ids=["neighbours", "sums", "places"]
)
def test_channels_that_are_computed_in_their_order_stay(turns: Callable[[Tensor], Tensor]) -> None:
    """Without some of them, others would be neighbours; those around them are narrowed."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), Weighted(turns), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    groups, inelastic = find_width_groups(nn.Sequential(*layers).eval(), torch.randn(2, 3, 7, 7))
    assert [group.channels for group in groups] == [16]
    assert ("2.inner", "outputs depend on the order of its channels") in [
        (part.path, part.reason) for part in inelastic
    ]


@pytest.mark.parametrize("fill", [torch.zeros, torch.ones])
def test_rows_of_an_example_may_be_equal(fill: Callable[..., Tensor]) -> None:
    """Outputs then differ by rounding alone, from row to row and where channels change places."""
    torch.manual_seed(0)
    wide = [nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)]
    groups, _ = find_width_groups(nn.Sequential(*wide), fill(2, 12))
    assert [group.channels for group in groups] == [24, 24]


class Ghost(nn.Module):  # type: ignore[misc,unused-ignore]
    """Half of the maps, and cheap maps made of them, as in GhostNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.maps, self.cheap = nn.Conv2d(inputs, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Compute maps (n, outputs, height, width)."""
        maps = self.maps(x).relu()
        return torch.cat([maps, self.cheap(maps).relu()], 1)


def test_maps_that_are_made_of_others_beside_them_are_narrowed() -> None:
    """A depthwise convolution whose outputs stand beside its inputs is narrowed with them."""
    torch.manual_seed(0)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    module = nn.Sequential(Ghost(3, 16), Ghost(16, 24), *pooled)
    assert check_cut_out(module, torch.randn(2, 3, 7, 7)) == {"0.maps", "1.maps"}


class Shortcut(nn.Module):  # type: ignore[misc,unused-ignore]
    """Maps of a convolution and of a ghost module, added."""

    def __init__(self) -> None:
        super().__init__()
        self.ghost, self.straight = Ghost(3, 16), nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute maps (n, 16, height, width)."""
        result: Tensor = self.ghost(x) + self.straight(x)
        return result


def test_maps_that_are_added_to_two_that_depend_on_each_other_are_narrowed() -> None:
    """Two channels of a convolution go together where those that they are added to do."""
    torch.manual_seed(0)
    module = nn.Sequential(Shortcut(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    assert check_cut_out(module, torch.randn(2, 3, 7, 7)) == {"0.straight"}


class PooledByAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """A signal that is pooled by its products with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.query, self.head = nn.Conv1d(2, 24, 3), nn.Parameter(torch.randn(24)), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 4) for signals (n, 2, length)."""
        tokens = self.maps(x).transpose(1, 2)
        shares = (tokens @ self.query).softmax(1)
        result: Tensor = self.head((tokens * shares[..., None]).sum(1))
        return result


def test_products_with_a_vector_are_exported_as_they_are_computed() -> None:
    """ONNX Runtime computes another product of turned maps and a vector."""
    torch.manual_seed(0)
    module, example = PooledByAttention().eval(), torch.randn(3, 2, 20)
    content = export_onnx(module, example)
    assert measure_disagreement(module, content, (example,)) < 1e-5
    with torch.no_grad():
        module.query += 1
    assert measure_disagreement(module, content, (example,)) > 1e-2


def test_operators_are_parsed_once_for_all_exports() -> None:
    """Torch's registry of operators is kept for the next export, which returns the same, and torch itself restored."""
    original = vars(ONNXRegistry)["from_torchlib"]
    module, example = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6)
    content = export_onnx(module, example)
    parsed = onnx_export._build_registry.cache_info().misses
    assert parsed
    assert export_onnx(module, example) == content
    assert onnx_export._build_registry.cache_info().misses == parsed
    assert vars(ONNXRegistry)["from_torchlib"] is original


def test_members_that_another_engine_computes_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies are measured in torch and members served in ONNX Runtime: an error names the member."""
    torch.manual_seed(0)
    family = elastic(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6), widths=(0.5, 1))
    rows = np.arange(40)
    data = Dataset(
        x=np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), extra=np.zeros((40, 0), np.float32),
        y=rows % 3, names=("a", "b", "c"), train=rows, test=rows, digest="", about="",
    )  # fmt: skip
    other = export_onnx(nn.Linear(6, 3), torch.randn(2, 6))
    monkeypatch.setattr(evaluation, "export_onnx", lambda *_: other)
    with pytest.raises(UnfoldError, match=r"member 0\.5x1 returns other outputs in ONNX Runtime than in torch"):
        evaluation._export_members(family, data, {"0.5x1": 1.0}, lambda *_: None)


class OwnLinear(nn.Module):  # type: ignore[misc,unused-ignore]
    """A linear layer of the user's, as GPT-2's if its weight is turned, and with noise while it is trained."""

    def __init__(self, inputs: int, outputs: int, *, turned: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*((inputs, outputs) if turned else (outputs, inputs))))
        self.bias, self.turned, self.noise = nn.Parameter(torch.randn(outputs)), turned, noise

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (..., outputs) for inputs (..., inputs)."""
        matrix = self.weight if self.turned else self.weight.T
        result: Tensor = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)
        return result + self.noise * torch.randn_like(result) if self.training else result


@pytest.mark.parametrize("turned", [False, True])
def test_own_linear_layers_are_narrowed(turned: bool) -> None:
    """Weights of both layouts are followed, in every place of a layer that is shared."""
    torch.manual_seed(0)
    again, x = OwnLinear(16, 16, turned=turned), torch.randn(3, 6)
    module = nn.Sequential(OwnLinear(6, 16, turned=turned), nn.ReLU(), again, again, nn.Linear(16, 5)).eval()
    expected = module(x)
    replaced = replace_linear_code(module)
    assert replaced[2] is replaced[3]
    assert replaced[0].turned is turned
    torch.testing.assert_close(replaced.eval()(x), expected)
    assert check_cut_out(replaced, x)


def test_layers_with_noise_keep_their_code() -> None:
    """A layer that computes something else while it is trained is no linear one."""
    module = nn.Sequential(OwnLinear(6, 8, noise=0.1), OwnLinear(8, 8))
    assert [type(layer) for layer in replace_linear_code(module)] == [OwnLinear, nn.Linear]


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*")
def test_spectral_norm_by_hooks_leaves_other_layers_elastic() -> None:
    """Its layers are named and keep their width; a copy returns the same, and the user's module stays."""
    torch.manual_seed(0)
    normed = nn.utils.spectral_norm
    layers = (normed(nn.Conv2d(3, 12, 3)), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    example = torch.randn(2, 3, 9, 9)
    expected, copied = module(example), copy_unnormed(module).eval()
    torch.testing.assert_close(copied(example), expected)
    groups, inelastic = find_width_groups(copied, example)
    assert {group.root for group in groups} == {"2", "4"}
    assert "the weight of 0 is parametrized" in {part.reason for part in inelastic}
    torch.testing.assert_close(module(example), expected)


class TrainedBeside(nn.Module):  # type: ignore[misc,unused-ignore]
    """In training, a second head reads the hidden features too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.auxiliary = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        x = torch.relu(self.stem(x))
        result: Tensor = self.head(torch.relu(self.middle(x)))
        return result + self.auxiliary(x) if self.training else result


def test_channels_that_only_training_reads_keep_their_width() -> None:
    """A narrow member can be trained: what layers read that only training calls is shared, and the rest is narrowed."""
    torch.manual_seed(0)
    family = elastic(TrainedBeside(), torch.randn(4, 6), widths=(0.5, 1))
    assert [group.root for group in family.groups] == ["middle"]
    assert "stem" in {part.path for part in family.inelastic}
    family.by_name["0.5x1"].skeleton.train()
    assert family("0.5x1", torch.randn(4, 6)).shape == (4, 3)


class Hooked(nn.Module):  # type: ignore[misc,unused-ignore]
    """Scales the channels of its first layer in a hook that holds the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.rand(16))
        self.stem.register_forward_hook(lambda _layer, _inputs, outputs: outputs * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        result: Tensor = self.head(self.stem(x))
        return result


class Unregistered(nn.Module):  # type: ignore[misc,unused-ignore]
    """Keeps layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(6, 16), [nn.Linear(16, 16)], nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        result: Tensor = self.head(self.hidden[0](self.stem(x)))
        return result


@pytest.mark.parametrize(("build", "path"), [(Hooked, "layer 0.stem"), (Unregistered, "layer 0.head")])
def test_weights_outside_the_module_are_refused(build: type[nn.Module], path: str) -> None:
    """They would neither be trained nor copied; the layer that returns first what depends on them is named."""
    with pytest.raises(UnfoldError, match=f"{path} computes with weights that are not parameters"):
        elastic(nn.Sequential(build()), torch.randn(4, 6), widths=(0.5, 1))


class MixedPrecision(nn.Module):  # type: ignore[misc,unused-ignore]
    """Computes hidden features in double precision, and its outputs in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(6, 16).double(), nn.Linear(16, 12).double(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        result: Tensor = self.head(torch.relu(self.middle(torch.relu(self.stem(x.double())))).float())
        return result


def test_layers_of_two_precisions_are_narrowed() -> None:
    """A module that converts tensors between its layers runs in its own precisions only."""
    torch.manual_seed(0)
    module, example = MixedPrecision().eval(), torch.randn(4, 6)
    family = elastic(module, example, widths=(0.5, 1))
    assert {group.root for group in family.groups} == {"stem", "middle"}
    check_members(family, module, example)


class Checkpointed(nn.Module):  # type: ignore[misc,unused-ignore]
    """A block that is computed again for its gradients, to save memory."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, 3) for inputs (n, 6)."""
        x = torch.relu(self.stem(x))
        if self.training:
            x = checkpoint(lambda hidden: torch.tanh(self.block(hidden)), x, use_reentrant=self.use_reentrant)
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_that_are_computed_again_for_gradients_are_refused(use_reentrant: bool) -> None:
    """By then, the layers of a member no longer hold its weights: gradients would be wrong, or missing."""
    with pytest.raises(UnfoldError, match=r"layer \S+ is computed again for its gradients.*checkpointing off"):
        elastic(Checkpointed(use_reentrant), torch.randn(4, 6), widths=(0.5, 1))


class Causal(nn.Module):  # type: ignore[misc,unused-ignore]
    """A classifier of tokens, each of which attends to those before it: a mask of minus infinity is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        # gradients of tables may be sparse, and those of members are not
        self.embed, self.head = nn.Embedding(50, 16, sparse=True), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(8))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute outputs (n, 3) for tokens (n, 8)."""
        result: Tensor = self.head(self.layer(self.embed(tokens), src_mask=self.mask)[:, -1])
        return result


def test_masks_of_infinity_and_sparse_tables_are_trained() -> None:
    """Neither is a broken weight: the family is trained, and equals its ONNX models."""
    torch.manual_seed(0)
    module, example = Causal().eval(), torch.randint(0, 50, (6, 8))
    family = elastic(module, example, widths=(0.5, 1))
    check_members(family, module, example)
    fit(family, example, torch.arange(6) % 3, epochs=1, batch=3)
    assert not torch.equal(family.weights["embed.weight"], module.embed.weight)
    assert "embed" in {part.path for part in family.inelastic}


def test_operations_of_recurrent_layers_are_counted() -> None:
    """An LSTM multiplies its inputs and its state by four matrices at each step."""

    class Last(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.hidden, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(torch.relu(self.hidden(self.rnn(x)[0][:, -1])))
            return result

    family = elastic(Last(), torch.randn(4, 10, 6), widths=(1,))
    assert family.members()[0].macs == 10 * 4 * 8 * (6 + 8) + 8 * 16 + 16 * 3
