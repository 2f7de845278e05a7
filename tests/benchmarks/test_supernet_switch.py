"""Laws of the benchmark of switches."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_memory_is_that_of_the_shipped_family() -> None:
    """The measured members are those of the config; more members of its stages share more."""
    pytest.importorskip("torch")
    from benchmarks.supernet_switch import TWELVE, measure_family

    shipped, twelve = (measure_family(changed, 0, 20) for changed in ({}, TWELVE))
    assert len(shipped.view_ratios) == 6
    assert len(twelve.view_ratios) == 12
    assert twelve.shared_bytes / twelve.separate_bytes < shipped.shared_bytes / shipped.separate_bytes < 1


def test_every_form_of_the_family_answers_alike(tmp_path: Path) -> None:
    """Views, modules and sessions hold the same members; what is measured is the same family."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    import torch

    from benchmarks.resident_memory import list_ways

    x, extra = torch.randn(3, 1, 128), torch.randn(3, 2)
    with torch.inference_mode():
        views, modules, sessions = (open_family() for open_family in list_ways(tmp_path).values())
        for name, module, session in zip(views.bound, modules, sessions, strict=True):
            expected = views(name, x, extra)
            torch.testing.assert_close(module(x, extra), expected, atol=1e-5, rtol=1e-4)
            outputs = torch.from_numpy(session.run(None, {"x": x.numpy(), "extra": extra.numpy()})[0])
            torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
