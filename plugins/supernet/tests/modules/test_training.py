"""Training of a family from a user's module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")

from safetensors.torch import save  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

from unfold_supernet import elastic, fit  # noqa: E402
from unfold_supernet.modules import training  # noqa: E402
from unfold_supernet.modules.problem import FitOptions  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402
from unfoldkit.safe_io.arrays import load_tensors  # noqa: E402

pytestmark = pytest.mark.torch


def make_classifier(outputs: int) -> nn.Module:
    """Build a small network over 8 x 8 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, outputs),
    )


def load_images() -> tuple[Any, Any]:
    digits = load_digits()
    x = torch.tensor(digits.data.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    return x, torch.tensor(digits.target)


def test_every_member_learns() -> None:
    """After a few epochs each member classifies held-out digits, the larger one better."""
    x, y = load_images()
    family = elastic(make_classifier(10), x[:2], widths=(0.5, 1))
    fit(family, x[:1200], y[:1200], epochs=6, rate=5e-3)
    with torch.no_grad():
        small, large = (
            float((family(member.name, x[1200:]).argmax(1) == y[1200:]).float().mean()) for member in family.members()
        )
    assert small > 0.7
    assert large > 0.85


def test_training_is_repeatable() -> None:
    """The same seed gives the same weights."""
    x, y = load_images()
    states = []
    for _ in range(2):
        family = elastic(make_classifier(10), x[:2], widths=(0.5, 1))
        fit(family, x[:256], y[:256], epochs=1)
        states.append(family.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_killed_training_ends_with_the_same_weights(optimizer: str) -> None:
    """A training that dies after an epoch continues with its moments, norms and dropout, not from the start."""
    x, y = load_images()
    net = nn.Sequential(*list(make_classifier(10))[:-1], nn.Dropout(0.3), nn.Linear(128, 10))
    options: Any = FitOptions(epochs=3, rate=1e-2, optimizer=optimizer, samples=1)
    whole, broken, resumed = (elastic(net, x[:2], widths=(0.5, 1)) for _ in range(3))
    training.fit(whole, x[:256], y[:256], options)
    kept: list[bytes] = []
    store = training.CheckpointStore(lambda: kept[-1] if kept else None, kept.append)

    def die(epoch: int, _epochs: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(broken, x[:256], y[:256], options, die, store)
    epochs: list[int] = []
    seconds = training.fit(resumed, x[:256], y[:256], options, lambda epoch, _epochs: epochs.append(epoch), store)
    assert epochs == [3]
    assert seconds > float(load_tensors(kept[1])["seconds"]) > 0
    expected, state = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[key], state[key]) for key in expected)


@pytest.mark.parametrize("damage", ["text", "other weights", "other moments"])
def test_a_damaged_state_is_named(damage: str) -> None:
    """A stored state that is no state of this family gives an error with its name and exit code 2."""
    x, y = load_images()
    kept: list[bytes] = []
    store = training.CheckpointStore(lambda: kept[-1] if kept else None, kept.append, "state.safetensors")
    family = elastic(make_classifier(10), x[:2], widths=(0.5, 1))
    training.fit(family, x[:256], y[:256], FitOptions(epochs=1), store=store)
    tensors = load_tensors(kept[-1])
    moment = next(name for name in tensors if name.startswith("optimizer/exp_avg/"))
    other = {
        "text": {},
        "other weights": {"epoch": torch.tensor(1)},
        "other moments": {**tensors, moment: torch.zeros(3)},
    }
    kept.append(save(other[damage]) if other[damage] else b"text")
    with pytest.raises(UnfoldError, match=r"^state\.safetensors: (not )?the state") as error:
        training.fit(family, x[:256], y[:256], FitOptions(epochs=2), store=store)
    assert error.value.code == 2


@pytest.mark.parametrize("task", ["labels", "values"])
def test_labels_and_values_are_learnt(task: str) -> None:
    """Several labels a row, or real values, are fitted better than by their mean."""
    x, y = load_images()
    targets = torch.stack([y % 2, (y > 4).long()], 1) if task == "labels" else x.mean((1, 2, 3))[:, None] * 10
    family = elastic(make_classifier(targets.shape[1]), x[:2], widths=(0.5, 1))
    fit(family, x[:1200], targets[:1200], task=task, epochs=5, rate=5e-3)
    held = targets[1200:].numpy()
    for member in family.members():
        with torch.no_grad():
            outputs = family(member.name, x[1200:]).numpy()
        if task == "labels":
            assert ((outputs > 0) == held).mean() > 0.75
        else:
            assert ((outputs - held) ** 2).mean() < 0.5 * np.var(held)


def test_class_weights_shift_predictions_to_rare_classes() -> None:
    """A heavy weight on a class makes the family predict it more often."""
    x, y = load_images()
    counts = []
    for weight in (1.0, 50.0):
        family = elastic(make_classifier(10), x[:2], widths=(1,))
        fit(family, x[:600], y[:600], epochs=2, rate=5e-3, class_weights=(weight, *[1.0] * 9))
        with torch.no_grad():
            counts.append(int((family("1x1", x[600:]).argmax(1) == 0).sum()))
    assert counts[1] > counts[0]


def test_divergence_and_unequal_lengths_are_errors() -> None:
    """Weights that are no longer finite end the training with a hint."""
    x, y = load_images()
    family = elastic(make_classifier(10), x[:2], widths=(0.5, 1))
    with pytest.raises(UnfoldError, match="diverged"):
        fit(family, x[:128] * 1e30, y[:128], epochs=3, rate=1e20, optimizer="sgd", clip=1e30)
    with pytest.raises(UnfoldError, match="10 inputs and 5 targets"):
        fit(family, x[:10], y[:5])


def test_rows_with_an_id_that_an_embedding_lacks_are_named() -> None:
    """Before the training, and also where the row is none of those that are trained on."""
    x, y = torch.arange(300)[:, None] % 20 + torch.zeros(300, 4, dtype=torch.int64), torch.arange(300) % 3
    family = elastic(nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)), x[:2], widths=(0.5, 1))
    x[280, 2] = 20
    with pytest.raises(UnfoldError, match=r"fails for row 280: .*\(an embedding has the ids from 0 to"):
        training.fit(family, x, y, FitOptions(epochs=1), rows=torch.arange(200))


def test_ids_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that continues does not compute all rows again for it."""
    x, y = torch.arange(300)[:, None] % 20 + torch.zeros(300, 4, dtype=torch.int64), torch.arange(300) % 3
    family = elastic(nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)), x[:2], widths=(0.5, 1))
    kept: list[bytes] = []
    store = training.CheckpointStore(lambda: kept[-1] if kept else None, kept.append)
    training.fit(family, x, y, FitOptions(epochs=1), store=store)
    monkeypatch.setattr(training, "_run_rows", lambda *_args: pytest.fail("rows are computed again"))
    training.fit(family, x, y, FitOptions(epochs=2), store=store)
