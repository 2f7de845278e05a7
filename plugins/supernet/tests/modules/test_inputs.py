"""Modules with two inputs: tokens and their mask, or an image and numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402

from unfold_supernet import elastic, fit  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch


class Masked(nn.Module):  # type: ignore[misc,unused-ignore]
    """An encoder over tokens, of which a mask of zeros and ones hides some."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        result: Tensor = self.head((x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))
        return result


class Joined(nn.Module):  # type: ignore[misc,unused-ignore]
    """An image with features that are joined with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.table, self.head = nn.Linear(5, 8), nn.Linear(24, 3)

    def forward(self, image: Tensor, extra: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([self.image(image).flatten(1), torch.relu(self.table(extra))], 1))
        return result


def make_case(name: str, rows: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    if name == "mask":
        mask = (torch.arange(9) < torch.randint(3, 10, (rows, 1))).float()
        return Masked().eval(), (torch.randint(0, 50, (rows, 9)), mask)
    return Joined().eval(), (torch.randn(rows, 1, 12, 12), torch.randn(rows, 5))


@pytest.mark.parametrize(("name", "resolutions"), [("mask", (1.0,)), ("table", (0.5, 1.0))])
def test_members_take_both_inputs_and_equal_their_onnx_models(name: str, resolutions: tuple[float, ...]) -> None:
    """After a training, members of all sizes return what their ONNX models return for inputs by name."""
    module, (x, extra) = make_case(name, 24)
    family = elastic(module, (x[:2], extra[:2]), widths=(0.5, 1), resolutions=resolutions)
    with torch.no_grad():
        torch.testing.assert_close(family("1x1", x, extra), module(x, extra), atol=1e-6, rtol=1e-5)
    fit(family, x, torch.arange(24) % 3, extra, epochs=1, batch=8)
    for member in family.members():
        with torch.no_grad():
            outputs = family.extract(member.name)(x, extra).numpy()
            np.testing.assert_allclose(family(member.name, x, extra).numpy(), outputs, atol=1e-6)
        session = onnxruntime.InferenceSession(family.export("onnx", member))
        assert [item.name for item in session.get_inputs()] == ["x", "extra"]
        feed = {"x": x.numpy(), "extra": extra.numpy()}
        np.testing.assert_allclose(session.run(None, feed)[0], outputs, atol=1e-5)
    assert family.members()[0].macs < 0.6 * family.members()[1].macs


class Three(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Needs three inputs."""

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        result: Tensor = super().forward(ids + mask + kinds)
        return result


def test_missing_inputs_are_named() -> None:
    """Too few, too many and uneven inputs are refused with the names that the module's code gives them."""
    module, (x, extra) = make_case("mask", 4)
    with pytest.raises(UnfoldError, match=r"needs 2 inputs \(input_ids, attention_mask\).*store attention_mask as"):
        elastic(module, x)
    with pytest.raises(UnfoldError, match=r"needs 3 inputs \(ids, mask, kinds\), and there are 2"):
        elastic(Three(9, 3), (x.float(), extra))
    with pytest.raises(UnfoldError, match=r"shapes \(2, 9\) and \(3, 9\).*as many rows"):
        elastic(module, (x[:2], extra[:3]))
    with pytest.raises(UnfoldError, match=r"the example holds 3 tensors"):
        elastic(module, (x, extra, extra))
    family = elastic(module, (x, extra), widths=(0.5, 1))
    with pytest.raises(UnfoldError, match="takes 2 inputs, not 1"):
        fit(family, x, torch.arange(4) % 3)
    with pytest.raises(UnfoldError, match="4 rows of x and 3 of extra"):
        fit(family, x, torch.arange(4) % 3, extra[:3])


class Wrapped(nn.Module):  # type: ignore[misc,unused-ignore]
    """Passes all that it takes on to a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **options: bool) -> Tensor:
        result: Tensor = self.module(*args, **options)
        return result


@pytest.mark.parametrize("count", [1, 2])
def test_a_wrapper_that_passes_its_inputs_on_is_exported(count: int) -> None:
    """Inputs that ``*args`` takes have any number of rows in ONNX, and keep their names."""
    table = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = (torch.randn(6, 5),) if count == 1 else (torch.randn(6, 1, 12, 12), torch.randn(6, 5))
    family = elastic(Wrapped(table if count == 1 else Joined()), inputs, widths=(0.5, 1))
    session = onnxruntime.InferenceSession(family.export("onnx", "0.5x1"))
    feed = {name: tensor[:5].numpy() for name, tensor in zip(("x", "extra"), inputs, strict=False)}
    expected = family("0.5x1", *(tensor[:5] for tensor in inputs)).detach()
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-5)


class ByKeyword(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Needs an input by its name."""

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return super().forward(x * mask)


class AnyKeyword(nn.Linear):  # type: ignore[misc,unused-ignore]
    """Takes inputs by name only."""

    def forward(self, **inputs: Tensor) -> Tensor:
        return super().forward(inputs["x"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ByKeyword, r"needs mask by keyword .*forward\(self, x, extra\)"), (AnyKeyword, r"takes 0 inputs by position")],
)
def test_inputs_by_keyword_are_refused(kind: type[nn.Linear], message: str) -> None:
    """Inputs have no names of the user's: those that code takes by name are reported."""
    with pytest.raises(UnfoldError, match=message):
        elastic(kind(5, 8), torch.randn(2, 5))


def test_a_missing_second_input_is_hinted_at() -> None:
    """A module that fails on one input and names a second one needs it from the data."""

    class Optional(nn.Linear):  # type: ignore[misc,unused-ignore]
        def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
            return super().forward(x if extra is None else torch.cat([x, extra], 1))

    with pytest.raises(UnfoldError, match=r"fails on the example: .*store extra as an array"):
        elastic(Optional(9, 3), torch.randn(2, 5))
