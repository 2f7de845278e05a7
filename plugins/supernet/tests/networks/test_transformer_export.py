"""Transformer subnets as standalone models and ONNX graphs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.torch_helpers import draw_inputs, make_random_transformer, token_spaces  # noqa: E402
from unfold_supernet.networks import (  # noqa: E402
    onnx_export,
    standalone,
    supernet,
)
from unfold_supernet.networks.space import Space, count_parameters  # noqa: E402

pytestmark = pytest.mark.torch


@settings(max_examples=10, deadline=None)
@given(token_spaces(), st.integers(0, 1000), st.integers(1, 40))
def test_extracted_transformers_equal_the_bound_subnets(of: Space, seed: int, rows: int) -> None:
    """For every subnet of any space, the extracted model gives the bound subnet's logits bit for bit."""
    found = make_random_transformer(of, seed)
    x, extra = draw_inputs(of, rows)
    with torch.inference_mode():
        for name, bound in found.bound.items():
            assert torch.equal(found(name, x, extra), standalone.extract_model(of, bound)(x, extra)), name


@settings(max_examples=5, deadline=None)
@given(token_spaces(), st.integers(0, 1000))
def test_onnx_graph_gives_the_same_logits(of: Space, seed: int) -> None:
    """As ONNX, the smallest and the largest subnet give the same logits for any number of rows."""
    found = make_random_transformer(of, seed)
    for one, rows in itertools.product((of.subnets[0], of.largest), (1, 7)):
        x, extra = draw_inputs(of, rows)
        module = standalone.extract_model(of, found.bound[one.name])
        session = onnxruntime.InferenceSession(onnx_export.export_onnx(of, module))
        asked = {"x": x.numpy(), **({"extra": extra.numpy()} if of.extra else {})}
        with torch.inference_mode():
            said = found(one.name, x, extra).numpy()
        np.testing.assert_allclose(session.run(["logits"], asked)[0], said, rtol=1e-3, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(token_spaces())
def test_parameter_counts_match_the_standalone_model(of: Space) -> None:
    """The space counts the parameters of the standalone model, and fresh weights of its size have as many."""
    found = make_random_transformer(of, 0)
    for one in of.subnets:
        module = standalone.extract_model(of, found.bound[one.name])
        count = sum(tensor.numel() for tensor in module.parameters())
        fresh = supernet.init_weights(of, 0, one)
        assert count_parameters(of, one) == count == sum(tensor.numel() for tensor in fresh.values())
        x, extra = draw_inputs(of)
        assert supernet.train_forward(of, fresh, one, x, extra).shape == (5, 4)
