"""Laws of transformers in a family: cutting, extraction, costs, sorting, and the way from a spec to a plan."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra torch: nox -s torch")
onnxruntime = pytest.importorskip("onnxruntime")

from plugins.supernet.tests.helpers import (  # noqa: E402
    make_run,
    make_space,
    parse_spec,
)
from unfold_supernet.family import checkpoint  # noqa: E402
from unfold_supernet.networks import channel_sorting, supernet, transformer  # noqa: E402
from unfold_supernet.networks.space import Space, compute_token_grid, count_macs, count_parameters  # noqa: E402
from unfold_supernet.schema.space import SpaceSpec  # noqa: E402
from unfold_supernet.verbs.plan import plan  # noqa: E402
from unfold_supernet.verbs.serve import serve  # noqa: E402
from unfold_supernet.verbs.train import train  # noqa: E402
from unfoldkit.api import Report, RunDir, Service  # noqa: E402

pytestmark = pytest.mark.torch
SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space:
  form: transformer
  stages: [{width: 16}, {width: 24}]
  attention: {patch: 2, width: 8, heads: 2}
  expand: [0.25, 1]
  depth: [1, 2]
training: {epochs: 2, batch: 64, alone: false}
serving: {slo: 500 ms, escalate: 60%}
accelerator: {persistent_buffer: 1 KiB, sizes: [1 KiB], bandwidths: [1 GB/s]}
queries: {count: 100}
"""


def space(size: tuple[int, ...], patch: int, heads: int, each: int, widths: tuple[int, ...], extra: int = 2) -> Space:
    """Return a space of every combination of three shares, two depths and two resolutions."""
    given_ = {
        "form": "transformer",
        "stages": tuple({"width": width} for width in widths),
        "attention": {"patch": patch, "width": heads * each, "heads": heads},
        "expand": (0.25, 0.5, 1.0),
        "depth": (1, 2),
        "resolution": (1.0, 0.5),
        "coupling": "independent",
    }
    return make_space(SpaceSpec.model_validate(given_), 2, size, extra, 4)


def spaces() -> st.SearchStrategy[Space]:
    """Draw a space over inputs of one or two axes, with or without numbers that join at the head."""
    sizes = st.lists(st.integers(6, 15), min_size=1, max_size=2).map(tuple)
    widths = st.lists(st.integers(4, 40), min_size=1, max_size=2).map(tuple)
    return st.builds(space, sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), widths, st.integers(0, 2))


def filled(of: Space, seed: int) -> supernet.Supernet:
    """Return a family whose every tensor is random, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(one.shape, generator=generator) * 0.3 for name, one in supernet.init_weights(of, 0).items()
    }
    return supernet.Supernet(of, weights, {one.name: supernet.bind_subnet(of, weights, one, ()) for one in of.subnets})


def inputs(of: Space, rows: int = 5) -> Any:
    """Return random inputs."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn((rows, of.channels, *of.size), generator=generator)
    return x, torch.randn((rows, of.extra), generator=generator)


@settings(max_examples=10, deadline=None)
@given(spaces(), st.integers(0, 1000), st.integers(1, 40))
def test_a_switched_transformer_is_the_extracted_one(of: Space, seed: int, rows: int) -> None:
    """For every subnet of any space, the shared weights give bit for bit what the extracted net gives."""
    found = filled(of, seed)
    x, extra = inputs(of, rows)
    with torch.inference_mode():
        for name, bound in found.bound.items():
            assert torch.equal(found(name, x, extra), checkpoint.extract_model(of, bound)(x, extra)), name


@settings(max_examples=5, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_the_written_graph_gives_the_same(of: Space, seed: int) -> None:
    """As ONNX, smallest and largest net give the logits of the family, for any number of rows."""
    found = filled(of, seed)
    for one, rows in itertools.product((of.subnets[0], of.largest), (1, 7)):
        x, extra = inputs(of, rows)
        module = checkpoint.extract_model(of, found.bound[one.name])
        session = onnxruntime.InferenceSession(checkpoint.export_onnx(of, module))
        asked = {"x": x.numpy(), **({"extra": extra.numpy()} if of.extra else {})}
        with torch.inference_mode():
            said = found(one.name, x, extra).numpy()
        np.testing.assert_allclose(session.run(["logits"], asked)[0], said, rtol=1e-3, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(spaces())
def test_parameters_are_those_of_the_net_alone(of: Space) -> None:
    """A net has as many trained numbers as the space counts, and fresh weights of its own size have no more."""
    found = filled(of, 0)
    for one in of.subnets:
        module = checkpoint.extract_model(of, found.bound[one.name])
        count = sum(tensor.numel() for tensor in module.parameters())
        fresh = supernet.init_weights(of, 0, one)
        assert count_parameters(of, one) == count == sum(tensor.numel() for tensor in fresh.values())
        x, extra = inputs(of)
        assert supernet.train_forward(of, fresh, one, x, extra).shape == (5, 4)


def test_work_is_that_of_the_sum_by_hand() -> None:
    """Operations are those of embedding, projections, products of attention, feed-forward layers and head."""
    of = space((8, 8), 2, 2, 4, (16,), extra=0)
    least, most = min(count_macs(of, one) for one in of.subnets), count_macs(of, of.largest)
    assert most == 16 * 8 * 8 + 2 * (16 * (4 * 64 + 2 * 8 * 16) + 2 * 16**2 * 8) + 8 * 4
    assert least == 4 * 8 * 8 + 4 * (4 * 64 + 2 * 8 * 4) + 2 * 4**2 * 8 + 8 * 4


def test_a_lower_resolution_takes_every_second_position() -> None:
    """At half the input there are half the tokens an axis, each at the position of every second one of the whole."""
    of = space((9, 8), 2, 1, 4, (8,))
    found = filled(of, 1)
    half = next(one for one in of.subnets if one.resolution < 1)
    assert compute_token_grid(of, half) == (2, 2)
    positions = found.weights["positions"]
    assert torch.equal(found.bound[half.name].views[0][0], positions[:, 0:4:2, 0:4:2])


@settings(max_examples=8, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_sorted_units_leave_the_largest_net_as_it_was(of: Space, seed: int) -> None:
    """After sorting the feed-forward units the largest net answers as before, and importances descend in each layer."""
    weights = dict(filled(of, seed).weights)
    after = channel_sorting.sort_channels(of, weights, channel_sorting.rank_channels(of, weights))
    x, extra = inputs(of)
    one, other = (supernet.train_forward(of, each, of.largest, x, extra) for each in (weights, after))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    again = channel_sorting.rank_channels(of, after)
    assert len(again) == sum(of.largest.depth)
    assert all(torch.equal(found, torch.arange(len(found))) for found in again.values())


def test_every_weight_of_the_largest_net_learns() -> None:
    """The loss of the largest net has a gradient for each tensor, of its whole shape."""
    of = space((9, 8), 2, 2, 4, (8,))
    weights = {name: one.clone().requires_grad_() for name, one in supernet.init_weights(of, 0).items()}
    x, extra = inputs(of)
    supernet.train_forward(of, weights, of.largest, x, extra).logsumexp(1).sum().backward()
    assert [name for name, one in weights.items() if one.grad is None] == []


def test_attention_is_that_of_the_formula() -> None:
    """What heads mix is softmax(Q K^T / sqrt(d)) V, head by head."""
    x = torch.randn((3, 6, 24), generator=torch.Generator().manual_seed(0))
    query, key, value = (part.reshape(3, 6, 2, 4).transpose(1, 2) for part in x.split(8, 2))
    shares = torch.softmax(query @ key.transpose(2, 3) / 2.0, -1)
    wanted = (shares @ value).transpose(1, 2).reshape(3, 6, 8)
    assert torch.allclose(transformer.attend(x, 2), wanted, atol=1e-5)


def test_a_transformer_goes_from_spec_to_answers(tmp_path: Path) -> None:
    """The verbs train, plan and serve work as for other forms; the plan says what the layer table leaves out."""
    spec = parse_spec(SPEC)
    run = make_run(tmp_path)
    report = train(spec, run)
    assert report.metrics["memory_ratio"].value is not None
    files = set(RunDir(tmp_path).files())
    assert {"subnets/0.25x1k1.onnx", "subnets/1x2k1.safetensors", "stages/1x2k1.onnx"} <= files
    planned = plan(spec, run)
    assert planned.decision is not None
    assert set(planned.decision["nets"]) == {"0.25x1k1", "1x2k1"}
    assert "products of activations" in dict(planned.lines)["family"]
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s\n" + "".join(f"{at / 100}\n" for at in range(20)), "utf-8")
    played = serve(spec, replace(run, options={"replay": str(trace)}))
    assert isinstance(played, Report)
    low, high = (report.metrics[f"accuracy_{end}"].value or 0 for end in ("min", "max"))
    assert low - 5 <= (played.metrics["accuracy_served"].value or 0) <= high + 5
    assert isinstance(serve(spec, run), Service)
    foretold = plan(spec, replace(run, options={"replay": str(trace)}))
    for name in ("attainment", "accuracy_served"):
        assert played.metrics[f"{name}_predicted"].value == foretold.metrics[name].value
    assert (played.metrics["pace"].value or 0) > 0
    heavy = parse_spec(SPEC.replace("serving: {", "serving: {load: 1%, "))
    loaded = [verb(heavy, replace(run, options={"replay": str(trace)})) for verb in (plan, serve)]
    for told in loaded:
        assert isinstance(told, Report)
        assert "demand 1 % of the fastest subnet's capacity" in dict(told.lines)["load"]
        assert told.subtitle[0] != played.subtitle[0]
