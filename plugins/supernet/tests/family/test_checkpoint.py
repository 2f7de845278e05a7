"""Stored supernets and extracted models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import make_form_space  # noqa: E402
from plugins.supernet.tests.torch_helpers import (  # noqa: E402
    draw_inputs,
    make_random_supernet,
)
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.networks import onnx_export, standalone  # noqa: E402
from unfoldkit.api import RunDir  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("form", ["conv1d", "conv2d", "mlp", "transformer"])
def test_extracted_models_equal_the_bound_subnets(form: str) -> None:
    """Every extracted model gives the bound subnet's logits bit for bit, and ONNX nearly so."""
    found = make_random_supernet(make_form_space(form))
    x, extra = draw_inputs(found.space)
    with torch.inference_mode():
        for name, bound in found.bound.items():
            module = standalone.extract_model(found.space, bound)
            said = found(name, x, extra)
            assert torch.equal(said, module(x, extra)), name
            session = onnxruntime.InferenceSession(onnx_export.export_onnx(found.space, module))
            other = session.run(["logits"], {"x": x.numpy(), "extra": extra.numpy()})[0]
            np.testing.assert_allclose(said.numpy(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["conv1d", "transformer"])
def test_stored_supernet_gives_the_same_logits(tmp_path: Path, form: str) -> None:
    """A supernet that is written and read again gives the same logits."""
    found = make_random_supernet(make_form_space(form))
    directory = RunDir(tmp_path)
    norms = {name: bound.statistics for name, bound in found.bound.items()}
    checkpoint.write_supernet(directory, found.space, dict(found.weights), norms, "x")
    again = checkpoint.read_supernet(directory)
    x, extra = draw_inputs(found.space)
    for name in found.bound:
        assert torch.equal(found(name, x, extra), again(name, x, extra))
