"""Nested embeddings: their loss, and the recall of their prefixes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
pytest.importorskip("torch_pruning", reason="needs the extra torch: nox -s torch")
pytest.importorskip("onnxscript", reason="needs the extra torch: nox -s torch")
from torch import nn  # noqa: E402

from unfold_supernet import elastic, fit, measure_retrieval  # noqa: E402
from unfold_supernet.modules.embeddings import compute_nested_loss  # noqa: E402
from unfoldkit.api import UnfoldError  # noqa: E402

pytestmark = pytest.mark.torch


def test_loss_equals_the_published_formula() -> None:
    """For each prefix: minus the mean log share of the partners among all other rows, averaged over rows with one."""
    outputs, classes = torch.randn((7, 6), generator=torch.Generator().manual_seed(0)), [0, 0, 1, 1, 1, 2, 0]
    expected = []
    for size in (2, 6):
        unit = outputs[:, :size].numpy().astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        shares = np.exp(unit @ unit.T / 0.5)
        rows = []
        for row, label in enumerate(classes):
            partners = [other for other, name in enumerate(classes) if name == label and other != row]
            total = shares[row].sum() - shares[row, row]
            if partners:
                rows.append(-np.mean([np.log(shares[row, other] / total) for other in partners]))
        expected.append(np.mean(rows))
    loss = compute_nested_loss(outputs, torch.tensor(classes), (6, 2), 0.5)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(compute_nested_loss(outputs, torch.arange(7), (), 0.5)) == 0.0


def test_recall_is_that_of_a_plain_search() -> None:
    """Recall agrees with sorting all cosines, and rows that are alone in their class are no queries."""
    rng = np.random.default_rng(1)
    embeddings, classes = rng.normal(size=(60, 8)).astype(np.float32), rng.integers(0, 9, 60)
    classes[0] = 99
    for nearest in (1, 5):
        for quality in measure_retrieval(embeddings, classes, (3, 8), nearest):
            unit = embeddings[:, : quality.dimensions]
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            order = np.argsort(-(unit @ unit.T - 10 * np.eye(60)), axis=1)[:, :nearest]
            hits = (classes[order] == classes[:, None]).any(1)[classes != 99]
            assert quality.recall == pytest.approx(hits.mean())
            assert quality.queries == 59
            assert quality.low <= quality.recall <= quality.high


def test_equal_embeddings_retrieve_nothing() -> None:
    """An encoder that collapsed to a point is not credited for ties."""
    quality = measure_retrieval(np.ones((20, 4), np.float32), np.arange(20) % 4)[0]
    assert quality.recall == 0.0


@pytest.mark.parametrize(
    ("classes", "dimensions", "message"),
    [
        (np.arange(6), (), "no class has two rows"),
        (np.zeros(6), (0,), "from 1 to 4"),
        (np.zeros(6), (5,), "from 1 to 4"),
    ],
)
def test_unsuitable_searches_are_refused(classes: np.ndarray, dimensions: tuple[int, ...], message: str) -> None:
    """A prefix beyond the embedding, or classes of one row, are named."""
    with pytest.raises(UnfoldError, match=message):
        measure_retrieval(np.eye(6, 4, dtype=np.float32), classes, dimensions)


def test_classes_may_be_names() -> None:
    """A list of names gives the recall that numbers give; at least one row must be returned."""
    embeddings = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    expected = measure_retrieval(embeddings, np.arange(12) // 3, nearest=3)
    assert measure_retrieval(embeddings, list("aaabbbcccddd"), nearest=3) == expected  # type: ignore[arg-type]
    with pytest.raises(UnfoldError, match="nearest: 0 rows"):
        measure_retrieval(embeddings, np.arange(12) // 3, nearest=0)


def test_nested_training_makes_short_prefixes_useful() -> None:
    """On held-out rows, two of sixteen dimensions retrieve better after nested training than after plain training."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(6, 12)) * 1.5
    classes = np.arange(480) % 6
    x = (centres[classes] + rng.normal(size=(480, 12))).astype(np.float32)
    recalls = {}
    for dimensions in ((), (2, 16)):
        torch.manual_seed(0)
        family = elastic(
            nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16)), torch.zeros(2, 12), widths=(0.5, 1)
        )
        fit(
            family, torch.from_numpy(x[:360]), torch.from_numpy(classes[:360]), task="embeddings",
            dimensions=dimensions, epochs=8, rate=0.01,
        )  # fmt: skip
        for member in family.members():
            with torch.no_grad():
                embeddings = family(member.name, torch.from_numpy(x[360:])).numpy()
            short, full = measure_retrieval(embeddings, classes[360:], (2, 16))
            recalls[member.name, bool(dimensions)] = short.recall
            assert full.recall > 0.6
    for name in ("0.5x1", "1x1"):
        assert recalls[name, True] > recalls[name, False]
