"""Families from a user's module: width groups, skipped blocks, shared weights, exports and errors."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")


from safetensors.torch import load, save  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import unfold_supernet  # noqa: E402
from unfold_supernet import elastic  # noqa: E402
from unfold_supernet.elasticity.depth_blocks import find_block_runs, replace_blocks  # noqa: E402
from unfold_supernet.elasticity.width_groups import find_width_groups, narrow  # noqa: E402
from unfold_supernet.modules import onnx_export  # noqa: E402
from unfold_supernet.modules.elastic_family import ElasticFamily  # noqa: E402
from unfold_supernet.modules.problem import FitOptions  # noqa: E402
from unfold_supernet.modules.training import fit  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch


class Residual(nn.Module):  # type: ignore[misc,unused-ignore]
    """Two convolutions; their sum with the input is rectified."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Plain(nn.Module):  # type: ignore[misc,unused-ignore]
    """A block without a residual connection: it cannot be skipped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


class Inverted(nn.Module):  # type: ignore[misc,unused-ignore]
    """Expansion, depthwise convolution, squeeze-and-excitation and projection, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 4, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(4, hidden, 1), nn.Hardsigmoid())
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(self.expand(x))
        result: Tensor = x + self.project(out * self.excite(self.squeeze(out)))
        return result


class Dense(nn.Module):  # type: ignore[misc,unused-ignore]
    """Concatenates its input and new channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.relu(self.conv(x))], 1)


class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """Token embedding, encoder layers and a head."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
        self.embed = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.encoder(self.embed(tokens)).mean(1))
        return result


def make_image_net(*blocks: nn.Module, channels: int = 8, out: int = 0) -> nn.Module:
    """Build an image classifier of three classes around blocks."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Sequential(*blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(out or channels, 3),
    )


IMAGES = torch.randn((4, 3, 12, 12), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "plain": (lambda: make_image_net(Plain(8), Plain(8)), IMAGES),
    "residual": (lambda: make_image_net(Residual(8), Residual(8)), IMAGES),
    "inverted": (lambda: make_image_net(Inverted(8), Inverted(8)), IMAGES),
    "dense": (lambda: make_image_net(Dense(8, 4), Dense(12, 4), out=16), IMAGES),
    "post-norm encoder": (lambda: Encoder(norm_first=False), torch.arange(24).reshape(2, 12)),
    "pre-norm encoder": (lambda: Encoder(norm_first=True), torch.arange(24).reshape(2, 12)),
    "one-dimensional": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 12, 5),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        torch.randn((3, 2, 40), generator=torch.Generator().manual_seed(1)),
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)),
        torch.randn((3, 6), generator=torch.Generator().manual_seed(2)),
    ),
}


def make_case(name: str) -> tuple[nn.Module, Any]:
    """Build a module with norm statistics that are not those of a fresh one."""
    build, example = CASES[name]
    torch.manual_seed(0)
    module = build()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    return module.eval(), example


@pytest.mark.parametrize("name", sorted(CASES))
def test_full_member_equals_the_module(name: str) -> None:
    """The member of full width and depth returns what the user's module returns."""
    module, example = make_case(name)
    family = elastic(module, example, widths=(0.25, 0.5, 1))
    with torch.no_grad():
        assert torch.allclose(family("1x1", example), module(example), atol=1e-6)


def silence_heads(module: nn.Module, family: ElasticFamily, width: float) -> None:
    """Let the heads that a member of some width lacks add nothing to the output of their layer."""
    for group in family.heads:
        layer = module.get_submodule(group.path)
        for head in set(group.order) - set(group.keep(width)):
            layer.out_proj.weight.data[:, head * layer.head_dim : (head + 1) * layer.head_dim] = 0.0


@pytest.mark.parametrize("name", sorted(CASES))
def test_member_equals_the_pruned_module(name: str) -> None:
    """A narrow member returns what a copy returns from which torch-pruning removed the same channels, without heads."""
    module, example = make_case(name)
    family = elastic(module, example, widths=(0.5, 1))
    pruned = narrow(module, example, family.groups, 0.5)
    silence_heads(pruned, family, 0.5)
    with torch.no_grad():
        assert torch.allclose(family("0.5x1", example), pruned(example), atol=1e-6)
        assert torch.allclose(family.extract("0.5x1")(example), pruned(example), atol=1e-6)


@pytest.mark.parametrize("name", sorted(CASES))
def test_members_share_weights_and_are_nested(name: str) -> None:
    """Each smaller member keeps a subset of the elements of the next one, of one set of weights."""
    module, example = make_case(name)
    family = elastic(module, example, widths=(0.25, 0.5, 0.75, 1))
    members = family.members()
    for small, large in itertools.pairwise(members):
        assert small.parameters < large.parameters
        for key, indices in small.indices.items():
            for axis, kept in enumerate(indices):
                size = family.weights[key].shape[axis]
                inside = set(range(size)) if kept is None else set(kept.tolist())
                other = large.indices[key][axis]
                assert inside <= (set(range(size)) if other is None else set(other.tolist()))


@pytest.mark.parametrize("name", sorted(CASES))
def test_exported_members_agree_with_onnx_runtime(name: str) -> None:
    """ONNX Runtime returns the outputs of every member within 1e-5, for another number of rows than the example."""
    module, example = make_case(name)
    family = elastic(module, example, widths=(0.25, 1))
    rows = torch.cat([example, example, example])
    for member in family.members():
        session = onnxruntime.InferenceSession(family.export("onnx", member.name))
        with torch.no_grad():
            expected = family(member.name, rows).numpy()
        np.testing.assert_allclose(session.run(None, {"x": rows.numpy()})[0], expected, atol=1e-5)


def test_weights_of_16_bits_are_refused() -> None:
    """They would be exported to a model that ONNX Runtime cannot run."""
    module, example = make_case("mlp")
    with pytest.raises(UnfoldError, match=r"0\.weight has 16 bits.*module\.float"):
        elastic(module.bfloat16(), example.bfloat16(), widths=(0.5, 1))


def test_options_of_a_training_are_checked() -> None:
    """A misspelt optimizer and batches without a spread are named; weights of classes have the precision of outputs."""
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    x, y = torch.randn(6, 6, dtype=torch.float64), torch.arange(6) % 2
    family = elastic(module, x, widths=(0.5, 1))
    wrong: Any = "adam"
    with pytest.raises(UnfoldError, match=r"unknown optimizer 'adam'.*adamw or sgd"):
        fit(family, x, y, FitOptions(optimizer=wrong, epochs=1))
    with pytest.raises(UnfoldError, match=r"batch: a step fails: Expected more than 1 value"):
        fit(family, x, y, FitOptions(batch=1, epochs=1))
    fit(family, x, y, FitOptions(class_weights=(1.0, 2.0), epochs=1))


def test_members_are_given_by_themselves_or_by_name(tmp_path: Path) -> None:
    """A member or its name states what is computed or exported, a path or its text where to."""
    module, example = make_case("mlp")
    family = elastic(module, example, widths=(0.5, 1))
    content = family.export("onnx", family.members()[0], str(tmp_path / "member.onnx"))
    assert (tmp_path / "member.onnx").read_bytes() == content == family.export("onnx", "0.5x1")
    outputs = [family(member, example) for member in (family.members()[0], "0.5x1")]
    assert torch.equal(*outputs)
    assert torch.equal(family.extract(family.members()[0])(example), outputs[0])


def test_arrays_train_a_family_as_tensors_do() -> None:
    """Arrays in double precision give the weights that tensors in single precision give."""
    x, y = np.random.default_rng(0).normal(size=(32, 6)), np.arange(32) % 2
    states = []
    for inputs, targets in ((x, y), (torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y))):
        module, example = make_case("mlp")
        family = elastic(module, example, widths=(0.5, 1))
        unfold_supernet.fit(family, inputs, targets, epochs=1, batch=8)
        states.append(family.state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        (torch.zeros(6, 3), "values", r"shape \(6, 3\) for a module of 2 outputs"),
        (torch.zeros(6), "labels", "one column for each output"),
        (torch.zeros(6, 2), "value", "unknown task 'value'"),
        (torch.full((6, 2), 2.0), "labels", "not all 0 or 1"),
        (torch.full((6, 2), torch.nan), "values", "a target is not finite"),
    ],
)
def test_targets_of_another_task_are_refused(y: Tensor, task: Any, message: str) -> None:
    """Columns that are not those of the outputs, and a misspelt task, are named before a step is taken."""
    module, example = make_case("mlp")
    family = elastic(module, example, widths=(0.5, 1))
    with pytest.raises(UnfoldError, match=message):
        fit(family, torch.randn(6, 6), y, FitOptions(task=task, epochs=1))
    with pytest.raises(UnfoldError, match="no member '2x1'"):
        family("2x1", example)


@pytest.mark.parametrize("kind", [torch.bool, torch.int8, torch.uint16, torch.int32])
def test_classes_may_be_whole_numbers_of_any_kind(kind: torch.dtype) -> None:
    """Losses of torch take 64 bits only; other whole numbers and booleans are converted."""
    module, example = make_case("mlp")
    family = elastic(module, example.requires_grad_(), widths=(0.5, 1))
    unfold_supernet.fit(family, torch.randn(6, 6), (torch.arange(6) % 2).to(kind), epochs=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", float("nan")),
        ("decay", -1),
        ("distill", 2),
        ("clip", 0),
        ("seed", -3),
        ("calibrate", 0),
        ("warmup", -1),
    ],
)
def test_options_outside_their_range_are_named(name: str, value: float) -> None:
    """Negative, undefined and too large values would train another family, or none."""
    module, example = make_case("mlp")
    with pytest.raises(UnfoldError, match=f"{name}: {value} is not from"):
        unfold_supernet.fit(
            elastic(module, example, widths=(0.5, 1)), torch.randn(6, 6), torch.arange(6) % 2, **{name: value}
        )


@pytest.mark.parametrize("task", ["classes", "embeddings"])
def test_outputs_for_each_position_are_not_trained(task: str) -> None:
    """Targets are those of rows: a module that segments is exported, and trained by code of its own."""
    module, x = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 1)), torch.randn(6, 2, 8)
    with pytest.raises(UnfoldError, match=r"returns \(3, 6\) values for each row"):
        unfold_supernet.fit(elastic(module, x, widths=(0.5, 1)), x, torch.arange(6) % 3, task=task)


def test_training_that_cannot_start_leaves_the_weights_alone() -> None:
    """Inputs that are not finite, weights of other classes and empty batches are named before a step is taken."""
    module, example = make_case("mlp")
    family = elastic(module, example, widths=(0.5, 1))
    before, y = {key: tensor.clone() for key, tensor in family.state_dict().items()}, torch.arange(6) % 2
    with pytest.raises(UnfoldError, match="an input is not finite"):
        unfold_supernet.fit(family, torch.full((6, 6), torch.nan), y)
    with pytest.raises(UnfoldError, match="3 class weights for a module of 2 outputs"):
        unfold_supernet.fit(family, torch.zeros(6, 6), y, class_weights=(1.0, 2.0, 3.0))
    with pytest.raises(UnfoldError, match="0 rows a batch"):
        unfold_supernet.fit(family, torch.zeros(6, 6), y, batch=0)
    assert all(torch.equal(before[key], tensor) for key, tensor in family.state_dict().items())


def test_threads_trace_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are exported by a pool of threads are traced one at a time."""
    at_a_time, most = 0, 0

    def convert(*_: object) -> bytes:
        nonlocal at_a_time, most
        at_a_time += 1
        most = max(most, at_a_time)
        time.sleep(0.02)
        at_a_time -= 1
        return b""

    monkeypatch.setattr(onnx_export, "_convert", convert)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: onnx_export.export_onnx(nn.Linear(2, 2), torch.zeros(2, 2)), range(4)))
    assert most == 1


class Interrupted(nn.Linear):  # type: ignore[misc,unused-ignore]
    """A layer during which other threads run."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (n, out) for inputs (n, in)."""
        time.sleep(0.001)
        result: Tensor = super().forward(x)
        return result


def test_threads_may_call_and_extract_one_member() -> None:
    """Each answer is computed with the member's weights alone, and the family can be copied afterwards."""
    module, x = nn.Sequential(Interrupted(6, 16), nn.ReLU(), Interrupted(16, 2)), torch.randn(4, 6)
    family = elastic(module, x, widths=(0.5, 1))
    expected = family("0.5x1", x)

    def answer(turn: int) -> Tensor:
        return family.extract("0.5x1")(x) if turn % 4 == 0 else family("0.5x1", x)

    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(answer, range(40))]
    assert all(torch.equal(other, expected) for other in answers)
    assert torch.equal(copy.deepcopy(family)("0.5x1", x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Linear(6, 2), torch.zeros(2, 6).to_sparse()), "sparse.*to_dense"),
        ((nn.Linear(6, 2), np.zeros((2, 6))), "a ndarray is not a tensor.*from_numpy"),
        ((nn.Linear, torch.zeros(2, 6)), "a type is not a module"),
        ((nn.Linear(6, 2), torch.zeros(0, 6)), r"shape \(0, 6\)"),
        ((nn.Linear(6, 2, device="meta"), torch.zeros(2, 6)), "device meta"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments: tuple[Any, Any], message: str) -> None:
    """Arrays, classes of modules and empty examples are refused with a hint."""
    with pytest.raises(UnfoldError, match=message):
        elastic(*arguments)


def test_gradients_reach_the_kept_weights_only() -> None:
    """A step of a narrow member changes the elements that it keeps."""
    module, example = make_case("residual")
    family = elastic(module, example, widths=(0.5, 1))
    family("0.5x1", example).sum().backward()
    gradient = family.weights["3.0.body.0.weight"].grad
    assert gradient is not None
    out, into, *_ = family.by_name["0.5x1"].indices["3.0.body.0.weight"]
    assert out is not None
    assert into is not None
    inside = torch.zeros_like(gradient, dtype=torch.bool)
    inside[out[:, None], into[None]] = True
    assert not gradient[~inside].any()
    assert gradient[inside].any()


def test_only_residual_blocks_can_be_skipped() -> None:
    """Blocks without a residual connection always run; a stage of residual blocks is no block."""
    for name, count in (("plain", 0), ("residual", 1), ("inverted", 1), ("pre-norm encoder", 1)):
        module, example = make_case(name)
        runs = find_block_runs(module, example)
        assert len(runs) == count, name
        assert all("." in path for run in runs for path in run.paths)


def test_skipped_blocks_keep_their_plain_attributes() -> None:
    """Code that asks a block for its kind, as ModernBERT's does, finds it where the block is skipped."""
    module, example = make_case("residual")
    (run,) = find_block_runs(module, example)
    module.get_submodule(run.paths[-1]).attention_type = "full"
    replace_blocks(module, run.list_skipped(0.5))
    assert module.get_submodule(run.paths[-1]).attention_type == "full"
    assert not [*module.get_submodule(run.paths[-1]).parameters()]


@pytest.mark.parametrize(
    "make_block",
    [
        lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)),
        lambda: nn.Sequential(nn.LayerNorm(8), nn.GELU()),
    ],
    ids=["biases", "norm"],
)
@pytest.mark.parametrize("shape", [(2, 8), (2, 3, 8)])
def test_layers_are_no_residual_blocks(make_block: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Biases are no sums with the input, and a norm of the input is not the input."""
    assert not find_block_runs(nn.Sequential(*(make_block() for _ in range(3))), torch.randn(shape))


class Biased(nn.Module):  # type: ignore[misc,unused-ignore]
    """A residual block that passes on a bias, as T5's do, and the weights of attention if there are any."""

    def __init__(self, *, makes_bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.makes_bias = makes_bias

    def forward(self, x: Tensor, bias: Tensor | None = None, *, weights: Any = None) -> tuple[Tensor, Any, Any]:
        bias = x.mean(-1, keepdim=True) if self.makes_bias or bias is None else bias
        return x + bias * self.down(torch.relu(self.up(x))), weights, bias


class BiasedStack(nn.Module):  # type: ignore[misc,unused-ignore]
    """Three such blocks, of which the first makes the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList([Biased(makes_bias=index == 0) for index in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bias = None
        for block in self.block:
            x, _weights, bias = block(x, bias)
        result: Tensor = self.head(x)
        return result


def test_blocks_that_return_tuples_are_skipped() -> None:
    """A block is skipped that passes an argument on beside its sum; one that computes another value always runs."""
    torch.manual_seed(0)
    module, example = BiasedStack().eval(), torch.randn(3, 8)
    family = elastic(module, example, widths=(1,), depths=(0.33, 1))
    assert [run.paths for run in family.runs] == [("block.1", "block.2")]
    with torch.no_grad():
        expected = module.head(module.block[0](example)[0])
        assert torch.allclose(family(family.members()[0].name, example), expected, atol=1e-6)
    session = onnxruntime.InferenceSession(family.export("onnx", family.members()[0].name))
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], expected.numpy(), atol=1e-5)


def test_shallow_member_skips_the_last_blocks() -> None:
    """A member of half the depth returns what the module without its last blocks returns."""
    module = make_image_net(*(Residual(8) for _ in range(4))).eval()
    family = elastic(module, IMAGES, widths=(1,), depths=(0.5, 1))
    shorter = make_image_net(*list(module[3])[:2])
    for index in (0, 1, 6):
        shorter[index] = module[index]
    with torch.no_grad():
        assert torch.allclose(family("1x0.5", IMAGES), shorter.eval()(IMAGES), atol=1e-6)


def test_low_resolution_averages_the_input() -> None:
    """A member at half the resolution runs on averaged neighbours, in its export too."""
    module, example = make_case("residual")
    family = elastic(module, example, widths=(0.5, 1), resolutions=(0.5, 1))
    with torch.no_grad():
        expected = family("0.5x1r0.5", example)
        assert family.extract("0.5x1r0.5")(example).shape == expected.shape
    session = onnxruntime.InferenceSession(family.export("onnx", "0.5x1r0.5"))
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("case", ["inverted", "pre-norm encoder"])
def test_state_restores_another_copy_of_the_family(case: str) -> None:
    """Weights, norm statistics and kept channels of one family make another one return the same outputs."""
    module, example = make_case(case)
    first = elastic(module, example, widths=(0.5, 1))
    first.calibrate(example)
    torch.manual_seed(5)
    # importance orders channels and heads of the second family by its own weights
    second = elastic(CASES[case][0]().eval(), example, widths=(0.5, 1))
    with torch.no_grad():
        assert not torch.allclose(first("1x1", example), second("1x1", example))
        second.load_state_dict(load(save(first.state_dict())))
        for member in first.members():
            assert torch.allclose(first(member.name, example), second(member.name, example), atol=1e-6)
    with pytest.raises(UnfoldError, match="another family"):
        second.load_state_dict({})


def test_states_that_are_damaged_are_refused() -> None:
    """Indices beyond the weights, or twice, and numbers of another kind are named before anything is loaded."""
    module, example = make_case("mlp")
    family = elastic(module, example, widths=(0.5, 1))
    before = {key: tensor.clone() for key, tensor in family.state_dict().items()}
    for index in (99, -1, int(before["indices/0.5x1/0.weight/0"][1])):
        state = {key: tensor.clone() for key, tensor in before.items()}
        state["indices/0.5x1/0.weight/0"][0] = index
        with pytest.raises(UnfoldError, match=r"damaged: indices/0\.5x1/0\.weight/0 lists"):
            family.load_state_dict(state)
    with pytest.raises(UnfoldError, match=r"another family: weights/0\.weight"):
        family.load_state_dict(before | {"weights/0.weight": before["weights/0.weight"].to(torch.complex64)})
    assert all(torch.equal(before[key], tensor) for key, tensor in family.state_dict().items())


def test_calibration_sets_the_statistics_of_each_member() -> None:
    """After calibration, a member's norms hold the mean and variance of its own features."""
    module, _ = make_case("residual")
    family = elastic(module, IMAGES, widths=(0.5, 1))
    x = torch.randn((256, 3, 12, 12), generator=torch.Generator().manual_seed(3))
    family.calibrate(x, batch=256)
    for member in family.members():
        convolution = family.extract(member.name)[0]
        with torch.no_grad():
            features = convolution(x)
        norm = member.skeleton.get_submodule("1")
        assert torch.allclose(norm.running_mean, features.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(norm.running_var, features.var((0, 2, 3)), atol=1e-3)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda module: torch.compile(nn.DataParallel(module))]
)
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    """A network in ``nn.DataParallel`` or ``torch.compile`` becomes the family of the network itself."""
    module, example = make_case("residual")
    family = elastic(wrap(module), example, widths=(0.5, 1))
    assert set(family.weights) == {name for name, _ in module.named_parameters()}
    with torch.no_grad():
        assert torch.allclose(family("1x1", example), module(example), atol=1e-6)


def test_wrappers_inside_a_network_are_taken_off() -> None:
    """Layers in ``torch.compile`` are narrowed as others are, and the user's module keeps its wrapper."""
    inner = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
    module = nn.Sequential(torch.compile(inner), nn.ReLU(), nn.Linear(8, 3)).eval()
    family = elastic(module, torch.randn(2, 6), widths=(0.5, 1))
    assert {group.root for group in family.groups} == {"0.0", "0.2"}
    assert hasattr(module[0], "_orig_mod")


def test_a_family_is_built_and_trained_where_gradients_are_off() -> None:
    """Dependencies are traced by gradients, which the caller may have turned off."""
    module, example = make_case("residual")
    with torch.no_grad():
        family = elastic(module, example, widths=(0.5, 1))
        assert family.groups
        fit(family, example, torch.arange(len(example)) % 3, FitOptions(epochs=1))
        assert not torch.is_grad_enabled()


class RecurrentAfterConv(nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolution with channels that become the features of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.recurrent = nn.Conv1d(4, 16, 5, 2, 2), nn.GRU(16, 24, batch_first=True)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Any) -> Any:
        states, _ = self.recurrent(torch.relu(self.stem(x)).transpose(1, 2))
        return self.head(states[:, -1])


class Rotated(nn.Module):  # type: ignore[misc,unused-ignore]
    """A linear layer whose features are rotated in halves, as rotary positions do, beside a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(8, 8), nn.Linear(8, 8)
        self.feed = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.read(x).view(len(x), -1, 2, 4).transpose(1, 2).chunk(2, -1)
        turned = torch.cat([first * 0.8 - second * 0.6, first * 0.6 + second * 0.8], -1)
        x = x + self.write(turned.transpose(1, 2).flatten(2))
        result: Tensor = self.head((x + self.feed(x)).mean(1))
        return result


def test_channels_that_are_counted_nowhere_leave_the_others_elastic() -> None:
    """Where torch-pruning cannot count the channels of a concatenation, the layers before it are shared."""
    groups, inelastic = find_width_groups(Rotated().eval(), torch.randn(2, 5, 8))
    assert {group.root for group in groups} == {"feed.0"}
    assert "read" in {part.path for part in inelastic}


def test_a_layer_that_cannot_be_followed_leaves_the_others_elastic() -> None:
    """Channels that reach a recurrent layer through a transpose are shared in full; the head is narrowed."""
    groups, inelastic = find_width_groups(RecurrentAfterConv().eval(), torch.randn(2, 4, 40))
    assert "head.0" in {group.root for group in groups}
    assert {"recurrent", "stem"} <= {part.path for part in inelastic}


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda: nn.Conv2d(12, 12, 3, padding=1, groups=3), "is a grouped convolution"),
        (lambda: nn.GroupNorm(3, 12), "normalizes groups of channels"),
    ],
)
def test_groups_across_concatenated_channels_are_reported(middle: Callable[[], nn.Module], reason: str) -> None:
    """Channels that are a part of those in groups are named with the reason, and shared in full."""
    module = make_image_net(Dense(8, 4), middle(), Plain(12), out=12).eval()
    groups, inelastic = find_width_groups(module, IMAGES)
    reasons = {part.path: part.reason for part in inelastic}
    assert reason in reasons["0"]
    assert reason in reasons["3.0.conv"]
    assert "6" in reasons, "the classes are no channels"
    assert "3.2.body.0" in {group.root for group in groups}


class Branching(nn.Module):  # type: ignore[misc,unused-ignore]
    """Returns two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("module", "lists", "message"),
    [
        (lambda: nn.Linear(3, 2), {"widths": (0.5, 1)}, "no channels of this module can be narrowed"),
        (CASES["plain"][0], {"widths": (1,), "depths": (0.5, 1)}, "no list of residual blocks"),
        (
            lambda: make_image_net(*[Residual(8)] * 2),
            {"widths": (1,), "depths": (0.5, 1)},
            "no list of residual blocks",
        ),
        (CASES["plain"][0], {"widths": (0.5, 1), "depths": (0.5, 1, 1)}, "2 entries beside 3"),
        (CASES["plain"][0], {"widths": (0, 1)}, "above 0"),
        (CASES["plain"][0], {"resolutions": (0.4,)}, "1/n"),
        (lambda: nn.Linear(7, 2), {}, "fails on the example"),
        (Branching, {}, "returns a tuple"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 1), nn.Flatten(0)), {}, r"returns a tensor \(4,\)"),
    ],
)
def test_unsuitable_modules_are_refused_with_the_reason(
    module: Callable[[], nn.Module], lists: dict[str, Any], message: str
) -> None:
    """Before any training, the error names what is not elastic."""
    example = torch.randn(2, 3) if isinstance(module(), nn.Linear) else IMAGES
    with pytest.raises(UnfoldError, match=message):
        elastic(module(), example, **lists)


class Gated(nn.Module):  # type: ignore[misc,unused-ignore]
    """Skips a layer where the features are small."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.second(x) if x.mean() > 0.1 else x


class Fixed(nn.Module):  # type: ignore[misc,unused-ignore]
    """Accepts two rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).reshape(2, 4, 4).sum(2)


class Recurrent(nn.Module):  # type: ignore[misc,unused-ignore]
    """A recurrent layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x)[0][:, -1])
        return result


class Tied(nn.Module):  # type: ignore[misc,unused-ignore]
    """Two layers of one weight beside a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.free = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 16)
        self.second.weight, self.head = self.first.weight, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        result: Tensor = self.head(torch.relu(self.free(x)))
        return result


class Shuffled(nn.Module):  # type: ignore[misc,unused-ignore]
    """A channel shuffle, a gated linear unit and a layer that no other depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv1d(2, 16, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.gate, self.free, self.head = nn.Linear(16, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, 1)
        x = torch.cat([first, self.branch(second)], 1)
        x = x.view(x.shape[0], 2, 8, -1).transpose(1, 2).reshape(x.shape[0], 16, -1).mean(2)
        result: Tensor = self.head(torch.relu(self.free(nn.functional.glu(self.gate(x)))))
        return result


class Auxiliary(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Returns further logits in training, as GoogLeNet and Inception do."""

    def forward(self, x: Tensor) -> Any:
        outputs = super().forward(x)
        return (outputs, outputs) if self.training else outputs


class InPlace(nn.Module):  # type: ignore[misc,unused-ignore]
    """Changes a tensor that the gradient of its second layer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += self.second(x)
        return x


class Detached(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Computes outputs without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)


@pytest.mark.parametrize(
    ("build", "size", "path"), [(Tied, (6,), "shares its weights with"), (Shuffled, (2, 12), "is not followed")]
)
def test_layers_that_cannot_be_followed_keep_their_width(
    build: Callable[[], nn.Module], size: tuple[int, ...], path: str
) -> None:
    """Tied weights, shuffles and gates are shared in full with the reason; the layer beside them is narrowed."""
    torch.manual_seed(0)
    module, example = build().eval(), torch.randn(3, *size)
    family = elastic(module, example, widths=(0.25, 0.5, 1))
    assert "free" in {group.root for group in family.groups}
    assert any(path in part.reason for part in family.inelastic), family.inelastic
    with torch.no_grad():
        assert torch.allclose(family("1x1", example), module(example), atol=1e-6)
        assert family("0.25x1", example).shape == (3, 3)
    family("0.25x1", example).sum().backward()


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 6), Gated(), nn.Linear(16, 3)), (6,), "layer 1 .*depends on the values"),
        (Fixed, (6,), "the module cannot be exported"),
        (InPlace, (6,), "the module cannot be trained"),
        (lambda: nn.Sequential(nn.Linear(6, 16), Detached(16, 3)), (6,), "outputs have no gradients"),
        (lambda: nn.Sequential(nn.Linear(6, 16), Auxiliary(16, 3)), (6,), "in training, the module returns a tuple"),
        (Recurrent, (5, 6), r"layer: recurrent layers \(GRU\) keep their width"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(
    module: Callable[[], nn.Module], size: tuple[int, ...], message: str
) -> None:
    """Control flow by values, a fixed number of rows and recurrent layers are named with their path."""
    with pytest.raises(UnfoldError, match=message):
        elastic(module(), torch.randn(2, *size), widths=(0.5, 1))


def test_the_check_of_the_training_changes_nothing() -> None:
    """Norm statistics of the module and of the family's largest member are those from before."""
    module, example = make_case("residual")
    before = {key: tensor.clone() for key, tensor in module.named_buffers()}
    torch.manual_seed(3)
    family = elastic(module, example[:1], widths=(0.5, 1))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    for key, tensor in family.by_name["1x1"].skeleton.named_buffers():
        assert torch.equal(tensor, before[key])
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.named_buffers())


def test_frozen_weights_stay_as_they_are() -> None:
    """A training changes the weights that require gradients only; with none of them it is refused."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    module[0].requires_grad_(False)
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    family = elastic(module, x[:2], widths=(0.5, 1))
    fit(family, x, y, FitOptions(epochs=1, batch=8))
    assert torch.equal(family.weights["0.weight"], module[0].weight)
    assert not torch.equal(family.weights["2.weight"], module[2].weight)
    with pytest.raises(UnfoldError, match="every weight of the module is frozen"):
        fit(elastic(module.requires_grad_(False), x[:2], widths=(0.5, 1)), x, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.arange(6) % 3 + 1, "classes from 1 to 3 for a module of 3 outputs"),
        (torch.arange(6) % 3 - 1, "classes from -1 to 1"),
        (torch.arange(6) % 3 * 1.0, "whole numbers"),
        (torch.eye(3).long().repeat(2, 1), "whole numbers"),
    ],
)
def test_targets_that_are_no_classes_are_refused(y: Tensor, message: str) -> None:
    """Labels that count from 1, real numbers and one-hot rows are named before a step is taken."""
    module, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(6, 6)
    with pytest.raises(UnfoldError, match=message):
        fit(elastic(module, x[:2], widths=(0.5, 1)), x, y)


class Packed(nn.Module):  # type: ignore[misc,unused-ignore]
    """A gated linear unit with both halves in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down, self.head = nn.Linear(6, 32), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        result: Tensor = self.head(torch.relu(self.down(nn.functional.silu(gate) * value)))
        return result


@pytest.mark.parametrize(("width", "kept"), [(0.25, 4), (0.5, 8), (0.75, 12)])
def test_halves_of_a_gate_are_narrowed_in_pairs(width: float, kept: int) -> None:
    """A member keeps the stated fraction of the gates, each with its value."""
    torch.manual_seed(0)
    family = elastic(Packed(), torch.randn(3, 6), widths=(width, 1))
    rows = family.members()[0].indices["both.weight"][0]
    assert rows is not None
    indices = rows.tolist()
    assert len(indices) == 2 * kept
    assert {index + 16 for index in indices if index < 16} == {index for index in indices if index >= 16}


class SpatialAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Weighs positions by a map that is computed from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scores, self.head = nn.Conv1d(2, 16, 3), nn.Conv1d(2, 1, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        result: Tensor = self.head((x * torch.sigmoid(self.scores(maps))).mean(2))
        return result


class AttentionPool(nn.Module):  # type: ignore[misc,unused-ignore]
    """Weighs positions by one score, which is computed from their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scores, self.head = nn.Conv1d(2, 16, 3), nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).transpose(1, 2)
        result: Tensor = self.head((x * self.scores(x).softmax(1)).sum(1))
        return result


@pytest.mark.parametrize("build", [SpatialAttention, AttentionPool])
def test_channels_are_narrowed_beside_a_map_for_all_of_them(build: Callable[[], nn.Module]) -> None:
    """A layer with one channel does not keep the channels from being narrowed that it multiplies."""
    torch.manual_seed(0)
    module, example = build(), torch.randn(3, 2, 12)
    family = elastic(module, example, widths=(0.25, 1))
    assert [(group.root, group.channels) for group in family.groups] == [("stem", 16)]
    with torch.no_grad():
        assert torch.allclose(family("1x1", example), module(example), atol=1e-6)
    session = onnxruntime.InferenceSession(family.export("onnx", "0.25x1"))
    expected = family.extract("0.25x1")(example).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], expected, atol=1e-5)


class Pairs(nn.Module):  # type: ignore[misc,unused-ignore]
    """Needs an even number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.paired, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.paired(torch.relu(self.free(x)))
        if x.shape[1] % 2:
            raise ValueError("an odd number of channels")
        result: Tensor = self.head(torch.relu(x))
        return result


def test_channels_that_fail_at_one_width_are_shared() -> None:
    """A layer that cannot be narrowed to a width that was asked for keeps its own, and the family is made."""
    torch.manual_seed(0)
    module, example = Pairs(), torch.randn(3, 6)
    assert "paired" in {group.root for group in elastic(module, example, widths=(0.5, 1)).groups}
    family = elastic(module, example, widths=(0.5, 0.75, 1))
    assert [group.root for group in family.groups] == ["free"]
    assert "paired" in {part.path for part in family.inelastic}


@pytest.mark.filterwarnings("ignore")
def test_shuffled_channels_are_shared_and_those_between_narrowed() -> None:
    """Nothing is followed through a shuffle that torch-pruning fails on: the channels inside a branch are elastic."""
    shufflenet = pytest.importorskip("torchvision").models.ShuffleNetV2
    torch.manual_seed(0)
    module, example = shufflenet([1, 2, 1], [8, 16, 24, 32, 40], num_classes=5).eval(), torch.randn(2, 3, 32, 32)
    family = elastic(module, example, widths=(0.5, 1))
    kept = {name: axes[0] for name, axes in family.members()[0].indices.items()}
    for name, channels in (("conv1.0", 8), ("stage2.0.branch2.0", 8), ("stage3.1.branch2.0", 12), ("conv5.0", 40)):
        rows = kept[f"{name}.weight"]
        assert rows is not None
        assert len(rows) == channels // 2
    assert kept["stage2.0.branch2.5.weight"] is None
    assert any(part.path.endswith("branch2.5") and part.reason for part in family.inelastic)
    check_members(family, module, example)


class Moved(nn.Module):  # type: ignore[misc,unused-ignore]
    """A residual sum of a map that is flipped or rolled along an axis."""

    def __init__(self, move: Callable[[Tensor, int], Tensor], axis: int) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.move, self.axis = nn.Linear(8, 3), move, axis

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.move(self.branch(torch.relu(x)), self.axis)
        result: Tensor = self.head(torch.relu(x).mean((2, 3)))
        return result


@pytest.mark.parametrize("move", [lambda x, axis: x.flip(axis), lambda x, axis: x.roll(3, axis)])
def test_moved_channels_are_shared_and_moved_pixels_are_not(move: Callable[[Tensor, int], Tensor]) -> None:
    """Narrow, other channels would meet than in the module: those are named; pixels may be moved."""
    torch.manual_seed(0)
    example = torch.randn(2, 2, 6, 6)
    groups, inelastic = find_width_groups(Moved(move, 1).eval(), example)
    assert not groups
    assert ("stem", "its channels are split or reshaped in a way that is not followed") in [
        (part.path, part.reason) for part in inelastic
    ]
    groups, _ = find_width_groups(Moved(move, 3).eval(), example)
    assert [group.channels for group in groups] == [8]


class GatedTokens(nn.Module):  # type: ignore[misc,unused-ignore]
    """A gated linear unit on tokens with a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.both, self.down, self.head = nn.Linear(8, 32), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        gate, value = self.both(x).chunk(2, -1)
        result: Tensor = self.head((x + self.down(nn.functional.silu(gate) * value)).mean(1))
        return result


def test_gates_are_narrowed_behind_a_position_embedding() -> None:
    """The halves of a gate are found where torch-pruning takes a split for one of tokens."""
    torch.manual_seed(0)
    module, example = GatedTokens().eval(), torch.randn(2, 5, 6)
    family = elastic(module, example, widths=(0.25, 1))
    assert ("both", 32, 2) in {(group.root, group.channels, group.parts) for group in family.groups}
    check_members(family, module, example)


def check_members(family: ElasticFamily, module: nn.Module, example: Tensor) -> None:
    """Check that the largest member is the module, and that the smallest one is what its ONNX model computes."""
    smallest, largest = family.members()[0].name, family.members()[-1].name
    with torch.no_grad():
        assert torch.allclose(family(largest, example), module(example), atol=1e-6)
        expected = family(smallest, example).numpy()
    session = onnxruntime.InferenceSession(family.export("onnx", smallest))
    np.testing.assert_allclose(session.run(None, {"x": example.numpy()})[0], expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_channels_that_are_followed_in_circles_are_shared() -> None:
    """Windows that are shifted and packed do not make the search endless: feed-forward layers are narrowed."""
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    module = models.swin_transformer.SwinTransformer([4, 4], 12, [2], [3], [4, 4], num_classes=5)
    family = elastic(module.eval(), torch.randn(2, 3, 32, 32), widths=(0.5, 1))
    assert any("mlp" in group.root for group in family.groups)
    assert any("not followed" in part.reason for part in family.inelastic)


def make_normed(norm: Callable[[nn.Module], Any]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        norm(nn.Conv1d(2, 16, 3, padding=1)), nn.ReLU(), nn.Conv1d(16, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def test_weight_norm_is_folded_into_elastic_weights() -> None:
    """Weights under weight norm become ordinary ones that are narrowed; the user's module keeps its own."""
    module, example = make_normed(nn.utils.parametrizations.weight_norm), torch.randn(3, 2, 12)
    family = elastic(module, example, widths=(0.25, 0.5, 1))
    assert {group.root for group in family.groups} == {"0", "2"}
    assert "0.weight" in family.weights
    with torch.no_grad():
        assert torch.allclose(family("1x1", example), module(example), atol=1e-6)
    assert nn.utils.parametrize.is_parametrized(module[0], "weight")
    family("0.25x1", example).sum().backward()


def test_other_parametrized_weights_keep_their_width() -> None:
    """A layer under spectral norm is shared in full, with that reason."""
    family = elastic(make_normed(nn.utils.parametrizations.spectral_norm), torch.randn(3, 2, 12), widths=(0.5, 1))
    assert {group.root for group in family.groups} == {"2"}
    assert ("0", "the weight of 0 is parametrized") in {(part.path, part.reason) for part in family.inelastic}


def test_pruned_weights_are_refused_with_a_hint() -> None:
    """A weight that a hook computes has no copy; the hint names how to make it a plain one."""
    module = make_normed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5))
    module(torch.randn(3, 2, 12))
    with pytest.raises(UnfoldError, match=r"cannot be copied: \S*weight is computed from weights.*prune\.remove"):
        elastic(module, torch.randn(3, 2, 12))


class Caching(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Caches what it computes from its bias, as LeViT does with the biases of its attention."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = 2 * self.bias
        return x @ self.weight.T + self.cache["bias"]


def test_caches_that_follow_gradients_are_named() -> None:
    """A module that was called before has no copy if it keeps a tensor with a history; the path names it."""
    module = nn.Sequential(nn.Linear(4, 8), Caching(), nn.Linear(8, 3))
    module(torch.randn(2, 4))
    with pytest.raises(UnfoldError, match=r"cannot be copied: 1\.cache is computed from weights.*torch\.no_grad"):
        elastic(module, torch.randn(2, 4))


class Aliased(nn.Module):  # type: ignore[misc,unused-ignore]
    """Holds a layer under two names, and calls it twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.first, self.second = layer, layer
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(self.embed(x))))))
        return result


class AliasedAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Holds an attention layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.first = nn.MultiheadAttention(16, 4, batch_first=True)
        self.second = self.first
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for attention in (self.first, self.second):
            x = x + attention(x, x, x, need_weights=False)[0]
        result: Tensor = self.head(x.mean(1))
        return result


class Feedforward(nn.Module):  # type: ignore[misc,unused-ignore]
    """A residual block of a norm and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return result


class LastNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """Calls the norm of its last block behind all blocks; a member may skip the block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.Sequential(Feedforward(), Feedforward(), Feedforward())
        self.norm, self.head = self.blocks[2].norm, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.blocks(self.embed(x))))
        return result


@pytest.mark.parametrize(
    ("make", "size", "depths"),
    [
        (lambda: Aliased(nn.Linear(16, 16)), (6,), (1.0,)),
        (lambda: Aliased(nn.BatchNorm1d(16)), (6,), (1.0,)),
        (AliasedAttention, (5, 6), (1.0,)),
        (LastNorm, (6,), (0.34, 1.0)),
    ],
    ids=["linear", "norm", "attention", "layer of a skipped block"],
)
def test_a_layer_under_two_names_is_one_layer(
    make: Callable[[], nn.Module], size: tuple[int, ...], depths: tuple[float, ...]
) -> None:
    """A member is trained, copied and exported with one set of weights for a layer that is held twice."""
    torch.manual_seed(0)
    x = torch.randn(8, *size)
    family = elastic(make(), x, widths=(0.5, 1), depths=depths)
    fit(family, x, torch.arange(8) % 3, FitOptions(epochs=1, batch=4))
    for member in family.members():
        expected = family(member, x).detach()
        extracted = family.extract(member)
        torch.testing.assert_close(extracted(x).detach(), expected, rtol=1e-4, atol=1e-5)
        session = onnxruntime.InferenceSession(family.export("onnx", member))
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, rtol=1e-3, atol=1e-4)
    assert family.by_name["1x1"].parameters == sum(parameter.numel() for parameter in make().parameters())


def test_an_activation_with_one_slope_is_called_with_any_width() -> None:
    """A PReLU with one parameter does not couple the layers before it."""
    activation = nn.PReLU()
    module = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 20), activation, nn.Linear(20, 3))
    family = elastic(module, torch.randn(4, 6), widths=(0.5, 1))
    assert {group.root: group.channels for group in family.groups} == {"0": 8, "2": 20}


class Locking(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Makes a lock at its first call, at inference or in training only."""

    def __init__(self, lock: Any = None, *, is_trained: bool = False) -> None:
        super().__init__(8, 8)
        self.lock, self.is_trained = lock, is_trained

    def forward(self, x: Tensor) -> Tensor:
        if self.lock is None and self.training >= self.is_trained:
            self.lock = threading.Lock()
        return super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Locking(threading.Lock()),
        lambda: Locking([threading.Lock()]),
        lambda: Locking(iter_nothing()),
        Locking,
        lambda: Locking(is_trained=True),
    ],
    ids=["lock", "list", "generator", "made at inference", "made in training"],
)
def test_what_has_no_copy_is_named(make: Callable[[], nn.Module]) -> None:
    """A lock or a generator is refused with the path of the attribute, whenever it is made."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(make()), nn.Linear(8, 3))
    with pytest.raises(UnfoldError, match=r"cannot be copied: 1\.0\.lock: cannot pickle '.*outside the module"):
        elastic(module, torch.randn(2, 4))


def iter_nothing() -> Iterator[int]:
    """Make a generator."""
    yield from ()


def test_activations_that_a_module_keeps_are_left_out_of_copies() -> None:
    """A layer that keeps its last outputs, as for a plot, is elastic."""

    class Keeping(nn.Linear):  # type: ignore[misc,unused-ignore]
        def forward(self, x: Tensor) -> Tensor:
            self.outputs = super().forward(x)
            return self.outputs

    x = torch.randn(4, 4)
    family = elastic(nn.Sequential(Keeping(4, 8), nn.ReLU(), nn.Linear(8, 3)), x, widths=(0.5, 1))
    torch.testing.assert_close(family("0.5x1", x), family.extract("0.5x1")(x))


@pytest.mark.parametrize(
    ("module", "example", "hint"),
    [
        (lambda: nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 3)), torch.ones(2, 5), r"x\.long\(\)"),
        (lambda: nn.Conv2d(3, 8, 3), torch.ones(2, 9, 9, 3), "data.channels: last"),
    ],
)
def test_inputs_of_another_layout_are_advised_on(module: Callable[[], nn.Module], example: Tensor, hint: str) -> None:
    """Tokens that arrive as real numbers, and images with their channels last, are hinted at."""
    with pytest.raises(UnfoldError, match=hint):
        elastic(module(), example)


def test_lazy_layers_get_their_weights_from_the_example() -> None:
    """A network with layers that learn their sizes from the first input is elastic like any other."""
    example = torch.randn(3, 6)
    family = elastic(nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(2)), example, widths=(0.5, 1))
    assert [group.root for group in family.groups] == ["0"]
    assert family("0.5x1", example).shape == (3, 2)


def test_another_precision_is_named() -> None:
    """The hint on weights that do not fit the inputs names their precision, not the shape."""
    module, example = make_case("mlp")
    with pytest.raises(UnfoldError, match=r"float64; return module\.float\(\)"):
        elastic(module.double(), example)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    """What torch.jit has compiled cannot be traced; the layer is named."""
    module, example = make_case("mlp")
    with pytest.raises(UnfoldError, match=r"the module is compiled by torch\.jit"):
        elastic(torch.jit.trace(module, example), example)
    with pytest.raises(UnfoldError, match=r"layer 1 is compiled by torch\.jit"):
        elastic(nn.Sequential(nn.Linear(6, 6), torch.jit.trace(module, example)), example)


def test_weights_that_are_not_finite_are_named() -> None:
    """A NaN in the weights or in the example is refused."""
    module, example = make_case("residual")
    with pytest.raises(UnfoldError, match="example input is not finite"):
        elastic(module, torch.full_like(example, float("nan")))
    with torch.no_grad():
        module[0].weight[0] = float("nan")
    with pytest.raises(UnfoldError, match=r"0\.weight is not finite"):
        elastic(module, example)
