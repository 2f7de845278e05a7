"""The Ray script of ``tuning-dropin``: killed at a random moment, and restored by ``Tuner.restore`` on new raylets."""

from __future__ import annotations

import importlib.util
from random import Random

import pytest

from benchmarks.tuning_dropin import RAY, run_once


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_killed_ray_search_is_restored(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restored search repeats no iteration that Ray has recorded, and has the winner of an undisturbed one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    row = run_once(RAY, 1, Random(3))  # noqa: S311 - a moment, not cryptography
    assert (row["kills"], row["finished_repeated"], row["is_winner_equal"]) == (1, 0, True)
