"""Costs of sharing: rows of the training groups are held out in their natural mix, and sampled classes are undone."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import module_training
from benchmarks.module_training import SAME_FRACTION, SeedResult, split_same_groups, summarize_members
from unfold_supernet.family.datasets import Dataset


def make_data(groups: np.ndarray | None) -> Dataset:
    """Make 1,000 rows: of the first class, half of those that are not tested on are on neither side."""
    y = np.repeat([0, 1], 500)
    rows = np.arange(1000)
    return Dataset(
        x=np.zeros((1000, 1, 4), np.float32),
        extra=np.zeros((1000, 0), np.float32),
        y=y,
        names=("a", "b"),
        train=np.concatenate([rows[100:300], rows[600:]]),
        test=np.concatenate([rows[:100], rows[500:600]]),
        digest="",
        about="",
        groups=groups,
        sampling=(0.5, 1.0),
    )


def test_unseen_rows_have_the_natural_mix_of_the_training_groups() -> None:
    """A tenth of every class that occurs is held out, sampled or not; nothing is trained and tested on."""
    data = make_data(np.arange(1000) % 7)
    train, same = split_same_groups(data, 0)
    assert not set(train) & set(same)
    assert not (set(train) | set(same)) & set(data.test)
    counts = np.bincount(data.y[same])
    assert counts.sum() == round(SAME_FRACTION * 600) + round(SAME_FRACTION * 200)
    assert abs(counts[0] - counts[1]) < 20
    assert len(split_same_groups(make_data(None), 0)[1]) == 0


def test_a_cost_is_reported_on_both_kinds_of_rows() -> None:
    """A member that is wrong about one patient costs much on patients and nothing on the beats of known ones."""
    patients, right = np.repeat([1, 2, 3, 4], 25), np.ones(100, bool)
    correct = {"family": patients != 4, "standalone": right, "plain": right}
    same = {network: np.ones(40, bool) for network in correct}
    result = SeedResult(
        macs={"1x1": 9.0},
        plain_macs={"1x1": 9.0},
        correct={"1x1": correct},
        clusters=patients,
        same_correct={"1x1": same},
        same_clusters=np.arange(40),
    )
    (row,) = summarize_members("beats", [result])
    assert row["sharing_cost_points"] == pytest.approx(25.0)
    assert row["sharing_cost_points"] < module_training.Z_95 * row["sharing_cost_error"]
    assert row["same_groups_cost_points"] == 0.0
