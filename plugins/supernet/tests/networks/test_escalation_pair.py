"""Escalation pairs of bound subnets."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    build_digits_problem,
)
from unfold_supernet.scheduling import escalation  # noqa: E402
from unfold_supernet.scheduling.policies import SubnetProfile  # noqa: E402
from unfold_supernet.training.evaluation import predict_test_rows  # noqa: E402
from unfold_supernet.training.family import train_supernet  # noqa: E402

pytestmark = pytest.mark.torch


def test_pair_recomputes_unsure_rows(tmp_path: Path) -> None:
    """A pair gives each row the logits of the responsible subnet, and is as accurate as its predictions imply."""
    problem, run = build_digits_problem(tmp_path, epochs=2)
    data = problem.data
    found = train_supernet(problem, run.directory, run.progress).supernet
    small, large = (one.name for one in found.space.subnets)
    x, extra = torch.from_numpy(data.x[data.test]), torch.from_numpy(data.extra[data.test])
    with torch.inference_mode():
        first, then = found(small, x, extra), found(large, x, extra)
        sure = torch.softmax(first, 1).max(1).values
        below = float(sure.median())
        both, unsure = found.select(small, large, below)(x, extra), sure < below
    assert 0 < int(unsure.sum()) < len(unsure)
    assert torch.equal(both[~unsure], first[~unsure])
    # another batch of rows: equal up to the order of sums
    assert torch.allclose(both[unsure], then[unsure], rtol=1e-4, atol=1e-4)
    nets = [SubnetProfile(name, accuracy, ((1, 1.0),)) for name, accuracy in ((small, 1.0), (large, 2.0))]
    (stored,) = escalation.build_pairs(nets, predict_test_rows(found, data), below)
    assert stored.accuracy == pytest.approx(float((both.argmax(1).numpy() == data.y[data.test]).mean()) * 100, abs=0.3)
